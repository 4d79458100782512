package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/table"
)

// slowFile makes a file whose reader waits until text is written: a named pipe.
func slowFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "slow.pem")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// serveSlowly waits for somebody to read the file, sees to it that the event loop goes on meanwhile, and writes text.
func (r *rig) serveSlowly(path string, text []byte) {
	r.t.Helper()
	opened := make(chan *os.File, 1)
	go func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0) // waits for a reader
		if err != nil {
			r.t.Error(err)
		}
		opened <- f
	}()
	select {
	case f := <-opened:
		turn := make(chan struct{})
		r.p.workers[0].loop.Post(func() { close(turn) })
		select {
		case <-turn:
		case <-time.After(patience):
			r.t.Error("the event loop waits for a file")
		}
		_, _ = f.Write(text)
		_ = f.Close()
	case <-time.After(patience):
		r.t.Fatal("nobody reads the file")
	}
}

func certPEM(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// TestRootsFromSlowFile: the roots of a cluster are read by the handshake, and no event loop waits for them.
func TestRootsFromSlowFile(t *testing.T) {
	s := newTLSBackend(t, "hello")
	path := slowFile(t)
	r := newRig(t, to("c"), clusterOf(func(c *plan.Cluster) {
		c.TLS = plan.ClientTLS{Mode: plan.ClientTLSSimple, SNI: "example.com", CAFile: path}
	}, s)...)
	done := make(chan string, 1)
	go func() { _, body := r.get("/"); done <- body }()
	r.serveSlowly(path, certPEM(s))
	if body := <-done; body != "hello" {
		t.Errorf("got %q", body)
	}
}

// TestRootsFromFile: the server must be who the orders say.
func TestRootsFromFile(t *testing.T) {
	s := newTLSBackend(t, "hello")
	path := filepath.Join(t.TempDir(), "ca.pem")
	foreign := filepath.Join(t.TempDir(), "foreign.pem")
	if err := os.WriteFile(path, certPEM(s), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(foreign, authority(t).Bundle().PEM("cluster.local"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		tls  plan.ClientTLS
		want int
	}{
		{"the name", plan.ClientTLS{SNI: "example.com", CAFile: path}, 200},
		{"another name", plan.ClientTLS{SNI: "evil.test", CAFile: path}, 503},
		{"the request's host", plan.ClientTLS{CAFile: path}, 200}, // 127.0.0.1, which the certificate bears
		{"an alternative name", plan.ClientTLS{CAFile: path, Identities: []string{"example.com"}}, 200},
		{"another alternative name", plan.ClientTLS{SNI: "example.com", CAFile: path, Identities: []string{"evil.test"}}, 503},
		{"other roots", plan.ClientTLS{SNI: "example.com", CAFile: foreign}, 503},
		{"no file", plan.ClientTLS{SNI: "example.com", CAFile: path + ".not"}, 503},
		{"an empty file", plan.ClientTLS{SNI: "example.com", CAFile: os.DevNull}, 503},
		{"unverified", plan.ClientTLS{CAFile: foreign, InsecureSkipVerify: true}, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.tls.Mode = plan.ClientTLSSimple
			r := newRig(t, to("c"), clusterOf(func(c *plan.Cluster) { c.TLS = tt.tls }, s)...)
			if res, body := r.get("/"); res.StatusCode != tt.want || tt.want == 200 && body != "hello" {
				t.Errorf("%s %q, want %d", res.Status, body, tt.want)
			}
		})
	}
}

// TestCertificateFromSlowFile: a gateway's certificate is read by the handshake, and no event loop waits for it.
func TestCertificateFromSlowFile(t *testing.T) {
	server := newTLSBackend(t, "")
	path, keyPath := slowFile(t), filepath.Join(t.TempDir(), "key.pem")
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startRig(t)
	r.openGateway(&plan.Chain{
		Name: "https", Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{},
		TLS: plan.ServerTLS{Mode: plan.TLSSimple, CertFile: path, KeyFile: keyPath},
	}, plan.Telemetry{}, to("c"), cluster("c")...)
	done := make(chan error, 1)
	go func() {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // it is not about whether the client believes it
		c, err := d.DialContext(t.Context(), "tcp", r.addr)
		if err == nil {
			err = c.Close()
		}
		done <- err
	}()
	r.serveSlowly(path, certPEM(server))
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestCertificateFileMissing: what cannot be read is told to whoever reads the log.
func TestCertificateFileMissing(t *testing.T) {
	r := startRig(t)
	r.openGateway(&plan.Chain{
		Name: "https", Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{},
		TLS: plan.ServerTLS{Mode: plan.TLSSimple, CertFile: "/no/such/file", KeyFile: "/no/such/file"},
	}, plan.Telemetry{}, to("c"), cluster("c")...)
	if c, err := tls.Dial("tcp", r.addr, &tls.Config{InsecureSkipVerify: true}); err == nil {
		_ = c.Close()
		t.Error("a connection was made without a certificate")
	}
	r.await("the cause told", func(*worker) bool { return strings.Contains(r.logs.String(), "read serverCertificate and privateKey") })
}

// TestServerTLSGoesWithItsChain: configurations of chains that are in force no more are not held.
func TestServerTLSGoesWithItsChain(t *testing.T) {
	r := startRig(t)
	count := func() int {
		r.p.tls.mu.Lock()
		defer r.p.tls.mu.Unlock()
		return len(r.p.tls.servers)
	}
	chain := func() *table.Chain {
		return &table.Chain{Plan: &plan.Chain{Name: "https", TLS: plan.ServerTLS{Mode: plan.TLSSimple, CertFile: "/c", KeyFile: "/k"}}}
	}
	stays := chain()
	first, err := r.p.serverTLS(stays)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := r.p.serverTLS(chain()); err != nil {
			t.Fatal(err)
		}
	}
	r.await("the others gone", func(*worker) bool {
		runtime.GC()
		return count() == 1
	})
	if again, err := r.p.serverTLS(stays); err != nil || again != first {
		t.Errorf("%v, a configuration is made again although its chain is in force", err)
	}
}
