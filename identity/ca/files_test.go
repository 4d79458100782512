package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
)

// open opens the authority kept in dir.
func open(t *testing.T, dir string) *ca.Authority {
	t.Helper()
	a, err := ca.New(ca.Config{TrustDomain: "td", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestRootIsMadeOnceAndKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "state")
	first := open(t, dir)
	for name, want := range map[string]os.FileMode{"": 0o700, "root-key.pem": 0o600, "root-cert.pem": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%q: mode %v, want %v", name, info.Mode(), want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("%d files in the state directory: %v", len(entries), err)
	}
	if second := open(t, dir); first.Bundle().Version() != second.Bundle().Version() {
		t.Error("a restart made a new root")
	}
	root := first.Bundle().Roots("td")[0]
	key, ok := root.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() || !root.IsCA || root.NotAfter.Before(time.Now().Add(3600*24*time.Hour)) {
		t.Errorf("the root is %T, CA %t, until %v", root.PublicKey, root.IsCA, root.NotAfter)
	}
}

// Several processes that start at once must agree on one root.
func TestRootIsMadeOnceByMany(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	versions := make([]identity.Version, 8)
	var all sync.WaitGroup
	for i := range versions {
		all.Go(func() {
			a, err := ca.New(ca.Config{TrustDomain: "td", Dir: dir})
			if err != nil {
				t.Error(err)
				return
			}
			versions[i] = a.Bundle().Version()
		})
	}
	all.Wait()
	for _, v := range versions {
		if v != versions[0] {
			t.Fatal("two roots were made")
		}
	}
}

func TestOwnRootRefusals(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(t *testing.T, dir string) error
		want  string
	}{
		{"key readable by others", func(_ *testing.T, d string) error { return os.Chmod(filepath.Join(d, "root-key.pem"), 0o640) }, "chmod 0600"},
		{"directory open to others", func(_ *testing.T, d string) error { return os.Chmod(d, 0o755) }, "chmod 0700"},
		{"key lost", func(_ *testing.T, d string) error { return os.Remove(filepath.Join(d, "root-key.pem")) }, "restore the key"},
		{"key garbage", func(t *testing.T, d string) error {
			write(t, filepath.Join(d, "root-key.pem"), []byte("x"))
			return nil
		}, "no PEM block"},
		{"certificate of another key", func(t *testing.T, d string) error {
			other := filepath.Join(d, "other")
			open(t, other)
			return os.Rename(filepath.Join(other, "root-cert.pem"), filepath.Join(d, "root-cert.pem"))
		}, "belongs to the key"},
	}
	for _, tt := range tests {
		dir := filepath.Join(t.TempDir(), "state")
		open(t, dir)
		if err := tt.spoil(t, dir); err != nil {
			t.Fatal(err)
		}
		if _, err := ca.New(ca.Config{TrustDomain: "td", Dir: dir}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// A process that died between key and certificate goes on with the key.
func TestRootCertificateIsMadeFromTheKeyThatIsThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	before := open(t, dir).Bundle().Roots("td")[0]
	if err := os.Remove(filepath.Join(dir, "root-cert.pem")); err != nil {
		t.Fatal(err)
	}
	after := open(t, dir).Bundle().Roots("td")[0]
	if !bytes.Equal(before.RawSubjectPublicKeyInfo, after.RawSubjectPublicKeyInfo) {
		t.Error("another key was made")
	}
}

// A second root in root-cert.pem is trusted beside the one that signs, whichever
// comes first in the file.
func TestOwnRootsOverlap(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	before, next := open(t, dir), open(t, filepath.Join(t.TempDir(), "next"))
	write(t, filepath.Join(dir, "root-cert.pem"), append(next.Bundle().PEM("td"), before.Bundle().PEM("td")...))
	during := open(t, dir)
	issued, err := during.Issue(alice, newKey(t).Public(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := before.Bundle().Verify([]*x509.Certificate{issued.Leaf}, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
		t.Errorf("the new root signs too early: %v", err)
	}
	if n := len(during.Bundle().Roots("td")); n != 2 {
		t.Errorf("%d roots in the bundle", n)
	}
	if roots, err := identity.ParseCertificates([]byte(issued.PEM()[1])); err != nil || len(roots) != 2 {
		t.Errorf("%d roots handed out with a certificate: %v", len(roots), err)
	}
}

// plugged writes the files of Istio's secret cacerts: a root, an intermediate
// with the key that signs, and the chain of both.
func plugged(t *testing.T, key crypto.Signer, block *pem.Block) (dir string, root *x509.Certificate) {
	t.Helper()
	dir = t.TempDir()
	rootKey := newKey(t)
	certify := func(name string, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, rootKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	root = certify("root", nil, rootKey.Public())
	middle := certify("middle", root, key.Public())
	write(t, filepath.Join(dir, "ca-key.pem"), pem.EncodeToMemory(block))
	write(t, filepath.Join(dir, "ca-cert.pem"), identity.EncodeCertificates(middle))
	write(t, filepath.Join(dir, "cert-chain.pem"), identity.EncodeCertificates(middle, root))
	write(t, filepath.Join(dir, "root-cert.pem"), identity.EncodeCertificates(root))
	return dir, root
}

func pkcs8(t *testing.T, key crypto.Signer) *pem.Block {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}
}

func TestPluggedAuthority(t *testing.T) {
	curve, prime := newKey(t), rsaKey(t, 2048)
	sec1, err := x509.MarshalECPrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		key   crypto.Signer
		block *pem.Block
	}{
		{curve, pkcs8(t, curve)},
		{curve, &pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}},
		{prime, pkcs8(t, prime)},
		{prime, &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(prime)}},
	} {
		dir, root := plugged(t, k.key, k.block)
		for _, withChain := range []bool{true, false} {
			if !withChain {
				if err := os.Remove(filepath.Join(dir, "cert-chain.pem")); err != nil {
					t.Fatal(err)
				}
			}
			a, err := ca.New(ca.Config{TrustDomain: "td", CACerts: dir})
			if err != nil {
				t.Fatalf("%s, chain %t: %v", k.block.Type, withChain, err)
			}
			issued, err := a.Issue(alice, newKey(t).Public(), 0)
			if err != nil {
				t.Fatal(err)
			}
			text := issued.PEM()
			if len(text) != 3 || text[2] != string(identity.EncodeCertificates(root)) {
				t.Fatalf("a chain of %d, want leaf, intermediate, root", len(text))
			}
			chain := append([]*x509.Certificate{issued.Leaf}, issued.Chain...)
			if id, err := a.Bundle().Verify(chain, x509.ExtKeyUsageServerAuth, time.Now()); err != nil || id != alice {
				t.Errorf("%s: verified as %v, %v", k.block.Type, id, err)
			}
		}
	}
}

func TestPluggedRefusals(t *testing.T) {
	key := newKey(t)
	block := pkcs8(t, key)
	stray, _ := plugged(t, key, block)
	good, _ := plugged(t, key, block)
	a, err := ca.New(ca.Config{TrustDomain: "td", CACerts: good})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := a.Issue(alice, key.Public(), 0)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, file string
		text       []byte // nil: no such file
		want       string
	}{
		{"no key", "ca-key.pem", nil, "no such file"},
		{"no certificate", "ca-cert.pem", nil, "no such file"},
		{"no root", "root-cert.pem", nil, "no such file"},
		{"encrypted key", "ca-key.pem", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: block.Bytes}), "unencrypted"},
		{"another key", "ca-key.pem", pem.EncodeToMemory(pkcs8(t, newKey(t))), "does not belong to the private key"},
		{"another root", "root-cert.pem", read(t, filepath.Join(stray, "root-cert.pem")), "does not lead to a root"},
		{"a leaf signs", "ca-cert.pem", identity.EncodeCertificates(issued.Leaf), "may not sign"},
		{"garbage chain", "cert-chain.pem", []byte("x"), "no PEM certificate"},
		{"too large", "root-cert.pem", bytes.Repeat([]byte("x"), 1<<20+1), "more than"},
	}
	for _, tt := range tests {
		dir, _ := plugged(t, key, block)
		path := filepath.Join(dir, tt.file)
		if tt.text != nil {
			write(t, path, tt.text)
		} else if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := ca.New(ca.Config{TrustDomain: "td", CACerts: dir}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
