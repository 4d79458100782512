package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// forwardTimeout bounds a question to all upstreams together.
const forwardTimeout = 5 * time.Second

// upstreams are the name servers behind this one.
type upstreams struct {
	addrs []string // "address:port"
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
}

func newUpstreams(addrs []string, dial func(ctx context.Context, network, address string) (net.Conn, error)) upstreams {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return upstreams{addrs, dial}
}

// ask puts a question to one upstream after another, until one gives an answer that is not its own failure. The
// question travels under an id and from a port that nobody can guess; else it is passed on as it is, and so is the
// answer.
func (u *upstreams) ask(ctx context.Context, msg []byte, q query, network string) ([]byte, error) {
	if len(u.addrs) == 0 {
		return nil, errors.New("no upstream name server is known: /etc/resolv.conf names none")
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	var errs []error
	var failure []byte // an upstream's own
	for i, addr := range u.addrs {
		// What is left of the time is shared with those still to come.
		one, stop := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(u.addrs)-i))
		out, err := u.exchange(one, addr, msg, q, network)
		stop()
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("ask %s: %w", addr, err))
		case failed(out):
			failure = out
		default:
			return out, nil
		}
	}
	if failure != nil {
		return failure, nil
	}
	return nil, errors.Join(errs...)
}

// failed reports whether another server may know better.
func failed(msg []byte) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	return err != nil || h.RCode == dnsmessage.RCodeServerFailure || h.RCode == dnsmessage.RCodeRefused || h.RCode == dnsmessage.RCodeNotImplemented
}

func (u *upstreams) exchange(ctx context.Context, addr string, msg []byte, q query, network string) ([]byte, error) {
	c, err := u.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	id := uint16(rand.Uint32())
	own := append(binary.BigEndian.AppendUint16(nil, id), msg[2:]...)
	out, err := roundTrip(c, own, q, network)
	if err != nil {
		return nil, err
	}
	return append(append([]byte(nil), msg[:2]...), out[2:]...), nil
}

// roundTrip sends a question and waits for its answer.
func roundTrip(c net.Conn, msg []byte, q query, network string) ([]byte, error) {
	if network == "tcp" {
		if err := writeTCP(c, msg); err != nil {
			return nil, err
		}
		out, err := readTCP(c)
		if err == nil && !answers(out, msg, q) {
			err = errors.New("the answer is to another question")
		}
		return out, err
	}
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, q.udpBytes+1)
	for {
		n, err := c.Read(buf)
		switch {
		case err != nil:
			return nil, err
		case !answers(buf[:n], msg, q): // perhaps forged; the real one may follow
		case n > q.udpBytes:
			return q.build(dnsmessage.RCodeSuccess, true, nil) // more than is taken over UDP
		default:
			return buf[:n], nil
		}
	}
}

// answers reports whether a message is the answer to our question.
func answers(msg, question []byte, q query) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != binary.BigEndian.Uint16(question) {
		return false
	}
	got, err := p.Question()
	if err != nil { // some servers leave the question out of a refusal
		return errors.Is(err, dnsmessage.ErrSectionDone) && h.RCode != dnsmessage.RCodeSuccess
	}
	return got.Type == q.question.Type && got.Class == q.question.Class && strings.EqualFold(got.Name.String(), q.question.Name.String())
}
