package compile

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// TestHealth: endpoints that may get no traffic are told as such, and have no name.
func TestHealth(t *testing.T) {
	s := &mesh.Service{Namespace: "n", Host: "s.n.svc.cluster.local", Headless: true, Selector: mesh.Labels{"app": "s"}, Ports: []mesh.Port{{Number: 80}}}
	changes := []mesh.Change{{Ref: s.Ref(), Object: s}}
	for i, h := range []mesh.Health{mesh.Unhealthy, mesh.Draining, mesh.Healthy} {
		w := &mesh.Workload{
			Namespace: "n", ID: string(rune('a' + i)), Labels: mesh.Labels{"app": "s"}, Health: h, MTLS: i > 0,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})},
		}
		changes = append(changes, mesh.Change{Ref: w.Ref(), Object: w})
	}
	snap, _ := mesh.NewBuilder().Apply(changes)
	who := &Asker{Namespace: "n"}
	res, _ := Compile(mesh.NewView(snap), who, plan.KindEndpoints, "outbound|80||s.n.svc.cluster.local")
	var got []plan.Health
	for _, e := range res.(*plan.Endpoints).Endpoints {
		got = append(got, e.Health)
	}
	if diff := cmp.Diff([]plan.Health{plan.Unhealthy, plan.Draining, plan.Healthy}, got); diff != "" {
		t.Errorf("health (-want +got):\n%s", diff)
	}
	res, _ = Compile(mesh.NewView(snap), who, plan.KindName, "s")
	if got := res.(*plan.Name).Addresses; len(got) != 1 || got[0] != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("the name resolves to %v", got)
	}
	// One workload without a proxy: connections to workloads' own addresses are plaintext.
	res, _ = Compile(mesh.NewView(snap), who, plan.KindCluster, "outbound|80||s.n.svc.cluster.local")
	if got := res.(*plan.Cluster).TLS.Mode; got != plan.ClientTLSNone {
		t.Errorf("connections are %s, want plaintext", got)
	}
}
