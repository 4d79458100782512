package metrics

import "sync/atomic"

// retiredBit in entry.uses says that a scrape dropped the entry. A scrape sets it
// by a compare-and-swap against the count of uses, and every use adds to that
// count before it touches a cell. So a use either comes before the swap, which
// then fails, or sees the bit and takes a new entry. Only a loop that stalled
// between the two for as long as a series may be idle could lose a count.
const retiredBit = 1 << 63

// entry is one series of one shard: written by the loop, read by scrapes.
type entry[K comparable] struct {
	key   K
	uses  atomic.Uint64
	cells []atomic.Uint64
	// next links entries that no scrape has seen yet.
	next *entry[K]
	// retired is the table's count; see table.
	retired *atomic.Int64
	// seen is the value of uses at the last scrape; it belongs to the registry.
	seen uint64
}

// table is one shard's series of one kind.
type table[K comparable] struct {
	// The loop's own.
	live   map[K]*entry[K]
	recent *entry[K]
	cells  int
	max    int
	other  func(K) K

	// Shared with scrapes.
	fresh     atomic.Pointer[entry[K]]
	retired   atomic.Int64 // entries of live that are retired, or are being tried
	overflows atomic.Uint64
}

func (t *table[K]) init(cells, max int, other func(K) K) {
	t.live, t.cells, t.max, t.other = map[K]*entry[K]{}, cells, max, other
}

// use returns the cells of the series called k.
func (t *table[K]) use(k K) []atomic.Uint64 {
	e := t.recent
	if e == nil || e.key != k {
		e = t.live[k]
	}
	if e == nil || e.uses.Add(1)&retiredBit != 0 {
		e = t.admit(k)
	}
	t.recent = e
	return e.cells
}

// admit makes the series called k, or finds the one that takes what exceeds the limit.
func (t *table[K]) admit(k K) *entry[K] {
	if t.retired.Load() > 0 {
		t.sweep()
	}
	if len(t.live) >= t.max {
		t.overflows.Add(1)
		k = t.other(k)
		if e := t.live[k]; e != nil && e.uses.Add(1)&retiredBit == 0 {
			return e
		}
	}
	e := &entry[K]{key: k, cells: make([]atomic.Uint64, t.cells), retired: &t.retired}
	e.uses.Store(1)
	t.live[k] = e
	for {
		head := t.fresh.Load()
		e.next = head
		if t.fresh.CompareAndSwap(head, e) {
			return e
		}
	}
}

func (t *table[K]) sweep() {
	t.recent = nil
	for k, e := range t.live {
		if e.uses.Load()&retiredBit != 0 {
			delete(t.live, k)
			t.retired.Add(-1)
		}
	}
}
