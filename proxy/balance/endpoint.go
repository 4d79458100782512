package balance

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// key is what makes two endpoints the same one.
type key struct {
	addr netip.AddrPort
	host string
	port uint16
}

func keyOf(e *plan.Endpoint) key { return key{e.Address, e.Host, e.Port} }

// Endpoint is one instance of a cluster. Its fields may be read and counted from any loop.
type Endpoint struct {
	key     key
	plan    atomic.Pointer[plan.Endpoint]
	cluster atomic.Pointer[Cluster]
	active  atomic.Int32
	since   atomic.Int64 // ns when it was first seen, for the warm-up; 0: not yet

	// Outlier detection.
	failed5xx, failedGateway, failedLocal atomic.Uint32 // in a row
	ejections                             atomic.Uint32
	ejectedUntil                          atomic.Int64 // ns; 0: not ejected
}

// Plan is what the control plane says of the endpoint.
func (e *Endpoint) Plan() *plan.Endpoint { return e.plan.Load() }

// Active is the number of requests under way.
func (e *Endpoint) Active() int { return int(e.active.Load()) }

// Begin counts a request that begins.
func (e *Endpoint) Begin() { e.active.Add(1) }

// End counts a request that ends.
func (e *Endpoint) End() { e.active.Add(-1) }

// out reports whether the endpoint is ejected at the moment.
func (e *Endpoint) out(now int64) bool { return e.ejectedUntil.Load() > now }

// Ejected reports until when the endpoint is ejected; the zero time if it is not.
func (e *Endpoint) Ejected(now time.Time) time.Time {
	if until := e.ejectedUntil.Load(); until > now.UnixNano() {
		return time.Unix(0, until)
	}
	return time.Time{}
}

// warm reports whether an endpoint that is new may be picked this time: at first in a tenth of the cases, then
// more often, until the warm-up is over (Istio: aggression 1, minimum 10 percent).
func (c *Cluster) warm(e *Endpoint, now time.Time, rnd uint32) bool {
	d := c.plan.Balance.Warmup
	if d <= 0 {
		return true
	}
	since := e.since.Load()
	if since == 0 {
		e.since.CompareAndSwap(0, now.UnixNano())
		since = now.UnixNano()
	}
	share := max(float64(now.UnixNano()-since)/float64(d), 0.1)
	return share >= 1 || float64(rnd%1000)/1000 < share
}

// nearest lists the endpoints of the cluster's own locality, when locality is to be preferred and it is not all.
// Failing over to the rest needs outlier detection, which is what tells that the near ones fail.
func (c *Cluster) nearest(all []*Endpoint) []*Endpoint {
	b := &c.plan.Balance
	if !b.Locality || c.plan.Outlier == nil || b.From == "" || len(b.Distribute) > 0 {
		return nil
	}
	region, zone := splitLocality(b.From)
	best := 0
	var near []*Endpoint
	for _, e := range all {
		r, z := splitLocality(e.Plan().Locality)
		score := 0
		switch {
		case e.Plan().Locality == b.From:
			score = 3
		case r == region && z == zone:
			score = 2
		case r == region:
			score = 1
		case b.Failover[region] != "" && b.Failover[region] == r:
			score = 0
		default:
			score = -1
		}
		if score > best {
			best, near = score, near[:0]
		}
		if score == best {
			near = append(near, e)
		}
	}
	if len(near) == 0 || len(near) == len(all) {
		return nil
	}
	return near
}

func splitLocality(s string) (region, zone string) {
	region, rest, _ := strings.Cut(s, "/")
	zone, _, _ = strings.Cut(rest, "/")
	return region, zone
}

// pickNear picks among the nearest endpoints; nil when they are all ejected or tried.
func (c *Cluster) pickNear(near []*Endpoint, p *Pick, now int64) *Endpoint {
	start := int(p.Rand % uint32(len(near)))
	var best *Endpoint
	looked := 0
	for i := range near {
		e := near[(start+i)%len(near)]
		if e.out(now) || tried(p.Tried, e) {
			continue
		}
		if best == nil || e.active.Load() < best.active.Load() {
			best = e
		}
		if looked++; looked == 2 {
			break
		}
	}
	return best
}

// distribute keeps the endpoints of the localities that get traffic, with the weights that they get.
func (c *Cluster) distribute(all []*Endpoint) []*Endpoint {
	if len(c.plan.Balance.Distribute) == 0 {
		return all
	}
	var kept []*Endpoint
	for _, e := range all {
		if _, ok := shareOf(c.plan.Balance.Distribute, e.Plan().Locality); ok {
			kept = append(kept, e)
		}
	}
	if len(kept) == 0 {
		return all
	}
	return kept
}

// shareOf is the weight of the most specific pattern that a locality fits: "region/zone/*", "region/*", "*".
func shareOf(weights map[string]uint32, locality string) (uint32, bool) {
	best, share, found := -1, uint32(0), false
	for pattern, w := range weights {
		prefix := strings.TrimSuffix(pattern, "*")
		match := pattern == locality || prefix != pattern && strings.HasPrefix(locality+"/", prefix)
		if match && len(prefix) > best {
			best, share, found = len(prefix), w, true
		}
	}
	return share, found
}
