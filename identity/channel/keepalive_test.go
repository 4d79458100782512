package channel

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
)

// wire is a connection that can go dead without being closed.
type wire struct {
	net.Conn
	dead chan struct{}
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	select {
	case <-w.dead:
		// What was under way is lost; nothing comes any more.
		for err == nil {
			_, err = w.Conn.Read(p)
		}
		return 0, err
	default:
		return n, err
	}
}

func (w *wire) Write(p []byte) (int, error) {
	select {
	case <-w.dead:
		return len(p), nil
	default:
		return w.Conn.Write(p)
	}
}

// TestKeepalive holds a silent stream to a grpc-go server for an hour, as an
// xDS stream is in a quiet mesh, then lets the wire go dead.
func TestKeepalive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		a, err := ca.New(ca.Config{TrustDomain: "td", Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		cert, err := a.ServerCertificate([]string{"lateend.example"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer(grpc.Creds(credentials.NewTLS(cert.TLS())),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 20 * time.Second, PermitWithoutStream: true}),
			grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
				<-s.Context().Done()
				return nil
			}))
		// A listener in memory, so that the server can live in the bubble.
		listener, served := bufconn.Listen(1<<16), make(chan error, 1)
		go func() { served <- server.Serve(listener) }()

		c, err := New(Config{Addresses: []string{"lateend:1"}, ServerName: "lateend.example", TrustDomain: "td", Holder: identity.NewHolder(a.Bundle())})
		if err != nil {
			t.Fatal(err)
		}
		dead := make(chan struct{})
		c.connect = func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := listener.DialContext(ctx)
			return &wire{Conn: conn, dead: dead}, err
		}
		s, err := c.Stream(t.Context(), "/test/Silent", nil)
		if err != nil {
			t.Fatal(err)
		}
		received := make(chan error, 1)
		go func() {
			_, err := s.Recv()
			received <- err
		}()
		select {
		case err := <-received:
			t.Fatalf("the silent stream ended: %v", err)
		case <-time.After(time.Hour):
		}
		close(dead)
		cut := time.Now()
		if err := <-received; CodeOf(err) != Unavailable {
			t.Errorf("a dead wire ends the stream with %v", err)
		}
		if took := time.Since(cut); took > pingAfter+pingTimeout {
			t.Errorf("a dead wire was noticed after %v", took)
		}
		s.Close()
		c.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
