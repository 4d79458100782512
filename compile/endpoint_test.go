package compile

import (
	"net/netip"
	"slices"
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

// TestPodEndpoints: Kubernetes' rules for pods. What is not ready is not called, unless the service says so; the name of
// a target port is that of a container's, and a pod without it does not serve the port.
func TestPodEndpoints(t *testing.T) {
	for _, tt := range []struct {
		name     string
		notReady bool
		target   string
		health   mesh.Health
		want     []string
	}{
		{"ready", false, "", mesh.Healthy, []string{"10.0.0.1:80 healthy"}},
		{"not ready", false, "", mesh.Unhealthy, nil},
		{"not ready, published", true, "", mesh.Unhealthy, []string{"10.0.0.1:80 healthy"}},
		{"going", false, "", mesh.Draining, []string{"10.0.0.1:80 draining"}},
		{"named", false, "web", mesh.Healthy, []string{"10.0.0.1:9080 healthy"}},
		{"of another name", false, "admin", mesh.Healthy, nil},
	} {
		s := &mesh.Service{
			Namespace: "n", Host: "s.n.svc.cluster.local", Selector: mesh.Labels{"app": "s"}, NotReady: tt.notReady, Headless: true,
			Ports: []mesh.Port{{Name: "http", Number: 80, TargetName: tt.target}},
		}
		// A container's port that has the name of the service's port is not what the service leads to.
		w := &mesh.Workload{
			Origin: mesh.Origin{Kind: mesh.OriginPod}, Namespace: "n", ID: "w", Labels: mesh.Labels{"app": "s"}, Health: tt.health,
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Targets: map[string]uint16{"web": 9080, "http": 7},
		}
		snap, _ := mesh.NewBuilder().Apply([]mesh.Change{{Ref: s.Ref(), Object: s}, {Ref: w.Ref(), Object: w}})
		who := &Asker{Namespace: "n"}
		res, _ := Compile(mesh.NewView(snap), who, plan.KindEndpoints, "outbound|80||s.n.svc.cluster.local")
		var got []string
		for _, e := range res.(*plan.Endpoints).Endpoints {
			got = append(got, e.Address.String()+" "+e.Health.String())
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		res, _ = Compile(mesh.NewView(snap), who, plan.KindName, "s")
		if named := len(res.(*plan.Name).Addresses) > 0; named != (tt.health == mesh.Healthy || tt.notReady) {
			t.Errorf("%s: the name resolves: %t", tt.name, named)
		}
	}
}

// TestListed: what somebody else lists for a Service is called beside what the Service selects, once, and is nobody
// else's, whatever its labels are.
func TestListed(t *testing.T) {
	service := func(name string, selector mesh.Labels) *mesh.Service {
		return &mesh.Service{
			Namespace: "n", Host: name + ".n.svc.cluster.local", Selector: selector, Listed: mesh.Labels{"of": name},
			Ports: []mesh.Port{{Name: "http", Number: 80}},
		}
	}
	workload := func(id, addr string, listed bool, port uint16, labels mesh.Labels) *mesh.Workload {
		return &mesh.Workload{
			Namespace: "n", ID: id, Labels: labels, Listed: listed, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Ports: map[string]uint16{"http": port},
		}
	}
	app := mesh.Labels{"app": "s"}
	b := mesh.NewBuilder()
	var changes []mesh.Change
	for _, s := range []*mesh.Service{service("s", app), service("twin", app), service("legacy", nil), service("odd", mesh.Labels{"of": "odd"})} {
		changes = append(changes, mesh.Change{Ref: s.Ref(), Object: s})
	}
	for _, w := range []*mesh.Workload{
		workload("pod", "10.0.0.1", false, 8080, app),
		workload("s/1", "10.0.0.1", true, 8080, mesh.Labels{"app": "s", "of": "s"}),
		workload("s/1b", "10.0.0.1", true, 9090, mesh.Labels{"app": "s", "of": "s"}),
		workload("legacy/1", "10.0.0.1", true, 8080, mesh.Labels{"app": "s", "of": "legacy"}),
		workload("odd/1", "10.0.0.3", true, 80, mesh.Labels{"of": "odd"}),
		workload("posing", "10.0.0.4", false, 80, mesh.Labels{"of": "legacy"}),
	} {
		changes = append(changes, mesh.Change{Ref: w.Ref(), Object: w})
	}
	b.Apply(changes)
	w := workload("s/2", "10.0.0.2", true, 80, mesh.Labels{"of": "s"})
	snap, touched := b.Apply([]mesh.Change{{Ref: w.Ref(), Object: w}})
	if !slices.Contains(touched, mesh.Dep{Index: mesh.WorkloadLabel, Key: "n|of=s"}) {
		t.Errorf("the service is not told: %v", touched)
	}
	for name, want := range map[string][]string{
		"s": {"10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:80"}, "twin": {"10.0.0.1:8080"}, "legacy": {"10.0.0.1:8080"}, "odd": {"10.0.0.3:80"},
	} {
		res, _ := Compile(mesh.NewView(snap), &Asker{Namespace: "n"}, plan.KindEndpoints, "outbound|80||"+name+".n.svc.cluster.local")
		var got []string
		for _, e := range res.(*plan.Endpoints).Endpoints {
			got = append(got, e.Address.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
