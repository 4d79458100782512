package dns

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	ttlSeconds   = 30
	addressesMax = 64 // in one answer
	headerBytes  = 12 // of every message
	// plainUDPBytes is what a client without EDNS takes over UDP (RFC 1035 section 4.2.1).
	plainUDPBytes = 512
	// udpMaxBytes is the most that is sent or taken over UDP, whatever a client offers.
	udpMaxBytes = 4096
)

// query is what is looked at of a client's message.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	asked    bool // there is a question
	edns     bool // the client speaks EDNS (RFC 6891)
	udpBytes int  // what the client takes over UDP
}

var errQuery = errors.New("not a query with one question")

// parseQuery reads a message with exactly one question. With an error as much is known as could be read.
func parseQuery(msg []byte) (query, error) {
	q := query{udpBytes: plainUDPBytes}
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(msg); err != nil {
		return q, err
	}
	if q.header.Response {
		return q, errQuery
	}
	if q.question, err = p.Question(); err != nil {
		return q, err
	}
	q.asked = true
	if _, err = p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return q, errQuery
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, errQuery
	}
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return q, nil
		}
		if err != nil {
			return q, errQuery
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.udpBytes = true, min(max(int(h.Class), plainUDPBytes), udpMaxBytes)
		}
		if p.SkipAdditional() != nil {
			return q, errQuery
		}
	}
}

// build makes a response, with the addresses that fit the question's type.
func (q *query) build(code dnsmessage.RCode, truncated bool, addrs []netip.Addr) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
		Authoritative: code == dnsmessage.RCodeSuccess, RCode: code, Truncated: truncated,
	})
	b.EnableCompression()
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if q.asked {
		if err := b.Question(q.question); err != nil {
			return nil, err
		}
	}
	if err := b.StartAnswers(); err != nil {
		return nil, err
	}
	h := dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: ttlSeconds}
	for _, a := range addrs {
		var err error
		if a.Is4() {
			err = b.AResource(h, dnsmessage.AResource{A: a.As4()})
		} else {
			err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.As16()})
		}
		if err != nil {
			return nil, err
		}
	}
	if q.edns {
		if err := b.StartAdditionals(); err != nil {
			return nil, err
		}
		var opt dnsmessage.ResourceHeader
		if err := opt.SetEDNS0(udpMaxBytes, 0, false); err != nil {
			return nil, err
		}
		if err := b.OPTResource(opt, dnsmessage.OPTResource{}); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// fail is a response with nothing but a code; nil if not even that can be written.
func (q *query) fail(code dnsmessage.RCode) []byte {
	msg, err := q.build(code, false, nil)
	if err != nil {
		return nil
	}
	return msg
}

// respond answers for a name of the mesh, in an order that spreads load; other types than addresses get an empty
// answer. What is too large for UDP is cut, and the client asks again over TCP.
func (q *query) respond(addrs []netip.Addr, network string) []byte {
	var fit []netip.Addr
	for _, i := range rand.Perm(len(addrs)) {
		a := addrs[i].Unmap().WithZone("")
		if len(fit) < addressesMax && (q.question.Type == dnsmessage.TypeA && a.Is4() || q.question.Type == dnsmessage.TypeAAAA && a.Is6()) {
			fit = append(fit, a)
		}
	}
	msg, err := q.build(dnsmessage.RCodeSuccess, false, fit)
	if err == nil && network == "udp" && len(msg) > q.udpBytes {
		msg, err = q.build(dnsmessage.RCodeSuccess, true, nil)
	}
	if err != nil {
		return q.fail(dnsmessage.RCodeServerFailure)
	}
	return msg
}

// readTCP reads a message with its length (RFC 1035 section 4.2.2).
func readTCP(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	p := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, p)
	return p, err
}

func writeTCP(w io.Writer, p []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
	return err
}
