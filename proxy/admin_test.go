package proxy

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
)

// ask sends a request to a handler.
func ask(t *testing.T, h http.Handler, method, path, host string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	req.Host = host
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

// TestAdminHost: a web page whose name was made to point to this machine does not get to read the admin page.
func TestAdminHost(t *testing.T) {
	p := startRig(t).p
	for host, want := range map[string]int{
		"localhost": 200, "localhost:15000": 200, "LocalHost:15000": 200, "127.0.0.1": 200, "127.0.0.1:15000": 200, "127.3.2.1:15000": 200,
		"[::1]": 200, "[::1]:15000": 200, "10.1.2.3:15000": 200, "[fe80::1]:15000": 200,
		"": 421, "evil.example": 421, "evil.example:15000": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421,
		"127.0.0.1.evil.example:15000": 421, "localhost.": 421, "127.1": 421, "[evil.example]": 421, "evil.example:127.0.0.1": 421,
	} {
		if got := ask(t, p.adminTCP(), "GET", "/status", host).Code; got != want {
			t.Errorf("host %q: %d, want %d", host, got, want)
		}
		if got := ask(t, p.adminSocket(), "GET", "/status", host).Code; got != 200 {
			t.Errorf("host %q on the Unix socket: %d, want 200", host, got)
		}
	}
}

// TestAdminMutations: what changes something takes a POST that no foreign web page has sent.
func TestAdminMutations(t *testing.T) {
	p := startRig(t).p
	for _, tt := range []struct {
		method string
		header []string
		want   int
	}{
		{"POST", nil, 200},
		{"POST", []string{"Sec-Fetch-Site", "same-origin"}, 200},
		{"POST", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"POST", []string{"Origin", "http://evil.example"}, 403},
		{"GET", nil, 405},
		{"PUT", nil, 405},
	} {
		if got := ask(t, p.adminTCP(), tt.method, "/reopen_logs", "localhost", tt.header...).Code; got != tt.want {
			t.Errorf("%s with %q: %d, want %d", tt.method, tt.header, got, tt.want)
		}
	}
	for _, path := range []string{"/", "/status", "/config", "/edges", "/ready", "/stats/prometheus"} {
		if got := ask(t, p.adminTCP(), "POST", path, "localhost").Code; got != 405 {
			t.Errorf("POST %s: %d, want 405", path, got)
		}
	}
}

// TestProfiles: profiles are for those who can open the Unix socket, and the page shows no way that leads nowhere.
func TestProfiles(t *testing.T) {
	p := startRig(t).p
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/goroutine?debug=1"} {
		if got := ask(t, p.adminTCP(), "GET", path, "localhost").Code; got != 404 {
			t.Errorf("%s on TCP: %d, want 404", path, got)
		}
		if got := ask(t, p.adminSocket(), "GET", path, "x").Code; got != 200 {
			t.Errorf("%s on the Unix socket: %d, want 200", path, got)
		}
	}
	for _, tt := range []struct {
		h    http.Handler
		want bool
	}{{p.adminTCP(), false}, {p.adminSocket(), true}} {
		w := ask(t, tt.h, "GET", "/", "localhost")
		if got := strings.Contains(w.Body.String(), "pprof"); got != tt.want || !strings.HasSuffix(w.Body.String(), "</p>") {
			t.Errorf("link to profiles: %v, want %v, in a whole page: %s", got, tt.want, w.Body)
		}
	}
}

// TestReopenLogs: after a log rotation the lines go to the new file.
func TestReopenLogs(t *testing.T) {
	r := startRig(t)
	path := filepath.Join(t.TempDir(), "access.log")
	told := plan.Telemetry{AccessLogs: []plan.AccessLog{{Path: path, Format: "%REQ(:PATH)%\n"}}}
	s := backend(t, func(http.ResponseWriter, *http.Request) {})
	r.openGateway(&plan.Chain{Name: "http", Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{}}, told, to("c"), cluster("c", s)...)
	holds := func(path, want string) {
		t.Helper()
		r.await(path+" holding "+want, func(*worker) bool {
			text, err := os.ReadFile(path)
			return err == nil && string(text) == want
		})
	}
	r.get("/1")
	holds(path, "/1\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, r.p.adminTCP(), "POST", "/reopen_logs", "localhost").Code; got != 200 {
		t.Fatal(got)
	}
	holds(path, "")
	r.get("/2")
	holds(path, "/2\n")
	holds(path+".1", "/1\n")
}

// TestAccessLogOpensOffTheLoop: a log file that cannot be opened, holds up no request.
func TestAccessLogOpensOffTheLoop(t *testing.T) {
	r := startRig(t)
	path := filepath.Join(t.TempDir(), "no", "such", "folder", "access.log")
	told := plan.Telemetry{AccessLogs: []plan.AccessLog{{Path: path}}}
	s := backend(t, func(http.ResponseWriter, *http.Request) {})
	r.openGateway(&plan.Chain{Name: "http", Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{}}, told, to("c"), cluster("c", s)...)
	if res, _ := r.get("/"); res.StatusCode != 200 {
		t.Error(res.Status)
	}
	r.await("the loss told", func(*worker) bool {
		return strings.Contains(r.logs.String(), "access log lines are dropped") && r.p.logs.dropped() == 1
	})
	if w := ask(t, r.p.adminTCP(), "GET", "/stats/prometheus", "localhost"); !strings.Contains(w.Body.String(), "lateen_access_log_dropped_total 1\n") {
		t.Error("the lost line is missing in the metrics")
	}
}
