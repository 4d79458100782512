package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Why a handshake was refused. Errors of [Bundle.Verify], [Bundle.VerifyServer]
// and of handshakes made with this package's configurations wrap one of these.
var (
	// ErrNoCertificate: the peer showed no certificate.
	ErrNoCertificate = errors.New("no certificate shown")
	// ErrNotTrusted: no root of the bundle vouches for the certificate, or
	// it is not a certificate of the mesh at all.
	ErrNotTrusted = errors.New("certificate not trusted")
	// ErrExpired: the certificate, or one above it, is past its end or
	// before its beginning.
	ErrExpired = errors.New("certificate not valid at this time")
	// ErrNoIdentity: the handshake did not come to the peer's certificate,
	// because this workload has none of its own yet.
	ErrNoIdentity = errors.New("this workload has no certificate yet")
	// ErrWrongID: the peer proved a name, but not one that is accepted.
	ErrWrongID = errors.New("wrong identity")
)

// chainMax is the most certificates a peer may show: a leaf and intermediates.
const chainMax = 8

// cacheMax is the most verdicts one generation of a bundle's cache holds; there
// are two generations, so a bundle remembers at most twice as many peers.
const cacheMax = 512

// Verify checks a chain as a peer showed it, leaf first, at the given time, and
// returns the proven ID. usage is what the peer uses its certificate for:
// [x509.ExtKeyUsageClientAuth] when it called us,
// [x509.ExtKeyUsageServerAuth] when we called it. Only the roots of the leaf's
// own trust domain count. A good verdict is remembered by the leaf's hash for
// as long as every certificate of the chain is valid and the bundle lives.
func (b *Bundle) Verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (ID, error) {
	if len(chain) == 0 {
		return ID{}, ErrNoCertificate
	}
	leaf := chain[0]
	key := cacheKey{leaf: sha256.Sum256(leaf.Raw), usage: usage}
	if id, ok := b.cache.find(key, now); ok {
		return id, nil
	}
	id, err := FromCertificate(leaf)
	if err != nil {
		return ID{}, fmt.Errorf("%w: %w", ErrNotTrusted, err)
	}
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		return ID{}, fmt.Errorf("%w: the certificate of %s is a certificate authority's, not a workload's (X509-SVID section 5.2)", ErrNotTrusted, id)
	}
	v, err := b.verifyChain(chain, id.TrustDomain, x509.VerifyOptions{CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return ID{}, fmt.Errorf("certificate of %s: %w", id, err)
	}
	v.id = id
	b.cache.add(key, v)
	return id, nil
}

// VerifyServer checks the chain of a server that is known by DNS name or IP
// address instead of an ID, as the control plane is: a root of the trust domain
// must vouch for it, for that name.
func (b *Bundle) VerifyServer(chain []*x509.Certificate, trustDomain, name string, now time.Time) error {
	if len(chain) == 0 {
		return ErrNoCertificate
	}
	_, err := b.verifyChain(chain, trustDomain, x509.VerifyOptions{
		CurrentTime: now,
		DNSName:     name,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("certificate of server %q: %w", name, err)
	}
	return nil
}

// verifyChain verifies a chain against the roots of one trust domain and
// returns the time during which the whole of it is valid.
func (b *Bundle) verifyChain(chain []*x509.Certificate, trustDomain string, opts x509.VerifyOptions) (verdict, error) {
	d, ok := b.domains[trustDomain]
	if !ok {
		return verdict{}, fmt.Errorf("%w: trust domain %q has no root here (known: %s)", ErrNotTrusted, trustDomain, strings.Join(b.TrustDomains(), ", "))
	}
	if len(chain) > chainMax {
		return verdict{}, fmt.Errorf("%w: a chain of %d certificates, at most %d are allowed", ErrNotTrusted, len(chain), chainMax)
	}
	opts.Roots = d.pool
	opts.Intermediates = x509.NewCertPool()
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := chain[0].Verify(opts)
	if err != nil {
		if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return verdict{}, fmt.Errorf("%w: %w", ErrExpired, err)
		}
		return verdict{}, fmt.Errorf("%w: %w", ErrNotTrusted, err)
	}
	v := verdict{notBefore: chains[0][0].NotBefore, notAfter: chains[0][0].NotAfter}
	for _, c := range chains[0][1:] {
		if c.NotBefore.After(v.notBefore) {
			v.notBefore = c.NotBefore
		}
		if c.NotAfter.Before(v.notAfter) {
			v.notAfter = c.NotAfter
		}
	}
	return v, nil
}

// verdict is a good answer of Verify and the time during which it holds.
type verdict struct {
	id                  ID
	notBefore, notAfter time.Time
}

type cacheKey struct {
	leaf  [sha256.Size]byte
	usage x509.ExtKeyUsage
}

// verifyCache remembers good verdicts. It has two generations: when the young
// one is full it becomes the old one, and the old one is forgotten.
type verifyCache struct {
	mu    sync.Mutex
	young map[cacheKey]verdict
	old   map[cacheKey]verdict
}

func (c *verifyCache) find(key cacheKey, now time.Time) (ID, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.young[key]
	if !ok {
		if v, ok = c.old[key]; !ok {
			return ID{}, false
		}
		c.put(key, v)
	}
	if now.Before(v.notBefore) || now.After(v.notAfter) {
		return ID{}, false
	}
	return v.id, true
}

func (c *verifyCache) add(key cacheKey, v verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(key, v)
}

// put stores a verdict in the young generation; mu is held.
func (c *verifyCache) put(key cacheKey, v verdict) {
	if len(c.young) >= cacheMax {
		c.old, c.young = c.young, nil
	}
	if c.young == nil {
		c.young = make(map[cacheKey]verdict)
	}
	c.young[key] = v
}
