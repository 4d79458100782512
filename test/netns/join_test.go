package netns

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"
)

// authority is a lateend without anything else.
type authority struct {
	m       *rig
	address string
}

func startAuthority(t *testing.T) *authority {
	t.Helper()
	if testing.Short() {
		t.Skip("short: processes take their time")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{m: &rig{t: t, run: t.TempDir()}, address: l.Addr().String()}
	_ = l.Close()
	cmd := exec.Command(filepath.Join(bin, "lateend"), "--dir", t.TempDir(), "--state", t.TempDir(), "--listen", a.address, "--api", filepath.Join(a.m.run, "api.sock"))
	log := &bytes.Buffer{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("lateend: %v\n%s", err, log)
		}
	})
	eventually(t, "lateend serves", func() error { return a.m.control(http.MethodGet, "/ready", "", nil) })
	return a
}

// joinToken is what POST /tokens answers.
type joinToken struct {
	Token, Roots, Identity, ControlName string
}

func (a *authority) token(t *testing.T, account, ttl string) joinToken {
	t.Helper()
	var out joinToken
	ask, err := json.Marshal(map[string]string{"namespace": "default", "serviceAccount": account, "ttl": ttl})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.m.control(http.MethodPost, "/tokens", string(ask), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// sign asks for a certificate for an identity with a token, showing a client certificate or none.
func (a *authority) sign(t *testing.T, key *ecdsa.PrivateKey, j joinToken, name string, certs ...tls.Certificate) ([]string, error) {
	t.Helper()
	u, err := url.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}}, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(j.Roots))
	conn, err := grpc.NewClient(a.address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: j.ControlName, Certificates: certs})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	if j.Token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+j.Token)
	}
	res, err := securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityapi.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
	})
	return res.GetCertChain(), err
}

func TestJoining(t *testing.T) {
	a := startAuthority(t)
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	key := newKey()
	refused := func(t *testing.T, err error, code codes.Code, says ...string) {
		t.Helper()
		s := status.Convert(err)
		if s.Code() != code {
			t.Errorf("%v, want %s", err, code)
		}
		for _, w := range says {
			if !strings.Contains(s.Message(), w) {
				t.Errorf("%q does not say %q", s.Message(), w)
			}
		}
	}
	j := a.token(t, "alice", "10m")
	chain, err := a.sign(t, key, j, j.Identity)
	if err != nil || len(chain) < 2 {
		t.Fatalf("%d certificates, %v", len(chain), err)
	}
	t.Run("used twice", func(t *testing.T) {
		_, err := a.sign(t, newKey(), j, j.Identity)
		refused(t, err, codes.Unauthenticated, "used twice", "lateen token create", "stolen")
	})
	t.Run("expired", func(t *testing.T) {
		j := a.token(t, "bob", "1ms")
		eventually(t, "the token is refused", func() error {
			_, err := a.sign(t, newKey(), j, j.Identity)
			if s := status.Convert(err); s.Code() != codes.Unauthenticated || !strings.Contains(s.Message(), "expired") || !strings.Contains(s.Message(), "lateen token create") {
				return fmt.Errorf("signed, or refused for another reason: %w", err)
			}
			return nil
		})
	})
	t.Run("no token", func(t *testing.T) {
		_, err := a.sign(t, newKey(), joinToken{Roots: j.Roots, ControlName: j.ControlName}, j.Identity)
		refused(t, err, codes.Unauthenticated)
	})
	t.Run("invented token", func(t *testing.T) {
		j := j
		j.Token = strings.Repeat("a", len(j.Token))
		_, err := a.sign(t, newKey(), j, j.Identity)
		refused(t, err, codes.Unauthenticated)
	})
	t.Run("for another identity", func(t *testing.T) {
		j := a.token(t, "carol", "10m")
		_, err := a.sign(t, newKey(), j, strings.Replace(j.Identity, "carol", "admin", 1))
		refused(t, err, codes.PermissionDenied, "asks for", "admin", "carol")
	})
	block, _ := pem.Decode([]byte(chain[0]))
	cert := tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
	for _, c := range chain[1:] {
		b, _ := pem.Decode([]byte(c))
		cert.Certificate = append(cert.Certificate, b.Bytes)
	}
	known := joinToken{Roots: j.Roots, ControlName: j.ControlName}
	t.Run("renewed by the certificate", func(t *testing.T) {
		if _, err := a.sign(t, newKey(), known, j.Identity, cert); err != nil {
			t.Error(err)
		}
	})
	t.Run("another identity by the certificate", func(t *testing.T) {
		_, err := a.sign(t, newKey(), known, strings.Replace(j.Identity, "alice", "admin", 1), cert)
		refused(t, err, codes.PermissionDenied, "asks for", "admin")
	})
}
