package loop

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"runtime"
	"sync"
	"weak"
)

// certificates shares the parsed certificates of peers: each handshake parses its own, of some 3 KB, and the
// connections of a peer, which may be thousands, all bring the same one. An entry goes with its last connection. The zero
// value is ready for use, from any goroutine.
type certificates struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]weak.Pointer[x509.Certificate]
}

// share returns the one parsed form of a certificate.
func (s *certificates) share(c *x509.Certificate) *x509.Certificate {
	key := sha256.Sum256(c.Raw)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[[sha256.Size]byte]weak.Pointer[x509.Certificate]{}
	}
	if one := s.known[key].Value(); one != nil {
		return one
	}
	s.known[key] = weak.Make(c)
	runtime.AddCleanup(c, s.forget, key)
	return c
}

// forget drops an entry whose certificate is gone, unless there is another one by now.
func (s *certificates) forget(key [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[key].Value() == nil {
		delete(s.known, key)
	}
}

// summary is what is kept of a handshake: not what it was verified by, nor what keys could be derived from.
func (s *certificates) summary(h tls.ConnectionState) *tls.ConnectionState {
	kept := &tls.ConnectionState{
		Version: h.Version, HandshakeComplete: h.HandshakeComplete, DidResume: h.DidResume, CipherSuite: h.CipherSuite,
		CurveID: h.CurveID, NegotiatedProtocol: h.NegotiatedProtocol, ServerName: h.ServerName,
	}
	for _, c := range h.PeerCertificates {
		kept.PeerCertificates = append(kept.PeerCertificates, s.share(c))
	}
	return kept
}
