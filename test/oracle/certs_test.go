package oracle

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"strings"
	"time"
)

// certificates are ordinary ones, not the mesh's: one authority, a server's for *.example, a client's.
type certificates struct {
	pool            *x509.CertPool
	serving, client tls.Certificate
	replacer        *strings.Replacer // of ${SERVER_CERT}, ${SERVER_KEY} and ${CA_CERT}, in base64
}

func newCertificates() (*certificates, error) {
	root, rootKey, err := issue("oracle authority", nil, nil, nil)
	if err != nil {
		return nil, err
	}
	serving, servingKey, err := issue("server", []string{"*.example", "*.wild.example", "echo"}, root, rootKey)
	if err != nil {
		return nil, err
	}
	client, clientKey, err := issue("client", []string{"client.example"}, root, rootKey)
	if err != nil {
		return nil, err
	}
	c := &certificates{pool: x509.NewCertPool()}
	c.pool.AddCert(root)
	c.serving = tls.Certificate{Certificate: [][]byte{serving.Raw}, PrivateKey: servingKey, Leaf: serving}
	c.client = tls.Certificate{Certificate: [][]byte{client.Raw}, PrivateKey: clientKey, Leaf: client}
	der, err := x509.MarshalPKCS8PrivateKey(servingKey)
	if err != nil {
		return nil, err
	}
	text := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	c.replacer = strings.NewReplacer("${SERVER_CERT}", text("CERTIFICATE", serving.Raw), "${SERVER_KEY}", text("PRIVATE KEY", der),
		"${CA_CERT}", text("CERTIFICATE", root.Raw))
	return c, nil
}

// issue makes a certificate; without a parent it is an authority.
func issue(name string, dns []string, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: dns,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func (c *certificates) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.serving}, NextProtos: []string{"h2", "http/1.1"}}
}
