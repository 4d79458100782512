package proxy

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

func TestRequestIsRelayed(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", r.Method+" "+r.Host+" "+r.URL.String())
		w.Header().Set("X-For", r.Header.Get("X-Forwarded-For"))
		w.Header().Set("X-Id", r.Header.Get("X-Request-Id"))
		fmt.Fprint(w, "hello")
	})
	r := newRig(t, to("c"), cluster("c", s)...)
	for range 3 {
		res, body := r.get("/a/b?x=1", "Host", "shop.example")
		if res.StatusCode != 200 || body != "hello" {
			t.Fatalf("%s %q", res.Status, body)
		}
		if got, want := res.Header.Get("X-Seen"), "GET "+r.addr+" /a/b?x=1"; got != want {
			t.Errorf("the backend saw %q, want %q", got, want)
		}
		if got := res.Header.Get("X-For"); got != "127.0.0.1" {
			t.Errorf("x-forwarded-for %q", got)
		}
		if len(res.Header.Get("X-Id")) != 36 {
			t.Errorf("x-request-id %q", res.Header.Get("X-Id"))
		}
		if got := res.Header.Get("Server"); got != "istio-envoy" {
			t.Errorf("server %q", got)
		}
	}
}

func TestBodiesBothWays(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("backend: %v", err)
		}
		_, _ = w.Write(body)
	})
	for _, retry := range []*plan.Retry{nil, {Attempts: 2, On: plan.On5xx}} {
		r := newRig(t, to("c", func(p *plan.Rule) { p.Retry = retry }), cluster("c", s)...)
		for _, size := range []int{0, 1, 1000, 64 << 10, 64<<10 + 1, 300 << 10, 5 << 20} {
			for _, chunked := range []bool{false, true} {
				body := make([]byte, size)
				_, _ = rand.Read(body)
				var in io.Reader = bytes.NewReader(body)
				if chunked {
					in = struct{ io.Reader }{in}
				}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.addr+"/", in)
				if err != nil {
					t.Fatal(err)
				}
				res, got := r.do(req)
				if res.StatusCode != 200 || sha256.Sum256([]byte(got)) != sha256.Sum256(body) {
					t.Fatalf("size %d chunked %v: %s, %d bytes came back", size, chunked, res.Status, len(got))
				}
			}
		}
	}
}

func TestLocalAnswers(t *testing.T) {
	closed := backend(t, func(http.ResponseWriter, *http.Request) {})
	closed.Close()
	tests := []struct {
		name   string
		route  *plan.Route
		extra  []plan.Resource
		status int
		reason string
	}{
		{"no route", &plan.Route{Hosts: []plan.VirtualHost{{Domains: []string{"other.example"}}}}, nil, 404, "no_route"},
		{"no rule", &plan.Route{Hosts: []plan.VirtualHost{{Domains: []string{"*"}}}}, nil, 404, "no_route"},
		{"direct", to("c", func(r *plan.Rule) { r.Clusters, r.Direct = nil, &plan.DirectResponse{Code: 418, Body: "teapot"} }), nil, 418, "direct_response"},
		{"an invalid destination", to(plan.ClusterInvalid), nil, 500, "no_cluster"},
		{"no endpoint", to("c"), cluster("c"), 503, "no_healthy_endpoint"},
		{"refused", to("c"), cluster("c", closed), 503, "connect_refused"},
		{"abort", to("c", func(r *plan.Rule) { r.Fault = &plan.Fault{AbortStatus: 555, AbortGRPC: -1, AbortPercent: 100} }), cluster("c", closed), 555, "fault_abort"},
		{"abort of gRPC", to("c", func(r *plan.Rule) { r.Fault = &plan.Fault{AbortGRPC: 14, AbortPercent: 100} }), cluster("c", closed), 200, "fault_abort"},
		{"redirect", to("c", func(r *plan.Rule) { r.Clusters, r.Redirect = nil, &plan.Redirect{Code: 302, Path: "/there"} }), nil, 302, "redirect"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.route, tt.extra...)
			res, _ := r.get("/")
			if res.StatusCode != tt.status || res.Header.Get("X-Lateen-Reason") != tt.reason {
				t.Errorf("%d %q, want %d %q", res.StatusCode, res.Header.Get("X-Lateen-Reason"), tt.status, tt.reason)
			}
			if tt.status == 302 && res.Header.Get("Location") != "http://"+r.addr+"/there" {
				t.Errorf("location %q", res.Header.Get("Location"))
			}
		})
	}
}

func TestRetries(t *testing.T) {
	var calls atomic.Int32
	bad := backend(t, func(w http.ResponseWriter, _ *http.Request) { calls.Add(1); w.WriteHeader(503) })
	good := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Attempt", r.Header.Get("X-Envoy-Attempt-Count"))
		_, _ = io.Copy(w, r.Body)
	})
	retry := &plan.Retry{Attempts: 3, On: plan.On5xx, AvoidPrevious: true}
	r := newRig(t, to("c", func(p *plan.Rule) { p.Retry = retry }), cluster("c", bad, good)...)
	for range 20 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.addr+"/", strings.NewReader("again"))
		if err != nil {
			t.Fatal(err)
		}
		res, body := r.do(req)
		if res.StatusCode != 200 || body != "again" {
			t.Fatalf("%s %q", res.Status, body)
		}
	}
	if calls.Load() == 0 {
		t.Error("the bad endpoint was never tried, so nothing was retried")
	}
}

func TestRetriesEnd(t *testing.T) {
	var calls atomic.Int32
	bad := backend(t, func(w http.ResponseWriter, _ *http.Request) { calls.Add(1); w.WriteHeader(503) })
	r := newRig(t, to("c", func(p *plan.Rule) { p.Retry = &plan.Retry{Attempts: 2, On: plan.On5xx} }), cluster("c", bad)...)
	res, _ := r.get("/")
	if res.StatusCode != 503 || calls.Load() != 3 {
		t.Errorf("%s after %d calls, want 503 after 3", res.Status, calls.Load())
	}
}

func TestTimeouts(t *testing.T) {
	stop := make(chan struct{})
	slow := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	})
	t.Cleanup(func() { close(stop) })
	r := newRig(t, to("c", func(p *plan.Rule) { p.Timeout = 50 * time.Millisecond }), cluster("c", slow)...)
	res, _ := r.get("/")
	if res.StatusCode != 504 || res.Header.Get("X-Lateen-Reason") != "request_timeout" {
		t.Errorf("%s %q", res.Status, res.Header.Get("X-Lateen-Reason"))
	}
	r = newRig(t, to("c", func(p *plan.Rule) {
		p.Retry = &plan.Retry{Attempts: 1, On: plan.On5xx, PerTryTimeout: 30 * time.Millisecond}
	}), cluster("c", slow)...)
	res, _ = r.get("/")
	if res.StatusCode != 504 || res.Header.Get("X-Lateen-Reason") != "per_try_timeout" {
		t.Errorf("%s %q", res.Status, res.Header.Get("X-Lateen-Reason"))
	}
}

func TestWeights(t *testing.T) {
	named := func(name string) []plan.Resource {
		return cluster(name, backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	}
	r := newRig(t, to("", func(p *plan.Rule) {
		p.Clusters = []plan.WeightedCluster{{Cluster: "a", Weight: 90}, {Cluster: "b", Weight: 10}}
	}), append(named("a"), named("b")...)...)
	count := map[string]int{}
	for range 1000 {
		_, body := r.get("/")
		count[body]++
	}
	if count["b"] < 50 || count["b"] > 160 || count["a"]+count["b"] != 1000 {
		t.Errorf("shares %v, want about 900 and 100", count)
	}
}

func TestMirror(t *testing.T) {
	got := make(chan string, 100)
	main := backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "main") })
	shadow := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		host, port, _ := strings.Cut(r.Host, ":")
		got <- fmt.Sprintf("%s %t %s %s", host, port != "", r.URL.Path, body)
	})
	r := newRig(t, to("c", func(p *plan.Rule) { p.Mirrors = []plan.Mirror{{Cluster: "m", Percent: 100}} }), append(cluster("c", main), cluster("m", shadow)...)...)
	if _, body := r.get("/x"); body != "main" {
		t.Errorf("body %q", body)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.addr+"/y", strings.NewReader("payload"))
	if err != nil {
		t.Fatal(err)
	}
	r.do(req)
	seen := map[string]bool{}
	for range 2 {
		select {
		case s := <-got:
			seen[s] = true
		case <-time.After(patience):
			t.Fatalf("copies that came: %v", seen)
		}
	}
	if !seen["127.0.0.1-shadow true /x "] || !seen["127.0.0.1-shadow true /y payload"] {
		t.Errorf("copies %v", seen)
	}
}
