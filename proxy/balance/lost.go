package balance

import (
	"slices"
	"time"
)

// lostWait is how long an endpoint is left alone after nobody has answered there. Then one request finds out more, and
// the others wait as long again. Kubernetes needs 40 s and more to find that a node has died.
const lostWait = 5 * time.Second

// Lost notes that nobody answers at the endpoint's address: it is picked as the last one for a while. Other than an
// ejection that needs no orders, since there is no choice of the operator's in it: what cannot be reached serves nobody.
func (e *Endpoint) Lost(now time.Time) { e.lostUntil.Store(now.Add(lostWait).UnixNano()) }

// Found notes that somebody answers there.
func (e *Endpoint) Found() {
	if e.lostUntil.Load() != 0 {
		e.lostUntil.Store(0)
	}
}

// lost reports whether the endpoint is to be left alone; the first to ask after the wait is told that it is not.
func (e *Endpoint) lost(now int64) bool {
	until := e.lostUntil.Load()
	return until != 0 && (now < until || !e.lostUntil.CompareAndSwap(until, now+int64(lostWait)))
}

// Elsewhere reports whether there is an endpoint that is neither ejected nor lost, nor has been tried.
func (c *Cluster) Elsewhere(tried []*Endpoint, now time.Time) bool {
	at := now.UnixNano()
	for _, l := range c.state.set.Load().levels {
		for _, e := range l.eps {
			if !e.out(at) && !e.IsLost(now) && !slices.Contains(tried, e) {
				return true
			}
		}
	}
	return false
}

// IsLost reports whether nobody answered at the endpoint's address when that was tried last.
func (e *Endpoint) IsLost(now time.Time) bool { return now.UnixNano() < e.lostUntil.Load() }
