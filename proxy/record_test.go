package proxy

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/table"
	"github.com/lateen-mesh/lateen/telemetry/metrics"
)

// finished is an exchange that is over but for being recorded.
func finished(t testing.TB, told plan.Telemetry) *exchange {
	t.Helper()
	p := &Proxy{metrics: metrics.New(metrics.Config{})}
	p.self = newSelf(&Config{Name: "gw", Namespace: "default", Role: RoleGateway})
	p.logs.init(slog.New(slog.DiscardHandler))
	p.table = table.New(table.Config{Subscribe: func(plan.Kind, ...string) {}, Unsubscribe: func(plan.Kind, ...string) {}})
	w, err := p.newWorker()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	p.logs.start(ctx, &group)
	t.Cleanup(func() {
		cancel()
		group.Wait()
		if err := w.loop.Run(ctx); err != nil { // which gives its descriptors back
			t.Error(err)
		}
	})
	l := &table.Listener{Plan: &plan.Listener{Direction: plan.Gateway, Telemetry: told}}
	s := &session{w: w, c: &loop.Conn{}, proof: nothingProven, listener: l, chain: &table.Chain{Plan: &plan.Chain{Name: "http"}}}
	x := &exchange{w: w}
	x.d = &downstream{w: w, s: s, rec: nothingNoted}
	x.rec.begin(x)
	x.rec.status, x.rec.received, x.rec.sent = 200, 10, 2000
	x.start = w.loop.Now().Add(-time.Millisecond)
	x.cluster = p.table.Cluster(plan.ClusterPassthrough)
	x.rec.target.cluster = x.cluster
	x.req.Reset()
	x.req.SetMethodString("GET")
	x.req.SetAuthorityString("shop.example")
	x.req.SetPathString("/a/b?c=d")
	x.req.AddString("user-agent", "test")
	return x
}

// tellings are the two ways to tell of a request: by metrics alone, and by a line of Envoy's default format besides.
func tellings() map[string]plan.Telemetry {
	return map[string]plan.Telemetry{"metrics": {}, "log": {AccessLogs: []plan.AccessLog{{Path: os.DevNull}}}}
}

// TestRecordAllocations: telling of a request allocates nothing in steady state.
func TestRecordAllocations(t *testing.T) {
	for name, told := range tellings() {
		t.Run(name, func(t *testing.T) {
			x := finished(t, told)
			x.rec.end(x)
			if n := testing.AllocsPerRun(1000, func() { x.rec.end(x) }); n != 0 {
				t.Errorf("%v allocations for each request, want none", n)
			}
			if n := x.w.p.metrics.Snapshot().Requests; len(n) != 1 || n[0].Duration.Count() != 1002 {
				t.Errorf("counted %+v, want one series of 1002 requests", n)
			}
		})
	}
}

// TestPlansAreForgotten: what has been told about plans that are not in force any more does not hold them.
func TestPlansAreForgotten(t *testing.T) {
	x := finished(t, tellings()["log"])
	w := x.w
	for range 3 { // an update of the cluster's endpoints and of the listener each time
		l := *x.d.s.listener.Plan
		x.d.s.listener = &table.Listener{Plan: &l}
		cluster := balance.New(&plan.Cluster{Name: "c"}, nil)
		cluster.SetEndpoints([]plan.Endpoint{endpointAt("10.0.0.1:80", "app")})
		x.rec.target = target{cluster: cluster, ep: cluster.Endpoints()[0]}
		w.endpointRef(x.rec.target)
		x.rec.end(x)
		if len(w.endpoints) != 1 || len(w.sinks) != 1 {
			t.Errorf("%d endpoints and %d listeners are held, want one of each", len(w.endpoints), len(w.sinks))
		}
		w.sweep()
	}
	c := tlsConfigs{}
	for range 3 {
		for _, name := range []string{"a", "b"} {
			_, err := c.client(&plan.Cluster{Name: name}, nil, nil, func() (*tls.Config, error) { return &tls.Config{}, nil })
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(c.clients) != 2 {
		t.Errorf("%d configurations for two clusters", len(c.clients))
	}
}

func BenchmarkRecord(b *testing.B) {
	for name, told := range tellings() {
		b.Run(name, func(b *testing.B) {
			x := finished(b, told)
			b.ReportAllocs()
			for b.Loop() {
				x.rec.end(x)
			}
		})
	}
}
