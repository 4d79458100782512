package proxy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
)

// h2Backend serves HTTP/1 and, in plaintext, HTTP/2.
func h2Backend(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// clusterOf is the cluster "c" with a change.
func clusterOf(change func(*plan.Cluster), servers ...*httptest.Server) []plan.Resource {
	out := cluster("c", servers...)
	change(out[0].(*plan.Cluster))
	return out
}

func speaks(p plan.Protocol) func(*plan.Cluster) {
	return func(c *plan.Cluster) { c.Protocol = p }
}

// TestVersions: each version of HTTP is turned into each other, with bodies, trailers and HEAD.
func TestVersions(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Proto", r.Proto)
		w.Header().Set("Trailer", "X-Sum")
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("backend: %v", err)
		}
		w.WriteHeader(200)
		w.(http.Flusher).Flush() // no Content-Length, which HTTP/1 could have no trailers with
		_, _ = w.Write(body)
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sha256.Sum256(body))+r.Trailer.Get("X-Own"))
	}
	for _, up := range []plan.Protocol{plan.ProtocolHTTP, plan.ProtocolHTTP2} {
		for _, down := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(fmt.Sprintf("%s to %s", down, up), func(t *testing.T) {
				r := newRig(t, to("c"), clusterOf(speaks(up), h2Backend(t, h))...)
				client := webClient(t)
				if down == "HTTP/2.0" {
					client = h2PlainClient(t)
				}
				body := make([]byte, 1<<20)
				src := rand.NewChaCha8([32]byte{})
				_, _ = src.Read(body)
				for _, size := range []int{0, 1, 70000, len(body)} {
					req := request(t, "POST", "http://"+r.addr+"/", struct{ io.Reader }{bytes.NewReader(body[:size])})
					req.Trailer = http.Header{"X-Own": {"mine"}}
					res, got := fetch(t, client, req)
					if res.StatusCode != 200 || got != string(body[:size]) || res.Proto != down {
						t.Fatalf("%s %s, %d bytes of %d", res.Proto, res.Status, len(got), size)
					}
					if want := fmt.Sprintf("%xmine", sha256.Sum256(body[:size])); res.Trailer.Get("X-Sum") != want {
						t.Errorf("size %d: trailer %q, want %q", size, res.Trailer.Get("X-Sum"), want)
					}
					if p := res.Header.Get("X-Proto"); (p == "HTTP/2.0") != (up == plan.ProtocolHTTP2) {
						t.Errorf("the backend was asked in %s", p)
					}
				}
				res, got := fetch(t, client, request(t, "HEAD", "http://"+r.addr+"/", nil))
				if res.StatusCode != 200 || got != "" {
					t.Errorf("HEAD: %s %q", res.Status, got)
				}
				r.released("c")
			})
		}
	}
}

func TestHeadAndEmptyAnswers(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/long":
			w.Header().Set("Content-Length", "1000000")
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.WriteHeader(304)
		}
	})
	r := newRig(t, to("c"), cluster("c", s)...)
	c := dialRaw(t, r.addr)
	for path, status := range map[string]int{"/long": 200, "/204": 204, "/304": 304} {
		for _, method := range []string{"HEAD", "HEAD"} {
			c.send(method + " " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
			if res, body := c.response(method); res.StatusCode != status || body != "" {
				t.Errorf("%s %s: %s %q", method, path, res.Status, body)
			}
		}
	}
	// Our own answer to HEAD says the length of what it does not send.
	r = newRig(t, to("c", func(p *plan.Rule) { p.Clusters, p.Direct = nil, &plan.DirectResponse{Code: 200, Body: "abc"} }))
	c = dialRaw(t, r.addr)
	c.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if res, _ := c.response("HEAD"); res.ContentLength != 3 {
		t.Errorf("content-length %d", res.ContentLength)
	}
	if _, body := c.response("GET"); body != "abc" {
		t.Errorf("body %q", body)
	}
}

func TestInterimResponses(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style>")
		w.WriteHeader(103)
		body, _ := io.ReadAll(r.Body) // sends 100 Continue
		w.Header().Del("Link")
		_, _ = w.Write(body)
	})
	r := newRig(t, to("c"), cluster("c", s)...)
	c := dialRaw(t, r.addr)
	c.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
	for _, want := range []int{103, 100} {
		if res, _ := c.response("POST"); res.StatusCode != want {
			t.Fatalf("%s, want %d", res.Status, want)
		}
	}
	c.send("abc")
	if res, body := c.response("POST"); res.StatusCode != 200 || body != "abc" {
		t.Errorf("%s %q", res.Status, body)
	}
}

// TestEarlyResponse: an answer that does not wait for the request's body reaches the client.
func TestEarlyResponse(t *testing.T) {
	s := h2Backend(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(413) })
	for _, p := range []plan.Protocol{plan.ProtocolHTTP, plan.ProtocolHTTP2} {
		r := newRig(t, to("c", func(p *plan.Rule) { p.Retry = &plan.Retry{Attempts: 1, On: plan.OnConnectFailure} }), clusterOf(speaks(p), s)...)
		for _, client := range []*http.Client{webClient(t), h2PlainClient(t)} {
			res, _ := fetch(t, client, request(t, "POST", "http://"+r.addr+"/", bytes.NewReader(make([]byte, 300<<10))))
			if res.StatusCode != 413 {
				t.Errorf("%s: %s", p, res.Status)
			}
		}
		r.released("c")
	}
}

// TestUpgrade: after 101 both ways are bytes, and each has its own end.
func TestUpgrade(t *testing.T) {
	serve := func(finish func(*net.TCPConn)) string {
		return tcpServer(t, func(c *net.TCPConn) {
			in := newRawServer(c)
			if !strings.Contains(in, "Upgrade: websocket") || !strings.Contains(in, "Connection: Upgrade") {
				t.Errorf("request %q", in)
			}
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
			finish(c)
		})
	}
	echoed := serve(func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	r := sidecar(t, nil, "web")
	at := r.outbound(declared, echoed)
	const ask = "GET /ws HTTP/1.1\r\nHost: svc\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	c := dialRaw(t, at)
	c.send(ask)
	if res, err := http.ReadResponse(c.in, nil); err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%v %v", res, err)
	}
	c.expect("hi")
	for range 100 {
		c.send("ping")
		c.expect("ping")
	}
	_ = c.CloseWrite()
	c.ended()
	r.released("out")

	got := make(chan string, 1)
	first := serve(func(c *net.TCPConn) { // the server ends its way and still listens
		_ = c.CloseWrite()
		p, _ := io.ReadAll(c)
		got <- string(p)
	})
	r = sidecar(t, nil, "web")
	c = dialRaw(t, r.outbound(declared, first))
	c.send(ask)
	if _, err := http.ReadResponse(c.in, nil); err != nil {
		t.Fatal(err)
	}
	c.expect("hi")
	c.ended()
	c.send("last words")
	_ = c.CloseWrite()
	if s := <-got; s != "last words" {
		t.Errorf("the server got %q after its own end", s)
	}
	r.released("out")
	// A client that goes takes the tunnel with it.
	r = sidecar(t, nil, "web")
	c = dialRaw(t, r.outbound(declared, echoed))
	c.send(ask)
	if _, err := http.ReadResponse(c.in, nil); err != nil {
		t.Fatal(err)
	}
	_ = c.SetLinger(0)
	_ = c.Close()
	r.released("out")
	r.await("the server's side closed", func(*worker) bool { return r.usage("out").Connections == 0 })
}

// newRawServer reads a request head from a connection, byte by byte, so that nothing behind it is taken.
func newRawServer(c net.Conn) string {
	var in []byte
	one := make([]byte, 1)
	for !bytes.HasSuffix(in, []byte("\r\n\r\n")) {
		if _, err := c.Read(one); err != nil {
			return string(in)
		}
		in = append(in, one[0])
	}
	return string(in)
}

// TestConnect: a tunnel is asked for where a client wanted to go by itself, to a host that the mesh does not know; no
// rule leads one.
func TestConnect(t *testing.T) {
	echoed := tcpServer(t, func(c *net.TCPConn) {
		if in := newRawServer(c); !strings.HasPrefix(in, "CONNECT db.example:3306 HTTP/1.1\r\n") {
			t.Errorf("request %q", in)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		_, _ = io.Copy(c, c)
	})
	r := sidecar(t, nil, "web")
	c := dialRaw(t, r.outbound(func(c *plan.Chain, _ *plan.Cluster, _ []plan.Endpoint) {
		c.Protocol, c.HTTP = plan.ProtocolHTTP, &plan.HTTP{ByHost: true}
	}, echoed))
	r.p.table.Route("db.example:80")
	if refused := r.p.table.Update(plan.KindRoute, nil, []string{"db.example:80"}); refused != nil {
		t.Fatal(refused)
	}
	c.send("CONNECT db.example:3306 HTTP/1.1\r\nHost: db.example:3306\r\n\r\n")
	if res, err := http.ReadResponse(c.in, &http.Request{Method: "CONNECT"}); err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %v", res, err)
	}
	c.send("select 1")
	c.expect("select 1")
	_ = c.CloseWrite()
	c.ended()
	r.released("out")

	s := backend(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the backend got %s %s", r.Method, r.URL) })
	r = newRig(t, to("c"), cluster("c", s)...)
	c = dialRaw(t, r.addr)
	c.send("CONNECT db.example:3306 HTTP/1.1\r\nHost: db.example:3306\r\n\r\n")
	if res, _ := c.response("CONNECT"); res.StatusCode != 404 || res.Header.Get("X-Lateen-Reason") != "no_route" {
		t.Errorf("%v", res)
	}
}

// TestSmuggling: what two readers could understand in two ways goes nowhere.
func TestSmuggling(t *testing.T) {
	s := backend(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the backend got %s %s", r.Method, r.URL) })
	r := newRig(t, to("c"), cluster("c", s)...)
	for _, in := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nX: a\nY: b\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nX : a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		c := dialRaw(t, r.addr)
		c.send(in)
		res, _ := c.response("GET")
		if res.StatusCode/100 != 4 && res.StatusCode != 501 || !res.Close {
			t.Errorf("%q: %s, close %v", in, res.Status, res.Close)
		}
	}
}

func TestOldHTTP(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	r := newRig(t, to("c"), cluster("c", s)...)
	c := dialRaw(t, r.addr)
	c.send("GET / HTTP/1.0\r\nHost: x\r\n\r\n")
	if res, _ := c.response("GET"); res.StatusCode != 426 || res.Header.Get("X-Lateen-Reason") != "version_unsupported" {
		t.Errorf("%s %q", res.Status, res.Header.Get("X-Lateen-Reason"))
	}
	r = startRig(t)
	r.openGateway(&plan.Chain{Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{HTTP10: true}}, plan.Telemetry{}, to("c"), cluster("c", s)...)
	c = dialRaw(t, r.addr)
	c.send("GET / HTTP/1.0\r\nHost: x\r\n\r\n")
	if res, body := c.response("GET"); res.StatusCode != 200 || body != "ok" {
		t.Errorf("%s %q", res.Status, body)
	}
	c.ended()
}

// TestResponseCut: a response that the upstream does not finish does not look finished to the client.
func TestResponseCut(t *testing.T) {
	for _, head := range []string{"Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"} {
		addr := tcpServer(t, func(c *net.TCPConn) {
			newRawServer(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head+"\r\n5\r\nabcde\r\n")
		})
		r := sidecar(t, nil, "web")
		at := r.outbound(nil, addr)
		for _, client := range []*http.Client{webClient(t), h2PlainClient(t)} {
			res, err := client.Do(request(t, "GET", "http://"+at+"/", nil))
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err == nil {
				t.Errorf("%q: the client took the response for complete", head)
			}
			if errors.Is(err, syscall.EPIPE) {
				t.Error(err)
			}
		}
		r.released("out")
	}
}
