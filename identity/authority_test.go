package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity"
)

// authority is a test's own certificate authority. It signs whatever it is
// given, which the real one in identity/ca does not.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.BasicConstraintsValid = true
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, template := newKey(t), caTemplate(name)
	return &authority{t: t, key: key, cert: sign(t, template, template, &key.PublicKey, key)}
}

// intermediate returns an authority that this one has signed.
func (a *authority) intermediate(template *x509.Certificate) *authority {
	a.t.Helper()
	key := newKey(a.t)
	return &authority{t: a.t, key: key, cert: sign(a.t, template, a.cert, &key.PublicKey, a.key)}
}

// workload returns a template with the names, for issue.
func workload(t *testing.T, uris ...string) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = append(c.URIs, u)
	}
	return c
}

// issue signs a template with a new key; chain is shown behind the leaf.
func (a *authority) issue(template *x509.Certificate, chain ...*x509.Certificate) tls.Certificate {
	a.t.Helper()
	key := newKey(a.t)
	leaf := sign(a.t, template, a.cert, &key.PublicKey, a.key)
	out := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out
}

func (a *authority) bundle(trustDomain string, others ...*authority) *identity.Bundle {
	a.t.Helper()
	roots := []*x509.Certificate{a.cert}
	for _, o := range others {
		roots = append(roots, o.cert)
	}
	b, err := identity.NewBundle(trustDomain, roots...)
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

// holder returns a holder with a certificate for the name and a bundle.
func (a *authority) holder(b *identity.Bundle, uri string) *identity.Holder {
	a.t.Helper()
	h := identity.NewHolder(b)
	if err := h.Set(a.issue(workload(a.t, uri)), b); err != nil {
		a.t.Fatal(err)
	}
	return h
}
