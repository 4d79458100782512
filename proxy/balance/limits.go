package balance

import "sync/atomic"

// The defaults of a retry budget (Envoy's).
const retryBudgetMin = 3

// limits are what a cluster holds at the moment.
type limits struct {
	connections, pending, requests, retries atomic.Int64
}

// acquire takes one of what is limited; 0 is no limit.
func acquire(n *atomic.Int64, limit uint32) bool {
	for {
		held := n.Load()
		if limit != 0 && held >= int64(limit) {
			return false
		}
		if n.CompareAndSwap(held, held+1) {
			return true
		}
	}
}

// AcquireConnection takes one of the cluster's connections; false if the limit is reached.
func (c *Cluster) AcquireConnection() bool {
	return acquire(&c.state.limits.connections, c.plan.Limits.Connections)
}

// ReleaseConnection gives a connection back.
func (c *Cluster) ReleaseConnection() { c.state.limits.connections.Add(-1) }

// AcquirePending takes a place among the requests that wait for a connection.
func (c *Cluster) AcquirePending() bool {
	return acquire(&c.state.limits.pending, c.plan.Limits.PendingRequests)
}

// ReleasePending gives the place back.
func (c *Cluster) ReleasePending() { c.state.limits.pending.Add(-1) }

// AcquireRequest takes one of the cluster's requests.
func (c *Cluster) AcquireRequest() bool {
	return acquire(&c.state.limits.requests, c.plan.Limits.Requests)
}

// ReleaseRequest gives a request back.
func (c *Cluster) ReleaseRequest() { c.state.limits.requests.Add(-1) }

// AcquireRetry takes one of the cluster's concurrent retries: of the budget if there is one, else of the limit.
func (c *Cluster) AcquireRetry() bool {
	l := &c.plan.Limits
	if l.RetryBudget > 0 {
		least := l.RetryBudgetMin
		if least == 0 {
			least = retryBudgetMin
		}
		limit := max(uint32(float64(c.state.limits.requests.Load())*l.RetryBudget/100), least)
		return acquire(&c.state.limits.retries, limit)
	}
	return acquire(&c.state.limits.retries, l.Retries)
}

// ReleaseRetry gives a retry back.
func (c *Cluster) ReleaseRetry() { c.state.limits.retries.Add(-1) }

// Usage is what a cluster holds.
type Usage struct {
	Connections, Pending, Requests, Retries int64
	Ejected                                 int
}

// Usage reads the counters.
func (c *Cluster) Usage() Usage {
	l := &c.state.limits
	return Usage{l.connections.Load(), l.pending.Load(), l.requests.Load(), l.retries.Load(), int(c.state.ejected.Load())}
}
