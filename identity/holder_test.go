package identity_test

import (
	"crypto/tls"
	"sync"
	"testing"

	"github.com/lateen-mesh/lateen/identity"
)

func replaced(c *identity.Credentials) bool {
	select {
	case <-c.Replaced():
		return true
	default:
		return false
	}
}

func TestHolderSwapsAndTells(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	h := identity.NewHolder(a.bundle("td"))
	empty := h.Current()
	if empty.Certificate != nil || empty.ID != (identity.ID{}) || replaced(empty) {
		t.Fatalf("a new holder holds %+v", empty)
	}
	if err := h.Set(a.issue(workload(t, alice)), a.bundle("td")); err != nil {
		t.Fatal(err)
	}
	first := h.Current()
	if !replaced(empty) || replaced(first) || first.ID.String() != alice || first.Certificate == nil {
		t.Fatalf("after Set the holder holds %+v", first)
	}
	h.SetBundle(a.bundle("td"))
	if h.Current() != first {
		t.Error("an equal bundle counts as a change")
	}
	h.SetBundle(a.bundle("td", b))
	second := h.Current()
	if !replaced(first) || second.Certificate != first.Certificate || second.ID != first.ID || second.Bundle.Version() == first.Bundle.Version() {
		t.Error("SetBundle did not swap the bundle alone")
	}
}

func TestHolderRefuses(t *testing.T) {
	a := newAuthority(t, "a")
	good := a.issue(workload(t, alice))
	keyless := good
	keyless.PrivateKey = nil
	for name, cert := range map[string]tls.Certificate{
		"nothing":   {},
		"no key":    keyless,
		"two names": a.issue(workload(t, alice, "spiffe://td/ns/n/sa/bob")),
		"garbage":   {Certificate: [][]byte{{1}}, PrivateKey: good.PrivateKey},
	} {
		h := identity.NewHolder(a.bundle("td"))
		if err := h.Set(cert, a.bundle("td")); err == nil {
			t.Errorf("%s: taken", name)
		}
		if h.Current().Certificate != nil {
			t.Errorf("%s: held", name)
		}
	}
	if err := identity.NewHolder(nil).Set(good, nil); err == nil {
		t.Error("a certificate was taken without a bundle")
	}
}

// Every change is seen by everybody who follows, the last one in any case.
func TestHolderConcurrently(t *testing.T) {
	a := newAuthority(t, "a")
	h := identity.NewHolder(a.bundle("td"))
	certs := make([]tls.Certificate, 8)
	for i := range certs {
		certs[i] = a.issue(workload(t, alice))
	}
	last := a.issue(workload(t, "spiffe://td/ns/n/sa/last"))
	var followers, writers sync.WaitGroup
	for range 4 {
		followers.Go(func() {
			for {
				c := h.Current()
				if c.ID.ServiceAccount == "last" {
					return
				}
				<-c.Replaced()
			}
		})
	}
	for _, c := range certs {
		writers.Go(func() {
			if err := h.Set(c, a.bundle("td")); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	if err := h.Set(last, a.bundle("td")); err != nil {
		t.Fatal(err)
	}
	followers.Wait()
}
