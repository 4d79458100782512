package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Limits of a Bundle. A trust domain has one root, two while roots rotate, a
// few more when authorities are merged; beyond that somebody fed it a system
// root store.
const (
	rootsMax        = 32
	trustDomainsMax = 256
	bundleMaxBytes  = 1 << 20
)

// Version identifies the contents of a Bundle: two bundles with the same trust
// domains and the same roots, in any order, have the same Version in every
// process.
type Version [sha256.Size]byte

// Bundle says which roots may vouch for which trust domain. A trust domain may
// have several roots at once, which is how old and new overlap while roots
// rotate. A Bundle is immutable; it carries a bounded cache of chains that it
// has verified, which dies with it.
type Bundle struct {
	domains map[string]domain
	version Version
	cache   verifyCache
}

// domain is one trust domain's part of a Bundle.
type domain struct {
	roots []*x509.Certificate
	pool  *x509.CertPool
}

// NewBundle makes a bundle in which the roots vouch for one trust domain.
func NewBundle(trustDomain string, roots ...*x509.Certificate) (*Bundle, error) {
	return (&Bundle{}).With(trustDomain, roots...)
}

// ParseBundle makes a bundle for one trust domain from concatenated PEM
// certificates, as in Istio's root-cert.pem.
func ParseBundle(trustDomain string, text []byte) (*Bundle, error) {
	roots, err := ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read roots of trust domain %q: %w", trustDomain, err)
	}
	return NewBundle(trustDomain, roots...)
}

// With returns a bundle in which exactly these roots vouch for the trust
// domain; other trust domains stay as they are. To overlap an old and a new
// root, pass both; to retire the old one, pass the new one alone.
func (b *Bundle) With(trustDomain string, roots ...*x509.Certificate) (*Bundle, error) {
	if err := ValidateTrustDomain(trustDomain); err != nil {
		return nil, fmt.Errorf("make trust bundle: %w", err)
	}
	d, err := newDomain(roots)
	if err != nil {
		return nil, fmt.Errorf("make trust bundle for %q: %w", trustDomain, err)
	}
	domains := maps.Clone(b.domains)
	if domains == nil {
		domains = make(map[string]domain, 1)
	}
	domains[trustDomain] = d
	if len(domains) > trustDomainsMax {
		return nil, fmt.Errorf("make trust bundle: %d trust domains, at most %d are allowed", len(domains), trustDomainsMax)
	}
	return &Bundle{domains: domains, version: versionOf(domains)}, nil
}

// newDomain checks the roots, drops duplicates and sorts them, so that equal
// sets have equal versions.
func newDomain(roots []*x509.Certificate) (domain, error) {
	if len(roots) == 0 {
		return domain{}, errors.New("no root certificate given")
	}
	roots = slices.SortedFunc(slices.Values(roots), func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	roots = slices.CompactFunc(roots, (*x509.Certificate).Equal)
	if len(roots) > rootsMax {
		return domain{}, fmt.Errorf("%d roots, at most %d are allowed", len(roots), rootsMax)
	}
	pool := x509.NewCertPool()
	for _, r := range roots {
		if !r.IsCA {
			return domain{}, fmt.Errorf("the certificate of %q (serial %x) is not a certificate authority", r.Subject, r.SerialNumber)
		}
		pool.AddCert(r)
	}
	return domain{roots: roots, pool: pool}, nil
}

func versionOf(domains map[string]domain) Version {
	h := sha256.New()
	for _, td := range slices.Sorted(maps.Keys(domains)) {
		h.Write(fmt.Appendf(nil, "%s %d\n", td, len(domains[td].roots)))
		for _, r := range domains[td].roots {
			sum := sha256.Sum256(r.Raw)
			h.Write(sum[:])
		}
	}
	return Version(h.Sum(nil))
}

// Version identifies the contents of the bundle.
func (b *Bundle) Version() Version { return b.version }

// TrustDomains lists the trust domains that the bundle has roots for, sorted.
func (b *Bundle) TrustDomains() []string { return slices.Sorted(maps.Keys(b.domains)) }

// Roots returns the roots of a trust domain, none if it is unknown. The order
// is fixed by their contents and says nothing about which one signs.
func (b *Bundle) Roots(trustDomain string) []*x509.Certificate {
	return slices.Clone(b.domains[trustDomain].roots)
}

// PEM returns the roots of a trust domain as concatenated PEM, empty if it is
// unknown. ParseBundle reads it back.
func (b *Bundle) PEM(trustDomain string) []byte {
	return EncodeCertificates(b.domains[trustDomain].roots...)
}

// ParseCertificates reads concatenated PEM certificates: at least one, nothing
// else between them but white space and comments, no other PEM block.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	if len(text) > bundleMaxBytes {
		return nil, fmt.Errorf("%d bytes of PEM, at most %d are allowed", len(text), bundleMaxBytes)
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block of type %q where a CERTIFICATE was expected", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no PEM certificate found")
	}
	return certs, nil
}

// EncodeCertificates writes certificates as concatenated PEM.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
