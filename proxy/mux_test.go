package proxy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/plan"
)

// sidecars are a client's and a server's, with mutual TLS between them.
type sidecars struct {
	authority      *ca.Authority
	client, server *rig
	in, at         string // where the server's is reached, and where the client's application reaches the client's
}

// newSidecars makes two sidecars before an application at app. shared: requests of HTTP/1.1 share connections; else the
// server's proxy is as those were that did not know of it.
func newSidecars(t *testing.T, app string, shared bool, in func(*plan.Chain), out func(*plan.Chain, *plan.Cluster)) *sidecars {
	t.Helper()
	s := &sidecars{authority: authority(t)}
	s.server = sidecar(t, s.authority, "server")
	s.in = s.server.inbound(app, func(c *plan.Chain) {
		c.TLS.Mode = plan.TLSStrict
		if in != nil {
			in(c)
		}
	})
	if !shared {
		l, _ := s.server.p.table.Listener(plan.ListenerInbound)
		if _, err := s.server.p.serverTLS(l.Chains[0]); err != nil {
			t.Fatal(err)
		}
		configs := &s.server.p.tls
		configs.mu.Lock()
		configs.mesh = configs.bytes
		configs.mu.Unlock()
	}
	s.client = sidecar(t, s.authority, "client")
	s.at = s.client.outbound(func(chain *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		// It is declared that it is HTTP: else the server is asked, too, by a connection of its own, where a client is slow.
		chain.Protocol = plan.ProtocolHTTP
		c.TLS.Mode, e[0].MTLS = plan.ClientTLSAuto, true
		if out != nil {
			out(chain, c)
		}
	}, s.in)
	return s
}

// retrying has what goes out retried by Istio's default.
func retrying(chain *plan.Chain, _ *plan.Cluster) {
	chain.HTTP.Inline = to("out", func(r *plan.Rule) { r.Retry = istioRetry })
}

// log has the listener of that name write an access log, and returns where.
func (r *rig) log(listener, format string) (path string) {
	r.t.Helper()
	path = filepath.Join(r.t.TempDir(), "access.log")
	l, _ := r.p.table.Listener(listener)
	logged := *l.Plan
	logged.Telemetry.AccessLogs = []plan.AccessLog{{Path: path, Format: format}}
	r.feed(&logged)
	return path
}

// connections counts those between the two: all, and those that are shared.
func (s *sidecars) connections() (all, shared int) {
	s.server.onLoop(func(w *worker) {
		for d := range w.downstreams {
			all++
			if d.mux {
				shared++
			}
		}
	})
	return all, shared
}

func (s *sidecars) get(t *testing.T, path string) (*http.Response, string) {
	t.Helper()
	return fetch(t, webClient(t), request(t, "GET", "http://"+s.at+path, nil))
}

// spoken is an application that notes each request's bytes and answers with those it was told.
type spoken struct {
	heard   chan string
	interim string
	answer  string
	closes  bool
}

func (s *spoken) serve(c *net.TCPConn) {
	for {
		var all bytes.Buffer
		in := bufio.NewReader(io.TeeReader(c, &all))
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, s.interim)
		_, _ = io.Copy(io.Discard, req.Body)
		s.heard <- all.String()
		_, _ = io.WriteString(c, s.answer)
		if s.closes {
			return
		}
	}
}

// exchanged is what a client, an application and both access logs have seen of a request.
type exchanged struct{ Request, Response, Client, Server string }

var varying = regexp.MustCompile(`(?m)^(date|x-request-id|x-envoy-upstream-service-time|x-forwarded-client-cert|traceparent): .*$`)

func (s *sidecars) exchange(t *testing.T, app *spoken, sent string) exchanged {
	t.Helper()
	const format = "%PROTOCOL% %REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_FLAGS%\n"
	clientLog, serverLog := s.client.log("10.1.2.3:80", format), s.server.log(plan.ListenerInbound, format)
	c := dialRaw(t, s.at)
	var all bytes.Buffer
	in := bufio.NewReader(io.TeeReader(c, &all))
	c.send(sent)
	method, _, _ := strings.Cut(sent, " ")
	for {
		res, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode < 200 {
			continue
		}
		if _, err := io.ReadAll(res.Body); err != nil {
			t.Fatal(err)
		}
		break
	}
	_ = c.Close()
	e := exchanged{Request: varying.ReplaceAllString(<-app.heard, "$1"), Response: varying.ReplaceAllString(all.String(), "$1")}
	s.client.released("out")
	s.server.released()
	s.client.stop() // so that the logs are written
	s.server.stop()
	for path, to := range map[string]*string{clientLog: &e.Client, serverLog: &e.Server} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "HTTP/") { // and nothing of strangers who have taken our port for another's
				*to += line
			}
		}
	}
	return e
}

// TestMuxIsNotSeen: a request and its answer come out of two proxies that share connections as they come out of two that
// do not, byte for byte, and both proxies tell the same of it.
func TestMuxIsNotSeen(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for _, tt := range []struct {
		name, sent string
		app        spoken
	}{
		{
			"names, cookies and lists",
			"GET /a?b=c HTTP/1.1\r\nHost: Svc:80\r\nX-Mixed-CASE: One\r\nx-lower: two\r\nCookie: a=1\r\nCookie: b=2\r\nAccept: x\r\nAccept: y\r\nTE: trailers\r\nAUTHORIZATION: Bearer x\r\nDate: now\r\n\r\n",
			spoken{answer: "HTTP/1.1 200 Fine\r\nX-Answer-CASE: One\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nEmpty:\r\nContent-Length: 2\r\n\r\nok"},
		},
		{"a body with a length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", spoken{answer: ok}},
		{"an empty body with a length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", spoken{answer: ok}},
		{"no body where one is expected", "POST / HTTP/1.1\r\nHost: x\r\n\r\n", spoken{answer: ok}},
		{
			"chunks and trailers", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
			spoken{answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nworld\r\n0\r\nX-Sum: 2\r\n\r\n"},
		},
		{"chunks of nothing", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", spoken{answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}},
		{"an answer up to the end of the connection", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", spoken{answer: "HTTP/1.1 200 OK\r\n\r\nall", closes: true}},
		{"HEAD", "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", spoken{answer: "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"}},
		{"HEAD without a length", "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", spoken{answer: "HTTP/1.1 200 OK\r\n\r\n"}},
		{"204", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", spoken{answer: "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n"}},
		{"304 with a length", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", spoken{answer: "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"x\"\r\n\r\n"}},
		{"an unknown status", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", spoken{answer: "HTTP/1.1 799 Odd\r\nContent-Length: 2\r\n\r\nok"}},
		{
			"100-continue and hints", "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
			spoken{interim: "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n", answer: ok},
		},
		{"OPTIONS of the server", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", spoken{answer: ok}},
		{"a target with a host", "GET http://other/a HTTP/1.1\r\nHost: x\r\n\r\n", spoken{answer: ok}},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", spoken{answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"}},
		{
			"a long head", "GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("v", 55<<10) + "\r\n\r\n",
			spoken{answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Long: " + strings.Repeat("v", 55<<10) + "\r\n\r\nok"},
		},
		{"many fields", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-A: b\r\n", 85) + "\r\n", spoken{answer: "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: b\r\n", 85) + "Content-Length: 2\r\n\r\nok"}},
		{"an unknown method", "PROPFIND /a HTTP/1.1\r\nHost: x\r\n\r\n", spoken{answer: ok}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var seen [2]exchanged
			for i, shared := range []bool{false, true} {
				app := tt.app
				app.heard = make(chan string, 10)
				s := newSidecars(t, tcpServer(t, app.serve), shared, nil, func(chain *plan.Chain, _ *plan.Cluster) { chain.HTTP.HTTP10 = true })
				seen[i] = s.exchange(t, &app, tt.sent)
			}
			if diff := cmp.Diff(seen[0], seen[1]); diff != "" {
				t.Errorf("without and with sharing (-/+):\n%s", diff)
			}
		})
	}
}

// TestMuxFewConnections: requests that are under way together share connections with a proxy that takes it.
func TestMuxFewConnections(t *testing.T) {
	for _, tt := range []struct {
		shared               bool
		requests, conns, mux int
	}{{true, 64, 1, 1}, {true, muxStreams + 20, 2, 2}, {false, 64, 64, 0}} {
		g := newGate()
		s := newSidecars(t, backend(t, g.ServeHTTP).Listener.Addr().String(), tt.shared, nil, nil)
		var group sync.WaitGroup
		for range tt.requests {
			group.Go(func() {
				if res, body := s.get(t, "/"); res.StatusCode != 200 || body != "through" {
					t.Errorf("%s %q", res.Status, body)
				}
			})
		}
		for range tt.requests {
			<-g.arrived
		}
		if all, mux := s.connections(); all != tt.conns || mux != tt.mux {
			t.Errorf("%d requests: %d connections, %d of them shared; want %d and %d", tt.requests, all, mux, tt.conns, tt.mux)
		}
		close(g.open)
		group.Wait()
		s.client.released("out")
	}
}

// TestMuxLimits: limits of connections and of requests that wait for one mean the same with sharing and without.
func TestMuxLimits(t *testing.T) {
	for _, limits := range []plan.Limits{
		{Connections: 1, PendingRequests: 1}, {Connections: 3, PendingRequests: 2}, {Requests: 2}, {Connections: 4, PendingRequests: 1, RequestsPerConnection: 2},
	} {
		for _, shared := range []bool{false, true} {
			t.Run(fmt.Sprintf("%+v shared %v", limits, shared), func(t *testing.T) {
				g := newGate()
				s := newSidecars(t, backend(t, g.ServeHTTP).Listener.Addr().String(), shared, nil, func(_ *plan.Chain, c *plan.Cluster) { c.Limits = limits })
				served := int(limits.Connections)
				if limits.Requests > 0 {
					served = int(limits.Requests)
				}
				var group sync.WaitGroup
				ask := func(want int) {
					group.Go(func() {
						if res, _ := s.get(t, "/"); res.StatusCode != want {
							t.Errorf("%s; want %d", res.Status, want)
						}
					})
				}
				for range served {
					ask(200)
					<-g.arrived
				}
				for range limits.PendingRequests {
					ask(200)
				}
				s.client.await("some that wait", func(*worker) bool { return s.client.usage("out").Pending == int64(limits.PendingRequests) })
				if res, _ := s.get(t, "/"); res.StatusCode != 503 || res.Header.Get("X-Lateen-Reason") != "pending_overflow" {
					t.Errorf("beyond the limit: %s %q", res.Status, res.Header.Get("X-Lateen-Reason"))
				}
				if u := s.client.usage("out"); limits.Connections > 0 && u.Connections != int64(limits.Connections) {
					t.Errorf("%d connections count", u.Connections)
				}
				close(g.open)
				group.Wait()
				s.client.released("out")
				if u := s.client.usage("out"); shared && limits.Connections > 0 && u.Connections != 0 {
					t.Errorf("%d connections count for nobody", u.Connections)
				}
			})
		}
	}
}

// TestMuxClientGone: a client that leaves takes its request with it, to the application, and nothing else.
func TestMuxClientGone(t *testing.T) {
	g := newGate()
	gone := make(chan struct{})
	s := newSidecars(t, backend(t, func(w http.ResponseWriter, r *http.Request) {
		g.ServeHTTP(w, r)
		if r.URL.Path == "/leaves" {
			close(gone)
		}
	}).Listener.Addr().String(), true, nil, nil)
	var group sync.WaitGroup
	group.Go(func() {
		if res, body := s.get(t, "/stays"); body != "through" {
			t.Errorf("%s %q", res.Status, body)
		}
	})
	<-g.arrived
	c := dialRaw(t, s.at)
	c.send("GET /leaves HTTP/1.1\r\nHost: x\r\n\r\n")
	<-g.arrived
	_ = c.Close()
	<-gone
	if all, mux := s.connections(); all != 1 || mux != 1 {
		t.Errorf("%d connections, %d shared", all, mux)
	}
	close(g.open)
	group.Wait()
}

// TestMuxManyLeave: before its peer takes the clients that leave for an attack, a connection is replaced.
func TestMuxManyLeave(t *testing.T) {
	g := newGate()
	s := newSidecars(t, backend(t, g.ServeHTTP).Listener.Addr().String(), true, nil, nil)
	for range 3 * muxResetsMax {
		c := dialRaw(t, s.at)
		c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		<-g.arrived
		_ = c.Close()
	}
	s.client.released("out")
	close(g.open)
	if res, body := s.get(t, "/"); body != "through" {
		t.Errorf("%s %q", res.Status, body)
	}
	for _, key := range s.server.series(3*muxResetsMax + 1) {
		if code := key.Key.Code; code != 0 && code != 200 {
			t.Errorf("the server's proxy counted %v", key.Key.AppendValues(nil))
		}
	}
}

// TestMuxServerDrains: a proxy that is about to end loses no request.
func TestMuxServerDrains(t *testing.T) {
	s := newSidecars(t, backend(t, echoBody).Listener.Addr().String(), true, nil, nil)
	stop := load(t, webClient(t), "http://"+s.at+"/", 8)
	s.server.await("requests", func(w *worker) bool { return len(w.downstreams) == 1 })
	s.server.onLoop(func(w *worker) { w.drain(drainQuiet) })
	before := s.server.count()
	s.server.await("more requests", func(*worker) bool { return s.server.count() > before+50 })
	if n := stop(); n == 0 {
		t.Error("nothing was asked")
	}
}

// count is how many requests have been counted.
func (r *rig) count() (n uint64) {
	for _, s := range r.p.metrics.Snapshot().Requests {
		n += s.Duration.Count()
	}
	return n
}

// TestMuxRequestsPerConnection: a connection makes way after its share of requests; with a share of one nothing is shared.
func TestMuxRequestsPerConnection(t *testing.T) {
	for _, limit := range []uint32{1, 2} {
		s := newSidecars(t, app(t), true, nil, func(_ *plan.Chain, c *plan.Cluster) { c.Limits.RequestsPerConnection = limit })
		conns := map[*downstream]bool{}
		for range 6 {
			if res, body := s.get(t, "/"); res.StatusCode != 200 {
				t.Fatalf("%s %q", res.Status, body)
			}
			s.server.onLoop(func(w *worker) {
				for d := range w.downstreams {
					conns[d] = true
					if d.mux != (limit > 1) {
						t.Errorf("limit %d: shared %v", limit, d.mux)
					}
				}
			})
		}
		if n := len(conns); n < 3 && limit == 2 {
			t.Errorf("limit %d: %d connections for 6 requests", limit, n)
		}
	}
}

// TestMuxRotation: with a new certificate a new connection is made, and the old one ends with its last request.
func TestMuxRotation(t *testing.T) {
	g := newGate()
	s := newSidecars(t, backend(t, g.ServeHTTP).Listener.Addr().String(), true, nil, nil)
	var group sync.WaitGroup
	ask := func() {
		group.Go(func() {
			if res, body := s.get(t, "/"); body != "through" {
				t.Errorf("%s %q", res.Status, body)
			}
		})
		<-g.arrived
	}
	ask()
	s.client.as(s.authority, "client")
	s.client.onLoop((*worker).sweep)
	ask()
	if all, mux := s.connections(); all != 2 || mux != 2 {
		t.Errorf("%d connections, %d shared", all, mux)
	}
	close(g.open)
	group.Wait()
	s.server.await("the old one closed", func(w *worker) bool { return len(w.downstreams) == 1 })
}

// TestMuxConnectionLost: what was under way on a connection that is cut goes as with HTTP/1.1: what may be repeated is.
func TestMuxConnectionLost(t *testing.T) {
	for _, tt := range []struct {
		method string
		status int
	}{{"GET", 200}, {"POST", 503}} {
		for _, shared := range []bool{false, true} {
			g := newGate()
			s := newSidecars(t, backend(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/waits" {
					g.ServeHTTP(w, r)
				}
			}).Listener.Addr().String(), shared, nil, retrying)
			s.get(t, "/") // the connection has been used before
			var group sync.WaitGroup
			group.Go(func() {
				res, _ := fetch(t, webClient(t), request(t, tt.method, "http://"+s.at+"/waits", nil))
				if why := res.Header.Get("X-Lateen-Reason"); res.StatusCode != tt.status || tt.status == 503 && why != "upstream_closed" {
					t.Errorf("%s, shared %v: %s %q; want %d", tt.method, shared, res.Status, why, tt.status)
				}
			})
			<-g.arrived
			s.server.onLoop(func(w *worker) {
				for d := range w.downstreams {
					d.c.Abort()
				}
			})
			if tt.status == 200 {
				<-g.arrived
			}
			close(g.open)
			group.Wait()
		}
	}
}

// TestMuxUpgrade: a WebSocket has a connection of its own beside the one that is shared.
func TestMuxUpgrade(t *testing.T) {
	g := newGate()
	s := newSidecars(t, tcpServer(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if req.Header.Get("Upgrade") == "" {
			g.arrived <- struct{}{}
			<-g.open
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(c, in)
	}), true, nil, nil)
	var group sync.WaitGroup
	group.Go(func() { s.get(t, "/") })
	<-g.arrived
	c := dialRaw(t, s.at)
	c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	if res, err := http.ReadResponse(c.in, nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("%v, %v", res, err)
	}
	c.send("over there")
	c.expect("over there")
	if all, mux := s.connections(); all != 2 || mux != 1 {
		t.Errorf("%d connections, %d shared", all, mux)
	}
	close(g.open)
	group.Wait()
}

// TestMuxSlowReader: a client that does not read stops its own body alone, and within bounds.
func TestMuxSlowReader(t *testing.T) {
	body := make([]byte, 32<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(body)
	s := newSidecars(t, backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			_, _ = w.Write(body)
		}
	}).Listener.Addr().String(), true, nil, nil)
	c := dialRaw(t, s.at)
	c.send("GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
	s.client.await("the client's proxy to stop", func(w *worker) bool {
		for d := range w.downstreams {
			return d.c.Full()
		}
		return false
	})
	for range 20 {
		if res, _ := s.get(t, "/short"); res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
	}
	if all, _ := s.connections(); all != 1 {
		t.Errorf("%d connections", all)
	}
	res, got := c.response("GET")
	if res.StatusCode != 200 || sha256.Sum256([]byte(got)) != sha256.Sum256(body) {
		t.Errorf("%s, %d bytes", res.Status, len(got))
	}
}

// TestMuxBytesOnly: a port of which the server's proxy relays bytes gets bytes.
func TestMuxBytesOnly(t *testing.T) {
	s := newSidecars(t, app(t), true, func(c *plan.Chain) { c.Protocol, c.HTTP = plan.ProtocolTCP, nil }, nil)
	if res, body := s.get(t, "/x"); body != "HTTP/1.1 /x" {
		t.Errorf("%s %q", res.Status, body)
	}
}

// TestMuxTimeout: a connection on which a request timed out is left for others if nothing was heard on it meanwhile.
func TestMuxTimeout(t *testing.T) {
	for _, tt := range []struct {
		silent  bool
		timeout time.Duration
		kept    int
	}{{true, 200 * time.Millisecond, 0}, {false, 5 * time.Second, 1}} {
		g := newGate()
		s := newSidecars(t, backend(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/waits" {
				g.ServeHTTP(w, r)
			}
		}).Listener.Addr().String(), true, nil, func(c *plan.Chain, _ *plan.Cluster) {
			host := &c.HTTP.Inline.Hosts[0]
			waits := host.Rules[0]
			waits.Name, waits.Timeout = "waits", tt.timeout
			waits.Match.Path = plan.StringMatch{Kind: plan.MatchExact, Value: "/waits"}
			host.Rules = append([]plan.Rule{waits}, host.Rules...)
		})
		s.get(t, "/")
		waits := func() {
			if res, _ := s.get(t, "/waits"); res.StatusCode != 504 {
				t.Errorf("silent %v: %s; want 504", tt.silent, res.Status)
			}
		}
		if tt.silent {
			s.server.onLoop(func(*worker) { waits() })
		} else {
			var group sync.WaitGroup
			group.Go(waits)
			<-g.arrived
			s.get(t, "/")
			group.Wait()
		}
		kept := 0
		s.client.onLoop(func(w *worker) {
			for _, p := range w.pools {
				kept += len(p.multi)
			}
		})
		if kept != tt.kept {
			t.Errorf("silent %v: %d connections are kept; want %d", tt.silent, kept, tt.kept)
		}
		if res, _ := s.get(t, "/"); res.StatusCode != 200 {
			t.Errorf("silent %v, afterwards: %s", tt.silent, res.Status)
		}
		close(g.open)
	}
}
