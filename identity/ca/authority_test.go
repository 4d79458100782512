package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
)

var alice = identity.ID{TrustDomain: "td", Namespace: "n", ServiceAccount: "alice"}

// clock is a clock that tests turn.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now().Truncate(time.Second)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newAuthority(t *testing.T, c *clock) *ca.Authority {
	t.Helper()
	a, err := ca.New(ca.Config{TrustDomain: "td", Dir: filepath.Join(t.TempDir(), "state"), Clock: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// keyOf makes a key on a curve.
func keyOf(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	return keyOf(t, elliptic.P256())
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestIssue(t *testing.T) {
	c := newClock()
	a := newAuthority(t, c)
	root := a.Bundle().Roots("td")[0]
	tests := []struct {
		key   crypto.PublicKey
		ttl   time.Duration
		want  time.Duration
		usage x509.KeyUsage
	}{
		{newKey(t).Public(), 0, 24 * time.Hour, x509.KeyUsageDigitalSignature},
		{newKey(t).Public(), time.Hour, time.Hour, x509.KeyUsageDigitalSignature},
		{rsaKey(t, 2048).Public(), 90 * 24 * time.Hour, 90 * 24 * time.Hour, x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment},
	}
	serials := map[string]bool{}
	for _, tt := range tests {
		issued, err := a.Issue(alice, tt.key, tt.ttl)
		if err != nil {
			t.Fatal(err)
		}
		leaf := issued.Leaf
		if id, err := a.Bundle().Verify([]*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth, c.Now()); err != nil || id != alice {
			t.Errorf("verified as %v, %v", id, err)
		}
		if got := leaf.NotAfter.Sub(c.Now()); got != tt.want {
			t.Errorf("lifetime %v, want %v", got, tt.want)
		}
		if back := c.Now().Sub(leaf.NotBefore); back != 2*time.Minute {
			t.Errorf("back-dated by %v", back)
		}
		if leaf.KeyUsage != tt.usage || leaf.IsCA || !leaf.BasicConstraintsValid {
			t.Errorf("key usage %b, CA %t", leaf.KeyUsage, leaf.IsCA)
		}
		if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, leaf.ExtKeyUsage); diff != "" {
			t.Error(diff)
		}
		if leaf.Subject.String() != "" || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
			t.Errorf("other names: %v, %v", leaf.Subject, leaf.DNSNames)
		}
		if s := leaf.SerialNumber; s.Sign() <= 0 || s.BitLen() > 128 || s.BitLen() < 64 || serials[s.String()] {
			t.Errorf("serial %x", s)
		}
		serials[leaf.SerialNumber.String()] = true
		want := []string{string(identity.EncodeCertificates(leaf)), string(identity.EncodeCertificates(root))}
		if diff := cmp.Diff(want, issued.PEM()); diff != "" {
			t.Errorf("the chain is not leaf, root:\n%s", diff)
		}
	}
}

func TestIssueRefusals(t *testing.T) {
	a := newAuthority(t, newClock())
	foreign := alice
	foreign.TrustDomain = "other"
	for _, tt := range []struct {
		id  identity.ID
		ttl time.Duration
	}{{foreign, 0}, {identity.ID{}, 0}, {alice, -1}, {alice, 90*24*time.Hour + 1}} {
		if _, err := a.Issue(tt.id, newKey(t).Public(), tt.ttl); err == nil {
			t.Errorf("issued for %v, %v", tt.id, tt.ttl)
		}
	}
}

func TestIssueEndsWithTheRoot(t *testing.T) {
	c := newClock()
	a := newAuthority(t, c)
	end := a.Bundle().Roots("td")[0].NotAfter
	c.turn(end.Sub(c.Now()) - time.Hour)
	issued, err := a.Issue(alice, newKey(t).Public(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if issued.Leaf.NotAfter.After(end) {
		t.Errorf("issued until %v, the root ends %v", issued.Leaf.NotAfter, end)
	}
	c.turn(2 * time.Hour)
	if _, err := a.Issue(alice, newKey(t).Public(), 0); err == nil || !strings.Contains(err.Error(), "replace it") {
		t.Errorf("an expired root signs: %v", err)
	}
}

func TestCertificateIsUsable(t *testing.T) {
	a := newAuthority(t, newClock())
	cert, err := a.Certificate(alice, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.NewHolder(nil).Set(cert, a.Bundle()); err != nil {
		t.Error(err)
	}
}

func TestServerCertificateRenewsItself(t *testing.T) {
	c := newClock()
	a := newAuthority(t, c)
	if _, err := a.ServerCertificate(nil, nil); err == nil {
		t.Error("a certificate for nothing was issued")
	}
	s, err := a.ServerCertificate([]string{"lateend.example"}, []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")})
	if err != nil {
		t.Fatal(err)
	}
	get := func() *x509.Certificate {
		t.Helper()
		cert, err := s.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"lateend.example", "127.0.0.1", "::1"} {
			if err := a.Bundle().VerifyServer([]*x509.Certificate{cert.Leaf}, "td", name, c.Now()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		return cert.Leaf
	}
	first := get()
	if _, err := a.Bundle().Verify([]*x509.Certificate{first}, x509.ExtKeyUsageClientAuth, c.Now()); err == nil {
		t.Error("the serving certificate passes for a workload's")
	}
	c.turn(11 * time.Hour)
	if !get().Equal(first) {
		t.Error("renewed before half of its life")
	}
	c.turn(2 * time.Hour)
	if second := get(); bytes.Equal(second.RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
		t.Error("not renewed, or with the old key, after half of its life")
	}
	c.turn(a.Bundle().Roots("td")[0].NotAfter.Sub(c.Now()) + time.Hour)
	if _, err := s.GetCertificate(nil); err == nil {
		t.Error("an expired certificate is served")
	}
}

func TestKeysOfRequests(t *testing.T) {
	a := newAuthority(t, newClock())
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, key := range map[string]crypto.Signer{"ed25519": edwards, "P-521": keyOf(t, elliptic.P521()), "1024 bits": rsaKey(t, 1024)} {
		_, err := create(t, a, fixed{alice}, csr(t, key))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "InvalidArgument") {
			t.Errorf("key %s: %v", want, err)
		}
	}
	for name, key := range map[string]crypto.Signer{"P-256": newKey(t), "P-384": keyOf(t, elliptic.P384()), "RSA": rsaKey(t, 2048)} {
		if _, err := create(t, a, fixed{alice}, csr(t, key)); err != nil {
			t.Errorf("key %s: %v", name, err)
		}
	}
}

func TestNewRefusals(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := ca.New(ca.Config{TrustDomain: "td", Dir: dir}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []ca.Config{{}, {Dir: "a", Keys: ca.Keys{}}, {TrustDomain: "T D", Dir: dir}, {Dir: dir, TTL: -1}, {Dir: dir, TTL: 91 * 24 * time.Hour}} {
		if _, err := ca.New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	later := func() time.Time { return time.Now().Add(11 * 365 * 24 * time.Hour) }
	if _, err := ca.New(ca.Config{TrustDomain: "td", Dir: dir, Clock: later}); err == nil {
		t.Error("an expired root was taken")
	}
}
