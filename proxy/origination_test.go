package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// issuer is a certificate authority of the ordinary kind.
type issuer struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{t, cert, key}
}

func (i *issuer) roots() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
}

// issue makes a certificate, in PEM, for names: URIs or DNS names.
func (i *issuer) issue(names ...string) (chain, key []byte) {
	i.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, NotAfter: time.Now().Add(time.Hour)}
	for _, n := range names {
		if u, err := url.Parse(n); err == nil && u.Scheme != "" {
			tmpl.URIs = append(tmpl.URIs, u)
			continue
		}
		tmpl.DNSNames = append(tmpl.DNSNames, n)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, i.cert, k.Public(), i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	text, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		i.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: text})
}

// server tells of each request the server name, the protocol chosen, those offered and the client's certificate.
func (i *issuer) server(names ...string) *httptest.Server {
	i.t.Helper()
	pair, err := tls.X509KeyPair(i.issue(names...))
	if err != nil {
		i.t.Fatal(err)
	}
	offered := make(chan []string, 16)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := "nobody"
		if certs := r.TLS.PeerCertificates; len(certs) > 0 {
			who = certs[0].Subject.CommonName
		}
		fmt.Fprintf(w, "sni=%s %s offered=%v client=%s", r.TLS.ServerName, r.Proto, <-offered, who)
	}))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1", "acme"}}
	s.TLS.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		offered <- h.SupportedProtos
		return nil, nil
	}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // of handshakes that are to fail
	s.StartTLS()
	i.t.Cleanup(s.Close)
	return s
}

// TestOrigination: server name, names to be proven, credentials and protocols are those that are ordered.
func TestOrigination(t *testing.T) {
	ca, foreign := newIssuer(t), newIssuer(t)
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	chain, key := ca.issue("me")
	roots, cert, private := write("roots", ca.roots()), write("cert", chain), write("key", key)
	others := write("others", foreign.roots())
	tests := []struct {
		name     string
		server   []string // its names
		protocol plan.Protocol
		tls      plan.ClientTLS
		want     string // in the body
		refused  bool
	}{
		{name: "server name", server: []string{"api.example"}, tls: plan.ClientTLS{SNI: "api.example", CAFile: roots}, want: "sni=api.example HTTP/1.1 offered=[http/1.1] client=nobody"},
		{name: "http2", server: []string{"api.example"}, protocol: plan.ProtocolHTTP2, tls: plan.ClientTLS{SNI: "api.example", CAFile: roots}, want: "HTTP/2.0 offered=[h2]"},
		{name: "other server name", server: []string{"api.example"}, tls: plan.ClientTLS{SNI: "other.example", CAFile: roots}, refused: true},
		{name: "other roots", server: []string{"api.example"}, tls: plan.ClientTLS{SNI: "api.example", CAFile: others}, refused: true},
		{name: "unverified", server: []string{"api.example"}, tls: plan.ClientTLS{SNI: "other.example", CAFile: others, InsecureSkipVerify: true}, want: "sni=other.example"},
		{name: "names", server: []string{"real.example"}, tls: plan.ClientTLS{SNI: "api.example", CAFile: roots, Identities: []string{"x", "real.example"}}, want: "sni=api.example"},
		{name: "identity", server: []string{"spiffe://td/ns/n/sa/s"}, tls: plan.ClientTLS{SNI: "api.example", CAFile: roots, Identities: []string{"spiffe://td/ns/n/sa/s"}}, want: "sni=api.example"},
		{name: "other names", server: []string{"api.example"}, tls: plan.ClientTLS{SNI: "api.example", CAFile: roots, Identities: []string{"real.example"}}, refused: true},
		{name: "names of other roots", server: []string{"real.example"}, tls: plan.ClientTLS{SNI: "api.example", CAFile: others, Identities: []string{"real.example"}}, refused: true},
		{name: "wildcard", server: []string{"*.api.example"}, tls: plan.ClientTLS{SNI: "x", CAFile: roots, Identities: []string{"a.api.example"}}, want: "sni=x"},
		{name: "files", server: []string{"api.example"}, tls: plan.ClientTLS{Mode: plan.ClientTLSMutual, SNI: "api.example", CAFile: roots, CertFile: cert, KeyFile: private}, want: "client=me"},
		{name: "secret", server: []string{"api.example"}, tls: plan.ClientTLS{Mode: plan.ClientTLSMutual, SNI: "api.example", Secret: "s"}, want: "client=me"},
		{name: "secret for roots only", server: []string{"api.example"}, tls: plan.ClientTLS{SNI: "api.example", Secret: "s"}, want: "client=nobody"},
		{name: "protocols", server: []string{"api.example"}, tls: plan.ClientTLS{SNI: "api.example", CAFile: roots, ALPN: []string{"acme", "http/1.1"}}, want: "HTTP/1.1 offered=[acme http/1.1]"},
		{name: "server chooses", server: []string{"api.example"}, tls: plan.ClientTLS{SNI: "api.example", CAFile: roots, ALPN: []string{"h2", "http/1.1"}}, want: "HTTP/2.0 offered=[h2 http/1.1]"},
		{name: "host of the request", server: []string{"web.example"}, tls: plan.ClientTLS{CAFile: roots}, want: "sni=web.example"},
		{name: "not the request's host", server: []string{"api.example"}, tls: plan.ClientTLS{CAFile: roots}, refused: true},
		{name: "host of the request, secret", server: []string{"web.example"}, tls: plan.ClientTLS{Secret: "s"}, want: "sni=web.example"},
		{name: "not the request's host, secret", server: []string{"api.example"}, tls: plan.ClientTLS{Secret: "s"}, refused: true},
		{name: "host of the request, names", server: []string{"real.example"}, tls: plan.ClientTLS{CAFile: roots, Identities: []string{"real.example"}}, want: "sni=web.example"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.tls.Mode == plan.ClientTLSNone {
				tt.tls.Mode = plan.ClientTLSSimple
			}
			s := ca.server(tt.server...)
			r := sidecar(t, nil, "web")
			at := r.outbound(func(chain *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
				declared(chain, c, e)
				c.TLS = tt.tls
				if tt.protocol != plan.ProtocolAuto {
					c.Protocol = tt.protocol
				}
			}, s.Listener.Addr().String())
			if tt.tls.Secret != "" {
				r.feed(&plan.Secret{Name: "s", Chain: chain, Key: key, Roots: ca.roots()})
			}
			req := request(t, "GET", "http://"+at+"/", nil)
			req.Host = "Web.Example:8080"
			res, body := fetch(t, webClient(t), req)
			switch {
			case tt.refused && (res.StatusCode != 503 || !strings.HasPrefix(res.Header.Get("X-Lateen-Reason"), "tls_")):
				t.Errorf("%s %q %q", res.Status, res.Header.Get("X-Lateen-Reason"), body)
			case !tt.refused && !strings.Contains(body, tt.want):
				t.Errorf("%s %q, want %q\n%s", res.Status, body, tt.want, r.logs)
			}
		})
	}
}

// TestOriginationByHost: connections are not shared by hosts that a server is to prove by name.
func TestOriginationByHost(t *testing.T) {
	ca := newIssuer(t)
	s := ca.server("a.example", "b.example")
	r := sidecar(t, nil, "web")
	at := r.outbound(func(_ *plan.Chain, c *plan.Cluster, _ []plan.Endpoint) {
		c.TLS = plan.ClientTLS{Mode: plan.ClientTLSSimple, Secret: "s"}
	}, s.Listener.Addr().String())
	r.feed(&plan.Secret{Name: "s", Roots: ca.roots()})
	for _, host := range []string{"a.example", "b.example"} {
		req := request(t, "GET", "http://"+at+"/", nil)
		req.Host = host
		if res, body := fetch(t, webClient(t), req); !strings.HasPrefix(body, "sni="+host+" ") {
			t.Errorf("%s: %s %q", host, res.Status, body)
		}
	}
}

// TestOriginationOfBytes: a byte stream without a server name is encrypted to any server of the roots.
func TestOriginationOfBytes(t *testing.T) {
	ca := newIssuer(t)
	pair, err := tls.X509KeyPair(ca.issue("db.example"))
	if err != nil {
		t.Fatal(err)
	}
	hello := make(chan *tls.ClientHelloInfo, 8)
	addr := tcpServer(t, func(c *net.TCPConn) {
		s := tls.Server(c, &tls.Config{NextProtos: []string{"postgresql"}, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			hello <- h
			return &pair, nil
		}})
		_, _ = io.Copy(s, s)
	})
	for _, from := range []*issuer{ca, newIssuer(t)} {
		r := sidecar(t, nil, "web")
		at := r.outbound(func(ch *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
			bytesOnly(ch, c, e)
			c.TLS = plan.ClientTLS{Mode: plan.ClientTLSSimple, Secret: "s", ALPN: []string{"postgresql"}}
		}, addr)
		r.feed(&plan.Secret{Name: "s", Roots: from.roots()})
		if from != ca {
			resets(t, at)
			for range dialTries {
				<-hello
			}
			continue
		}
		c := dialRaw(t, at)
		c.send("ping")
		c.expect("ping")
		if h := <-hello; h.ServerName != "" || strings.Join(h.SupportedProtos, " ") != "postgresql" {
			t.Errorf("server name %q, protocols %v", h.ServerName, h.SupportedProtos)
		}
	}
}
