package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity"
)

const (
	bob   = "spiffe://td/ns/n/sa/bob"
	carol = "spiffe://td/ns/n/sa/carol"
)

// patience bounds every wait; it is reached only when a test fails.
const patience = 20 * time.Second

// end is one end's view of a connection.
type end struct {
	state tls.ConnectionState
	err   error
}

// connect shakes hands over loopback, sends a byte from server to client (with
// it come session tickets), and returns both ends' views.
func connect(t *testing.T, server, client *tls.Config) (srv, cli end) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	served := make(chan end, 1)
	go func() { served <- serveOnce(l, server) }()

	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	_ = raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(raw, client)
	if cli.err = conn.Handshake(); cli.err == nil {
		// In TLS 1.3 the client learns of a refusal by reading.
		_, cli.err = io.ReadFull(conn, make([]byte, 1))
		cli.state = conn.ConnectionState()
	}
	_ = conn.Close()
	return <-served, cli
}

func serveOnce(l net.Listener, config *tls.Config) end {
	raw, err := l.Accept()
	if err != nil {
		return end{err: err}
	}
	defer func() { _ = raw.Close() }()
	_ = raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Server(raw, config)
	defer func() { _ = conn.Close() }()
	if err := conn.Handshake(); err != nil {
		return end{err: err}
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return end{err: err}
	}
	state := conn.ConnectionState()
	if _, err := io.Copy(io.Discard, conn); err != nil {
		return end{err: err}
	}
	return end{state: state}
}

func toBob(h *identity.Holder) *tls.Config {
	return identity.ClientTLS(h, identity.ClientConfig{
		ServerName: "outbound_.80_._.bob.n.svc.cluster.local",
		ALPN:       []string{"istio-http/1.1", "istio", "http/1.1"},
		Accept:     func(id identity.ID) bool { return id.ServiceAccount == "bob" },
	})
}

func istioServer(h *identity.Holder) *tls.Config {
	return identity.ServerTLS(h, identity.ServerConfig{ALPN: []string{"istio", "h2"}})
}

func TestMeshHandshake(t *testing.T) {
	root := newAuthority(t, "root")
	bundle := root.bundle("td")
	srv, cli := connect(t, istioServer(root.holder(bundle, bob)), toBob(root.holder(bundle, alice)))
	if srv.err != nil || cli.err != nil {
		t.Fatalf("server: %v, client: %v", srv.err, cli.err)
	}
	if id, err := identity.PeerID(srv.state); err != nil || id.String() != alice {
		t.Errorf("the server sees %v, %v", id, err)
	}
	if id, err := identity.PeerID(cli.state); err != nil || id.String() != bob {
		t.Errorf("the client sees %v, %v", id, err)
	}
	if srv.state.Version != tls.VersionTLS13 || srv.state.CurveID != tls.X25519MLKEM768 {
		t.Errorf("version %#x, key exchange %v", srv.state.Version, srv.state.CurveID)
	}
	if srv.state.NegotiatedProtocol != "istio" || srv.state.ServerName != "outbound_.80_._.bob.n.svc.cluster.local" {
		t.Errorf("ALPN %q, SNI %q", srv.state.NegotiatedProtocol, srv.state.ServerName)
	}
	if _, err := identity.PeerID(tls.ConnectionState{}); !errors.Is(err, identity.ErrNoCertificate) {
		t.Errorf("PeerID of nobody: %v", err)
	}
}

func TestMeshHandshakeRefusals(t *testing.T) {
	root, foreign := newAuthority(t, "root"), newAuthority(t, "foreign")
	bundle := root.bundle("td")
	server, client := root.holder(bundle, bob), root.holder(bundle, alice)
	both, err := bundle.With("friend", foreign.cert)
	if err != nil {
		t.Fatal(err)
	}
	// forged shows a certificate whatever the server asks for.
	forged := func(c tls.Certificate) *tls.Config {
		cfg := toBob(client)
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
		return cfg
	}
	nobody := toBob(client)
	nobody.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	old := toBob(client)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	tests := []struct {
		name           string
		server, client *tls.Config
		srv, cli       error  // what either end's error must be, nil: anything
		text           string // part of either end's error
	}{
		{name: "client without certificate", server: istioServer(server), client: nobody, srv: identity.ErrNoCertificate},
		{name: "client of a foreign trust domain", server: istioServer(server), client: forged(foreign.issue(workload(t, "spiffe://friend/ns/n/sa/x"))), srv: identity.ErrNotTrusted},
		{name: "our name by a foreign root", server: istioServer(root.holder(both, bob)), client: forged(foreign.issue(workload(t, alice))), srv: identity.ErrNotTrusted},
		{name: "two names", server: istioServer(server), client: forged(root.issue(workload(t, alice, carol))), srv: identity.ErrNotTrusted},
		{name: "server is somebody else", server: istioServer(root.holder(bundle, carol)), client: toBob(client), cli: identity.ErrWrongID, text: carol},
		{name: "server by a foreign root", server: istioServer(foreign.holder(foreign.bundle("td"), bob)), client: toBob(client), cli: identity.ErrNotTrusted},
		{name: "nobody is accepted by default", server: istioServer(server), client: identity.ClientTLS(client, identity.ClientConfig{ServerName: "x"}), cli: identity.ErrWrongID},
		{name: "client has none yet", server: istioServer(server), client: toBob(identity.NewHolder(bundle)), cli: identity.ErrNoIdentity},
		{name: "server has none yet", server: istioServer(identity.NewHolder(bundle)), client: toBob(client), srv: identity.ErrNoIdentity},
		{name: "old TLS", server: istioServer(server), client: old, text: "unsupported versions"},
		{name: "no common ALPN", server: identity.ServerTLS(server, identity.ServerConfig{ALPN: []string{"istio-peer-exchange"}}), client: toBob(client), text: "unsupported application protocols"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv, cli := connect(t, tt.server, tt.client)
			if srv.err == nil || cli.err == nil {
				t.Fatalf("not refused: server %v, client %v", srv.err, cli.err)
			}
			if tt.srv != nil && !errors.Is(srv.err, tt.srv) || tt.cli != nil && !errors.Is(cli.err, tt.cli) {
				t.Errorf("server: %v, client: %v", srv.err, cli.err)
			}
			if both := errors.Join(srv.err, cli.err).Error(); !strings.Contains(both, tt.text) {
				t.Errorf("%q lacks %q", both, tt.text)
			}
		})
	}
}

// A configuration made once follows its holder.
func TestHandshakeUsesCurrentCredentials(t *testing.T) {
	old, young := newAuthority(t, "old"), newAuthority(t, "young")
	server, client := old.holder(old.bundle("td"), bob), identity.NewHolder(old.bundle("td"))
	srvTLS, cliTLS := istioServer(server), toBob(client)
	if _, cli := connect(t, srvTLS, cliTLS); cli.err == nil {
		t.Fatal("connected without a certificate")
	}
	if err := client.Set(old.issue(workload(t, alice)), old.bundle("td")); err != nil {
		t.Fatal(err)
	}
	if srv, cli := connect(t, srvTLS, cliTLS); srv.err != nil || cli.err != nil {
		t.Fatal(srv.err, cli.err)
	}
	// Rotate the roots step by step; at each one the two understand each
	// other.
	overlap := old.bundle("td", young)
	steps := []struct {
		name string
		do   func() error
	}{
		{"server trusts both", func() error { server.SetBundle(overlap); return nil }},
		{"client trusts both", func() error { client.SetBundle(overlap); return nil }},
		{"client by the new root", func() error { return client.Set(young.issue(workload(t, alice)), overlap) }},
		{"server by the new root", func() error { return server.Set(young.issue(workload(t, bob)), overlap) }},
		{"server trusts the new root", func() error { server.SetBundle(young.bundle("td")); return nil }},
		{"client trusts the new root", func() error { client.SetBundle(young.bundle("td")); return nil }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if srv, cli := connect(t, srvTLS, cliTLS); srv.err != nil || cli.err != nil {
			t.Errorf("%s: server %v, client %v", step.name, srv.err, cli.err)
		}
	}
}

func TestInteropPlainTLS(t *testing.T) {
	root := newAuthority(t, "root")
	bundle := root.bundle("td")
	pool := x509.NewCertPool()
	pool.AddCert(root.cert)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		plainClient := &tls.Config{
			Certificates: []tls.Certificate{root.issue(workload(t, alice))},
			MinVersion:   version, MaxVersion: version,
			InsecureSkipVerify: true, // crypto/tls knows no SPIFFE IDs.
			NextProtos:         []string{"istio"},
		}
		srv, cli := connect(t, istioServer(root.holder(bundle, bob)), plainClient)
		if srv.err != nil || cli.err != nil || cli.state.Version != version {
			t.Errorf("plain client, %s: server %v, client %v", tls.VersionName(version), srv.err, cli.err)
		}
		plainServer := &tls.Config{
			Certificates: []tls.Certificate{root.issue(workload(t, bob))},
			MinVersion:   version, MaxVersion: version,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
			NextProtos: []string{"istio"},
		}
		srv, cli = connect(t, plainServer, toBob(root.holder(bundle, alice)))
		if srv.err != nil || cli.err != nil || cli.state.Version != version {
			t.Errorf("plain server, %s: server %v, client %v", tls.VersionName(version), srv.err, cli.err)
		}
	}
}

func TestControlTLS(t *testing.T) {
	root, foreign := newAuthority(t, "root"), newAuthority(t, "foreign")
	template := &x509.Certificate{DNSNames: []string{"lateend.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	server := &tls.Config{Certificates: []tls.Certificate{root.issue(template)}, ClientAuth: tls.RequestClientCert}
	holder := identity.NewHolder(root.bundle("td"))
	config := func(h *identity.Holder, name string) *tls.Config {
		return identity.ControlTLS(h, identity.ControlConfig{ServerName: name, TrustDomain: "td"})
	}
	srv, cli := connect(t, server, config(holder, "lateend.example"))
	if srv.err != nil || cli.err != nil || len(srv.state.PeerCertificates) != 0 {
		t.Fatalf("without certificate: server %v, client %v, %d shown", srv.err, cli.err, len(srv.state.PeerCertificates))
	}
	if err := holder.Set(root.issue(workload(t, alice)), root.bundle("td")); err != nil {
		t.Fatal(err)
	}
	srv, cli = connect(t, server, config(holder, "lateend.example"))
	if id, err := identity.PeerID(srv.state); cli.err != nil || err != nil || id.String() != alice {
		t.Fatalf("with certificate: %v, %v, the server sees %v", cli.err, err, id)
	}
	if _, cli = connect(t, server, config(holder, "other.example")); !errors.Is(cli.err, identity.ErrNotTrusted) {
		t.Errorf("another name: %v", cli.err)
	}
	if _, cli = connect(t, server, config(identity.NewHolder(foreign.bundle("td")), "lateend.example")); !errors.Is(cli.err, identity.ErrNotTrusted) {
		t.Errorf("another root: %v", cli.err)
	}
}

// openssl runs s_client against our server and returns what it prints.
func openssl(t *testing.T, server *tls.Config, group string, cert tls.Certificate, ca *authority) (output string, srv end) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	served := make(chan end, 1)
	go func() { served <- serveOnce(l, server) }()

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "s_client", "-connect", l.Addr().String(), "-alpn", "istio", "-groups", group,
		"-cert", write("cert.pem", identity.EncodeCertificates(cert.Leaf)),
		"-key", write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		"-CAfile", write("root.pem", identity.EncodeCertificates(ca.cert)), "-verify_return_error")
	out, err := cmd.CombinedOutput() // Its standard input is empty, so it closes after the handshake.
	if err != nil {
		_ = l.Close() // for when it did not even connect
		return string(out), <-served
	}
	return string(out), <-served
}

func TestInteropOpenSSL(t *testing.T) {
	root := newAuthority(t, "root")
	server := istioServer(root.holder(root.bundle("td"), bob))
	t.Run("X25519", func(t *testing.T) {
		out, srv := openssl(t, server, "X25519", root.issue(workload(t, alice)), root)
		if srv.err != nil || srv.state.CurveID != tls.X25519 || srv.state.NegotiatedProtocol != "istio" || !strings.Contains(out, "Verify return code: 0 (ok)") {
			t.Fatalf("server: %v, %v\n%s", srv.err, srv.state.CurveID, out)
		}
		if id, err := identity.PeerID(srv.state); err != nil || id.String() != alice {
			t.Errorf("the server sees %v, %v", id, err)
		}
	})
	t.Run("X25519MLKEM768", func(t *testing.T) {
		out, srv := openssl(t, server, "X25519MLKEM768", root.issue(workload(t, alice)), root)
		if strings.Contains(out, "X25519MLKEM768") && strings.Contains(out, "failed") && srv.err != nil {
			t.Skip("this openssl does not know X25519MLKEM768; it came with OpenSSL 3.5")
		}
		if srv.err != nil || srv.state.CurveID != tls.X25519MLKEM768 || !strings.Contains(out, "X25519MLKEM768") {
			t.Fatalf("server: %v, %v\n%s", srv.err, srv.state.CurveID, out)
		}
	})
}
