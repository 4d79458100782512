package balance

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/plan"
)

var start = time.Unix(1e9, 0)

// address is that of the i-th endpoint.
func address(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80)
}

// list makes n endpoints, changed by f.
func list(n int, f ...func(i int, e *plan.Endpoint)) []plan.Endpoint {
	out := make([]plan.Endpoint, n)
	for i := range out {
		out[i].Address = address(i)
		for _, g := range f {
			g(i, &out[i])
		}
	}
	return out
}

func weights(w ...uint32) func(int, *plan.Endpoint) {
	return func(i int, e *plan.Endpoint) { e.Weight = w[i%len(w)] }
}

func localities(l ...string) func(int, *plan.Endpoint) {
	return func(i int, e *plan.Endpoint) { e.Locality = l[i%len(l)] }
}

func health(h ...plan.Health) func(int, *plan.Endpoint) {
	return func(i int, e *plan.Endpoint) { e.Health = h[i%len(h)] }
}

func algorithm(a plan.Algorithm) *plan.Cluster {
	return &plan.Cluster{Name: "c", Balance: plan.Balance{Algorithm: a}}
}

func newCluster(p *plan.Cluster, eps []plan.Endpoint) *Cluster {
	c := New(p, nil)
	c.SetEndpoints(eps)
	return c
}

// index is which of list an endpoint is.
func index(e *Endpoint) int {
	b := e.Plan().Address.Addr().As4()
	return int(b[1])<<16 | int(b[2])<<8 | int(b[3])
}

// share picks n times and returns each endpoint's part, in percent.
func share(t *testing.T, c *Cluster, n int, at time.Time) map[int]float64 {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	out := map[int]float64{}
	for range n {
		e, ok := c.Pick(Pick{Rand: r.Uint32(), Now: at})
		if !ok {
			t.Fatal("nothing was picked")
		}
		out[index(e)] += 100 / float64(n)
	}
	return out
}

// near fails unless every part is within tolerance of what is wanted.
func near(t *testing.T, want, got map[int]float64, tolerance float64) {
	t.Helper()
	for i := range maps.Keys(want) {
		if math.Abs(want[i]-got[i]) > tolerance {
			t.Errorf("endpoint %d has %.1f %%, want %.1f", i, got[i], want[i])
		}
	}
	for i := range got {
		if _, ok := want[i]; !ok {
			t.Errorf("endpoint %d has %.1f %%, want none", i, got[i])
		}
	}
}

var algorithms = []plan.Algorithm{plan.LeastRequest, plan.RoundRobin, plan.Random, plan.RingHash, plan.Maglev}

func TestDistribution(t *testing.T) {
	tests := []struct {
		what string
		eps  []plan.Endpoint
		want map[int]float64
	}{
		{"equal", list(4), map[int]float64{0: 25, 1: 25, 2: 25, 3: 25}},
		{"one", list(1), map[int]float64{0: 100}},
		{"weights", list(3, weights(1, 3, 6)), map[int]float64{0: 10, 1: 30, 2: 60}},
		{"weight 0 is 1", list(2, weights(0, 3)), map[int]float64{0: 25, 1: 75}},
		{"huge weights", list(3, weights(1<<31, 1<<30, 1<<30)), map[int]float64{0: 50, 1: 25, 2: 25}},
		{"draining gets nothing", list(3, health(plan.Healthy, plan.Draining, plan.Healthy)), map[int]float64{0: 50, 2: 50}},
		{"unhealthy gets nothing", list(3, health(plan.Unhealthy, plan.Healthy)), map[int]float64{1: 100}},
		{"unless nothing else is there", list(3, health(plan.Unhealthy, plan.Draining)), map[int]float64{0: 50, 2: 50}},
		{"the same twice", append(list(2), list(1)...), map[int]float64{0: 50, 1: 50}},
	}
	for _, tt := range tests {
		for _, a := range algorithms {
			t.Run(tt.what+", "+a.String(), func(t *testing.T) {
				tolerance := 2.5
				if a == plan.RingHash {
					tolerance = 9 // what 1,024 points come to
				}
				near(t, tt.want, share(t, newCluster(algorithm(a), tt.eps), 20000, start), tolerance)
			})
		}
	}
	if _, ok := newCluster(algorithm(plan.RoundRobin), list(2, health(plan.Draining))).Pick(Pick{Now: start}); ok {
		t.Error("a draining endpoint was picked")
	}
	for _, a := range algorithms {
		if _, ok := newCluster(algorithm(a), nil).Pick(Pick{Now: start}); ok {
			t.Error("something was picked of nothing")
		}
	}
}

func TestRoundRobinIsSmooth(t *testing.T) {
	c := newCluster(algorithm(plan.RoundRobin), list(3, weights(5, 1, 1)))
	var got []int
	for range 7 {
		e, _ := c.Pick(Pick{Now: start})
		got = append(got, index(e))
	}
	if d := cmp.Diff([]int{0, 0, 1, 0, 2, 0, 0}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	many := newCluster(algorithm(plan.RoundRobin), list(5000, weights(1, 3)))
	even := 0.0
	for i, part := range share(t, many, 20000, start) {
		if i%2 == 0 {
			even += part
		}
	}
	if math.Abs(even-25) > 2 {
		t.Errorf("the light half of many endpoints has %.1f %%, want 25", even)
	}
}

func TestLeastRequestAvoidsTheBusy(t *testing.T) {
	c := newCluster(algorithm(plan.LeastRequest), list(4))
	for range 10 {
		c.Endpoints()[0].Begin()
	}
	got := share(t, c, 20000, start)
	if got[0] > 8 { // chosen only when both of two choices fall on it, 1/16
		t.Errorf("the busy endpoint has %.1f %%", got[0])
	}
	// Under load the number of requests under way settles in proportion to the weights.
	c = newCluster(algorithm(plan.LeastRequest), list(2, weights(1, 3)))
	r := rand.New(rand.NewPCG(1, 2))
	for range 400 {
		e, _ := c.Pick(Pick{Rand: r.Uint32(), Now: start})
		e.Begin()
	}
	if n := c.Endpoints()[0].Active(); n < 90 || n > 110 {
		t.Errorf("%d of 400 requests are with an endpoint of a quarter of the weight", n)
	}
	c.Endpoints()[0].End()
}

func hashed(t *testing.T, c *Cluster, key int, tried ...*Endpoint) int {
	t.Helper()
	e, ok := c.Pick(Pick{Hash: mix(uint64(key) + 1), HasHash: true, Rand: rand.Uint32(), Now: start, Tried: tried})
	if !ok {
		t.Fatal("nothing was picked")
	}
	return index(e)
}

func TestHashes(t *testing.T) {
	const keys, n = 5000, 10
	for _, a := range []plan.Algorithm{plan.RingHash, plan.Maglev} {
		t.Run(a.String(), func(t *testing.T) {
			eps := list(n)
			c := newCluster(algorithm(a), eps)
			shuffled := slices.Clone(eps)
			slices.Reverse(shuffled)
			other := newCluster(algorithm(a), shuffled)
			fewer := newCluster(algorithm(a), eps[:n-1])
			moved, gone := 0, 0
			for key := range keys {
				was := hashed(t, c, key)
				if hashed(t, c, key) != was {
					t.Fatal("one key goes to two places")
				}
				if hashed(t, other, key) != was {
					t.Fatal("another proxy sends the key elsewhere")
				}
				is := hashed(t, fewer, key)
				switch {
				case was == n-1:
					gone++
				case is != was:
					moved++
				}
				// What is out goes to the same other place in every proxy.
				tried := c.Endpoints()[was]
				there := other.Endpoints()[n-1-was]
				if x, y := hashed(t, c, key, tried), hashed(t, other, key, there); x != y || x == was {
					t.Fatalf("key of %d goes to %d and %d", was, x, y)
				}
			}
			if gone < keys/n/2 || gone > keys/n*2 {
				t.Errorf("%d of %d keys were on the endpoint that left", gone, keys)
			}
			if moved > keys/10 { // shares grow when one leaves: points are added, or turns
				t.Errorf("%d of %d keys moved although their endpoint stayed", moved, keys)
			}
		})
	}
}

func TestHashStaysWhatItWas(t *testing.T) {
	ring := newCluster(algorithm(plan.RingHash), list(10))
	maglev := newCluster(algorithm(plan.Maglev), list(10))
	var got []int
	for key := range 5 {
		got = append(got, hashed(t, ring, key), hashed(t, maglev, key))
	}
	want := []int{5, 9, 1, 6, 6, 7, 5, 3, 8, 6} // part of what proxies of different versions agree about
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestHashTables(t *testing.T) {
	for size, want := range map[int]int{0: 65537, 1: 11, 12: 13, 100: 101, 65537: 65537} {
		p := algorithm(plan.Maglev)
		p.Balance.RingSize = size
		c := newCluster(p, list(10))
		if n := len(c.state.set.Load().levels[0].table); n != want {
			t.Errorf("table of %d has %d places, want %d", size, n, want)
		}
	}
	for size, want := range map[int]int{0: 1030, 1: 10, 5000: 5000} {
		p := algorithm(plan.RingHash)
		p.Balance.RingSize = size
		if n := len(newCluster(p, list(10)).state.set.Load().levels[0].ring); n != want {
			t.Errorf("ring of %d has %d points, want %d", size, n, want)
		}
	}
	if n := len(newCluster(algorithm(plan.RingHash), list(70000)).state.set.Load().levels[0].ring); n != 70000 {
		t.Errorf("70,000 endpoints have %d points", n)
	}
	byName := []plan.Endpoint{{Host: "a", Port: 1}, {Host: "a", Port: 2}, {Host: "b", Port: 1}}
	if n := len(newCluster(algorithm(plan.Maglev), byName).Endpoints()); n != 3 {
		t.Errorf("%d endpoints by name", n)
	}
}

func TestTriedAreAvoided(t *testing.T) {
	for _, a := range algorithms {
		t.Run(a.String(), func(t *testing.T) {
			c := newCluster(algorithm(a), list(20))
			eps := c.Endpoints()
			r := rand.New(rand.NewPCG(3, 4))
			for range 200 {
				e, ok := c.Pick(Pick{Rand: r.Uint32(), Tried: eps[1:], Now: start})
				if !ok || e != eps[0] {
					t.Fatal("a tried endpoint was picked although another is there")
				}
				if _, ok := c.Pick(Pick{Rand: r.Uint32(), Tried: eps, Now: start}); !ok {
					t.Fatal("nothing is picked when all have been tried")
				}
			}
		})
	}
}

func outlier(o plan.Outlier) *plan.Cluster {
	return &plan.Cluster{Name: "c", Balance: plan.Balance{Algorithm: plan.Random}, Outlier: &o}
}

func TestLocality(t *testing.T) {
	const own = "eu/a/1"
	places := []string{"eu/a/1", "eu/a/2", "eu/b/1", "us/a/1", "ap/a/1", ""}
	tests := []struct {
		what    string
		balance plan.Balance
		outlier bool
		places  []string
		health  []plan.Health
		want    map[int]float64
	}{
		{"not asked for", plan.Balance{From: own}, true, places[:2], nil, map[int]float64{0: 50, 1: 50}},
		{"not without outlier detection", plan.Balance{From: own, Locality: true}, false, places[:2], nil, map[int]float64{0: 50, 1: 50}},
		{"not without a place of one's own", plan.Balance{Locality: true}, true, places[:2], nil, map[int]float64{0: 50, 1: 50}},
		{"same subzone", plan.Balance{From: own, Locality: true}, true, places, nil, map[int]float64{0: 100}},
		{"same zone", plan.Balance{From: own, Locality: true}, true, places[1:], nil, map[int]float64{0: 100}},
		{"same region", plan.Balance{From: own, Locality: true}, true, places[2:], nil, map[int]float64{0: 100}},
		{"elsewhere", plan.Balance{From: own, Locality: true}, true, places[3:], nil, map[int]float64{0: 33.3, 1: 33.3, 2: 33.3}},
		{"failover", plan.Balance{From: own, Locality: true, Failover: map[string]string{"eu": "ap", "us": "eu"}}, true, places[3:], nil, map[int]float64{1: 100}},
		{
			"unhealthy near ones",
			plan.Balance{From: own, Locality: true},
			true,
			[]string{own, own, "us/a/1"},
			[]plan.Health{plan.Healthy, plan.Unhealthy, plan.Healthy},
			map[int]float64{0: 70, 2: 30},
		},
		{
			"few unhealthy near ones",
			plan.Balance{From: own, Locality: true},
			true,
			[]string{own, own, own, own, "us/a/1"},
			[]plan.Health{plan.Healthy, plan.Healthy, plan.Healthy, plan.Unhealthy, plan.Healthy},
			map[int]float64{0: 33.3, 1: 33.3, 2: 33.3},
		},
		{
			"everything half dead",
			plan.Balance{From: own, Locality: true},
			true,
			[]string{own, own, own, own, "us/a/1", "us/a/1", "us/a/1", "us/a/1"},
			[]plan.Health{plan.Healthy, plan.Unhealthy, plan.Unhealthy, plan.Unhealthy},
			map[int]float64{0: 50, 4: 50},
		},
		{
			"shares",
			plan.Balance{From: own, Locality: true, Distribute: map[string]uint32{"eu/a/*": 80, "us/*": 20}},
			true,
			[]string{"eu/a/1", "eu/a/2", "eu/b/1", "us/a/1"},
			nil,
			map[int]float64{0: 40, 1: 40, 3: 20},
		},
		{
			"the most specific share",
			plan.Balance{From: own, Distribute: map[string]uint32{"*": 10, "eu/*": 30, "eu/a/1": 60}},
			false,
			[]string{"eu/a/1", "eu/a/2", "us/a/1"},
			nil,
			map[int]float64{0: 60, 1: 30, 2: 10},
		},
		{
			"shares of which one is nothing",
			plan.Balance{From: own, Distribute: map[string]uint32{"eu": 1, "us": 0}},
			false,
			[]string{"eu/a/1", "us/a/1", "eux/a/1"},
			nil,
			map[int]float64{0: 100},
		},
	}
	for _, tt := range tests {
		for _, a := range []plan.Algorithm{plan.LeastRequest, plan.RoundRobin, plan.Random, plan.Maglev} {
			t.Run(tt.what+", "+a.String(), func(t *testing.T) {
				p := &plan.Cluster{Balance: tt.balance}
				p.Balance.Algorithm = a
				if tt.outlier {
					p.Outlier = &plan.Outlier{}
				}
				change := []func(int, *plan.Endpoint){localities(tt.places...)}
				if tt.health != nil {
					change = append(change, health(tt.health...))
				}
				near(t, tt.want, share(t, newCluster(p, list(len(tt.places), change...)), 20000, start), 2.5)
			})
		}
	}
	weighted := plan.Balance{Algorithm: plan.Random, Distribute: map[string]uint32{"eu/*": 50, "us/*": 50}}
	got := share(t, newCluster(&plan.Cluster{Balance: weighted}, list(3, localities("eu/a", "eu/b", "us/a"), weights(1, 4, 9))), 20000, start)
	near(t, map[int]float64{0: 10, 1: 40, 2: 50}, got, 2)
	none := newCluster(&plan.Cluster{Balance: plan.Balance{Distribute: map[string]uint32{"eu/*": 100}}}, list(1, localities("us/a")))
	if _, ok := none.Pick(Pick{Now: start}); ok {
		t.Error("a locality without a share gets traffic")
	}
}

// TestLocalityFailsOver: when the near endpoints are ejected, the far ones take over, and back.
func TestLocalityFailsOver(t *testing.T) {
	p := outlier(plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100, BaseEjection: time.Second})
	p.Balance.Locality, p.Balance.From = true, "eu/a/1"
	c := newCluster(p, list(4, localities("eu/a/1", "eu/a/1", "us/a/1", "us/a/1")))
	eps := c.Endpoints()
	fail := Outcome{Status: 500}
	near(t, map[int]float64{0: 50, 1: 50}, share(t, c, 10000, start), 2)
	eps[0].Report(start, fail)
	near(t, map[int]float64{1: 70, 2: 15, 3: 15}, share(t, c, 10000, start), 2)
	eps[1].Report(start, fail)
	near(t, map[int]float64{2: 50, 3: 50}, share(t, c, 10000, start), 2)
	near(t, map[int]float64{0: 50, 1: 50}, share(t, c, 10000, start.Add(time.Second)), 2)
	e, ok := c.Pick(Pick{Tried: eps[:2], Now: start.Add(time.Second)})
	if !ok || index(e) < 2 {
		t.Error("a retry does not go elsewhere when the near endpoints have been tried")
	}
}

func TestWarmup(t *testing.T) {
	for _, a := range []plan.Algorithm{plan.LeastRequest, plan.RoundRobin, plan.Random} {
		t.Run(a.String(), func(t *testing.T) {
			p := algorithm(a)
			p.Balance.Warmup = 100 * time.Second
			c := newCluster(p, list(2))
			share(t, c, 100, start)
			c.SetEndpoints(list(3))
			late := start.Add(200 * time.Second)
			if got := share(t, c, 20000, late); got[2] > 8 || got[2] < 1 {
				t.Errorf("a new endpoint has %.1f %%", got[2])
			}
			if got := share(t, c, 20000, late.Add(50*time.Second)); got[2] < 12 || got[2] > 26 {
				t.Errorf("a half warm endpoint has %.1f %%", got[2])
			}
			near(t, map[int]float64{0: 33.3, 1: 33.3, 2: 33.3}, share(t, c, 20000, late.Add(100*time.Second)), 2)
		})
	}
	p := algorithm(plan.RoundRobin)
	p.Balance.Warmup = time.Hour
	near(t, map[int]float64{0: 50, 1: 50}, share(t, newCluster(p, list(2)), 5000, start), 3) // all are new
}

func TestStateIsCarriedOver(t *testing.T) {
	p := outlier(plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100})
	c := newCluster(p, list(3))
	eps := c.Endpoints()
	eps[0].Begin()
	if !eps[0].Report(start, Outcome{Status: 500}) || !c.AcquireRequest() {
		t.Fatal("no ejection")
	}
	c.SetEndpoints(list(3, weights(2)))
	next := New(&plan.Cluster{Name: "c", Balance: plan.Balance{Algorithm: plan.Maglev}, Outlier: &plan.Outlier{Consecutive5xx: 2, MaxEjectionPercent: 100}}, c)
	again := next.Endpoints()
	if again[0] != eps[0] || again[0].Active() != 1 || again[0].Ejected(start).IsZero() || again[0].Plan().Weight != 2 {
		t.Error("an endpoint has lost its state")
	}
	if u := next.Usage(); u.Requests != 1 || u.Ejected != 1 {
		t.Errorf("%+v", u)
	}
	near(t, map[int]float64{1: 50, 2: 50}, share(t, next, 5000, start), 3)
	if again[1].Report(start, Outcome{Status: 500}) || !again[1].Report(start, Outcome{Status: 500}) {
		t.Error("the new policy is not heeded")
	}
	// One that leaves while it is ejected, or is reported on afterwards, does not count any more.
	next.SetEndpoints(list(3)[1:])
	if again[0].Report(start, Outcome{Status: 500}) {
		t.Error("an endpoint that has left is ejected")
	}
	if n := next.Usage().Ejected; n != 1 {
		t.Errorf("%d are ejected, want 1", n)
	}
	next.SetEndpoints(list(3))
	if e := next.Endpoints()[0]; e == eps[0] || !e.Ejected(start).IsZero() {
		t.Error("an endpoint that comes back brings its past along")
	}
	if New(p, next).Plan() != p {
		t.Error("Plan")
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, a := range algorithms {
		p := algorithm(a)
		p.Balance.Warmup = time.Second
		p.Balance.Locality, p.Balance.From = true, "eu/a/1"
		p.Outlier = &plan.Outlier{Consecutive5xx: 1, MinHealthPercent: 10}
		c := newCluster(p, list(100, weights(1, 2), localities("eu/a/1", "us/a/1")))
		eps := c.Endpoints()
		eps[0].Report(start, Outcome{Status: 500})
		pick := Pick{Hash: 7, HasHash: true, Tried: eps[:3], Now: start}
		if n := testing.AllocsPerRun(1000, func() {
			pick.Rand = next(pick.Rand)
			e, _ := c.Pick(pick)
			e.Begin()
			e.Report(start, Outcome{Status: 200})
			e.End()
		}); n != 0 {
			t.Errorf("%s: %v allocations", a, n)
		}
	}
}

// TestConcurrency has loops pick and report while the endpoints change; afterwards nothing is left over.
func TestConcurrency(t *testing.T) {
	p := outlier(plan.Outlier{Consecutive5xx: 3, MaxEjectionPercent: 50, BaseEjection: time.Millisecond})
	p.Limits = plan.Limits{Requests: 5}
	c := newCluster(p, list(10))
	var group sync.WaitGroup
	for seed := range uint64(4) {
		group.Go(func() {
			r := rand.New(rand.NewPCG(seed, 5))
			for i := range 3000 {
				now := start.Add(time.Duration(i) * 10 * time.Microsecond)
				if !c.AcquireRequest() {
					continue
				}
				if n := c.Usage().Requests; n > 5 {
					t.Errorf("%d requests at once", n)
				}
				if e, ok := c.Pick(Pick{Rand: r.Uint32(), Now: now}); ok {
					e.Begin()
					e.Report(now, Outcome{Status: 200 + 300*r.IntN(2)})
					e.End()
				}
				c.ReleaseRequest()
			}
		})
	}
	for i := range 200 {
		c.SetEndpoints(list(1 + i%10))
	}
	group.Wait()
	if u := c.Usage(); u.Requests != 0 {
		t.Errorf("%+v", u)
	}
	c.Pick(Pick{Now: start.Add(time.Hour)})
	if n := c.Usage().Ejected; n != 0 {
		t.Errorf("%d are ejected an hour later", n)
	}
	for _, l := range c.state.set.Load().levels {
		if n := l.out.Load(); n != 0 {
			t.Errorf("a level counts %d as ejected", n)
		}
	}
}

func FuzzCluster(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 200, 9, 40, 41, 42})
	f.Add([]byte{3, 255, 100, 90, 1, 1, 1, 1, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		p := &plan.Cluster{Outlier: &plan.Outlier{Consecutive5xx: 1, BaseEjection: time.Second, MaxEjectionPercent: 50}}
		p.Balance = plan.Balance{RingSize: 37, Locality: true, From: "a/a/a", Warmup: time.Second}
		c := New(p, nil)
		now := start
		var last *Endpoint
		for _, op := range ops[:min(len(ops), 60)] {
			now = now.Add(100 * time.Millisecond)
			n := int(op >> 3)
			switch op % 8 {
			case 0:
				c.SetEndpoints(list(n, weights(uint32(n), 1, 0), localities("a/a/a", "a/b/c", "b"), health(plan.Health(n%3), plan.Healthy)))
			case 1:
				q := *p
				q.Balance.Algorithm = plan.Algorithm(n % 5)
				if n%2 == 0 {
					q.Balance.Distribute = map[string]uint32{"a/*": 3, "b": uint32(n % 3)}
				}
				c = New(&q, c)
			case 2:
				if last != nil {
					last.Report(now, Outcome{Status: 500})
				}
			default:
				e, ok := c.Pick(Pick{Hash: uint64(n), HasHash: n%2 == 0, Rand: uint32(n) << 24, Now: now, Tried: []*Endpoint{last}})
				if !ok {
					continue
				}
				if e.Plan().Health == plan.Draining || !slices.Contains(c.Endpoints(), e) || !e.Ejected(now).IsZero() {
					t.Fatalf("%s was picked", e.Plan())
				}
				last = e
			}
			out := 0
			for _, e := range c.Endpoints() {
				if e.ejectedUntil.Load() != 0 {
					out++
				}
			}
			if u := c.Usage(); u.Ejected != out {
				t.Fatalf("%d are counted as ejected, %d are", u.Ejected, out)
			}
		}
	})
}

func BenchmarkPick(b *testing.B) {
	for _, a := range algorithms {
		for _, n := range []int{3, 100, 10000} {
			b.Run(fmt.Sprintf("%s %d", a, n), func(b *testing.B) {
				c := newCluster(algorithm(a), list(n, weights(1, 2)))
				p := Pick{Now: start, HasHash: true}
				b.ReportAllocs()
				for b.Loop() {
					p.Rand = next(p.Rand)
					p.Hash += 0x9e3779b97f4a7c15
					c.Pick(p)
				}
			})
		}
	}
}

// TestOrdersInFlight: a request that began under older orders, with another algorithm, picks among the present
// endpoints, and endpoints found under older orders are prepared as the newer ones say.
func TestOrdersInFlight(t *testing.T) {
	for _, from := range []plan.Algorithm{plan.RingHash, plan.Maglev, plan.RoundRobin, plan.Random} {
		for _, to := range []plan.Algorithm{plan.RingHash, plan.Maglev, plan.LeastRequest} {
			before := newCluster(algorithm(from), list(3))
			after := New(algorithm(to), before)
			if !before.Same(after) || before.Same(New(algorithm(from), nil)) {
				t.Fatal("a cluster and its successor are not the same, or two clusters are")
			}
			before.SetEndpoints(list(2))
			for i := range uint64(8) {
				for _, c := range []*Cluster{before, after} {
					if e, ok := c.Pick(Pick{Hash: i << 61, HasHash: true, Rand: uint32(i), Now: start}); !ok || e.Gone() {
						t.Errorf("%s, then %s: picked %v, %v", from, to, e, ok)
					}
				}
			}
		}
	}
}
