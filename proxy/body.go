package proxy

import (
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
)

// The bounds of what an exchange keeps of a request's body.
const (
	// retryBytes is how much of a request's body is kept so that the request can be sent again; a longer one is
	// sent once.
	retryBytes = 64 << 10
	// parkBytes is how much of a body may arrive before the upstream is there; reading is paused meanwhile, so
	// that it is only what one read had brought already.
	parkBytes = 512 << 10
	// bodyBytes is how much is taken for a body at first, and bodiesMax how many are kept for reuse, 2 MiB of short
	// ones: as many as there are usually requests under way. Long ones are not kept beyond longBodiesMax of all.
	bodyBytes     = 2 << 10
	bodiesMax     = 512
	longBodiesMax = 32
)

// hold keeps the body from arriving while there is nobody to send it to.
func (x *exchange) hold() {
	if !x.ended {
		x.down.Pause()
	}
}

// connected is told by the attempt that its upstream is there: the head and what has arrived of the body go out.
func (x *exchange) connected(a *attempt) {
	if x.ended {
		x.startPerTry()
	}
	a.sendHead(&x.req, x.ended && len(x.body) == 0 && !x.hasTrail)
	if x.current == a && len(x.body) > 0 {
		a.up.SendData(x.body, x.ended && !x.hasTrail)
	}
	if x.current == a && x.ended && x.hasTrail {
		a.up.SendTrailers(&x.trailers)
	}
	if x.current != a {
		return // given up meanwhile
	}
	x.trimBody()
	if !x.ended && !a.up.Full() {
		x.down.Resume()
	}
}

// trimBody lets go of the kept body if it is of no more use: no other attempt will be made, or it is too long.
func (x *exchange) trimBody() {
	r := x.retryPolicy()
	if r != nil && r.Attempts > x.tries && !x.responded && len(x.body) <= retryBytes {
		return
	}
	if len(x.body) > 0 {
		x.dropped = true
	}
	x.w.bodies.give(x.body)
	x.body = nil
}

// OnData takes body bytes of the request.
func (x *exchange) OnData(p []byte, end bool) {
	if x.over {
		return
	}
	x.rec.received += int64(len(p))
	x.ended = x.ended || end
	if end {
		x.startTimeout()
		x.startPerTry()
	}
	if len(x.copies) > 0 {
		x.copyData(p, end)
	}
	a := x.current
	if a == nil || a.up == nil {
		x.parkBody(p)
		return
	}
	if len(p) > 0 && !x.dropped {
		x.keepBody(p)
	}
	a.up.SendData(p, end)
	switch {
	case x.current != a:
	case end && x.upEnded: // a tunnel, of which the other way has ended before
		x.current = nil
		a.close()
		x.finish()
	case !end && a.up.Full():
		x.down.Pause()
	}
}

// keepBody keeps bytes that are on their way to an attempt for another one, if there may be one.
func (x *exchange) keepBody(p []byte) {
	r := x.retryPolicy()
	if r == nil || r.Attempts <= x.tries || x.responded || len(x.body)+len(p) > retryBytes {
		x.dropped = true
		x.w.bodies.give(x.body)
		x.body = nil
		return
	}
	x.body = append(x.w.bodies.take(x.body), p...)
}

// parkBody keeps bytes for the upstream that is not there yet.
func (x *exchange) parkBody(p []byte) {
	if len(x.body)+len(p) > parkBytes {
		x.answer(telemetry.BodyTooLarge, 413, "the body arrived before its destination was known, and is too large to keep")
		return
	}
	if len(p) > 0 {
		x.body = append(x.w.bodies.take(x.body), p...)
	}
}

// OnTrailers ends the request with trailers.
func (x *exchange) OnTrailers(h *stream.Head) {
	if x.over {
		return
	}
	x.ended = true
	x.trailers.CopyFrom(h)
	x.hasTrail = true
	x.startTimeout()
	x.startPerTry()
	x.mirrorBody()
	if a := x.current; a != nil && a.up != nil {
		a.up.SendTrailers(h)
	}
}

// bodies is memory for bodies, kept for reuse.
type bodies struct {
	free [][]byte
	low  int // the least that there were since the last trim
}

// take returns memory for a body that is kept; have is what there is already.
func (s *bodies) take(have []byte) []byte {
	if have != nil {
		return have
	}
	n := len(s.free)
	if n == 0 {
		s.low = 0
		return make([]byte, 0, bodyBytes)
	}
	b := s.free[n-1]
	s.free[n-1] = nil
	s.free = s.free[:n-1]
	s.low = min(s.low, n-1)
	return b[:0]
}

// give takes the memory back.
func (s *bodies) give(b []byte) {
	limit := bodiesMax
	if cap(b) > 2*bodyBytes {
		limit = longBodiesMax
	}
	if b != nil && cap(b) <= retryBytes && len(s.free) < limit {
		s.free = append(s.free, b)
	}
}

// trim leaves half of what nobody has needed since the last call to the garbage collector.
func (s *bodies) trim() {
	n := len(s.free) - (s.low+1)/2
	clear(s.free[n:])
	s.free = s.free[:n]
	s.low = n
}
