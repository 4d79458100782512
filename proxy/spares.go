package proxy

import "time"

// spares keeps used objects for reuse, from the next batch of the loop on: in
// the batch in which one is given back, its methods may still be on the stack,
// called by a codec or by one another.
type spares[T any] struct {
	ready, resting []*T
	at             time.Time // the batch in which those that rest were given back
	low            int       // the least that there were since the last trim
}

// take returns an object that nobody uses any more; nil if there is none. now is the loop's.
func (s *spares[T]) take(now time.Time) *T {
	if len(s.ready) == 0 && !s.at.Equal(now) {
		s.ready, s.resting = s.resting, s.ready
	}
	n := len(s.ready)
	if n == 0 {
		s.low = 0
		return nil
	}
	v := s.ready[n-1]
	s.ready[n-1] = nil
	s.ready = s.ready[:n-1]
	s.low = min(s.low, n-1+len(s.resting))
	return v
}

// give keeps v, or leaves it to the garbage collector if enough are kept.
func (s *spares[T]) give(now time.Time, v *T) {
	s.wake(now)
	if len(s.ready)+len(s.resting) < freeMax {
		s.resting = append(s.resting, v)
	}
}

// wake makes ready what rests since an earlier batch.
func (s *spares[T]) wake(now time.Time) {
	if !s.at.Equal(now) {
		s.ready = append(s.ready, s.resting...)
		clear(s.resting)
		s.resting, s.at = s.resting[:0], now
	}
}

// trim leaves half of what nobody has needed since the last call to the garbage collector.
func (s *spares[T]) trim(now time.Time) {
	s.wake(now)
	n := len(s.ready) - min((s.low+1)/2, len(s.ready))
	clear(s.ready[n:])
	s.ready = s.ready[:n]
	s.low = n + len(s.resting)
}
