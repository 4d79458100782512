// Package dns is the name server of a sidecar: it answers for the names of the
// mesh and passes every other question on.
//
// In: DNS queries over UDP and TCP, on sockets that somebody else has opened,
// and a Lookup that knows the mesh. Out: answers. It must not know xDS or
// plans. Format: RFC 1035; EDNS (RFC 6891) is passed through. It works on
// goroutines of its own, all of which Run owns.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The bounds of the server.
const (
	ttlSeconds     = 30
	forwardTimeout = 5 * time.Second
	tcpIdle        = 10 * time.Second
	queriesMax     = 1024 // at once; more are dropped, and the client asks again
	udpMaxBytes    = 4096
	addressesMax   = 64 // in one answer
	plainUDPBytes  = 512
)

// Config is what a Server needs.
type Config struct {
	// Lookup finds a name of the mesh: its addresses, or that it is none. It may take time. An error is answered with
	// SERVFAIL.
	Lookup func(ctx context.Context, name string) (addrs []netip.Addr, known bool, err error)
	// Upstreams are the name servers behind this one, "address:port"; tried in turn.
	Upstreams []string
	// Dial connects to an upstream; nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Zone is the domain of the mesh, which no upstream is asked about: "cluster.local".
	Zone   string
	Logger *slog.Logger
}

// Server answers queries.
type Server struct {
	cfg   Config
	slots chan struct{}
}

// New makes a server.
func New(cfg Config) *Server {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, slots: make(chan struct{}, queriesMax)}
}

// Run serves until ctx ends, then closes the sockets and returns when all has ended.
func (s *Server) Run(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	var group sync.WaitGroup
	stop := context.AfterFunc(ctx, func() {
		_ = udp.Close()
		_ = tcp.Close()
	})
	defer stop()
	group.Go(func() { s.serveUDP(ctx, udp, &group) })
	group.Go(func() { s.serveTCP(ctx, tcp, &group) })
	group.Wait()
	if ctx.Err() == nil {
		return errors.New("the DNS sockets were closed")
	}
	return nil
}

func (s *Server) serveUDP(ctx context.Context, udp net.PacketConn, group *sync.WaitGroup) {
	buf := make([]byte, udpMaxBytes)
	for {
		n, from, err := udp.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier answer
		}
		select {
		case s.slots <- struct{}{}:
		default:
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		group.Go(func() {
			defer func() { <-s.slots }()
			if answer := s.answer(ctx, query, "udp"); answer != nil {
				_, _ = udp.WriteTo(answer, from)
			}
		})
	}
}

func (s *Server) serveTCP(ctx context.Context, tcp net.Listener, group *sync.WaitGroup) {
	for {
		c, err := tcp.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		group.Go(func() {
			defer func() { <-s.slots }()
			s.serveConn(ctx, c)
		})
	}
}

// serveConn answers the queries of one TCP connection, one after another (RFC 7766).
func (s *Server) serveConn(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	for {
		_ = c.SetDeadline(time.Now().Add(tcpIdle))
		query, err := readTCP(c)
		if err != nil {
			return
		}
		answer := s.answer(ctx, query, "tcp")
		if answer == nil || writeTCP(c, answer) != nil {
			return
		}
	}
}

func readTCP(c io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	p := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, p)
	return p, err
}

func writeTCP(c io.Writer, p []byte) error {
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
	return err
}

// answer returns the response to a query; nil if what came deserves none.
func (s *Server) answer(ctx context.Context, query []byte, network string) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return fail(h, nil, dnsmessage.RCodeFormatError)
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if h.OpCode == 0 && q.Class == dnsmessage.ClassINET && name != "" {
		addrs, known, err := s.cfg.Lookup(ctx, name)
		switch {
		case err != nil:
			s.cfg.Logger.Debug("name not resolved", "name", name, "cause", err)
			return fail(h, &q, dnsmessage.RCodeServerFailure)
		case known:
			return respond(h, q, addrs, network)
		case name == s.cfg.Zone || strings.HasSuffix(name, "."+s.cfg.Zone):
			return fail(h, &q, dnsmessage.RCodeNameError)
		}
	}
	out, err := s.forward(ctx, query, q, network)
	if err != nil {
		s.cfg.Logger.Debug("name not resolved upstream", "name", name, "cause", err)
		return fail(h, &q, dnsmessage.RCodeServerFailure)
	}
	return out
}

func header(h dnsmessage.Header) dnsmessage.Header {
	return dnsmessage.Header{ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}
}

func fail(h dnsmessage.Header, q *dnsmessage.Question, code dnsmessage.RCode) []byte {
	out := header(h)
	out.RCode = code
	b := dnsmessage.NewBuilder(nil, out)
	if q != nil && b.StartQuestions() == nil {
		_ = b.Question(*q)
	}
	msg, err := b.Finish()
	if err != nil {
		return nil
	}
	return msg
}

// respond answers for a name of the mesh; other types than addresses get an empty answer.
func respond(h dnsmessage.Header, q dnsmessage.Question, addrs []netip.Addr, network string) []byte {
	out := header(h)
	out.Authoritative = true
	b := dnsmessage.NewBuilder(nil, out)
	b.EnableCompression()
	err := b.StartQuestions()
	if err == nil {
		err = b.Question(q)
	}
	if err == nil {
		err = b.StartAnswers()
	}
	rh := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: ttlSeconds}
	n := 0
	for _, i := range rand.Perm(len(addrs)) {
		a := addrs[i].Unmap()
		if err != nil || n >= addressesMax {
			break
		}
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			err = b.AResource(rh, dnsmessage.AResource{A: a.As4()})
			n++
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			err = b.AAAAResource(rh, dnsmessage.AAAAResource{AAAA: a.As16()})
			n++
		}
	}
	if err != nil {
		return fail(h, &q, dnsmessage.RCodeServerFailure)
	}
	msg, err := b.Finish()
	if err != nil {
		return fail(h, &q, dnsmessage.RCodeServerFailure)
	}
	if network == "udp" && len(msg) > plainUDPBytes {
		out.Truncated = true // the client asks again over TCP
		b := dnsmessage.NewBuilder(nil, out)
		if b.StartQuestions() == nil && b.Question(q) == nil {
			if msg, err = b.Finish(); err != nil {
				return nil
			}
		}
	}
	return msg
}

// forward asks the upstreams in turn. The question travels under an id and from a port of our own.
func (s *Server) forward(ctx context.Context, query []byte, q dnsmessage.Question, network string) ([]byte, error) {
	if len(s.cfg.Upstreams) == 0 {
		return nil, errors.New("no upstream name server is known: /etc/resolv.conf names none")
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	var errs []error
	for i, up := range s.cfg.Upstreams {
		// What is left of the time is shared with those still to come.
		deadline, _ := ctx.Deadline()
		one, stop := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(s.cfg.Upstreams)-i))
		out, err := s.ask(one, up, query, q, network)
		stop()
		if err == nil {
			return out, nil
		}
		errs = append(errs, fmt.Errorf("ask %s: %w", up, err))
	}
	return nil, errors.Join(errs...)
}

func (s *Server) ask(ctx context.Context, upstream string, query []byte, q dnsmessage.Question, network string) ([]byte, error) {
	c, err := s.cfg.Dial(ctx, network, upstream)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	id := uint16(rand.Uint32())
	own := append(binary.BigEndian.AppendUint16(nil, id), query[2:]...)
	if network == "tcp" {
		err = writeTCP(c, own)
	} else {
		_, err = c.Write(own)
	}
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	for {
		var answer []byte
		if network == "tcp" {
			answer, err = readTCP(c)
		} else {
			var n int
			n, err = c.Read(buf)
			answer = buf[:n]
		}
		if err != nil {
			return nil, err
		}
		if !answers(answer, id, q) {
			if network == "tcp" {
				return nil, errors.New("the answer is to another question")
			}
			continue // perhaps forged; the real one may follow
		}
		return append(append([]byte(nil), query[:2]...), answer[2:]...), nil
	}
}

// answers reports whether a message is the answer to our question.
func answers(msg []byte, id uint16, q dnsmessage.Question) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != id {
		return false
	}
	got, err := p.Question()
	if err != nil {
		return errors.Is(err, dnsmessage.ErrSectionDone) && h.RCode != dnsmessage.RCodeSuccess
	}
	return got.Type == q.Type && got.Class == q.Class && strings.EqualFold(got.Name.String(), q.Name.String())
}
