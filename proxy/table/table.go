// Package table is the live plan of a proxy: what the control plane has ordered,
// compiled once when it arrives and looked up by event loops.
//
// In: resources and removals, from one goroutine (Update); names, from any
// goroutine (Listener, Route, Name), of which the first mention asks for the
// resource. Out: immutable compiled values. A resource takes effect together
// with everything that it refers to: until all of that has been answered, the
// version before it stays in force. The package must not know sockets, xDS or
// encodings.
//
// Lookups read one immutable view behind an atomic pointer. An update of
// endpoints alone touches neither the view nor what is compiled; any other
// update makes a new view and compiles what has changed and what refers to it.
package table

import (
	"log/slog"
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
	// evictStep is how many make way at once, so that a flood of names does not cost a sweep for each.
	evictStep = 64
	// rootIdle is how long an unused name stays subscribed.
	rootIdle = time.Hour
	// sweepEvery is how often updates look for such names.
	sweepEvery = time.Minute
	// usedStep is how exactly the time of use is noted; a mark on each lookup would make loops write to one place.
	usedStep = time.Second
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

// entry is what is known of one ref. It is guarded by Table.mu.
type entry struct {
	ref
	asked bool // subscribed by its name; else a wildcard brought it
	root  bool // somebody has looked it up

	next     plan.Resource // the newest answer; nil: absent
	nextRefs []ref
	fresh    bool // next is not in force yet

	refused error // why a newer answer than next and inForce cannot be obeyed; nil: there is none

	inForce     plan.Resource // nil: absent, or nothing has ever been in force
	inForceRefs []ref
	settled     bool   // something, be it absence, is in force
	changed     uint64 // the serial with which it came into force

	value   any    // what inForce was compiled to: *Listener, *Route, *balance.Cluster; nil for the others
	built   uint64 // the serial with which it was compiled
	updated time.Time
	waiting map[*waiter]struct{}
	used    atomic.Int64 // ns, of roots
}

type waiter struct{ f func() }

// Table is the live plan. Lookups are for any goroutine and take no lock when the answer is in force.
type Table struct {
	cfg    Config
	view   atomic.Pointer[view]
	serial atomic.Uint64 // of views

	mu      sync.Mutex
	entries map[ref]*entry
	fresh   map[*entry]struct{} // those of which a newer version waits
	roots   int
	watch   func([]string) // nil: nobody watches
	dirty   bool           // the view is not up to date
	loose   bool           // something may not be referred to any more
	swept   time.Time
	relist  bool // the listeners in force have changed since the watcher was told
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
	value T
	state State // Ready or Absent
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
	t := &Table{cfg: cfg, entries: map[ref]*entry{}, fresh: map[*entry]struct{}{}}
	t.view.Store(&view{clusters: builtin()})
	return t
}

// builtinNames are the clusters that need no asking.
var builtinNames = []string{plan.ClusterPassthrough, plan.ClusterInboundPassthrough, plan.ClusterBlackHole}

// inboundSource is the address from which an application sees its own proxy connect (Istio's InboundPassthroughCluster).
const inboundSource = "127.0.0.6"

func builtin() map[string]*balance.Cluster {
	out := map[string]*balance.Cluster{}
	for _, name := range builtinNames {
		p := &plan.Cluster{Name: name, Discovery: plan.DiscoverOriginalDst, Service: plan.ServiceName{Name: name}}
		switch name {
		case plan.ClusterPassthrough:
			p.External = true
		case plan.ClusterInboundPassthrough:
			p.BindSource = inboundSource
		case plan.ClusterBlackHole:
			p.Discovery = plan.DiscoverNothing
		}
		out[name] = balance.New(p, nil)
	}
	return out
}

// Listener returns the listener of that name, and asks for it if it is new.
func (t *Table) Listener(name string) (*Listener, State) {
	return lookup(t, plan.KindListener, name, func(v *view) map[string]*rooted[*Listener] { return v.listeners })
}

// Route returns the route of that name, and asks for it if it is new.
func (t *Table) Route(name string) (*Route, State) {
	return lookup(t, plan.KindRoute, name, func(v *view) map[string]*rooted[*Route] { return v.routes })
}

// Name returns the answer to a DNS question, and asks for it if it is new.
func (t *Table) Name(name string) (*plan.Name, State) {
	return lookup(t, plan.KindName, name, func(v *view) map[string]*rooted[*plan.Name] { return v.names })
}

func lookup[T any](t *Table, kind plan.Kind, name string, in func(*view) map[string]*rooted[T]) (T, State) {
	r := in(t.view.Load())[name]
	if r == nil && t.ask(ref{kind, name}) {
		r = in(t.view.Load())[name]
	}
	if r == nil {
		var none T
		return none, Pending
	}
	now := t.cfg.Now().UnixNano()
	if now-r.e.used.Load() > int64(usedStep) {
		r.e.used.Store(now)
	}
	return r.value, r.state
}

// Serial changes whenever something new, other than endpoints, comes into force.
func (t *Table) Serial() uint64 { return t.serial.Load() }

// Cluster returns a cluster that something in force refers to; nil if there is none.
func (t *Table) Cluster(name string) *balance.Cluster { return t.view.Load().clusters[name] }

// Secret returns a secret that something in force refers to; nil if there is none.
func (t *Table) Secret(name string) *plan.Secret { return t.view.Load().secrets[name] }

// ask subscribes to a name unless that has been done, and reports whether it is in the view now.
func (t *Table) ask(r ref) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[r]
	if e == nil {
		if t.roots >= rootsMax {
			t.evict()
		}
		e = t.subscribe(r)
	}
	e.used.Store(t.cfg.Now().UnixNano())
	if !e.root {
		e.root = true
		t.roots++
		t.dirty = t.dirty || e.settled // known as part of something else; now it can be looked up
	}
	if t.dirty {
		t.publish()
	}
	return e.settled
}

func (t *Table) subscribe(r ref) *entry {
	e := &entry{ref: r, asked: true}
	t.entries[r] = e
	t.cfg.Subscribe(r.kind, r.name)
	return e
}

// Await calls f once when the name stops being pending, from the goroutine that feeds the table, or at once if it
// is not pending. The function that it returns cancels the call; one that is being made at that moment is not held up.
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
// with the names of those in force, sorted, whenever one has come, gone or changed.
func (t *Table) WatchListeners(f func(names []string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watch = f
	t.cfg.Subscribe(plan.KindListener, "*")
}
