package loop

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// storm is one end of a connection that does at random what handlers may do, and checks what a connection promises:
// bytes arrive in order and complete, nothing is called after OnClose, and that comes once.
type storm struct {
	t        *testing.T
	r        *rand.Rand
	sent     int // position in the stream of the next byte
	left     int // bytes still to be sent
	received int
	kept     int // bytes left unconsumed at the last offer
	eof      bool
	closed   bool
	orderly  bool // nobody on either end aborts
	timer    Timer
	done     chan<- struct{}
}

// streamByte is byte i of every stream.
func streamByte(i int) byte { return byte(i ^ i>>8 ^ i>>16) }

func (s *storm) begin(c *Conn) {
	c.SetHandler(s)
	s.timer.Init(c.loop, func() {
		c.ResumeRead()
		s.act(c)
	})
	s.act(c)
}

// act writes something and perhaps does something else.
func (s *storm) act(c *Conn) {
	for s.left > 0 && !c.Full() {
		n := min(s.left, 1+s.r.IntN(1<<(4+s.r.IntN(14))))
		p := make([]byte, n)
		for i := range p {
			p[i] = streamByte(s.sent + i)
		}
		c.Write(p)
		s.sent, s.left = s.sent+n, s.left-n
		if s.r.IntN(4) == 0 {
			break
		}
	}
	switch {
	case s.left == 0 && s.eof:
		c.Close()
	case s.left == 0:
		c.CloseWrite()
	case !s.orderly && s.r.IntN(50) == 0:
		c.Abort()
	case !s.orderly && s.r.IntN(50) == 0:
		c.Close()
	}
	if !s.closed {
		s.timer.Reset(time.Duration(s.r.IntN(2000)) * time.Microsecond)
	}
}

func (s *storm) alive(what string) {
	if s.closed {
		s.t.Errorf("%s after OnClose", what)
	}
}

func (s *storm) OnData(c *Conn, p []byte) int {
	s.alive("OnData")
	if s.eof {
		s.t.Error("OnData after OnEOF")
	}
	if len(p) < s.kept {
		s.t.Errorf("offered %d bytes after leaving %d", len(p), s.kept)
	}
	for i, b := range p {
		if b != streamByte(s.received+i) {
			s.t.Fatalf("byte %d of the stream is %d, want %d", s.received+i, b, streamByte(s.received+i))
		}
	}
	n := len(p)
	switch s.r.IntN(6) {
	case 0:
		n = s.r.IntN(len(p) + 1)
		c.PauseRead() // the timer resumes, and has the rest offered
	case 1:
		c.PauseRead()
	case 2:
		s.act(c)
	case 3:
		n = s.r.IntN(len(p) + 1)
		c.SetHandler(s) // the rest is offered again
	}
	s.received += n
	s.kept = len(p) - n
	return n
}

func (s *storm) OnEOF(c *Conn) {
	s.alive("OnEOF")
	if s.eof && s.orderly {
		return // told again because of SetHandler
	}
	s.eof = true
	s.act(c)
}

func (s *storm) OnDrain(c *Conn) {
	s.alive("OnDrain")
	if c.Full() {
		s.t.Error("OnDrain while Full")
	}
	s.act(c)
}

func (s *storm) OnClose(_ *Conn, err error) {
	s.alive("OnClose")
	s.closed = true
	s.timer.Stop()
	if s.orderly && (err != nil || !s.eof || s.left > 0 || s.kept > 0) {
		s.t.Errorf("OnClose(%v) with EOF %v, %d bytes to send and %d kept", err, s.eof, s.left, s.kept)
	}
	s.done <- struct{}{}
}

func TestStorm(t *testing.T) {
	const connections, bytesMax = 90, 200 << 10
	serverTLS, clientTLS := certify(t)
	before := descriptors(t)
	cfg := Config{HighWater: 32 << 10, LowWater: 8 << 10, KeepBytesMax: 16 << 10, ReadBytes: 24 << 10, CloseTimeout: patience}
	loops := [2]*Loop{start(t, cfg), start(t, cfg)}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	done := make(chan struct{}, 2*connections)
	var ends [connections][2]*storm
	for i := range ends {
		orderly := i%2 == 0
		for j := range ends[i] {
			ends[i][j] = &storm{t: t, r: rand.New(rand.NewPCG(r.Uint64(), 0)), left: r.IntN(bytesMax), orderly: orderly, done: done}
		}
		secure := i%3 == 0
		addr := listen(t, loops[0], func(c *Conn) Handler {
			if secure {
				c.StartTLSServer(serverTLS, patience, func(error) {})
			}
			ends[i][0].begin(c)
			return nil
		})
		loops[1].Post(func() {
			loops[1].Dial(addr, DialOptions{Timeout: patience}, func(c *Conn, err error) {
				if err != nil {
					if orderly || !errors.Is(err, unix.ECONNRESET) { // the other end may have aborted at once
						t.Errorf("Dial: %v", err)
					}
					done <- struct{}{}
					return
				}
				if secure {
					c.StartTLSClient(clientTLS, patience, func(error) {})
				}
				ends[i][1].begin(c)
			})
		})
	}
	for range 2 * connections {
		await(t, "OnClose", done)
	}
	for i := range ends {
		for j, s := range ends[i] {
			if peer := ends[i][1-j]; s.orderly && s.received != peer.sent {
				t.Errorf("connection %d: %d bytes arrived of %d", i, s.received, peer.sent)
			}
		}
	}
	for _, l := range loops {
		eventually(t, "all connections are released", func() (ok bool) {
			on(t, l, func() { ok = l.open <= connections && len(l.timers.heap) == 0 && l.handshakes == 0 })
			return ok
		})
	}
	if limit := before + connections + 2*2; descriptors(t) > limit {
		t.Errorf("%d descriptors are open, want %d at most", descriptors(t), limit)
	}
}

var _ Handler = (*storm)(nil)
