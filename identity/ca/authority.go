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
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"slices"
	"sync/atomic"
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

// Config says where the authority's keys are. Exactly one of Dir and Keys
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
	// Keys are an authority's that somebody else keeps.
	Keys Keys
	// Trusted, unless empty, are the roots that workloads trust already, as PEM: Keys of whose certificates these do not
	// vouch are refused with ErrUnsafe.
	Trusted []byte
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
	signer      atomic.Pointer[signer]
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
	keys, where := c.Keys, ""
	switch {
	case (c.Dir == "") == (c.Keys == nil):
		return nil, errors.New("open certificate authority: give either a state directory or keys")
	case c.Dir != "":
		var err error
		if keys, err = openOwn(c.Dir, c.TrustDomain, c.Clock()); err != nil {
			return nil, fmt.Errorf("open certificate authority: %w", err)
		}
		where = fmt.Sprintf(" in %q", c.Dir)
	}
	s, err := a.read(keys)
	if err != nil {
		return nil, fmt.Errorf("open certificate authority%s: %w", where, err)
	}
	if len(c.Trusted) > 0 {
		roots, err := identity.ParseCertificates(c.Trusted)
		if err == nil {
			err = s.believed(roots, a.clock())
		}
		if err != nil {
			return nil, fmt.Errorf("open certificate authority: %w", err)
		}
	}
	a.signer.Store(s)
	return a, nil
}

// read reads keys.
func (a *Authority) read(keys Keys) (*signer, error) {
	s, err := keys.signer(a.clock())
	if err != nil {
		return nil, err
	}
	if s.bundle, err = identity.NewBundle(a.trustDomain, s.roots...); err != nil {
		return nil, err
	}
	return s, nil
}

// Use has the authority sign with other keys from now on, and reports whether
// they are others. Keys that cannot be used are refused, and so are those with
// which workloads would not believe each other while some have certificates
// from before and some from after (ErrUnsafe), unless they are forced: the
// present ones serve on then. One caller at a time.
func (a *Authority) Use(keys Keys, forced bool) (changed bool, err error) {
	next, err := a.read(keys)
	if err != nil {
		return false, err
	}
	before := a.signer.Load()
	if next.same(before) {
		return false, nil
	}
	if err := next.follows(before, a.clock()); err != nil && !forced {
		return false, err
	}
	a.signer.Store(next)
	return true, nil
}

// TrustDomain returns the trust domain of the IDs issued.
func (a *Authority) TrustDomain() string { return a.trustDomain }

// Bundle returns the roots by which peers verify what the authority issues,
// more than one while roots rotate.
func (a *Authority) Bundle() *identity.Bundle { return a.signer.Load().bundle }

// Expires returns when the certificate that signs ends.
func (a *Authority) Expires() time.Time { return a.signer.Load().cert.NotAfter }

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
	by := a.signer.Load()
	leaf, err := a.sign(by, &x509.Certificate{
		URIs:        []*url.URL{uri},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, key, ttl)
	if err != nil {
		return Issued{}, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	return Issued{Leaf: leaf, Chain: by.chain, Roots: by.roots}, nil
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
	return tlsCertificate(issued.Leaf, issued.Chain, key), nil
}

// signServer signs a certificate for a server of the control plane itself. It
// carries no ID, so it proves nothing to a workload's peers.
func (a *Authority) signServer(by *signer, dnsNames []string, ips []netip.Addr, key *ecdsa.PrivateKey) (tls.Certificate, error) {
	t := &x509.Certificate{
		DNSNames:    dnsNames,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, ip := range ips {
		t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
	}
	leaf, err := a.sign(by, t, key.Public(), ttlDefault)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tlsCertificate(leaf, by.chain, key), nil
}

func tlsCertificate(leaf *x509.Certificate, chain []*x509.Certificate, key crypto.PrivateKey) tls.Certificate {
	c := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, i := range chain {
		c.Certificate = append(c.Certificate, i.Raw)
	}
	return c
}

// sign completes the template (serial, time, key usage) and signs it.
func (a *Authority) sign(by *signer, t *x509.Certificate, key crypto.PublicKey, ttl time.Duration) (*x509.Certificate, error) {
	now := a.clock()
	if !now.Before(by.cert.NotAfter) {
		return nil, fmt.Errorf("the signing certificate (serial %x) ended on %s; replace it", by.cert.SerialNumber, by.cert.NotAfter.Format(time.DateTime))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial
	t.NotBefore = now.Add(-skew)
	t.NotAfter = now.Add(ttl)
	if end := by.cert.NotAfter; t.NotAfter.After(end) {
		t.NotAfter = end
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if _, ok := key.(*rsa.PublicKey); ok {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	t.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, key, by.key)
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

// samePublicKey compares two public keys of the standard library.
func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// isRoot says whether a certificate is signed by itself.
func isRoot(c *x509.Certificate) bool {
	return slices.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}
