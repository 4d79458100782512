package mesh

import (
	"hash/maphash"
	"maps"
)

// fanout is the width of each of a table's two inner levels: 4,096 leaves, so
// that a change in a table of 100,000 entries copies about 64+64 pointers and
// a map of 25.
const fanout = 64

// seed is that of this process: nothing depends on where an entry lies.
var seed = maphash.MakeSeed()

// leaf holds the entries of one slot.
type leaf[K comparable, V any] map[K]V

// table is a persistent map: with and without return a changed table and
// leave the old one as it is. The zero value is empty.
type table[K comparable, V any] struct {
	root *[fanout]*[fanout]leaf[K, V]
	len  int
}

// slot is where a key belongs on the two levels.
func slot[K comparable](k K) (hi, lo int) {
	h := maphash.Comparable(seed, k)
	return int(h % fanout), int(h / fanout % fanout)
}

func (t table[K, V]) get(k K) (v V, ok bool) {
	if t.root == nil {
		return v, false
	}
	hi, lo := slot(k)
	if t.root[hi] == nil {
		return v, false
	}
	v, ok = t.root[hi][lo][k]
	return v, ok
}

// with returns a table in which k is v. own holds what this batch of changes
// has already copied and may write in place: a table from the middle of a
// batch is good for going on only.
func (t table[K, V]) with(k K, v V, own *owned[K, V]) table[K, V] {
	m := own.leaf(&t, k)
	if _, had := m[k]; !had {
		t.len++
	}
	m[k] = v
	return t
}

// without returns a table that lacks k.
func (t table[K, V]) without(k K, own *owned[K, V]) table[K, V] {
	if _, had := t.get(k); !had {
		return t
	}
	delete(own.leaf(&t, k), k)
	t.len--
	return t
}

// owned remembers the parts of a table that one batch of changes has copied.
type owned[K comparable, V any] struct {
	root   bool
	mids   [fanout]bool
	leaves [fanout][fanout]bool
}

// leaf returns the map that holds k, copied into t if this batch has not done so yet.
func (o *owned[K, V]) leaf(t *table[K, V], k K) leaf[K, V] {
	hi, lo := slot(k)
	if !o.root {
		root := new([fanout]*[fanout]leaf[K, V])
		if t.root != nil {
			*root = *t.root
		}
		t.root, o.root = root, true
	}
	if !o.mids[hi] {
		mid := new([fanout]leaf[K, V])
		if t.root[hi] != nil {
			*mid = *t.root[hi]
		}
		t.root[hi], o.mids[hi] = mid, true
	}
	if !o.leaves[hi][lo] {
		m := make(leaf[K, V], len(t.root[hi][lo])+1)
		maps.Copy(m, t.root[hi][lo])
		t.root[hi][lo], o.leaves[hi][lo] = m, true
	}
	return t.root[hi][lo]
}
