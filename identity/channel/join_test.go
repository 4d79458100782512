package channel_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/identity/agent"
	"github.com/lateen-mesh/lateen/identity/ca"
)

// TestAgentJoinsAndRenews lets an agent join and renew for some days over a
// channel to a grpc-go server: but for the clock and the network, nothing is
// faked here. Each renewal shows the certificate that the one before brought.
func TestAgentJoinsAndRenews(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		a, err := ca.New(ca.Config{TrustDomain: "td", Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		tokens := ca.NewTokens(a)
		serving, err := a.ServerCertificate([]string{"lateend.example"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		log := &bytes.Buffer{}
		server := grpc.NewServer(grpc.Creds(credentials.NewTLS(serving.TLS())))
		securityapi.RegisterIstioCertificateServiceServer(server, ca.NewService(ca.ServiceConfig{
			Authority: a, Authenticators: ca.Authenticators{ca.MeshCertificate{Authority: a}, tokens},
			Logger: slog.New(slog.NewTextHandler(log, nil)),
		}))
		listener, served := bufconn.Listen(1<<16), make(chan error, 1)
		go func() { served <- server.Serve(listener) }()

		token, err := tokens.Issue("n", "alice", 0)
		if err != nil {
			t.Fatal(err)
		}
		c, holder := open(t, a, "lateend:1")
		c.SetConnect(func(ctx context.Context, _, _ string) (net.Conn, error) { return listener.DialContext(ctx) })
		worker, err := agent.New(agent.Config{
			Channel: c, ID: alice, Holder: holder,
			Token: func(context.Context) (string, error) { return token.Text, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- worker.Run(ctx) }()
		<-worker.Ready()
		started := time.Now()
		for range 5 {
			<-holder.Current().Replaced()
		}
		if took := time.Since(started); took < 58*time.Hour || took > 62*time.Hour {
			t.Errorf("five renewals took %v", took)
		}
		if id := holder.Current().ID; id != alice || worker.Err() != nil {
			t.Errorf("we are %v, %v", id, worker.Err())
		}

		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		c.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		text := log.String()
		if strings.Count(text, `proof="join token"`) != 1 || strings.Count(text, `proof="client certificate"`) != 5 || strings.Contains(text, "refused") {
			t.Errorf("the control plane's log:\n%s", text)
		}
		if holder.Current().Bundle.Version() != a.Bundle().Version() {
			t.Error("the bundle changed on the way")
		}
	})
}
