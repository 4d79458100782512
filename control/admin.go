package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/api"
)

// serveAdmin serves the part of the API that only shows, without keys, on the TCP address Config.Admin: who may forward
// a port to this server's pod sees what is going on. Nothing can be changed by it. Whoever calls from elsewhere gets
// metrics, readiness and the version.
func (c *Control) serveAdmin(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.cfg.Admin)
	if err != nil {
		return fmt.Errorf("open the admin page: %w; name another address with --admin", err)
	}
	c.admin.Store(new(l.Addr().String()))
	s := &http.Server{Handler: c.adminMux(), ReadHeaderTimeout: apiTimeout, WriteTimeout: apiTimeout, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// adminMux answers only who calls from here, by address or as localhost: a web page whose name is made to point here
// (DNS rebinding) could read the answers.
func (c *Control) adminMux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = fmt.Fprintf(w, adminPage, version())
	})
	mux.HandleFunc("GET /proxies", c.serveProxies)
	mux.HandleFunc("GET /status", c.serveStatus)
	mux.HandleFunc("GET /objects", func(w http.ResponseWriter, r *http.Request) {
		if kind := r.URL.Query().Get("kind"); kind == "" || kind == api.KindSecret {
			refuse(w, http.StatusBadRequest, errors.New("name a kind other than Secret, such as /objects?kind=VirtualService"))
			return
		}
		c.serveObjects(w, r)
	})
	public := http.NewServeMux()
	public.HandleFunc("GET /ready", c.serveReady)
	public.HandleFunc("GET /metrics", c.serveMetrics)
	public.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, version()) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := public.Handler(r); pattern != "" {
			public.ServeHTTP(w, r)
			return
		}
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "this page is for callers from this machine; forward a port to it: kubectl port-forward -n istio-system deploy/lateend 15014", http.StatusForbidden)
			return
		}
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && !strings.EqualFold(host, "localhost") {
			http.Error(w, "call this page by address or as localhost", http.StatusMisdirectedRequest)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

const adminPage = `<!doctype html><meta charset="utf-8"><title>lateend · lateen</title><meta name="viewport" content="width=device-width">
<style>:root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif}body{max-width:46rem;margin:3rem auto;padding:0 1rem}
h1{font-weight:600;margin:0}a{margin-right:1.2rem}</style>
<h1>lateend</h1><p>%s</p>
<p><a href="/status">status</a><a href="/proxies">proxies</a><a href="/objects?kind=VirtualService">routes</a><a href="/metrics">metrics</a><a href="/ready">ready</a></p>
`

// version is that of the module as it was built.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "(unknown)"
}
