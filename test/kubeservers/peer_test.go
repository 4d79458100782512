package kubeservers

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/agent"
	"github.com/lateen-mesh/lateen/identity/channel"
)

// peerVariable has this program be a workload instead of a test.
const peerVariable = "LATEEN_TEST_PEER"

func TestMain(m *testing.M) {
	if text := os.Getenv(peerVariable); text != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		if err := peer(text, log); err != nil {
			log.Error("the workload ends", "cause", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// peerConfig is what a workload is told.
type peerConfig struct {
	Listen, Roots, Token string
	Control              []string
	ID                   identity.ID
	TTL                  time.Duration
}

// peer is a workload that speaks mutual TLS itself: its certificates come from a server of ours, and it answers whoever
// proves to be of the mesh.
func peer(text string, log *slog.Logger) error {
	var c peerConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	bundle, err := identity.ParseBundle(c.ID.TrustDomain, []byte(c.Roots))
	if err != nil {
		return err
	}
	holder := identity.NewHolder(bundle)
	way, err := channel.New(channel.Config{Addresses: c.Control, ServerName: "lateend", TrustDomain: c.ID.TrustDomain, Holder: holder})
	if err != nil {
		return err
	}
	defer way.Close()
	a, err := agent.New(agent.Config{
		Channel: way, ID: c.ID, Holder: holder, Logger: log, TTL: c.TTL, Token: func(context.Context) (string, error) { return c.Token, nil },
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("x-version"))
	})}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	go func() { _ = a.Run(ctx) }()
	<-a.Ready()
	_ = s.Serve(tls.NewListener(l, identity.ServerTLS(holder, identity.ServerConfig{})))
	return nil
}
