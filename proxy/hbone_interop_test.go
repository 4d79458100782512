package proxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/lateen-mesh/lateen/plan"
)

// goClient asks a proxy for tunnels as another implementation of HTTP/2 does.
type goClient struct {
	t     *testing.T
	peer  string
	trans *http2.Transport
}

func newGoClient(t *testing.T, peer string, cfg *tls.Config) *goClient {
	tr := &http2.Transport{TLSClientConfig: cfg}
	t.Cleanup(tr.CloseIdleConnections)
	return &goClient{t, peer, tr}
}

// ask asks for a tunnel; what is written to in goes through it.
func (g *goClient) ask(method, authority string, header ...string) (in *io.PipeWriter, res *http.Response) {
	g.t.Helper()
	body, in := io.Pipe()
	u := &url.URL{Scheme: "https", Host: g.peer}
	if method != http.MethodConnect {
		u.Path = "/"
	}
	req := (&http.Request{Method: method, URL: u, Host: authority, Body: body, Header: http.Header{}, ContentLength: -1}).WithContext(g.t.Context())
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := g.trans.RoundTrip(req)
	if err != nil {
		g.t.Fatalf("%s %s: %v", method, authority, err)
	}
	g.t.Cleanup(func() { _ = res.Body.Close(); _ = in.Close() })
	return in, res
}

// TestHBONEGoClient: Go's HTTP/2 client opens tunnels to us, and is told what is wrong with others.
func TestHBONEGoClient(t *testing.T) {
	host := loopbackHost()
	app := tcpServerOn(t, host, echo)
	p := tunnelPair(t, host, app, func(c *plan.Chain) {
		bytesIn(c)
		c.Authz = &plan.Authz{Policies: []plan.Policy{{Name: "p", Action: plan.ActionDeny, Rules: []plan.PolicyRule{{
			From: []plan.Source{{Principals: []plan.StringMatch{{Kind: plan.MatchExact, Value: "cluster.local/ns/default/sa/denied"}}}},
		}}}}}
	}, bytesOnly)
	at := net.JoinHostPort(host, fmt.Sprint(PortTunnel))
	g := newGoClient(t, at, meshClient(t, p.a, "go", "h2"))
	_, port, _ := net.SplitHostPort(app)
	for _, r := range []struct {
		method, authority string
		want              int
	}{
		{"CONNECT", app, 200},
		{"CONNECT", "127.0.0.1:" + port, 400}, // the machine's, not the workload's
		{"CONNECT", "192.0.2.1:80", 400},
		{"CONNECT", host, 400},
		{"CONNECT", "app.default.svc.cluster.local:80", 400},
		{"CONNECT", fmt.Sprintf("%s:%d", host, PortInbound), 400},
		{"CONNECT", fmt.Sprintf("%s:%d", host, PortTunnel), 400},
		{"POST", app, 400},
		{"CONNECT", net.JoinHostPort(host, fmt.Sprint(freePort(t))), 503},
	} {
		if _, res := g.ask(r.method, r.authority); res.StatusCode != r.want {
			t.Errorf("%s %s: %d, want %d", r.method, r.authority, res.StatusCode, r.want)
		}
	}
	if _, res := newGoClient(t, at, meshClient(t, p.a, "denied", "h2")).ask("CONNECT", app); res.StatusCode != 403 {
		t.Errorf("who is denied is answered %d", res.StatusCode)
	}
	text := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
	var group sync.WaitGroup
	for range 4 {
		in, res := g.ask("CONNECT", app)
		group.Go(func() {
			_, _ = in.Write(text)
			_ = in.Close()
		})
		group.Go(func() {
			if got, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(got, text) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
	group.Wait()
}

// TestHBONEForwarded: of its own address the peer is believed the port, of another one nothing.
func TestHBONEForwarded(t *testing.T) {
	host := loopbackHost()
	app := tcpServerOn(t, host, echo)
	p := tunnelPair(t, host, app, bytesIn, bytesOnly)
	g := newGoClient(t, net.JoinHostPort(host, fmt.Sprint(PortTunnel)), meshClient(t, p.a, "go", "h2"))
	for header, want := range map[string]bool{`for="127.0.0.1:4711"`: true, `for="10.9.9.9:4711"`: false} {
		in, res := g.ask("CONNECT", app, "Forwarded", header)
		if res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
		p.server.await("the tunnel", func(w *worker) bool { return len(w.relays) == 1 })
		p.server.onLoop(func(w *worker) {
			for r := range w.relays {
				if got := r.s.src().Port() == 4711; got != want || r.s.src().Addr().String() != "127.0.0.1" {
					t.Errorf("%s: the source is %s", header, r.s.src())
				}
			}
		})
		_ = in.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		p.server.await("its end", func(w *worker) bool { return len(w.relays) == 0 })
	}
}

// goServer takes tunnels as another implementation of HTTP/2 does, and writes down the requests' headers.
func goServer(t *testing.T, host string, cfg *tls.Config) (headers func() []http.Header) {
	t.Helper()
	l, err := tls.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(PortTunnel)), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var seen []http.Header
	var group sync.WaitGroup
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.Header.Clone())
		mu.Unlock()
		up, err := net.Dial("tcp", r.Host)
		if r.Method != http.MethodConnect || err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		defer up.Close()
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		var up2 sync.WaitGroup
		up2.Go(func() {
			_, _ = io.Copy(up, r.Body)
			_ = up.(*net.TCPConn).CloseWrite()
		})
		_, _ = io.Copy(flushing{w}, up)
		up2.Wait()
	})
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				if c.(*tls.Conn).HandshakeContext(t.Context()) == nil {
					(&http2.Server{MaxConcurrentStreams: 10}).ServeConn(c, &http2.ServeConnOpts{Handler: handler})
				}
			})
			t.Cleanup(func() { _ = c.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close() })
	return func() []http.Header {
		mu.Lock()
		defer mu.Unlock()
		return seen
	}
}

// flushing sends what is written at once.
type flushing struct{ w http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = http.NewResponseController(f.w).Flush()
	}
	return n, err
}

// TestHBONEGoServer: we open tunnels by Go's HTTP/2 server, more than it permits on one connection.
func TestHBONEGoServer(t *testing.T) {
	const n = 25
	host := loopbackHost()
	app := tcpServerOn(t, host, echo)
	p := &tunnelled{a: authority(t), host: host}
	cert, err := p.a.Certificate(workloadID("server"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	headers := goServer(t, host, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAnyClientCert})
	p.client = sidecar(t, p.a, "client")
	p.at = p.client.outbound(p.through(bytesOnly), app)
	var conns []*raw
	for range n {
		conns = append(conns, dialRaw(t, p.at))
	}
	// Before the first one ends, whose place another one could take.
	p.client.await("all tunnels", func(w *worker) bool {
		_, tunnels, _ := w.tunnels.Connections()
		return tunnels == n
	})
	text := bytes.Repeat([]byte("x"), 100_000)
	var group sync.WaitGroup
	for _, c := range conns {
		group.Go(func() {
			_, _ = c.Write(text)
			_ = c.CloseWrite()
		})
		group.Go(func() {
			if got, err := io.ReadAll(c.in); err != nil || !bytes.Equal(got, text) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
	group.Wait()
	if have, _ := p.connections(); have != 3 {
		t.Errorf("%d connections, want 3", have)
	}
	told := headers()
	if len(told) != n {
		t.Fatalf("%d tunnels were asked for, want %d", len(told), n)
	}
	h := told[0]
	if h.Get("Baggage") != "k8s.namespace.name=default,k8s.deployment.name=client,service.name=client" ||
		!strings.HasPrefix(h.Get("Forwarded"), `for="127.0.0.1:`) || !strings.HasSuffix(h.Get("Forwarded"), `";host=svc.default.svc.cluster.local`) {
		t.Errorf("the peer is told %v", h)
	}
	nobody := net.JoinHostPort(host, fmt.Sprint(freePort(t)))
	resets(t, p.client.outbound(p.through(bytesOnly), nobody))
}
