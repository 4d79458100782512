package proxy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/telemetry"
)

// gate is a backend whose requests wait until the gate opens.
type gate struct {
	open    chan struct{}
	arrived chan struct{}
}

func newGate() *gate {
	return &gate{open: make(chan struct{}), arrived: make(chan struct{}, 1000)}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // else the server would not notice that the client has gone
	g.arrived <- struct{}{}
	select {
	case <-g.open:
		fmt.Fprint(w, "through")
	case <-r.Context().Done():
	}
}

// TestLimits: what is beyond a cluster's limits is answered at once with 503 UO; what waits within them is served.
func TestLimits(t *testing.T) {
	tests := []struct {
		name        string
		limits      plan.Limits
		protocol    plan.Protocol
		served, all int
	}{
		{"connections and pending", plan.Limits{Connections: 1, PendingRequests: 2}, plan.ProtocolHTTP, 3, 5},
		{"requests", plan.Limits{Requests: 2}, plan.ProtocolHTTP, 2, 4},
		{"requests of HTTP/2", plan.Limits{Requests: 2}, plan.ProtocolHTTP2, 2, 4},
		{"streams", plan.Limits{ConcurrentStreams: 1, Connections: 1, PendingRequests: 2}, plan.ProtocolHTTP2, 3, 5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGate()
			r := newRig(t, to("c"), clusterOf(func(c *plan.Cluster) { c.Limits, c.Protocol = tt.limits, tt.protocol }, h2Backend(t, g.ServeHTTP))...)
			type result struct {
				status  int
				reason  string
				through bool
			}
			results := make(chan result, tt.all)
			var group sync.WaitGroup
			ask := func() {
				group.Go(func() {
					res, body := r.get("/")
					results <- result{res.StatusCode, res.Header.Get("X-Lateen-Reason"), body == "through"}
				})
			}
			ask()
			<-g.arrived
			for range tt.served - 1 {
				ask()
			}
			r.await("the permitted ones inside", func(*worker) bool {
				u := r.usage("c")
				return u.Requests == int64(tt.served) && (tt.limits.PendingRequests == 0 || u.Pending == int64(tt.served-1))
			})
			for range tt.all - tt.served {
				ask()
				if got := <-results; got.status != 503 || got.reason != "pending_overflow" {
					t.Errorf("beyond the limit: %+v", got)
				}
			}
			close(g.open)
			group.Wait()
			close(results)
			for got := range results {
				if got.status != 200 || !got.through {
					t.Errorf("within the limit: %+v", got)
				}
			}
			r.released("c")
			for _, s := range r.series(uint64(tt.all)) {
				if s.Key.Code == 503 && s.Key.Flags != telemetry.FlagUO {
					t.Errorf("flags %s", s.Key.Flags)
				}
			}
		})
	}
}

// TestRequestsPerConnection: a connection that has served its share makes way, without a request lost.
func TestRequestsPerConnection(t *testing.T) {
	for _, p := range []plan.Protocol{plan.ProtocolHTTP, plan.ProtocolHTTP2} {
		s := h2Backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })
		conns := map[string]int{}
		r := newRig(t, to("c"), clusterOf(func(c *plan.Cluster) { c.Protocol, c.Limits.RequestsPerConnection = p, 2 }, s)...)
		for range 10 {
			if res, body := r.get("/"); res.StatusCode != 200 {
				t.Fatalf("%s: %s %q", p, res.Status, body)
			} else {
				conns[body]++
			}
		}
		for c, n := range conns {
			if n != 2 {
				t.Errorf("%s: %d requests over %s, want 2", p, n, c)
			}
		}
		r.released("c")
	}
}

func TestOutlierEjection(t *testing.T) {
	var bad, good atomic.Int32
	failing := backend(t, func(w http.ResponseWriter, _ *http.Request) { bad.Add(1); w.WriteHeader(500) })
	fine := backend(t, func(http.ResponseWriter, *http.Request) { good.Add(1) })
	r := newRig(t, to("c"), clusterOf(func(c *plan.Cluster) {
		c.Balance.Algorithm = plan.RoundRobin
		c.Outlier = &plan.Outlier{Consecutive5xx: 3, MaxEjectionPercent: 100}
	}, failing, fine)...)
	for range 50 {
		r.get("/")
	}
	if bad.Load() != 3 || good.Load() != 47 {
		t.Errorf("%d to the failing one and %d to the other, want 3 and 47", bad.Load(), good.Load())
	}
	if n := r.usage("c").Ejected; n != 1 {
		t.Errorf("%d ejected", n)
	}
}

// TestOverflowEjectsNobody: a limit of our own says nothing about the endpoint.
func TestOverflowEjectsNobody(t *testing.T) {
	g := newGate()
	r := newRig(t, to("c"), clusterOf(func(c *plan.Cluster) {
		c.Limits = plan.Limits{Connections: 1, PendingRequests: 1}
		c.Outlier = &plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100}
	}, backend(t, g.ServeHTTP))...)
	var group sync.WaitGroup
	group.Go(func() { r.get("/") })
	<-g.arrived
	group.Go(func() { r.get("/") })
	r.await("both inside", func(*worker) bool { return r.usage("c").Pending == 1 && r.usage("c").Requests == 2 })
	for range 5 {
		if res, _ := r.get("/"); res.StatusCode != 503 {
			t.Error(res.Status)
		}
	}
	if n := r.usage("c").Ejected; n != 0 {
		t.Errorf("%d ejected", n)
	}
	close(g.open)
	group.Wait()
}

func TestConsistentHash(t *testing.T) {
	name := func(n string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, n) }
	}
	hour := time.Hour
	rig := func(on plan.HashOn) *rig {
		return newRig(t, to("c", func(p *plan.Rule) { p.HashOn = []plan.HashOn{on} }), clusterOf(func(c *plan.Cluster) { c.Balance.Algorithm = plan.RingHash },
			backend(t, name("a")), backend(t, name("b")), backend(t, name("c")), backend(t, name("d")))...)
	}
	r := rig(plan.HashOn{Cookie: "lane", CookieTTL: &hour, CookiePath: "/"})
	seen := map[string]bool{}
	for range 30 {
		res, first := r.get("/")
		cookies := res.Cookies()
		if len(cookies) != 1 || cookies[0].Name != "lane" || cookies[0].MaxAge != 3600 || cookies[0].Path != "/" || !cookies[0].HttpOnly {
			t.Fatalf("cookies %v", res.Header["Set-Cookie"])
		}
		for range 3 {
			res, again := r.get("/", "Cookie", "x=1; lane="+cookies[0].Value)
			if again != first || len(res.Cookies()) != 0 {
				t.Fatalf("with its cookie %q then %q, set %v", first, again, res.Cookies())
			}
		}
		seen[first] = true
	}
	if len(seen) < 3 {
		t.Errorf("30 clients were sent to %v", seen)
	}
	r = rig(plan.HashOn{Header: "x-user"})
	for i := range 20 {
		_, first := r.get("/", "X-User", fmt.Sprint(i))
		if _, again := r.get("/", "X-User", fmt.Sprint(i)); again != first {
			t.Errorf("user %d: %q then %q", i, first, again)
		}
	}
}

// TestRetryOnConnectFailure and the limit of concurrent retries.
func TestRetryOnConnectFailure(t *testing.T) {
	closed := backend(t, func(http.ResponseWriter, *http.Request) {})
	closed.Close()
	good := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	r := newRig(t, to("c", func(p *plan.Rule) { p.Retry = &plan.Retry{Attempts: 2, On: plan.OnConnectFailure, AvoidPrevious: true} }), cluster("c", closed, good)...)
	for range 20 {
		res, body := fetch(t, webClient(t), request(t, "POST", "http://"+r.addr+"/", strings.NewReader("payload")))
		if res.StatusCode != 200 || body != "payload" {
			t.Fatalf("%s %q", res.Status, body)
		}
	}
	r.released("c")
}

// TestRetryHeldIsGivenBack: a client that goes away, and a timeout, while a retry waits leave nothing behind.
func TestRetryHeldIsGivenBack(t *testing.T) {
	var calls atomic.Int32
	bad := backend(t, func(w http.ResponseWriter, _ *http.Request) { calls.Add(1); w.WriteHeader(503) })
	policy := func(p *plan.Rule) { p.Retry = &plan.Retry{Attempts: 5, On: plan.On5xx, Backoff: time.Hour} }
	r := newRig(t, to("c", policy), cluster("c", bad)...)
	for range 10 {
		c := dialRaw(t, r.addr)
		c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		r.await("a retry", func(*worker) bool { return r.usage("c").Retries == 1 })
		_ = c.Close()
		r.released("c")
	}
	r = newRig(t, to("c", policy, func(p *plan.Rule) { p.Timeout = 30 * time.Millisecond }), cluster("c", bad)...)
	if res, _ := r.get("/"); res.StatusCode != 504 {
		t.Error(res.Status)
	}
	r.released("c")
}

// TestRetryOfStreamedBody: a request is repeated with the whole of its body or not at all.
func TestRetryOfStreamedBody(t *testing.T) {
	sums := make(chan [32]byte, 100)
	bad := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(503)
	})
	good := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		p, err := io.ReadAll(r.Body)
		if err == nil {
			sums <- sha256.Sum256(p)
		}
	})
	for _, size := range []int{1, 1000, retryBytes - 1, retryBytes, retryBytes + 1, 100 << 10, 200 << 10, 1 << 20} {
		r := newRig(t, to("c", func(p *plan.Rule) { p.Retry = &plan.Retry{Attempts: 2, On: plan.On5xx, AvoidPrevious: true} }),
			clusterOf(func(c *plan.Cluster) { c.Balance.Algorithm = plan.RoundRobin }, bad, good)...)
		body := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(body)
		for range 4 {
			var in io.Reader = bytes.NewReader(body)
			res, _ := fetch(t, webClient(t), request(t, "POST", "http://"+r.addr+"/", in))
			switch {
			case size <= retryBytes && res.StatusCode != 200:
				t.Errorf("%d bytes were not sent again: %s", size, res.Status)
			case res.StatusCode == 200:
				if got := <-sums; got != sha256.Sum256(body) {
					t.Errorf("%d bytes arrived as others", size)
				}
			}
		}
		r.released("c")
	}
}

// TestStaleConnection: a pooled connection that the server has closed meanwhile costs an idempotent request nothing.
func TestStaleConnection(t *testing.T) {
	addr := tcpServer(t, func(c *net.TCPConn) {
		newRawServer(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		newRawServer(c) // the second request is read and not answered
	})
	r := sidecar(t, nil, "web")
	at := r.outbound(func(c *plan.Chain, _ *plan.Cluster, _ []plan.Endpoint) {
		c.HTTP.Inline = to("out", func(r *plan.Rule) { r.Retry = istioRetry })
	}, addr)
	for range 10 {
		if res, body := fetch(t, webClient(t), request(t, "GET", "http://"+at+"/", nil)); res.StatusCode != 200 || body != "ok" {
			t.Fatalf("%s %q", res.Status, body)
		}
	}
	if res, _ := fetch(t, webClient(t), request(t, "POST", "http://"+at+"/", nil)); res.StatusCode != 200 && res.Header.Get("X-Lateen-Reason") != "upstream_closed" {
		t.Errorf("POST: %s %q", res.Status, res.Header.Get("X-Lateen-Reason"))
	}
	r.released("out")
}

// TestTimeoutOfBodyThatCameFirst: the timeout runs although the body was complete before the upstream was there.
func TestTimeoutOfBodyThatCameFirst(t *testing.T) {
	g := newGate()
	t.Cleanup(func() { close(g.open) })
	r := newRig(t, to("c", func(p *plan.Rule) { p.Timeout = 50 * time.Millisecond }), cluster("c", backend(t, g.ServeHTTP))...)
	c := dialRaw(t, r.addr)
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
	if res, _ := c.response("POST"); res.StatusCode != 504 {
		t.Error(res.Status)
	}
	r.released("c")
}

// TestTimeoutWhileStreaming: a response that has begun is cut when the time is up.
func TestTimeoutWhileStreaming(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "some")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	for name, client := range map[string]*http.Client{"HTTP/1": webClient(t), "HTTP/2": h2PlainClient(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, to("c", func(p *plan.Rule) { p.Timeout = 3 * time.Second }), cluster("c", s)...)
			res, err := client.Do(request(t, "GET", "http://"+r.addr+"/", nil))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if res.StatusCode != 200 || string(body) != "some" || err == nil {
				t.Errorf("%s %q, %v; want it cut", res.Status, body, err)
			}
			if k := r.series(1)[0].Key; k.Flags != telemetry.FlagUT || k.Code != 200 {
				t.Errorf("counted as %v", k.AppendValues(nil))
			}
			r.released("c")
		})
	}
}

// TestPerTryIsOfTheTry: the time of a try begins when the request is complete, however slowly it comes.
func TestPerTryIsOfTheTry(t *testing.T) {
	g := newGate()
	var calls atomic.Int32
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		g.ServeHTTP(w, r)
	})
	for _, tt := range []struct{ name, head, rest string }{
		{"a length", "Content-Length: 4\r\n\r\nsl", "ow"},
		{"chunks", "Transfer-Encoding: chunked\r\n\r\n2\r\nsl\r\n", "2\r\now\r\n0\r\n\r\n"},
		{"trailers", "Transfer-Encoding: chunked\r\n\r\n2\r\nsl\r\n", "2\r\now\r\n0\r\nX-Sum: 1\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls.Store(0)
			r := newRig(t, to("c", func(p *plan.Rule) {
				p.Retry = &plan.Retry{Attempts: 1, On: plan.On5xx, PerTryTimeout: time.Millisecond}
			}), cluster("c", s)...)
			c := dialRaw(t, r.addr)
			c.send("POST / HTTP/1.1\r\nHost: x\r\n" + tt.head)
			r.await("the request under way", func(*worker) bool { return calls.Load() > 0 })
			later := make(chan struct{})
			r.onLoop(func(w *worker) { w.loop.After(20*time.Millisecond, func() { close(later) }) })
			<-later
			r.onLoop(func(w *worker) {
				for d := range w.downstreams {
					if d.active != 1 || r.usage("c").Retries != 0 {
						t.Error("it was answered or retried before it was complete")
					}
				}
			})
			c.send(tt.rest)
			res, _ := c.response("POST")
			if why := res.Header.Get(reasonField); res.StatusCode != 504 || why != "per_try_timeout" {
				t.Errorf("%s %q", res.Status, why)
			}
			r.released("c")
		})
	}
}

// TestMirrorsEnd: copies whose answers never come are given up after the rule's timeout, so that mirroring goes on.
func TestMirrorsEnd(t *testing.T) {
	g := newGate()
	main := backend(t, func(http.ResponseWriter, *http.Request) {})
	r := newRig(t, to("c", func(p *plan.Rule) {
		p.Mirrors, p.Timeout = []plan.Mirror{{Cluster: "m", Percent: 100}}, 5*time.Second
	}), append(cluster("c", main), cluster("m", backend(t, g.ServeHTTP))...)...)
	for range 5 {
		if res, _ := r.get("/"); res.StatusCode != 200 {
			t.Error(res.Status)
		}
	}
	for range 5 {
		<-g.arrived
	}
	r.released("c", "m")
	r.await("their connections closed", func(*worker) bool { return r.usage("m").Connections == 0 })
}
