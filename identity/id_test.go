package identity_test

import (
	"crypto/x509"
	"math/big"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/identity"
)

func TestParseID(t *testing.T) {
	long := strings.Repeat("a", 255)
	tests := []struct {
		in   string
		want identity.ID
		err  string // part of the error; empty: none
	}{
		{in: "spiffe://cluster.local/ns/default/sa/reviews", want: identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "reviews"}},
		{in: "spiffe://a-b_c.9/ns/N.s_-/sa/S.a_-9", want: identity.ID{TrustDomain: "a-b_c.9", Namespace: "N.s_-", ServiceAccount: "S.a_-9"}},
		{in: "spiffe://" + long + "/ns/a/sa/b", want: identity.ID{TrustDomain: long, Namespace: "a", ServiceAccount: "b"}},
		{in: "spiffe://" + long + "a/ns/a/sa/b", err: "at most 255"},
		{in: "spiffe://td/ns/a/sa/" + strings.Repeat("b", 2048-20), want: identity.ID{TrustDomain: "td", Namespace: "a", ServiceAccount: strings.Repeat("b", 2048-20)}},
		{in: "spiffe://td/ns/a/sa/" + strings.Repeat("b", 2048-19), err: "at most 2048"},
		{in: "", err: "does not begin with spiffe://"},
		{in: "https://td/ns/a/sa/b", err: "does not begin with spiffe://"},
		{in: "SPIFFE://td/ns/a/sa/b", err: "does not begin with spiffe://"},
		{in: "spiffe:///ns/a/sa/b", err: "trust domain is empty"},
		{in: "spiffe://Td/ns/a/sa/b", err: "contains 'T'"},
		{in: "spiffe://td:80/ns/a/sa/b", err: "contains ':'"},
		{in: "spiffe://u@td/ns/a/sa/b", err: "contains '@'"},
		{in: "spiffe://td", err: "not of the form"},
		{in: "spiffe://td/", err: "not of the form"},
		{in: "spiffe://td/ns/a/sa/b/", err: "not of the form"},
		{in: "spiffe://td/ns/a/sa/b/c", err: "not of the form"},
		{in: "spiffe://td//ns/a/sa/b", err: "not of the form"},
		{in: "spiffe://td/sa/a/ns/b", err: "not of the form"},
		{in: "spiffe://td/NS/a/sa/b", err: "not of the form"},
		{in: "spiffe://td/ns//sa/b", err: "namespace is empty"},
		{in: "spiffe://td/ns/a/sa/", err: "service account is empty"},
		{in: "spiffe://td/ns/../sa/b", err: "not a name"},
		{in: "spiffe://td/ns/a/sa/.", err: "not a name"},
		{in: "spiffe://td/ns/a/sa/b?x", err: "contains '?'"},
		{in: "spiffe://td/ns/a/sa/b#x", err: "contains '#'"},
		{in: "spiffe://td/ns/a/sa/%62", err: "contains '%'"},
		{in: "spiffe://td/ns/a/sa/b c", err: "contains ' '"},
		{in: "spiffe://td/ns/a/sa/é", err: "only letters"},
		{in: "spiffe://td/ns/a/sa/b\n", err: "only letters"},
	}
	for _, tt := range tests {
		got, err := identity.ParseID(tt.in)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("ParseID(%.60q): error %v, want one with %q", tt.in, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("ParseID(%.60q): %v", tt.in, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("ParseID(%.60q) (-want +got):\n%s", tt.in, diff)
		}
		if got.String() != tt.in {
			t.Errorf("ParseID(%.60q).String() = %.60q", tt.in, got)
		}
	}
}

func TestZeroIDNamesNobody(t *testing.T) {
	if s := (identity.ID{}).String(); s != "" {
		t.Errorf("String of the zero ID = %q, want nothing", s)
	}
	if err := (identity.ID{}).Validate(); err == nil {
		t.Error("the zero ID is valid")
	}
}

func TestFromCertificate(t *testing.T) {
	const id = "spiffe://td/ns/a/sa/b"
	tests := []struct {
		name string
		uris []string
		ok   bool
	}{
		{"one", []string{id}, true},
		{"none", nil, false},
		{"two", []string{id, "spiffe://td/ns/a/sa/c"}, false},
		{"the same twice", []string{id, id}, false},
		{"not SPIFFE", []string{"https://td/ns/a/sa/b"}, false},
		{"escaped", []string{"spiffe://td/ns/a/sa/%62"}, false},
	}
	for _, tt := range tests {
		cert := workload(t, tt.uris...)
		cert.SerialNumber = big.NewInt(1)
		cert.DNSNames = []string{"beside.example"}
		got, err := identity.FromCertificate(cert)
		if (err == nil) != tt.ok || tt.ok && got.String() != id {
			t.Errorf("%s: got %v, %v", tt.name, got, err)
		}
	}
}

func TestOneOf(t *testing.T) {
	a, b := identity.ID{TrustDomain: "td", Namespace: "n", ServiceAccount: "a"}, identity.ID{TrustDomain: "td", Namespace: "n", ServiceAccount: "b"}
	if accept := identity.OneOf(a); !accept(a) || accept(b) {
		t.Error("OneOf(a) does not accept exactly a")
	}
	if identity.OneOf()(a) {
		t.Error("OneOf() accepts somebody")
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"spiffe://cluster.local/ns/default/sa/reviews", "spiffe://td/ns/%61/sa/b", "spiffe://td/ns/a/sa/b#", "spiffe://u@td:1/ns/a/sa/b?c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := identity.ParseID(s)
		if err != nil {
			return
		}
		if id.String() != s {
			t.Fatalf("ParseID(%q).String() = %q", s, id)
		}
		// What we accept, net/url must read the same way, for it is what
		// puts names into certificates.
		u, err := url.Parse(s)
		if err != nil {
			t.Fatalf("net/url refuses %q: %v", s, err)
		}
		back, err := identity.FromCertificate(&x509.Certificate{URIs: []*url.URL{u}, SerialNumber: big.NewInt(1)})
		if err != nil || back != id {
			t.Fatalf("%q comes back from a certificate as %v, %v", s, back, err)
		}
	})
}
