// Package source turns what users write into the picture of the mesh: typed
// objects in, mesh objects with all names resolved out, together with findings
// about what does not fit together.
//
// In: api objects, whichever store they come from (source/dir watches a
// folder). Out: the changes of the picture, exactly those that differ, and
// findings with file and line. It must not know how objects are stored, what a
// proxy is told, clocks or sockets. A Set belongs to one goroutine; an
// Allocator may be shared.
package source

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source/attach"
)

// DefaultDomain is the domain below which services have their names.
const DefaultDomain = "cluster.local"

// Config is what a Set needs; the zero value is good.
type Config struct {
	// ClusterDomain is the end of services' full names; empty is DefaultDomain.
	ClusterDomain string
	// Allocator gives virtual addresses to services that have none; nil makes a new one.
	Allocator *Allocator
	// Parameters reports whether there is a ConfigMap in which a Gateway of the Gateway API may have its parameters; nil:
	// there is any.
	Parameters func(namespace, name string) bool
}

// Set holds the current objects and what they were turned into.
type Set struct {
	domain    string
	addresses *Allocator
	objects   map[api.Ref]*api.Object
	// made are the mesh objects that each object makes, before conflicts are settled.
	made map[api.Ref][]mesh.Object
	// claims are, for each mesh object's name, the objects that make one, the winner first.
	claims map[mesh.Ref][]claim
	config *mesh.Config
	// exports are the visibilities of objects that tell none.
	exports exports

	parameters func(namespace, name string) bool
	// attachable are the Gateway API's objects, attached is what they come to.
	attachable map[api.Ref]*api.Object
	attached   *attach.Result
}

// claim is one object's wish to define a mesh object.
type claim struct {
	by     *api.Object
	object mesh.Object
}

type exports struct{ service, route, traffic []string }

// New makes an empty Set.
func New(c Config) *Set {
	s := &Set{
		domain: cmp.Or(c.ClusterDomain, DefaultDomain), addresses: c.Allocator,
		objects: map[api.Ref]*api.Object{}, made: map[api.Ref][]mesh.Object{}, claims: map[mesh.Ref][]claim{},
		config: mesh.DefaultConfig(), parameters: c.Parameters, attachable: map[api.Ref]*api.Object{}, attached: &attach.Result{},
	}
	if s.addresses == nil {
		s.addresses = NewAllocator()
	}
	return s
}

// Len is the number of current objects.
func (s *Set) Len() int { return len(s.objects) }

// Object returns what is in the picture under a name; nil if nothing is.
func (s *Set) Object(ref mesh.Ref) mesh.Object { return s.winner(ref) }

// Written returns the object of that name; nil if there is none.
func (s *Set) Written(ref api.Ref) *api.Object { return s.objects[ref] }

// Objects lists the current objects by kind, namespace and name.
func (s *Set) Objects() []*api.Object {
	out := make([]*api.Object, 0, len(s.objects))
	for _, o := range s.objects {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b *api.Object) int { return compareRefs(a.Ref, b.Ref) })
	return out
}

func compareRefs(a, b api.Ref) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// Replace makes list the whole set and returns what changes in the picture.
func (s *Set) Replace(list []*api.Object) []mesh.Change {
	keep := make(map[api.Ref]bool, len(list))
	for _, o := range list {
		keep[o.Ref] = true
	}
	var gone []api.Ref
	for ref := range s.objects {
		if !keep[ref] {
			gone = append(gone, ref)
		}
	}
	return s.Apply(list, gone)
}

// Upsert adds objects, or puts them in the place of those with the same Ref.
func (s *Set) Upsert(list ...*api.Object) []mesh.Change { return s.Apply(list, nil) }

// Delete removes objects; those that are not there are ignored.
func (s *Set) Delete(refs ...api.Ref) []mesh.Change { return s.Apply(nil, refs) }

// Apply adds and removes at once and returns what changes in the picture, in a
// stable order; nothing if the picture stays the same.
func (s *Set) Apply(upsert []*api.Object, remove []api.Ref) []mesh.Change {
	before := map[mesh.Ref]mesh.Object{}
	for _, ref := range remove {
		s.drop(ref, before)
		delete(s.objects, ref)
	}
	for _, o := range upsert {
		s.objects[o.Ref] = o
	}
	todo := upsert
	everything := s.reconfigure()
	if everything {
		todo = s.Objects()
	}
	// Addresses go by age and name, so that a set that is read at once gets the same whatever its order, and the same as
	// one that has seen it grow: all servers of a mesh must name one host by an address.
	todo = slices.SortedFunc(slices.Values(todo), func(a, b *api.Object) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), compareRefs(a.Ref, b.Ref))
	})
	for _, o := range todo {
		s.drop(o.Ref, before)
		s.claim(o, s.translate(o), before)
	}
	if s.attachment(upsert, remove) || everything {
		s.attach(before)
	}
	s.addresses.Prune(func(key string) bool {
		namespace, host, _ := strings.Cut(key, "/")
		return s.winner(mesh.Ref{Kind: mesh.KindService, Namespace: namespace, Name: host}) != nil
	})
	return s.changes(before)
}

// Copy is a Set of the same objects, which changes apart from this one, and on another goroutine. parameters is as in
// Config.
func (s *Set) Copy(parameters func(namespace, name string) bool) *Set {
	c := *s
	c.objects, c.made, c.claims = maps.Clone(s.objects), maps.Clone(s.made), maps.Clone(s.claims)
	c.attachable, c.parameters = maps.Clone(s.attachable), parameters
	c.addresses = NewAllocator()
	c.addresses.Restore(s.addresses.Snapshot())
	return &c
}

// Judge takes o over, in the place of the object with the same Ref, and returns the findings about it.
func (s *Set) Judge(o *api.Object) []Finding {
	s.Apply([]*api.Object{o}, nil)
	return s.findings(o.Ref)
}

// reconfigure takes over the mesh's configuration and reports whether everything must be made anew.
func (s *Set) reconfigure() bool {
	config, ex := mesh.DefaultConfig(), exports{}
	if o := s.objects[api.Ref{Kind: api.KindConfigMap, Namespace: api.RootNamespace, Name: api.ConfigName}]; o != nil {
		m := o.Spec.(*meshconfig.MeshConfig)
		config = meshConfig(o, m)
		ex = exports{m.DefaultServiceExportTo, m.DefaultVirtualServiceExportTo, m.DefaultDestinationRuleExportTo}
	}
	changed := !reflect.DeepEqual(config, s.config) || !reflect.DeepEqual(ex, s.exports)
	s.config, s.exports = config, ex
	return changed
}

func (s *Set) drop(ref api.Ref, before map[mesh.Ref]mesh.Object) {
	for _, m := range s.made[ref] {
		r := m.Ref()
		s.remember(r, before)
		s.claims[r] = slices.DeleteFunc(slices.Clone(s.claims[r]), func(c claim) bool { return c.by.Ref == ref }) // see Copy
		if len(s.claims[r]) == 0 {
			delete(s.claims, r)
		}
	}
	delete(s.made, ref)
}

// claim takes over what an object makes.
func (s *Set) claim(o *api.Object, list []mesh.Object, before map[mesh.Ref]mesh.Object) {
	if len(list) == 0 {
		return
	}
	s.made[o.Ref] = list
	for _, m := range list {
		r := m.Ref()
		s.remember(r, before)
		s.claims[r] = append(slices.Clone(s.claims[r]), claim{o, m}) // see Copy
		slices.SortFunc(s.claims[r], func(a, b claim) int {
			return cmp.Or(cmp.Compare(a.by.Created, b.by.Created), compareRefs(a.by.Ref, b.by.Ref))
		})
	}
}

func (s *Set) remember(r mesh.Ref, before map[mesh.Ref]mesh.Object) {
	if _, ok := before[r]; !ok {
		before[r] = s.winner(r)
	}
}

func (s *Set) winner(r mesh.Ref) mesh.Object {
	if list := s.claims[r]; len(list) > 0 {
		return list[0].object
	}
	return nil
}

func (s *Set) changes(before map[mesh.Ref]mesh.Object) []mesh.Change {
	var out []mesh.Change
	for r, old := range before {
		now := s.winner(r)
		if now == nil && old == nil || now != nil && old != nil && reflect.DeepEqual(now, old) {
			continue
		}
		out = append(out, mesh.Change{Ref: r, Object: now})
	}
	slices.SortFunc(out, func(a, b mesh.Change) int {
		return cmp.Or(cmp.Compare(a.Ref.Kind, b.Ref.Kind), strings.Compare(a.Ref.Namespace, b.Ref.Namespace), strings.Compare(a.Ref.Name, b.Ref.Name))
	})
	return out
}
