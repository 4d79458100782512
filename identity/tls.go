package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"
)

// ServerConfig says how a workload's server side is reached.
type ServerConfig struct {
	// ALPN lists the protocols offered, most wanted first. Empty: no ALPN.
	ALPN []string
}

// ServerTLS returns the configuration of a mesh server in STRICT mode: TLS 1.2
// or 1.3, our certificate from the holder, and a client that must prove an ID
// of a trust domain in the holder's bundle. Which IDs may do what is decided
// later, by the caller: see [PeerID]. Certificate and bundle are looked up at each
// handshake, so one configuration serves for ever.
//
// Sessions resume, safely: a ticket carries the version of the bundle under
// which it was made and is put aside, in favour of a full handshake, under any
// other; and the certificate it stands for is verified again, against the
// current bundle and clock, at each resumption.
func ServerTLS(h *Holder, c ServerConfig) *tls.Config {
	cfg := BaseTLS(c.ALPN)
	// A certificate is required all the same: Verify below refuses a client
	// that shows none, with an error that callers can tell from others.
	cfg.ClientAuth = tls.RequestClientCert
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return h.certificate() }
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if _, err := h.Current().Bundle.Verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
			return fmt.Errorf("verify client: %w", err)
		}
		return nil
	}
	bindTickets(cfg, h)
	cfg.Time = resumptionTime
	return cfg
}

// ClientConfig says which server a workload's client side expects.
type ClientConfig struct {
	// ServerName is sent as SNI, such as outbound_.80_._.reviews.default.svc.cluster.local.
	// It selects a filter chain at the other end and proves nothing.
	ServerName string
	// ALPN lists the protocols offered, most wanted first. Empty: no ALPN.
	ALPN []string
	// Accept says whether the server may have this ID. It is asked at each
	// handshake, resumed ones too, from any goroutine. Nil accepts nobody.
	// See [OneOf].
	Accept func(ID) bool
}

// ClientTLS returns the configuration of a mesh client: TLS 1.2 or 1.3, our
// certificate from the holder, and a server that must prove an accepted ID.
// Certificate and bundle are looked up at each handshake, so one configuration
// serves for ever. Sessions resume only while the holder's credentials stay the
// same, and the server's ID is verified and accepted anew each time.
func ClientTLS(h *Holder, c ClientConfig) *tls.Config {
	cfg := BaseTLS(c.ALPN)
	cfg.ServerName = c.ServerName
	cfg.InsecureSkipVerify = true // Host names do not count in a mesh: VerifyConnection below verifies the ID.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return h.certificate() }
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := h.Current().Bundle.Verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, time.Now())
		if err != nil {
			return fmt.Errorf("verify server %q: %w", c.ServerName, err)
		}
		if c.Accept == nil || !c.Accept(id) {
			return fmt.Errorf("verify server %q: %w: it is %s, which is not among the identities expected there", c.ServerName, ErrWrongID, id)
		}
		return nil
	}
	cfg.ClientSessionCache = &sessions{holder: h}
	cfg.Time = resumptionTime
	return cfg
}

// ControlConfig says which control plane a proxy talks to.
type ControlConfig struct {
	// ServerName is the DNS name or IP address that the control plane's
	// certificate must carry, and the SNI.
	ServerName string
	// TrustDomain is the trust domain whose roots may vouch for it.
	TrustDomain string
	// ALPN lists the protocols offered, most wanted first. Empty: no ALPN.
	ALPN []string
}

// ControlTLS returns the configuration of a client of the control plane, which
// is known by its DNS name and not by an ID. Our certificate is shown when there
// is one; before the first has been issued there is none. Sessions are not
// resumed: these connections are few and live long.
func ControlTLS(h *Holder, c ControlConfig) *tls.Config {
	cfg := BaseTLS(c.ALPN)
	cfg.ServerName = c.ServerName
	cfg.InsecureSkipVerify = true // The roots are looked up at each handshake, by VerifyConnection below.
	cfg.SessionTicketsDisabled = true
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if cert := h.Current().Certificate; cert != nil {
			return cert, nil
		}
		return &tls.Certificate{}, nil
	}
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		return h.Current().Bundle.VerifyServer(cs.PeerCertificates, c.TrustDomain, c.ServerName, time.Now())
	}
	return cfg
}

// PeerID returns the ID that the other end of a finished mesh handshake has
// proven.
func PeerID(cs tls.ConnectionState) (ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return ID{}, ErrNoCertificate
	}
	return FromCertificate(cs.PeerCertificates[0])
}

// certificate returns our certificate for a mesh handshake, or says that there
// is none.
func (h *Holder) certificate() (*tls.Certificate, error) {
	if cert := h.Current().Certificate; cert != nil {
		return cert, nil
	}
	return nil, fmt.Errorf("%w: the control plane has not issued one; see the log of the identity agent", ErrNoIdentity)
}

// BaseTLS is what all TLS configurations of the mesh share: the protocol versions of Istio's
// meshMTLS, its cipher suites for TLS 1.2 that give forward secrecy, and the
// post-quantum hybrid key exchange ahead of the classical ones (crypto/tls
// itself prefers it, whatever the order here).
func BaseTLS(alpn []string) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS12,
		MaxVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		},
		NextProtos: alpn,
	}
}
