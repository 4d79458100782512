package operate

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/deploy/apply"
)

// play runs a keeper whose passes end as results say, and returns when each has begun; do is done meanwhile.
func play(t *testing.T, do func(k *keeper), pass func(ctx context.Context, k *keeper, n int) error) (began []time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		k := newKeeper("default", slog.New(slog.NewTextHandler(t.Output(), nil)), nil)
		k.pass = func(ctx context.Context) error {
			began = append(began, time.Since(start))
			return pass(ctx, k, len(began))
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			k.run(ctx)
		}()
		do(k)
		stop()
		<-ended
	})
	return began
}

// await lets time pass.
func await(d time.Duration) { <-time.After(d) }

// TestKeeperRetries: what has not worked is tried again, later each time, and at once when something happens; what has
// worked is looked at again after a long time.
func TestKeeperRetries(t *testing.T) {
	got := play(t, func(k *keeper) {
		await(10 * time.Second)
		k.wake()
		k.wake() // both are seen by one pass
		await(time.Second)
		await(safety)
	}, func(_ context.Context, _ *keeper, n int) error {
		if n < 4 {
			return errors.New("not yet")
		}
		return nil
	})
	want := []time.Duration{0, retryFirst, 3 * retryFirst, 10*time.Second + settle, 10*time.Second + settle + safety}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestKeeperInterrupt: a pass for what is no longer wanted ends, and another one begins.
func TestKeeperInterrupt(t *testing.T) {
	got := play(t, func(k *keeper) {
		await(time.Minute)
		k.interrupt()
		await(time.Minute)
	}, func(ctx context.Context, _ *keeper, n int) error {
		if n > 1 {
			return nil
		}
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), apply.ErrSuperseded) {
			t.Errorf("it ended of %v", context.Cause(ctx))
		}
		return ctx.Err()
	})
	if diff := cmp.Diff(2, len(got)); diff != "" || got[1]-time.Minute > settle {
		t.Errorf("they began at %v", got)
	}
}

// TestKeeperGone: without an Installation there is nothing to do any more.
func TestKeeperGone(t *testing.T) {
	got := play(t, func(k *keeper) {
		await(time.Second)
		k.wake()
		await(time.Hour)
	}, func(context.Context, *keeper, int) error { return errGone })
	if len(got) != 1 {
		t.Errorf("they began at %v", got)
	}
}

// TestKeeperFight: somebody who changes things back each time keeps the cluster busy, but not more than so much.
func TestKeeperFight(t *testing.T) {
	got := play(t, func(*keeper) { await(10 * time.Minute) }, func(_ context.Context, k *keeper, _ int) error {
		k.wake()
		return nil
	})
	if most := passes + int(10*time.Minute/passEvery) + 2; len(got) > most || len(got) < most/2 {
		t.Errorf("there were %d in ten minutes, want about %d", len(got), most)
	}
}
