package identity_test

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/identity"
)

func TestBundleVersionFollowsContents(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	ab, ba := a.bundle("td", b), b.bundle("td", a, b)
	if ab.Version() != ba.Version() {
		t.Error("order or repetition of roots changes the version")
	}
	seen := map[identity.Version]string{}
	withOther, err := ab.With("other", a.cert)
	if err != nil {
		t.Fatal(err)
	}
	for name, bundle := range map[string]*identity.Bundle{
		"a+b": ab, "a": a.bundle("td"), "b": b.bundle("td"), "a elsewhere": a.bundle("other"), "two domains": withOther, "empty": {},
	} {
		if twin, ok := seen[bundle.Version()]; ok {
			t.Errorf("%q and %q have one version", name, twin)
		}
		seen[bundle.Version()] = name
	}
}

func TestBundlePEM(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	want := a.bundle("td", b)
	got, err := identity.ParseBundle("td", want.PEM("td"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Version() != want.Version() || len(got.Roots("td")) != 2 {
		t.Errorf("PEM does not read back: %d roots", len(got.Roots("td")))
	}
	if len(want.PEM("other")) != 0 || want.Roots("other") != nil {
		t.Error("a bundle has roots for an unknown trust domain")
	}
}

func TestBundleIsImmutable(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	first := a.bundle("td")
	version := first.Version()
	second, err := first.With("td", b.cert)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.With("other", b.cert); err != nil {
		t.Fatal(err)
	}
	first.Roots("td")[0] = b.cert
	if first.Version() != version || !first.Roots("td")[0].Equal(a.cert) {
		t.Error("With or Roots changed the bundle")
	}
	if !second.Roots("td")[0].Equal(b.cert) || len(second.Roots("td")) != 1 {
		t.Error("With did not replace the roots")
	}
	if diff := cmp.Diff([]string{"td"}, first.TrustDomains()); diff != "" {
		t.Error(diff)
	}
}

func TestBundleRefuses(t *testing.T) {
	a := newAuthority(t, "a")
	leaf := a.issue(workload(t, "spiffe://td/ns/a/sa/b")).Leaf
	rootPEM := string(a.bundle("td").PEM("td"))
	tests := []struct{ name, td, pem, want string }{
		{"no certificate", "td", "hello", "no PEM certificate"},
		{"a key", "td", rootPEM + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "PRIVATE KEY"},
		{"a leaf", "td", string(identity.EncodeCertificates(leaf)), "not a certificate authority"},
		{"garbage in PEM", "td", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "parse certificate 1"},
		{"trust domain", "T D", rootPEM, "contains 'T'"},
		{"size", "td", strings.Repeat(" ", 1<<20+1), "at most"},
	}
	for _, tt := range tests {
		_, err := identity.ParseBundle(tt.td, []byte(tt.pem))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	if _, err := identity.NewBundle("td"); err == nil {
		t.Error("a bundle without roots was made")
	}
}

func TestBundleLimits(t *testing.T) {
	roots := make([]*x509.Certificate, 33)
	for i := range roots {
		roots[i] = newAuthority(t, "root").cert
	}
	full, err := identity.NewBundle("td", append(roots[:32:32], roots[:32]...)...)
	if err != nil {
		t.Fatalf("32 roots, each twice: %v", err)
	}
	if _, err := identity.NewBundle("td", roots...); err == nil {
		t.Error("33 roots were taken")
	}
	for i := range 255 {
		if full, err = full.With(fmt.Sprintf("td%d", i), roots[0]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := full.With("another", roots[0]); err == nil {
		t.Error("257 trust domains were taken")
	}
	if _, err := full.With("td", roots[0]); err != nil {
		t.Errorf("a full bundle cannot be changed: %v", err)
	}
}
