package compile

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
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
// change of the mesh costs only what depends on it. Askers share an answer when
// they are alike in all that it depends on: those of a role and namespace share
// most.
type Cache struct {
	mu     sync.Mutex
	snap   *mesh.Snapshot
	scopes map[string]*scope
	held   map[Key]*answer
	shared map[Key]*answer // by the part of the scope that the answer depends on
	deps   map[mesh.Dep]map[*answer]struct{}
	stats  Stats
}

// Stats counts a Cache's work since it was made.
type Stats struct {
	Compiled uint64 // resources and name lists that were compiled
	Changed  uint64 // of those, how many differed from what they replaced
}

// scope is an asker that holds answers.
type scope struct {
	asker Asker
	held  int // answers
}

// answer is one compiled resource, or list of names, in use.
type answer struct {
	key   Key // in shared
	res   plan.Resource
	names []string
	deps  []mesh.Dep
	users map[Key]struct{} // the keys it answers
}

// NewCache starts with an empty mesh.
func NewCache() *Cache {
	return &Cache{
		snap: &mesh.Snapshot{}, scopes: map[string]*scope{}, held: map[Key]*answer{}, shared: map[Key]*answer{},
		deps: map[mesh.Dep]map[*answer]struct{}{},
	}
}

// ScopeOf returns the name of an asker's scope: askers of one scope get the same answers.
func (*Cache) ScopeOf(a Asker) string { return a.scope(usesAll) }

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

// get answers a key and holds the answer; nil for a key whose scope ScopeOf has not made.
func (c *Cache) get(k Key) *answer {
	if a := c.held[k]; a != nil {
		return a
	}
	s := c.scopes[k.Scope]
	if s == nil {
		asker, ok := parseScope(k.Scope)
		if !ok {
			return nil
		}
		s = &scope{asker: asker}
		c.scopes[k.Scope] = s
	}
	a := c.find(s, k)
	if a == nil {
		a = c.compile(s, k)
		c.shared[a.key] = a
	}
	c.held[k] = a
	a.users[k] = struct{}{}
	s.held++
	return a
}

// find looks for the answer that an asker alike in what it depends on has got. What an answer depends on follows
// from the mesh and from the values that it depends on, so at most one of the parts of the scope leads to one.
func (c *Cache) find(s *scope, k Key) *answer {
	for u := range usesAll + 1 {
		if a := c.shared[Key{s.asker.scope(u), k.Kind, k.Name}]; a != nil {
			return a
		}
	}
	return nil
}

// compile answers anew and records what the answer depends on.
func (c *Cache) compile(s *scope, k Key) *answer {
	v := mesh.NewView(c.snap)
	a := &answer{users: map[Key]struct{}{}}
	q := newAsking(v, &s.asker)
	if k.Name == "" {
		a.names = q.names(k.Kind)
	} else {
		a.res = q.resource(k.Kind, k.Name)
	}
	c.stats.Compiled++
	a.key = Key{s.asker.scope(q.uses), k.Kind, k.Name}
	a.deps = v.Deps()
	for _, d := range a.deps {
		if c.deps[d] == nil {
			c.deps[d] = map[*answer]struct{}{}
		}
		c.deps[d][a] = struct{}{}
	}
	return a
}

// drop takes an answer out of everything but held.
func (c *Cache) drop(a *answer) {
	for _, d := range a.deps {
		delete(c.deps[d], a)
		if len(c.deps[d]) == 0 {
			delete(c.deps, d)
		}
	}
	delete(c.shared, a.key)
}

// Forget lets go of an answer that nobody wants any more.
func (c *Cache) Forget(k Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.held[k]
	if a == nil {
		return
	}
	c.release(k)
	delete(a.users, k)
	if len(a.users) == 0 {
		c.drop(a)
	}
}

func (c *Cache) release(k Key) {
	delete(c.held, k)
	if s := c.scopes[k.Scope]; s.held > 1 {
		s.held--
	} else {
		delete(c.scopes, k.Scope)
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
	// All that is stale goes before anything is asked again, so that nobody finds it.
	before := map[Key]*answer{}
	for a := range stale {
		c.drop(a)
		for k := range a.users {
			before[k] = a
			c.release(k)
		}
	}
	var changed []Key
	differ := map[*answer]struct{}{}
	for k, old := range before {
		now := c.get(k)
		if now.same(old) {
			now.res, now.names = old.res, old.names // the same pointers: whatever was encoded from them stays valid
			continue
		}
		differ[now] = struct{}{}
		changed = append(changed, k)
	}
	c.stats.Changed += uint64(len(differ))
	slices.SortFunc(changed, compareKeys)
	return changed
}

func compareKeys(x, y Key) int {
	return cmp.Or(strings.Compare(x.Scope, y.Scope), cmp.Compare(x.Kind, y.Kind), strings.Compare(x.Name, y.Name))
}

func (a *answer) same(b *answer) bool {
	return a.res == b.res && slices.Equal(a.names, b.names) || a.res != nil && b.res != nil && reflect.DeepEqual(a.res, b.res)
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

// Keys lists the keys that are held, in no order.
func (c *Cache) Keys() []Key {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.held))
}
