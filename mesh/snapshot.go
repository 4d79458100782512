package mesh

import (
	"cmp"
	"net/netip"
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
	ServiceNamespace                    // namespace: services that it holds
	ServiceAll                          // "": the set of services (the key is touched; it lists nothing)
	WorkloadLabel                       // "namespace|key=value": workloads with the label, where some service selects by it
	WorkloadID                          // "namespace/id": the workload
	RouteHost                           // host as written, wildcards included: routes
	RouteGateway                        // "namespace/name": routes bound to that gateway
	TrafficHost                         // host as written, wildcards included: traffic policies
	RefName                             // Ref's text: the object itself
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

// Objects lists the objects of one kind, ordered by age, namespace and name.
func (s *Snapshot) Objects(kind Kind) []Object {
	var out []Object
	s.objects.all(func(r Ref, o Object) bool {
		if r.Kind == kind {
			out = append(out, o)
		}
		return true
	})
	slices.SortFunc(out, byAge)
	return out
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
		touched: map[Dep]struct{}{},
	}
	for _, c := range changes {
		if old, ok := e.next.objects.get(c.Ref); ok {
			e.drop(c.Ref, old)
		}
		if c.Object != nil {
			e.add(c.Ref, c.Object)
		}
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
}

func (e *edit) add(ref Ref, o Object) {
	e.next.objects = e.next.objects.with(ref, o, &e.objects)
	switch o := o.(type) {
	case *Workload:
		group := e.b.members[o.Namespace]
		if group == nil {
			group = map[Ref]*Workload{}
			e.b.members[o.Namespace] = group
		}
		group[ref] = o
	case *Service:
		if pair, ok := selectorPair(o); ok {
			e.b.pairs[pair]++
			if e.b.pairs[pair] == 1 {
				e.indexMembers(o.Namespace, pair)
			}
		}
	}
	for _, d := range e.b.deps(o) {
		e.insert(d, o)
	}
}

func (e *edit) drop(ref Ref, o Object) {
	for _, d := range e.b.deps(o) {
		e.remove(d, o)
	}
	switch o := o.(type) {
	case *Workload:
		delete(e.b.members[o.Namespace], ref)
		if len(e.b.members[o.Namespace]) == 0 {
			delete(e.b.members, o.Namespace)
		}
	case *Service:
		if pair, ok := selectorPair(o); ok {
			if e.b.pairs[pair]--; e.b.pairs[pair] == 0 {
				delete(e.b.pairs, pair)
				e.next.index = e.next.index.without(Dep{WorkloadLabel, pair}, &e.index)
			}
		}
	}
	e.next.objects = e.next.objects.without(ref, &e.objects)
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
	old, _ := e.next.index.get(d)
	at, _ := slices.BinarySearchFunc(old, o, byAge)
	list := make([]Object, 0, len(old)+1)
	list = append(append(append(list, old[:at]...), o), old[at:]...)
	e.next.index = e.next.index.with(d, list, &e.index)
}

func (e *edit) remove(d Dep, o Object) {
	e.touched[d] = struct{}{}
	if !lists(d) {
		return
	}
	old, _ := e.next.index.get(d)
	list := slices.DeleteFunc(slices.Clone(old), func(x Object) bool { return x == o })
	if len(list) == 0 {
		e.next.index = e.next.index.without(d, &e.index)
		return
	}
	e.next.index = e.next.index.with(d, list, &e.index)
}

// lists reports whether an index keeps lists; the others are only touched.
func lists(d Dep) bool { return d.Index != ServiceAll && d.Index != RefName }

// deps is every index entry under which an object is listed.
func (b *Builder) deps(o Object) []Dep {
	ds := []Dep{{RefName, o.Ref().String()}}
	switch o := o.(type) {
	case *Service:
		ds = append(ds, serviceDeps(o)...)
	case *Workload:
		ds = append(ds, Dep{WorkloadID, o.Namespace + "/" + o.ID})
		for k, v := range o.Labels {
			if pair := o.Namespace + "|" + k + "=" + v; b.pairs[pair] > 0 {
				ds = append(ds, Dep{WorkloadLabel, pair})
			}
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
	ds := []Dep{{ServiceHost, s.Host}, {ServiceNamespace, s.Namespace}, {ServiceAll, ""}}
	ranges := false
	for _, p := range s.Addresses {
		if p.IsSingleIP() {
			ds = append(ds, Dep{ServiceVIP, p.Addr().String()})
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
	if pair, ok := selectorPair(s); ok {
		ds = append(ds, Dep{ServiceSelector, pair})
	}
	return ds
}

// selectorPair is the pair of a service's selector by which it is joined with workloads: its first by key.
func selectorPair(s *Service) (string, bool) {
	if len(s.Selector) == 0 {
		return "", false
	}
	first := ""
	for k := range s.Selector {
		if first == "" || k < first {
			first = k
		}
	}
	return s.Namespace + "|" + first + "=" + s.Selector[first], true
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

// contains reports whether any of the service's addresses holds addr.
func (s *Service) contains(addr netip.Addr) bool {
	for _, p := range s.Addresses {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
