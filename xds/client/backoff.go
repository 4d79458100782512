package client

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff yields the pauses between attempts: each twice as long as the one before, within bounds, of which up to
// half is taken off at random.
type backoff struct {
	least, most time.Duration
	pause       time.Duration // the last one, before chance; 0 after a success
}

// next returns the pause before the next attempt.
func (b *backoff) next() time.Duration {
	b.pause = min(max(b.pause*2, b.least), b.most)
	return b.pause - rand.N(b.pause/2+1)
}

// reset forgets the failures.
func (b *backoff) reset() { b.pause = 0 }

// sleep waits and reports true, or false if the context ended first.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
