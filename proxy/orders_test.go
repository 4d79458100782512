package proxy

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// TestOrders: a request within the mesh may order its own timeout and retries of the first proxy that it meets, which
// tells nobody else; a gateway takes no orders.
func TestOrders(t *testing.T) {
	var calls, told atomic.Int32
	const retryOn, most, timeout, try = "X-Envoy-Retry-On", "X-Envoy-Max-Retries", "X-Envoy-Upstream-Rq-Timeout-Ms", "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms"
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		for _, n := range []string{retryOn, most, timeout, try, "X-Envoy-Retry-Grpc-On", "X-Envoy-Retriable-Status-Codes"} {
			if r.Header.Get(n) != "" {
				told.Add(1)
			}
		}
		if r.URL.Path == "/slow" {
			<-r.Context().Done()
			return
		}
		w.WriteHeader(503)
	})
	addr := s.Listener.Addr().String()
	outbound := sidecar(t, nil, "client").outbound(nil, addr)
	gateway := newRig(t, to("c"), cluster("c", s)...).addr
	for _, test := range []struct {
		name, at, path string
		fields         []string
		status, calls  int
	}{
		{"nothing ordered", outbound, "/", nil, 503, 1},
		{"retries", outbound, "/", []string{retryOn, "5xx", most, "3"}, 503, 4},
		{"a retry, by default", outbound, "/", []string{retryOn, "gateway-error,unheard-of"}, 503, 2},
		{"retries that are for something else", outbound, "/", []string{retryOn, "connect-failure", most, "3"}, 503, 1},
		{"a number without a reason", outbound, "/", []string{most, "3"}, 503, 1},
		{"a number that is none", outbound, "/", []string{retryOn, "5xx", most, "-3"}, 503, 2},
		{"codes", outbound, "/", []string{retryOn, "retriable-status-codes", "X-Envoy-Retriable-Status-Codes", "418, 503"}, 503, 2},
		{"more than may be ordered", outbound, "/", []string{retryOn, "5xx", most, "1000"}, 503, 1 + attemptsMax},
		{"a timeout", outbound, "/slow", []string{timeout, "3000"}, 504, 1},
		{"a timeout of each attempt", outbound, "/slow", []string{retryOn, "5xx", try, "3000", "X-Envoy-Retry-Grpc-On", "internal"}, 504, 2},
		{"of a gateway", gateway, "/", []string{retryOn, "5xx", most, "3"}, 503, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			calls.Store(0)
			res, _ := fetch(t, webClient(t), request(t, "GET", "http://"+test.at+test.path, nil, test.fields...))
			if res.StatusCode != test.status || int(calls.Load()) != test.calls {
				t.Errorf("%s after %d calls, want %d after %d", res.Status, calls.Load(), test.status, test.calls)
			}
		})
	}
	if told.Load() > 0 {
		t.Errorf("%d orders went on to the backend", told.Load())
	}
}

func TestDate(t *testing.T) {
	r := newRig(t, to("c", func(p *plan.Rule) { p.Clusters, p.Direct = nil, &plan.DirectResponse{Code: 200} }))
	res, _ := r.get("/")
	at, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("date %q: %v", res.Header.Get("Date"), err)
	}
	var d date
	now := time.Date(2026, 11, 22, 5, 0, 0, 999, time.FixedZone("", 3600))
	if got := string(d.line(now)); got != "Sun, 22 Nov 2026 04:00:00 GMT" {
		t.Errorf("date %s", got)
	}
	if n := testing.AllocsPerRun(10, func() { now = now.Add(time.Second); d.line(now) }); n > 0 {
		t.Errorf("%g allocations", n)
	}
}
