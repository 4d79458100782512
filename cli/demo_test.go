package cli

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/cli/show"
	"github.com/lateen-mesh/lateen/telemetry"
)

// app and version make a peer as the proxies report it.
func peer(app, version string) telemetry.Peer { return telemetry.Peer{App: app, Version: version} }

// TestEdges follows two moments of a small mesh: rates, shares, failures and mTLS are of the time between.
func TestEdges(t *testing.T) {
	at := time.Unix(1000, 0)
	call := func(from, to telemetry.Peer, requests, failures uint64) proxyEdge {
		return proxyEdge{Reporter: "source", Source: from, Destination: to, Requests: requests, Failures: failures, P50: 1, P99: 2.3456}
	}
	came := func(from, to telemetry.Peer, mutual, plain uint64) proxyEdge {
		return proxyEdge{Reporter: "destination", Source: from, Destination: to, MutualTLS: mutual, Plain: plain}
	}
	page, v1, v2 := peer("page", "v1"), peer("reviews", "v1"), peer("reviews", "v2")
	before := collect(at, [][]proxyEdge{
		{call(page, v1, 100, 50)},
		{came(page, v1, 100, 0)},
	})
	now := collect(at.Add(2*time.Second), [][]proxyEdge{
		{call(page, v1, 130, 50), call(page, v2, 10, 1), {Reporter: "source", Source: page, Service: "db.default.svc.cluster.local", Requests: 4, Failures: 4}},
		{came(page, v1, 130, 0)},
		{came(page, v2, 5, 5)},
	})
	want := []edge{
		{From: "page", To: "db", Requests: 4, Share: 1, Success: 0, rate: 2},
		{From: "page", To: "reviews", Version: "v1", Requests: 30, Share: 0.75, Success: 1, P50: 1, P99: 2.35, MTLS: true, rate: 15, arrived: true},
		{From: "page", To: "reviews", Version: "v2", Requests: 10, Share: 0.25, Success: 0.9, P50: 1, P99: 2.35, rate: 5, arrived: true},
	}
	if diff := cmp.Diff(want, now.since(before), cmp.AllowUnexported(edge{}), cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Error(diff)
	}
	if got := now.mtlsShare(before); got != 35.0/40 {
		t.Errorf("mTLS share %v, want %v", got, 35.0/40)
	}
	if got := now.since(now); len(got) != 0 {
		t.Errorf("in no time there was %v", got)
	}
	if again := collect(at.Add(3*time.Second), [][]proxyEdge{{call(page, v1, 3, 0)}}).since(now); again[0].Requests != 3 {
		t.Errorf("after a proxy's restart there were %d requests, want 3", again[0].Requests)
	}
}

func TestVerdict(t *testing.T) {
	var all []edge
	for _, k := range wanted() {
		all = append(all, edge{From: k.from, To: k.to, Version: k.version, Requests: 1})
	}
	good := demoReport{Requests: 6, MTLSShare: 1, Edges: all, Statuses: map[string]uint64{"200": 6}}
	if err := good.verdict(true); err != nil {
		t.Error(err)
	}
	for _, test := range []struct {
		name   string
		change func(r *demoReport)
		plain  bool
		want   string
	}{
		{"nothing", func(r *demoReport) { r.Requests = 0 }, false, "no request was sent"},
		{"failed", func(r *demoReport) { r.Failed, r.lastErr = 2, errors.New("reset") }, false, "2 of 6 requests failed, the last with: reset"},
		{"denied", func(r *demoReport) { r.Statuses = map[string]uint64{"403": 6} }, false, "no request got through: the statuses were [403]"},
		{"edge", func(r *demoReport) { r.Edges = r.Edges[1:] }, true, "no call from ingressgateway to productpage v1"},
		{"plain", func(r *demoReport) { r.MTLSShare = 0.987 }, true, "only 98.7 % of the calls"},
		{"configured", func(r *demoReport) { r.Edges, r.MTLSShare = nil, 0 }, false, ""},
	} {
		r := good
		test.change(&r)
		err := r.verdict(test.plain)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func TestPicture(t *testing.T) {
	f := frame{
		edges: []edge{
			{From: "ingressgateway", To: "productpage", Version: "v1", Share: 1, Success: 1, P50: 2.42, P99: 15.9, MTLS: true, arrived: true, rate: 20},
			{From: "productpage", To: "details", Version: "v1", Share: 1, Success: 0.9999, P50: 0.4, P99: 100.25, arrived: true, rate: 20},
			{From: "productpage", To: "reviews", Version: "v1", Share: 0.333, Success: 0.5, P50: 0.4, P99: 4, MTLS: true, arrived: true, rate: 6.66},
			{From: "reviews", To: "ratings", Share: 1, rate: 100},
		},
		requests: 1234, failed: 2, lastErr: errors.New("the connection was reset"), running: 62 * time.Second,
		page: "http://127.0.0.1:8080/productpage", admins: []address{{"ingressgateway", "http://127.0.0.1:15100"}, {"details-v1", "http://127.0.0.1:15101"}},
		trouble: "the file is not there", examples: "examples/bookinfo", lateen: "bin/lateen", mesh: "shop",
	}
	golden(t, "picture", f.text(show.NewStyle(io.Discard))+"\n--- at the start\n\n"+frame{lateen: "bin/lateen", page: f.page, mesh: host.DefaultMesh}.text(show.NewStyle(io.Discard)))
}

// TestScreen: a frame takes the place of the one before, and never scrolls the terminal.
func TestScreen(t *testing.T) {
	rows := 10
	s := &screen{size: func() (int, int) { return 80, rows }}
	if got := s.draw("a\nb\n"); strings.Contains(got, "A\r") || strings.Count(got, "\n") != 2 {
		t.Errorf("the first frame is %q", got)
	}
	rows = 3
	got := s.draw("a\nb\nc\nd\n")
	if !strings.HasPrefix(got, "\x1b[2A\r") || strings.Count(got, "\n") != 2 || strings.Contains(got, "c") {
		t.Errorf("the second frame is %q", got)
	}
}

func TestPercent(t *testing.T) {
	for share, want := range map[float64]string{1: "100 %", 0.99999: "99.9 %", 0.995: "99.5 %", 0: "0 %", 0.5: "50 %"} {
		if got := percent(share); got != want {
			t.Errorf("%v is %q, want %q", share, got, want)
		}
	}
}

// TestLoad: requests that do not come back, 5xx, and pages without content have failed; 4xx have not.
func TestLoad(t *testing.T) {
	answers := make(chan func(http.ResponseWriter), 4)
	answers <- func(w http.ResponseWriter) { _, _ = io.WriteString(w, "the content") }
	answers <- func(w http.ResponseWriter) { _, _ = io.WriteString(w, "nothing") }
	answers <- func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }
	answers <- func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("End-User") != "jason" || r.Host != "books" {
			t.Errorf("host %q, headers %v", r.Host, r.Header)
		}
		select {
		case answer := <-answers:
			answer(w)
		default:
			cancel()
			panic(http.ErrAbortHandler) // No answer.
		}
	}))
	defer server.Close()
	l := newLoad(server.URL, http.Header{"End-User": {"jason"}, "Host": {"books"}}, 50, "content")
	l.run(ctx, t.Context())
	requests, failed, statuses, last := l.totals()
	if requests < 5 || failed != requests-2 || last == nil {
		t.Errorf("%d requests, %d failed, the last: %v", requests, failed, last)
	}
	if diff := cmp.Diff(map[string]uint64{"200": 1, "502": 1, "403": 1}, statuses); diff != "" {
		t.Error(diff)
	}
}

func TestComplete(t *testing.T) {
	w := host.Workload{Name: "a", Namespace: "b", ServiceAccount: "c", Role: host.RoleSidecar, Command: []string{"sh", "-c", "true"}}
	if err := complete(&w, []string{"9080", "http=80"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]uint16{"9080": 9080, "http": 80}, w.Ports); diff != "" {
		t.Error(diff)
	}
	if !filepath.IsAbs(w.Command[0]) || w.Dir == "" || len(w.Env) != len(os.Environ()) {
		t.Errorf("the command is %v in %q with %d variables", w.Command, w.Dir, len(w.Env))
	}
}

// TestListenFrom: a port that is in use makes way for the next one.
func TestListenFrom(t *testing.T) {
	first, err := listenFrom(t.Context(), 23450)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	taken := uint16(first.Addr().(*net.TCPAddr).Port)
	second, err := listenFrom(t.Context(), taken)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	if got := uint16(second.Addr().(*net.TCPAddr).Port); got <= taken {
		t.Errorf("got port %d after %d", got, taken)
	}
}
