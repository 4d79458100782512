package control

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestAdmin: the page shows what goes on, changes nothing, and gives no keys away.
func TestAdmin(t *testing.T) {
	b := newBench(t, Config{})
	for _, tt := range []struct {
		method, target string
		status         int
		has            string
	}{
		{"GET", "http://localhost:15014/", 200, "lateend"},
		{"GET", "http://127.0.0.1/status", 200, `"version"`},
		{"GET", "http://[::1]:15014/proxies", 200, "[]"},
		{"GET", "http://localhost/objects?kind=VirtualService", 200, "[]"},
		{"GET", "http://localhost/objects?kind=Secret", 400, "other than Secret"},
		{"GET", "http://localhost/objects", 400, "other than Secret"},
		{"GET", "http://evil.example/status", 421, "localhost"},
		{"POST", "http://localhost/apply", 404, ""},
		{"POST", "http://localhost/tokens", 404, ""},
		{"POST", "http://localhost/workloads", 404, ""},
	} {
		w := httptest.NewRecorder()
		b.adminMux().ServeHTTP(w, httptest.NewRequest(tt.method, tt.target, http.NoBody))
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.has) {
			t.Errorf("%s %s: %d %s", tt.method, tt.target, w.Code, w.Body)
		}
	}
}
