// Package pki makes the certificates of a test cluster.
//
// In come names, out come PEM documents and kubeconfigs. The package must not know which component is called what, nor
// where files are. An Authority may be used concurrently.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"time"
)

// validity is that of every certificate: a test cluster is a matter of minutes or days. It starts an hour ago, because the
// machine's clock may be set while the cluster is up.
const validity = 365 * 24 * time.Hour

// Authority issues certificates.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	// PEM is the authority as a document, its key too.
	PEM Pair
}

// Pair is a certificate and its key, or only a key and its public half, in PEM.
type Pair struct{ Certificate, Key []byte }

// Subject is whom a certificate is for.
type Subject struct {
	// Name and Group are the user and the group that Kubernetes takes the holder for.
	Name, Group string
	// Hosts and Addresses are where the holder serves.
	Hosts     []string
	Addresses []netip.Addr
}

// New makes an authority.
func New(name string) (*Authority, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	a := &Authority{certificate: template}
	var err error
	a.PEM, a.key, err = a.sign(template)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(a.PEM.Certificate)
	if a.certificate, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("read authority %q: %w", name, err)
	}
	return a, nil
}

// Issue makes a certificate by which its holder may be a client and a server.
func (a *Authority) Issue(s Subject) (Pair, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: s.Name}, DNSNames: s.Hosts,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if s.Group != "" {
		template.Subject.Organization = []string{s.Group}
	}
	for _, address := range s.Addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(address.AsSlice()))
	}
	pair, _, err := a.sign(template)
	return pair, err
}

// sign completes a template with a new key. An authority that has no key yet signs itself.
func (a *Authority) sign(template *x509.Certificate) (Pair, *ecdsa.PrivateKey, error) {
	name := template.Subject.CommonName
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, nil, fmt.Errorf("make key of %q: %w", name, err)
	}
	signer := a.key
	if signer == nil {
		signer = key
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return Pair{}, nil, fmt.Errorf("number certificate of %q: %w", name, err)
	}
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(validity)
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), signer)
	if err != nil {
		return Pair{}, nil, fmt.Errorf("sign certificate of %q: %w", name, err)
	}
	private, err := encodeKey(key)
	if err != nil {
		return Pair{}, nil, err
	}
	return Pair{Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: private}, key, nil
}

// SigningKey makes a key without a certificate; the pair's Certificate is the public key.
func SigningKey() (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make signing key: %w", err)
	}
	private, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return Pair{}, fmt.Errorf("encode public key: %w", err)
	}
	return Pair{Certificate: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), Key: private}, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// Kubeconfig is a document that needs no other file.
func (a *Authority) Kubeconfig(cluster, server string, user Pair) []byte {
	text := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster: {server: %[2]q, certificate-authority-data: %[3]s}
users:
- name: %[1]s
  user: {client-certificate-data: %[4]s, client-key-data: %[5]s}
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[1]s}
current-context: %[1]s
`, cluster, server, text(a.PEM.Certificate), text(user.Certificate), text(user.Key))
}
