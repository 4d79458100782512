package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/inject"
)

// DefaultWebhooks is where the API server calls, Istio's port.
const DefaultWebhooks = ":15017"

// The times of the webhooks' server; the API server itself waits no longer than some seconds.
const (
	webhookTimeout = 10 * time.Second
	webhookIdle    = 2 * time.Minute
	webhookHeaders = 64 << 10
)

// serveWebhooks serves the API server's admission reviews over TLS until ctx ends. The certificate is the authority's
// and renews itself; whoever registers the webhook gives the API server WebhookRoots to believe.
func (c *Control) serveWebhooks(ctx context.Context) error {
	injector, err := inject.New(*c.cfg.Inject)
	if err != nil {
		return err
	}
	cert, err := c.authority.ServerCertificate(append([]string{ServerName, "localhost"}, c.cfg.Names...), nil)
	if err != nil {
		return fmt.Errorf("make the webhooks' certificate: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.cfg.Webhooks)
	if err != nil {
		return fmt.Errorf("listen for the API server: %w; name another address with --webhooks", err)
	}
	c.webhooks.Store(new(l.Addr().String()))
	mux := http.NewServeMux()
	hook := inject.NewWebhook(injector, c.log)
	var group sync.WaitGroup
	defer group.Wait()
	ctx, end := context.WithCancel(ctx)
	defer end()
	if c.cfg.InjectAnew != nil {
		group.Go(func() { c.followInjection(ctx, hook) })
	}
	mux.Handle(inject.Path, hook)
	mux.Handle(inject.Path+"/", hook)
	if c.cluster != nil {
		mux.Handle(validatePath, inject.NewReviews(c.validate))
	}
	mux.HandleFunc("GET /ready", c.serveReady) // the kubelet's
	tls := identity.BaseTLS([]string{"h2", "http/1.1"})
	tls.GetCertificate = cert.GetCertificate
	s := &http.Server{
		Handler: tellFaults(c.log, mux), TLSConfig: tls, ReadTimeout: webhookTimeout, WriteTimeout: webhookTimeout, IdleTimeout: webhookIdle,
		MaxHeaderBytes: webhookHeaders, ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug), // of whoever calls the port
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		// What is under way is answered: a review that is cut off fails somebody's `kubectl apply`, or the start of a pod.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), webhookTimeout)
		defer cancel()
		if s.Shutdown(last) != nil {
			_ = s.Close()
		}
	})
	c.log.Info("webhooks ready", "listen", l.Addr())
	err = s.ServeTLS(l, "", "")
	if !stop() {
		<-ended
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// tellFaults logs where one of our own invariants breaks under a review, which the API server only sees to end.
func tellFaults(log *slog.Logger, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if cause := recover(); cause != nil {
				log.Error("a fault of lateend itself ended a review; please report it", "path", r.URL.Path, "cause", cause, "stack", string(debug.Stack()))
				panic(http.ErrAbortHandler)
			}
		}()
		h.ServeHTTP(w, r)
	})
}

// WebhookRoots are whom the API server has to believe to call the webhooks (a registration's caBundle), PEM.
func (c *Control) WebhookRoots() []byte { return c.authority.Bundle().PEM(c.cfg.TrustDomain) }
