package control

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
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
		w, r := httptest.NewRecorder(), httptest.NewRequest(tt.method, tt.target, http.NoBody)
		r.RemoteAddr = "127.0.0.1:1"
		b.adminMux().ServeHTTP(w, r)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.has) {
			t.Errorf("%s %s: %d %s", tt.method, tt.target, w.Code, w.Body)
		}
	}
}

// TestMonitoring: whoever calls gets metrics and the version, and nothing else.
func TestMonitoring(t *testing.T) {
	b := newBench(t, Config{})
	for target, want := range map[string]int{
		"http://lateend.sys.svc:15014/metrics": 200, "http://10.0.0.1/version": 200, "http://10.0.0.1/ready": 200,
		"http://10.0.0.1/status": 403, "http://localhost/objects?kind=Service": 403, "http://10.0.0.1/": 403,
	} {
		w := httptest.NewRecorder()
		b.adminMux().ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, http.NoBody))
		if w.Code != want {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
		if strings.HasSuffix(target, "/metrics") {
			parser := expfmt.NewTextParser(model.UTF8Validation)
			if _, err := parser.TextToMetricFamilies(strings.NewReader(w.Body.String())); err != nil {
				t.Errorf("Prometheus does not understand it: %v\n%s", err, w.Body)
			}
			for _, name := range []string{"citadel_server_root_cert_expiry_timestamp 2", "citadel_server_csr_count 0", "pilot_xds{"} {
				if !strings.Contains(w.Body.String(), "\n"+name) {
					t.Errorf("no %s in\n%s", name, w.Body)
				}
			}
		}
	}
}
