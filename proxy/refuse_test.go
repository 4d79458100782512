package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
)

// istioRetry is the default of Istio: two retries, and none for answers.
var istioRetry = &plan.Retry{Attempts: 2, On: plan.OnConnectFailure | plan.OnRefusedStream, AvoidPrevious: true}

// TestRefuse: what comes to an application that takes no connections any more goes to another one, whatever its method;
// where there is none, both proxies say why.
func TestRefuse(t *testing.T) {
	a := authority(t)
	gone, there := sidecar(t, a, "gone"), sidecar(t, a, "there")
	strict := func(c *plan.Chain) { c.TLS.Mode = plan.TLSStrict }
	refusing := gone.inbound(fmt.Sprintf("127.0.0.1:%d", freePort(t)), strict)
	serving := there.inbound(backend(t, echoBody).Listener.Addr().String(), strict)
	log := gone.log(plan.ListenerInbound, "%RESPONSE_CODE% %RESPONSE_FLAGS%\n")
	meshed := func(chain *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		declared(chain, c, e)
		chain.HTTP.Inline = to("out", func(r *plan.Rule) { r.Retry = istioRetry })
		c.TLS.Mode = plan.ClientTLSAuto
		for i := range e {
			e[i].MTLS = true
		}
	}
	client := sidecar(t, a, "client")
	at := client.outbound(meshed, refusing, serving)
	web := webClient(t)
	for i := range 40 {
		if res, body := fetch(t, web, request(t, "POST", "http://"+at+"/", strings.NewReader("hello"))); res.StatusCode != http.StatusOK || body != "hello" {
			t.Fatalf("request %d: %s %q %q", i, res.Status, body, res.Header.Get(reasonField))
		}
	}
	alone := sidecar(t, a, "alone")
	at = alone.outbound(meshed, refusing)
	res, _ := fetch(t, web, request(t, "GET", "http://"+at+"/", nil))
	if got := res.Header.Get(reasonField); res.StatusCode != http.StatusServiceUnavailable || got != "upstream_refused_stream" {
		t.Errorf("%s %q", res.Status, got)
	}
	gone.stop() // so that the log is written
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "503 UF\n"); lines < 2 || lines != strings.Count(string(text), "\n") {
		t.Errorf("the log of the one that refuses:\n%s", text)
	}
}

// ending is an application that ends its connections in some way.
type ending struct {
	net.Listener
	how  string
	last bool // it takes no connections then, either

	mu    sync.Mutex
	kept  net.Conn
	taken int // requests that have been read whole
}

// serve answers all requests but the last one of the kept connection, or the first of all if how is "first".
func (e *ending) serve(c net.Conn) {
	defer c.Close()
	e.mu.Lock()
	first := e.kept == nil
	if first {
		e.kept = c
	}
	e.mu.Unlock()
	in := bufio.NewReader(c)
	for n := 0; ; n++ {
		if first && n == 1 && e.how == "half" {
			e.ends()
			_, _ = io.ReadFull(c, make([]byte, 1))
			return // the kernel resets the connection of which not all was read
		}
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		e.mu.Lock()
		e.taken++
		e.mu.Unlock()
		if first && (n == 1 || e.how == "first") {
			e.ends()
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	}
}

func (e *ending) ends() {
	if e.last {
		_ = e.Close()
	}
}

// TestEndOfApplication: a request on a connection that the application ends is sent another time if the application cannot
// have it, or if it may be repeated; to another endpoint if the application has gone. Any other fails.
func TestEndOfApplication(t *testing.T) {
	a := authority(t)
	for _, tt := range []struct {
		method, how string
		last        bool
		status      int
		reason      string
		taken       int
	}{
		{"POST", "before", false, 200, "", 2},
		{"POST", "before", true, 503, "upstream_refused_stream", 1},
		{"POST", "half", false, 503, "upstream_closed", 1},
		{"POST", "after", false, 503, "upstream_closed", 2},
		{"POST", "first", false, 503, "upstream_closed", 1},
		{"GET", "before", false, 200, "", 2},
		{"GET", "half", false, 200, "", 2},
		{"GET", "half", true, 503, "upstream_refused_stream", 1},
		{"GET", "after", false, 200, "", 3},
		{"GET", "after", true, 503, "upstream_refused_stream", 2},
		{"GET", "first", false, 200, "", 2},
		{"GET", "first", true, 503, "upstream_refused_stream", 1},
	} {
		t.Run(fmt.Sprintf("%s %s, last %v", tt.method, tt.how, tt.last), func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			app := &ending{Listener: l, how: tt.how, last: tt.last}
			var group sync.WaitGroup
			group.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					group.Go(func() { app.serve(c) })
				}
			})
			server, client := sidecar(t, a, "server"), sidecar(t, a, "client")
			t.Cleanup(func() {
				server.stop() // which ends the connections
				_ = l.Close()
				group.Wait()
			})
			at := client.outbound(func(chain *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
				declared(chain, c, e)
				chain.HTTP.Inline = to("out", func(r *plan.Rule) { r.Retry = istioRetry })
				c.TLS.Mode, e[0].MTLS = plan.ClientTLSAuto, true
			}, server.inbound(l.Addr().String(), func(c *plan.Chain) { c.TLS.Mode = plan.TLSStrict }))
			web := webClient(t)
			if tt.how != "first" {
				if res, _ := fetch(t, web, request(t, "GET", "http://"+at+"/", nil)); res.StatusCode != 200 {
					t.Fatal(res.Status)
				}
			}
			var body io.Reader
			if tt.method == "POST" {
				body = strings.NewReader("hello")
			}
			var res *http.Response
			send := func() { res, _ = fetch(t, web, request(t, tt.method, "http://"+at+"/", body)) }
			if tt.how == "before" {
				app.endBefore(send, server, client)
			} else {
				send()
			}
			if got := res.Header.Get(reasonField); res.StatusCode != tt.status || got != tt.reason {
				t.Errorf("%s %q, want %d %q", res.Status, got, tt.status, tt.reason)
			}
			app.mu.Lock()
			defer app.mu.Unlock()
			if app.taken != tt.taken {
				t.Errorf("the application has read %d requests, want %d", app.taken, tt.taken)
			}
		})
	}
}

// endBefore has the application end the connection when its proxy has a request for it, of which it does not know yet, and
// does not know of the end when it sends the request on.
func (e *ending) endBefore(send func(), server, client *rig) {
	var sending sync.WaitGroup
	server.onLoop(func(*worker) {
		sending.Go(send)
		client.await("the request is on its way", func(w *worker) bool {
			for _, p := range w.pools {
				for _, u := range p.multi {
					if u.requests == 2 {
						return true
					}
				}
			}
			return false
		})
		client.onLoop(func(*worker) {}) // what was written is with the kernel
		e.ends()
		_ = e.kept.Close()
	})
	sending.Wait()
}
