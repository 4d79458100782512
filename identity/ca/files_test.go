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
	"errors"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
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

// plugged makes what is in Istio's Secret cacerts: a root, an intermediate
// with the key that signs, and the chain of both.
func plugged(t *testing.T, key crypto.Signer, block *pem.Block) (keys ca.Keys, root *x509.Certificate) {
	t.Helper()
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
	return ca.Keys{
		"ca-key.pem": pem.EncodeToMemory(block), "ca-cert.pem": identity.EncodeCertificates(middle),
		"cert-chain.pem": identity.EncodeCertificates(middle, root), "root-cert.pem": identity.EncodeCertificates(root),
	}, root
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
		keys, root := plugged(t, k.key, k.block)
		short, empty := maps.Clone(keys), maps.Clone(keys)
		delete(short, "cert-chain.pem")
		empty["cert-chain.pem"] = nil
		for form, keys := range map[string]ca.Keys{
			"Istio's": keys, "without chain": short, "with an empty one": empty,
			"cert-manager's": {"tls.crt": keys["cert-chain.pem"], "tls.key": keys["ca-key.pem"], "ca.crt": keys["root-cert.pem"]},
		} {
			a, err := ca.New(ca.Config{TrustDomain: "td", Keys: keys})
			if err != nil {
				t.Fatalf("%s, %s: %v", k.block.Type, form, err)
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
	a, err := ca.New(ca.Config{TrustDomain: "td", Keys: good})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := a.Issue(alice, key.Public(), 0)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, file string
		text       []byte // nil: it is not there
		want       string
	}{
		{"no key", "ca-key.pem", nil, "ca-key.pem missing; a plugged-in authority has ca-cert.pem, ca-key.pem and root-cert.pem"},
		{"no certificate", "ca-cert.pem", nil, "ca-cert.pem missing"},
		{"no root", "root-cert.pem", nil, "root-cert.pem missing"},
		{"encrypted key", "ca-key.pem", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: block.Bytes}), "ca-key.pem: a PEM block of type \"ENCRYPTED PRIVATE KEY\" where an unencrypted"},
		{"another key", "ca-key.pem", pem.EncodeToMemory(pkcs8(t, newKey(t))), "in ca-cert.pem, \"CN=middle\""},
		{"another root", "root-cert.pem", stray["root-cert.pem"], "does not lead to a root in root-cert.pem"},
		{"a leaf signs", "ca-cert.pem", identity.EncodeCertificates(issued.Leaf), "may not sign"},
		{"garbage chain", "cert-chain.pem", []byte("x"), "cert-chain.pem: no PEM certificate"},
		{"half of another form", "tls.crt", good["ca-cert.pem"], "tls.key and ca.crt missing"},
		{"too large", "root-cert.pem", bytes.Repeat([]byte("x"), 1<<20+1), "more than"},
	}
	for _, tt := range tests {
		keys := maps.Clone(good)
		if keys[tt.file] = tt.text; tt.text == nil {
			delete(keys, tt.file)
		}
		_, err := ca.New(ca.Config{TrustDomain: "td", Keys: keys})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if changed, err := a.Use(keys, false); changed || err == nil {
			t.Errorf("%s: used by one that had good ones", tt.name)
		}
	}
	if err := verifies(t, a, a); err != nil {
		t.Errorf("after what was refused: %v", err)
	}
}

// verifies issues by one authority what another's workloads are to believe.
func verifies(t *testing.T, issuer, believer *ca.Authority) error {
	t.Helper()
	issued, err := issuer.Issue(alice, newKey(t).Public(), 0)
	if err != nil {
		t.Fatal(err)
	}
	chain := append([]*x509.Certificate{issued.Leaf}, issued.Chain...)
	_, err = believer.Bundle().Verify(chain, x509.ExtKeyUsageServerAuth, time.Now())
	return err
}

// Other keys are used while the authority runs, in an order in which all workloads always believe each other.
func TestUse(t *testing.T) {
	key := newKey(t)
	first, _ := plugged(t, key, pkcs8(t, key))
	second, _ := plugged(t, key, pkcs8(t, key))
	both := slices.Concat(first["root-cert.pem"], second["root-cert.pem"])
	with := func(keys ca.Keys, roots []byte) ca.Keys {
		keys = maps.Clone(keys)
		keys["root-cert.pem"] = roots
		return keys
	}
	a, err := ca.New(ca.Config{TrustDomain: "td", Keys: first})
	if err != nil {
		t.Fatal(err)
	}
	serving, err := a.ServerCertificate([]string{"lateend"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		name string
		keys ca.Keys
		want string // of the error; "same": nothing changes
	}{
		{"the same", first, "same"},
		{"another at once", second, "no root in it vouches for the certificates in use"},
		{"its key at once", with(second, both), "add that root first"},
		{"its root first", with(first, both), ""},
		{"the root forgotten that signs", with(first, second["root-cert.pem"]), "does not lead to a root"},
		{"and then its key", with(second, both), ""},
		{"the same again", with(second, both), "same"},
		{"at last the old root goes", second, ""},
		{"and does not come back at once", first, "no root in it"},
	}
	for _, step := range steps {
		before, err := serving.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		old := a.Bundle()
		changed, err := a.Use(step.keys, false)
		if (step.want == "") != changed || (step.want == "" || step.want == "same") != (err == nil) || err != nil && !strings.Contains(err.Error(), step.want) {
			t.Fatalf("%s: changed %t, %v", step.name, changed, err)
		}
		if err := verifies(t, a, a); err != nil {
			t.Errorf("%s: new certificates: %v", step.name, err)
		}
		issued, err := a.Issue(alice, newKey(t).Public(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := old.Verify(append([]*x509.Certificate{issued.Leaf}, issued.Chain...), x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
			t.Errorf("%s: who knows the roots from before refuses new certificates: %v", step.name, err)
		}
		after, err := serving.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if changed == after.Leaf.Equal(before.Leaf) {
			t.Errorf("%s: keys changed %t, but the serving certificate is renewed %t", step.name, changed, !changed)
		}
	}
}

// TestTrusted: an authority that begins refuses keys whose certificates workloads would not believe, as one does that runs.
func TestTrusted(t *testing.T) {
	key := newKey(t)
	first, _ := plugged(t, key, pkcs8(t, key))
	second, _ := plugged(t, key, pkcs8(t, key))
	for _, tt := range []struct {
		name    string
		trusted []byte
		want    error
	}{
		{"these", first["root-cert.pem"], nil},
		{"both", slices.Concat(second["root-cert.pem"], first["root-cert.pem"]), nil},
		{"others", second["root-cert.pem"], ca.ErrUnsafe},
		{"not known", nil, nil},
	} {
		if _, err := ca.New(ca.Config{TrustDomain: "td", Keys: first, Trusted: tt.trusted}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	a, err := ca.New(ca.Config{TrustDomain: "td", Keys: first})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Use(second, false); !errors.Is(err, ca.ErrUnsafe) {
		t.Errorf("taken over: %v", err)
	}
	if changed, err := a.Use(second, true); !changed || err != nil {
		t.Errorf("not taken over though forced: %v", err)
	}
}
