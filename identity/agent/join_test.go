package agent_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/agent"
	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/identity/channel"
)

// TestJoinOverTheWire joins and renews over a real connection to a grpc-go
// server: nothing of the control plane's is faked here.
func TestJoinOverTheWire(t *testing.T) {
	a, err := ca.New(ca.Config{TrustDomain: "td", Dir: filepath.Join(t.TempDir(), "state")})
	if err != nil {
		t.Fatal(err)
	}
	tokens := ca.NewTokens(a)
	serving, err := a.ServerCertificate([]string{"lateend.example"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(serving.TLS())))
	securityapi.RegisterIstioCertificateServiceServer(server, ca.NewService(ca.ServiceConfig{
		Authority: a, Authenticators: ca.Authenticators{ca.MeshCertificate{Authority: a}, tokens},
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()

	token, err := tokens.Issue("n", "alice", 0)
	if err != nil {
		t.Fatal(err)
	}
	pinned, err := identity.ParseBundle("td", a.Bundle().PEM("td"))
	if err != nil {
		t.Fatal(err)
	}
	holder := identity.NewHolder(pinned)
	c, err := channel.New(channel.Config{Addresses: []string{l.Addr().String()}, ServerName: "lateend.example", TrustDomain: "td", Holder: holder})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	worker, err := agent.New(agent.Config{
		Channel: c, ID: alice, Holder: holder, TTL: 2 * time.Second,
		Token: func(context.Context) (string, error) { return token.Text, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- worker.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	expired := time.After(20 * time.Second)
	select {
	case <-worker.Ready():
	case <-expired:
		t.Fatalf("not ready: %v\n%s", worker.Err(), log)
	}
	select {
	case <-holder.Current().Replaced():
	case <-expired:
		t.Fatalf("not renewed: %v\n%s", worker.Err(), log)
	}
	if text := log.String(); !strings.Contains(text, `proof="join token"`) || !strings.Contains(text, `proof="client certificate"`) || strings.Contains(text, "refused") {
		t.Errorf("the control plane's log:\n%s", text)
	}
}
