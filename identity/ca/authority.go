// Package ca is the certificate authority of the mesh: it issues short-lived
// X.509 certificates that carry a SPIFFE ID, to callers that have proven that
// ID.
//
// In come certificate signing requests over Istio's
// istio.v1.auth.IstioCertificateService, each with a client certificate of the
// mesh or a one-time join token; out come certificates, the trust bundle, and
// the control plane's own serving certificate. The package must not know what a
// workload is allowed to do, nor where workloads are known from: an
// Authenticator says who calls. It belongs to the control plane: it links gRPC
// and Istio's API, which no proxy may.
//
// All types may be used by any number of goroutines.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/lateen-mesh/lateen/identity"
)

// Lifetimes, as in Istio (pilot/pkg/bootstrap/istio_ca.go), and the back-dating
// that lets a peer's clock be somewhat behind ours.
const (
	ttlDefault = 24 * time.Hour
	ttlMax     = 90 * 24 * time.Hour
	rootTTL    = 10 * 365 * 24 * time.Hour
	skew       = 2 * time.Minute
)

// serialBits is the length of serial numbers; CA/Browser Forum asks for 64
// random bits, RFC 5280 section 4.1.2.2 allows 160.
const serialBits = 128

// Config says where the authority's keys are. Exactly one of Dir and CACerts
// must be set.
type Config struct {
	// TrustDomain is the trust domain of every ID issued; cluster.local if
	// empty.
	TrustDomain string
	// Dir is a directory of mode 0700 in which the authority keeps a root of
	// its own: root-key.pem, mode 0600, and root-cert.pem. What is missing is
	// made at the first start and reused ever after. root-cert.pem may hold
	// further roots, to be trusted beside the one that belongs to the key
	// while one replaces another.
	Dir string
	// CACerts is a directory with a plugged-in authority, in the form of
	// Istio's secret cacerts: ca-cert.pem and ca-key.pem sign,
	// cert-chain.pem (which may be absent) leads from ca-cert.pem towards a
	// root, root-cert.pem holds the roots, more than one while roots rotate.
	CACerts string
	// TTL is the lifetime of a certificate whose requester asks for none; 24
	// hours if zero.
	TTL time.Duration
	// Clock is time.Now if nil.
	Clock func() time.Time
}

// Authority signs certificates of one trust domain.
type Authority struct {
	trustDomain string
	ttl         time.Duration
	clock       func() time.Time
	signer      *signer
	bundle      *identity.Bundle
}

// signer is the certificate and key that sign, and what leads from them to a
// root.
type signer struct {
	cert  *x509.Certificate
	key   crypto.Signer
	chain []*x509.Certificate // from cert up, without the root; empty if cert is a root
	roots []*x509.Certificate
}

// New loads the authority's keys, or makes them: see Config.
func New(c Config) (*Authority, error) {
	if c.TrustDomain == "" {
		c.TrustDomain = "cluster.local"
	}
	if err := identity.ValidateTrustDomain(c.TrustDomain); err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	if c.TTL == 0 {
		c.TTL = ttlDefault
	}
	if c.TTL < 0 || c.TTL > ttlMax {
		return nil, fmt.Errorf("open certificate authority: default lifetime %v is not between 0 and %v", c.TTL, ttlMax)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	a := &Authority{trustDomain: c.TrustDomain, ttl: c.TTL, clock: c.Clock}
	var err error
	switch {
	case (c.Dir == "") == (c.CACerts == ""):
		return nil, fmt.Errorf("open certificate authority: give either a state directory or a directory of plugged-in certificates (got %q and %q)", c.Dir, c.CACerts)
	case c.Dir != "":
		a.signer, err = openOwn(c.Dir, c.TrustDomain, c.Clock())
	default:
		a.signer, err = openPlugged(c.CACerts)
	}
	if err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	if err := a.signer.check(c.Clock()); err != nil {
		return nil, fmt.Errorf("open certificate authority in %q: %w", c.Dir+c.CACerts, err)
	}
	a.bundle, err = identity.NewBundle(c.TrustDomain, a.signer.roots...)
	if err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	return a, nil
}

// TrustDomain returns the trust domain of the IDs issued.
func (a *Authority) TrustDomain() string { return a.trustDomain }

// Bundle returns the roots by which peers verify what the authority issues,
// more than one while roots rotate.
func (a *Authority) Bundle() *identity.Bundle { return a.bundle }

// Issued is a new certificate with what its holder and its peers need.
type Issued struct {
	// Leaf is the certificate.
	Leaf *x509.Certificate
	// Chain leads from Leaf towards a root, without either.
	Chain []*x509.Certificate
	// Roots are the roots to trust.
	Roots []*x509.Certificate
}

// PEM returns the issued certificate as Istio's CreateCertificate answers: the
// leaf first, intermediates one by one, and last the roots, in one element.
func (i Issued) PEM() []string {
	out := []string{string(identity.EncodeCertificates(i.Leaf))}
	for _, c := range i.Chain {
		out = append(out, string(identity.EncodeCertificates(c)))
	}
	return append(out, string(identity.EncodeCertificates(i.Roots...)))
}

// Issue signs a certificate for the ID and key. The caller answers for it that
// whoever holds the key is that workload. A ttl of zero means the default; the
// certificate never outlives the one that signs it.
func (a *Authority) Issue(id identity.ID, key crypto.PublicKey, ttl time.Duration) (Issued, error) {
	if err := id.Validate(); err != nil {
		return Issued{}, fmt.Errorf("issue certificate: %w", err)
	}
	if id.TrustDomain != a.trustDomain {
		return Issued{}, fmt.Errorf("issue certificate for %s: this authority issues for trust domain %q only", id, a.trustDomain)
	}
	if ttl == 0 {
		ttl = a.ttl
	}
	if ttl < 0 || ttl > ttlMax {
		return Issued{}, fmt.Errorf("issue certificate for %s: lifetime %v is not between 0 and %v", id, ttl, ttlMax)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return Issued{}, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	leaf, err := a.sign(&x509.Certificate{
		URIs:        []*url.URL{uri},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, key, ttl)
	if err != nil {
		return Issued{}, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	return Issued{Leaf: leaf, Chain: a.signer.chain, Roots: a.signer.roots}, nil
}

// Certificate issues a certificate for the ID with a new key, for workloads
// that live in the authority's own process. A ttl of zero means the default.
func (a *Authority) Certificate(id identity.ID, ttl time.Duration) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make key for %s: %w", id, err)
	}
	issued, err := a.Issue(id, key.Public(), ttl)
	if err != nil {
		return tls.Certificate{}, err
	}
	return a.tlsCertificate(issued.Leaf, key), nil
}

// signServer signs a certificate for a server of the control plane itself. It
// carries no ID, so it proves nothing to a workload's peers.
func (a *Authority) signServer(dnsNames []string, ips []netip.Addr, key *ecdsa.PrivateKey) (tls.Certificate, error) {
	t := &x509.Certificate{
		DNSNames:    dnsNames,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, ip := range ips {
		t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
	}
	leaf, err := a.sign(t, key.Public(), ttlDefault)
	if err != nil {
		return tls.Certificate{}, err
	}
	return a.tlsCertificate(leaf, key), nil
}

func (a *Authority) tlsCertificate(leaf *x509.Certificate, key crypto.PrivateKey) tls.Certificate {
	c := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, i := range a.signer.chain {
		c.Certificate = append(c.Certificate, i.Raw)
	}
	return c
}

// sign completes the template (serial, time, key usage) and signs it.
func (a *Authority) sign(t *x509.Certificate, key crypto.PublicKey, ttl time.Duration) (*x509.Certificate, error) {
	now := a.clock()
	if !now.Before(a.signer.cert.NotAfter) {
		return nil, fmt.Errorf("the signing certificate (serial %x) ended on %s; replace it", a.signer.cert.SerialNumber, a.signer.cert.NotAfter.Format(time.DateTime))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial
	t.NotBefore = now.Add(-skew)
	t.NotAfter = now.Add(ttl)
	if end := a.signer.cert.NotAfter; t.NotAfter.After(end) {
		t.NotAfter = end
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if _, ok := key.(*rsa.PublicKey); ok {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	t.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, t, a.signer.cert, key, a.signer.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back certificate: %w", err)
	}
	return leaf, nil
}

// newSerial returns a random serial number greater than zero.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	if n.Sign() == 0 {
		n.SetInt64(1)
	}
	return n, nil
}

// check says whether what was loaded can sign what a peer will believe.
func (s *signer) check(now time.Time) error {
	if !s.cert.IsCA || s.cert.KeyUsage != 0 && s.cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("the signing certificate %q (serial %x) may not sign certificates; it must have CA:TRUE and the key usage certSign", s.cert.Subject, s.cert.SerialNumber)
	}
	if !samePublicKey(s.cert.PublicKey, s.key.Public()) {
		return fmt.Errorf("the signing certificate %q (serial %x) does not belong to the private key beside it", s.cert.Subject, s.cert.SerialNumber)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range s.roots {
		roots.AddCert(r)
	}
	for _, c := range s.chain {
		between.AddCert(c)
	}
	if _, err := s.cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("the signing certificate %q (serial %x) does not lead to a root in root-cert.pem: %w", s.cert.Subject, s.cert.SerialNumber, err)
	}
	return nil
}

// samePublicKey compares two public keys of the standard library.
func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// isRoot says whether a certificate is signed by itself.
func isRoot(c *x509.Certificate) bool {
	return slices.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}
