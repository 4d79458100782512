package mesh

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Dep is one thing that can be asked of a Snapshot, and so one thing on which a
// compiled resource can depend.
type Dep struct {
	Index Index
	Key   string
}

// Index is one of a Snapshot's indexes.
type Index uint8

// The indexes and what their keys are.
const (
	ServiceHost        Index = iota + 1 // host: services of that host
	ServiceVIP                          // address: services with that single address; "" those with ranges
	ServicePort                         // port number: services with that port
	ServiceSelector                     // "namespace|key=value": services whose selector's first pair it is
	ServiceAll                          // "": services
	WorkloadLabel                       // "namespace|key=value": workloads with the label, where some service selects by it
	WorkloadAccount                     // the same: the kinds of these workloads by labels and account (touched; it lists nothing)
	WorkloadAddress                     // address: workloads that have it
	RouteHost                           // host as written, wildcards included: routes
	RouteGateway                        // "namespace/name": routes bound to that gateway
	TrafficHost                         // host as written, wildcards included: traffic policies
	RefName                             // Ref's text: the object itself (touched; it lists nothing)
	GatewayAll                          // "": gateways
	AuthnNamespace                      // namespace: policies
	AuthzNamespace                      // namespace: policies
	TelemetryNamespace                  // namespace: telemetry settings
	ConfigAll                           // "": the mesh's configuration
)

// Change replaces the object that Ref names; a nil Object removes it.
type Change struct {
	Ref    Ref
	Object Object
}

// Snapshot is the mesh at one moment. It is immutable.
type Snapshot struct {
	// Version counts the snapshots of one Builder, from 1.
	Version uint64

	objects table[Ref, Object]
	index   table[Dep, []Object]
}

// Len is the number of objects.
func (s *Snapshot) Len() int { return s.objects.len }

// Object returns the object that ref names, nil if there is none.
func (s *Snapshot) Object(ref Ref) Object {
	o, _ := s.objects.get(ref)
	return o
}

// Builder makes snapshots, each from the one before it. It belongs to one goroutine.
type Builder struct {
	snap *Snapshot
	// pairs counts the services whose selector's first pair is the key "namespace|key=value"; workloads are
	// indexed by these pairs only.
	pairs map[string]int
	// members are the workloads of each namespace.
	members map[string]map[Ref]*Workload
}

// NewBuilder starts with an empty mesh.
func NewBuilder() *Builder {
	return &Builder{snap: &Snapshot{}, pairs: map[string]int{}, members: map[string]map[Ref]*Workload{}}
}

// Snapshot returns the newest snapshot.
func (b *Builder) Snapshot() *Snapshot { return b.snap }

// Apply makes all changes at once and returns the new snapshot with every Dep
// whose answer may have changed, sorted.
func (b *Builder) Apply(changes []Change) (*Snapshot, []Dep) {
	e := &edit{
		b: b, next: Snapshot{Version: b.snap.Version + 1, objects: b.snap.objects, index: b.snap.index},
		touched: map[Dep]struct{}{}, fresh: map[Dep]struct{}{},
	}
	for _, c := range changes {
		e.apply(c)
	}
	for _, c := range changes {
		e.touchAccounts(c.Ref)
	}
	b.snap = &e.next
	deps := make([]Dep, 0, len(e.touched))
	for d := range e.touched {
		deps = append(deps, d)
	}
	slices.SortFunc(deps, func(a, b Dep) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), strings.Compare(a.Key, b.Key))
	})
	return b.snap, deps
}

// edit is one Apply under way.
type edit struct {
	b       *Builder
	next    Snapshot
	objects owned[Ref, Object]
	index   owned[Dep, []Object]
	touched map[Dep]struct{}
	fresh   map[Dep]struct{} // lists that were made in this edit and may be changed in place
}

// apply makes one change. The pairs that the new object selects by are indexed before those of the old one are
// given up, so that a service that keeps its selector costs nothing.
func (e *edit) apply(c Change) {
	old, had := e.next.objects.get(c.Ref)
	if !had && c.Object == nil {
		return
	}
	if c.Object != nil {
		e.begin(c.Object)
	}
	if had {
		for _, d := range e.b.deps(old) {
			e.remove(d, old)
		}
		e.leave(old)
	}
	if c.Object == nil {
		e.next.objects = e.next.objects.without(c.Ref, &e.objects)
	} else {
		e.next.objects = e.next.objects.with(c.Ref, c.Object, &e.objects)
		e.join(c.Object)
		for _, d := range e.b.deps(c.Object) {
			e.insert(d, c.Object)
		}
	}
	if had {
		e.end(old)
	}
}

// begin begins to index workloads by the pair that a service selects by.
func (e *edit) begin(o Object) {
	if s, ok := o.(*Service); ok {
		for _, j := range joins(s) {
			if e.b.pairs[j.pair]++; e.b.pairs[j.pair] == 1 {
				e.indexMembers(s.Namespace, j.pair)
			}
		}
	}
}

// end stops it with the last service.
func (e *edit) end(o Object) {
	if s, ok := o.(*Service); ok {
		for _, j := range joins(s) {
			if e.b.pairs[j.pair]--; e.b.pairs[j.pair] == 0 {
				delete(e.b.pairs, j.pair)
				e.set(Dep{WorkloadLabel, j.pair}, nil)
			}
		}
	}
}

func (e *edit) join(o Object) {
	if w, ok := o.(*Workload); ok {
		group := e.b.members[w.Namespace]
		if group == nil {
			group = map[Ref]*Workload{}
			e.b.members[w.Namespace] = group
		}
		group[w.Ref()] = w
	}
}

func (e *edit) leave(o Object) {
	if w, ok := o.(*Workload); ok {
		delete(e.b.members[w.Namespace], w.Ref())
		if len(e.b.members[w.Namespace]) == 0 {
			delete(e.b.members, w.Namespace)
		}
	}
}

// touchAccounts touches WorkloadAccount where a workload has come or gone of whose kind, by labels and account,
// there is no other: scaling a deployment touches nothing.
func (e *edit) touchAccounts(ref Ref) {
	was, _ := e.b.snap.Object(ref).(*Workload)
	is, _ := e.next.Object(ref).(*Workload)
	if was != nil && is != nil && alike(was, is) {
		return
	}
	for _, x := range []struct {
		w     *Workload
		other *table[Dep, []Object]
	}{{was, &e.next.index}, {is, &e.b.snap.index}} {
		if x.w == nil {
			continue
		}
		for _, pair := range e.b.pairsOf(x.w) {
			list, _ := x.other.get(Dep{WorkloadLabel, pair})
			if !slices.ContainsFunc(list, func(o Object) bool { return alike(o.(*Workload), x.w) }) {
				e.touched[Dep{WorkloadAccount, pair}] = struct{}{}
			}
		}
	}
}

func alike(a, b *Workload) bool {
	return a.ServiceAccount == b.ServiceAccount && a.Listed == b.Listed && maps.Equal(a.Labels, b.Labels)
}

// indexMembers lists the workloads of a namespace under a pair that a service has begun to select by.
func (e *edit) indexMembers(namespace, pair string) {
	for _, w := range e.b.members[namespace] {
		k, v, _ := strings.Cut(strings.TrimPrefix(pair, namespace+"|"), "=")
		if got, ok := w.Labels[k]; ok && got == v {
			e.insert(Dep{WorkloadLabel, pair}, w)
		}
	}
}

func (e *edit) insert(d Dep, o Object) {
	e.touched[d] = struct{}{}
	if !lists(d) {
		return
	}
	list := e.own(d)
	at, _ := slices.BinarySearchFunc(list, o, byAge)
	e.set(d, slices.Insert(list, at, o))
}

func (e *edit) remove(d Dep, o Object) {
	e.touched[d] = struct{}{}
	if !lists(d) {
		return
	}
	list := e.own(d)
	if at, found := slices.BinarySearchFunc(list, o, byAge); found {
		e.set(d, slices.Delete(list, at, at+1))
	}
}

// own returns a list that may be changed: a copy, unless this edit has made it.
func (e *edit) own(d Dep) []Object {
	list, _ := e.next.index.get(d)
	if _, mine := e.fresh[d]; mine {
		return list
	}
	return append(make([]Object, 0, len(list)+1), list...)
}

func (e *edit) set(d Dep, list []Object) {
	if len(list) == 0 {
		delete(e.fresh, d)
		e.next.index = e.next.index.without(d, &e.index)
		return
	}
	e.fresh[d] = struct{}{}
	e.next.index = e.next.index.with(d, list, &e.index)
}

// lists reports whether an index keeps lists; the others are only touched.
func lists(d Dep) bool { return d.Index != RefName && d.Index != WorkloadAccount }

// pairsOf lists the pairs under which a workload is indexed.
func (b *Builder) pairsOf(w *Workload) []string {
	var out []string
	for k, v := range w.Labels {
		if pair := w.Namespace + "|" + k + "=" + v; b.pairs[pair] > 0 {
			out = append(out, pair)
		}
	}
	return out
}

// deps is every index entry under which an object is listed.
func (b *Builder) deps(o Object) []Dep {
	ds := []Dep{{RefName, o.Ref().String()}}
	switch o := o.(type) {
	case *Service:
		ds = append(ds, serviceDeps(o)...)
	case *Workload:
		for i, addr := range o.Addresses {
			if !slices.Contains(o.Addresses[:i], addr) {
				ds = append(ds, Dep{WorkloadAddress, addr.String()})
			}
		}
		for _, pair := range b.pairsOf(o) {
			ds = append(ds, Dep{WorkloadLabel, pair})
		}
	case *Route:
		for _, h := range unique(o.Hosts) {
			ds = append(ds, Dep{RouteHost, h})
		}
		for _, g := range unique(o.Gateways) {
			ds = append(ds, Dep{RouteGateway, g})
		}
	case *Traffic:
		ds = append(ds, Dep{TrafficHost, o.Host})
	case *Gateway:
		ds = append(ds, Dep{GatewayAll, ""})
	case *Authn:
		ds = append(ds, Dep{AuthnNamespace, o.Namespace})
	case *Authz:
		ds = append(ds, Dep{AuthzNamespace, o.Namespace})
	case *Telemetry:
		ds = append(ds, Dep{TelemetryNamespace, o.Namespace})
	case *Config:
		ds = append(ds, Dep{ConfigAll, ""})
	}
	return ds
}

func serviceDeps(s *Service) []Dep {
	ds := []Dep{{ServiceHost, s.Host}, {ServiceAll, ""}}
	ranges := false
	for i, p := range s.Addresses {
		if p.IsSingleIP() {
			if !slices.Contains(s.Addresses[:i], p) {
				ds = append(ds, Dep{ServiceVIP, p.Addr().String()})
			}
		} else {
			ranges = true
		}
	}
	if ranges {
		ds = append(ds, Dep{ServiceVIP, ""})
	}
	var ports []uint16
	for _, p := range s.Ports {
		if !slices.Contains(ports, p.Number) {
			ports = append(ports, p.Number)
			ds = append(ds, Dep{ServicePort, strconv.Itoa(int(p.Number))})
		}
	}
	if pair, ok := pairOf(s.Namespace, s.Selector); ok {
		ds = append(ds, Dep{ServiceSelector, pair})
	}
	return ds
}

// pairOf is the pair of a selector by which a service of a namespace is joined with workloads: its first by key.
func pairOf(namespace string, selector Labels) (string, bool) {
	if len(selector) == 0 {
		return "", false
	}
	first := ""
	for k := range selector {
		if first == "" || k < first {
			first = k
		}
	}
	return namespace + "|" + first + "=" + selector[first], true
}

// join is a way by which a service is joined with workloads: its Selector, or its Listed.
type join struct {
	pair     string // of the index
	selector Labels
	listed   bool
}

// picks reports whether a workload under the pair is the service's by this way.
func (j join) picks(w *Workload) bool { return w.Listed == j.listed && w.Labels.Match(j.selector) }

func joins(s *Service) []join {
	out := make([]join, 0, 2)
	if pair, ok := pairOf(s.Namespace, s.Selector); ok {
		out = append(out, join{pair, s.Selector, false})
	}
	if pair, ok := pairOf(s.Namespace, s.Listed); ok {
		out = append(out, join{pair, s.Listed, true})
	}
	return out
}

func unique(list []string) []string {
	out := slices.Clone(list)
	slices.Sort(out)
	return slices.Compact(out)
}

// byAge orders objects: oldest first, then by namespace and name; equal only for the same Ref.
func byAge(a, b Object) int {
	ao, bo := a.From(), b.From()
	if c := cmp.Compare(ao.Created, bo.Created); c != 0 {
		return c
	}
	ar, br := a.Ref(), b.Ref()
	return cmp.Or(strings.Compare(ar.Namespace, br.Namespace), strings.Compare(ar.Name, br.Name), cmp.Compare(ar.Kind, br.Kind))
}
