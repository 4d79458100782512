package probe

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
)

// portOf is the port of a server.
func portOf(t *testing.T, address string) uint16 {
	t.Helper()
	a, err := netip.ParseAddrPort(strings.TrimPrefix(strings.TrimPrefix(address, "http://"), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	return a.Port()
}

func handler(t *testing.T, cfg Config) *Handler {
	t.Helper()
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func ask(t *testing.T, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	r.Header.Set("User-Agent", "kube-probe/1.36")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// application is a server with an answer for each case.
func application(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/ok":
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprintf(w, "%s %s %s %s", host, r.Host, r.Header.Get("X-A"), r.UserAgent())
	case "/teapot":
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte(strings.Repeat("x", bodyMax+1)))
	case "/here":
		http.Redirect(w, r, "/ok", http.StatusFound)
	case "/away":
		http.Redirect(w, r, "http://example.invalid/", http.StatusFound)
	case "/round":
		http.Redirect(w, r, "/round", http.StatusFound)
	case "/often":
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		if n == 0 {
			http.Redirect(w, r, "/ok", http.StatusFound)
			return
		}
		http.Redirect(w, r, fmt.Sprintf("/often?n=%d", n-1), http.StatusFound)
	case "/port":
		http.Redirect(w, r, "https://127.0.0.1:"+r.URL.Query().Get("to")+"/ok", http.StatusFound)
	case "/asked":
		_, _ = fmt.Fprintf(w, "%s agent=%q accept=%q host=%s query=%s", r.Proto, r.Header["User-Agent"], r.Header["Accept"], r.Host, r.URL.RawQuery)
	case "/cut":
		w.Header().Set("Content-Length", "2")
		_, _ = w.Write([]byte("1"))
	case "/slow":
		<-r.Context().Done()
	case "/m":
		_, _ = fmt.Fprintf(w, "app_up{accept=%q} 1\n", r.Header.Get("Accept"))
	case "/broken":
		w.WriteHeader(http.StatusBadGateway)
	}
}

func read(t *testing.T, text string) map[string]Probe {
	t.Helper()
	probes, err := ReadProbes(text)
	if err != nil {
		t.Fatal(err)
	}
	return probes
}

// TestHTTP: what the kubelet gets to know of an HTTP probe, and what the application of it, is what they would without us.
func TestHTTP(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(application))
	defer plain.Close()
	secure := httptest.NewUnstartedServer(http.HandlerFunc(application))
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	host := plain.Listener.Addr().String()
	for _, tt := range []struct {
		name, more string // of the probe, beside its port
		want       string
		code       int
	}{
		{"all", `"path":"/ok","httpHeaders":[{"name":"host","value":"shop"},{"name":"X-A","value":"b"}],"unknown":1`, "127.0.0.6 shop b kube-probe/1.36", 200},
		{"teapot", `"path":"/teapot"`, strings.Repeat("x", bodyMax), 418},
		{"cut", `"path":"/cut"`, "unexpected EOF", 500},
		{"slow", `"path":"/slow"`, "deadline", 500},
		{"broken", `"path":"/broken"`, "", 502},

		{"here", `"path":"/here"`, "127.0.0.6", 200},
		{"another host", `"path":"/away"`, "", 200},
		{"another port", fmt.Sprintf(`"path":"/port?to=%d"`, portOf(t, secure.URL)), "127.0.0.6", 200},
		{"another port, closed", `"path":"/port?to=1"`, "refused", 500},
		{"nine times", `"path":"/often?n=8"`, "127.0.0.6", 200},
		{"ten times", `"path":"/often?n=9"`, "redirects more than 9 times", 500},
		{"round", `"path":"/round"`, "redirects more than 9 times", 500},

		{"defaults", `"path":"asked?a=b"`, `HTTP/1.1 agent=["kube-probe/1.36"] accept=["*/*"] host=` + host + " query=a=b", 200},
		{"its own", `"path":"/asked","httpHeaders":[{"name":"user-agent","value":"mine"},{"name":"accept","value":"text/plain"}]`, `agent=["mine"] accept=["text/plain"]`, 200},
		{"none", `"path":"/asked","httpHeaders":[{"name":"User-Agent","value":""},{"name":"Accept","value":""}]`, `agent=[] accept=[]`, 200},
		{"two hosts", `"path":"/asked","httpHeaders":[{"name":"Host","value":"one"},{"name":"Host","value":"two"}]`, "host=one", 200},
		{"no path", `"path":"%zz"`, "", 200},
		{"TLS", fmt.Sprintf(`"path":"/asked","scheme":"HTTPS","port":%d`, portOf(t, secure.URL)), "HTTP/2.0", 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			timeout := 60
			if tt.name == "slow" {
				timeout = 1
			}
			for _, path := range []string{"/app-health/a/livez", "/app-lifecycle/a/prestopz"} {
				h := handler(t, Config{Probes: read(t, fmt.Sprintf(`{%q:{"timeoutSeconds":%d,"httpGet":{"port":%d,%s}}}`, path, timeout, portOf(t, plain.URL), tt.more))})
				got := ask(t, h, path)
				if got.Code != tt.code || !strings.Contains(got.Body.String(), tt.want) || got.Body.Len() > bodyMax {
					t.Errorf("%s: %d %.200q, want %d %.200q", path, got.Code, got.Body, tt.code, tt.want)
				}
				if got := ask(t, h, "/app-health/b/livez"); got.Code != 404 || !strings.Contains(got.Body.String(), "no such probe") {
					t.Errorf("%d %q", got.Code, got.Body)
				}
			}
		})
	}
}

// TestTCP: only an open port is a success.
func TestTCP(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := handler(t, Config{Probes: read(t, fmt.Sprintf(`{"/app-health/a/livez":{"tcpSocket":{"port":%d},"timeoutSeconds":9}}`, portOf(t, l.Addr().String())))})
	if got := ask(t, h, "/app-health/a/livez"); got.Code != 200 {
		t.Error(got.Code, got.Body)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, h, "/app-health/a/livez"); got.Code != 500 || !strings.Contains(got.Body.String(), "refused") {
		t.Error(got.Code, got.Body)
	}
}

// TestGRPC asks a real gRPC server.
func TestGRPC(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	service := health.NewServer()
	service.SetServingStatus("up", healthapi.HealthCheckResponse_SERVING)
	service.SetServingStatus("down", healthapi.HealthCheckResponse_NOT_SERVING)
	server := grpc.NewServer()
	healthapi.RegisterHealthServer(server, service)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	defer func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	port := portOf(t, l.Addr().String())
	h := handler(t, Config{Probes: map[string]Probe{
		"/app-health/a/all": {GRPC: &GRPC{Port: port}}, "/app-health/a/up": {GRPC: &GRPC{Port: port, Service: "up"}},
		"/app-health/a/down": {GRPC: &GRPC{Port: port, Service: "down"}}, "/app-health/a/none": {GRPC: &GRPC{Port: port, Service: "none"}},
	}})
	for path, want := range map[string]string{"all": "", "up": "", "down": "does not serve (status 2)", "none": `gRPC status "5" (unknown service)`} {
		got := ask(t, h, "/app-health/a/"+path)
		if (got.Code == 200) != (want == "") || !strings.Contains(got.Body.String(), want) {
			t.Errorf("%s: %d %s, want %q", path, got.Code, got.Body, want)
		}
	}
}

// TestMetrics: the application's come behind ours, and cost nothing when they cannot be had.
func TestMetrics(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(application))
	defer s.Close()
	own := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "own_up{accept=%q} 1\n", r.Header.Get("Accept"))
	})
	for _, tt := range []struct{ path, want, warning string }{
		{"m", `app_up{accept="` + textFormat + `"} 1`, ""},
		{"/broken", "", "502 Bad Gateway"},
	} {
		scrape, err := ReadScrape(fmt.Sprintf(`{"scrape":"true","path":%q,"port":"%d"}`, tt.path, portOf(t, s.URL)))
		if err != nil {
			t.Fatal(err)
		}
		h := handler(t, Config{Scrape: scrape})
		var warned error
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/stats/prometheus", nil)
		r.Header.Set("Accept", "application/openmetrics-text")
		w := httptest.NewRecorder()
		h.Metrics(own, func(err error) { warned = err }).ServeHTTP(w, r)
		if !h.Scraped() || !strings.HasPrefix(w.Body.String(), `own_up{accept="`+textFormat+`"} 1`) || !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("%s: %s", tt.path, w.Body)
		}
		if (warned == nil) != (tt.warning == "") || warned != nil && !strings.Contains(warned.Error(), tt.warning) {
			t.Errorf("%s: %v, want %q", tt.path, warned, tt.warning)
		}
	}
}

// TestValidate: what cannot be asked is told.
func TestValidate(t *testing.T) {
	cfg := Config{Probes: map[string]Probe{
		"/app-health/a/livez": {}, "/app-health/a/readyz": {TCPSocket: &TCPSocket{}}, "/drain": {TCPSocket: &TCPSocket{Port: 1}},
	}}
	_, err := New(cfg)
	for _, want := range []string{"want one of httpGet", "names no port", "probe /drain: want a path below"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: no %q", err, want)
		}
	}
	if _, err := ReadProbes("["); err == nil {
		t.Error("no fault")
	}
	for _, text := range []string{"[", `{"port":"x"}`, `{"port":"0"}`} {
		if _, err := ReadScrape(text); err == nil {
			t.Errorf("%s: no fault", text)
		}
	}
}

// FuzzHealth: whatever a server answers, it is read without harm.
func FuzzHealth(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 8, 1})
	f.Add([]byte{0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		status, err := readHealth(body)
		if err == nil && status == serving && len(body) < 7 {
			t.Errorf("%x serves", body)
		}
	})
}
