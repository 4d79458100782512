package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lateen-mesh/lateen/proxy/probe"
)

// TestStatusPort: probes and metrics are for everybody, the end and the drain for processes beside the proxy.
func TestStatusPort(t *testing.T) {
	r := startRig(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("app_up 1\n"))
	}))
	defer s.Close()
	port := s.URL[strings.LastIndexByte(s.URL, ':')+1:]
	probes, err := probe.ReadProbes(`{"/app-health/a/livez":{"httpGet":{"port":` + port + `}}}`)
	if err != nil {
		t.Fatal(err)
	}
	if r.p.app, err = probe.New(probe.Config{Probes: probes, Scrape: probe.Scrape{Scrape: "true", Port: port, Path: "/"}}); err != nil {
		t.Fatal(err)
	}
	r.p.quit = make(chan struct{}, 1)
	mux := r.p.statusMux()
	call := func(method, path, from string) (int, string) {
		req := httptest.NewRequestWithContext(t.Context(), method, path, nil)
		req.RemoteAddr = from
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, req)
		return w.Code, w.Body.String()
	}
	if code, body := call("GET", "/app-health/a/livez", "10.0.0.1:1"); code != 200 || body != "app_up 1\n" {
		t.Error(code, body)
	}
	if code, body := call("GET", "/stats/prometheus", "10.0.0.1:1"); code != 200 || !strings.Contains(body, "istio_build") ||
		!strings.HasSuffix(body, "app_up 1\n") || strings.Contains(body, "go_goroutines") {
		t.Error(code, body)
	}
	for _, path := range []string{"/drain", "/quitquitquit"} {
		if code, _ := call("POST", path, "10.0.0.1:1"); code != 403 {
			t.Errorf("%s from outside: %d", path, code)
		}
		if code, _ := call("GET", path, "127.0.0.1:1"); code != 405 {
			t.Errorf("GET %s: %d", path, code)
		}
	}
	if r.p.draining.Load() || len(r.p.quit) > 0 {
		t.Error("somebody outside has ended the proxy")
	}
	for range 2 { // the second time changes nothing
		if code, _ := call("POST", "/drain", "127.0.0.1:1"); code != 200 || !r.p.draining.Load() {
			t.Error(code)
		}
		if code, _ := call("POST", "/quitquitquit", "[::1]:1"); code != 200 || len(r.p.quit) != 1 {
			t.Error(code)
		}
	}
}

// TestTokenFile: the token is what the file holds now.
func TestTokenFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	p := &Proxy{cfg: Config{Token: "join", TokenFile: file}}
	if _, err := p.token(t.Context()); err == nil {
		t.Error("no file, and no fault")
	}
	for _, want := range []string{"one", "two"} {
		if err := os.WriteFile(file, []byte(want+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := p.token(t.Context()); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	p.cfg.TokenFile = ""
	if got, err := p.token(t.Context()); got != "join" || err != nil {
		t.Error(got, err)
	}
}

// closing tells when a listener is closed.
type closing struct {
	net.Listener
	closed func()
}

func (c closing) Close() error {
	defer c.closed()
	return c.Listener.Close()
}

// TestAnswersAtEnd: who asks for the proxy's end is answered, however fast it comes.
func TestAnswersAtEnd(t *testing.T) {
	r := startRig(t)
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(t.Context())
		gone := make(chan struct{})
		served := make(chan error, 1)
		go func() {
			served <- r.p.serveHTTP(ctx, closing{l, sync.OnceFunc(func() { close(gone) })}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				end()
				<-gone
				_, _ = io.WriteString(w, "it ends")
			}))
		}()
		res, body := fetch(t, webClient(t), request(t, "POST", "http://"+l.Addr().String(), nil))
		if res.StatusCode != 200 || body != "it ends" {
			t.Errorf("%s %q", res.Status, body)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		end()
	}
}
