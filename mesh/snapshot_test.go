package mesh

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ref is what a test compares objects by: the object's name and its line, which tells versions of it apart.
func label(o Object) string { return fmt.Sprintf("%s@%d", o.Ref(), o.From().Line) }

func labels[T Object](list []T) []string {
	out := []string{}
	for _, o := range list {
		out = append(out, label(o))
	}
	return out
}

// query is one question to a View; the answer is comparable text.
type query struct {
	name string
	ask  func(*View) []string
}

func one[T Object](o T, none bool) []string {
	if none {
		return nil
	}
	return []string{label(o)}
}

// queries asks every method of a View about everything in the small world of random.
func queries() []query {
	var out []query
	add := func(name string, ask func(*View) []string) { out = append(out, query{name, ask}) }
	add("config", func(v *View) []string { return one(v.Config(), false) })
	add("gateways", func(v *View) []string { return labels(v.Gateways("", Labels{"app": "a0"})) })
	for n := range 3 {
		host, addr, gateway := hostOf(n), addrOf(n), fmt.Sprintf("n%d/g%d", n%2, n)
		add("traffic "+host, func(v *View) []string { return labels(v.Traffic("n0", "n1", host)) })
		add("gateway routes "+gateway, func(v *View) []string { return labels(v.GatewayRoutes(gateway)) })
		add("workloads at "+addr.String(), func(v *View) []string { return labels(v.WorkloadsAt(addr)) })
		for m := range 2 {
			ns := fmt.Sprintf("n%d", m)
			add("service "+ns+host, func(v *View) []string { s := v.Service(ns, host); return one(s, s == nil) })
			add("members "+ns+host, func(v *View) []string {
				if s := v.Service(ns, host); s != nil {
					return append(labels(v.Workloads(s)), v.Accounts(s)...)
				}
				return nil
			})
			add("accounts "+ns+host, func(v *View) []string {
				if s := v.Service(ns, host); s != nil {
					return v.Accounts(s)
				}
				return nil
			})
			add("vip "+ns+host, func(v *View) []string { s := v.ServiceAt(ns, addr, 80); return one(s, s == nil) })
			add("routes "+ns+host, func(v *View) []string { return labels(v.Routes(ns, GatewayMesh, host)) })
			add("route "+ns+host, func(v *View) []string { r := v.Route(ns, fmt.Sprint("o", n)); return one(r, r == nil) })
			add("secret "+ns+host, func(v *View) []string { s := v.Secret(ns, fmt.Sprint("o", n)); return one(s, s == nil) })
			add("workload "+ns+host, func(v *View) []string { w := v.Workload(ns, fmt.Sprint("o", n)); return one(w, w == nil) })
			add("services of "+ns+host, func(v *View) []string {
				return labels(v.ServicesOf(ns, Labels{"app": fmt.Sprint("a", n), "v": "1"}))
			})
		}
	}
	for m := range 2 {
		ns := fmt.Sprintf("n%d", m)
		add("services "+ns, func(v *View) []string { return labels(v.Services(ns)) })
		add("http "+ns, func(v *View) []string { return []string{fmt.Sprint(v.HTTPPort(ns, 80), v.HTTPPort(ns, 81))} })
		add("authn "+ns, func(v *View) []string { return labels(v.Authn(ns)) })
		add("authz "+ns, func(v *View) []string { return labels(v.Authz(ns)) })
		add("telemetry "+ns, func(v *View) []string { return labels(v.Telemetry(ns)) })
	}
	return out
}

func hostOf(n int) string       { return []string{"a.b.c", "*.b.c", "x.b.c"}[n] }
func addrOf(n int) netip.Addr   { return netip.AddrFrom4([4]byte{10, 0, byte(n % 2), byte(n)}) }
func oneOf(r *rand.Rand) Labels { return Labels{"app": fmt.Sprint("a", r.IntN(3))} }

// invent makes an object of a small world in which names, hosts, labels and addresses often meet. line makes it unique.
func invent(r *rand.Rand, line int) Object {
	ns, name := fmt.Sprint("n", r.IntN(2)), fmt.Sprint("o", r.IntN(3))
	from := Origin{Line: line, Created: int64(r.IntN(2))}
	var see Visibility
	if r.IntN(3) == 0 {
		see.Namespaces = []string{"n0"}
	}
	switch r.IntN(12) {
	case 0, 1, 2:
		s := &Service{
			Origin: from, Namespace: ns, Host: hostOf(r.IntN(3)), Visibility: see,
			Ports:     []Port{{Number: 80, Protocol: Protocol(r.IntN(5))}, {Number: uint16(80 + r.IntN(2))}},
			Addresses: []netip.Prefix{netip.PrefixFrom(addrOf(r.IntN(3)), []int{32, 24, 16}[r.IntN(3)]).Masked()},
		}
		if r.IntN(4) > 0 {
			s.Selector = oneOf(r)
		}
		if r.IntN(4) == 0 {
			s.Selector = Labels{"app": "a0", "v": "1"}
		}
		return s
	case 3, 4, 5:
		w := &Workload{Origin: from, Namespace: ns, ID: name, Labels: oneOf(r), Addresses: []netip.Addr{addrOf(r.IntN(3)), addrOf(r.IntN(3))}}
		if r.IntN(2) == 0 {
			w.Labels["v"] = "1"
		}
		if r.IntN(3) > 0 {
			w.ServiceAccount = fmt.Sprint("sa", r.IntN(2))
		}
		return w
	case 6:
		return &Route{
			Origin: from, Namespace: ns, Name: name, Hosts: []string{hostOf(r.IntN(3)), hostOf(r.IntN(3))}, Visibility: see,
			Gateways: []string{GatewayMesh, fmt.Sprintf("n%d/g%d", r.IntN(2), r.IntN(3))}[r.IntN(2):],
		}
	case 7:
		return &Traffic{Origin: from, Namespace: ns, Name: name, Host: hostOf(r.IntN(3)), Visibility: see}
	case 8:
		return &Gateway{Origin: from, Namespace: ns, Name: name, Selector: oneOf(r)}
	case 9:
		return []Object{
			&Authn{Origin: from, Namespace: ns, Name: name}, &Authz{Origin: from, Namespace: ns, Name: name},
			&Telemetry{Origin: from, Namespace: ns, Name: name},
		}[r.IntN(3)]
	case 10:
		return &Secret{Origin: from, Namespace: ns, Name: name}
	default:
		return &Config{Origin: from}
	}
}

// TestIncremental makes random changes and demands, after each: what the snapshot answers is what one made from
// scratch answers; an answer that differs from the one before had one of its dependencies touched; and the snapshot
// before still answers as it did.
func TestIncremental(t *testing.T) {
	const rounds, edits = 10, 60
	all := queries()
	for seed := range uint64(rounds) {
		random := rand.New(rand.NewPCG(seed, 7))
		b := NewBuilder()
		world := map[Ref]Object{}
		answers, deps := make([][]string, len(all)), make([][]Dep, len(all))
		for i, q := range all {
			v := NewView(b.Snapshot())
			answers[i], deps[i] = q.ask(v), v.Deps()
		}
		for n := range edits {
			var changes []Change
			for m := range 1 + random.IntN(3) {
				o := invent(random, 10*n+m)
				c := Change{Ref: o.Ref(), Object: o}
				if random.IntN(3) == 0 {
					c.Object = nil
				}
				if changes = append(changes, c); c.Object == nil {
					delete(world, c.Ref)
				} else {
					world[c.Ref] = o
				}
			}
			before := b.Snapshot()
			snap, touched := b.Apply(changes)
			fresh := NewBuilder()
			var again []Change
			for ref, o := range world {
				again = append(again, Change{Ref: ref, Object: o})
			}
			scratch, _ := fresh.Apply(again)
			if snap.Len() != len(world) || snap.Version != before.Version+1 {
				t.Fatalf("seed %d: version %d has %d objects, want %d", seed, snap.Version, snap.Len(), len(world))
			}
			for i, q := range all {
				v := NewView(snap)
				got := q.ask(v)
				if diff := cmp.Diff(q.ask(NewView(scratch)), got); diff != "" {
					t.Fatalf("seed %d, edit %d, %s (-from scratch +incremental):\n%s", seed, n, q.name, diff)
				}
				if diff := cmp.Diff(answers[i], q.ask(NewView(before))); diff != "" {
					t.Fatalf("seed %d, edit %d, %s: the snapshot before has changed:\n%s", seed, n, q.name, diff)
				}
				hit := slices.ContainsFunc(deps[i], func(d Dep) bool { return slices.Contains(touched, d) })
				if !slices.Equal(answers[i], got) && !hit {
					t.Fatalf("seed %d, edit %d, %s: %v became %v, but none of %v was touched", seed, n, q.name, answers[i], got, deps[i])
				}
				answers[i], deps[i] = got, v.Deps()
			}
		}
		if len(b.pairs) > 12 || len(b.members) > 2 {
			t.Errorf("seed %d: the builder keeps %d pairs and %d namespaces", seed, len(b.pairs), len(b.members))
		}
	}
}

// TestTouched names exactly what changes touch.
func TestTouched(t *testing.T) {
	service := &Service{Namespace: "n", Host: "s.n", Selector: Labels{"app": "a"}, Ports: []Port{{Number: 80}}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/32")}}
	workload := func(id, addr, account string, labels Labels) *Workload {
		return &Workload{Namespace: "n", ID: id, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Labels: labels, ServiceAccount: account}
	}
	a := Labels{"app": "a", "pod": "x"}
	b := NewBuilder()
	b.Apply([]Change{{service.Ref(), service}})
	for _, c := range []struct {
		what   string
		change *Workload
		gone   bool
		want   []Dep
	}{
		{"the first of its kind", workload("w1", "10.0.0.1", "sa", a), false, []Dep{
			{WorkloadLabel, "n|app=a"}, {WorkloadAccount, "n|app=a"}, {WorkloadAddress, "10.0.0.1"}, {RefName, "workload n/w1"},
		}},
		{"another", workload("w2", "10.0.0.2", "sa", a), false, []Dep{
			{WorkloadLabel, "n|app=a"}, {WorkloadAddress, "10.0.0.2"}, {RefName, "workload n/w2"},
		}},
		{"a move", workload("w2", "10.0.0.3", "sa", a), false, []Dep{
			{WorkloadLabel, "n|app=a"}, {WorkloadAddress, "10.0.0.2"}, {WorkloadAddress, "10.0.0.3"}, {RefName, "workload n/w2"},
		}},
		{"another account", workload("w2", "10.0.0.3", "sb", a), false, []Dep{
			{WorkloadLabel, "n|app=a"}, {WorkloadAccount, "n|app=a"}, {WorkloadAddress, "10.0.0.3"}, {RefName, "workload n/w2"},
		}},
		{"the last of its kind", workload("w2", "10.0.0.3", "sb", a), true, []Dep{
			{WorkloadLabel, "n|app=a"}, {WorkloadAccount, "n|app=a"}, {WorkloadAddress, "10.0.0.3"}, {RefName, "workload n/w2"},
		}},
		{"one that nobody selects", workload("w3", "10.0.0.4", "sb", Labels{"app": "b"}), false, []Dep{
			{WorkloadAddress, "10.0.0.4"}, {RefName, "workload n/w3"},
		}},
		{"one that never was", workload("w4", "10.0.0.5", "", nil), true, []Dep{}},
	} {
		change := Change{Ref: c.change.Ref(), Object: c.change}
		if c.gone {
			change.Object = nil
		}
		_, got := b.Apply([]Change{change})
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
	}
}

// TestReplaceService changes a service that keeps its selector: its workloads are not touched.
func TestReplaceService(t *testing.T) {
	b := NewBuilder()
	s := &Service{Namespace: "n", Host: "s.n", Selector: Labels{"app": "a"}}
	w := &Workload{Namespace: "n", ID: "w", Labels: Labels{"app": "a"}}
	b.Apply([]Change{{s.Ref(), s}, {w.Ref(), w}})
	again := *s
	again.Line = 2
	snap, touched := b.Apply([]Change{{s.Ref(), &again}})
	if slices.ContainsFunc(touched, func(d Dep) bool { return d.Index == WorkloadLabel }) {
		t.Errorf("workloads are touched: %v", touched)
	}
	if got := NewView(snap).Workloads(&again); len(got) != 1 {
		t.Errorf("the service has %d workloads, want 1", len(got))
	}
}
