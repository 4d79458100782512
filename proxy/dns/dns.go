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
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The bounds of the server.
const (
	queriesMax = 1024 // at once; more are dropped, and the client asks again
	connsMax   = 128  // TCP connections at once; more are closed
	tcpIdle    = 10 * time.Second
	// errorPause is how long a socket that fails is left alone, lest it be asked without end.
	errorPause = 50 * time.Millisecond
)

// Config is what a Server needs.
type Config struct {
	// Lookup finds a name of the mesh: its addresses, or that it is none. It may take time. An error is answered with
	// SERVFAIL, unless BehindKnow.
	Lookup func(ctx context.Context, name string) (addrs []netip.Addr, known bool, err error)
	// Upstreams are the name servers behind this one, "address:port"; tried in turn.
	Upstreams []string
	// Dial connects to an upstream; nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Zone is the domain of the mesh, which no upstream is asked about: "cluster.local".
	Zone string
	// BehindKnow: the upstreams know the mesh's names, too, as those of a cluster do. They are asked where Lookup fails.
	BehindKnow bool
	Logger     *slog.Logger
}

// Server answers queries.
type Server struct {
	cfg            Config
	up             upstreams
	queries, conns chan struct{} // one element for each that is under way
}

// New makes a server.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Zone = strings.ToLower(strings.Trim(cfg.Zone, "."))
	return &Server{
		cfg: cfg, up: newUpstreams(cfg.Upstreams, cfg.Dial),
		queries: make(chan struct{}, queriesMax), conns: make(chan struct{}, connsMax),
	}
}

// Run serves until ctx ends, or one of the sockets does, then closes both and returns when all has ended.
func (s *Server) Run(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(inner, func() {
		_ = udp.Close()
		_ = tcp.Close()
	})
	var group sync.WaitGroup
	group.Go(func() {
		defer cancel()
		s.serveUDP(inner, udp, &group)
	})
	group.Go(func() {
		defer cancel()
		s.serveTCP(inner, tcp, &group)
	})
	group.Wait()
	if ctx.Err() == nil {
		return errors.New("a DNS socket was closed by somebody else")
	}
	return nil
}

// pause waits after an error of a socket, and reports false if it is over.
func pause(ctx context.Context, err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	select {
	case <-time.After(errorPause):
		return true
	case <-ctx.Done():
		return false
	}
}

// acquire takes a place if there is one.
func acquire(places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) serveUDP(ctx context.Context, udp net.PacketConn, group *sync.WaitGroup) {
	buf := make([]byte, udpMaxBytes)
	for {
		n, from, err := udp.ReadFrom(buf)
		if err != nil {
			if !pause(ctx, err) {
				return
			}
			continue
		}
		if !acquire(s.queries) {
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		group.Go(func() {
			defer func() { <-s.queries }()
			if answer := s.answer(ctx, query, "udp"); answer != nil {
				_, _ = udp.WriteTo(answer, from) // whoever is gone does not miss it
			}
		})
	}
}

func (s *Server) serveTCP(ctx context.Context, tcp net.Listener, group *sync.WaitGroup) {
	for {
		c, err := tcp.Accept()
		if err != nil {
			if !pause(ctx, err) {
				return
			}
			continue
		}
		if !acquire(s.conns) {
			_ = c.Close()
			continue
		}
		group.Go(func() {
			defer func() { <-s.conns }()
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
		if err != nil || !acquire(s.queries) {
			return
		}
		answer := s.answer(ctx, query, "tcp")
		<-s.queries
		if answer == nil || writeTCP(c, answer) != nil {
			return
		}
	}
}

// answer returns the response to a query; nil if what came deserves none.
func (s *Server) answer(ctx context.Context, query []byte, network string) []byte {
	q, err := parseQuery(query)
	if err != nil {
		if q.header.Response || len(query) < headerBytes {
			return nil
		}
		return q.fail(dnsmessage.RCodeFormatError)
	}
	name := strings.ToLower(strings.TrimSuffix(q.question.Name.String(), "."))
	if q.header.OpCode == 0 && q.question.Class == dnsmessage.ClassINET && name != "" {
		addrs, known, err := s.cfg.Lookup(ctx, name)
		switch {
		case err != nil && s.cfg.BehindKnow:
		case err != nil:
			s.cfg.Logger.Debug("name not resolved", "name", name, "cause", err)
			return q.fail(dnsmessage.RCodeServerFailure)
		case known:
			return q.respond(addrs, network)
		case s.cfg.Zone != "" && (name == s.cfg.Zone || strings.HasSuffix(name, "."+s.cfg.Zone)):
			return q.fail(dnsmessage.RCodeNameError)
		}
	}
	out, err := s.up.ask(ctx, query, q, network)
	if err != nil {
		s.cfg.Logger.Debug("name not resolved upstream", "name", name, "cause", err)
		return q.fail(dnsmessage.RCodeServerFailure)
	}
	return out
}
