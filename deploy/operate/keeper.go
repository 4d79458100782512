package operate

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/lateen-mesh/lateen/deploy/apply"
)

const (
	// retryFirst and retryMax bound the wait after something that has not worked; it doubles each time.
	retryFirst = 2 * time.Second
	retryMax   = 2 * time.Minute
	// settle is how long events may come together before they are looked at.
	settle = 200 * time.Millisecond
	// passes may follow each other at once this often, and then one in passEvery: somebody else may want the contrary.
	passes    = 8
	passEvery = 5 * time.Second
	// safety is after how long all is looked at although no event has come.
	safety = 10 * time.Minute
)

// errGone says that there is nothing to keep any more.
var errGone = errors.New("the Installation is gone")

// keeper does one thing over and over, as often as something happens that it may be needed for. Its methods may be called
// concurrently, run once.
type keeper struct {
	log    *slog.Logger
	name   string
	pass   func(context.Context) error
	events chan struct{} // something has happened since the pass under way began

	mu       sync.Mutex
	stop     context.CancelCauseFunc // ends the pass under way; nil: there is none
	removing bool                    // it brings everything to an end: what happens is its own doing
}

func newKeeper(name string, log *slog.Logger, pass func(context.Context) error) *keeper {
	return &keeper{name: name, log: log, pass: pass, events: make(chan struct{}, 1)}
}

// wake says that something has happened.
func (k *keeper) wake() {
	select {
	case k.events <- struct{}{}:
	default:
	}
}

// interrupt says that what is under way, which may be a long wait, is no longer what is to be done.
func (k *keeper) interrupt() {
	k.wake()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stop != nil && !k.removing {
		k.stop(apply.ErrSuperseded)
	}
}

// run works until ctx ends, or a pass finds that there is nothing to keep.
func (k *keeper) run(ctx context.Context) {
	pace := flowcontrol.NewTokenBucketRateLimiter(float32(time.Second)/float32(passEvery), passes)
	defer pace.Stop()
	told, retry := "", retryFirst
	for {
		err := k.once(ctx)
		wait := safety
		switch {
		case ctx.Err() != nil || errors.Is(err, errGone):
			return
		case err == nil:
			told, retry = "", retryFirst
		case errors.Is(err, apply.ErrSuperseded):
			wait = 0
		default:
			if wait, retry = retry, min(2*retry, retryMax); err.Error() != told {
				told = err.Error()
				k.log.Warn("it is not as it should be", "revision", k.name, "cause", err, "again", wait)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-k.events:
			timer.Reset(settle)
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
		timer.Stop()
		if pace.Wait(ctx) != nil {
			return
		}
	}
}

// remove says that from now on, or no more, all is brought to an end.
func (k *keeper) remove(is bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removing = is
}

// once does it.
func (k *keeper) once(ctx context.Context) error {
	select {
	case <-k.events: // seen from now on
	default:
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	k.mu.Lock()
	k.stop = stop
	k.mu.Unlock()
	err := k.pass(ctx)
	k.mu.Lock()
	k.stop = nil
	k.mu.Unlock()
	if err != nil && errors.Is(context.Cause(ctx), apply.ErrSuperseded) {
		return apply.ErrSuperseded
	}
	return err
}
