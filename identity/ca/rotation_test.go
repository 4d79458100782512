package ca_test

import (
	"crypto/x509"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity/ca"
)

// A root is replaced in two halves, during which whatever was issued is believed by whoever has renewed in the half
// before.
func TestRotate(t *testing.T) {
	now := time.Now()
	keys, err := ca.NewKeys("td", now)
	if err != nil {
		t.Fatal(err)
	}
	use := func(keys ca.Keys) *ca.Authority {
		t.Helper()
		a, err := ca.New(ca.Config{TrustDomain: "td", Keys: keys, Clock: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	running, behind := use(keys), use(keys)
	turn := ca.Rotation{Overlap: time.Hour}
	step := func(after time.Duration, changes bool) *ca.Authority {
		t.Helper()
		now = now.Add(after)
		before := maps.Clone(keys)
		var err error
		if keys, turn, err = keys.Rotate(turn, "td", now); err != nil {
			t.Fatal(err)
		}
		if same := reflect.DeepEqual(keys, before); same == changes {
			t.Fatalf("after %v: the keys change: %t", after, !same)
		}
		if changed, err := running.Use(keys, false); err != nil || changed != changes {
			t.Fatalf("a server that runs uses them: %t, %v", changed, err)
		}
		return use(keys)
	}
	believe := func(issuer, believer *ca.Authority) {
		t.Helper()
		issued, err := issuer.Issue(alice, newKey(t).Public(), 0)
		if err == nil {
			_, err = believer.Bundle().Verify([]*x509.Certificate{issued.Leaf}, x509.ExtKeyUsageServerAuth, now)
		}
		if err != nil {
			t.Error(err)
		}
	}
	states := []*ca.Authority{use(keys), step(0, true)}
	step(time.Hour-time.Second, false)
	states = append(states, step(time.Second, true))
	step(time.Hour-time.Second, false)
	if changed, err := behind.Use(keys, false); !changed || err != nil {
		t.Errorf("a server that has missed the first half: %t, %v", changed, err)
	}
	states = append(states, step(time.Second, true))
	if turn != (ca.Rotation{}) {
		t.Errorf("the rotation has not ended: %+v", turn)
	}
	for i := range states[1:] {
		believe(states[i], states[i+1])
		believe(states[i+1], states[i])
	}
	counts := []int{}
	for _, a := range states {
		counts = append(counts, len(a.Bundle().Roots("td")))
	}
	if !slices.Equal(counts, []int{1, 2, 2, 1}) || states[0].Bundle().Version() == states[3].Bundle().Version() {
		t.Errorf("roots: %v", counts)
	}
	if len(keys) != 2 {
		t.Errorf("%d files are left", len(keys))
	}
	step(1000*time.Hour, false)
}

// A root that ends in less than a year is replaced unasked; a plugged-in one never.
func TestRotateInTime(t *testing.T) {
	now := time.Now()
	keys, err := ca.NewKeys("td", now)
	if err != nil {
		t.Fatal(err)
	}
	for after, want := range map[time.Duration]bool{0: false, 8 * 8766 * time.Hour: false, 9*8766*time.Hour + 48*time.Hour: true} {
		_, turn, err := keys.Rotate(ca.Rotation{}, "td", now.Add(after))
		if err != nil || turn.Since.IsZero() == want {
			t.Errorf("after %v: %+v, %v", after, turn, err)
		}
	}
	key := newKey(t)
	theirs, _ := plugged(t, key, pkcs8(t, key))
	if got, turn, err := theirs.Rotate(ca.Rotation{Overlap: time.Hour}, "td", now); err != nil || !turn.Since.IsZero() || !reflect.DeepEqual(got, theirs) {
		t.Errorf("a plugged-in authority was changed: %v", err)
	}
}
