package channel_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/identity/channel"
)

// patience bounds every wait; it is reached only when a test fails.
const patience = 20 * time.Second

var alice = identity.ID{TrustDomain: "td", Namespace: "n", ServiceAccount: "alice"}

// opaque passes messages through grpc-go as they are.
type opaque struct{}

var _ encoding.CodecV2 = opaque{}

func (opaque) Name() string { return "proto" }

func (opaque) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (opaque) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// authority makes a certificate authority and the TLS configuration of a
// control plane on loopback.
func authority(t *testing.T) (*ca.Authority, *tls.Config) {
	t.Helper()
	a, err := ca.New(ca.Config{TrustDomain: "td", Dir: filepath.Join(t.TempDir(), "state")})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.ServerCertificate([]string{"lateend.example"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	return a, cert.TLS()
}

// server is a grpc-go server that can be stopped and started again.
type server struct {
	t       *testing.T
	config  *tls.Config
	address string
	stop    func()
}

func startServer(t *testing.T, config *tls.Config, address string) *server {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)), grpc.ForceServerCodecV2(opaque{}), grpc.UnknownServiceHandler(handle), grpc.MaxRecvMsgSize(8<<20))
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	s := &server{t: t, config: config, address: l.Addr().String()}
	s.stop = sync.OnceFunc(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

// handle does what the method's name says.
func handle(_ any, s grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(s)
	switch method {
	case "/test/Echo":
		return echo(s)
	case "/test/Who":
		return s.SendMsg(bytesOf(who(s.Context())))
	case "/test/Metadata":
		md, _ := metadata.FromIncomingContext(s.Context())
		return s.SendMsg(bytesOf(strings.Join(md.Get("authorization"), ",") + "|" + strings.Join(md.Get("user-agent"), ",")))
	case "/test/Deadline":
		_, ok := s.Context().Deadline()
		if !ok {
			return status.Error(codes.FailedPrecondition, "no deadline came along")
		}
		<-s.Context().Done()
		return status.FromContextError(s.Context().Err()).Err()
	case "/test/Refuse":
		return status.Error(codes.PermissionDenied, "100 % refused: é\nsecond line")
	case "/test/RefuseLate":
		if err := s.SendMsg(bytesOf("one")); err != nil {
			return err
		}
		return status.Error(codes.Aborted, "after one")
	case "/test/Silent":
		return nil
	case "/test/Twice":
		return errors.Join(s.SendMsg(bytesOf("one")), s.SendMsg(bytesOf("two")))
	case "/test/Huge":
		return s.SendMsg(bytesOf(string(make([]byte, 4<<20+1))))
	}
	return status.Errorf(codes.Unimplemented, "no method %s", method)
}

func echo(s grpc.ServerStream) error {
	for {
		var m []byte
		if err := s.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(&m); err != nil {
			return err
		}
	}
}

func bytesOf(s string) *[]byte {
	b := []byte(s)
	return &b
}

// who returns the name in the client's certificate.
func who(ctx context.Context) string {
	p, _ := peer.FromContext(ctx)
	id, err := identity.PeerID(p.AuthInfo.(credentials.TLSInfo).State)
	if err != nil {
		return err.Error()
	}
	return id.String()
}

func open(t *testing.T, a *ca.Authority, addresses ...string) (*channel.Channel, *identity.Holder) {
	t.Helper()
	h := identity.NewHolder(a.Bundle())
	c, err := channel.New(channel.Config{Addresses: addresses, ServerName: "lateend.example", TrustDomain: "td", Holder: h})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, h
}

func context20(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestInvoke(t *testing.T) {
	a, config := authority(t)
	c, _ := open(t, a, startServer(t, config, "127.0.0.1:0").address)
	big := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	for _, m := range [][]byte{[]byte("hello"), {}, big} {
		got, err := c.Invoke(context20(t), "/test/Echo", m, nil)
		if err != nil || !bytes.Equal(got, m) {
			t.Errorf("%d bytes came back as %d: %v", len(m), len(got), err)
		}
	}
	got, err := c.Invoke(t.Context(), "/test/Metadata", nil, channel.Metadata{"authorization": "Bearer x"})
	if err != nil || string(got) != "Bearer x|lateen" {
		t.Errorf("metadata came as %q, %v", got, err)
	}
}

func TestInvokeErrors(t *testing.T) {
	a, config := authority(t)
	c, _ := open(t, a, startServer(t, config, "127.0.0.1:0").address)
	tests := []struct {
		method  string
		message []byte
		code    channel.Code
		text    string
	}{
		{"/test/Refuse", nil, channel.PermissionDenied, "100 % refused: é\nsecond line"},
		{"/test/RefuseLate", nil, channel.Aborted, "after one"},
		{"/test/Nothing", nil, channel.Unimplemented, "no method /test/Nothing"},
		{"/test/Silent", nil, channel.Internal, "no answer"},
		{"/test/Twice", nil, channel.Internal, "more than one answer"},
		{"/test/Huge", nil, channel.ResourceExhausted, "4194305 bytes"},
		{"/test/Echo", make([]byte, 4<<20+1), channel.ResourceExhausted, "may be sent"},
	}
	for _, tt := range tests {
		got, err := c.Invoke(context20(t), tt.method, tt.message, nil)
		var e *channel.Error
		if got != nil || !errors.As(err, &e) || e.Code != tt.code || !strings.Contains(e.Message, tt.text) {
			t.Errorf("%s: %v, want %v with %q", tt.method, err, tt.code, tt.text)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Invoke(short, "/test/Deadline", nil, nil); channel.CodeOf(err) != channel.DeadlineExceeded {
		t.Errorf("deadline: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Invoke(gone, "/test/Echo", nil, nil); channel.CodeOf(err) != channel.Canceled || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := c.Invoke(context20(t), "/test/Echo", nil, channel.Metadata{"authorization": "secret\nline"}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a header that cannot be sent: %v", err)
	}
	if channel.CodeOf(nil) != channel.OK || channel.CodeOf(io.EOF) != channel.Unknown {
		t.Error("CodeOf of nil or a foreign error")
	}
}

func TestStream(t *testing.T) {
	a, config := authority(t)
	c, _ := open(t, a, startServer(t, config, "127.0.0.1:0").address)
	s, err := c.Stream(context20(t), "/test/Echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// Turn by turn: an answer is there before the next message is sent.
	for _, m := range []string{"one", "", strings.Repeat("x", 1<<20)} {
		if err := s.Send([]byte(m)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Recv(); err != nil || string(got) != m {
			t.Fatalf("%d bytes came back as %d: %v", len(m), len(got), err)
		}
	}
	// Both ways at once, more than the windows hold.
	const count = 200
	var sender sync.WaitGroup
	sender.Go(func() {
		for range count {
			if err := s.Send(make([]byte, 64<<10)); err != nil {
				t.Error(err)
				return
			}
		}
		s.CloseSend()
	})
	for range count {
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	sender.Wait()
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the end of the stream: %v", err)
	}
	if err := s.Send(make([]byte, 4<<20+1)); channel.CodeOf(err) != channel.ResourceExhausted {
		t.Errorf("a message that is too long: %v", err)
	}
}

func TestStreamErrors(t *testing.T) {
	a, config := authority(t)
	srv := startServer(t, config, "127.0.0.1:0")
	c, _ := open(t, a, srv.address)
	late, err := c.Stream(context20(t), "/test/RefuseLate", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if m, err := late.Recv(); err != nil || string(m) != "one" {
		t.Errorf("%q, %v", m, err)
	}
	if _, err := late.Recv(); channel.CodeOf(err) != channel.Aborted {
		t.Errorf("after the message: %v", err)
	}
	// Sending ends in io.EOF sooner or later, and never blocks.
	for err = nil; err == nil; {
		err = late.Send([]byte("x"))
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("sending on a stream that has ended: %v", err)
	}

	for name, end := range map[string]func(s *channel.Stream, cancel func()){
		"context ends":  func(_ *channel.Stream, cancel func()) { cancel() },
		"stream closed": func(s *channel.Stream, _ func()) { s.Close() },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := c.Stream(ctx, "/test/Echo", nil)
		if err != nil {
			t.Fatal(err)
		}
		received := make(chan error, 1)
		go func() {
			_, err := s.Recv()
			received <- err
		}()
		end(s, cancel)
		if err := <-received; channel.CodeOf(err) != channel.Canceled {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
		cancel()
	}

	lost, err := c.Stream(context20(t), "/test/Echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lost.Close()
	srv.stop()
	if _, err := lost.Recv(); channel.CodeOf(err) != channel.Unavailable {
		t.Errorf("server gone: %v", err)
	}
	if s, err := c.Stream(context20(t), "/test/Echo", nil); channel.CodeOf(err) != channel.Unavailable {
		t.Errorf("stream to a server that is gone: %v, %v", s, err)
	}
}

// until calls until the code is the wanted one: how long net/http takes to
// notice that a server has gone or come is its own affair.
func until(t *testing.T, c *channel.Channel, want channel.Code) {
	t.Helper()
	ctx := context20(t)
	for {
		_, err := c.Invoke(ctx, "/test/Echo", nil, nil)
		if channel.CodeOf(err) == want {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("still %v", err)
		}
	}
}

// quiet is a loopback address that no other test uses, so that a port which has
// been given up stays free.
const quiet = "127.77.0.1:0"

func TestServerRestart(t *testing.T) {
	a, config := authority(t)
	first := startServer(t, config, quiet)
	c, _ := open(t, a, first.address)
	until(t, c, channel.OK)
	first.stop()
	until(t, c, channel.Unavailable)
	startServer(t, config, first.address)
	until(t, c, channel.OK)
}

func TestAddressesInTurn(t *testing.T) {
	a, config := authority(t)
	_, otherConfig := authority(t)
	one, two := startServer(t, config, quiet), startServer(t, config, quiet)
	stranger := startServer(t, otherConfig, quiet)
	nobody := closedAddress(t)
	c, _ := open(t, a, nobody, stranger.address, one.address, two.address)
	until(t, c, channel.OK)
	one.stop()
	until(t, c, channel.OK)
	two.stop()
	until(t, c, channel.Unavailable)
	_, err := c.Invoke(context20(t), "/test/Echo", nil, nil)
	for _, want := range []string{nobody, stranger.address, one.address, two.address, "not trusted", "refused"} {
		if channel.CodeOf(err) != channel.Unavailable || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	if !errors.Is(err, identity.ErrNotTrusted) {
		t.Errorf("%v hides its cause", err)
	}
}

// closedAddress returns an address of loopback where nobody listens.
func closedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// A call made after the holder got a certificate shows it, while a stream begun
// before goes on.
func TestCertificateIsShownAsSoonAsThereIsOne(t *testing.T) {
	a, config := authority(t)
	c, h := open(t, a, startServer(t, config, "127.0.0.1:0").address)
	ask := func() string {
		t.Helper()
		got, err := c.Invoke(context20(t), "/test/Who", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	if got := ask(); got != identity.ErrNoCertificate.Error() {
		t.Errorf("at first we are %q", got)
	}
	s, err := c.Stream(context20(t), "/test/Echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cert, err := a.Certificate(alice, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Set(cert, a.Bundle()); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got != alice.String() {
		t.Errorf("then we are %q", got)
	}
	if err := s.Send([]byte("still")); err != nil {
		t.Fatal(err)
	}
	if m, err := s.Recv(); err != nil || string(m) != "still" {
		t.Errorf("the stream begun before: %q, %v", m, err)
	}
}

func TestServerIsVerified(t *testing.T) {
	a, config := authority(t)
	address := startServer(t, config, "127.0.0.1:0").address
	stranger, _ := authority(t)
	for name, tt := range map[string]struct {
		config channel.Config
		ok     bool
	}{
		"by name":          {channel.Config{ServerName: "lateend.example", Holder: identity.NewHolder(a.Bundle())}, true},
		"by address":       {channel.Config{Holder: identity.NewHolder(a.Bundle())}, true},
		"another name":     {channel.Config{ServerName: "other.example", Holder: identity.NewHolder(a.Bundle())}, false},
		"another root":     {channel.Config{ServerName: "lateend.example", Holder: identity.NewHolder(stranger.Bundle())}, false},
		"no root":          {channel.Config{ServerName: "lateend.example", Holder: identity.NewHolder(nil)}, false},
		"an IPv6 it lacks": {channel.Config{ServerName: "::1", Holder: identity.NewHolder(a.Bundle())}, false},
	} {
		tt.config.Addresses, tt.config.TrustDomain = []string{address}, "td"
		c, err := channel.New(tt.config)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Invoke(context20(t), "/test/Echo", nil, nil)
		if (err == nil) != tt.ok || !tt.ok && !errors.Is(err, identity.ErrNotTrusted) {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
	}
}

func TestClose(t *testing.T) {
	a, config := authority(t)
	c, _ := open(t, a, startServer(t, config, "127.0.0.1:0").address)
	s, err := c.Stream(context20(t), "/test/Echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c.Close()
	if _, err := s.Recv(); channel.CodeOf(err) != channel.Unavailable {
		t.Errorf("a stream in progress: %v", err)
	}
	if _, err := c.Invoke(t.Context(), "/test/Echo", nil, nil); channel.CodeOf(err) != channel.Unavailable || !strings.Contains(err.Error(), "closed") {
		t.Errorf("a call after Close: %v", err)
	}
	c.Close()
}

func TestNewRefusals(t *testing.T) {
	h := identity.NewHolder(nil)
	for name, c := range map[string]channel.Config{
		"no address":      {TrustDomain: "td", Holder: h},
		"many addresses":  {Addresses: make([]string, 17), TrustDomain: "td", Holder: h},
		"no port":         {Addresses: []string{"host"}, TrustDomain: "td", Holder: h},
		"no trust domain": {Addresses: []string{"host:1"}, Holder: h},
		"no holder":       {Addresses: []string{"host:1"}, TrustDomain: "td"},
	} {
		if _, err := channel.New(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// What answers is HTTP/2 but not gRPC: a load balancer's error page, say.
func TestNotAGRPCServer(t *testing.T) {
	a, config := authority(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusServiceUnavailable) })
	mux.HandleFunc("/forbidden", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) })
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") })
	mux.HandleFunc("/bare", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(http.StatusOK)
	})
	mux.HandleFunc("/odd", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "many")
		w.WriteHeader(http.StatusOK)
	})
	mux.HandleFunc("/abort", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		_, _ = w.Write([]byte{0, 0, 0, 0, 9, 'c', 'u', 't'})
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		_, _ = w.Write([]byte{0, 0, 0, 0, 9, 'c', 'u', 't'})
	})
	mux.HandleFunc("/zipped", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		_, _ = w.Write([]byte{1, 0, 0, 0, 0})
	})
	srv := &http.Server{Handler: mux, TLSConfig: config}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	c, _ := open(t, a, l.Addr().String())
	for path, want := range map[string]channel.Code{
		"/busy": channel.Unavailable, "/forbidden": channel.PermissionDenied, "/nowhere": channel.Unimplemented, "/page": channel.Unknown,
		"/bare": channel.Internal, "/odd": channel.Unknown, "/abort": channel.Internal, "/cut": channel.Unavailable, "/zipped": channel.Internal,
	} {
		if _, err := c.Invoke(context20(t), path, nil, nil); channel.CodeOf(err) != want {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

// A server without HTTP/2 is named as such.
func TestNotHTTP2(t *testing.T) {
	a, config := authority(t)
	config.NextProtos = nil
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := l.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
	}()
	c, _ := open(t, a, l.Addr().String())
	if _, err := c.Invoke(context20(t), "/test/Echo", nil, nil); err == nil || !strings.Contains(err.Error(), "does not offer HTTP/2") {
		t.Errorf("%v", err)
	}
	_ = l.Close()
	<-done
}
