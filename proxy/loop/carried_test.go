package loop

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeCarrier writes down what it is told.
type fakeCarrier struct {
	calls    []string
	full     bool
	onResume func()
}

func (f *fakeCarrier) Write(p []byte)            { f.calls = append(f.calls, "write "+string(p)) }
func (f *fakeCarrier) CloseWrite()               { f.calls = append(f.calls, "close write") }
func (f *fakeCarrier) Full() bool                { return f.full }
func (f *fakeCarrier) Pause()                    { f.calls = append(f.calls, "pause") }
func (f *fakeCarrier) Abort()                    { f.calls = append(f.calls, "abort") }
func (f *fakeCarrier) TLS() *tls.ConnectionState { return &tls.ConnectionState{ServerName: "carrying"} }

func (f *fakeCarrier) Resume() {
	f.calls = append(f.calls, "resume")
	if f.onResume != nil {
		f.onResume()
	}
}

// reader is a handler that writes down what it is told, and consumes as take says.
type reader struct {
	told []string
	take func(p []byte) int
}

func (r *reader) OnData(_ *Conn, p []byte) int {
	r.told = append(r.told, string(p))
	if r.take != nil {
		return r.take(p)
	}
	return len(p)
}
func (r *reader) OnEOF(*Conn)   { r.told = append(r.told, "EOF") }
func (r *reader) OnDrain(*Conn) { r.told = append(r.told, "drain") }
func (r *reader) OnClose(_ *Conn, err error) {
	what := "closed"
	if err != nil {
		what += ": " + err.Error()
	}
	r.told = append(r.told, what)
}

// carried is a connection of a loop that a test drives by hand, without sockets or a goroutine.
type carried struct {
	t       *testing.T
	loop    *Loop
	conn    *Conn
	carrier *fakeCarrier
	reader  *reader
}

func newCarried(t *testing.T) *carried {
	t.Helper()
	l, err := New(Config{KeepBytesMax: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.finish)
	c := &carried{t: t, loop: l, carrier: &fakeCarrier{}, reader: &reader{}}
	c.conn = l.Carry(c.carrier, netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.0.0.2:80"))
	c.conn.SetHandler(c.reader)
	return c
}

// batch does what a batch of the loop does when no socket is ready.
func (c *carried) batch() {
	c.loop.now = time.Now()
	c.loop.elapsed = c.loop.now.Sub(c.loop.start)
	c.loop.fireTimers()
	c.loop.serveReady()
	c.loop.settleDirty()
}

// expect says what handler and carrier must have been told since the last time.
func (c *carried) expect(told, calls string) {
	c.t.Helper()
	if got := strings.Join(c.reader.told, ", "); got != told {
		c.t.Errorf("the handler was told %q, want %q", got, told)
	}
	if got := strings.Join(c.carrier.calls, ", "); got != calls {
		c.t.Errorf("the carrier was told %q, want %q", got, calls)
	}
	c.reader.told, c.carrier.calls = nil, nil
}

// TestCarriedHalfClose: bytes go both ways, each way ends by itself, and the second end is the connection's.
func TestCarriedHalfClose(t *testing.T) {
	c := newCarried(t)
	if c.conn.LocalAddr().Port() != 80 || c.conn.RemoteAddr().Port() != 1000 || c.conn.TLS().ServerName != "carrying" {
		t.Error("addresses or TLS state are not those of the carrier")
	}
	if _, err := c.conn.OriginalDst(); err == nil {
		t.Error("an original destination")
	}
	c.conn.Feed([]byte("ping"))
	c.conn.Write([]byte("pong"))
	c.conn.CloseWrite()
	c.conn.Write([]byte("late"))
	c.batch()
	c.expect("ping", "write pong, close write")
	c.conn.Feed([]byte("more"))
	c.conn.FeedEOF()
	c.batch()
	c.expect("more, EOF", "")
	c.conn.Close()
	c.batch()
	c.expect("closed", "")
	if c.loop.open != 0 {
		t.Errorf("%d connections are open", c.loop.open)
	}
}

// TestCarriedKeeps: what the handler leaves is offered again with what follows, and to the next handler.
func TestCarriedKeeps(t *testing.T) {
	c := newCarried(t)
	c.reader.take = func(p []byte) int { return len(p) / 4 * 4 }
	c.conn.Feed([]byte("abcdef"))
	c.conn.Feed([]byte("gh12"))
	c.expect("abcdef, efgh12", "")
	next := &reader{}
	c.conn.SetHandler(next)
	c.batch()
	if !slices.Equal(next.told, []string{"12"}) {
		t.Errorf("the next handler was told %q", next.told)
	}
	c.conn.SetHandler(c.reader)
	c.reader.take = func([]byte) int { return 0 }
	for range 8 {
		c.conn.Feed([]byte("12345678"))
	}
	c.batch()
	if last := c.reader.told[len(c.reader.told)-1]; last != "closed: "+ErrTooLong.Error() {
		t.Errorf("a message without end: %q", last)
	}
}

// TestCarriedPause: a paused connection pauses its carrier, tells nothing, and takes up where it was, in order.
func TestCarriedPause(t *testing.T) {
	c := newCarried(t)
	c.conn.PauseRead()
	c.conn.PauseRead()
	c.conn.Feed([]byte("1"))
	c.conn.Feed([]byte("2"))
	c.batch()
	c.expect("", "pause")
	c.carrier.onResume = func() {
		c.conn.Feed([]byte("3"))
		c.conn.FeedEOF()
	}
	c.conn.ResumeRead()
	c.expect("", "")
	c.batch()
	c.batch()
	c.expect("12, 3, EOF", "resume")
}

// TestCarriedFull: the handler is told once the carrier has room again.
func TestCarriedFull(t *testing.T) {
	c := newCarried(t)
	c.carrier.full = true
	c.conn.Write([]byte("x"))
	c.conn.Drained()
	c.batch()
	if !c.conn.Full() {
		t.Error("not full")
	}
	c.carrier.full = false
	c.conn.Drained()
	c.batch()
	if c.conn.Full() {
		t.Error("still full")
	}
	c.expect("drain", "write x")
}

// TestCarriedEnds: who ends the connection, and how, is told to the other side.
func TestCarriedEnds(t *testing.T) {
	broken := errors.New("broken")
	for _, r := range []struct {
		name        string
		do          func(c *carried)
		told, calls string
	}{
		{"close", func(c *carried) { c.conn.Close() }, "closed", "close write"},
		{"close, then the peer", func(c *carried) { c.conn.Close(); c.batch(); c.conn.Feed([]byte("x")); c.conn.FeedEOF() }, "closed", "close write"},
		{"close paused", func(c *carried) { c.conn.PauseRead(); c.conn.Close() }, "closed", "pause, close write, resume"},
		{"close, then reset", func(c *carried) { c.conn.Close(); c.conn.FeedReset(broken) }, "closed", "close write, abort"},
		{"abort", func(c *carried) { c.conn.Write([]byte("x")); c.conn.Abort() }, "closed", "write x, abort"},
		{"abort while closing", func(c *carried) { c.conn.Close(); c.conn.Abort() }, "closed", "close write, abort"},
		{"reset", func(c *carried) { c.conn.FeedReset(broken) }, "closed: broken", "abort"},
		{"reset twice", func(c *carried) { c.conn.FeedReset(broken); c.conn.FeedReset(nil) }, "closed: broken", "abort"},
	} {
		c := newCarried(t)
		r.do(c)
		c.batch()
		c.batch()
		if told, calls := strings.Join(c.reader.told, ", "), strings.Join(c.carrier.calls, ", "); told != r.told || calls != r.calls {
			t.Errorf("%s: the handler was told %q, want %q; the carrier %q, want %q", r.name, told, r.told, calls, r.calls)
		}
	}
}

// TestCarriedLinger: a peer that does not end its side is given up after CloseTimeout.
func TestCarriedLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCarried(t)
		c.conn.Close()
		c.batch()
		c.expect("closed", "close write")
		<-time.After(c.loop.cfg.CloseTimeout) // synthetic time
		c.batch()
		c.expect("", "abort")
		if c.loop.open != 0 {
			t.Errorf("%d connections are open", c.loop.open)
		}
	})
}

// TestCarriedTLS: a handshake is refused, and that is told.
func TestCarriedTLS(t *testing.T) {
	c := newCarried(t)
	var told error
	c.conn.StartTLSClient(&tls.Config{InsecureSkipVerify: true}, 0, func(err error) { told = err })
	c.batch()
	if !errors.Is(told, ErrCarried) {
		t.Errorf("told %v", told)
	}
}

// TestCarriedIsSmall: bytes that are consumed cost no allocation.
func TestCarriedIsSmall(t *testing.T) {
	c := newCarried(t)
	c.conn.SetHandler(echoless{})
	p := make([]byte, 1024)
	if n := testing.AllocsPerRun(100, func() { c.conn.Feed(p); c.batch() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if c.conn.kept != nil || c.conn.out.head != nil {
		t.Error("the idle connection owns a buffer")
	}
}

// echoless is a handler that does nothing.
type echoless struct{}

func (echoless) OnData(_ *Conn, p []byte) int { return len(p) }
func (echoless) OnEOF(*Conn)                  {}
func (echoless) OnDrain(*Conn)                {}
func (echoless) OnClose(*Conn, error)         {}
