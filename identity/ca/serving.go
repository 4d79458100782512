package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/lateen-mesh/lateen/identity"
)

// ServerCertificate is a certificate for the control plane's own servers, known
// by DNS name or address. It renews itself, with a new key, at the first
// handshake past half of its life, or after the authority signs with other keys.
type ServerCertificate struct {
	authority *Authority
	dnsNames  []string
	ips       []netip.Addr

	mu      sync.Mutex
	current *tls.Certificate
	by      *signer // of current
	renewAt time.Time
}

// ServerCertificate issues a serving certificate for the names and addresses.
func (a *Authority) ServerCertificate(dnsNames []string, ips []netip.Addr) (*ServerCertificate, error) {
	if len(dnsNames)+len(ips) == 0 {
		return nil, errors.New("issue serving certificate: neither a DNS name nor an address given")
	}
	s := &ServerCertificate{authority: a, dnsNames: dnsNames, ips: ips}
	if _, err := s.GetCertificate(nil); err != nil {
		return nil, err
	}
	return s, nil
}

// GetCertificate is for [tls.Config.GetCertificate]; the hello is not looked
// at. While renewal does not succeed, it returns the old certificate as long as
// that is valid.
func (s *ServerCertificate) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.authority.clock()
	by := s.authority.signer.Load()
	if s.current != nil && now.Before(s.renewAt) && s.by == by {
		return s.current, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make serving key: %w", err)
	}
	cert, err := s.authority.signServer(by, s.dnsNames, s.ips, key)
	if err != nil {
		if s.current != nil && now.Before(s.current.Leaf.NotAfter) {
			return s.current, nil
		}
		return nil, fmt.Errorf("issue serving certificate for %q: %w", s.dnsNames, err)
	}
	s.current, s.by = &cert, by
	s.renewAt = now.Add(cert.Leaf.NotAfter.Sub(now) / 2)
	return s.current, nil
}

// TLS returns a configuration for the control plane's gRPC server. A client may
// show a certificate or not; which one it is, and whether that is enough, is
// decided for each call by [Authenticators], so that a workload whose
// certificate has expired is told so, and can come back with a token.
func (s *ServerCertificate) TLS() *tls.Config {
	cfg := identity.BaseTLS([]string{"h2"})
	cfg.GetCertificate = s.GetCertificate
	cfg.ClientAuth = tls.RequestClientCert
	cfg.SessionTicketsDisabled = true
	return cfg
}
