package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Credentials are what a Holder held at one moment. They are immutable.
type Credentials struct {
	// Certificate proves our own ID: chain without root, private key, and
	// parsed leaf. It is nil until one has been obtained.
	Certificate *tls.Certificate
	// ID is the name in Certificate, zero when there is none.
	ID ID
	// Bundle says whom we believe. It is never nil, but may be empty.
	Bundle *Bundle

	replaced chan struct{}
}

// Replaced is closed when the Holder has newer credentials. To follow every
// change: use Current, wait for its Replaced, and begin again.
func (c *Credentials) Replaced() <-chan struct{} { return c.replaced }

// Holder holds the current certificate and bundle of one workload, and swaps
// them atomically. TLS configurations made from it follow it by themselves.
type Holder struct {
	current atomic.Pointer[Credentials]
	// mu orders the writers.
	mu sync.Mutex
}

// NewHolder makes a holder without a certificate that believes the bundle; nil
// believes nobody.
func NewHolder(b *Bundle) *Holder {
	if b == nil {
		b = &Bundle{}
	}
	h := &Holder{}
	h.current.Store(&Credentials{Bundle: b, replaced: make(chan struct{})})
	return h
}

// Current returns what is held now. It never blocks and never returns nil.
func (h *Holder) Current() *Credentials { return h.current.Load() }

// Set swaps certificate and bundle together. The certificate must carry its
// private key and exactly one ID; whether the bundle vouches for it is for the
// caller to check.
func (h *Holder) Set(cert tls.Certificate, b *Bundle) error {
	if b == nil {
		return errors.New("hold certificate: no bundle given")
	}
	if len(cert.Certificate) == 0 || cert.PrivateKey == nil {
		return errors.New("hold certificate: certificate or private key missing")
	}
	if cert.Leaf == nil {
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			return fmt.Errorf("hold certificate: parse leaf: %w", err)
		}
		cert.Leaf = leaf
	}
	id, err := FromCertificate(cert.Leaf)
	if err != nil {
		return fmt.Errorf("hold certificate: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.swap(&Credentials{Certificate: &cert, ID: id, Bundle: b})
	return nil
}

// SetBundle swaps the bundle and keeps the certificate. A bundle with the same
// contents changes nothing, and nobody is told.
func (h *Holder) SetBundle(b *Bundle) {
	if b == nil {
		b = &Bundle{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.current.Load()
	if now.Bundle.Version() == b.Version() {
		return
	}
	h.swap(&Credentials{Certificate: now.Certificate, ID: now.ID, Bundle: b})
}

// swap publishes new credentials and tells those who wait; mu is held.
func (h *Holder) swap(next *Credentials) {
	next.replaced = make(chan struct{})
	close(h.current.Swap(next).replaced)
}
