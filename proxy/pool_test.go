package proxy

import (
	"net/netip"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

func TestPoolsAreFoundByTheirWholeKey(t *testing.T) {
	r := newRig(t, to("b"), &plan.Cluster{Name: "b", Protocol: plan.ProtocolHTTP}, &plan.Endpoints{Name: "b"})
	r.onLoop(func(w *worker) {
		key := poolKey{plan: w.p.table.Cluster("b").Plan(), addr: netip.MustParseAddrPort("10.0.0.1:80")}
		other := key
		other.mtls = true
		first, second := w.pool(&key), w.pool(&other) // they share a place among the recent ones
		if first == second {
			t.Error("connections with and without mutual TLS are in one pool")
		}
		if w.pool(&key) != first || w.pool(&other) != second {
			t.Error("asked for again, a pool is another one")
		}
		w.sweepPools(w.loop.Now().Add(time.Hour))
		if n := len(w.pools); n != 0 {
			t.Fatalf("%d pools are left of those that nobody uses", n)
		}
		if p := w.pool(&other); p == second || w.pools[other] != p {
			t.Error("a pool that was forgotten is handed out")
		}
	})
}
