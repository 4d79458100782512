package table

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/lateen-mesh/lateen/plan"
)

// Update takes one response of the control plane. What of it cannot be obeyed
// is returned by name, with the reason; of these what was in force stays. Only
// one goroutine may call it.
func (t *Table) Update(kind plan.Kind, added []plan.Resource, removed []string) (refused map[string]error) {
	for _, r := range added {
		if err := t.check(kind, r); err != nil {
			if refused == nil {
				refused = map[string]error{}
			}
			refused[r.ResourceName()] = fmt.Errorf("%s %q: %w", kind, r.ResourceName(), err)
		}
	}
	t.mu.Lock()
	for _, r := range added {
		if err := refused[r.ResourceName()]; err != nil {
			t.refuse(ref{kind, r.ResourceName()}, err)
		} else {
			t.answer(ref{kind, r.ResourceName()}, r)
		}
	}
	for _, name := range removed {
		t.answer(ref{kind, name}, nil)
	}
	called := t.settle()
	t.mu.Unlock()
	for _, f := range called {
		f()
	}
	return refused
}

// Refuse notes that an answer of the control plane cannot be obeyed, and why. What was in force stays.
func (t *Table) Refuse(kind plan.Kind, name string, why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refuse(ref{kind, name}, why)
}

func (t *Table) refuse(r ref, why error) {
	if e := t.answered(r, true); e != nil {
		e.refused = why
	}
}

// answered is the entry of what the control plane speaks of, and says to exist or not; nil: it is not asked for any more.
func (t *Table) answered(r ref, exists bool) *entry {
	e := t.entries[r]
	if e == nil && r.kind == plan.KindListener && t.watch != nil && exists {
		e = &entry{ref: r, root: true}
		t.entries[r] = e
		t.roots++
	}
	return e
}

// answer notes what the control plane says of a ref.
func (t *Table) answer(r ref, res plan.Resource) {
	e := t.answered(r, res != nil)
	if e == nil {
		return
	}
	e.refused = nil
	t.loose = t.loose || e.fresh && len(e.nextRefs) > 0 // what was on its way is not to come into force
	e.next, e.nextRefs, e.fresh, e.updated = res, refs(res), true, t.cfg.Now()
	t.fresh[e] = struct{}{}
}

// settle brings into force what is complete, asks for what is missing and drops what nothing needs. It returns
// what is to be called.
func (t *Table) settle() (called []func()) {
	for changed := true; changed; {
		changed = false
		for _, e := range sorted(maps.Keys(t.fresh)) {
			if t.complete(e) {
				called = append(called, t.enforce(e)...)
				changed = true
			}
		}
	}
	if now := t.cfg.Now(); t.loose || now.Sub(t.swept) >= sweepEvery {
		t.sweep()
	}
	if t.dirty {
		t.publish()
	}
	if t.relist && t.watch != nil {
		names, watch := t.listenerNames(), t.watch
		called = append(called, func() { watch(names) })
	}
	t.relist = false
	return called
}

// complete reports whether everything that the newest version refers to, directly or not, is in force in its own
// newest version, and asks for what has not been asked for.
func (t *Table) complete(e *entry) bool {
	whole := true
	for _, r := range e.nextRefs {
		d := t.entries[r]
		if d == nil {
			d = t.subscribe(r)
		}
		whole = whole && d.settled && !d.fresh
	}
	return whole
}

// enforce brings the newest version into force and returns who waits for it.
func (t *Table) enforce(e *entry) (called []func()) {
	first := !e.settled
	t.loose = t.loose || len(e.inForceRefs) > 0 || e.next == nil
	e.inForce, e.inForceRefs, e.settled, e.fresh = e.next, e.nextRefs, true, false
	e.next, e.nextRefs = nil, nil
	e.changed = t.serial.Load() + 1
	delete(t.fresh, e)
	t.relist = t.relist || e.kind == plan.KindListener
	if e.kind != plan.KindEndpoints || first || !t.setEndpoints(e) {
		t.dirty = true
	}
	for w := range e.waiting {
		called = append(called, w.f)
	}
	e.waiting = nil
	return called
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

// sweep drops what neither a root nor anything in force, or on its way into force, refers to.
func (t *Table) sweep() {
	t.swept, t.loose = t.cfg.Now(), false
	needed := map[*entry]bool{}
	var need func(e *entry)
	need = func(e *entry) {
		if e == nil || needed[e] {
			return
		}
		needed[e] = true
		for _, r := range e.inForceRefs {
			need(t.entries[r])
		}
		for _, r := range e.nextRefs {
			need(t.entries[r])
		}
	}
	for _, e := range t.entries {
		if e.root && t.expired(e) {
			e.root = false
			t.roots--
			t.dirty = true
		}
		if e.root || len(e.waiting) > 0 {
			need(e)
		}
	}
	gone := map[plan.Kind][]string{}
	for r, e := range t.entries {
		if needed[e] {
			continue
		}
		delete(t.entries, r)
		delete(t.fresh, e)
		t.dirty = true
		if e.asked {
			gone[r.kind] = append(gone[r.kind], r.name)
		}
	}
	for _, kind := range plan.Kinds() {
		if names := gone[kind]; names != nil {
			slices.Sort(names)
			t.cfg.Unsubscribe(kind, names...)
		}
	}
}

// expired reports whether a root is to be given up: it has not been used for long, or a wildcard brought it and it
// has been removed.
func (t *Table) expired(e *entry) bool {
	switch {
	case !e.asked:
		return e.settled && e.inForce == nil
	case e.ref == inbound:
		return false
	}
	return len(e.waiting) == 0 && t.swept.UnixNano()-e.used.Load() > int64(rootIdle)
}

// inbound is a sidecar's own side, which it always needs.
var inbound = ref{plan.KindListener, plan.ListenerInbound}

// evict drops the roots that have been unused for longest.
func (t *Table) evict() {
	var idle []*entry
	for _, e := range t.entries {
		if e.root && e.asked && e.ref != inbound && len(e.waiting) == 0 {
			idle = append(idle, e)
		}
	}
	slices.SortFunc(idle, func(a, b *entry) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
	for _, e := range idle[:min(evictStep, len(idle))] {
		e.root = false
		t.roots--
		t.dirty = true
	}
	t.sweep()
}
