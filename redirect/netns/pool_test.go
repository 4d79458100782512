package netns_test

import (
	"errors"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

// drain takes addresses until none is left, at most limit.
func drain(t *testing.T, p *netns.Pool, limit int) []string {
	t.Helper()
	var taken []string
	for range limit + 1 {
		a, err := p.Take()
		if err != nil {
			if !errors.Is(err, netns.ErrExhausted) {
				t.Errorf("%v, want that the pool is exhausted", err)
			}
			return taken
		}
		taken = append(taken, a.String())
	}
	t.Errorf("more than %d addresses", limit)
	return taken
}

func TestPool(t *testing.T) {
	for _, test := range []struct {
		prefix   string
		reserved []string
		want     []string
	}{
		{
			"10.0.0.0/29",
			[]string{"10.0.0.1", "10.0.1.1"},
			[]string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"},
		},
		{"10.0.0.5/30", nil, []string{"10.0.0.5", "10.0.0.6"}},
		{"10.0.0.4/31", nil, []string{"10.0.0.4", "10.0.0.5"}},
		{"10.0.0.4/32", nil, []string{"10.0.0.4"}},
		{"10.0.0.4/32", []string{"10.0.0.4"}, nil},
		{"fd00::/126", []string{"fd00::1"}, []string{"fd00::2", "fd00::3"}},
		{"fd00::8/127", nil, []string{"fd00::8", "fd00::9"}},
	} {
		var reserved []netip.Addr
		for _, a := range test.reserved {
			reserved = append(reserved, netip.MustParseAddr(a))
		}
		p, err := netns.NewPool(netip.MustParsePrefix(test.prefix), reserved...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, drain(t, p, len(test.want))); diff != "" {
			t.Errorf("%s (-want +got)\n%s", test.prefix, diff)
		}
	}
	if _, err := netns.NewPool(netip.Prefix{}); err == nil {
		t.Error("a pool without a prefix")
	}
}

// TestPoolBound takes all that a large prefix gives.
func TestPoolBound(t *testing.T) {
	for prefix, want := range map[string]struct {
		count int
		last  string
	}{
		"10.0.0.0/8":  {65535, "10.0.255.255"},
		"10.1.0.0/16": {65534, "10.1.255.254"},
		"fd00::/64":   {65535, "fd00::ffff"},
	} {
		p, err := netns.NewPool(netip.MustParsePrefix(prefix))
		if err != nil {
			t.Fatal(err)
		}
		taken := drain(t, p, want.count)
		if len(taken) != want.count || taken[len(taken)-1] != want.last {
			t.Errorf("%s has %d addresses, the last is %s, want %+v", prefix, len(taken), taken[len(taken)-1], want)
		}
	}
}

func TestPoolRelease(t *testing.T) {
	p, err := netns.NewPool(netip.MustParsePrefix("10.0.0.0/29"))
	if err != nil {
		t.Fatal(err)
	}
	take := func(want string) {
		t.Helper()
		if a, err := p.Take(); err != nil || a.String() != want {
			t.Errorf("take: %v (%v), want %s", a, err, want)
		}
	}
	release := func(a string) error { return p.Release(netip.MustParseAddr(a)) }
	take("10.0.0.1")
	take("10.0.0.2")
	if err := release("10.0.0.1"); err != nil {
		t.Error(err)
	}
	for _, a := range []string{"10.0.0.1", "10.0.0.4", "192.0.2.1"} {
		if release(a) == nil {
			t.Errorf("%s, which is not taken, is released", a)
		}
	}
	// The others have their turn first.
	for _, want := range []string{"10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.1"} {
		take(want)
	}
	if _, err := p.Take(); !errors.Is(err, netns.ErrExhausted) {
		t.Errorf("%v, want that the pool is exhausted", err)
	}
}

func TestPoolConcurrently(t *testing.T) {
	p, err := netns.NewPool(netip.MustParsePrefix("10.0.0.0/28"))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 7 { // Of two addresses each, of 14.
		all.Go(func() {
			for range 100 {
				a, errA := p.Take()
				b, errB := p.Take()
				if err := errors.Join(errA, errB); err != nil || a == b {
					t.Errorf("took %s and %s: %v", a, b, err)
					return
				}
				if err := errors.Join(p.Release(a), p.Release(b)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
