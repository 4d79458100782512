package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/identity"
)

// Names within Keys. Those of the plugged-in authority are Istio's, and those of type kubernetes.io/tls Kubernetes'.
const (
	rootKeyFile   = "root-key.pem"
	rootCertFile  = "root-cert.pem"
	caKeyFile     = "ca-key.pem"
	caCertFile    = "ca-cert.pem"
	certChainFile = "cert-chain.pem"
	tlsKeyFile    = "tls.key"
	tlsCertFile   = "tls.crt"
	tlsRootFile   = "ca.crt"
)

// fileMaxBytes bounds each of them.
const fileMaxBytes = 1 << 20

// Keys are what an authority signs with, as PEM by the name of the file, or of a Secret's key. They have one of three
// forms:
//
//   - a root of our own: root-key.pem signs, and root-cert.pem has its certificate; beside these, while the root is
//     replaced, what [Keys.Rotate] keeps there;
//   - Istio's Secret cacerts: ca-cert.pem and ca-key.pem sign, cert-chain.pem (which may be absent) leads from
//     ca-cert.pem towards a root, root-cert.pem holds the roots;
//   - a Secret of type kubernetes.io/tls, as cert-manager makes it: tls.crt, with what leads to a root behind it, and
//     tls.key sign, ca.crt holds the roots.
//
// The roots may be more than one, all of which are trusted, while one replaces another.
type Keys map[string][]byte

// NewKeys makes a root, ECDSA P-256 and for ten years, like Istio's own but for the kind of key.
func NewKeys(trustDomain string, now time.Time) (Keys, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	cert, err := selfSign(key, trustDomain, now)
	if err != nil {
		return nil, err
	}
	return Keys{rootKeyFile: text, rootCertFile: cert}, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode root key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// signer reads the keys, whichever form they have, and says whether they can sign what a peer will believe.
func (k Keys) signer(now time.Time) (s *signer, err error) {
	_, isTLS := k[tlsCertFile]
	_, isOwn := k[rootKeyFile]
	switch _, isPlugged := k[caCertFile]; {
	case isTLS:
		s, err = k.plugged(tlsKeyFile, tlsCertFile, tlsRootFile)
	case isOwn && !isPlugged:
		s, err = k.own()
	default:
		s, err = k.plugged(caKeyFile, caCertFile, rootCertFile)
	}
	if err != nil {
		return nil, err
	}
	if err := s.check(now); err != nil {
		return nil, err
	}
	return s, nil
}

// own reads a root of our own.
func (k Keys) own() (*signer, error) {
	key, err := k.key(rootKeyFile)
	if err != nil {
		return nil, err
	}
	roots, err := k.certificates(rootCertFile)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(roots, func(r *x509.Certificate) bool { return samePublicKey(r.PublicKey, key.Public()) })
	if i < 0 {
		return nil, fmt.Errorf("none of the roots in %s belongs to the key in %s; restore the pair from a backup", rootCertFile, rootKeyFile)
	}
	s := &signer{cert: roots[i], key: key, roots: roots, names: [2]string{rootCertFile, rootCertFile}}
	if len(k[oldCertFile]) > 0 {
		old, err := k.certificates(oldCertFile)
		if err != nil {
			return nil, err
		}
		s.replaces = old[0]
	}
	return s, nil
}

// plugged reads what somebody else made.
func (k Keys) plugged(keyName, certName, rootName string) (*signer, error) {
	var missing []string
	for _, name := range []string{certName, keyName, rootName} {
		if len(k[name]) == 0 {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%s missing; a plugged-in authority has %s, %s and %s, and may have %s, or it has %s, %s and %s", strings.Join(missing, " and "),
			caCertFile, caKeyFile, rootCertFile, certChainFile, tlsCertFile, tlsKeyFile, tlsRootFile)
	}
	key, err := k.key(keyName)
	if err != nil {
		return nil, err
	}
	certs, err := k.certificates(certName)
	if err != nil {
		return nil, err
	}
	roots, err := k.certificates(rootName)
	if err != nil {
		return nil, err
	}
	var above []*x509.Certificate
	if len(k[certChainFile]) > 0 && certName == caCertFile {
		if above, err = k.certificates(certChainFile); err != nil {
			return nil, err
		}
	}
	// cert-chain.pem usually repeats ca-cert.pem and often ends with the root. What is shown to peers is each certificate
	// once, without roots.
	var chain []*x509.Certificate
	for _, c := range slices.Concat(certs, above) {
		if !isRoot(c) && !slices.ContainsFunc(chain, c.Equal) {
			chain = append(chain, c)
		}
	}
	return &signer{cert: certs[0], key: key, chain: chain, roots: roots, names: [2]string{certName, rootName}}, nil
}

func (k Keys) certificates(name string) ([]*x509.Certificate, error) {
	text, err := k.text(name)
	if err != nil {
		return nil, err
	}
	certs, err := identity.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read certificates in %s: %w", name, err)
	}
	return certs, nil
}

// text is what is there by a name.
func (k Keys) text(name string) ([]byte, error) {
	text := k[name]
	switch {
	case len(text) == 0:
		return nil, fmt.Errorf("%s is missing", name)
	case len(text) > fileMaxBytes:
		return nil, fmt.Errorf("read %s: more than %d bytes", name, fileMaxBytes)
	}
	return text, nil
}

// key reads a private key in any of the three PEM forms that OpenSSL writes. Errors never quote the contents.
func (k Keys) key(name string) (crypto.Signer, error) {
	text, err := k.text(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	for block != nil && block.Type == "EC PARAMETERS" { // openssl ecparam writes them before the key
		block, text = pem.Decode(text)
	}
	if block == nil {
		return nil, fmt.Errorf("read key in %s: no PEM block found", name)
	}
	var key any
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		err = fmt.Errorf("a PEM block of type %q where an unencrypted PRIVATE KEY was expected", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("read key in %s: %w", name, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read key in %s: a key of type %T cannot sign", name, key)
	}
	return signer, nil
}

// signer is the certificate and key that sign, what leads from them to a root, and whom peers are to believe.
type signer struct {
	cert     *x509.Certificate
	key      crypto.Signer
	chain    []*x509.Certificate // from cert up, without the root; empty if cert is a root
	roots    []*x509.Certificate
	names    [2]string         // of what cert and roots were read from
	bundle   *identity.Bundle  // of roots
	replaces *x509.Certificate // what signed before, in a rotation of ours; nil: none is under way
}

// check says whether what was read can sign what a peer will believe.
func (s *signer) check(now time.Time) error {
	if !s.cert.IsCA || s.cert.KeyUsage != 0 && s.cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("the signing certificate in %s, %q (serial %x), may not sign certificates; it must have CA:TRUE and the key usage certSign",
			s.names[0], s.cert.Subject, s.cert.SerialNumber)
	}
	if !samePublicKey(s.cert.PublicKey, s.key.Public()) {
		return fmt.Errorf("the signing certificate in %s, %q (serial %x), does not belong to the private key beside it; put both there at once",
			s.names[0], s.cert.Subject, s.cert.SerialNumber)
	}
	if err := s.verify(s.roots, now); err != nil {
		return fmt.Errorf("the signing certificate in %s, %q (serial %x), does not lead to a root in %s: %w; add the intermediates, or the root",
			s.names[0], s.cert.Subject, s.cert.SerialNumber, s.names[1], err)
	}
	return nil
}

// verify says whether one of the roots vouches for the signing certificate.
func (s *signer) verify(roots []*x509.Certificate, now time.Time) error {
	trusted, between := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range roots {
		trusted.AddCert(r)
	}
	for _, c := range s.chain {
		between.AddCert(c)
	}
	_, err := s.cert.Verify(x509.VerifyOptions{Roots: trusted, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// ErrUnsafe says that keys may not follow others.
var ErrUnsafe = errors.New("workloads would not believe each other for a while")

// The two ways in which that is so.
var (
	errForgets = fmt.Errorf("%w: no root in it vouches for the certificates in use, so their holders would be refused: keep the present root beside the new one until all of them have been renewed", ErrUnsafe)
	errHurries = fmt.Errorf("%w: the certificate that signs leads to a root that workloads do not trust yet: add that root first, beside the present one and with the present key, and change the key when all certificates have been renewed", ErrUnsafe)
)

// follows says whether these keys may take the place of others while workloads hold certificates: both sides of a
// connection must believe each other, whichever of them has renewed its certificate already.
func (s *signer) follows(before *signer, now time.Time) error {
	if err := before.verify(s.roots, now); err != nil {
		return fmt.Errorf("%s: %w (%s of %q, serial %x)", s.names[1], errForgets, before.names[0], before.cert.Subject, before.cert.SerialNumber)
	}
	if s.replaces != nil && s.replaces.Equal(before.cert) {
		return nil // all others have known the root for long: see Rotate
	}
	return s.believed(before.roots, now)
}

// believed says whether workloads that trust these roots believe certificates of these keys.
func (s *signer) believed(roots []*x509.Certificate, now time.Time) error {
	if err := s.verify(roots, now); err != nil {
		return fmt.Errorf("%s: %w (%q, serial %x)", s.names[0], errHurries, s.cert.Subject, s.cert.SerialNumber)
	}
	return nil
}

// same reports whether keys are these already.
func (s *signer) same(x *signer) bool {
	if !s.cert.Equal(x.cert) || s.bundle.Version() != x.bundle.Version() || len(s.chain) != len(x.chain) {
		return false
	}
	return slices.EqualFunc(s.chain, x.chain, func(a, b *x509.Certificate) bool { return bytes.Equal(a.Raw, b.Raw) })
}
