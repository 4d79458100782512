package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	lease "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// leaseName is that of the Lease whose holder writes into the cluster; any number of servers read.
const leaseName = "lateend-leader"

// The times of the Lease, those that Kubernetes' own components have. A holder that has not renewed for renewWithin
// stops, before anybody else may begin after leaseDuration.
const (
	leaseDuration = 15 * time.Second
	renewWithin   = 10 * time.Second
	renewEvery    = 2 * time.Second
	// leaseTimeout bounds a call; a lost one must leave time for another.
	leaseTimeout = 4 * time.Second
)

// elector leads while it holds the Lease. The rules are those of client-go's leader election, which is left out for
// what it links.
type elector struct {
	api       rest.Interface
	log       *slog.Logger
	namespace string
	identity  string // of this server, one of its kind
	// The times; tests shorten them.
	duration, within, every time.Duration

	// What was last seen of another's Lease, and since when by our own clock: clocks of machines may differ.
	seen      string
	seenSince time.Time
}

func newElector(c *clients, log *slog.Logger, namespace, identity string) *elector {
	return &elector{api: c.lease, log: log, namespace: namespace, identity: identity, duration: leaseDuration, within: renewWithin, every: renewEvery}
}

// run calls lead whenever this server leads, with a context that ends when it does not any more, until ctx ends.
func (e *elector) run(ctx context.Context, lead func(context.Context)) {
	tick := time.NewTicker(e.every)
	defer tick.Stop()
	told := ""
	for {
		switch err := e.take(ctx); {
		case err == nil:
			told = ""
			e.lead(ctx, tick.C, lead)
		case !errors.Is(err, errHeld) && ctx.Err() == nil && err.Error() != told:
			told = err.Error()
			e.log.Warn("the Lease cannot be had; this server writes no status", "lease", e.namespace+"/"+leaseName, "cause", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lead leads until ctx ends or the Lease is lost.
func (e *elector) lead(ctx context.Context, tick <-chan time.Time, lead func(context.Context)) {
	e.log.Info("this server leads: it writes status", "lease", e.namespace+"/"+leaseName, "as", e.identity)
	own, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { lead(own) })
	for renewed := time.Now(); own.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-tick:
			err := e.take(ctx)
			if err == nil {
				renewed = time.Now()
			} else if errors.Is(err, errHeld) || time.Since(renewed) > e.within {
				e.log.Warn("this server leads no more", "cause", err)
				stop()
			}
		}
	}
	stop()
	group.Wait()
	if ctx.Err() != nil {
		e.release()
	}
}

// errHeld says that another server holds the Lease.
var errHeld = errors.New("another server holds the Lease")

// take takes the Lease, or renews it.
func (e *elector) take(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, min(leaseTimeout, e.within))
	defer stop()
	now := metav1.NowMicro()
	seconds := int32(max(e.duration/time.Second, 1))
	held := &lease.Lease{}
	err := e.api.Get().Namespace(e.namespace).Resource("leases").Name(leaseName).Do(ctx).Into(held)
	if apierrors.IsNotFound(err) {
		held = &lease.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseName, Namespace: e.namespace}}
		held.Spec = lease.LeaseSpec{HolderIdentity: &e.identity, LeaseDurationSeconds: &seconds, AcquireTime: &now, RenewTime: &now}
		return e.lost(e.api.Post().Namespace(e.namespace).Resource("leases").Body(held).Do(ctx).Error())
	}
	if err != nil {
		return fmt.Errorf("read the Lease: %w", err)
	}
	holder := ""
	if held.Spec.HolderIdentity != nil {
		holder = *held.Spec.HolderIdentity
	}
	if holder != e.identity {
		if holder != "" && !e.expired(holder, held) {
			return errHeld
		}
		transitions := int32(1)
		if held.Spec.LeaseTransitions != nil {
			transitions = *held.Spec.LeaseTransitions + 1
		}
		held.Spec.HolderIdentity, held.Spec.AcquireTime, held.Spec.LeaseTransitions = &e.identity, &now, &transitions
	}
	held.Spec.RenewTime, held.Spec.LeaseDurationSeconds = &now, &seconds
	return e.lost(e.api.Put().Namespace(e.namespace).Resource("leases").Name(leaseName).Body(held).Do(ctx).Error())
}

// lost tells that somebody was faster.
func (e *elector) lost(err error) error {
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return errHeld
	}
	return err
}

// expired reports whether a Lease has been as it is for longer than it lasts.
func (e *elector) expired(holder string, l *lease.Lease) bool {
	if state := holder + " " + l.ResourceVersion; state != e.seen {
		e.seen, e.seenSince = state, time.Now()
	}
	return time.Since(e.seenSince) > e.duration
}

// release gives the Lease back, so that another server need not wait.
func (e *elector) release() {
	ctx, stop := context.WithTimeout(context.Background(), leaseTimeout)
	defer stop()
	held := &lease.Lease{}
	err := e.api.Get().Namespace(e.namespace).Resource("leases").Name(leaseName).Do(ctx).Into(held)
	if err == nil && held.Spec.HolderIdentity != nil && *held.Spec.HolderIdentity == e.identity {
		nobody := ""
		held.Spec.HolderIdentity = &nobody
		err = e.api.Put().Namespace(e.namespace).Resource("leases").Name(leaseName).Body(held).Do(ctx).Error()
	}
	if err != nil {
		e.log.Warn("the Lease could not be given back; another server takes it when it has run out", "cause", err)
	}
}
