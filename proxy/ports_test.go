package proxy

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// TestPortTriedAgain: a gateway's port that somebody else has is opened as soon as it is free, without any new plan;
// until then the status says why it is not open. One line tells of each change.
func TestPortTriedAgain(t *testing.T) {
	r := startRig(t, func(c *Config) { c.Loops = 2 })
	t.Cleanup(func() { // before the proxy ends
		r.p.gateways.mu.Lock()
		defer r.p.gateways.mu.Unlock()
		r.p.gateways.ended = true
	})
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	r.addr = held.Addr().String()
	const name = "gateway|80"
	route := to("c")
	route.Name = name
	s := backend(t, func(http.ResponseWriter, *http.Request) {})
	files := openFiles(t)
	r.feed(append(cluster("c", s), route, &plan.Listener{
		Name: name, Direction: plan.Gateway, Bind: netip.MustParseAddrPort(r.addr),
		Chains: []plan.Chain{{Name: "http", Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{Route: name}}},
	})...)
	for range 3 { // what changes elsewhere in the plan adds no lines
		r.p.gateways.update([]string{name})
	}
	var got Status
	if err := json.Unmarshal(ask(t, r.p.adminTCP(), "GET", "/status", "localhost").Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Ports) != 1 || got.Ports[0].Open || !strings.Contains(got.Ports[0].Cause, "ss -ltnp") || got.Ports[0].Retry.IsZero() {
		t.Errorf("status %+v; want the cause and what to do", got.Ports)
	}
	if page := ask(t, r.p.adminTCP(), "GET", "/", "localhost").Body.String(); !strings.Contains(page, r.addr+" not open") {
		t.Errorf("the page says nothing of the port: %s", page)
	}
	if n := openFiles(t); n > files {
		t.Errorf("%d descriptors are left of the attempts", n-files)
	}
	_ = held.Close()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); ; { // not on the loop, for which an attempt waits
		if s := r.p.gateways.status(); len(s) == 1 && s[0].Open {
			break
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the port is free and not open")
		}
	}
	if res, _ := r.get("/"); res.StatusCode != 200 {
		t.Error(res.Status)
	}
	if a, b := strings.Count(r.logs.String(), "port is not open"), strings.Count(r.logs.String(), "gateway port open"); a != 1 || b != 1 {
		t.Errorf("%d lines of the failure and %d of the opening, want one each: %s", a, b, r.logs)
	}
}

// TestPortLeavesThePlan: what is not in the plan any more is not tried again.
func TestPortLeavesThePlan(t *testing.T) {
	r := startRig(t)
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	const name = "gateway|80"
	r.feed(&plan.Listener{
		Name: name, Direction: plan.Gateway, Bind: netip.MustParseAddrPort(held.Addr().String()),
		Chains: []plan.Chain{{Name: "tcp", TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: plan.ClusterBlackHole}}}}},
	})
	r.p.gateways.update([]string{name})
	waits := func() bool {
		r.p.gateways.mu.Lock()
		defer r.p.gateways.mu.Unlock()
		return r.p.gateways.timer != nil
	}
	if !waits() || len(r.p.gateways.status()) != 1 {
		t.Fatal("the port is not tried again")
	}
	r.p.gateways.update(nil)
	if waits() || len(r.p.gateways.status()) != 0 {
		t.Errorf("the port is still there: %+v", r.p.gateways.status())
	}
}

func TestPortBackoff(t *testing.T) {
	last := portBackoff(0)
	if last != portRetry {
		t.Errorf("%s, want %s", last, portRetry)
	}
	for n := 1; n < 100; n++ {
		d := portBackoff(n)
		if d < last || d > portRetryMax || d > 2*last {
			t.Errorf("%s after %s", d, last)
		}
		last = d
	}
	if last != portRetryMax {
		t.Errorf("%s in the end, want %s", last, portRetryMax)
	}
}
