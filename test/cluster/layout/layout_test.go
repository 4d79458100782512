package layout_test

import (
	"net/netip"
	"testing"

	"github.com/lateen-mesh/lateen/test/cluster/layout"
)

// TestApart holds that no two networks overlap, of one cluster or of two.
func TestApart(t *testing.T) {
	networks := map[string]netip.Prefix{}
	add := func(name string, p netip.Prefix) {
		if p != p.Masked() {
			t.Errorf("%s: %s is no network", name, p)
		}
		for other, q := range networks {
			if p.Overlaps(q) {
				t.Errorf("%s (%s) overlaps %s (%s)", name, p, other, q)
			}
		}
		networks[name] = p
	}
	for _, number := range []int{0, 1, layout.MaxNumber} {
		l := layout.Layout{Name: "a", Number: number, Nodes: layout.MaxNodes}
		if err := l.Validate(); err != nil {
			t.Fatal(err)
		}
		prefix := l.Server()
		add(prefix+" machines", l.Machines())
		add(prefix+" balancers", l.Balancers())
		add(prefix+" pods", l.AllPods())
		add(prefix+" services", l.Services())
		seen := map[netip.Addr]bool{l.ControlPlane(): true}
		for n := 1; n <= l.Nodes; n++ {
			if seen[l.Node(n)] || !l.Machines().Contains(l.Node(n)) {
				t.Errorf("node %d has address %s", n, l.Node(n))
			}
			seen[l.Node(n)] = true
			if !l.AllPods().Contains(l.Pods(n).Addr()) {
				t.Errorf("node %d has pods at %s", n, l.Pods(n))
			}
		}
		if !l.Services().Contains(l.DNS()) || !l.Services().Contains(l.APIService()) {
			t.Errorf("%s and %s are not of %s", l.DNS(), l.APIService(), l.Services())
		}
	}
}

func TestValidate(t *testing.T) {
	for _, l := range []layout.Layout{
		{Name: "", Nodes: 1},
		{Name: "a/b", Nodes: 1},
		{Name: "-a", Nodes: 1},
		{Name: "a", Nodes: -1},
		{Name: "a", Nodes: layout.MaxNodes + 1},
		{Name: "a", Nodes: 1, Number: -1},
		{Name: "a", Nodes: 1, Number: layout.MaxNumber + 1},
	} {
		if l.Validate() == nil {
			t.Errorf("%+v is taken", l)
		}
	}
}
