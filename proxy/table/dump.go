package table

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
)

// rootKinds are the kinds that lookups ask for.
var rootKinds = []plan.Kind{plan.KindListener, plan.KindRoute, plan.KindName}

// Roots lists the names that were asked for by lookups and exist, sorted, for the next start.
func (t *Table) Roots() map[plan.Kind][]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[plan.Kind][]string{}
	for r, e := range t.entries {
		if e.root && e.asked && e.inForce != nil {
			out[r.kind] = append(out[r.kind], r.name)
		}
	}
	for _, names := range out {
		slices.Sort(names)
	}
	return out
}

// Preload asks for names, such as those of the last run, before anybody needs them. It leaves room for new ones.
func (t *Table) Preload(names map[plan.Kind][]string) {
	left := rootsMax / 2
	for _, kind := range rootKinds {
		list := names[kind]
		list = list[:min(len(list), left)]
		left -= len(list)
		for _, name := range list {
			t.ask(ref{kind, name})
		}
	}
}

// Entry is what Dump tells of a resource.
type Entry struct {
	Kind  plan.Kind
	Name  string
	State State
	// Updated is when the control plane last spoke of it; zero if it never did.
	Updated time.Time
	// Refused is why its newest version cannot be obeyed; nil: it is, or will be when what it refers to has come.
	Refused  error
	Resource plan.Resource    // nil unless Ready
	Cluster  *balance.Cluster // of a cluster in operation
}

// Dump lists everything that is known, sorted by kind and name.
func (t *Table) Dump() []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Entry
	for _, e := range sorted(maps.Values(t.entries)) {
		d := Entry{Kind: e.kind, Name: e.name, Updated: e.updated, Refused: e.refused, Resource: e.inForce}
		switch {
		case e.inForce != nil:
			d.State = Ready
		case e.settled:
			d.State = Absent
		}
		d.Cluster, _ = e.value.(*balance.Cluster)
		out = append(out, d)
	}
	return out
}

func sorted(entries iter.Seq[*entry]) []*entry {
	return slices.SortedFunc(entries, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
	})
}
