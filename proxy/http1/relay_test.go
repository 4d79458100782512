package http1

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// testLoop runs functions one at a time, as the event loop does.
type testLoop struct {
	t     *testing.T
	posts chan func()
	done  chan struct{}
	wg    sync.WaitGroup
	conns map[*netConn]bool
}

func newTestLoop(t *testing.T) *testLoop {
	l := &testLoop{t: t, posts: make(chan func()), done: make(chan struct{}), conns: map[*netConn]bool{}}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case f := <-l.posts:
				f()
			case <-l.done:
				return
			}
		}
	}()
	t.Cleanup(func() {
		l.post(func() {
			for c := range l.conns {
				_ = c.nc.Close()
				c.finishOutput(true)
			}
		})
		close(l.done)
		<-stopped
		l.wg.Wait()
	})
	return l
}

func (l *testLoop) post(f func()) {
	select {
	case l.posts <- f:
	case <-l.done:
	}
}

// netConn is a Conn over a net.Conn: a goroutine reads, one writes, and all else is on the loop.
type netConn struct {
	loop *testLoop
	nc   *net.TCPConn
	h    handler

	unread               []byte
	eof, told            bool
	paused, closed, over bool

	mu       sync.Mutex
	wake     *sync.Cond
	out      []byte
	finish   bool // CloseWrite or Close after the output
	shut     bool // Close
	highTide bool
}

const highWater = 64 << 10

func (l *testLoop) adopt(nc net.Conn) *netConn {
	c := &netConn{loop: l, nc: nc.(*net.TCPConn)}
	c.wake = sync.NewCond(&c.mu)
	l.conns[c] = true
	return c
}

func (c *netConn) start(h handler) {
	c.h = h
	c.loop.wg.Go(c.read)
	c.loop.wg.Go(c.write)
}

func (c *netConn) read() {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.nc.Read(buf)
		data := bytes.Clone(buf[:n])
		next := make(chan struct{})
		c.loop.post(func() {
			c.unread = append(c.unread, data...)
			c.eof = c.eof || errors.Is(err, io.EOF)
			if err != nil && !c.eof {
				c.gone(err)
			}
			c.pump()
			close(next)
		})
		select {
		case <-next:
		case <-c.loop.done:
			return
		}
		if err != nil {
			return
		}
	}
}

// pump offers what is unread. A paused connection of a test keeps reading from the kernel, which harms nobody.
func (c *netConn) pump() {
	for len(c.unread) > 0 && !c.paused && !c.closed {
		n := c.h.OnData(c.unread)
		if c.unread = c.unread[n:]; n == 0 {
			break
		}
	}
	if c.eof && !c.told && !c.paused && !c.closed {
		c.told = true
		c.h.OnEOF()
	}
}

func (c *netConn) gone(err error) {
	if !c.over {
		c.over, c.closed = true, true
		delete(c.loop.conns, c)
		c.finishOutput(true)
		c.h.OnClose(err)
	}
}

func (c *netConn) finishOutput(shut bool) {
	c.mu.Lock()
	c.finish, c.shut = true, c.shut || shut
	c.mu.Unlock()
	c.wake.Signal()
}

func (c *netConn) write() {
	for {
		c.mu.Lock()
		for len(c.out) == 0 && !c.finish {
			c.wake.Wait()
		}
		p, finish, shut, drained := c.out, c.finish, c.shut, c.highTide
		c.out, c.highTide = nil, false
		c.mu.Unlock()
		_, err := c.nc.Write(p)
		switch {
		case shut || err != nil:
			_ = c.nc.Close()
			return
		case finish:
			_ = c.nc.CloseWrite()
			c.mu.Lock()
			for !c.shut {
				c.wake.Wait()
			}
			c.mu.Unlock()
			_ = c.nc.Close()
			return
		case drained:
			c.loop.post(func() {
				if !c.closed {
					c.h.OnDrain()
				}
			})
		}
	}
}

func (c *netConn) Write(p []byte) {
	c.mu.Lock()
	c.out = append(c.out, p...)
	c.highTide = c.highTide || len(c.out) > highWater
	c.mu.Unlock()
	c.wake.Signal()
}

func (c *netConn) Full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.out) > highWater
}

func (c *netConn) Close() {
	c.closed = true
	c.finishOutput(true)
	c.loop.wg.Go(func() { c.loop.post(func() { c.gone(nil) }) })
}
func (c *netConn) Finish()     { c.Close() }
func (c *netConn) Abort()      { _ = c.nc.SetLinger(0); c.Close() }
func (c *netConn) CloseWrite() { c.finishOutput(false) }
func (c *netConn) PauseRead()  { c.paused = true }
func (c *netConn) ResumeRead() {
	c.paused = false
	c.loop.wg.Go(func() { c.loop.post(c.pump) })
}

// testRelay is the least that passes everything on: a pool of upstream connections, and back-pressure both ways.
type testRelay struct {
	loop    *testLoop
	codec   *Codec
	backend string
	idle    []*ClientConn
	dialled int
}

func (r *testRelay) OnIdle(c *ClientConn) { r.idle = append(r.idle, c) }
func (r *testRelay) OnDead(c *ClientConn) {
	for i, other := range r.idle {
		if other == c {
			r.idle = append(r.idle[:i], r.idle[i+1:]...)
			return
		}
	}
}

type relayOwner struct{}

func (relayOwner) OnIdle(*ServerConn)                       {}
func (relayOwner) AppendRefusal(out []byte, _ Fault) []byte { return out }
func (relayOwner) OnRefused(*ServerConn, Fault)             {}
func (relayOwner) OnLinger(*ServerConn)                     {}

// relayed is one exchange of a testRelay; its two receivers are half and its other.
type relayed struct{ down, up half }

type half struct {
	to    stream.Sender // where what arrives goes
	from  stream.Sender // whence it comes
	other *half
}

func (r *testRelay) Accept(s stream.Sender) stream.Receiver {
	x := &relayed{}
	x.down.other, x.up.other = &x.up, &x.down
	x.down.from, x.up.to = s, s
	var c *ClientConn
	if n := len(r.idle); n > 0 {
		c, r.idle = r.idle[n-1], r.idle[:n-1]
	} else {
		nc, err := net.Dial("tcp", r.backend)
		if err != nil {
			r.loop.t.Error(err)
		}
		r.dialled++
		conn := r.loop.adopt(nc)
		c = r.codec.NewClientConn(conn, r)
		conn.start(c)
	}
	u := c.Open(&x.up)
	x.down.to, x.up.from = u, u
	return &x.down
}

func (h *half) done(end bool) {
	if !end && h.to.Full() {
		h.from.Pause()
	}
}
func (h *half) OnHead(m *stream.Head, end bool) { h.to.SendHead(m, end); h.done(end) }
func (h *half) OnInterim(m *stream.Head)        { h.to.SendInterim(m) }
func (h *half) OnData(p []byte, end bool)       { h.to.SendData(p, end); h.done(end) }
func (h *half) OnTrailers(m *stream.Head)       { h.to.SendTrailers(m) }
func (h *half) OnAbort(stream.Abort, error)     { h.to.Reset(stream.AbortClosed) }
func (h *half) OnDrain()                        { h.other.from.Resume() }

// startRelay returns the address of a relay in front of a server with the handler.
func startRelay(t *testing.T, backend http.Handler) (addr string, relay *testRelay) {
	server := httptest.NewServer(backend)
	t.Cleanup(server.Close)
	loop := newTestLoop(t)
	relay = &testRelay{loop: loop, codec: New(Config{}), backend: server.Listener.Addr().String()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			loop.post(func() {
				conn := loop.adopt(nc)
				conn.start(relay.codec.NewServerConn(conn, relay, relayOwner{}))
			})
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-accepting })
	return l.Addr().String(), relay
}

func backend() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("X-Length", strconv.FormatInt(r.ContentLength, 10))
		w.Header().Set("Trailer", "X-Sum")
		sum := sha256.New()
		_, _ = io.Copy(w, io.TeeReader(r.Body, sum))
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
		w.Header().Set(http.TrailerPrefix+"X-Request-Trailer", r.Trailer.Get("X-T"))
	})
	mux.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/status/"))
		w.WriteHeader(code)
	})
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) })
	mux.HandleFunc("/hints", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "x")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "hello")
	})
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
		nc, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = nc.Close() }()
		_, _ = io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\n\r\n")
		_, _ = io.Copy(nc, rw)
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "half")
		panic(http.ErrAbortHandler)
	})
	return mux
}

func testClient(t *testing.T) *http.Client {
	tr := &http.Transport{ExpectContinueTimeout: time.Minute, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// TestRelayNetHTTP passes exchanges between net/http's client and server through both of our sides.
func TestRelayNetHTTP(t *testing.T) {
	addr, relay := startRelay(t, backend())
	client := testClient(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 256<<10) // 4 MiB
	for _, c := range []struct {
		name, method, path string
		body               []byte
		header             string
		chunked            bool
		status             int
		length             string
	}{
		{"GET", "GET", "/echo", nil, "", false, 200, "0"},
		{"POST", "POST", "/echo", []byte("hello"), "", false, 200, "5"},
		{"POST of chunks", "POST", "/echo", []byte("hello"), "", true, 200, "-1"},
		{"large POST", "POST", "/echo", big, "", false, 200, strconv.Itoa(len(big))},
		{"large POST of chunks", "POST", "/echo", big, "", true, 200, "-1"},
		{"POST that waits", "POST", "/echo", []byte("hello"), "100-continue", false, 200, "5"},
		{"PUT without content", "PUT", "/echo", nil, "", false, 200, "0"},
		{"HEAD", "HEAD", "/echo", nil, "", false, 200, "0"},
		{"204", "GET", "/status/204", nil, "", false, 204, ""},
		{"304", "GET", "/status/304", nil, "", false, 304, ""},
		{"500", "GET", "/status/500", nil, "", false, 500, ""},
		{"refused while it waits", "POST", "/early", []byte("hello"), "100-continue", false, 403, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var body io.Reader = bytes.NewReader(c.body)
			if c.body == nil {
				body = nil
			}
			r, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+addr+c.path, body)
			if err != nil {
				t.Fatal(err)
			}
			if c.chunked {
				r.ContentLength = -1
				r.Trailer = http.Header{"X-T": {"last"}}
			}
			if c.header != "" {
				r.Header.Set("Expect", c.header)
			}
			res, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil || res.StatusCode != c.status || res.Header.Get("X-Length") != c.length {
				t.Fatalf("%v, status %d, length %q", err, res.StatusCode, res.Header.Get("X-Length"))
			}
			if c.path != "/echo" || c.method == "HEAD" {
				return
			}
			if !bytes.Equal(got, c.body) {
				t.Errorf("%d bytes came back of %d", len(got), len(c.body))
			}
			want := map[bool]string{true: "last"}[c.chunked]
			if res.Trailer.Get("X-Request-Trailer") != want || res.Trailer.Get("X-Sum") != fmt.Sprintf("%x", sha256.Sum256(c.body)) {
				t.Errorf("trailers %v", res.Trailer)
			}
		})
	}
	dialled := make(chan int)
	relay.loop.post(func() { go func(n int) { dialled <- n }(relay.dialled) })
	if n := <-dialled; n > 6 {
		t.Errorf("dialled %d times: connections are not reused", n)
	}
}

func TestRelayEarlyResponse(t *testing.T) {
	addr, _ := startRelay(t, backend())
	client := testClient(t)
	for range 5 {
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+addr+"/early", strings.NewReader(strings.Repeat("x", 10<<10)))
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != 403 {
			t.Fatalf("%v, status %d", err, res.StatusCode)
		}
	}
}

func TestRelayCut(t *testing.T) {
	addr, _ := startRelay(t, backend())
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+"/cut", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := testClient(t).Do(r)
	if err == nil {
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
	}
	if err == nil {
		t.Error("half a body was taken for a whole one")
	}
}

// dialRelay is a client of our own, for what net/http's does not do.
func dialRelay(t *testing.T, addr string) (*net.TCPConn, *bufio.Reader) {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(time.Minute))
	return nc.(*net.TCPConn), bufio.NewReader(nc)
}

func TestRelayUpgrade(t *testing.T) {
	addr, _ := startRelay(t, backend())
	nc, br := dialRelay(t, addr)
	_, _ = io.WriteString(nc, "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ")
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != 101 || res.Header.Get("Upgrade") != "echo" {
		t.Fatalf("got %v", res)
	}
	_, _ = io.WriteString(nc, strings.Repeat("x", 1<<20))
	_ = nc.CloseWrite() // the echo comes to its end only if half-close travels both ways
	got, err := io.ReadAll(br)
	if want := "early " + strings.Repeat("x", 1<<20); err != nil || string(got) != want {
		t.Errorf("%v, %d bytes came back of %d", err, len(got), len(want))
	}
}

func TestRelayRaw(t *testing.T) {
	addr, _ := startRelay(t, backend())
	t.Run("HTTP/1.0", func(t *testing.T) {
		nc, br := dialRelay(t, addr)
		_, _ = io.WriteString(nc, "POST /echo HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")
		got, err := io.ReadAll(br)
		if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(string(got), "\r\n\r\nhello") {
			t.Errorf("%v, %q", err, got)
		}
	})
	t.Run("pipeline with interim responses", func(t *testing.T) {
		nc, br := dialRelay(t, addr)
		_, _ = io.WriteString(nc, strings.Repeat("GET /hints HTTP/1.1\r\nHost: a\r\n\r\n", 3)+"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
		for _, want := range []int{103, 200, 103, 200, 103, 200, 400} {
			res, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if err != nil || res.StatusCode != want {
				t.Fatalf("%v, %v, want %d", err, res, want)
			}
		}
		if _, err := textproto.NewReader(br).ReadLine(); !errors.Is(err, io.EOF) {
			t.Errorf("after the refusal: %v, want EOF", err)
		}
	})
}
