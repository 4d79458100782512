package metrics

import (
	"sync/atomic"
	"time"
)

// merger adds up the entries of all shards that have the same key. It belongs
// to the registry and is used under its lock.
type merger[K comparable] struct {
	groups map[K]*group[K]
}

// group is one series over all shards.
type group[K comparable] struct {
	entries []*entry[K]
	// base holds what entries that are gone had counted.
	base    []uint64
	changed time.Time
}

// drain takes over the entries that a table made since the last scrape.
func drain[K comparable](m *merger[K], t *table[K], now time.Time) {
	if m.groups == nil {
		m.groups = map[K]*group[K]{}
	}
	for e := t.fresh.Swap(nil); e != nil; {
		g := m.groups[e.key]
		if g == nil {
			g = &group[K]{changed: now}
			m.groups[e.key] = g
		}
		g.entries = append(g.entries, e)
		e, e.next = e.next, nil
	}
}

// gather gives the sums of each live series to yield and retires what is idle.
// The cells given to yield are valid during the call.
func (m *merger[K]) gather(now time.Time, idleAfter time.Duration, yield func(K, []uint64)) {
	var sum []uint64
	for k, g := range m.groups {
		for _, e := range g.entries {
			if uses := e.uses.Load(); uses != e.seen {
				e.seen, g.changed = uses, now
			}
		}
		if idleAfter > 0 && now.Sub(g.changed) > idleAfter && g.retire() {
			delete(m.groups, k)
			continue
		}
		sum = append(sum[:0], g.base...)
		for _, e := range g.entries {
			sum = add(sum, e.cells)
		}
		yield(k, sum)
	}
}

// retire drops every entry that was not used since it was read, and reports
// whether none is left. What it drops stays counted in base for as long as
// another shard uses the series, because a counter must not go backwards.
func (g *group[K]) retire() bool {
	kept := g.entries[:0]
	for _, e := range g.entries {
		e.retired.Add(1)
		if e.uses.CompareAndSwap(e.seen, e.seen|retiredBit) {
			g.base = add(g.base, e.cells)
			continue
		}
		e.retired.Add(-1)
		kept = append(kept, e)
	}
	clear(g.entries[len(kept):])
	g.entries = kept
	return len(kept) == 0
}

func add(sum []uint64, cells []atomic.Uint64) []uint64 {
	if len(sum) == 0 {
		sum = append(sum, make([]uint64, len(cells))...)
	}
	for i := range cells {
		sum[i] += cells[i].Load()
	}
	return sum
}
