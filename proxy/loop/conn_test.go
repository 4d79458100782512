package loop

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestEchoServer(t *testing.T) {
	l := start(t, Config{})
	addr := listen(t, l, func(*Conn) Handler { return echo{} })
	data := random(1 << 20)
	got, err := exchange(dial(t, addr), data)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "echo", got, data)
}

func TestEchoClient(t *testing.T) {
	l := start(t, Config{})
	addr := serve(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	s := newSender(random(1 << 20))
	want := s.left
	l.Post(func() {
		l.Dial(addr, DialOptions{}, func(c *Conn, err error) {
			if err != nil {
				s.done <- err
				return
			}
			c.SetHandler(s)
			s.pump(c)
		})
	})
	if err := await(t, "OnClose", s.done); err != nil {
		t.Fatal(err)
	}
	same(t, "echo", s.received, want)
}

func TestHalfClose(t *testing.T) {
	t.Run("by the peer", func(t *testing.T) {
		l := start(t, Config{})
		closed := make(chan error, 1)
		addr := listen(t, l, func(*Conn) Handler {
			return &probe{
				eof:   func(c *Conn) { c.Write([]byte("late")); c.Close() },
				close: func(_ *Conn, err error) { closed <- err },
			}
		})
		got, err := exchange(dial(t, addr), []byte("early"))
		if err != nil || string(got) != "late" {
			t.Errorf("peer read %q, %v; want what was written after its FIN", got, err)
		}
		if err := await(t, "OnClose", closed); err != nil {
			t.Errorf("OnClose: %v", err)
		}
	})
	t.Run("by us", func(t *testing.T) {
		l := start(t, Config{})
		var got []byte
		done := make(chan []byte, 1)
		addr := listen(t, l, func(c *Conn) Handler {
			c.Write([]byte("all"))
			c.CloseWrite()
			c.Write([]byte("dropped"))
			return &probe{
				data: func(_ *Conn, p []byte) int { got = append(got, p...); return len(p) },
				eof:  func(c *Conn) { done <- got; c.Close() },
			}
		})
		c := dial(t, addr)
		if p, err := io.ReadAll(c); err != nil || string(p) != "all" {
			t.Fatalf("peer read %q, %v", p, err)
		}
		if _, err := c.Write([]byte("late")); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		if p := await(t, "OnEOF", done); string(p) != "late" {
			t.Errorf("read %q after our FIN, want %q", p, "late")
		}
	})
}

func TestResetByPeer(t *testing.T) {
	for _, tt := range []struct {
		name   string
		accept func(c *Conn)
	}{
		{"idle", func(*Conn) {}},
		{"paused", (*Conn).PauseRead},
		{"half-closed", (*Conn).CloseWrite},
		{"writing", func(c *Conn) { c.Write(make([]byte, 8<<20)) }},
		{"writing and paused", func(c *Conn) { c.PauseRead(); c.Write(make([]byte, 8<<20)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{})
			accepted, closed := make(chan struct{}), make(chan error, 2)
			addr := listen(t, l, func(c *Conn) Handler {
				tt.accept(c)
				close(accepted)
				return &probe{close: func(_ *Conn, err error) { closed <- err }}
			})
			c := dial(t, addr)
			await(t, "accept", accepted)
			_ = c.SetLinger(0)
			_ = c.Close()
			err := await(t, "OnClose", closed)
			if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				t.Errorf("OnClose: %v, want a reset", err)
			}
			on(t, l, func() {
				if len(closed) > 0 {
					t.Error("OnClose was called twice")
				}
			})
		})
	}
}

// A server that answers early and then resets, because it does not want the rest, must be heard.
func TestLastWordsBeforeAResetAreDelivered(t *testing.T) {
	l := start(t, Config{})
	conns, closed := make(chan *Conn, 1), make(chan error, 1)
	var got []byte
	addr := listen(t, l, func(c *Conn) Handler {
		conns <- c
		return &probe{
			data:  func(_ *Conn, p []byte) int { got = append(got, p...); return len(p) },
			close: func(_ *Conn, err error) { closed <- err },
		}
	})
	peer := dial(t, addr)
	c := await(t, "accept", conns)
	on(t, l, func() { // the loop learns of both at once
		_, _ = peer.Write([]byte("413"))
		_ = peer.SetLinger(0)
		_ = peer.Close()
		c.Write(make([]byte, directBytes)) // fails at once
		c.Write([]byte("more"))
		if c.Buffered() != 0 {
			t.Errorf("%d bytes are buffered for nobody", c.Buffered())
		}
	})
	if err := await(t, "OnClose", closed); err == nil {
		t.Error("OnClose: no error after a reset")
	}
	if string(got) != "413" {
		t.Errorf("handler got %q, want %q", got, "413")
	}
}

// The peer has gone by the time we write, and the loop has not been told yet.
func TestWriteAfterReset(t *testing.T) {
	for _, tt := range []struct {
		name  string
		act   func(c *Conn)
		fails bool
	}{
		{"reading", func(c *Conn) { c.Write([]byte("x")) }, true},
		{"reading, written at once", func(c *Conn) { c.Write(make([]byte, directBytes)) }, true},
		{"paused", func(c *Conn) { c.PauseRead(); c.Write(make([]byte, directBytes)) }, true},
		{"closing", func(c *Conn) { c.Write([]byte("x")); c.Close() }, false},
		{"closing without output", (*Conn).Close, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{CloseTimeout: time.Hour})
			conns, ends := make(chan *Conn, 1), make(chan error, 1)
			addr := listen(t, l, func(c *Conn) Handler {
				conns <- c
				return &probe{close: func(_ *Conn, err error) { ends <- err }}
			})
			peer := dial(t, addr)
			c := await(t, "accept", conns)
			on(t, l, func() {
				_ = peer.SetLinger(0)
				_ = peer.Close()
				tt.act(c)
			})
			if err := await(t, "OnClose", ends); (err != nil) != tt.fails {
				t.Errorf("OnClose: %v, want an error: %v", err, tt.fails)
			}
			eventually(t, "the descriptor is closed", func() (ok bool) {
				on(t, l, func() { ok = c.state == closed })
				return ok
			})
		})
	}
}

func TestUrgentDataDoesNotStopReading(t *testing.T) {
	for _, tt := range []struct {
		accelerated bool
		want        string
	}{{false, "abcd"}, {true, "ab!cd"}} {
		t.Run(tt.want, func(t *testing.T) { urgentData(t, Config{Accelerated: tt.accelerated}, tt.want) })
	}
}

func urgentData(t *testing.T, cfg Config, want string) {
	l := start(t, cfg)
	conns, done := make(chan *Conn, 1), make(chan struct{})
	var got []byte
	addr := listen(t, l, func(c *Conn) Handler {
		conns <- c
		return &probe{data: func(_ *Conn, p []byte) int {
			if got = append(got, p...); len(got) == len(want) {
				close(done)
			}
			return len(p)
		}}
	})
	peer := dial(t, addr)
	await(t, "accept", conns)
	raw, err := peer.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	on(t, l, func() { // the loop finds all of it at once: the read that ends at the mark has more behind it
		_ = raw.Control(func(fd uintptr) {
			for _, m := range []struct {
				text  string
				flags int
			}{{"ab", 0}, {"!", unix.MSG_OOB}, {"cd", 0}} {
				if err := unix.Sendto(int(fd), []byte(m.text), m.flags, nil); err != nil {
					t.Error(err)
				}
			}
		})
	})
	await(t, "all data", done)
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSlowReaderHoldsTheWriterBack(t *testing.T) {
	const high, low = 128 << 10, 32 << 10
	l := start(t, Config{HighWater: high, LowWater: low})
	s := newSender(random(16 << 20))
	want := s.left
	stalled := make(chan struct{})
	addr := listen(t, l, func(c *Conn) Handler {
		s.pump(c)
		l.After(0, func() {
			if !c.Full() || c.Buffered() <= low {
				t.Errorf("with a peer that does not read: Full %v, %d bytes buffered", c.Full(), c.Buffered())
			}
			close(stalled)
		})
		return s
	})
	c := dial(t, addr)
	_ = c.SetReadBuffer(64 << 10)
	await(t, "the writer's stopping", stalled)
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "received", got, want)
	_ = c.Close()
	if err := await(t, "OnClose", s.done); err != nil {
		t.Error(err)
	}
	if limit := high + 10_000; s.most > limit || s.most <= high {
		t.Errorf("at most %d bytes were buffered, want more than HighWater %d and no more than %d", s.most, high, limit)
	}
}

func TestOutputIsBounded(t *testing.T) {
	l := start(t, Config{})
	closed := make(chan error, 1)
	addr := listen(t, l, func(c *Conn) Handler {
		p := make([]byte, 1<<20)
		for range 2 * outputBytesMax / len(p) {
			c.Write(p)
		}
		return &probe{close: func(_ *Conn, err error) { closed <- err }}
	})
	c := dial(t, addr)
	if err := await(t, "OnClose", closed); !errors.Is(err, ErrOverflow) {
		t.Errorf("OnClose: %v, want %v", err, ErrOverflow)
	}
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("peer read to %v; want a reset, lest it take a part for the whole", err)
	}
}

func TestPauseRead(t *testing.T) {
	l := start(t, Config{})
	conns, done := make(chan *Conn, 1), make(chan struct{})
	var got []byte
	calls := 0
	addr := listen(t, l, func(c *Conn) Handler {
		c.PauseRead()
		conns <- c
		return &probe{
			data: func(_ *Conn, p []byte) int { calls++; got = append(got, p...); return len(p) },
			eof:  func(c *Conn) { close(done); c.Close() },
		}
	})
	peer := dial(t, addr)
	c := await(t, "accept", conns)
	data := random(32 << 20) // more than the kernel holds for it
	_ = peer.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := peer.Write(data)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("peer wrote %d bytes, %v; want it held back", n, err)
	}
	on(t, l, func() {
		if calls != 0 {
			t.Errorf("OnData was called %d times while paused", calls)
		}
		c.ResumeRead()
	})
	_ = peer.SetWriteDeadline(time.Now().Add(patience))
	if _, err := peer.Write(data[n:]); err != nil {
		t.Fatal(err)
	}
	_ = peer.CloseWrite()
	await(t, "OnEOF", done)
	same(t, "received", got, data)
}

func TestPauseKeepsWhatIsNotConsumed(t *testing.T) {
	l := start(t, Config{})
	var conn *Conn
	var offered []string
	paused, done := make(chan struct{}), make(chan struct{})
	addr := listen(t, l, func(c *Conn) Handler {
		conn = c
		return &probe{
			data: func(c *Conn, p []byte) int {
				offered = append(offered, string(p))
				if len(offered) == 1 {
					c.PauseRead()
					close(paused)
					return 2
				}
				return len(p)
			},
			eof: func(*Conn) { close(done) },
		}
	})
	peer := dial(t, addr)
	_, _ = peer.Write([]byte("abcde"))
	await(t, "first OnData", paused)
	_ = peer.CloseWrite()
	on(t, l, func() {
		if len(offered) != 1 {
			t.Errorf("offered while paused: %q", offered)
		}
		conn.ResumeRead()
	})
	await(t, "OnEOF", done)
	if got := strings.Join(offered, "|"); got != "abcde|cde" {
		t.Errorf("offered %s, want abcde|cde", got)
	}
}

func TestPartialMessageGrows(t *testing.T) {
	l := start(t, Config{KeepBytesMax: 40 << 10, ReadBytes: 10_000})
	message := random(39 << 10) // longer than a pooled buffer
	type result struct {
		p     []byte
		calls int
	}
	got := make(chan result, 2)
	calls := 0
	addr := listen(t, l, func(*Conn) Handler {
		return &probe{data: func(_ *Conn, p []byte) int {
			calls++
			if len(p) < len(message) {
				return 0
			}
			got <- result{bytes.Clone(p[:len(message)]), calls}
			return len(message)
		}}
	})
	peer := dial(t, addr)
	for range 2 {
		if _, err := peer.Write(message); err != nil {
			t.Fatal(err)
		}
	}
	first := await(t, "first message", got)
	same(t, "first message", first.p, message)
	if first.calls < 4 {
		t.Errorf("the message came in %d calls; want it to have grown", first.calls)
	}
	same(t, "second message", await(t, "second message", got).p, message)
}

func TestMessageTooLong(t *testing.T) {
	l := start(t, Config{KeepBytesMax: 1000})
	closed := make(chan error, 1)
	addr := listen(t, l, func(*Conn) Handler {
		return &probe{
			data:  func(*Conn, []byte) int { return 0 },
			close: func(_ *Conn, err error) { closed <- err },
		}
	})
	peer := dial(t, addr)
	if _, err := peer.Write(make([]byte, 999)); err != nil {
		t.Fatal(err)
	}
	on(t, l, func() {
		if len(closed) > 0 {
			t.Error("closed before the limit")
		}
	})
	_, _ = peer.Write([]byte{0})
	if err := await(t, "OnClose", closed); !errors.Is(err, ErrTooLong) {
		t.Errorf("OnClose: %v, want %v", err, ErrTooLong)
	}
}

// A handler that takes one message per call, of a burst longer than what is kept, is called until it has all of them.
func TestBurstOfSmallMessages(t *testing.T) {
	l := start(t, Config{KeepBytesMax: 100})
	done := make(chan struct{})
	total := 0
	addr := listen(t, l, func(*Conn) Handler {
		return &probe{data: func(_ *Conn, p []byte) int {
			n := min(len(p), 10)
			if len(p) >= 100 && n < 10 {
				t.Error("short offer")
			}
			if total += n; total == 100_000-90 {
				close(done)
			}
			return n
		}}
	})
	if _, err := dial(t, addr).Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	await(t, "all but the last messages", done)
}

func TestNewHandlerGetsWhatIsKept(t *testing.T) {
	l := start(t, Config{})
	var second []string
	done := make(chan struct{})
	next := &probe{
		data: func(_ *Conn, p []byte) int { second = append(second, string(p)); return len(p) },
		eof:  func(c *Conn) { close(done); c.Close() },
	}
	t.Run("from OnData", func(t *testing.T) {
		addr := listen(t, l, func(*Conn) Handler {
			return &probe{data: func(c *Conn, p []byte) int { c.SetHandler(next); return 1 }}
		})
		peer := dial(t, addr)
		_, _ = peer.Write([]byte("xhello"))
		_ = peer.CloseWrite()
		await(t, "OnEOF", done)
		if got := strings.Join(second, "|"); got != "hello" {
			t.Errorf("second handler was offered %q, want %q", got, "hello")
		}
	})
	t.Run("after the end", func(t *testing.T) {
		second, done = nil, make(chan struct{})
		addr := listen(t, l, func(*Conn) Handler {
			return &probe{
				data: func(*Conn, []byte) int { return 0 },
				eof:  func(c *Conn) { l.After(0, func() { c.SetHandler(next) }) },
			}
		})
		peer := dial(t, addr)
		_, _ = peer.Write([]byte("hello"))
		_ = peer.CloseWrite()
		await(t, "OnEOF", done)
		if got := strings.Join(second, "|"); got != "hello" {
			t.Errorf("second handler was offered %q, want %q", got, "hello")
		}
	})
}

func TestCloseSendsTheOutput(t *testing.T) {
	l := start(t, Config{})
	data := random(8 << 20)
	addr := listen(t, l, func(c *Conn) Handler {
		return &probe{data: func(c *Conn, p []byte) int { c.Write(data); c.Close(); c.Write(data); return 0 }}
	})
	peer := dial(t, addr)
	// What comes after Close must not make the kernel destroy what the peer has not read yet, and must go somewhere,
	// because this peer reads only when it has sent all, which is more than the kernel holds.
	if _, err := peer.Write(make([]byte, 32<<20)); err != nil {
		t.Fatal(err)
	}
	got, err := exchange(peer, make([]byte, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "received", got, data)
}

// TestFinish: a peer that is done is not waited for, but what of it is there in spite of that does not cost it our output.
func TestFinish(t *testing.T) {
	for _, tt := range []struct {
		name  string
		more  bool // the peer sends something behind what is answered
		waits bool
	}{{"at once", false, false}, {"with more there", true, true}} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{ReadBytes: 4})
			closed := make(chan error, 1)
			answer := make(chan *Conn, 1)
			addr := listen(t, l, func(*Conn) Handler {
				return &probe{
					data:  func(c *Conn, p []byte) int { c.PauseRead(); answer <- c; return len(p) },
					close: func(_ *Conn, err error) { closed <- err },
				}
			})
			c := dial(t, addr)
			_, _ = c.Write([]byte("abc"))
			at := await(t, "the question", answer)
			open := 0
			if tt.more {
				_, _ = c.Write([]byte("more than one read takes"))
				eventually(t, "the rest", func() (there bool) {
					on(t, l, func() { there = at.flags&readable != 0 })
					return there
				})
			}
			on(t, l, func() { at.Write([]byte("answer")); at.Finish() })
			if err := await(t, "OnClose", closed); err != nil {
				t.Error(err)
			}
			on(t, l, func() { open = l.open })
			if waits := open > 1; waits != tt.waits {
				t.Errorf("waits for the peer: %v, want %v", waits, tt.waits)
			}
			if got, err := io.ReadAll(c); err != nil || string(got) != "answer" {
				t.Errorf("read %q, %v", got, err)
			}
			_ = c.Close()
			eventually(t, "the end", func() bool {
				on(t, l, func() { open = l.open })
				return open == 1
			})
		})
	}
}

// TestFINTravelsWithTheLastBytes: a segment is saved where the output is followed by its end.
func TestFINTravelsWithTheLastBytes(t *testing.T) {
	for name, end := range map[string]func(c *Conn){
		"finish": (*Conn).Finish, "close": (*Conn).Close, "close write": (*Conn).CloseWrite,
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, Config{})
			addr := listen(t, l, func(c *Conn) Handler {
				c.Write([]byte("answer"))
				end(c)
				return &probe{}
			})
			c := dial(t, addr)
			if got, err := io.ReadAll(c); err != nil || string(got) != "answer" {
				t.Fatalf("read %q, %v", got, err)
			}
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var info *unix.TCPInfo
			if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil || err != nil {
				t.Fatal(cerr, err)
			}
			if info.Segs_in != 2 { // the other one is SYN
				t.Errorf("%d segments came, want 2", info.Segs_in)
			}
		})
	}
}

func TestCloseGivesUpOnAPeerThatDoesNotRead(t *testing.T) {
	l := start(t, Config{CloseTimeout: 50 * time.Millisecond})
	closed := make(chan error, 1)
	addr := listen(t, l, func(c *Conn) Handler {
		c.Write(make([]byte, 32<<20))
		c.Close()
		return &probe{close: func(_ *Conn, err error) { closed <- err }}
	})
	peer := dial(t, addr)
	if err := await(t, "OnClose", closed); err != nil {
		t.Errorf("OnClose after our own Close: %v", err)
	}
	if _, err := io.Copy(io.Discard, peer); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("peer read to %v; want a reset, lest it take a part for the whole", err)
	}
}

func TestLingeringEnds(t *testing.T) {
	l := start(t, Config{CloseTimeout: 50 * time.Millisecond})
	before := descriptors(t) + 2 // listener and peer
	closed := make(chan error, 1)
	addr := listen(t, l, func(c *Conn) Handler {
		c.Close()
		return &probe{close: func(_ *Conn, err error) { closed <- err }}
	})
	dial(t, addr) // and never closes
	if err := await(t, "OnClose", closed); err != nil {
		t.Errorf("OnClose: %v", err)
	}
	eventually(t, "the descriptor is closed", func() bool { return descriptors(t) == before })
}

func TestAbortResets(t *testing.T) {
	for _, tt := range []struct {
		name  string
		abort func(c *Conn)
	}{
		{"at once", (*Conn).Abort},
		{"after Close", func(c *Conn) { c.Write(make([]byte, 32<<20)); c.Close(); c.Abort() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{})
			closed := make(chan error, 1)
			addr := listen(t, l, func(*Conn) Handler {
				return &probe{
					data:  func(c *Conn, p []byte) int { tt.abort(c); return len(p) },
					close: func(_ *Conn, err error) { closed <- err },
				}
			})
			peer := dial(t, addr)
			if _, err := peer.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := await(t, "OnClose", closed); err != nil {
				t.Errorf("OnClose: %v", err)
			}
			if _, err := io.Copy(io.Discard, peer); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("peer read to %v, want a reset", err)
			}
		})
	}
}

func TestOnCloseDoesNotInterruptAnotherCallback(t *testing.T) {
	l := start(t, Config{})
	inside := false
	closed := make(chan struct{})
	addr := listen(t, l, func(*Conn) Handler {
		return &probe{
			data: func(c *Conn, p []byte) int {
				inside = true
				c.Close()
				c.Abort()
				c.Close()
				inside = false
				return len(p)
			},
			close: func(c *Conn, _ error) {
				if inside {
					t.Error("OnClose was called from within OnData")
				}
				if !c.LocalAddr().IsValid() || !c.RemoteAddr().IsValid() {
					t.Error("addresses are gone in OnClose")
				}
				for _, f := range []func(){c.Close, c.Abort, c.CloseWrite, c.PauseRead, c.ResumeRead, func() { c.Write([]byte("x")) }} {
					f() // does nothing
				}
				close(closed)
			},
		}
	})
	_, _ = dial(t, addr).Write([]byte("x"))
	await(t, "OnClose", closed)
}

// A handler that writes more whenever it can must not keep the loop from others.
func TestOnDrainDoesNotKeepTheLoop(t *testing.T) {
	l := start(t, Config{HighWater: 1000, LowWater: 500})
	rounds := 0
	stop := false
	addr := listen(t, l, func(c *Conn) Handler {
		p := make([]byte, 2000)
		var last time.Time
		c.Write(p)
		return &probe{drain: func(c *Conn) {
			if l.Now().Equal(last) {
				t.Error("OnDrain came twice in a batch")
			}
			last = l.Now()
			if rounds++; !stop {
				c.Write(p)
			}
		}}
	})
	peer := dial(t, addr)
	copied := make(chan struct{})
	go func() { defer close(copied); _, _ = io.Copy(io.Discard, peer) }()
	for range 100 {
		on(t, l, func() {}) // comes through
	}
	on(t, l, func() {
		stop = true
		if rounds < 2 {
			t.Errorf("OnDrain came %d times", rounds)
		}
	})
	_ = peer.Close()
	await(t, "the peer's end", copied)
}

func TestAddresses(t *testing.T) {
	l := start(t, Config{})
	conns := make(chan *Conn, 1)
	addr := listen(t, l, func(c *Conn) Handler { conns <- c; return echo{} })
	peer := dial(t, addr)
	c := await(t, "accept", conns)
	on(t, l, func() {
		if got := c.LocalAddr(); got != addr {
			t.Errorf("LocalAddr: %v, want %v", got, addr)
		}
		if got, want := c.RemoteAddr().String(), peer.LocalAddr().String(); got != want {
			t.Errorf("RemoteAddr: %v, want %v", got, want)
		}
		if c.Loop() != l {
			t.Error("Loop is another one")
		}
		if _, err := c.OriginalDst(); err == nil {
			t.Error("OriginalDst of a connection that was not redirected: no error")
		}
	})
}

func TestIdleConnectionOwnsNothing(t *testing.T) {
	l := start(t, Config{})
	conns := make(chan *Conn, 1)
	addr := listen(t, l, func(c *Conn) Handler { conns <- c; return echo{} })
	peer := dial(t, addr)
	c := await(t, "accept", conns)
	if _, err := peer.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(peer, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	on(t, l, func() {
		if c.kept != nil || c.out.head != nil || c.out.tail != nil || c.handshake != nil || c.deadline != nil {
			t.Errorf("an idle connection holds memory: %+v", c)
		}
	})
	if size := unsafe.Sizeof(*c); size > 256 {
		t.Errorf("a connection takes %d bytes, want 256 at most", size)
	}
}

func TestEchoAllocatesNothing(t *testing.T) {
	l := start(t, Config{})
	addr := listen(t, l, func(*Conn) Handler { return echo{} })
	c := dial(t, addr)
	p := make([]byte, 1024)
	round := func() {
		if _, err := c.Write(p); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(c, p); err != nil {
			t.Error(err)
		}
	}
	for range 100 {
		round()
	}
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations per echo, want 0", n)
	}
}

func BenchmarkEcho(b *testing.B) {
	l := start(b, Config{})
	addr := listen(b, l, func(*Conn) Handler { return echo{} })
	for _, bb := range []struct {
		name string
		size int
	}{{"1KiB", 1 << 10}, {"256KiB", 256 << 10}} {
		b.Run(bb.name, func(b *testing.B) {
			c := dial(b, addr)
			out, in := make([]byte, bb.size), make([]byte, bb.size)
			b.SetBytes(int64(2 * bb.size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(out); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
