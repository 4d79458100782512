package fair

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// TestLine: an address has so much room of its own, and a part of that of all; who does not want to wait any more goes.
func TestLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLine(3, 2, 2)
		gone := errors.New("gone")
		type caller struct {
			leave func()
			err   error
			stop  context.CancelCauseFunc
		}
		var mu sync.Mutex
		enter := func(from string) *caller {
			c := &caller{}
			ctx, stop := context.WithCancelCause(t.Context())
			c.stop = stop
			go func() {
				leave, err := l.Enter(ctx, from)
				mu.Lock()
				defer mu.Unlock()
				c.leave, c.err = leave, err
			}()
			synctest.Wait()
			return c
		}
		passed := func(c *caller) bool {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return c.leave != nil
		}
		a := []*caller{enter("a"), enter("a"), enter("a"), enter("a")}
		b := []*caller{enter("b"), enter("b")}
		if !passed(a[0]) || !passed(a[1]) || passed(a[2]) || passed(a[3]) || !passed(b[0]) || passed(b[1]) {
			t.Error("not two of a and one of b have passed")
		}
		if c := enter("a"); c.err == nil || !strings.Contains(c.err.Error(), "2 requests from a wait already") {
			t.Errorf("a third one of a waits: %v", c.err)
		}
		a[2].stop(gone) // behind its own
		b[1].stop(gone) // behind all
		if passed(a[2]) || !errors.Is(a[2].err, gone) || passed(b[1]) || !errors.Is(b[1].err, gone) {
			t.Error(a[2].err, b[1].err)
		}
		a[0].leave()
		if !passed(a[3]) {
			t.Error("nobody has taken the place that was left")
		}
		for _, c := range []*caller{a[1], a[3], b[0]} {
			c.leave()
		}
		if l.Len() > 0 || len(l.all) > 0 || len(l.files) > 0 {
			t.Errorf("%d, %d and %d stay behind", l.Len(), len(l.all), len(l.files))
		}
		if leave, err := NewLine(0, 1, 0).Enter(t.Context(), "a"); err != nil {
			t.Error(err)
		} else {
			leave()
		}
	})
}

// TestCrowd: who comes is let in, and the oldest of the address with most goes.
func TestCrowd(t *testing.T) {
	c := NewCrowd(4)
	var ended []string
	enter := func(from, name string) func() {
		return c.Enter(from, func() { ended = append(ended, name) })
	}
	enter("a", "a1")
	b1 := enter("b", "b1")
	a2 := enter("a", "a2")
	enter("a", "a3")
	enter("c", "c1") // instead of a1
	enter("d", "d1") // instead of a2
	a2()             // is not there any more
	enter("e", "e1") // all have one: instead of b1, the oldest
	b1()
	enter("d", "d2") // instead of a3, the oldest
	enter("c", "c2") // instead of d1
	if diff := cmp.Diff([]string{"a1", "a2", "b1", "a3", "d1"}, ended); diff != "" {
		t.Error(diff)
	}
	if c.Len() != 4 {
		t.Error(c.Len())
	}
	enter("f", "f1")() // instead of c1; and leaves
	enter("f", "f2")
	if len(ended) != 6 || c.Len() != 4 {
		t.Error(ended, c.Len())
	}
}

// TestAddress: callers are told apart by their address, not by their port.
func TestAddress(t *testing.T) {
	for remote, want := range map[string]string{
		"10.0.0.1:4711": "10.0.0.1", "[::ffff:10.0.0.1]:1": "10.0.0.1", "[2001:db8::1]:1": "2001:db8::1", "[fe80::1%eth0]:1": "fe80::1%eth0", "@": "@", "": "",
	} {
		if got := Address(remote); got != want {
			t.Errorf("%q: %q, want %q", remote, got, want)
		}
	}
}
