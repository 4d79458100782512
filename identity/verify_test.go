package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity"
)

const alice = "spiffe://td/ns/n/sa/alice"

// shown is the chain that a peer shows.
func shown(t *testing.T, c tls.Certificate) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range c.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	return chain
}

func TestVerify(t *testing.T) {
	root, foreign := newAuthority(t, "root"), newAuthority(t, "foreign")
	middle := root.intermediate(caTemplate("middle"))
	bundle, err := root.bundle("td").With("friend", foreign.cert)
	if err != nil {
		t.Fatal(err)
	}
	template := func(change func(*x509.Certificate)) *x509.Certificate {
		c := workload(t, alice)
		change(c)
		return c
	}
	long := make([]*x509.Certificate, 8)
	for i := range long {
		long[i] = middle.cert
	}
	tests := []struct {
		name string
		cert tls.Certificate
		want error  // nil: verified
		text string // part of the error
	}{
		{name: "by root", cert: root.issue(workload(t, alice))},
		{name: "by intermediate", cert: middle.issue(workload(t, alice), middle.cert)},
		{name: "intermediate not shown", cert: middle.issue(workload(t, alice)), want: identity.ErrNotTrusted, text: "unknown authority"},
		{name: "friend's name by our root", cert: root.issue(workload(t, "spiffe://friend/ns/n/sa/alice")), want: identity.ErrNotTrusted},
		{name: "our name by friend's root", cert: foreign.issue(workload(t, alice)), want: identity.ErrNotTrusted},
		{name: "unknown trust domain", cert: root.issue(workload(t, "spiffe://other/ns/n/sa/alice")), want: identity.ErrNotTrusted, text: `trust domain "other" has no root here (known: friend, td)`},
		{name: "two names", cert: root.issue(workload(t, alice, "spiffe://td/ns/n/sa/bob")), want: identity.ErrNotTrusted, text: "2 URI names"},
		{name: "no name", cert: root.issue(workload(t)), want: identity.ErrNotTrusted, text: "0 URI names"},
		{name: "authority as workload", cert: root.issue(template(func(c *x509.Certificate) { c.IsCA = true })), want: identity.ErrNotTrusted, text: "certificate authority's"},
		{name: "expired", cert: root.issue(template(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		})), want: identity.ErrExpired},
		{name: "not yet valid", cert: root.issue(template(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		})), want: identity.ErrExpired},
		{name: "not for clients", cert: root.issue(template(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		})), want: identity.ErrNotTrusted},
		{name: "long chain", cert: middle.issue(workload(t, alice), long...), want: identity.ErrNotTrusted, text: "at most 8"},
		{name: "nothing", want: identity.ErrNoCertificate},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // the second answer may come from the cache
				id, err := bundle.Verify(shown(t, tt.cert), x509.ExtKeyUsageClientAuth, time.Now())
				if !errors.Is(err, tt.want) || tt.want == nil && id.String() != alice {
					t.Fatalf("got %v, %v; want error %v", id, err, tt.want)
				}
				if err != nil && !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %q lacks %q", err, tt.text)
				}
			}
		})
	}
}

// A remembered verdict must not outlive any certificate of its chain, nor serve
// for another use of the certificate.
func TestVerifyRemembersWithinBounds(t *testing.T) {
	root := newAuthority(t, "root")
	now := time.Now()
	template := caTemplate("middle")
	template.NotBefore, template.NotAfter = now.Add(-time.Minute), now.Add(10*time.Minute)
	middle := root.intermediate(template)
	clientOnly := workload(t, alice)
	clientOnly.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	chain := shown(t, middle.issue(clientOnly, middle.cert))
	bundle := root.bundle("td")

	if _, err := bundle.Verify(chain, x509.ExtKeyUsageClientAuth, now); err != nil {
		t.Fatal(err)
	}
	// Remembered: the leaf alone is enough now.
	if _, err := bundle.Verify(chain[:1], x509.ExtKeyUsageClientAuth, now.Add(9*time.Minute)); err != nil {
		t.Errorf("the verdict was not remembered: %v", err)
	}
	if _, err := bundle.Verify(chain, x509.ExtKeyUsageServerAuth, now); !errors.Is(err, identity.ErrNotTrusted) {
		t.Errorf("a client's certificate serves as a server's: %v", err)
	}
	if _, err := bundle.Verify(chain, x509.ExtKeyUsageClientAuth, now.Add(11*time.Minute)); err == nil {
		t.Error("the verdict outlives the intermediate certificate")
	}
	if _, err := bundle.Verify(chain, x509.ExtKeyUsageClientAuth, now.Add(-time.Hour)); err == nil {
		t.Error("the verdict holds before the certificate does")
	}
	next, err := bundle.With("td", newAuthority(t, "next").cert)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := next.Verify(chain, x509.ExtKeyUsageClientAuth, now); !errors.Is(err, identity.ErrNotTrusted) {
		t.Errorf("the verdict outlives the bundle: %v", err)
	}
}

func TestVerifyDuringRootOverlap(t *testing.T) {
	old, young := newAuthority(t, "old"), newAuthority(t, "young")
	byOld, byYoung := shown(t, old.issue(workload(t, alice))), shown(t, young.issue(workload(t, alice)))
	before := old.bundle("td")
	during, err := before.With("td", old.cert, young.cert)
	if err != nil {
		t.Fatal(err)
	}
	after, err := during.With("td", young.cert)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name       string
		bundle     *identity.Bundle
		old, young bool
	}{{"before", before, true, false}, {"during", during, true, true}, {"after", after, false, true}} {
		for _, c := range []struct {
			chain []*x509.Certificate
			want  bool
		}{{byOld, tt.old}, {byYoung, tt.young}} {
			if _, err := tt.bundle.Verify(c.chain, x509.ExtKeyUsageClientAuth, time.Now()); (err == nil) != c.want {
				t.Errorf("%s: certificate of %q: %v, want trusted %t", tt.name, c.chain[0].Issuer.CommonName, err, c.want)
			}
		}
	}
}

func TestVerifyServer(t *testing.T) {
	root, foreign := newAuthority(t, "root"), newAuthority(t, "foreign")
	bundle, err := root.bundle("td").With("friend", foreign.cert)
	if err != nil {
		t.Fatal(err)
	}
	template := func() *x509.Certificate {
		return &x509.Certificate{DNSNames: []string{"lateend.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	}
	good, other := shown(t, root.issue(template())), shown(t, foreign.issue(template()))
	worker := shown(t, root.issue(workload(t, alice)))
	for _, tt := range []struct {
		chain []*x509.Certificate
		name  string
		want  error
	}{
		{good, "lateend.example", nil},
		{good, "other.example", identity.ErrNotTrusted},
		{other, "lateend.example", identity.ErrNotTrusted}, // another trust domain's root
		{worker, "lateend.example", identity.ErrNotTrusted},
		{nil, "lateend.example", identity.ErrNoCertificate},
	} {
		if err := bundle.VerifyServer(tt.chain, "td", tt.name, time.Now()); !errors.Is(err, tt.want) {
			t.Errorf("server %q: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// However many peers come by, a bundle remembers a bounded number of them.
func TestVerifyCacheIsBounded(t *testing.T) {
	root := newAuthority(t, "root")
	bundle := root.bundle("td")
	first := shown(t, root.issue(workload(t, alice)))
	verify := func(chain []*x509.Certificate) {
		t.Helper()
		if _, err := bundle.Verify(chain, x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	verify(first)
	for i := range 1100 {
		verify(shown(t, root.issue(workload(t, fmt.Sprintf("spiffe://td/ns/n/sa/w%d", i)))))
		if n := identity.CacheLen(bundle); n > 2*512 {
			t.Fatalf("%d verdicts remembered", n)
		}
	}
	verify(first)
}
