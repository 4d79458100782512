package balance

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

func TestOutcomes(t *testing.T) {
	status := func(codes ...int) (out []Outcome) {
		for _, c := range codes {
			out = append(out, Outcome{Status: c})
		}
		return out
	}
	local := Outcome{LocalFailure: true}
	tests := []struct {
		what     string
		o        plan.Outlier
		outcomes []Outcome
		want     bool // the last one ejects, and none before it
	}{
		{"off", plan.Outlier{}, status(500, 500, 500), false},
		{"5xx in a row", plan.Outlier{Consecutive5xx: 3}, status(500, 503, 599), true},
		{"not in a row", plan.Outlier{Consecutive5xx: 3}, status(500, 500, 200, 500, 500), false},
		{"4xx is a success", plan.Outlier{Consecutive5xx: 2}, status(500, 404, 500), false},
		{"gateway errors", plan.Outlier{ConsecutiveGateway: 3}, status(502, 503, 504), true},
		{"500 is no gateway error", plan.Outlier{ConsecutiveGateway: 2}, status(502, 500, 502), false},
		{"local failures count as gateway errors", plan.Outlier{ConsecutiveGateway: 2}, []Outcome{local, {Status: 503}}, true},
		{"local failures count as 5xx", plan.Outlier{Consecutive5xx: 2}, []Outcome{local, local}, true},
		{"a connection without a status is a success", plan.Outlier{Consecutive5xx: 2}, []Outcome{local, {}, local}, false},
		{"split", plan.Outlier{SplitLocal: true, ConsecutiveLocal: 2, Consecutive5xx: 1}, []Outcome{local, local}, true},
		{"split, no limit for local ones", plan.Outlier{SplitLocal: true, Consecutive5xx: 1}, []Outcome{local, local, local}, false},
		{"split, a local failure ends no row of answers", plan.Outlier{SplitLocal: true, Consecutive5xx: 2}, []Outcome{{Status: 500}, local, {Status: 500}}, true},
		{"split, an answer ends a row of local ones", plan.Outlier{SplitLocal: true, ConsecutiveLocal: 2}, []Outcome{local, {Status: 500}, local}, false},
		{"codes instead of 5xx", plan.Outlier{Consecutive5xx: 2, StatusCodes: []int{429}}, status(429, 429), true},
		{"codes without 500", plan.Outlier{Consecutive5xx: 2, StatusCodes: []int{429}}, status(429, 500, 429), false},
		{"two limits", plan.Outlier{Consecutive5xx: 5, ConsecutiveGateway: 2}, status(502, 502), true},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			c := newCluster(outlier(tt.o), list(3))
			e := c.Endpoints()[0]
			for i, o := range tt.outcomes {
				want := tt.want && i == len(tt.outcomes)-1
				if got := e.Report(start, o); got != want {
					t.Errorf("outcome %d ejects: %t, want %t", i+1, got, want)
				}
			}
		})
	}
	if newCluster(algorithm(plan.Random), list(1)).Endpoints()[0].Report(start, Outcome{Status: 500}) {
		t.Error("ejected without outlier detection")
	}
}

func TestEjectionTimeline(t *testing.T) {
	c := newCluster(outlier(plan.Outlier{Consecutive5xx: 1, BaseEjection: 10 * time.Second, Interval: 5 * time.Second, MaxEjectionPercent: 50}), list(2))
	e := c.Endpoints()[0]
	now := start
	eject := func(want time.Duration) {
		t.Helper()
		if !e.Report(now, Outcome{Status: 500}) {
			t.Fatal("not ejected")
		}
		if got := e.Ejected(now).Sub(now); got != want {
			t.Fatalf("out for %s, want %s", got, want)
		}
		if e.Report(now, Outcome{Status: 500}) {
			t.Fatal("ejected twice at once")
		}
	}
	picked := func() bool { return share(t, c, 200, now)[0] > 0 }
	eject(10 * time.Second)
	if picked() {
		t.Error("picked while it is out")
	}
	now = now.Add(10*time.Second - 1)
	if picked() || c.Usage().Ejected != 1 {
		t.Error("back too early")
	}
	now = now.Add(1)
	if !picked() || c.Usage().Ejected != 0 {
		t.Error("not back in time")
	}
	eject(20 * time.Second) // the second time
	now = now.Add(20 * time.Second)
	eject(30 * time.Second)
	now = now.Add(30*time.Second + 10*time.Second) // two intervals of good behaviour
	eject(20 * time.Second)
	now = now.Add(time.Hour)
	eject(10 * time.Second)
	for range 100 {
		now = e.Ejected(now)
		e.Report(now, Outcome{Status: 500})
	}
	if got := e.Ejected(now).Sub(now); got != maxEjection {
		t.Errorf("out for %s at most, want %s", got, maxEjection)
	}
	d := newCluster(outlier(plan.Outlier{Consecutive5xx: 1}), list(2)).Endpoints()[0]
	d.Report(start, Outcome{Status: 500})
	if got := d.Ejected(start).Sub(start); got != 30*time.Second {
		t.Errorf("out for %s by default", got)
	}
	long := newCluster(outlier(plan.Outlier{Consecutive5xx: 1, BaseEjection: time.Hour}), list(2)).Endpoints()[0]
	long.Report(start, Outcome{Status: 500})
	if got := long.Ejected(start).Sub(start); got != time.Hour {
		t.Errorf("out for %s, want what was ordered", got)
	}
}

func TestMaxEjection(t *testing.T) {
	tests := []struct {
		n       int
		percent uint32
		want    int
	}{{10, 0, 1}, {10, 50, 5}, {10, 100, 10}, {3, 10, 1}, {1, 10, 1}, {30, 10, 3}, {7, 50, 3}}
	for _, tt := range tests {
		c := newCluster(outlier(plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: tt.percent}), list(tt.n))
		for _, e := range c.Endpoints() {
			e.Report(start, Outcome{Status: 500})
		}
		if got := c.Usage().Ejected; got != tt.want {
			t.Errorf("%d of %d are out, at most %d %%: want %d", got, tt.n, tt.percent, tt.want)
		}
		if _, ok := c.Pick(Pick{Now: start}); ok != (tt.want < tt.n) {
			t.Errorf("picked %t with %d of %d out", ok, tt.want, tt.n)
		}
	}
}

func TestMinHealth(t *testing.T) {
	c := newCluster(outlier(plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100, MinHealthPercent: 50}), list(4))
	eps := c.Endpoints()
	for _, e := range eps[:2] {
		e.Report(start, Outcome{Status: 500})
	}
	near(t, map[int]float64{2: 50, 3: 50}, share(t, c, 5000, start), 3)
	eps[2].Report(start, Outcome{Status: 500})
	near(t, map[int]float64{0: 25, 1: 25, 2: 25, 3: 25}, share(t, c, 5000, start), 3)
}

func TestLimits(t *testing.T) {
	c := New(&plan.Cluster{Limits: plan.Limits{Connections: 2, PendingRequests: 1, Requests: 3, Retries: 1}}, nil)
	tests := []struct {
		what    string
		acquire func() bool
		release func()
		limit   int
	}{
		{"connections", c.AcquireConnection, c.ReleaseConnection, 2},
		{"pending", c.AcquirePending, c.ReleasePending, 1},
		{"requests", c.AcquireRequest, c.ReleaseRequest, 3},
		{"retries", c.AcquireRetry, c.ReleaseRetry, 1},
	}
	for _, tt := range tests {
		for range tt.limit {
			if !tt.acquire() {
				t.Errorf("%s: refused below the limit", tt.what)
			}
		}
		if tt.acquire() {
			t.Errorf("%s: granted above the limit", tt.what)
		}
		tt.release()
		if !tt.acquire() {
			t.Errorf("%s: what was given back is lost", tt.what)
		}
	}
	if u := c.Usage(); u != (Usage{Connections: 2, Pending: 1, Requests: 3, Retries: 1}) {
		t.Errorf("%+v", u)
	}
	// An update changes the limits, not the counts.
	c = New(&plan.Cluster{Limits: plan.Limits{Requests: 2}}, c)
	c.ReleaseRequest()
	if c.AcquireRequest() {
		t.Error("the new limit is not heeded")
	}
	free := New(&plan.Cluster{}, nil)
	for range 10000 {
		if !free.AcquireConnection() || !free.AcquirePending() || !free.AcquireRequest() || !free.AcquireRetry() {
			t.Fatal("limited without a limit")
		}
	}
}

func TestRetryBudget(t *testing.T) {
	retries := func(requests int, l plan.Limits) (n int) {
		c := New(&plan.Cluster{Limits: l}, nil)
		for range requests {
			c.AcquireRequest()
		}
		for n < 1000 && c.AcquireRetry() {
			n++
		}
		return n
	}
	tests := []struct {
		requests int
		l        plan.Limits
		want     int
	}{
		{100, plan.Limits{RetryBudget: 20}, 20},
		{100, plan.Limits{RetryBudget: 12.5}, 12},
		{100, plan.Limits{RetryBudget: 20, Retries: 5}, 20}, // the budget takes the place of the limit
		{0, plan.Limits{RetryBudget: 20}, 3},
		{10, plan.Limits{RetryBudget: 20, RetryBudgetMin: 7}, 7},
	}
	for _, tt := range tests {
		if got := retries(tt.requests, tt.l); got != tt.want {
			t.Errorf("%d requests, %+v: %d retries, want %d", tt.requests, tt.l, got, tt.want)
		}
	}
}

func TestLimitsUnderConcurrency(t *testing.T) {
	c := New(&plan.Cluster{Limits: plan.Limits{Connections: 3}}, nil)
	var held, granted atomic.Int64
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 2000 {
				if !c.AcquireConnection() {
					continue
				}
				if held.Add(1) > 3 {
					t.Error("more than the limit at once")
				}
				granted.Add(1)
				held.Add(-1)
				c.ReleaseConnection()
			}
		})
	}
	group.Wait()
	if granted.Load() == 0 || c.Usage().Connections != 0 {
		t.Errorf("%d granted, %d held in the end", granted.Load(), c.Usage().Connections)
	}
}
