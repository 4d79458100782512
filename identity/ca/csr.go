package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// csrMaxBytes bounds a request's PEM text; one with an RSA key of 8192 bits
// takes some 3 KiB.
const csrMaxBytes = 16 << 10

// Bounds of RSA keys, in bits. Above the upper one crypto/tls and others refuse
// to shake hands.
const (
	rsaMinBits = 2048
	rsaMaxBits = 8192
)

// request is what counts of a certificate signing request.
type request struct {
	key crypto.PublicKey
	// spki is the key as DER SubjectPublicKeyInfo.
	spki []byte
	// names are the URI names asked for; nothing else asked for counts.
	names []string
}

// parseRequest reads a PEM certificate signing request and checks that its
// sender holds the key, and that every proxy of the mesh can deal with such a
// key.
func parseRequest(text string) (*request, error) {
	if len(text) > csrMaxBytes {
		return nil, fmt.Errorf("the certificate signing request has %d bytes, at most %d are allowed", len(text), csrMaxBytes)
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("the certificate signing request is not PEM")
	}
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("the certificate signing request is a PEM block of type %q, not CERTIFICATE REQUEST", block.Type)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the certificate signing request cannot be read: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate signing request is not signed by its own key: %w", err)
	}
	r := &request{key: csr.PublicKey, spki: csr.RawSubjectPublicKeyInfo}
	for _, u := range csr.URIs {
		r.names = append(r.names, u.String())
	}
	return r, nil
}

// checkKey accepts the keys that every TLS library met in a mesh verifies by
// default. Ed25519 and P-521 are not among them: BoringSSL, hence Envoy, does
// not offer their signature algorithms.
func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("the key is ECDSA on %s; use P-256 or P-384", k.Curve.Params().Name)
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < rsaMinBits || n > rsaMaxBits {
			return fmt.Errorf("the RSA key has %d bits; use %d to %d, or better ECDSA P-256", n, rsaMinBits, rsaMaxBits)
		}
		return nil
	}
	return fmt.Errorf("a key of type %T is not accepted, because not every proxy can verify it; use ECDSA P-256", key)
}
