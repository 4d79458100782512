package balance

import (
	"net/netip"
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

// Endpoint is one instance of a cluster. It may be read and counted from any loop.
type Endpoint struct {
	key     key
	plan    atomic.Pointer[plan.Endpoint]
	cluster atomic.Pointer[Cluster] // nil: it has left
	level   atomic.Pointer[level]   // where it may be picked; nil: nowhere
	active  atomic.Int32
	since   atomic.Int64 // ns when it was first picked, for the warm-up; 0: not yet

	failed5xx, failedGateway, failedLocal atomic.Uint32 // in a row
	ejectedUntil                          atomic.Int64  // ns; 0: not ejected
	lostUntil                             atomic.Int64  // ns; 0: somebody answers there, as far as is known

	ejections uint32 // how often of late; guarded by state.mu
	returned  int64  // ns, when the last ejection ended, or will; guarded by state.mu
}

// Plan is what the control plane says of the endpoint.
func (e *Endpoint) Plan() *plan.Endpoint { return e.plan.Load() }

// Gone reports whether the endpoint has left its cluster.
func (e *Endpoint) Gone() bool { return e.cluster.Load() == nil }

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

const (
	// warmLeast is the part of its traffic that an endpoint gets when it is new (Istio: warmup.minimumPercent).
	warmLeast = 0.1
	// warmSteps is how finely the part is told.
	warmSteps = 1000
)

// warm reports whether an endpoint that is new may be picked this time: at first in a tenth of the cases, then more
// often in proportion to the time since it was first considered, until the warm-up is over. A hash that were heeded
// only now and then would be none, so the hash algorithms know no warm-up, as in Envoy.
func (c *Cluster) warm(e *Endpoint, now time.Time, rnd uint32) bool {
	b := &c.plan.Balance
	if b.Warmup <= 0 || b.Algorithm == plan.RingHash || b.Algorithm == plan.Maglev {
		return true
	}
	since := e.since.Load()
	if since == 0 {
		since = now.UnixNano()
		e.since.CompareAndSwap(0, since)
	}
	share := max(float64(now.UnixNano()-since)/float64(b.Warmup), warmLeast)
	return float64(rnd%warmSteps)/warmSteps < share
}
