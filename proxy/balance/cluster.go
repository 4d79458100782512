// Package balance is the running side of one cluster in the data plane: which
// endpoint gets the next request, which ones are ejected, and how much the
// cluster may hold at once.
//
// In: a plan.Cluster and its endpoints, the outcomes of requests, and the time.
// Out: an Endpoint for each request, or that there is none. It does no I/O, has
// no clock and starts nothing. One goroutine configures a Cluster (New,
// SetEndpoints) at a time; any number of event loops pick and report at once, without
// waiting for a lock on the way.
package balance

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"

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
	returns atomic.Int64 // ns, when the next ejection ends; meaningless while none is in force

	mu     sync.Mutex // guards newest and list, and changes of ejections
	newest *Cluster   // by whose orders the endpoints are prepared
	list   []*Endpoint
}

// set is one immutable list of endpoints: by locality, the nearest first.
type set struct{ levels []*level }

// level is endpoints of one priority, with what the algorithm precomputes. Weights and indexes are those of eps.
type level struct {
	by       plan.Algorithm
	eps      []*Endpoint  // that may be picked
	total    int          // with those that are unhealthy
	out      atomic.Int32 // how many of eps are ejected
	upTo     []uint32     // cumulative weights; nil when all weights are equal
	schedule []uint16     // round robin by weight; nil when all weights are equal, or there are too many
	ring     []point      // ring hash, sorted
	table    []uint32     // Maglev
}

// New puts a cluster into operation. prev is the cluster of the same name that it replaces, or nil.
func New(p *plan.Cluster, prev *Cluster) *Cluster {
	c := &Cluster{plan: p}
	if prev == nil {
		c.state = &state{newest: c}
		c.state.set.Store(&set{})
		return c
	}
	c.state = prev.state
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	c.state.newest = c
	c.replace(c.state.list) // the algorithm may be another one
	return c
}

// Plan is what the cluster was ordered to be.
func (c *Cluster) Plan() *plan.Cluster { return c.plan }

// Same reports whether one of the two has replaced the other, so that they have their endpoints in common.
func (c *Cluster) Same(other *Cluster) bool { return c.state == other.state }

// SetEndpoints replaces the endpoints, also those of the clusters that have
// replaced this one. One that was there before, by address, keeps its counters
// and its ejection. eps must not change any more.
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
		list = append(list, e)
	}
	for _, gone := range old {
		gone.cluster.Store(nil)
		gone.level.Store(nil)
		if gone.ejectedUntil.Swap(0) != 0 {
			c.state.ejected.Add(-1)
		}
	}
	c.state.newest.replace(list)
}

// Endpoints lists the endpoints, draining ones included.
func (c *Cluster) Endpoints() []*Endpoint {
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	return slices.Clone(c.state.list)
}

// replace brings a list of endpoints into use. The caller holds mu.
func (c *Cluster) replace(list []*Endpoint) {
	c.state.list = list
	s := &set{}
	var unhealthy []*Endpoint
	for _, group := range c.priorities(list) {
		l := &level{total: len(group)}
		for _, e := range group {
			if e.Plan().Health == plan.Healthy {
				l.eps = append(l.eps, e)
			} else {
				unhealthy = append(unhealthy, e)
			}
		}
		if len(l.eps) > 0 {
			s.levels = append(s.levels, l)
		}
	}
	if len(s.levels) == 0 && len(unhealthy) > 0 { // better than nothing
		s.levels = []*level{{eps: unhealthy, total: len(unhealthy)}}
	}
	for _, e := range list {
		e.cluster.Store(c)
		e.level.Store(nil)
	}
	for _, l := range s.levels {
		c.prepare(l)
		for _, e := range l.eps {
			e.level.Store(l)
			if e.ejectedUntil.Load() != 0 {
				l.out.Add(1)
			}
		}
	}
	c.state.set.Store(s)
}

// prepare precomputes what the cluster's algorithm needs.
func (c *Cluster) prepare(l *level) {
	weights, equal := c.weightsOf(l.eps)
	l.by = c.plan.Balance.Algorithm
	switch l.by {
	case plan.RingHash:
		l.ring = buildRing(l.eps, weights, c.plan.Balance.RingSize)
	case plan.Maglev:
		l.table = buildMaglev(l.eps, weights, c.plan.Balance.RingSize)
	case plan.RoundRobin:
		if !equal {
			l.schedule = smooth(weights)
		}
	default: // weights are all that is needed
	}
	if !equal {
		l.upTo = make([]uint32, len(weights))
		var sum uint32
		for i, w := range weights {
			sum += w
			l.upTo[i] = sum
		}
	}
}

// weightsOf lists the weights (0 counts as 1; of a locality with a share of its own, the parts of that share),
// scaled so that they can be added up.
func (c *Cluster) weightsOf(eps []*Endpoint) (weights []uint32, equal bool) {
	exact := make([]float64, len(eps))
	groups := map[string]float64{} // sums of weights, by the pattern of the locality
	patterns := make([]string, len(eps))
	distribute := c.plan.Balance.Distribute
	for i, e := range eps {
		exact[i] = float64(max(e.Plan().Weight, 1))
		patterns[i], _ = shareOf(distribute, e.Plan().Locality)
		groups[patterns[i]] += exact[i]
	}
	sum, least := 0.0, math.MaxFloat64
	for i := range exact {
		if len(distribute) > 0 {
			exact[i] *= float64(distribute[patterns[i]]) / groups[patterns[i]]
		}
		sum += exact[i]
		least = min(least, exact[i])
	}
	scale := 1.0
	if len(distribute) > 0 { // fractions
		scale = 1000 / least
	}
	scale = min(scale, (1<<31)/sum)
	weights, equal = make([]uint32, len(eps)), true
	for i := range exact {
		weights[i] = max(uint32(exact[i]*scale+0.5), 1)
		equal = equal && weights[i] == weights[0]
	}
	return weights, equal
}
