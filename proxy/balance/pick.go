package balance

import (
	"cmp"
	"slices"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// Pick is what influences a choice.
type Pick struct {
	// Hash chooses for the hash algorithms, if HasHash; without it they choose at random.
	Hash    uint64
	HasHash bool
	// Tried are endpoints to avoid while there are others.
	Tried []*Endpoint
	// Rand is a random number.
	Rand uint32
	// Now ends ejections whose time is over.
	Now time.Time
}

const (
	// pickTries is how often a choice is repeated to avoid what was tried (Envoy: host_selection_retry_max_attempts 5).
	pickTries = 5
	// hashTries is the same for choices by hash, which go on to the next places.
	hashTries = 256
	// overprovision is how much traffic, in percent of its share, what is healthy of a locality takes before some of
	// it goes farther away (Envoy: overprovisioning_factor).
	overprovision = 140
)

// Pick chooses an endpoint; false if there is none that may be used.
func (c *Cluster) Pick(p Pick) (*Endpoint, bool) {
	now := p.Now.UnixNano()
	if c.state.ejected.Load() > 0 && now >= c.state.returns.Load() && c.state.mu.TryLock() {
		c.sweep(now)
		c.state.mu.Unlock()
	}
	s := c.state.set.Load()
	if len(s.levels) == 0 {
		return nil, false
	}
	first := s.levelFor(next(p.Rand ^ 0x5bd1e995))
	var second *Endpoint
	for i := range s.levels { // the level whose turn it is, then the others in their order
		l := s.levels[first]
		switch {
		case i > 0 && i <= first:
			l = s.levels[i-1]
		case i > first:
			l = s.levels[i]
		}
		e, good := c.pick(l, &p, now)
		if good {
			return e, true
		}
		if second == nil {
			second = e
		}
	}
	return second, second != nil
}

// healthy is the part of a level, in percent and overprovisioned, that may be picked.
func (l *level) healthy() int {
	return min((len(l.eps)-int(l.out.Load()))*overprovision/l.total, 100)
}

// levelFor chooses a level: each takes what it has the healthy endpoints for, and leaves the rest to the next.
func (s *set) levelFor(rnd uint32) int {
	if len(s.levels) == 1 || s.levels[0].healthy() == 100 {
		return 0
	}
	sum := 0
	for _, l := range s.levels {
		sum += l.healthy()
	}
	x := int(uint64(rnd) * uint64(min(sum, 100)) >> 32)
	for i, l := range s.levels {
		if x -= l.healthy(); x < 0 {
			return i
		}
	}
	return 0 // nothing is healthy
}

// pick chooses within a level: a good endpoint if there is one, else one that has been tried, else one that is lost; nil
// if all are ejected.
func (c *Cluster) pick(l *level, p *Pick, now int64) (e *Endpoint, good bool) {
	ejected := l.out.Load() > 0 && !c.panics(l)
	rnd, tries := p.Rand, pickTries
	if p.HasHash && (l.ring != nil || l.table != nil) {
		tries = hashTries
	}
	for try := range tries {
		e := c.choose(l, p, try, rnd)
		rnd = next(rnd)
		if (!ejected || !e.out(now)) && !slices.Contains(p.Tried, e) && c.warm(e, p.Now, rnd) && !e.lost(now) {
			return e, true
		}
	}
	// Look at each, from a place on that is random, or for a hash always the same.
	start := uint64(p.Rand)
	if p.HasHash {
		start = p.Hash
	}
	n := uint64(len(l.eps))
	var tried, lost *Endpoint
	for i := range n {
		e := l.eps[(start%n+i)%n]
		switch {
		case ejected && e.out(now):
		case slices.Contains(p.Tried, e):
			tried = cmp.Or(tried, e)
		case e.lost(now):
			lost = cmp.Or(lost, e)
		default:
			return e, true
		}
	}
	return cmp.Or(tried, lost), false
}

// panics reports whether so few endpoints are healthy that ejections are not to be heeded (Istio: minHealthPercent).
func (c *Cluster) panics(l *level) bool {
	o := c.plan.Outlier
	return o != nil && o.MinHealthPercent > 0 && (len(l.eps)-int(l.out.Load()))*100 < int(o.MinHealthPercent)*l.total
}

// choose applies the algorithm; try counts how often that was done for this pick. A hash whose place is out goes to
// the places after it, so that all proxies agree where its requests go meanwhile.
func (c *Cluster) choose(l *level, p *Pick, try int, rnd uint32) *Endpoint {
	switch l.by {
	case plan.RoundRobin:
		n := c.state.turn.Add(1) - 1
		switch {
		case l.schedule != nil:
			return l.eps[l.schedule[n%uint64(len(l.schedule))]]
		case l.upTo != nil:
			return l.eps[l.random(rnd)] // too many for a schedule
		}
		return l.eps[n%uint64(len(l.eps))]
	case plan.RingHash:
		return l.eps[lookupRing(l.ring, p.hash(rnd), try)]
	case plan.Maglev:
		return l.eps[l.table[(p.hash(rnd)%uint64(len(l.table))+uint64(try))%uint64(len(l.table))]]
	case plan.Random:
		return l.eps[l.random(rnd)]
	default:
		return l.leastRequest(rnd)
	}
}

// hash is the request's, or a random one.
func (p *Pick) hash(rnd uint32) uint64 {
	if p.HasHash {
		return p.Hash
	}
	return mix(uint64(rnd)<<32 | uint64(next(rnd)))
}

// random is the index of an endpoint, by weight.
func (l *level) random(rnd uint32) int {
	if l.upTo == nil {
		return int(uint64(rnd) * uint64(len(l.eps)) >> 32)
	}
	x := uint32(uint64(rnd) * uint64(l.upTo[len(l.upTo)-1]) >> 32)
	lo, hi := 0, len(l.upTo)-1
	for lo < hi {
		mid := (lo + hi) / 2
		if l.upTo[mid] > x {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

func (l *level) weight(i int) int64 {
	switch {
	case l.upTo == nil:
		return 1
	case i == 0:
		return int64(l.upTo[0])
	}
	return int64(l.upTo[i] - l.upTo[i-1])
}

// leastRequest takes, of two endpoints that are random by weight, the one that is less busy for its weight.
func (l *level) leastRequest(rnd uint32) *Endpoint {
	if len(l.eps) == 1 {
		return l.eps[0]
	}
	a, b := l.random(rnd), l.random(next(rnd))
	if int64(l.eps[b].active.Load())*l.weight(a) < int64(l.eps[a].active.Load())*l.weight(b) {
		a = b
	}
	return l.eps[a]
}

// next is the number after rnd in a cheap pseudo-random sequence (xorshift).
func next(rnd uint32) uint32 {
	if rnd == 0 {
		rnd = 0x9e3779b9
	}
	rnd ^= rnd << 13
	rnd ^= rnd >> 17
	rnd ^= rnd << 5
	return rnd
}

// mix spreads the bits of x (the finaliser of splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
