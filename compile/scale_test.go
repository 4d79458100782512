package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// size is that of a world: each service has ten workloads, each proxy uses twenty services.
type size struct{ namespaces, services, proxies int } // services and proxies in each namespace

var (
	// full is the size of the targets: 10,000 services, 100,000 endpoints, 1,000 proxies.
	full = size{100, 100, 10}
	// tenth has a tenth of the services, endpoints and proxies.
	tenth = size{10, 100, 10}
)

const (
	replicas = 10
	usedEach = 20
)

func largeHost(ns, n int) string { return fmt.Sprintf("s%d.n%d.svc.cluster.local", n, ns) }

func largeVIP(ns, n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 200, byte(ns), byte(n)}) }

func largeWorkload(ns, n, replica int) *mesh.Workload {
	app := fmt.Sprint("s", n)
	return &mesh.Workload{
		Namespace: fmt.Sprint("n", ns), ID: fmt.Sprintf("%s-%d", app, replica), ServiceAccount: app, MTLS: true, Locality: "eu/a",
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(ns), byte(n), byte(replica)})}, Labels: mesh.Labels{"app": app, "version": "v1"},
		WorkloadName: app, CanonicalName: app, CanonicalRevision: "v1",
	}
}

// large is a mesh of a size and a cache that holds what its proxies use.
func large(z size) (*mesh.Builder, *Cache) {
	b, c := mesh.NewBuilder(), NewCache()
	var changes []mesh.Change
	for ns := range z.namespaces {
		for n := range z.services {
			s := &mesh.Service{
				Host: largeHost(ns, n), ShortName: fmt.Sprint("s", n), Namespace: fmt.Sprint("n", ns), Selector: mesh.Labels{"app": fmt.Sprint("s", n)},
				Addresses: []netip.Prefix{netip.PrefixFrom(largeVIP(ns, n), 32)}, Ports: []mesh.Port{{Name: "http", Number: 80, Protocol: mesh.HTTP}},
			}
			changes = append(changes, mesh.Change{Ref: s.Ref(), Object: s})
			for replica := range replicas {
				w := largeWorkload(ns, n, replica)
				changes = append(changes, mesh.Change{Ref: w.Ref(), Object: w})
			}
		}
	}
	snap, touched := b.Apply(changes)
	c.Set(snap, touched)
	for p := range z.namespaces * z.proxies {
		ns, n := p%z.namespaces, p/z.namespaces
		scope := c.ScopeOf(Asker{Role: Sidecar, Namespace: fmt.Sprint("n", ns), Workload: fmt.Sprintf("s%d-0", n), Labels: mesh.Labels{"app": fmt.Sprint("s", n)}, Locality: "eu/a"})
		c.Get(Key{scope, plan.KindListener, plan.ListenerInbound})
		for i := range usedEach {
			toNS, to := (ns+i%2)%z.namespaces, n+i // of its own namespace and of the next
			host := largeHost(toNS, to)
			c.Get(Key{scope, plan.KindListener, netip.AddrPortFrom(largeVIP(toNS, to), 80).String()})
			c.Get(Key{scope, plan.KindRoute, host + ":80"})
			c.Get(Key{scope, plan.KindCluster, clusterName(80, "", host)})
			c.Get(Key{scope, plan.KindEndpoints, clusterName(80, "", host)})
		}
	}
	return b, c
}

// moved is a workload of service s4 of n7 at another address.
func moved(to byte) mesh.Change {
	w := largeWorkload(7, 4, 1)
	w.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 250, 0, to})}
	return mesh.Change{Ref: w.Ref(), Object: w}
}

// TestEndpointChange moves one of 10,000 endpoints: the endpoints of its service are compiled anew, once for each
// namespace that uses it, and nothing else is.
func TestEndpointChange(t *testing.T) {
	b, c := large(tenth)
	name := clusterName(80, "", largeHost(7, 4))
	var want []Key
	scopes := map[string]bool{}
	for _, k := range c.Keys() {
		if k.Kind == plan.KindEndpoints && k.Name == name {
			want = append(want, k)
			who, _ := parseScope(k.Scope)
			scopes[who.Namespace] = true
		}
	}
	slices.SortFunc(want, compareKeys)
	if len(want) < 2 || len(scopes) != 2 {
		t.Fatalf("%d proxies in %d namespaces use the service", len(want), len(scopes))
	}
	steps := []struct {
		what     string
		change   mesh.Change
		compiled uint64
		changed  []Key
	}{
		{"a move", moved(1), 2, want},
		{"the same again", moved(1), 2, nil},
		{"another replica", func() mesh.Change { w := largeWorkload(7, 4, replicas); return mesh.Change{Ref: w.Ref(), Object: w} }(), 2, want},
		{"one replica less", mesh.Change{Ref: largeWorkload(7, 4, replicas).Ref()}, 2, want},
		// Nobody in the cache uses this service.
		{"elsewhere", func() mesh.Change {
			w := largeWorkload(7, 99, 0)
			w.Health = mesh.Draining
			return mesh.Change{Ref: w.Ref(), Object: w}
		}(), 0, nil},
	}
	for _, s := range steps {
		before := c.Stats()
		snap, touched := b.Apply([]mesh.Change{s.change})
		changed := c.Set(snap, touched)
		if diff := cmp.Diff(s.changed, changed); diff != "" {
			t.Errorf("%s: changed (-want +got):\n%s", s.what, diff)
		}
		if got := c.Stats().Compiled - before.Compiled; got != s.compiled {
			t.Errorf("%s: %d resources are compiled, want %d", s.what, got, s.compiled)
		}
	}
	// A route for one service touches the routes and listeners of that service alone.
	r := &mesh.Route{
		Namespace: "n7", Name: "r", Hosts: []string{largeHost(7, 4)}, Gateways: []string{mesh.GatewayMesh},
		HTTP: []mesh.HTTPRule{{Routes: []mesh.Destination{{Host: largeHost(7, 5)}}}},
	}
	before := c.Stats()
	snap, touched := b.Apply([]mesh.Change{{Ref: r.Ref(), Object: r}})
	for _, k := range c.Set(snap, touched) {
		if k.Kind != plan.KindRoute || k.Name != largeHost(7, 4)+":80" {
			t.Errorf("a route for one service changes %v", k)
		}
	}
	if got := c.Stats(); got.Compiled-before.Compiled != 2 || got.Changed-before.Changed != 2 {
		t.Errorf("a route for one service: %d compiled, %d changed, want 2 and 2", got.Compiled-before.Compiled, got.Changed-before.Changed)
	}
}

// BenchmarkEndpointChange moves one endpoint and brings it to the keys of those who use it; the size of the mesh
// hardly counts.
func BenchmarkEndpointChange(b *testing.B) {
	for _, z := range []size{tenth, full} {
		b.Run(fmt.Sprintf("endpoints=%d", z.namespaces*z.services*replicas), func(b *testing.B) {
			builder, c := large(z)
			before := c.Stats()
			keys, n := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				snap, touched := builder.Apply([]mesh.Change{moved(byte(n))})
				keys += len(c.Set(snap, touched))
				n++
			}
			b.ReportMetric(float64(c.Stats().Compiled-before.Compiled)/float64(n), "compiled/op")
			b.ReportMetric(float64(keys)/float64(n), "keys/op")
		})
	}
}

// BenchmarkLoad reads the full mesh at once and compiles what its proxies use.
func BenchmarkLoad(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_, c := large(full)
		b.ReportMetric(float64(c.Stats().Compiled), "compiled/op")
	}
}
