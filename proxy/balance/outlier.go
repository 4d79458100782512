package balance

import (
	"cmp"
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// The defaults of outlier detection (Istio's DestinationRule, Envoy's outlier detection).
const (
	intervalDefault = 10 * time.Second
	baseEjection    = 30 * time.Second
	maxEjection     = 300 * time.Second
	maxEjectedPart  = 10 // percent
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
	if p.SplitLocal {
		eject := count(&e.failedLocal, o.LocalFailure, p.ConsecutiveLocal)
		if o.LocalFailure {
			return eject && c.eject(e, now) // and says nothing of what the endpoint would have answered
		}
	}
	// Without the split a local failure counts as the 503 that the client is told.
	server := o.LocalFailure || o.Status >= 500
	if len(p.StatusCodes) > 0 {
		server = o.LocalFailure || slices.Contains(p.StatusCodes, o.Status)
	}
	gateway := o.LocalFailure || o.Status >= 502 && o.Status <= 504
	eject := count(&e.failed5xx, server, p.Consecutive5xx)
	eject = count(&e.failedGateway, gateway, p.ConsecutiveGateway) || eject
	return eject && c.eject(e, now)
}

// count adds to a row of failures, or ends it, and reports whether it has reached its limit.
func count(n *atomic.Uint32, failed bool, limit uint32) bool {
	if !failed {
		if n.Load() != 0 {
			n.Store(0)
		}
		return false
	}
	if limit == 0 || n.Add(1) < limit {
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
	if e.ejectedUntil.Load() != 0 || e.cluster.Load() == nil {
		return false
	}
	p := c.plan.Outlier
	percent := cmp.Or(int(p.MaxEjectionPercent), maxEjectedPart)
	// At least one may always be out, as in Envoy.
	if out := int(c.state.ejected.Load()); out > 0 && (out+1)*100 > percent*len(c.state.list) {
		return false
	}
	// An endpoint that has behaved for a while is not held to its past: each interval makes up for one ejection.
	if good := (now.UnixNano() - e.returned) / int64(cmp.Or(p.Interval, intervalDefault)); good > 0 {
		e.ejections -= uint32(min(int64(e.ejections), good))
	}
	e.ejections++
	base := cmp.Or(p.BaseEjection, baseEjection)
	longest := max(maxEjection, base)
	wait := longest
	if int64(e.ejections) < int64(longest/base)+1 {
		wait = base * time.Duration(e.ejections)
	}
	until := now.Add(min(wait, longest)).UnixNano()
	e.returned = until
	e.ejectedUntil.Store(until)
	if l := e.level.Load(); l != nil {
		l.out.Add(1)
	}
	if c.state.ejected.Add(1) == 1 || until < c.state.returns.Load() {
		c.state.returns.Store(until)
	}
	return true
}

// sweep ends the ejections whose time is over. The caller holds mu.
func (c *Cluster) sweep(now int64) {
	if c.state.ejected.Load() == 0 || now < c.state.returns.Load() {
		return
	}
	soonest := int64(math.MaxInt64)
	for _, e := range c.state.list {
		until := e.ejectedUntil.Load()
		switch {
		case until == 0:
		case until <= now:
			e.ejectedUntil.Store(0)
			c.state.ejected.Add(-1)
			if l := e.level.Load(); l != nil {
				l.out.Add(-1)
			}
		default:
			soonest = min(soonest, until)
		}
	}
	c.state.returns.Store(soonest)
}
