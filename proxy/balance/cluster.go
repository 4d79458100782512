// Package balance is the running side of one cluster in the data plane: which
// endpoint gets the next request, which ones are ejected, and how much the
// cluster may hold at once.
//
// In: a plan.Cluster and its endpoints, the outcomes of requests, and the time.
// Out: an Endpoint for each request, or that there is none. It does no I/O, has
// no clock and starts nothing. One goroutine configures a Cluster (New,
// SetEndpoints); any number of event loops pick and report at once, without a
// lock on the way.
package balance

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// Cluster is one cluster of the plan in operation. Counters and ejections
// outlive its updates.
type Cluster struct {
	plan  *plan.Cluster
	state *state
}

// state is what survives an update of the plan.
type state struct {
	set     atomic.Pointer[set]
	limits  limits
	turn    atomic.Uint64 // round robin
	ejected atomic.Int32

	mu   sync.Mutex // SetEndpoints, ejections
	list []*Endpoint
}

// set is one immutable list of endpoints, with what the algorithm precomputes.
type set struct {
	all      []*Endpoint // that may be picked: not draining
	weights  []uint32    // cumulative; nil when all weights are equal
	schedule []uint16    // round robin by weight; nil when all weights are equal
	ring     []point     // ring hash, sorted
	table    []uint16    // Maglev
	near     []*Endpoint // of the nearest localities; nil: no preference
	serial   uint64
}

// New puts a cluster into operation. prev is the cluster of the same name that it replaces, or nil.
func New(p *plan.Cluster, prev *Cluster) *Cluster {
	c := &Cluster{plan: p}
	if prev == nil {
		c.state = &state{}
		c.state.set.Store(&set{})
		return c
	}
	c.state = prev.state
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	c.state.set.Store(c.build(c.state.list)) // the algorithm may be another one
	return c
}

// Plan is what the cluster was ordered to be.
func (c *Cluster) Plan() *plan.Cluster { return c.plan }

// SetEndpoints replaces the endpoints. One that was there before, by address,
// keeps its counters and its ejection.
func (c *Cluster) SetEndpoints(eps []plan.Endpoint) {
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	old := make(map[key]*Endpoint, len(c.state.list))
	for _, e := range c.state.list {
		old[e.key] = e
	}
	list := make([]*Endpoint, 0, len(eps))
	seen := make(map[key]bool, len(eps))
	for i := range eps {
		k := keyOf(&eps[i])
		if seen[k] {
			continue
		}
		seen[k] = true
		e := old[k]
		if e == nil {
			e = &Endpoint{key: k}
		}
		delete(old, k)
		e.plan.Store(&eps[i])
		e.cluster.Store(c)
		list = append(list, e)
	}
	for _, gone := range old {
		if gone.ejectedUntil.Swap(0) != 0 {
			c.state.ejected.Add(-1)
		}
	}
	c.state.list = list
	c.state.set.Store(c.build(list))
}

// Endpoints lists the endpoints, draining ones included.
func (c *Cluster) Endpoints() []*Endpoint {
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	return append([]*Endpoint(nil), c.state.list...)
}

// build precomputes what the cluster's algorithm needs. Unhealthy endpoints are
// picked from only when there is no healthy one.
func (c *Cluster) build(list []*Endpoint) *set {
	s := &set{serial: 1}
	if old := c.state.set.Load(); old != nil {
		s.serial = old.serial + 1
	}
	for _, health := range []plan.Health{plan.Healthy, plan.Unhealthy} {
		for _, e := range list {
			if e.Plan().Health == health {
				s.all = append(s.all, e)
			}
		}
		if len(s.all) > 0 {
			break
		}
	}
	s.near = c.nearest(s.all)
	s.all = c.distribute(s.all)
	weights, equal := weightsOf(s.all)
	switch c.plan.Balance.Algorithm {
	case plan.RingHash:
		s.ring = buildRing(s.all, weights, c.plan.Balance.RingSize)
	case plan.Maglev:
		s.table = buildMaglev(s.all, weights, c.plan.Balance.RingSize)
	case plan.RoundRobin:
		if !equal {
			s.schedule = smooth(weights)
		}
	}
	if !equal {
		s.weights = make([]uint32, len(weights))
		var sum uint32
		for i, w := range weights {
			sum += w
			s.weights[i] = sum
		}
	}
	return s
}

// weightsOf lists the weights (0 counts as 1), scaled so that their sum is small enough to be added up.
func weightsOf(eps []*Endpoint) (weights []uint32, equal bool) {
	weights, equal = make([]uint32, len(eps)), true
	var sum uint64
	for i, e := range eps {
		weights[i] = max(e.Plan().Weight, 1)
		sum += uint64(weights[i])
		equal = equal && weights[i] == weights[0]
	}
	for sum > 1<<31 {
		sum = 0
		for i := range weights {
			weights[i] = max(weights[i]/2, 1)
			sum += uint64(weights[i])
		}
	}
	return weights, equal
}

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

// pickTries is how often a choice is repeated to avoid what was tried (Envoy: host_selection_retry_max_attempts 5).
const pickTries = 5

// Pick chooses an endpoint; false if there is none that may be used.
func (c *Cluster) Pick(p Pick) (*Endpoint, bool) {
	s := c.state.set.Load()
	if len(s.all) == 0 {
		return nil, false
	}
	now := p.Now.UnixNano()
	ejected := c.ejecting(s, now)
	if s.near != nil {
		if e := c.pickNear(s.near, &p, now); e != nil {
			return e, true
		}
	}
	rnd := p.Rand
	var chosen *Endpoint
	for range pickTries {
		e := c.choose(s, &p, rnd)
		rnd = next(rnd)
		if ejected && e.out(now) {
			continue
		}
		chosen = e
		if !tried(p.Tried, e) && c.warm(e, p.Now, rnd) {
			return e, true
		}
	}
	if e := c.scan(s, &p, now, ejected); e != nil {
		return e, true
	}
	return chosen, chosen != nil
}

// scan looks through all endpoints, from a random one on, for one that is neither ejected nor tried, or at least
// not ejected.
func (c *Cluster) scan(s *set, p *Pick, now int64, ejected bool) *Endpoint {
	var second *Endpoint
	start := int(p.Rand % uint32(len(s.all)))
	for i := range s.all {
		e := s.all[(start+i)%len(s.all)]
		if ejected && e.out(now) {
			continue
		}
		if !tried(p.Tried, e) {
			return e
		}
		if second == nil {
			second = e
		}
	}
	return second
}

// choose applies the algorithm once.
func (c *Cluster) choose(s *set, p *Pick, rnd uint32) *Endpoint {
	switch c.plan.Balance.Algorithm {
	case plan.RoundRobin:
		n := c.state.turn.Add(1) - 1
		if s.schedule != nil {
			return s.all[s.schedule[n%uint64(len(s.schedule))]]
		}
		return s.all[n%uint64(len(s.all))]
	case plan.RingHash:
		return s.all[lookupRing(s.ring, p.hash(rnd))]
	case plan.Maglev:
		return s.all[s.table[p.hash(rnd)%uint64(len(s.table))]]
	case plan.Random:
		return s.random(rnd)
	default:
		return s.leastRequest(rnd)
	}
}

// hash is the request's, on the first try; a random one without, or to get past an endpoint that is out.
func (p *Pick) hash(rnd uint32) uint64 {
	if p.HasHash && rnd == p.Rand {
		return p.Hash
	}
	return mix(p.Hash ^ uint64(rnd)<<32 | uint64(rnd))
}

func (s *set) random(rnd uint32) *Endpoint {
	if s.weights == nil {
		return s.all[rnd%uint32(len(s.all))]
	}
	x := rnd % s.weights[len(s.weights)-1]
	lo, hi := 0, len(s.weights)-1
	for lo < hi {
		mid := (lo + hi) / 2
		if s.weights[mid] > x {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return s.all[lo]
}

// leastRequest takes the less busy of two random endpoints.
func (s *set) leastRequest(rnd uint32) *Endpoint {
	if len(s.all) == 1 {
		return s.all[0]
	}
	a := s.random(rnd)
	b := s.random(next(rnd))
	if b.active.Load() < a.active.Load() {
		return b
	}
	return a
}

func tried(list []*Endpoint, e *Endpoint) bool {
	for _, t := range list {
		if t == e {
			return true
		}
	}
	return false
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
