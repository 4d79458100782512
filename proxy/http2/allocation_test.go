package http2

import (
	"fmt"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// pair is a client and a server connection that are wired to each other in
// memory; pump moves the bytes.
type pair struct {
	up, down sink
	c        *ClientConn
	s        *ServerConn
	accept   func(s stream.Sender) stream.Receiver
	err      error
}

func newPair(t testing.TB) *pair {
	p := new(pair)
	now := time.Unix(1, 0)
	cfg := Config{Now: func() time.Time { return now }, Memory: new(Memory)}
	p.s = NewServerConn(&p.down, p, cfg, p)
	p.c = NewClientConn(&p.up, cfg, p)
	p.pump()
	if p.err != nil || !p.c.gotPeer {
		t.Fatal("no SETTINGS", p.err)
	}
	return p
}

func (p *pair) Accept(s stream.Sender) stream.Receiver { return p.accept(s) }
func (p *pair) OnFault(_ *ServerConn, err *Error)      { p.err = err }
func (p *pair) OnRoom(*ClientConn)                     {}
func (p *pair) OnDraining(*ClientConn)                 {}
func (p *pair) OnDead(c *ClientConn)                   { p.err = c.Err() }

func (p *pair) pump() {
	for len(p.up.out)+len(p.down.out) > 0 {
		in := p.up.out
		p.up.out = in[len(in):]
		p.s.OnData(in)
		p.up.out = append(in[:0], p.up.out...)
		in = p.down.out
		p.down.out = in[len(in):]
		p.c.OnData(in)
		p.down.out = append(in[:0], p.down.out...)
	}
}

// unary is both ends of a unary gRPC call, as the relay is: it allocates nothing.
type unary struct {
	p                           *pair
	request, response, trailers *stream.Head
	message                     []byte
	client                      stream.Sender
	server                      unaryServer
	done, answered              int
}

type unaryServer struct {
	u *unary
	s stream.Sender
}

func (u *unary) call() {
	u.client, _ = u.p.c.Open(u)
	u.client.SendHead(u.request, false)
	u.client.SendData(u.message, true)
	u.p.pump()
}

func (u *unary) OnHead(*stream.Head, bool) {}
func (u *unary) OnInterim(*stream.Head)    {}
func (u *unary) OnData([]byte, bool)       {}
func (u *unary) OnTrailers(*stream.Head) {
	u.done++
	u.client.Release()
}
func (u *unary) OnAbort(_ stream.Abort, e error) { panic(e) }
func (u *unary) OnDrain()                        {}

func (s *unaryServer) OnHead(*stream.Head, bool) {}
func (s *unaryServer) OnInterim(*stream.Head)    {}
func (s *unaryServer) OnData(_ []byte, end bool) {
	if end {
		s.u.answered++
		s.s.SendHead(s.u.response, false)
		s.s.SendData(s.u.message, false)
		s.s.SendTrailers(s.u.trailers)
		s.s.Release()
	}
}
func (s *unaryServer) OnTrailers(*stream.Head)         {}
func (s *unaryServer) OnAbort(_ stream.Abort, e error) { panic(e) }
func (s *unaryServer) OnDrain()                        {}

func newUnary(t testing.TB) *unary {
	u := &unary{
		p:        newPair(t),
		request:  request("POST", "/helloworld.Greeter/SayHello", "content-type", "application/grpc", "user-agent", "grpc-go/1.85.0", "te", "trailers"),
		response: response(200, "content-type", "application/grpc"),
		trailers: response(0, "grpc-status", "0", "grpc-message", ""),
		message:  make([]byte, 100),
	}
	u.server.u = u
	u.p.accept = func(s stream.Sender) stream.Receiver {
		u.server.s = s
		return &u.server
	}
	return u
}

// TestAllocations states what a unary gRPC exchange costs: nothing, if both sides
// release their Senders, whether fields repeat or not.
func TestAllocations(t *testing.T) {
	u := newUnary(t)
	for range 200 {
		u.call()
	}
	got := testing.AllocsPerRun(1000, u.call)
	if u.p.err != nil || u.done != u.answered || u.done < 1200 {
		t.Fatalf("%d calls, %d answers, %v", u.done, u.answered, u.p.err)
	}
	if got > 0 {
		t.Errorf("%v allocations per exchange and pair of connections, want none", got)
	}

	timeouts := make([][]byte, 100)
	for i := range timeouts {
		timeouts[i] = fmt.Appendf(nil, "%dm", 1000+i)
	}
	i := 0
	got = testing.AllocsPerRun(len(timeouts)-1, func() {
		u.request.Set("grpc-timeout", timeouts[i])
		i++
		u.call()
	})
	if got > 0 {
		t.Errorf("%v allocations with a field that differs each time, want none", got)
	}
}

// TestAllocationsBulk: data through a full connection costs no allocation: chunks are reused.
func TestAllocationsBulk(t *testing.T) {
	b := newBed(t, Config{})
	b.feed(rawSettings(setting(settingInitialWindow, maxWindow)), rawWindow(0, maxWindow-initialWindow))
	r := answering(b, 1)[0]
	r.on = nil
	p := make([]byte, 16<<10)
	b.conn.discard = true
	round := func() {
		b.conn.out, b.conn.limit = b.conn.out[:1], 1
		r.s.SendData(p, false)
		b.conn.out, b.conn.limit = b.conn.out[:0], 0
		b.s.OnDrain()
	}
	b.conn.out = make([]byte, 1)
	round()
	if got := testing.AllocsPerRun(100, round); got != 0 {
		t.Errorf("%v allocations for 16 KiB that had to wait", got)
	}
}

func BenchmarkUnary(b *testing.B) {
	u := newUnary(b)
	b.ReportAllocs()
	for b.Loop() {
		u.call()
	}
}
