package kube

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	discovery "k8s.io/api/discovery/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source"
)

// picture is what is in force, and what else must be known to go on from there. Store.mu guards it.
type picture struct {
	set     *source.Set
	refused map[api.Ref][]api.Fault // objects that are not in force as they are written
	warned  map[api.Ref][]api.Fault

	pods       map[mesh.Ref]*pod
	localities map[string]string // of nodes
	networks   map[string]string // of namespaces

	slices  map[key]*discovery.EndpointSlice
	bySlice map[key]map[key]struct{}          // a Service's slices
	byPod   map[mesh.Ref]map[key]struct{}     // the slices that name a pod
	manual  map[key]map[string]*mesh.Workload // a Service's workloads by ID, as slices tell them

	references references
	// parameters are the ConfigMaps that Gateways of the Gateway API name for what is deployed for them.
	parameters map[key]map[string]string
}

// pod is a pod's workload and what Kubernetes says of it elsewhere.
type pod struct {
	workload *mesh.Workload
	node     string
	// ownLocality and ownNetwork: the pod's labels tell them, whatever its node and namespace say.
	ownLocality, ownNetwork bool
}

func newPicture(domain string) picture {
	parameters := map[key]map[string]string{}
	named := func(namespace, name string) bool {
		_, there := parameters[key{Namespace: namespace, Name: name}]
		return there
	}
	return picture{
		set: source.New(source.Config{ClusterDomain: domain, Parameters: named}), parameters: parameters,
		refused: map[api.Ref][]api.Fault{}, warned: map[api.Ref][]api.Fault{},
		pods: map[mesh.Ref]*pod{}, localities: map[string]string{}, networks: map[string]string{},
		slices: map[key]*discovery.EndpointSlice{}, bySlice: map[key]map[key]struct{}{}, byPod: map[mesh.Ref]map[key]struct{}{},
		manual: map[key]map[string]*mesh.Workload{}, references: newReferences(),
	}
}

// faults are those of all objects, by name.
func (p *picture) faults() []api.Fault { return flat(p.refused) }

// warnings are those of all objects, by name.
func (p *picture) warnings() []api.Fault { return flat(p.warned) }

func flat(m map[api.Ref][]api.Fault) []api.Fault {
	var out []api.Fault
	for _, list := range m {
		out = append(out, list...)
	}
	slices.SortStableFunc(out, compareFaults)
	return out
}

// turn collects what has changed since the last one.
type turn struct {
	*picture
	status *statusWriter
	// read are the objects with a status, which are judged when it is known what they come to now.
	read map[api.Ref]*account

	upsert   []*api.Object
	remove   []api.Ref
	touched  map[mesh.Ref]struct{} // workloads
	services map[key]struct{}      // whose slices, or the pods named in them, have changed
	// configured: what users write has changed, not only pods.
	configured bool
	// reattach: the parameters of Gateways have changed.
	reattach bool
	// spaces: the namespaces have changed.
	spaces bool
}

func (t *turn) touch(ref mesh.Ref) {
	if t.touched == nil {
		t.touched = map[mesh.Ref]struct{}{}
	}
	t.touched[ref] = struct{}{}
	for k := range t.byPod[ref] {
		t.recount(serviceOf(t.slices[k]))
	}
}

func (t *turn) recount(service key) {
	if t.services == nil {
		t.services = map[key]struct{}{}
	}
	t.services[service] = struct{}{}
}

// end brings all of it into the picture and returns what changes. A WorkloadEntry goes before a pod of its name.
func (t *turn) end() []mesh.Change {
	var changes []mesh.Change
	if len(t.upsert) > 0 || len(t.remove) > 0 {
		changes = t.set.Apply(t.upsert, t.remove)
	}
	if t.reattach {
		changes = append(changes, t.set.Reattach()...)
	}
	for i, c := range changes {
		if p := t.pods[c.Ref]; p != nil && c.Object == nil {
			changes[i].Object = p.workload
		}
		t.references.configured(changes[i], t.pods)
	}
	for ref := range t.touched {
		if t.set.Object(ref) != nil {
			continue
		}
		c := mesh.Change{Ref: ref}
		if p := t.pods[ref]; p != nil {
			c.Object = p.workload
			t.references.running(p.workload)
		}
		changes = append(changes, c)
	}
	for service := range t.services {
		changes = append(changes, t.endpoints(service)...)
	}
	return changes
}

// podsRead takes over pods.
func podsRead(t *turn, items map[key]any, whole bool) {
	if whole {
		for ref := range t.pods {
			if _, there := items[key{Namespace: ref.Namespace, Name: ref.Name}]; !there {
				delete(t.pods, ref)
				t.touch(ref)
			}
		}
	}
	for k, item := range items {
		ref := mesh.Ref{Kind: mesh.KindWorkload, Namespace: k.Namespace, Name: k.Name}
		old := t.pods[ref]
		p, _ := item.(*pod)
		switch {
		case p == nil && old == nil:
			continue
		case p == nil:
			delete(t.pods, ref)
		default:
			t.place(p)
			if old != nil && reflect.DeepEqual(old.workload, p.workload) {
				old.node = p.node
				continue
			}
			t.pods[ref] = p
		}
		t.touch(ref)
	}
}

// place gives a pod's workload, which nobody else has yet, what its node and its namespace say.
func (p *picture) place(x *pod) {
	if !x.ownLocality {
		x.workload.Locality = p.localities[x.node]
	}
	if !x.ownNetwork {
		x.workload.Network = p.networks[x.workload.Namespace]
	}
}

// replace gives the pods that fit what their nodes and namespaces say now.
func (t *turn) replace(fits func(*pod) bool) {
	for ref, old := range t.pods {
		if !fits(old) {
			continue
		}
		fresh, w := *old, *old.workload
		fresh.workload = &w
		t.place(&fresh)
		if w.Locality != old.workload.Locality || w.Network != old.workload.Network {
			t.pods[ref] = &fresh
			t.touch(ref)
		}
	}
}

// names takes over what objects without namespace are known for: the locality of nodes, the network of namespaces.
func names(into map[string]string, items map[key]any, whole bool) (changed map[string]bool) {
	changed = map[string]bool{}
	if whole {
		for name := range into {
			if _, there := items[key{Name: name}]; !there {
				delete(into, name)
				changed[name] = true
			}
		}
	}
	for k, item := range items {
		text, there := item.(string)
		if into[k.Name] != text {
			changed[k.Name] = true
		}
		if there {
			into[k.Name] = text
		} else {
			delete(into, k.Name)
		}
	}
	return changed
}

func nodesRead(t *turn, items map[key]any, whole bool) {
	if changed := names(t.localities, items, whole); len(changed) > 0 {
		t.replace(func(p *pod) bool { return !p.ownLocality && changed[p.node] })
	}
}

// spacesRead takes over the labels of namespaces and returns their networks.
func (t *turn) spacesRead(items map[key]any, whole bool) (networks map[key]any) {
	networks = map[key]any{}
	for k, item := range items {
		n, _ := item.(*namespace)
		if n == nil {
			networks[k] = nil
			t.remove = append(t.remove, api.Ref{Kind: api.KindNamespace, Name: k.Name})
			continue
		}
		networks[k] = n.network
		t.upsert = append(t.upsert, n.object)
	}
	if whole {
		for name := range t.networks {
			if _, there := items[key{Name: name}]; !there {
				t.remove = append(t.remove, api.Ref{Kind: api.KindNamespace, Name: name})
			}
		}
	}
	t.configured = t.configured || t.set.Attached().Any()
	return networks
}

func namespacesRead(t *turn, items map[key]any, whole bool) {
	items = t.spacesRead(items, whole)
	t.spaces = true
	if changed := names(t.networks, items, whole); len(changed) > 0 {
		t.replace(func(p *pod) bool { return !p.ownNetwork && changed[p.workload.Namespace] })
	}
}

// slicesRead takes over EndpointSlices.
func slicesRead(t *turn, items map[key]any, whole bool) {
	if whole {
		for k := range t.slices {
			if _, there := items[k]; !there {
				t.slice(k, nil)
			}
		}
	}
	for k, item := range items {
		s, _ := item.(*discovery.EndpointSlice)
		t.slice(k, s)
	}
}

// slice puts one slice in the place of another; nil for none.
func (t *turn) slice(k key, s *discovery.EndpointSlice) {
	if old := t.slices[k]; old != nil {
		service := serviceOf(old)
		delete(t.bySlice[service], k)
		if len(t.bySlice[service]) == 0 {
			delete(t.bySlice, service)
		}
		delete(t.slices, k)
		for _, ref := range targets(old) {
			delete(t.byPod[ref], k)
			if len(t.byPod[ref]) == 0 {
				delete(t.byPod, ref)
			}
		}
		t.recount(service)
	}
	if s == nil {
		return
	}
	service := serviceOf(s)
	t.slices[k] = s
	if t.bySlice[service] == nil {
		t.bySlice[service] = map[key]struct{}{}
	}
	t.bySlice[service][k] = struct{}{}
	t.recount(service)
	for _, ref := range targets(s) {
		if t.byPod[ref] == nil {
			t.byPod[ref] = map[key]struct{}{}
		}
		t.byPod[ref][k] = struct{}{}
	}
}

// targets are the pods that a slice names.
func targets(s *discovery.EndpointSlice) []mesh.Ref {
	var out []mesh.Ref
	for i := range s.Endpoints {
		if x := s.Endpoints[i].TargetRef; x != nil && x.Kind == mesh.OriginPod {
			out = append(out, mesh.Ref{Kind: mesh.KindWorkload, Namespace: s.Namespace, Name: x.Name})
		}
	}
	return out
}

func serviceOf(s *discovery.EndpointSlice) key {
	return key{Namespace: s.Namespace, Name: s.Labels[discovery.LabelServiceName]}
}

// endpoints makes the workloads of a Service's slices anew and returns what of them changes.
func (t *turn) endpoints(service key) []mesh.Change {
	lookup := func(namespace, name string) *mesh.Workload {
		if p := t.pods[mesh.Ref{Kind: mesh.KindWorkload, Namespace: namespace, Name: name}]; p != nil {
			return p.workload
		}
		return nil
	}
	now := map[string]*mesh.Workload{}
	byName := func(a, b key) int { return strings.Compare(a.Name, b.Name) }
	for _, k := range slices.SortedFunc(maps.Keys(t.bySlice[service]), byName) {
		for _, w := range source.Endpoints(t.slices[k], lookup) {
			if twin := now[w.ID]; twin != nil { // an address that is in several slices, for several ports
				ports := maps.Clone(twin.Ports)
				maps.Copy(ports, w.Ports)
				w.Ports = ports
			}
			now[w.ID] = w
		}
	}
	var changes []mesh.Change
	for id, w := range t.manual[service] {
		if now[id] == nil {
			changes = append(changes, mesh.Change{Ref: w.Ref()})
		}
	}
	for id, w := range now {
		if !reflect.DeepEqual(w, t.manual[service][id]) {
			changes = append(changes, mesh.Change{Ref: w.Ref(), Object: w})
		}
	}
	t.manual[service] = now
	if len(now) == 0 {
		delete(t.manual, service)
	}
	return changes
}
