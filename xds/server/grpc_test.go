package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/identity/channel"
	"github.com/lateen-mesh/lateen/xds/client"
)

// patience bounds every wait for something that must happen; it is reached only when a test fails.
const patience = 20 * time.Second

// listen serves s over gRPC on loopback and returns the address.
func listen(t testing.TB, s *Server, extra ...grpc.ServerOption) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(append(s.Options(), extra...)...)
	s.Register(g)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := g.Serve(s.Listener(listener)); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		s.Drain()
		g.Stop()
		serving.Wait()
	})
	return listener.Addr().String()
}

// connect returns Envoy's client of the discovery service.
func connect(t testing.TB, address string, options ...grpc.DialOption) discovery.AggregatedDiscoveryServiceClient {
	t.Helper()
	if len(options) == 0 {
		options = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	connection, err := grpc.NewClient(address, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := connection.Close(); err != nil {
			t.Error(err)
		}
	})
	return discovery.NewAggregatedDiscoveryServiceClient(connection)
}

func impatient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

var me = &core.Node{Id: "me"}

func TestGeneratedDeltaClient(t *testing.T) {
	p := newPicture("CDS a=1", "CDS b=1")
	s := New(Config{Source: p})
	stream, err := connect(t, listen(t, s)).DeltaAggregatedResources(impatient(t))
	if err != nil {
		t.Fatal(err)
	}
	exchange := func(r *discovery.DeltaDiscoveryRequest, want string) {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if describe(got) != want {
			t.Errorf("got %q, want %q", describe(got), want)
		}
		if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: got.GetTypeUrl(), ResponseNonce: got.GetNonce()}); err != nil {
			t.Fatal(err)
		}
	}
	exchange(&discovery.DeltaDiscoveryRequest{Node: me, TypeUrl: typeCluster}, "CDS a=1 b=1")
	exchange(&discovery.DeltaDiscoveryRequest{TypeUrl: typeRoute, ResourceNamesSubscribe: []string{"r"}}, "RDS -r")
	next, changed := p.with("CDS a=2", "CDS b=")
	s.Push(next, listed(changed...))
	exchange(&discovery.DeltaDiscoveryRequest{TypeUrl: typeCluster}, "CDS a=2 -b")
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
	if status := s.Clients()[0]; status.Client.Peer == "" || status.Until.IsZero() || status.Cause != "" {
		t.Errorf("status %+v", status)
	}
}

func TestGeneratedSotwClient(t *testing.T) {
	p := newPicture("LDS a=1", "LDS b=1")
	s := New(Config{Source: p})
	stream, err := connect(t, listen(t, s)).StreamAggregatedResources(impatient(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discovery.DiscoveryRequest{Node: me, TypeUrl: typeListener, ResourceNames: []string{"a", "b"}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]string{{"a=1", "b=1"}, {"a=1", "b=2"}} {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, resource := range r.GetResources() {
			got = append(got, string(resource.GetValue()))
			if resource.GetTypeUrl() != typeListener {
				t.Errorf("resource of type %q", resource.GetTypeUrl())
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		if err := stream.Send(&discovery.DiscoveryRequest{
			TypeUrl: typeListener, ResourceNames: []string{"a", "b"}, ResponseNonce: r.GetNonce(), VersionInfo: r.GetVersionInfo(),
		}); err != nil {
			t.Fatal(err)
		}
		next, changed := p.with("LDS b=2")
		s.Push(next, listed(changed...))
	}
}

// TestUnreadStreamEnds covers gRPC's part of the write timeout: the method returns while a message waits for flow
// control, the client notices though it does not read, and nothing of the stream stays behind.
func TestUnreadStreamEnds(t *testing.T) {
	p := newPicture("A a=1")
	large := &fat{picture: p, body: make([]byte, 1<<20)}
	ended := make(chan struct{}, 1)
	s := New(Config{Source: large, WriteTimeout: 100 * time.Millisecond, ResponseMaxBytes: 1, Logger: slog.New(notifier{ended})})
	stream, err := connect(t, listen(t, s)).DeltaAggregatedResources(impatient(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{
		Node: me, TypeUrl: typeA, ResourceNamesSubscribe: []string{"a", "b", "c", "d", "e", "f"},
	}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the stream is still open")
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	s.Drain() // returns when the last goroutine of the stream has ended
	if cause := s.Clients()[0].Cause; !strings.Contains(cause, "took no response") {
		t.Errorf("cause %q", cause)
	}
	s.connections.mu.Lock()
	defer s.connections.mu.Unlock()
	if n := len(s.connections.open); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// notifier is a log that tells when a stream ends.
type notifier struct{ ended chan struct{} }

func (n notifier) Enabled(context.Context, slog.Level) bool { return true }
func (n notifier) WithAttrs([]slog.Attr) slog.Handler       { return n }
func (n notifier) WithGroup(string) slog.Handler            { return n }
func (n notifier) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "discovery stream ended" {
		n.ended <- struct{}{}
	}
	return nil
}

// fat is a source of large resources under any name.
type fat struct {
	*picture
	body []byte
}

func (f *fat) Resource(k Key) (Resource, bool) {
	return Resource{Name: k.Name, Version: "1", Body: f.body}, true
}

// TestAgedConnectionIsLeft covers the way of a client to another replica: gRPC asks it to leave the connection, the
// stream ends after that, and the next one takes another connection.
func TestAgedConnectionIsLeft(t *testing.T) {
	s := New(Config{Source: newPicture("A a=1"), AgeMax: 300 * time.Millisecond})
	service := connect(t, listen(t, s))
	ctx := impatient(t)
	ports := map[string]bool{}
	for len(ports) < 2 {
		stream, err := service.DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		err = stream.Send(&discovery.DeltaDiscoveryRequest{Node: me, TypeUrl: typeA, ResourceNamesSubscribe: []string{"a"}})
		for err == nil {
			_, err = stream.Recv()
		}
		if ctx.Err() != nil {
			t.Fatalf("the stream ended with %v", err)
		}
		if from, ok := peer.FromContext(stream.Context()); ok && from.LocalAddr != nil {
			ports[from.LocalAddr.String()] = true
		}
	}
}

// TestCertifiedIdentity covers who counts as proven by a certificate that the handshake verified.
func TestCertifiedIdentity(t *testing.T) {
	authority, pool := selfSigned(t)
	s := New(Config{Source: newPicture("A a=1")})
	address := listen(t, s, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{authority.leaf(t)},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    pool,
	})))
	tests := []struct {
		name         string
		certificates []tls.Certificate
		want         string
	}{
		{"one name", []tls.Certificate{authority.leaf(t, "spiffe://td/ns/a/sa/b")}, "spiffe://td/ns/a/sa/b"},
		{"two names", []tls.Certificate{authority.leaf(t, "spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/c")}, ""},
		{"no name", []tls.Certificate{authority.leaf(t)}, ""},
		{"no certificate", nil, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			service := connect(t, address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
				RootCAs: pool, ServerName: "localhost", Certificates: test.certificates,
			})))
			stream, err := service.DeltaAggregatedResources(impatient(t))
			if err != nil {
				t.Fatal(err)
			}
			node := &core.Node{Id: test.name}
			if err := stream.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: typeA, ResourceNamesSubscribe: []string{"a"}}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			for _, c := range s.Clients() {
				if c.Client.Node.ID == test.name && c.Client.Identity != test.want {
					t.Errorf("identity %q, want %q", c.Client.Identity, test.want)
				}
			}
		})
	}
}

// issuer is a certificate authority.
type issuer struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func selfSigned(t *testing.T) (*issuer, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return &issuer{certificate, key}, pool
}

// leaf issues a certificate for localhost and the URI names.
func (i *issuer) leaf(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		uri, err := url.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, uri)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.certificate, key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// channelDialer opens the streams of our client on the channel that proxies use.
type channelDialer struct{ *channel.Channel }

func (d channelDialer) OpenStream(ctx context.Context, method string) (client.Stream, error) {
	stream, err := d.Stream(ctx, method, nil)
	if err != nil {
		return nil, err
	}
	return stream, nil
}

// TestClientOverChannel runs the way of the product: our client over the proxies' channel, and the authority's
// certificates, with callers proven by its authenticators.
func TestClientOverChannel(t *testing.T) {
	authority, err := ca.New(ca.Config{TrustDomain: "td", Dir: filepath.Join(t.TempDir(), "state")})
	if err != nil {
		t.Fatal(err)
	}
	serving, err := authority.ServerCertificate([]string{"lateend.example"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	authenticators := ca.Authenticators{ca.MeshCertificate{Authority: authority}}
	p := newPicture("A a=1")
	s := New(Config{Source: p, Identify: func(ctx context.Context) (string, error) {
		id, _, err := authenticators.Authenticate(ctx, nil)
		return id.String(), err
	}})
	address := listen(t, s, grpc.Creds(credentials.NewTLS(serving.TLS())))

	holds := identity.NewHolder(authority.Bundle())
	certificate, err := authority.Certificate(identity.ID{TrustDomain: "td", Namespace: "n", ServiceAccount: "alice"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := holds.Set(certificate, authority.Bundle()); err != nil {
		t.Fatal(err)
	}
	ch, err := channel.New(channel.Config{Addresses: []string{address}, ServerName: "lateend.example", TrustDomain: "td", Holder: holds})
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()

	h := &holder{bodies: map[string]string{}, changed: make(chan struct{}, 1)}
	c := client.New(client.Config{Dialer: channelDialer{ch}, Handler: h, Node: client.Node{ID: "me"}})
	subscribe(t, c, "A", "a", "x")
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	await := func(connected bool, want map[string]string) {
		t.Helper()
		late := time.After(patience)
		for {
			bodies, ok := h.state()
			if ok == connected && cmp.Equal(bodies, want) {
				return
			}
			select {
			case <-h.changed:
			case <-late:
				t.Fatalf("connected %v with %v, want %v", ok, bodies, want)
			}
		}
	}
	await(true, map[string]string{"A a": "a=1"})
	if got := s.Clients()[0].Client.Identity; got != "spiffe://td/ns/n/sa/alice" {
		t.Errorf("identity %q", got)
	}
	next, changed := p.with("A a=2", "A x=1")
	s.Push(next, listed(changed...))
	await(true, map[string]string{"A a": "a=2", "A x": "x=1"})
	cancel()
	running.Wait()
	await(false, map[string]string{"A a": "a=2", "A x": "x=1"})
}

// TestCallsOfAConnection: the server tells its clients how much they may have open on a connection.
func TestCallsOfAConnection(t *testing.T) {
	address := listen(t, New(Config{}))
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	f := http2.NewFramer(c, c)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	frame, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	settings, ok := frame.(*http2.SettingsFrame)
	if !ok {
		t.Fatalf("%v", frame)
	}
	if most, ok := settings.Value(http2.SettingMaxConcurrentStreams); !ok || most != callsMax {
		t.Errorf("%d (%v), want %d", most, ok, callsMax)
	}
}
