package compile

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// Key names an answer: who asks, what kind, which name. Name empty stands for
// the list of names of a kind.
type Key struct {
	Scope string // ScopeOf the asker
	Kind  plan.Kind
	Name  string
}

// Cache keeps answers that are in use and knows what each depends on, so that a
// change of the mesh costs only what depends on it. Askers of one scope share
// answers, and all scopes of a role and namespace share those that depend on
// nothing more.
type Cache struct {
	mu     sync.Mutex
	snap   *mesh.Snapshot
	askers map[string]*Asker
	held   map[Key]*answer
	shared map[Key]*answer // by the scope of role and namespace alone
	deps   map[mesh.Dep]map[*answer]struct{}
	stats  Stats
}

// Stats counts a Cache's work since it was made.
type Stats struct {
	Compiled uint64 // resources and name lists that were compiled
	Changed  uint64 // of those, how many differed from what they replaced
}

// answer is one compiled resource, or list of names, in use.
type answer struct {
	key      Key // with the wide scope if shared
	asker    *Asker
	res      plan.Resource
	names    []string
	personal bool
	deps     []mesh.Dep
	users    map[Key]struct{} // the keys it answers
}

// NewCache starts with an empty mesh.
func NewCache() *Cache {
	return &Cache{
		snap: &mesh.Snapshot{}, askers: map[string]*Asker{}, held: map[Key]*answer{}, shared: map[Key]*answer{},
		deps: map[mesh.Dep]map[*answer]struct{}{},
	}
}

// ScopeOf registers an asker and returns the name of its scope: askers of one scope get the same answers.
func (c *Cache) ScopeOf(a Asker) string {
	scope := a.Role.String() + "/" + a.Namespace + "/" + a.Workload + "@" + a.Locality
	for _, k := range slices.Sorted(maps.Keys(a.Labels)) {
		scope += "," + k + "=" + a.Labels[k]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.askers[scope] == nil {
		c.askers[scope] = &a
	}
	return scope
}

func wide(a *Asker) string { return a.Role.String() + "/" + a.Namespace }

// Get returns the answer to a key, nil if there is none, and holds it until Forget.
func (c *Cache) Get(k Key) plan.Resource {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.get(k); a != nil {
		return a.res
	}
	return nil
}

// Names returns the list of names that a scope gets of a kind, and holds it.
func (c *Cache) Names(scope string, kind plan.Kind) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.get(Key{Scope: scope, Kind: kind}); a != nil {
		return a.names
	}
	return nil
}

func (c *Cache) get(k Key) *answer {
	if a := c.held[k]; a != nil {
		return a
	}
	asker := c.askers[k.Scope]
	if asker == nil {
		return nil
	}
	general := Key{Scope: wide(asker), Kind: k.Kind, Name: k.Name}
	if a := c.shared[general]; a != nil {
		c.hold(k, a)
		return a
	}
	a := &answer{key: k, asker: asker, users: map[Key]struct{}{}}
	c.compile(a)
	if !a.personal {
		a.key = general
		c.shared[general] = a
	}
	c.hold(k, a)
	return a
}

func (c *Cache) hold(k Key, a *answer) {
	c.held[k] = a
	a.users[k] = struct{}{}
}

// compile answers anew and records what the answer depends on.
func (c *Cache) compile(a *answer) {
	v := mesh.NewView(c.snap)
	if a.key.Name == "" {
		a.names, a.res, a.personal = Names(v, a.asker, a.key.Kind), nil, true
	} else {
		a.res, a.personal = Compile(v, a.asker, a.key.Kind, a.key.Name)
	}
	c.stats.Compiled++
	c.unlink(a)
	a.deps = v.Deps()
	for _, d := range a.deps {
		if c.deps[d] == nil {
			c.deps[d] = map[*answer]struct{}{}
		}
		c.deps[d][a] = struct{}{}
	}
}

func (c *Cache) unlink(a *answer) {
	for _, d := range a.deps {
		delete(c.deps[d], a)
		if len(c.deps[d]) == 0 {
			delete(c.deps, d)
		}
	}
}

// Forget lets go of an answer that nobody wants any more.
func (c *Cache) Forget(k Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.held[k]
	if a == nil {
		return
	}
	delete(c.held, k)
	delete(a.users, k)
	if len(a.users) == 0 {
		c.unlink(a)
		if c.shared[a.key] == a {
			delete(c.shared, a.key)
		}
	}
}

// Set moves on to a snapshot. touched are the dependencies that differ from the
// snapshot before. It returns the keys whose answers have changed, sorted by
// scope, kind and name.
func (c *Cache) Set(snap *mesh.Snapshot, touched []mesh.Dep) []Key {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snap = snap
	stale := map[*answer]struct{}{}
	for _, d := range touched {
		maps.Copy(stale, c.deps[d])
	}
	var changed []Key
	for a := range stale {
		before, names := a.res, a.names
		shared := !a.personal
		c.compile(a)
		if shared && a.personal {
			changed = append(changed, c.split(a)...)
			continue
		}
		if a.key.Name == "" && slices.Equal(names, a.names) || a.key.Name != "" && reflect.DeepEqual(before, a.res) {
			if a.key.Name != "" {
				a.res = before // the same pointer: whatever was encoded from it stays valid
			}
			continue
		}
		c.stats.Changed++
		for k := range a.users {
			changed = append(changed, k)
		}
	}
	slices.SortFunc(changed, func(x, y Key) int {
		return cmp.Or(cmp.Compare(x.Scope, y.Scope), cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Name, y.Name))
	})
	return changed
}

// split gives each user of an answer that was shared, and can be no longer, one of its own.
func (c *Cache) split(a *answer) []Key {
	c.unlink(a)
	delete(c.shared, a.key)
	var keys []Key
	for k := range a.users {
		keys = append(keys, k)
		delete(c.held, k)
	}
	for _, k := range keys {
		c.get(k)
	}
	c.stats.Changed++
	return keys
}

// Snapshot is the mesh that the answers are about.
func (c *Cache) Snapshot() *mesh.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snap
}

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Keys lists the keys that are held.
func (c *Cache) Keys() []Key {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.held))
}
