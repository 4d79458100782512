package soak

import (
	"fmt"
	"math/rand/v2"
)

// The sizes and frequencies of the mix.
const (
	slowOneIn  = 12
	slowPause  = 4e6 // ns, the longest between two pieces
	abortOneIn = 8
	hugeMax    = 2 << 20
	hugeOneIn  = 64
)

// Who ends an exchange before it is complete, and how.
const (
	endWhole   = "whole" // nobody
	endClose   = "close" // the client: closes its connection, or cancels its stream
	endReset   = "reset" // the client: resets it
	endCut     = "cut"   // the backend: closes
	endCrash   = "crash" // the backend: resets
	endWaiting = "leave" // the client: sends all, and leaves while the answer comes
)

// When a backend answers a request.
const (
	modeAfter = "after" // when it has all of it
	modeEarly = "early" // at once, reading on
	modeEcho  = "echo"  // with the body that it gets, while it gets it
	modeSoon  = "soon"  // with all of its answer, before it reads on
)

// order is what the client of an exchange tells the backend about it. Both know the bodies by the ID.
type order struct {
	ID           uint64
	Up, Down     int // bytes of the bodies
	UpAt, DownAt int // after how many of them the exchange is ended, if its End says so
	Mode, End    string
	UpChunked    bool
	DownChunked  bool
	Trailer      bool
}

func (o *order) seedUp() uint64   { return o.ID*2 + 1 }
func (o *order) seedDown() uint64 { return o.ID*2 + 2 }

// seedAnswer is the seed of the body that comes back.
func (o *order) seedAnswer() uint64 {
	if o.Mode == modeEcho {
		return o.seedUp()
	}
	return o.seedDown()
}

const orderForm = "%x %d %d %d %d %s %s %t %t %t"

func (o *order) String() string {
	return fmt.Sprintf(orderForm, o.ID, o.Up, o.Down, o.UpAt, o.DownAt, o.Mode, o.End, o.UpChunked, o.DownChunked, o.Trailer)
}

func parseOrder(s string) (*order, error) {
	o := &order{}
	_, err := fmt.Sscanf(s, orderForm, &o.ID, &o.Up, &o.Down, &o.UpAt, &o.DownAt, &o.Mode, &o.End, &o.UpChunked, &o.DownChunked, &o.Trailer)
	if err != nil || o.Up < 0 || o.Down < 0 || max(o.Up, o.Down) > hugeMax {
		return nil, wrong("order %q: %v", s, err)
	}
	return o, nil
}

// newOrder draws an exchange. ends are the ways in which it may end early, one of which it does at times.
func newOrder(id uint64, rnd *rand.Rand, ends ...string) *order {
	o := &order{ID: id, Up: size(rnd), Down: size(rnd), End: endWhole}
	o.Mode = []string{modeAfter, modeAfter, modeEarly, modeEcho, modeSoon}[rnd.IntN(5)]
	o.UpChunked, o.DownChunked, o.Trailer = rnd.IntN(2) == 0, rnd.IntN(2) == 0, rnd.IntN(4) == 0
	if o.Mode == modeEcho {
		o.Down, o.DownChunked = o.Up, o.DownChunked || o.UpChunked // or the answer could end before the request
	}
	if len(ends) > 0 && rnd.IntN(abortOneIn) == 0 {
		o.End = ends[rnd.IntN(len(ends))]
	}
	if o.Mode == modeEarly { // the end of the answer waits for that of the request, so that there must be one
		o.Down += 2
	}
	if o.End != endWhole { // something must be left to cut
		o.Up, o.Down = o.Up+2, o.Down+2
	}
	o.UpAt, o.DownAt = rnd.IntN(o.Up+1), rnd.IntN(o.Down+1)
	if o.End != endWhole {
		o.UpAt, o.DownAt = min(o.UpAt, o.Up-1), min(o.DownAt, o.Down-1)
	}
	return o
}

// size draws the size of a body: often nothing or little, as often each order of magnitude, at times much.
func size(rnd *rand.Rand) int {
	switch {
	case rnd.IntN(hugeOneIn) == 0:
		return rnd.IntN(hugeMax - 2)
	case rnd.IntN(5) == 0:
		return 0
	}
	return rnd.IntN(2 << rnd.IntN(17))
}

// byClient reports whether the client ends the exchange early, and byBackend whether the backend does.
func (o *order) byClient() bool { return o.End == endClose || o.End == endReset || o.End == endWaiting }

func (o *order) byBackend() bool { return o.End == endCut || o.End == endCrash }
