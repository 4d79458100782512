package balance

import (
	"cmp"
	"slices"
	"sort"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// The sizes of the hash algorithms' tables, and their bounds, which keep a proxy small.
const (
	ringSizeDefault   = 1024 // Istio's minimumRingSize
	ringSizeMax       = 1 << 20
	maglevSizeDefault = 65537 // Istio's tableSize
	maglevSizeMax     = 5000011
)

// point is a place on the ring.
type point struct {
	hash uint64
	ep   uint32
}

// seeded is the hash of an endpoint's name beside others of the same name. It must be the same in every proxy and at
// every start, so that all send one key to one place; hash/maphash is not. It is Envoy's, so that Envoys may stand beside
// our proxies.
func seeded(s string, seed uint64) uint64 {
	d := xxhash.NewWithSeed(seed)
	_, _ = d.WriteString(s) // never fails
	return d.Sum64()
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
	size = min(size, ringSizeMax)
	var sum uint64
	for _, w := range weights {
		sum += uint64(w)
	}
	ring := make([]point, 0, size+len(eps))
	for i, e := range eps {
		n := (uint64(size)*uint64(weights[i]) + sum - 1) / sum
		name := append([]byte(e.hashName()), '_')
		for j := range n {
			ring = append(ring, point{xxhash.Sum64(strconv.AppendUint(name, j, 10)), uint32(i)})
		}
	}
	slices.SortFunc(ring, func(a, b point) int {
		if a.hash != b.hash {
			return cmp.Compare(a.hash, b.hash)
		}
		return cmp.Compare(eps[a.ep].hashName(), eps[b.ep].hashName())
	})
	return ring
}

// lookupRing finds the endpoint of the first point at or after a hash, or of the one that is skip points further.
func lookupRing(ring []point, h uint64, skip int) int {
	i := sort.Search(len(ring), func(i int) bool { return ring[i].hash >= h })
	return int(ring[(i+skip)%len(ring)].ep)
}

// buildMaglev fills the lookup table of Maglev (Eisenbud et al., NSDI 2016, section 3.4), each endpoint getting
// turns in proportion to its weight. The order of the endpoints does not matter; the size is made prime, without
// which an endpoint's sequence would not reach every place.
func buildMaglev(eps []*Endpoint, weights []uint32, size int) []uint32 {
	if size <= 0 {
		size = maglevSizeDefault
	}
	n := primeFrom(uint64(max(min(size, maglevSizeMax), len(eps), 2)))
	type turn struct {
		name                    string
		ep                      uint32
		weight, at, skip, turns uint64
	}
	turns := make([]turn, len(eps))
	var most uint64
	for i, e := range eps {
		name := e.hashName()
		turns[i] = turn{name: name, ep: uint32(i), weight: uint64(weights[i]), at: seeded(name, 0) % n, skip: seeded(name, 1)%(n-1) + 1}
		most = max(most, turns[i].weight)
	}
	slices.SortFunc(turns, func(a, b turn) int { return cmp.Compare(a.name, b.name) })
	table, taken := make([]uint32, n), make([]bool, n)
	for left, round := n, uint64(1); ; round++ {
		for i := range turns {
			t := &turns[i]
			if t.turns*most >= round*t.weight {
				continue // has had its share
			}
			t.turns++
			for taken[t.at] {
				t.at = (t.at + t.skip) % n
			}
			taken[t.at], table[t.at] = true, t.ep
			if left--; left == 0 {
				return table
			}
		}
	}
}

// primeFrom is the smallest prime number from n on.
func primeFrom(n uint64) uint64 {
	for ; ; n++ {
		prime := n >= 2
		for d := uint64(2); prime && d*d <= n; d++ {
			prime = n%d != 0
		}
		if prime {
			return n
		}
	}
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
