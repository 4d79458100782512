package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/table"
	"github.com/lateen-mesh/lateen/telemetry/metrics"
)

// patience is how long a test waits for what must happen, on a machine that may do much else.
const patience = 2 * time.Minute

// rig is a gateway without a control plane: tests give it its plan themselves.
type rig struct {
	t    *testing.T
	p    *Proxy
	addr string // of the gateway's one port
	logs *lines
	stop func() // ends the proxy and waits for it, so that its logs are written
}

// lines collects log lines.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newRig runs a gateway whose one listener has the given HTTP route.
func newRig(t *testing.T, route *plan.Route, resources ...plan.Resource) *rig {
	t.Helper()
	r := startRig(t)
	r.openGateway(&plan.Chain{
		Name: "http", Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{AppendForwardedFor: true, Peers: true, ServerName: "istio-envoy"},
	}, plan.Telemetry{}, route, resources...)
	return r
}

// openGateway gives the gateway its one port, whose one chain is given, and waits until it is open.
func (r *rig) openGateway(c *plan.Chain, told plan.Telemetry, route *plan.Route, resources ...plan.Resource) {
	r.t.Helper()
	port := freePort(r.t)
	r.addr = fmt.Sprintf("127.0.0.1:%d", port)
	l := &plan.Listener{Name: fmt.Sprintf("gateway|%d", port), Direction: plan.Gateway, Bind: netip.MustParseAddrPort(r.addr), Telemetry: told}
	if route != nil {
		route.Name, c.HTTP.Route = l.Name, l.Name
		resources = append(resources, route)
	}
	l.Chains = []plan.Chain{*c}
	r.feed(append(resources, l)...)
	r.p.gateways.update([]string{l.Name})
}

func startRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	logs := &lines{}
	cfg := Config{Role: RoleGateway, Name: "gw", Namespace: "default", ServiceAccount: "gw", TrustDomain: "cluster.local", Loops: 1, Logger: slog.New(slog.NewTextHandler(logs, nil))}
	for _, f := range change {
		f(&cfg)
	}
	p := &Proxy{cfg: cfg, started: time.Now(), ready: make(chan struct{}), drainedAll: make(chan struct{}), metrics: metrics.New(metrics.Config{}), holder: identity.NewHolder(nil)}
	p.tls.holder = p.holder
	p.table = table.New(table.Config{Subscribe: func(plan.Kind, ...string) {}, Unsubscribe: func(plan.Kind, ...string) {}, TrustDomain: "cluster.local"})
	p.self = newSelf(&p.cfg)
	p.logs.init(cfg.Logger)
	p.spans = newSpans(p.logs.loops)
	p.unknown = p.table.Unknown()
	p.passthrough = p.unknown.Chains[0].TCP.Choose(0)
	p.gateways.p = p
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	p.logs.start(ctx, &group)
	p.spans.start(ctx, &group)
	p.startHosts(ctx, &group)
	for range cfg.Loops {
		w, err := p.newWorker()
		if err != nil {
			t.Fatal(err)
		}
		p.workers = append(p.workers, w)
		group.Go(func() {
			if err := w.loop.Run(ctx); err != nil {
				t.Errorf("event loop: %v", err)
			}
		})
	}
	r := &rig{t: t, p: p, logs: logs, stop: sync.OnceFunc(func() {
		cancel()
		group.Wait()
	})}
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Log(logs)
		}
	})
	p.table.WatchListeners(func([]string) {})
	return r
}

// feed brings resources into the table.
func (r *rig) feed(resources ...plan.Resource) {
	r.t.Helper()
	for _, res := range resources {
		if res.ResourceKind() == plan.KindListener {
			if refused := r.p.table.Update(plan.KindListener, []plan.Resource{res}, nil); refused != nil {
				r.t.Fatal(refused)
			}
		}
	}
	for range 3 { // what a listener or route refers to is asked for when it arrives
		for _, res := range resources {
			if refused := r.p.table.Update(res.ResourceKind(), []plan.Resource{res}, nil); refused != nil {
				r.t.Fatal(refused)
			}
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// cluster makes a cluster with the addresses of servers.
func cluster(name string, servers ...*httptest.Server) []plan.Resource {
	eps := &plan.Endpoints{Name: name}
	for i, s := range servers {
		eps.Endpoints = append(eps.Endpoints, plan.Endpoint{
			Address:  netip.MustParseAddrPort(s.Listener.Addr().String()),
			Workload: plan.Workload{Name: fmt.Sprintf("%s-%d", name, i), Version: fmt.Sprintf("v%d", i+1)},
		})
	}
	return []plan.Resource{&plan.Cluster{Name: name, Protocol: plan.ProtocolHTTP, Service: plan.ServiceName{Host: name, Name: name}}, eps}
}

// to is a route that sends everything to one cluster.
func to(name string, change ...func(*plan.Rule)) *plan.Route {
	rule := plan.Rule{Name: "r", Clusters: []plan.WeightedCluster{{Cluster: name}}}
	for _, f := range change {
		f(&rule)
	}
	return &plan.Route{Hosts: []plan.VirtualHost{{Name: "any", Domains: []string{"*"}, Rules: []plan.Rule{rule}}}}
}

func backend(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func (r *rig) get(path string, header ...string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, "http://"+r.addr+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.do(req, header...)
}

func (r *rig) do(req *http.Request, header ...string) (*http.Response, string) {
	r.t.Helper()
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := webClient(r.t).Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res, string(body)
}

func webClient(t *testing.T) *http.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
