package balance

import (
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// TestLost: an endpoint where nobody answers gets one request in a while, to see, and its share again once it answers.
func TestLost(t *testing.T) {
	for _, by := range []plan.Algorithm{plan.LeastRequest, plan.RoundRobin, plan.Random, plan.RingHash, plan.Maglev} {
		c := newCluster(algorithm(by), list(3))
		e := c.Endpoints()[1]
		e.Lost(start)
		if got := share(t, c, 300, start.Add(lostWait-1)); got[1] != 0 {
			t.Errorf("%v: %v %% go to the lost one", by, got[1])
		}
		if got := share(t, c, 300, start.Add(lostWait)); got[1] < 0.3 || got[1] > 0.4 {
			t.Errorf("%v: %v %% go to the lost one, want one request", by, got[1])
		}
		if got := share(t, c, 300, start.Add(2*lostWait-1)); got[1] != 0 {
			t.Errorf("%v: %v %% go to the one that is still lost", by, got[1])
		}
		e.Found()
		if got := share(t, c, 300, start.Add(2*lostWait-1)); got[1] < 10 {
			t.Errorf("%v: %v %% go to the one that is back", by, got[1])
		}
	}
}

// TestLostAll: where nobody answers anywhere, all are asked, and before them those that answered otherwise than wished.
func TestLostAll(t *testing.T) {
	c := newCluster(algorithm(plan.Random), list(2))
	a, b := c.Endpoints()[0], c.Endpoints()[1]
	a.Lost(start)
	if e, _ := c.Pick(Pick{Now: start, Tried: []*Endpoint{b}}); e != b {
		t.Error("the lost one goes before the one that was tried")
	}
	if !c.Elsewhere(nil, start) || c.Elsewhere([]*Endpoint{b}, start) {
		t.Error("there is one elsewhere until it has been tried")
	}
	b.Lost(start)
	if got := share(t, c, 300, start); got[0] < 30 || got[1] < 30 {
		t.Error(got)
	}
	if c.Elsewhere(nil, start) {
		t.Error("all are lost")
	}
}

// TestLostNear: what is lost near is served farther away.
func TestLostNear(t *testing.T) {
	p := algorithm(plan.Random)
	p.Outlier = &plan.Outlier{}
	p.Balance.Locality, p.Balance.From = true, "r/a"
	c := newCluster(p, list(2, localities("r/a", "r/b")))
	c.Endpoints()[0].Lost(start)
	if got := share(t, c, 100, start); got[1] != 100 {
		t.Error(got)
	}
	if got := share(t, c, 100, start.Add(time.Minute)); got[0] != 1 {
		t.Error(got, "want one request, to see")
	}
}
