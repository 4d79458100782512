package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// load sends requests over n keep-alive connections until told to stop, and reports each that fails.
func load(t *testing.T, client *http.Client, url string, n int) (stop func() int64) {
	t.Helper()
	var over atomic.Bool
	var done atomic.Int64
	var group sync.WaitGroup
	first := make(chan struct{})
	began := sync.OnceFunc(func() { close(first) })
	for range n {
		group.Go(func() {
			defer began()
			for !over.Load() {
				res, err := client.Post(url, "text/plain", strings.NewReader("hello")) // which no client repeats by itself
				if err != nil {
					t.Errorf("request: %v", err)
					return
				}
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if err != nil || res.StatusCode != 200 || string(body) != "hello" {
					t.Errorf("%s %q %v", res.Status, body, err)
					return
				}
				done.Add(1)
				began()
			}
		})
	}
	<-first
	return func() int64 {
		over.Store(true)
		group.Wait()
		return done.Load()
	}
}

func echoBody(w http.ResponseWriter, r *http.Request) {
	p, _ := io.ReadAll(r.Body)
	_, _ = w.Write(p)
}

// TestConfigChangeUnderLoad: new orders come into force between two requests, and none fails.
func TestConfigChangeUnderLoad(t *testing.T) {
	a, b := backend(t, echoBody), backend(t, echoBody)
	r := newRig(t, to("c"), cluster("c", a)...)
	for _, client := range []*http.Client{webClient(t), h2PlainClient(t)} {
		client.Transport.(*http.Transport).MaxIdleConnsPerHost = 8
		stop := load(t, client, "http://"+r.addr+"/", 8)
		name := "gateway|" + r.addr[strings.LastIndexByte(r.addr, ':')+1:]
		for i := range 50 {
			route := to("c", func(p *plan.Rule) { p.Name = fmt.Sprint("r", i) })
			route.Name = name
			res := cluster("c", a, b)
			if i%2 == 0 {
				res = cluster("c", b)
			}
			r.feed(append(res, route)...)
		}
		if n := stop(); n == 0 {
			t.Error("no request was made")
		}
	}
	r.released("c")
}

// TestDrain: clients are told to go elsewhere, and nothing that they send meanwhile fails.
func TestDrain(t *testing.T) {
	r := newRig(t, to("c"), cluster("c", backend(t, echoBody))...)
	idle := dialRaw(t, r.addr)
	idle.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	idle.response("GET")
	busy := dialRaw(t, r.addr)
	busy.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
	r.await("the request under way", func(*worker) bool { return r.usage("c").Requests == 1 })
	h1, h2 := webClient(t), h2PlainClient(t)
	h1.Transport.(*http.Transport).MaxIdleConnsPerHost = 4
	stops := []func() int64{load(t, h1, "http://"+r.addr+"/", 4), load(t, h2, "http://"+r.addr+"/", 4)}
	r.await("load", func(*worker) bool { return len(r.p.metrics.Snapshot().Requests) > 0 })
	r.p.draining.Store(true)
	r.onLoop(func(w *worker) { w.drain(3 * time.Second) }) // for clients that take their time between requests
	busy.send("b")
	if res, body := busy.response("POST"); body != "ab" || !res.Close {
		t.Errorf("%q, close %v; want the end announced", body, res.Close)
	}
	idle.ended() // once it has been quiet for a while
	for _, stop := range stops {
		if n := stop(); n == 0 {
			t.Error("no request was made")
		}
	}
	h1.CloseIdleConnections()
	h2.CloseIdleConnections()
	if _, body := fetch(t, h1, request(t, "GET", "http://"+r.addr+"/", nil)); body != "" {
		t.Errorf("a new connection is answered %q while the end is only announced", body)
	}
	r.p.left.Store(1)
	r.onLoop((*worker).end)
	select {
	case <-r.p.drainedAll:
	case <-time.After(patience):
		t.Error("the drain does not end")
	}
}

// TestHeadWait: a head has its time from its first byte on, however long the connection was idle before.
func TestHeadWait(t *testing.T) {
	r := newRig(t, to("c"), cluster("c", backend(t, echoBody))...)
	c := dialRaw(t, r.addr)
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	c.response("GET")
	// late has the sweep come when the connection has said nothing, or what is given last, for longer than a head may take.
	late := func(part string) {
		r.onLoop(func(w *worker) {
			for d := range w.downstreams {
				d.used -= headWait + time.Second
				if part != "" {
					h1Server{d}.OnData(d.c, []byte(part))
				}
			}
			w.sweep()
		})
	}
	begun := func() {
		r.await("the first part", func(w *worker) bool {
			for d := range w.downstreams {
				return !d.h1.Idle()
			}
			return false
		})
	}
	late("")
	late("GET / HT")
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if res, _ := c.response("GET"); res.StatusCode != 200 {
		t.Error(res.Status)
	}
	c.send("GET / HT")
	begun()
	late("GET / HTTP/1.1\r\nHost:")
	c.ended()
}

// TestDrainLeast: who is not known to end goes on to serve new clients for a while, even if nothing is open.
func TestDrainLeast(t *testing.T) {
	for announced, least := range map[bool]time.Duration{false: 2 * time.Second, true: time.Hour} {
		r := newRig(t, to("c"), cluster("c", backend(t, echoBody))...)
		r.p.cfg.DrainTime = time.Hour
		began := time.Now()
		if announced {
			r.p.announce(drainQuiet)
		}
		ended := make(chan time.Duration)
		go func() {
			r.p.drain(least)
			ended <- time.Since(began)
		}()
		if !announced {
			r.await("the drain", func(w *worker) bool { return w.draining })
			c := dialRaw(t, r.addr)
			c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			if res, _ := c.response("GET"); res.StatusCode != 200 || !res.Close {
				t.Errorf("%s, close %v; want the end announced", res.Status, res.Close)
			}
		}
		if took := <-ended; announced == (took >= least) {
			t.Errorf("announced %v: it took %v", announced, took)
		}
	}
}

// openFiles counts the process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("descriptors cannot be counted: %v", err)
	}
	return len(list)
}

// TestAbortsLeaveNothing: clients that go away in the middle of bodies leave no goroutine, descriptor or count behind.
func TestAbortsLeaveNothing(t *testing.T) {
	s := h2Backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			_, _ = w.Write(make([]byte, 8<<20))
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
	})
	for _, up := range []plan.Protocol{plan.ProtocolHTTP, plan.ProtocolHTTP2} {
		r := newRig(t, to("c", func(p *plan.Rule) { p.Retry = &plan.Retry{Attempts: 2, On: plan.On5xx} }), clusterOf(speaks(up), s)...)
		round := func(n int) {
			var group sync.WaitGroup
			for i := range n {
				group.Go(func() {
					c, err := net.Dial("tcp", r.addr)
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					_ = c.SetDeadline(time.Now().Add(patience))
					switch i % 4 {
					case 0: // in the middle of a request
						fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n%s", bytes.Repeat([]byte("x"), 100000))
					case 1: // in the middle of a response
						_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
						_, _ = io.ReadFull(c, make([]byte, 100000))
					case 2: // in the middle of a head
						_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHo")
					case 3: // at once, with a reset
						_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
						_ = c.(*net.TCPConn).SetLinger(0)
					}
				})
			}
			group.Wait()
			r.released("c")
			r.await("all clients gone", func(w *worker) bool { return len(w.downstreams)+len(w.sessions) == 0 })
			// Pooled connections are kept on purpose; close them, to count.
			r.onLoop(func(w *worker) {
				for _, p := range w.pools {
					for _, u := range append(append([]*upstream(nil), p.idle...), p.multi...) {
						u.retire()
						u.c.Close()
					}
				}
			})
			r.await("the upstreams gone", func(*worker) bool { return r.usage("c").Connections == 0 })
		}
		round(20)
		files, routines := openFiles(t), runtime.NumGoroutine()
		for range 5 {
			round(80)
		}
		r.await("as many descriptors and goroutines as before", func(*worker) bool {
			return openFiles(t) <= files+2 && runtime.NumGoroutine() <= routines+2
		})
	}
}

// frugal is an application that allocates nothing for a request.
func frugal(t *testing.T) string {
	return tcpServer(t, func(c *net.TCPConn) {
		in, n := make([]byte, 4096), 0
		answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")
		for {
			k, err := c.Read(in[n:])
			if err != nil {
				return
			}
			if n += k; bytes.HasSuffix(in[:n], []byte("\r\n\r\n")) {
				n = 0
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		}
	})
}

// TestRequestAllocatesNothing: in steady state a GET over a connection that is kept costs the proxy no memory.
func TestRequestAllocatesNothing(t *testing.T) {
	addr := frugal(t)
	c := cluster("c")
	c[1].(*plan.Endpoints).Endpoints = []plan.Endpoint{endpointAt(addr, "w")}
	r := newRig(t, to("c", func(p *plan.Rule) {
		p.Timeout = time.Minute
		p.Retry = &plan.Retry{Attempts: 2, On: plan.OnConnectFailure}
	}), c...)
	allocatesNothing(t, r.addr)
}

// TestMuxAllocatesNothing: the same through two proxies that share connections.
func TestMuxAllocatesNothing(t *testing.T) {
	s := newSidecars(t, frugal(t), true, nil, nil)
	allocatesNothing(t, s.at)
	if all, mux := s.connections(); all != 1 || mux != 1 {
		t.Errorf("%d connections, %d shared", all, mux)
	}
}

// allocatesNothing sends GETs to addr, and fails if they cost this process memory.
func allocatesNothing(t *testing.T, addr string) {
	t.Helper()
	conn := dialRaw(t, addr)
	conn.in = bufio.NewReaderSize(conn.TCPConn, 64<<10)
	ask := []byte("GET /a/b?c=d HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 4096)
	once := func() {
		if _, err := conn.Write(ask); err != nil {
			t.Fatal(err)
		}
		for n := 0; !bytes.HasSuffix(buf[:n], []byte("\r\n\r\nok")); {
			k, err := conn.Read(buf[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += k
		}
	}
	for range 200 {
		once()
	}
	const requests, eachSecond = 3000, 50
	var before, after runtime.MemStats
	began := time.Now()
	runtime.ReadMemStats(&before)
	for range requests {
		once()
	}
	runtime.ReadMemStats(&after)
	// What once a second the sweep needs, and the runtime for itself, does not grow with the requests, but with the time that
	// they take.
	some := time.Since(began).Seconds() * eachSecond
	if each := (float64(after.Mallocs-before.Mallocs) - some) / requests; each > 0.1 {
		t.Errorf("%.2f allocations for each request", each)
	} else {
		t.Logf("%.4f allocations for each request", each)
	}
}
