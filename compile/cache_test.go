package compile

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// askers differ in every property, one at a time.
var askers = []Asker{
	{Role: Sidecar, Namespace: "n0", Workload: "w0", Labels: mesh.Labels{"app": "a0"}, Locality: "eu/a"},
	{Role: Sidecar, Namespace: "n0", Workload: "w1", Labels: mesh.Labels{"app": "a0"}, Locality: "eu/a"},
	{Role: Sidecar, Namespace: "n0", Workload: "w0", Labels: mesh.Labels{"app": "a1"}, Locality: "eu/a"},
	{Role: Sidecar, Namespace: "n0", Workload: "w0", Labels: mesh.Labels{"app": "a0"}, Locality: "us/b"},
	{Role: Sidecar, Namespace: "n1", Workload: "w0", Labels: mesh.Labels{"app": "a0"}, Locality: "eu/a"},
	{Role: Gateway, Namespace: "n0", Workload: "w0", Labels: mesh.Labels{"app": "a0"}},
	{Role: GRPC, Namespace: "n0", Workload: "w0", Labels: mesh.Labels{"app": "a0"}},
}

// questions are all that may be asked in the world of invent.
func questions(c *Cache) []Key {
	var out []Key
	for _, a := range askers {
		add := func(kind plan.Kind, names ...string) {
			for _, n := range names {
				out = append(out, Key{c.ScopeOf(a), kind, n})
			}
		}
		add(plan.KindListener, "", "inbound", "gateway|80", "gateway|81", "10.9.0.0:80", "10.9.0.1:81", "10.0.0.1:80", "9.9.9.9:80", "s1:80")
		add(plan.KindRoute, "gateway|80", "gateway|81|n0/o0/0", "s0:80", "s1.n1:81", "10.9.0.0:80", "x.com:80")
		add(plan.KindCluster, "", "inbound|80||", "PassthroughCluster")
		add(plan.KindSecret, "kubernetes://n0/o0")
		add(plan.KindName, "s0", "s1.n0")
		for n := range 2 {
			for _, subset := range []string{"", "v0"} {
				name := clusterName(80, subset, hostOf(n, 0))
				add(plan.KindCluster, name)
				add(plan.KindEndpoints, name)
			}
		}
	}
	return out
}

func hostOf(n, ns int) string { return fmt.Sprintf("s%d.n%d.svc.cluster.local", n, ns) }

func (c *Cache) answer(k Key) any {
	if k.Name == "" {
		return c.Names(k.Scope, k.Kind)
	}
	return c.Get(k)
}

// scratch answers without a cache.
func scratch(s *mesh.Snapshot, k Key) any {
	who, _ := parseScope(k.Scope)
	if k.Name == "" {
		return Names(mesh.NewView(s), &who, k.Kind)
	}
	res, _ := Compile(mesh.NewView(s), &who, k.Kind, k.Name)
	return res
}

// TestCache makes random changes and demands, after each, that every answer is the one compiled from scratch, that the
// keys told to have changed are exactly those whose answers differ, and that the others are the same values as before.
func TestCache(t *testing.T) {
	const rounds, edits = 6, 40
	for seed := range uint64(rounds) {
		random := rand.New(rand.NewPCG(seed, 11))
		c, b := NewCache(), mesh.NewBuilder()
		all := questions(c)
		held := map[Key]any{}
		for n := range edits {
			for range 40 {
				k := all[random.IntN(len(all))]
				if random.IntN(6) == 0 {
					c.Forget(k)
					delete(held, k)
				} else {
					held[k] = c.answer(k)
				}
			}
			var changes []mesh.Change
			for m := range 1 + random.IntN(3) {
				o := invent(random, 10*n+m)
				if random.IntN(3) == 0 {
					changes = append(changes, mesh.Change{Ref: o.Ref()})
				} else {
					changes = append(changes, mesh.Change{Ref: o.Ref(), Object: o})
				}
			}
			snap, touched := b.Apply(changes)
			changed := c.Set(snap, touched)
			var want []Key
			known := map[any]bool{} // values, one of which an unchanged answer is: its own, or that of a sharer that is equal
			for k, before := range held {
				if k.Name != "" {
					known[before] = true
				}
			}
			for k, before := range held {
				now := c.answer(k)
				if fresh := scratch(snap, k); !reflect.DeepEqual(fresh, now) {
					t.Fatalf("seed %d, edit %d, %v: from scratch\n%v\ncached\n%v", seed, n, k, fresh, now)
				}
				if !reflect.DeepEqual(before, now) {
					want = append(want, k)
				} else if k.Name != "" && !known[now] {
					t.Fatalf("seed %d, edit %d, %v: an answer that has not changed is another value", seed, n, k)
				}
				held[k] = now
			}
			if diff := cmp.Diff(len(want), len(changed)); diff != "" || slices.ContainsFunc(want, func(k Key) bool { return !slices.Contains(changed, k) }) {
				t.Fatalf("seed %d, edit %d: changed\n%v, told\n%v", seed, n, want, changed)
			}
			if got := c.Keys(); len(got) != len(held) {
				t.Fatalf("seed %d, edit %d: %d keys are held, want %d", seed, n, len(got), len(held))
			}
		}
		for k := range held {
			c.Forget(k)
		}
		if len(c.held)+len(c.shared)+len(c.deps)+len(c.scopes) > 0 {
			t.Errorf("seed %d: something stays behind: %d held, %d shared, %d deps, %d scopes", seed, len(c.held), len(c.shared), len(c.deps), len(c.scopes))
		}
	}
}

// invent makes an object of a small world in which everything meets.
func invent(r *rand.Rand, line int) mesh.Object {
	ns, name := fmt.Sprint("n", r.IntN(2)), fmt.Sprint("o", r.IntN(2))
	from := mesh.Origin{Kind: "Test", Namespace: ns, Name: name, Line: line, Created: int64(r.IntN(2))}
	var see mesh.Visibility
	if r.IntN(4) == 0 {
		see.Namespaces = []string{"n0"}
	}
	var selector mesh.Labels
	if r.IntN(2) == 0 {
		selector = mesh.Labels{"app": fmt.Sprint("a", r.IntN(2))}
	}
	switch r.IntN(14) {
	case 0, 1, 2:
		n, m := r.IntN(2), r.IntN(2)
		s := &mesh.Service{
			Origin: from, Namespace: fmt.Sprint("n", m), Host: hostOf(n, m), ShortName: fmt.Sprint("s", n), Visibility: see, Selector: selector,
			Ports: []mesh.Port{{Number: 80, Name: "p", Protocol: mesh.Protocol(r.IntN(8))}, {Number: 81, Protocol: mesh.HTTP}},
		}
		if r.IntN(4) == 0 {
			s.Headless = true
		} else {
			s.Addresses = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.9.0.%d/%d", n, 31+r.IntN(2))).Masked()}
		}
		return s
	case 3, 4, 5:
		return &mesh.Workload{
			Origin: from, Namespace: ns, ID: fmt.Sprint("w", r.IntN(3)), Labels: mesh.Labels{"app": fmt.Sprint("a", r.IntN(2)), "version": fmt.Sprint("v", r.IntN(2))},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(3))})}, ServiceAccount: fmt.Sprint("sa", r.IntN(2)), MTLS: true,
			Health: mesh.Health(r.IntN(2)),
		}
	case 6, 7:
		rule := mesh.HTTPRule{Line: line, Routes: []mesh.Destination{{Host: hostOf(r.IntN(3), 0), Subset: []string{"", "v0"}[r.IntN(2)]}}}
		if selector != nil {
			rule.Matches = []mesh.HTTPMatch{{SourceLabels: selector}, {Port: 81}}
		}
		if r.IntN(5) == 0 {
			rule.Routes, rule.Delegate = nil, "n0/o1"
		}
		return &mesh.Route{
			Origin: from, Namespace: ns, Name: name, Hosts: []string{[]string{hostOf(0, 0), "*.n0.svc.cluster.local", "x.com"}[r.IntN(3)]}, Visibility: see,
			Gateways: []string{mesh.GatewayMesh, "n0/o0"}[r.IntN(2):], HTTP: []mesh.HTTPRule{rule},
			TCP: []mesh.TCPRule{{Routes: []mesh.Destination{{Host: hostOf(0, 0)}}}},
		}
	case 8:
		t := &mesh.Traffic{
			Origin: from, Namespace: ns, Name: name, Host: []string{hostOf(0, 0), "*.cluster.local"}[r.IntN(2)], Visibility: see, Selector: selector,
			Subsets: []mesh.Subset{{Name: "v0", Labels: mesh.Labels{"version": "v0"}}},
		}
		if r.IntN(2) == 0 {
			t.Policy.Outlier = &mesh.Outlier{}
		}
		return t
	case 9:
		return &mesh.Gateway{
			Origin: from, Namespace: ns, Name: name, Selector: selector,
			Servers: []mesh.Server{{Port: 80, Protocol: mesh.HTTP, Hosts: []mesh.GatewayHost{{Namespace: "*", Host: "*"}}}, {
				Port: 81, Protocol: mesh.HTTPS, Hosts: []mesh.GatewayHost{{Namespace: "*", Host: "x.com"}}, TLS: &mesh.ServerTLS{Mode: "SIMPLE", Credential: "o0"},
			}},
		}
	case 10:
		return &mesh.Authn{Origin: from, Namespace: ns, Name: name, Selector: selector, Mode: mesh.MTLSMode(r.IntN(4)), Ports: map[uint16]mesh.MTLSMode{80: mesh.MTLSDisable}}
	case 11:
		return &mesh.Authz{Origin: from, Namespace: ns, Name: name, Selector: selector, Action: "DENY"}
	case 12:
		if r.IntN(2) == 0 {
			return &mesh.Secret{Origin: from, Namespace: ns, Name: []string{"o0", "o0-cacert"}[r.IntN(2)], Chain: []byte{byte(line)}, Roots: []byte{byte(line)}[r.IntN(2):]}
		}
		off := true
		return &mesh.Telemetry{Origin: from, Namespace: ns, Name: name, Selector: selector, Metrics: []mesh.MetricsRule{{Disabled: &off}}}
	default:
		c := mesh.DefaultConfig()
		c.Origin, c.RegistryOnly, c.RootNamespace = from, r.IntN(2) == 0, ns
		return c
	}
}

// TestSharing: askers share what does not depend on that in which they differ, and no longer than that.
func TestSharing(t *testing.T) {
	c, b := NewCache(), mesh.NewBuilder()
	s := &mesh.Service{Namespace: "n0", Host: hostOf(0, 0), Ports: []mesh.Port{{Number: 80, Protocol: mesh.HTTP}}, Selector: mesh.Labels{"app": "x"}}
	snap, touched := b.Apply([]mesh.Change{{Ref: s.Ref(), Object: s}})
	c.Set(snap, touched)
	route := func(a Asker) Key { return Key{c.ScopeOf(a), plan.KindRoute, hostOf(0, 0) + ":80"} }
	same := func(x, y int) bool { return c.Get(route(askers[x])) == c.Get(route(askers[y])) }
	if !same(0, 1) || !same(0, 2) || !same(0, 3) || same(0, 4) {
		t.Error("a namespace does not share what is the same for all of it")
	}
	if got := c.Stats(); got != (Stats{Compiled: 2}) {
		t.Errorf("worked %+v, want 2 compiled", got)
	}
	r := &mesh.Route{
		Namespace: "n0", Name: "r", Hosts: []string{hostOf(0, 0)}, Gateways: []string{mesh.GatewayMesh},
		HTTP: []mesh.HTTPRule{{Matches: []mesh.HTTPMatch{{SourceLabels: mesh.Labels{"app": "a0"}}}, Routes: []mesh.Destination{{Host: hostOf(0, 0)}}}},
	}
	snap, touched = b.Apply([]mesh.Change{{Ref: r.Ref(), Object: r}})
	if keys := c.Set(snap, touched); len(keys) != 5 {
		t.Errorf("%d keys have changed, want 5", len(keys))
	}
	if !same(0, 1) || !same(0, 3) || same(0, 2) {
		t.Error("what depends on labels is not shared by the same labels, and by nobody else")
	}
	if got := c.Stats(); got != (Stats{Compiled: 5, Changed: 3}) {
		t.Errorf("worked %+v, want 5 compiled, 3 changed", got)
	}
	snap, touched = b.Apply([]mesh.Change{{Ref: r.Ref()}})
	c.Set(snap, touched)
	if !same(0, 2) {
		t.Error("what depends on labels no longer is not shared again")
	}
}

// TestScope: a scope tells all of an asker, whatever its names hold.
func TestScope(t *testing.T) {
	c := NewCache()
	for _, a := range append(slices.Clone(askers), Asker{
		Role: GRPC, Namespace: "a/b", Workload: "*", Labels: mesh.Labels{"a,b": "c=d/e", "": "", "*": "é%"}, Locality: "r/z/*",
	}, Asker{Labels: mesh.Labels{}}) {
		got, ok := parseScope(c.ScopeOf(a))
		if diff := cmp.Diff(a, got); !ok || diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.ScopeOf(a), diff)
		}
	}
	for _, s := range []string{"", "sidecar", "nobody/n///", "sidecar/%zz///", "sidecar/n/a=%zz//", "sidecar/n////"} {
		if _, ok := parseScope(s); ok {
			t.Errorf("%q is a scope", s)
		}
		if c.Get(Key{s, plan.KindCluster, plan.ClusterPassthrough}) != nil || c.Names(s, plan.KindCluster) != nil || len(c.Keys()) > 0 {
			t.Errorf("%q gets an answer", s)
		}
	}
	c.Forget(Key{"nobody", plan.KindName, "x"}) // has no effect
}

// TestConcurrent reads while the mesh changes.
func TestConcurrent(t *testing.T) {
	c, b := NewCache(), mesh.NewBuilder()
	all := questions(c)
	var group sync.WaitGroup
	done := make(chan struct{})
	for i := range uint64(3) {
		group.Go(func() {
			random := rand.New(rand.NewPCG(i, 3))
			for {
				select {
				case <-done:
					return
				default:
				}
				k := all[random.IntN(len(all))]
				if res, ok := c.answer(k).(plan.Resource); ok && res != nil && res.ResourceName() != k.Name {
					t.Errorf("%v is answered with %s", k, res.ResourceName())
				}
				if random.IntN(9) == 0 {
					c.Forget(k)
				}
				c.Stats()
			}
		})
	}
	random := rand.New(rand.NewPCG(5, 5))
	for n := range 100 {
		o := invent(random, n)
		snap, touched := b.Apply([]mesh.Change{{Ref: o.Ref(), Object: o}})
		c.Set(snap, touched)
		if c.Snapshot() != snap {
			t.Error("the snapshot is not the one that was set")
		}
	}
	close(done)
	group.Wait()
	for k := range maps.Keys(c.held) {
		if fresh, now := scratch(c.Snapshot(), k), c.answer(k); !reflect.DeepEqual(fresh, now) {
			t.Errorf("%v: from scratch\n%v\ncached\n%v", k, fresh, now)
		}
	}
}
