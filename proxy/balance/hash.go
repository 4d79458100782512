package balance

import (
	"slices"
	"sort"
	"strconv"
)

// The sizes of the hash algorithms' tables (Istio's defaults).
const (
	ringSizeDefault   = 1024
	ringSizeMax       = 8 << 20
	maglevSizeDefault = 65537
)

// point is a place on the ring.
type point struct {
	hash uint64
	ep   uint16
}

// fnv1a is the hash of an endpoint's name. It must be the same in every proxy, so that all send one key to one
// place; maphash is not.
func fnv1a(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

func (e *Endpoint) hashName() string {
	if e.key.addr.IsValid() {
		return e.key.addr.String()
	}
	return e.key.host + ":" + strconv.Itoa(int(e.key.port))
}

// buildRing places each endpoint on the ring as often as its weight says, in all at least size times, and each
// endpoint at least once.
func buildRing(eps []*Endpoint, weights []uint32, size int) []point {
	if size <= 0 {
		size = ringSizeDefault
	}
	if len(eps) == 0 || len(eps) > 1<<16 {
		return nil
	}
	var sum uint64
	for _, w := range weights {
		sum += uint64(w)
	}
	size = min(max(size, len(eps)), ringSizeMax)
	ring := make([]point, 0, size+len(eps))
	for i, e := range eps {
		n := max((uint64(size)*uint64(weights[i])+sum-1)/sum, 1)
		base := fnv1a(e.hashName())
		for j := range n {
			ring = append(ring, point{mix(base + j*0x9e3779b97f4a7c15), uint16(i)})
		}
	}
	slices.SortFunc(ring, func(a, b point) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return int(a.ep) - int(b.ep)
	})
	return ring
}

// lookupRing finds the first point at or after a hash.
func lookupRing(ring []point, h uint64) int {
	i := sort.Search(len(ring), func(i int) bool { return ring[i].hash >= h })
	if i == len(ring) {
		i = 0
	}
	return int(ring[i].ep)
}

// buildMaglev fills the lookup table of Maglev (Eisenbud et al., NSDI 2016, section 3.4), each endpoint getting
// turns in proportion to its weight.
func buildMaglev(eps []*Endpoint, weights []uint32, size int) []uint16 {
	if size <= 0 {
		size = maglevSizeDefault
	}
	if len(eps) == 0 || len(eps) > 1<<16 {
		return nil
	}
	type state struct{ offset, skip, next, turns uint64 }
	var most uint32
	states := make([]state, len(eps))
	for i, e := range eps {
		h := fnv1a(e.hashName())
		states[i] = state{offset: mix(h) % uint64(size), skip: mix(h^0xabcdef)%uint64(size-1) + 1}
		most = max(most, weights[i])
	}
	table := make([]uint16, size)
	taken := make([]bool, size)
	for filled, round := 0, uint64(1); filled < size; round++ {
		for i := range states {
			st := &states[i]
			if st.turns*uint64(most) > round*uint64(weights[i]) {
				continue // has had its share
			}
			st.turns++
			at := st.offset
			for taken[at] {
				st.next++
				at = (st.offset + st.skip*st.next) % uint64(size)
			}
			taken[at], table[at] = true, uint16(i)
			st.next++
			st.offset, st.next = (st.offset+st.skip*st.next)%uint64(size), 0
			if filled++; filled == size {
				break
			}
		}
	}
	return table
}

// scheduleMax bounds a weighted round robin's schedule.
const scheduleMax = 4096

// smooth makes a schedule in which each endpoint has turns in proportion to its weight, spread evenly (smooth
// weighted round robin).
func smooth(weights []uint32) []uint16 {
	if len(weights) > scheduleMax {
		return nil
	}
	var sum uint64
	g := uint64(0)
	for _, w := range weights {
		sum += uint64(w)
		g = gcd(g, uint64(w))
	}
	scaled := make([]int64, len(weights))
	var total int64
	for i, w := range weights {
		scaled[i] = int64(w) / int64(g)
		if sum/g > scheduleMax {
			scaled[i] = max(int64(uint64(w)*scheduleMax/sum), 1)
		}
		total += scaled[i]
	}
	current := make([]int64, len(weights))
	schedule := make([]uint16, 0, total)
	for range total {
		best := 0
		for i := range current {
			current[i] += scaled[i]
			if current[i] > current[best] {
				best = i
			}
		}
		current[best] -= total
		schedule = append(schedule, uint16(best))
	}
	return schedule
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
