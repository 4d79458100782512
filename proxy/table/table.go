// Package table is the live plan of a proxy: what the control plane has ordered,
// compiled once when it arrives and looked up by event loops.
//
// In: resources and removals, from one goroutine (Update); names, from any
// goroutine (Listener, Route, Name), of which the first mention asks for the
// resource. Out: immutable compiled values. A resource takes effect together
// with everything that it refers to: until all of that has been answered, the
// version before it stays in force. The package must not know sockets, xDS or
// encodings.
package table

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
)

// The bounds of what a proxy asks for by itself.
const (
	// rootsMax is how many names, of listeners, hosts and DNS questions, are kept subscribed; the ones unused for
	// longest make way.
	rootsMax = 4096
	// rootIdle is how long an unused name stays subscribed.
	rootIdle = time.Hour
)

// State is what is known of a name.
type State uint8

// The states.
const (
	Pending State = iota // asked for, not answered
	Ready
	Absent // the control plane says that there is none
)

var stateNames = [...]string{"pending", "ready", "absent"}

// String returns the state's name in lower case.
func (s State) String() string { return stateNames[s] }

// Config is what a Table needs.
type Config struct {
	// Subscribe and Unsubscribe tell the source of resources what is wanted. They must not block and not call back.
	Subscribe, Unsubscribe func(kind plan.Kind, names ...string)
	// TrustDomain and Aliases are those of the mesh, for authorization.
	TrustDomain string
	Aliases     []string
	// Now tells the time; nil: time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// ref names a resource.
type ref struct {
	kind plan.Kind
	name string
}

func (r ref) String() string { return r.kind.String() + " " + r.name }

// entry is what is known of one ref. It is guarded by Table.mu.
type entry struct {
	ref
	answered bool          // the control plane has said something
	next     plan.Resource // nil: absent
	fresh    bool          // next is newer than what is in force
	inForce  plan.Resource // nil: absent or never in force
	settled  bool          // something, be it absence, is in force
	value    any           // what inForce was compiled to: *Listener, *Route, *balance.Cluster; nil for the others
	compiled plan.Resource // what value was compiled from
	built    uint64        // the serial of the publication that compiled it
	updated  time.Time
	waiting  map[*waiter]struct{}
	root     bool
	used     atomic.Int64 // ns, of roots
}

type waiter struct{ f func() }

// Table is the live plan. Lookups are for any goroutine and take no lock when the answer is in force.
type Table struct {
	cfg  Config
	view atomic.Pointer[view]

	mu      sync.Mutex
	entries map[ref]*entry
	roots   int
	watch   func([]string)
	wild    bool // all listeners of the scope are subscribed
	dirty   bool
	serial  atomic.Uint64 // of publications
}

// view is what loops read: immutable but for the entries' use marks.
type view struct {
	listeners map[string]*rooted[*Listener]
	routes    map[string]*rooted[*Route]
	names     map[string]*rooted[*plan.Name]
	clusters  map[string]*balance.Cluster
	secrets   map[string]*plan.Secret
}

// rooted is a value that is in force, with its use mark.
type rooted[T any] struct {
	value T // nil: absent
	e     *entry
}

// New makes an empty table.
func New(cfg Config) *Table {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Table{cfg: cfg, entries: map[ref]*entry{}}
	t.view.Store(&view{clusters: builtin()})
	return t
}

// builtin are the clusters that need no asking.
func builtin() map[string]*balance.Cluster {
	out := map[string]*balance.Cluster{}
	for name, d := range map[string]plan.Discovery{
		plan.ClusterPassthrough:        plan.DiscoverOriginalDst,
		plan.ClusterInboundPassthrough: plan.DiscoverOriginalDst,
		plan.ClusterBlackHole:          plan.DiscoverNothing,
	} {
		p := &plan.Cluster{Name: name, Discovery: d, External: name == plan.ClusterPassthrough, Service: plan.ServiceName{Name: name}}
		if name == plan.ClusterInboundPassthrough {
			p.BindSource = "127.0.0.6"
		}
		out[name] = balance.New(p, nil)
	}
	return out
}

// Listener returns the listener of that name, and asks for it if it is new.
func (t *Table) Listener(name string) (*Listener, State) {
	if r := t.view.Load().listeners[name]; r != nil {
		return r.value, t.mark(r.e, r.value == nil)
	}
	return nil, t.ask(ref{plan.KindListener, name})
}

// Route returns the route of that name, and asks for it if it is new.
func (t *Table) Route(name string) (*Route, State) {
	if r := t.view.Load().routes[name]; r != nil {
		return r.value, t.mark(r.e, r.value == nil)
	}
	return nil, t.ask(ref{plan.KindRoute, name})
}

// Name returns the answer to a DNS question, and asks for it if it is new.
func (t *Table) Name(name string) (*plan.Name, State) {
	if r := t.view.Load().names[name]; r != nil {
		return r.value, t.mark(r.e, r.value == nil)
	}
	return nil, t.ask(ref{plan.KindName, name})
}

// Serial changes whenever something new comes into force.
func (t *Table) Serial() uint64 { return t.serial.Load() }

// Cluster returns a cluster that something in force refers to; nil if there is none.
func (t *Table) Cluster(name string) *balance.Cluster { return t.view.Load().clusters[name] }

// Secret returns a secret that something in force refers to; nil if there is none.
func (t *Table) Secret(name string) *plan.Secret { return t.view.Load().secrets[name] }

func (t *Table) mark(e *entry, absent bool) State {
	now := t.cfg.Now().UnixNano()
	if last := e.used.Load(); now-last > int64(time.Second) {
		e.used.Store(now)
	}
	if absent {
		return Absent
	}
	return Ready
}

// ask subscribes to a name unless that has been done.
func (t *Table) ask(r ref) State {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[r]
	if e == nil {
		if t.roots >= rootsMax {
			t.evict()
		}
		e = t.add(r)
		t.cfg.Subscribe(r.kind, r.name)
	}
	if !e.root {
		e.root = true
		t.roots++
		if e.settled { // known as part of something else; now it can be looked up
			t.publish()
		}
	}
	e.used.Store(t.cfg.Now().UnixNano())
	switch {
	case !e.settled:
		return Pending
	case e.inForce == nil:
		return Absent
	}
	return Pending // in force, and in the next view; the caller looks again
}

func (t *Table) add(r ref) *entry {
	e := &entry{ref: r}
	t.entries[r] = e
	return e
}

// Await calls f once when the name stops being pending, from the goroutine that feeds the table, or at once if it
// is not. The function that it returns cancels the call.
func (t *Table) Await(kind plan.Kind, name string, f func()) (cancel func()) {
	t.mu.Lock()
	e := t.entries[ref{kind, name}]
	if e == nil || e.settled {
		t.mu.Unlock()
		f()
		return func() {}
	}
	w := &waiter{f}
	if e.waiting == nil {
		e.waiting = map[*waiter]struct{}{}
	}
	e.waiting[w] = struct{}{}
	t.mu.Unlock()
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(e.waiting, w)
	}
}

// WatchListeners subscribes to all listeners of the scope, for gateways, and calls f from the feeding goroutine
// with their names whenever a set of them has come into force.
func (t *Table) WatchListeners(f func(names []string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watch, t.wild = f, true
	t.cfg.Subscribe(plan.KindListener, "*")
}

// Update takes one response of the control plane. A resource that cannot be
// obeyed is an error that names it; then nothing of the response is taken and
// what was in force stays.
func (t *Table) Update(kind plan.Kind, added []plan.Resource, removed []string) error {
	for _, r := range added {
		if err := check(r); err != nil {
			return fmt.Errorf("%s %q: %w", kind, r.ResourceName(), err)
		}
	}
	t.mu.Lock()
	for _, r := range added {
		t.answer(ref{kind, r.ResourceName()}, r)
	}
	for _, name := range removed {
		t.answer(ref{kind, name}, nil)
	}
	called, names := t.settle()
	t.mu.Unlock()
	for _, f := range called {
		f()
	}
	if names != nil {
		t.watch(names)
	}
	return nil
}

func (t *Table) answer(r ref, res plan.Resource) {
	e := t.entries[r]
	if e == nil {
		if r.kind != plan.KindListener || !t.wild || res == nil {
			return // not asked for any more
		}
		e = t.add(r)
		e.root = true
		t.roots++
	}
	e.answered, e.next, e.fresh, e.updated = true, res, true, t.cfg.Now()
}

// settle brings into force what is complete, asks for what is missing and drops what nothing needs. It returns
// the waiters to call and, if the gateway's listeners have changed, their names.
func (t *Table) settle() (called []func(), names []string) {
	for changed := true; changed; {
		changed = false
		for _, e := range sorted(t.entries) {
			if !e.fresh || !t.complete(e) {
				continue
			}
			e.inForce, e.settled, e.fresh = e.next, true, false
			t.dirty, changed = true, true
		}
	}
	t.sweep()
	if t.dirty {
		t.publish()
	}
	for _, e := range t.entries {
		if e.settled && e.waiting != nil {
			for w := range e.waiting {
				called = append(called, w.f)
			}
			e.waiting = nil
		}
	}
	if t.watch != nil {
		names = t.listenerNames()
	}
	return called, names
}

func (t *Table) listenerNames() []string {
	names := []string{}
	for r, e := range t.entries {
		if r.kind == plan.KindListener && e.inForce != nil {
			names = append(names, r.name)
		}
	}
	slices.Sort(names)
	return names
}

func sorted(entries map[ref]*entry) []*entry {
	out := make([]*entry, 0, len(entries))
	for _, e := range entries {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
	})
	return out
}

// complete reports whether everything that the newest version refers to, directly or not, has been answered, and
// asks for what has not been asked for.
func (t *Table) complete(e *entry) bool {
	whole := true
	for _, r := range refs(e.next) {
		d := t.entries[r]
		if d == nil {
			d = t.add(r)
			t.cfg.Subscribe(r.kind, r.name)
		}
		if !d.settled || d.fresh {
			whole = false
		}
	}
	return whole
}

// sweep drops what neither a root nor anything in force, or on its way into force, refers to.
func (t *Table) sweep() {
	now := t.cfg.Now().UnixNano()
	needed := map[*entry]bool{}
	var need func(e *entry)
	need = func(e *entry) {
		if needed[e] {
			return
		}
		needed[e] = true
		for _, res := range []plan.Resource{e.inForce, e.next} {
			for _, r := range refs(res) {
				if d := t.entries[r]; d != nil {
					need(d)
				}
			}
		}
	}
	for _, e := range t.entries {
		if e.root && len(e.waiting) == 0 && t.expired(e, now) {
			e.root = false
			t.roots--
		}
		if e.root {
			need(e)
		}
	}
	gone := map[plan.Kind][]string{}
	for r, e := range t.entries {
		if !needed[e] {
			gone[r.kind] = append(gone[r.kind], r.name)
			delete(t.entries, r)
			t.dirty = true
		}
	}
	for kind, names := range gone {
		slices.Sort(names)
		t.cfg.Unsubscribe(kind, names...)
	}
}

// expired reports whether a root has not been used for long. What a wildcard brought stays until it is removed.
func (t *Table) expired(e *entry, now int64) bool {
	if t.wild && e.kind == plan.KindListener {
		return e.settled && e.inForce == nil
	}
	if e.kind == plan.KindListener && e.name == plan.ListenerInbound {
		return false
	}
	return now-e.used.Load() > int64(rootIdle)
}

// evict drops the root that has been unused for longest.
func (t *Table) evict() {
	var oldest *entry
	for _, e := range t.entries {
		if e.root && len(e.waiting) == 0 && e.name != plan.ListenerInbound && (oldest == nil || e.used.Load() < oldest.used.Load()) {
			oldest = e
		}
	}
	if oldest != nil {
		oldest.root = false
		t.roots--
		t.sweep()
		if t.dirty {
			t.publish()
		}
	}
}

// Roots lists the names that were asked for by lookups, for the next start.
func (t *Table) Roots() map[plan.Kind][]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[plan.Kind][]string{}
	for r, e := range t.entries {
		if e.root && e.inForce != nil {
			out[r.kind] = append(out[r.kind], r.name)
		}
	}
	for _, names := range out {
		slices.Sort(names)
	}
	return out
}

// Preload asks for names before anybody needs them.
func (t *Table) Preload(names map[plan.Kind][]string) {
	for kind, list := range names {
		for _, name := range list[:min(len(list), rootsMax/4)] {
			t.ask(ref{kind, name})
		}
	}
}

// Entry is what Dump tells of a resource.
type Entry struct {
	Kind     plan.Kind
	Name     string
	State    State
	Updated  time.Time
	Resource plan.Resource // nil unless Ready
	Cluster  *balance.Cluster
}

// Dump lists everything that is known, sorted by kind and name.
func (t *Table) Dump() []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	clusters := t.view.Load().clusters
	var out []Entry
	for _, e := range sorted(t.entries) {
		d := Entry{Kind: e.kind, Name: e.name, Updated: e.updated, Resource: e.inForce}
		switch {
		case e.inForce != nil:
			d.State = Ready
		case e.settled:
			d.State = Absent
		}
		if e.kind == plan.KindCluster {
			d.Cluster = clusters[e.name]
		}
		out = append(out, d)
	}
	return out
}
