package loop

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestConfigIsChecked(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"negative size", Config{ReadBytes: -1}, "ReadBytes is -1"},
		{"low above high", Config{HighWater: 10, LowWater: 20}, "LowWater 20 is above HighWater 10"},
		{"negative time", Config{CloseTimeout: -time.Second}, "CloseTimeout is -1s"},
		{"two faults", Config{KeepBytesMax: -2, ReadBytes: -1}, "KeepBytesMax is -2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: %v; want it to say %q", err, tt.want)
			}
		})
	}
}

func TestPostKeepsTheOrderOfEachGoroutine(t *testing.T) {
	const goroutines, posts = 8, 10_000
	l := start(t, Config{})
	next := make([]int, goroutines) // the loop's
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range posts {
				ok := l.Post(func() {
					if next[g] != i {
						t.Errorf("goroutine %d: function %d ran when %d was due", g, i, next[g])
					}
					next[g] = i + 1
				})
				if !ok {
					t.Error("Post refused while the loop runs")
				}
			}
		})
	}
	wg.Wait()
	on(t, l, func() {
		for g, n := range next {
			if n != posts {
				t.Errorf("goroutine %d: %d functions ran, want %d", g, n, posts)
			}
		}
	})
}

func TestPostDoesNotWaitForEver(t *testing.T) {
	l := start(t, Config{})
	busy, idle := make(chan struct{}), make(chan struct{})
	l.Post(func() { close(busy); <-idle })
	await(t, "the loop's being busy", busy)
	ran := 0
	for range postedMax + 3 { // the last ones meet a full queue and a loop that does not empty it
		if !l.Post(func() { ran++ }) {
			t.Fatal("Post refused while the loop runs")
		}
	}
	close(idle)
	on(t, l, func() {
		if ran != postedMax+3 {
			t.Errorf("%d functions ran, want %d", ran, postedMax+3)
		}
	})
}

func TestPostFromTheLoopRunsLater(t *testing.T) {
	l := start(t, Config{})
	var order []string
	done := make(chan struct{})
	l.Post(func() {
		l.Post(func() { order = append(order, "inner"); close(done) })
		order = append(order, "outer")
	})
	await(t, "inner function", done)
	if got := strings.Join(order, " "); got != "outer inner" {
		t.Errorf("order: %s", got)
	}
}

// TestRunEndsCleanly has everything open that a loop can have: listeners, idle, half-closed and paused connections,
// output that nobody reads, dials and handshakes under way.
func TestRunEndsCleanly(t *testing.T) {
	serverTLS, _ := certify(t)
	full, addr := listenFD(t, 0) // nobody accepts
	fillBacklog(t, addr)
	t.Cleanup(func() { closeFD(t, full) })

	goroutines, fds := runtime.NumGoroutine(), descriptors(t)
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()

	ends := make(chan error, 16)
	accepted := make(chan struct{}, 16)
	kind := 0
	at := listen(t, l, func(c *Conn) Handler {
		kind++
		switch kind {
		case 1:
			c.Write(make([]byte, 8<<20))
		case 2:
			c.PauseRead()
		case 3:
			c.StartTLSServer(serverTLS, 0, func(err error) { t.Errorf("handshake done with %v", err) })
		}
		accepted <- struct{}{}
		return &probe{close: func(_ *Conn, err error) { ends <- err }}
	})
	for range 4 {
		c := dial(t, at)
		defer func() { _ = c.Close() }()
		await(t, "accept", accepted)
	}
	dialled := make(chan error, 1)
	on(t, l, func() { l.Dial(addr, DialOptions{}, func(_ *Conn, err error) { dialled <- err }) })
	on(t, l, func() { l.After(time.Hour, func() {}) })

	cancel()
	if err := await(t, "Run", ran); err != nil {
		t.Errorf("Run: %v", err)
	}
	for range 4 {
		if err := await(t, "OnClose", ends); !errors.Is(err, ErrStopped) {
			t.Errorf("OnClose: %v, want %v", err, ErrStopped)
		}
	}
	if err := await(t, "Dial", dialled); !errors.Is(err, ErrStopped) {
		t.Errorf("Dial: %v, want %v", err, ErrStopped)
	}
	if l.Post(func() {}) {
		t.Error("Post is accepted after Run")
	}
	if err := l.Run(t.Context()); err == nil {
		t.Error("a second Run works")
	}
	if got := descriptors(t); got != fds+4 { // the four peers'
		t.Errorf("%d descriptors are open, want %d", got, fds+4)
	}
	eventually(t, "goroutines are as many as before", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func TestWhatWasPostedBeforeTheEndRuns(t *testing.T) {
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ran := false
	if !l.Post(func() { ran = true }) {
		t.Fatal("Post refused before Run")
	}
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if !ran {
		t.Error("an accepted function did not run")
	}
}

func TestDialAndListenWhileStopping(t *testing.T) {
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	listened := make(chan error, 1)
	addr := listen(t, l, func(*Conn) Handler {
		return &probe{close: func(*Conn, error) {
			l.Dial(netip.MustParseAddrPort("127.0.0.1:9"), DialOptions{}, func(c *Conn, _ error) {
				if c != nil {
					t.Error("Dial connects while the loop stops")
				}
			})
			fd, _ := listenFD(t, 1)
			_, err := l.Listen(fd, nil)
			closeFD(t, fd)
			listened <- err
		}, eof: func(c *Conn) { cancel() }}
	})
	c := dial(t, addr)
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, c)
	if err := await(t, "Run", ran); err != nil {
		t.Error(err)
	}
	if err := await(t, "Listen", listened); !errors.Is(err, ErrStopped) {
		t.Errorf("Listen: %v, want %v", err, ErrStopped)
	}
}

func TestNowStandsStillDuringABatch(t *testing.T) {
	l := start(t, Config{})
	on(t, l, func() {
		now := l.Now()
		for time.Since(now) < 2*time.Millisecond {
			runtime.Gosched()
		}
		if !l.Now().Equal(now) {
			t.Error("Now changed within a function")
		}
	})
	var first time.Time
	on(t, l, func() { first = l.Now() })
	on(t, l, func() {
		if !l.Now().After(first) {
			t.Error("Now did not advance from batch to batch")
		}
	})
}

func TestManyConnectionsLeaveNoDescriptor(t *testing.T) {
	const connections = 2000
	l := start(t, Config{})
	closed := make(chan error, 2*connections)
	addr := listen(t, l, func(*Conn) Handler {
		return &probe{
			data:  func(c *Conn, p []byte) int { c.Write(p); return len(p) },
			eof:   (*Conn).Close,
			close: func(_ *Conn, err error) { closed <- err },
		}
	})
	before := descriptors(t)
	clients := make(chan *Conn, connections)
	answered := make(chan struct{}, connections)
	for range connections {
		l.Post(func() {
			l.Dial(addr, DialOptions{Timeout: patience}, func(c *Conn, err error) {
				if err != nil {
					t.Error(err)
					return
				}
				c.SetHandler(&probe{
					data:  func(_ *Conn, p []byte) int { answered <- struct{}{}; return len(p) },
					close: func(_ *Conn, err error) { closed <- err },
				})
				c.Write([]byte("hello"))
				clients <- c
			})
		})
	}
	for range connections {
		await(t, "echo", answered)
	}
	if got := descriptors(t); got != before+2*connections {
		t.Errorf("%d descriptors with everything open, want %d", got, before+2*connections)
	}
	for range connections {
		c := await(t, "client", clients)
		l.Post(c.Close)
	}
	for range 2 * connections {
		if err := await(t, "OnClose", closed); err != nil {
			t.Errorf("OnClose: %v", err)
		}
	}
	eventually(t, "descriptors are as many as before", func() bool { return descriptors(t) == before })
}
