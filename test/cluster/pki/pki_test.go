package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/netip"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/test/cluster/pki"
)

func TestIssue(t *testing.T) {
	a, err := pki.New("authority")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := a.Issue(pki.Subject{
		Name: "system:node:node1", Group: "system:nodes", Hosts: []string{"node1"},
		Addresses: []netip.Addr{netip.MustParseAddr("172.30.0.11")},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := tls.X509KeyPair(pair.Certificate, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(a.PEM.Certificate) {
		t.Fatal("the authority is no certificate")
	}
	for _, host := range []string{"node1", "172.30.0.11"} {
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			if _, err := got.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
	}
	if s := got.Leaf.Subject.String(); s != "CN=system:node:node1,O=system:nodes" {
		t.Errorf("the subject is %s", s)
	}
	if got.Leaf.IsCA {
		t.Error("it may issue certificates itself")
	}
}

func TestSigningKey(t *testing.T) {
	pair, err := pki.SigningKey()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := pem.Decode(pair.Certificate)
	private, _ := pem.Decode(pair.Key)
	key, err := x509.ParseECPrivateKey(private.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	half, err := x509.ParsePKIXPublicKey(public.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !key.PublicKey.Equal(half) {
		t.Error("the halves are of different keys")
	}
}

func TestKubeconfig(t *testing.T) {
	a, err := pki.New("authority")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := a.Issue(pki.Subject{Name: "admin"})
	if err != nil {
		t.Fatal(err)
	}
	text := string(a.Kubeconfig("c", "https://127.0.0.1:1", pair))
	for _, want := range [][]byte{a.PEM.Certificate, pair.Certificate, pair.Key} {
		if !strings.Contains(text, base64.StdEncoding.EncodeToString(want)) {
			t.Errorf("%s\nlacks\n%s", text, want)
		}
	}
	if strings.Contains(text, base64.StdEncoding.EncodeToString(a.PEM.Key)) {
		t.Error("it gives the authority's key away")
	}
}
