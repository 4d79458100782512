package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// The limits of a server. A request may stay as long as the slowest call that
// serving it can mean, which is details and then two tries of reviews.
const (
	headMaxBytes  = 64 << 10
	headTimeout   = 5 * time.Second
	readTimeout   = 15 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = 90 * time.Second
	drainTimeout  = 15 * time.Second
	idlePerHost   = 64
	bodyMaxBytes  = 1 << 20
	connectMax    = 3 * time.Second
	productMaxLen = 9 // digits of a product id, so that every id fits an int32
)

// Server is one running service.
type Server struct {
	cfg     Config
	log     *slog.Logger
	client  *http.Client
	handler http.Handler
}

// New builds the service that cfg names. It opens nothing.
func New(cfg Config, log *slog.Logger) (*Server, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: log.With("service", cfg.Service, "version", cfg.Version), client: &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: connectMax}).DialContext,
			MaxIdleConnsPerHost: idlePerHost,
			IdleConnTimeout:     idleTimeout,
			DisableCompression:  true,
		},
		// A backend that redirects has not answered; whoever sent us there is not our guide.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", s.serveHealth)
	switch cfg.Service {
	case productpage:
		err = s.routeProductpage(mux)
	case details:
		mux.HandleFunc("GET /details/{id}", s.serveDetails)
	case reviews:
		mux.HandleFunc("GET /reviews/{id}", s.serveReviews)
	case ratings:
		book := &ratingBook{byProduct: map[int]map[string]int{}}
		mux.HandleFunc("GET /ratings/{id}", func(w http.ResponseWriter, r *http.Request) { s.serveRatings(w, r, book) })
		mux.HandleFunc("POST /ratings/{id}", func(w http.ResponseWriter, r *http.Request) { s.changeRatings(w, r, book) })
	}
	s.handler = mux
	return s, err
}

// Run listens and serves until ctx ends, then lets what is in flight finish.
func (s *Server) Run(ctx context.Context) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %q: %w; if the port is taken, choose another with --listen", s.cfg.Listen, err)
	}
	return s.serve(ctx, ln)
}

// serve serves on ln, which it closes, until ctx ends.
func (s *Server) serve(ctx context.Context, ln net.Listener) error {
	hs := &http.Server{
		Handler: s.handler, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn), MaxHeaderBytes: headMaxBytes,
		ReadHeaderTimeout: headTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
	}
	s.log.Info("serving", "address", ln.Addr().String(), "pod", s.cfg.Pod)
	var wg sync.WaitGroup
	served := make(chan error, 1)
	wg.Go(func() { served <- hs.Serve(ln) })
	defer s.client.CloseIdleConnections()
	defer wg.Wait()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := hs.Shutdown(drain); err != nil {
		return errors.Join(fmt.Errorf("finish open requests within %v: %w", drainTimeout, err), hs.Close())
	}
	s.log.Info("stopped")
	return nil
}

// serveHealth answers that this instance serves.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	s.newVisit(r).writeJSON(w, http.StatusOK, map[string]string{"status": s.cfg.Service + " is healthy"})
}

// productID reads the path's product id, a plain decimal number. When it is
// none it answers the request itself and returns false.
func (v *visit) productID(w http.ResponseWriter, r *http.Request) (int, bool) {
	text := r.PathValue("id")
	id, err := strconv.Atoi(text)
	if err != nil || id < 0 || len(text) > productMaxLen {
		v.writeFault(w, http.StatusBadRequest, "the product id must be a number")
		return 0, false
	}
	return id, true
}

// writeJSON answers with value as JSON, and with the visit's trail.
func (v *visit) writeJSON(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		v.log.Error("encode answer", "error", err)
		http.Error(w, "internal fault", http.StatusInternalServerError)
		return
	}
	v.write(w, status, "application/json", append(body, '\n'))
}

// writeFault answers with {"error": message}.
func (v *visit) writeFault(w http.ResponseWriter, status int, message string) {
	v.writeJSON(w, status, map[string]string{"error": message})
}

// write sends one whole answer.
func (v *visit) write(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(trailHeader, v.self.encode())
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		v.log.Debug("write answer", "error", err)
	}
}
