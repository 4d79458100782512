package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
)

// fixed authenticates everybody as one.
type fixed struct{ id identity.ID }

func (fixed) Kind() string { return "word of honour" }

func (f fixed) Authenticate(context.Context, []byte) (identity.ID, error) { return f.id, nil }

// refusing refuses everybody.
type refusing struct{ err error }

func (refusing) Kind() string { return "bad day" }

func (r refusing) Authenticate(context.Context, []byte) (identity.ID, error) {
	return identity.ID{}, r.err
}

// csr makes a signing request that asks for URI names.
func csr(t *testing.T, key crypto.Signer, names ...string) string {
	t.Helper()
	template := &x509.CertificateRequest{}
	for _, n := range names {
		u, err := url.Parse(n)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	return csrOf(t, key, template)
}

func csrOf(t *testing.T, key crypto.Signer, template *x509.CertificateRequest) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func create(t *testing.T, a *ca.Authority, who ca.Authenticator, request string) (*securityapi.IstioCertificateResponse, error) {
	t.Helper()
	s := ca.NewService(ca.ServiceConfig{Authority: a, Authenticators: ca.Authenticators{who}})
	return s.CreateCertificate(t.Context(), &securityapi.IstioCertificateRequest{Csr: request})
}

// leafOf returns the certificate of an answer after checking the chain.
func leafOf(t *testing.T, a *ca.Authority, r *securityapi.IstioCertificateResponse, now time.Time) *x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, text := range r.GetCertChain() {
		certs, err := identity.ParseCertificates([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, certs...)
	}
	if len(chain) < 2 || !chain[len(chain)-1].Equal(a.Bundle().Roots("td")[0]) {
		t.Fatalf("a chain of %d that does not end with the root", len(chain))
	}
	if _, err := a.Bundle().Verify(chain[:len(chain)-1], x509.ExtKeyUsageClientAuth, now); err != nil {
		t.Fatal(err)
	}
	return chain[0]
}

// Nothing in the request but its key counts.
func TestRequestIsOverwritten(t *testing.T) {
	c := newClock()
	a, key := newAuthority(t, c), newKey(t)
	r, err := create(t, a, fixed{alice}, csrOf(t, key, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		DNSNames:    []string{"lateend.example"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA:TRUE
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, a, r, c.Now())
	if leaf.Subject.String() != "" || len(leaf.DNSNames)+len(leaf.IPAddresses) != 0 || leaf.IsCA {
		t.Errorf("the request got through: %v %v %v CA %t", leaf.Subject, leaf.DNSNames, leaf.IPAddresses, leaf.IsCA)
	}
	if id, err := identity.FromCertificate(leaf); err != nil || id != alice || !key.PublicKey.Equal(leaf.PublicKey) {
		t.Errorf("issued for %v, %v", id, err)
	}
}

func TestRequestRefusals(t *testing.T) {
	a, key := newAuthority(t, newClock()), newKey(t)
	bob := "spiffe://td/ns/n/sa/bob"
	tampered, _ := pem.Decode([]byte(csr(t, key)))
	tampered.Bytes[len(tampered.Bytes)-1] ^= 1
	foreign := alice
	foreign.TrustDomain = "other"
	meta := func(key, value string) *structpb.Struct {
		return &structpb.Struct{Fields: map[string]*structpb.Value{key: structpb.NewStringValue(value)}}
	}
	good := csr(t, key, alice.String())
	tests := []struct {
		name    string
		who     ca.Authenticator
		request *securityapi.IstioCertificateRequest
		code    codes.Code
		text    []string
	}{
		{"another's name", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: csr(t, key, bob)}, codes.PermissionDenied, []string{bob, alice.String(), "word of honour"}},
		{"another's name beside ours", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: csr(t, key, alice.String(), bob)}, codes.PermissionDenied, []string{bob, alice.String()}},
		{"a foreign caller", fixed{foreign}, &securityapi.IstioCertificateRequest{Csr: good}, codes.PermissionDenied, []string{foreign.String(), `"td"`}},
		{"impersonation", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: good, Metadata: meta("ImpersonatedIdentity", bob)}, codes.PermissionDenied, []string{bob, alice.String()}},
		{"another signer", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: good, Metadata: meta("CertSigner", "vault")}, codes.InvalidArgument, []string{"vault"}},
		{"negative lifetime", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: good, ValidityDuration: -1}, codes.InvalidArgument, []string{"-1 s"}},
		{"long lifetime", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: good, ValidityDuration: 90*24*3600 + 1}, codes.InvalidArgument, []string{"90 days"}},
		{"overflowing lifetime", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: good, ValidityDuration: 1 << 62}, codes.InvalidArgument, []string{"90 days"}},
		{"no request", fixed{alice}, &securityapi.IstioCertificateRequest{}, codes.InvalidArgument, []string{"not PEM"}},
		{"garbage", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"}, codes.InvalidArgument, []string{"cannot be read"}},
		{"a certificate", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: string(a.Bundle().PEM("td"))}, codes.InvalidArgument, []string{`"CERTIFICATE"`}},
		{"somebody else's key", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: string(pem.EncodeToMemory(tampered))}, codes.InvalidArgument, []string{"not signed by its own key"}},
		{"too large", fixed{alice}, &securityapi.IstioCertificateRequest{Csr: good + strings.Repeat("\n", 16<<10)}, codes.InvalidArgument, []string{"at most 16384"}},
		{"no credential", refusing{ca.ErrNoCredential}, &securityapi.IstioCertificateRequest{Csr: good}, codes.Unauthenticated, []string{"bad day", "lateen token create"}},
		{"bad credential", refusing{errors.New("it rains")}, &securityapi.IstioCertificateRequest{Csr: good}, codes.Unauthenticated, []string{"bad day: it rains"}},
	}
	for _, tt := range tests {
		s := ca.NewService(ca.ServiceConfig{Authority: a, Authenticators: ca.Authenticators{tt.who}})
		r, err := s.CreateCertificate(t.Context(), tt.request)
		if r != nil || status.Code(err) != tt.code {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.code)
		}
		for _, text := range tt.text {
			if !strings.Contains(status.Convert(err).Message(), text) {
				t.Errorf("%s: %q lacks %q", tt.name, err, text)
			}
		}
	}
	if _, err := create(t, a, fixed{alice}, good); err != nil {
		t.Errorf("the good request among the bad ones: %v", err)
	}
}

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// world is a running certificate service, with Istio's agents in mind.
type world struct {
	clock     *clock
	authority *ca.Authority
	tokens    *ca.Tokens
	address   string
	log       logBuffer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{clock: newClock()}
	w.authority = newAuthority(t, w.clock)
	w.tokens = ca.NewTokens(w.authority)
	serving, err := w.authority.ServerCertificate([]string{"istiod.istio-system.svc"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(serving.TLS())))
	securityapi.RegisterIstioCertificateServiceServer(server, ca.NewService(ca.ServiceConfig{
		Authority:      w.authority,
		Authenticators: ca.Authenticators{ca.MeshCertificate{Authority: w.authority}, w.tokens},
		Logger:         slog.New(slog.NewTextHandler(&w.log, nil)),
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
}

// ask makes the call that an Istio agent makes.
func (w *world) ask(t *testing.T, cert *tls.Certificate, token, request string) (*securityapi.IstioCertificateResponse, error) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(w.authority.Bundle().Roots("td")[0])
	config := &tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc"}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	conn, err := grpc.NewClient(w.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "Authorization", "Bearer "+token, "ClusterID", "Kubernetes")
	}
	return securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityapi.IstioCertificateRequest{
		Csr: request, ValidityDuration: int64((24 * time.Hour).Seconds()),
	})
}

func (w *world) token(t *testing.T) string {
	t.Helper()
	token, err := w.tokens.Issue("n", "alice", 0)
	if err != nil {
		t.Fatal(err)
	}
	return token.Text
}

// An agent of Istio joins with a token, its RSA key and the name it believes to
// have, then renews with its certificate, this time with a key on P-256 as
// ztunnel has.
func TestIstioAgentJoinsAndRenews(t *testing.T) {
	w := newWorld(t)
	agentKey := rsaKey(t, 2048)
	token := w.token(t)
	r, err := w.ask(t, nil, token, csr(t, agentKey, alice.String()))
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, w.authority, r, w.clock.Now())
	if got := leaf.NotAfter.Sub(w.clock.Now()); got != 24*time.Hour {
		t.Errorf("lifetime %v", got)
	}
	held := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: agentKey}
	r, err = w.ask(t, held, "", csr(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := identity.FromCertificate(leafOf(t, w.authority, r, w.clock.Now())); err != nil || id != alice {
		t.Errorf("renewed as %v, %v", id, err)
	}
	if _, err = w.ask(t, held, "", csr(t, newKey(t), "spiffe://td/ns/n/sa/bob")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("renewed as somebody else: %v", err)
	}
	log := w.log.String()
	for _, want := range []string{"certificate issued", alice.String(), `proof="join token"`, `proof="client certificate"`, "certificate refused", "not_after="} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	if secret := token[strings.LastIndex(token, ".")+1:]; strings.Contains(log, secret) {
		t.Error("the log tells a token")
	}
}

func TestCallersThatAreRefused(t *testing.T) {
	w := newWorld(t)
	request := csr(t, newKey(t), alice.String())
	expect := func(what string, err error, code codes.Code, texts ...string) {
		t.Helper()
		if status.Code(err) != code {
			t.Errorf("%s: %v, want %v", what, err, code)
		}
		for _, text := range texts {
			if !strings.Contains(status.Convert(err).Message(), text) {
				t.Errorf("%s: %q lacks %q", what, err, text)
			}
		}
	}

	_, err := w.ask(t, nil, "", request)
	expect("nothing shown", err, codes.Unauthenticated, "client certificate", "join token", "lateen token create")
	_, err = w.ask(t, nil, "eyJhbGciOi.a.b", request)
	expect("a token of another kind", err, codes.Unauthenticated, "carries no credential")

	used := w.token(t)
	if _, err = w.ask(t, nil, used, request); err != nil {
		t.Fatal(err)
	}
	_, err = w.ask(t, nil, used, request)
	expect("the same request again", err, codes.OK)
	_, err = w.ask(t, nil, used, csr(t, newKey(t)))
	expect("a stolen token", err, codes.Unauthenticated, "used twice", "127.0.0.1:", "it was stolen")

	expired := w.token(t)
	w.clock.turn(11 * time.Minute)
	_, err = w.ask(t, nil, expired, request)
	expect("an expired token", err, codes.Unauthenticated, "expired at")

	bob, err := w.tokens.Issue("n", "bob", 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.ask(t, nil, bob.Text, request)
	expect("another's token", err, codes.PermissionDenied, alice.String(), bob.ID.String(), "join token")

	kept := w.token(t)
	_, err = w.ask(t, nil, kept, "garbage")
	expect("garbage", err, codes.InvalidArgument, "not PEM")
	_, err = w.ask(t, nil, kept, request)
	expect("garbage did not use up the token", err, codes.OK)

	foreign := newAuthority(t, w.clock)
	stranger, err := foreign.Certificate(alice, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.ask(t, &stranger, "", request)
	expect("another authority's certificate", err, codes.Unauthenticated, "not trusted")

	mine, err := w.authority.Certificate(alice, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.ask(t, &mine, "", request)
	expect("a good certificate", err, codes.OK)
	w.clock.turn(2 * time.Hour)
	_, err = w.ask(t, &mine, "", request)
	expect("an expired certificate", err, codes.Unauthenticated, "cannot be renewed any more", "lateen token create")
	_, err = w.ask(t, &mine, w.token(t), request)
	expect("an expired certificate and a token", err, codes.OK)
}

// A token obtains a certificate and nothing else: other services that share the
// authenticators must not take it.
func TestTokenIsForCertificatesOnly(t *testing.T) {
	tokens := ca.NewTokens(newAuthority(t, newClock()))
	token, err := tokens.Issue("n", "alice", 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token.Text))
	if _, _, err := (ca.Authenticators{tokens}).Authenticate(ctx, nil); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "nothing else") {
		t.Errorf("taken without a key: %v", err)
	}
	twice := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token.Text, "authorization", "Bearer x"))
	if _, _, err := (ca.Authenticators{tokens}).Authenticate(twice, []byte("key")); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "2 authorization headers") {
		t.Errorf("two tokens: %v", err)
	}
	id, kind, err := (ca.Authenticators{ca.MeshCertificate{}, refusing{errors.New("no")}, tokens}).Authenticate(ctx, []byte("key"))
	if id != alice || kind != "join token" || err != nil {
		t.Errorf("the last of three: %v, %q, %v", id, kind, err)
	}
}

// TestBearer: tokens of others' are judged by them, join tokens are not shown to them.
func TestBearer(t *testing.T) {
	var shown []string
	b := ca.Bearer{Name: "service account token", Judge: func(_ context.Context, token string) (identity.ID, error) {
		shown = append(shown, token)
		if token != "good" {
			return identity.ID{}, errors.New("not good")
		}
		return alice, nil
	}}
	tokens := ca.NewTokens(newAuthority(t, newClock()))
	join, err := tokens.Issue("n", "bob", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		token string
		key   []byte
		want  string
	}{
		{"good", []byte("key"), alice.String()},
		{"bad", []byte("key"), "service account token: not good"},
		{"good", nil, "for nothing else"},
		{join.Text, []byte("key"), join.ID.String()},
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+tt.token))
		id, _, err := (ca.Authenticators{tokens, b}).Authenticate(ctx, tt.key)
		got := id.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("%q: %s, want %s", tt.token, got, tt.want)
		}
	}
	if len(shown) != 2 || slices.Contains(shown, join.Text) {
		t.Errorf("shown: %q", shown)
	}
}

func FuzzCreateCertificate(f *testing.F) {
	a, err := ca.New(ca.Config{TrustDomain: "td", Dir: filepath.Join(f.TempDir(), "state")})
	if err != nil {
		f.Fatal(err)
	}
	s := ca.NewService(ca.ServiceConfig{Authority: a, Authenticators: ca.Authenticators{fixed{alice}}})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"x"}}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der, int64(0))
	f.Add([]byte{}, int64(-1))
	f.Fuzz(func(t *testing.T, der []byte, seconds int64) {
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
		r, err := s.CreateCertificate(context.Background(), &securityapi.IstioCertificateRequest{Csr: text, ValidityDuration: seconds})
		if err != nil {
			if c := status.Code(err); c != codes.InvalidArgument && c != codes.PermissionDenied {
				t.Fatalf("%v", err)
			}
			return
		}
		certs, err := identity.ParseCertificates([]byte(r.GetCertChain()[0]))
		if err != nil {
			t.Fatal(err)
		}
		if id, err := identity.FromCertificate(certs[0]); err != nil || id != alice || len(certs[0].DNSNames) != 0 {
			t.Fatalf("issued for %v, %v, %v", id, err, certs[0].DNSNames)
		}
		if k, ok := certs[0].PublicKey.(*ecdsa.PublicKey); ok && k.Curve.Params().BitSize > 384 {
			t.Fatal("issued for a curve that is not accepted")
		}
	})
}

// TestRefusalsLogged: whoever has everything refused does not fill the log, which says how much it leaves out.
func TestRefusalsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		s := ca.NewService(ca.ServiceConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		refuse := func(times int) (lines int) {
			before := strings.Count(log.String(), "certificate refused")
			for range times {
				if _, err := s.CreateCertificate(t.Context(), &securityapi.IstioCertificateRequest{Csr: "x"}); status.Code(err) != codes.InvalidArgument {
					t.Fatal(err)
				}
			}
			return strings.Count(log.String(), "certificate refused") - before
		}
		if n := refuse(50); n != 10 {
			t.Errorf("%d lines of 50 refusals", n)
		}
		<-time.After(time.Second)
		if n := refuse(5); n != 1 || !strings.Contains(log.String(), "dropped=40") {
			t.Errorf("%d lines a second later:\n%s", n, log.String())
		}
		if n := s.Counts(); n.Unread != 55 {
			t.Errorf("%+v", n)
		}
	})
}
