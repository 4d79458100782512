package balance

import (
	"slices"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// The defaults of outlier detection (Istio's DestinationRule, Envoy's outlier detection).
const (
	baseEjection   = 30 * time.Second
	maxEjection    = 300 * time.Second
	maxEjectedPart = 10 // percent
)

// Outcome is how a request, or the attempt to connect, ended.
type Outcome struct {
	// Status is the HTTP status; 0 if there was none.
	Status int
	// LocalFailure: we could not connect, or the connection failed before an answer.
	LocalFailure bool
}

// Report tells outlier detection how a request to the endpoint went. It reports true if the endpoint was ejected
// for it.
func (e *Endpoint) Report(now time.Time, o Outcome) bool {
	c := e.cluster.Load()
	if c == nil || c.plan.Outlier == nil {
		return false
	}
	p := c.plan.Outlier
	local, gateway, server := o.LocalFailure, o.Status >= 502 && o.Status <= 504, o.Status >= 500
	if len(p.StatusCodes) > 0 {
		server = slices.Contains(p.StatusCodes, o.Status)
	}
	if local && !p.SplitLocal {
		gateway, server = true, true // a local failure counts as the 5xx that the client is told
	}
	eject := count(&e.failed5xx, server, p.Consecutive5xx)
	eject = count(&e.failedGateway, gateway, p.ConsecutiveGateway) || eject
	if p.SplitLocal {
		eject = count(&e.failedLocal, local, p.ConsecutiveLocal) || eject
	}
	return eject && c.eject(e, now)
}

type counter interface {
	Add(uint32) uint32
	Store(uint32)
	Load() uint32
}

// count adds to a row of failures, or ends it, and reports whether it has reached its limit.
func count(n counter, failed bool, limit uint32) bool {
	if !failed {
		if n.Load() != 0 {
			n.Store(0)
		}
		return false
	}
	if limit == 0 {
		return false
	}
	if n.Add(1) < limit {
		return false
	}
	n.Store(0)
	return true
}

// eject takes the endpoint out for a time that grows with each ejection, unless too many are out already.
func (c *Cluster) eject(e *Endpoint, now time.Time) bool {
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	c.sweep(now.UnixNano())
	if e.ejectedUntil.Load() != 0 {
		return false
	}
	p := c.plan.Outlier
	percent := int(p.MaxEjectionPercent)
	if percent == 0 {
		percent = maxEjectedPart
	}
	// At least one may always be out, as in Envoy.
	if out := int(c.state.ejected.Load()); out > 0 && (out+1)*100 > percent*len(c.state.list) {
		return false
	}
	base := p.BaseEjection
	if base == 0 {
		base = baseEjection
	}
	times := e.ejections.Add(1)
	wait := min(base*time.Duration(times), max(maxEjection, base))
	e.ejectedUntil.Store(now.Add(wait).UnixNano())
	c.state.ejected.Add(1)
	return true
}

// sweep ends the ejections whose time is over. The caller holds mu.
func (c *Cluster) sweep(now int64) {
	for _, e := range c.state.list {
		if until := e.ejectedUntil.Load(); until != 0 && until <= now {
			e.ejectedUntil.Store(0)
			c.state.ejected.Add(-1)
		}
	}
}

// ejecting reports whether ejections are to be looked at: some endpoint may be out, and enough are left in.
func (c *Cluster) ejecting(s *set, now int64) bool {
	out := c.state.ejected.Load()
	if out == 0 {
		return false
	}
	if p := c.plan.Outlier; p != nil && p.MinHealthPercent > 0 {
		healthy := 0
		for _, e := range s.all {
			if e.Plan().Health == plan.Healthy && !e.out(now) {
				healthy++
			}
		}
		return healthy*100 >= int(p.MinHealthPercent)*len(s.all)
	}
	return true
}
