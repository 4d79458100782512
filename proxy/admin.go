package proxy

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/telemetry"
	"github.com/lateen-mesh/lateen/telemetry/accesslog"
	"github.com/lateen-mesh/lateen/telemetry/export"
	"github.com/lateen-mesh/lateen/telemetry/scrape"
	"github.com/lateen-mesh/lateen/xds/client"
)

// Status is what the proxy tells of itself.
type Status struct {
	Name      string    `json:"name"`
	Namespace string    `json:"namespace"`
	Role      string    `json:"role"`
	Version   string    `json:"version"` // of this program
	Identity  string    `json:"identity"`
	Ready     bool      `json:"ready"`
	ReadyMS   float64   `json:"ready_ms"` // from start to ready
	Connected bool      `json:"connected"`
	Draining  bool      `json:"draining"`
	Expires   time.Time `json:"certificate_expires"`
	Resources int       `json:"resources"`
	Updated   time.Time `json:"updated"` // when the newest orders came
	Refused   string    `json:"refused,omitempty"`
	// Accelerator is on, off, or why it is unavailable.
	Accelerator string  `json:"accelerator"`
	RSSMiB      float64 `json:"rss_mib"`
	PID         int     `json:"pid"`
	// Ports are those of a gateway.
	Ports []PortStatus `json:"ports,omitempty"`
}

// Status returns the present state.
func (p *Proxy) Status() Status {
	s := Status{
		Name: p.cfg.Name, Namespace: p.cfg.Namespace, Role: p.cfg.Role, Version: version(), Identity: p.self.identity, Connected: p.connected.Load(),
		Draining: p.draining.Load(), RSSMiB: rssMiB(), PID: os.Getpid(), Accelerator: cmp.Or(p.cfg.Accelerator, AcceleratorOff),
		Ports: p.gateways.status(),
	}
	if at := p.readyAt.Load(); at > 0 {
		s.Ready, s.ReadyMS = true, float64(at)/float64(time.Millisecond)
	}
	if c := p.holder.Current(); c.Certificate != nil {
		s.Expires = c.Certificate.Leaf.NotAfter
	}
	refused := client.Refused{}
	for _, e := range p.table.Dump() {
		s.Resources++
		if e.Updated.After(s.Updated) {
			s.Updated = e.Updated
		}
		if e.Refused != nil {
			refused[e.Kind.String()+" "+e.Name] = e.Refused
		}
	}
	s.Refused = refused.Error()
	return s
}

// rssMiB is the process's resident memory.
func rssMiB() float64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, rss float64
	if _, err := fmt.Sscan(string(text), &size, &rss); err != nil {
		return 0
	}
	return rss * float64(os.Getpagesize()) / (1 << 20)
}

// openAdmin opens the admin page (loopback and Unix socket), the metrics and the health ports.
func (p *Proxy) openAdmin(run func(string, func(context.Context) error)) error {
	own := http.NewServeMux()
	own.Handle("GET /stats/prometheus", fewReaders(p.metricsHandler(true)))
	health := http.NewServeMux()
	health.HandleFunc("GET /healthz/ready", p.serveReady)
	var listeners []net.Listener
	fail := func(err error) error {
		for _, l := range listeners {
			_ = l.Close()
		}
		return err
	}
	serve := func(l net.Listener, h http.Handler) {
		listeners = append(listeners, l)
		run("admin", func(ctx context.Context) error { return p.serveHTTP(ctx, l, h) })
	}
	for _, a := range []struct {
		addr netip.AddrPort
		h    http.Handler
	}{
		{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), PortAdmin), p.adminTCP()},
		{netip.AddrPortFrom(netip.IPv6Unspecified(), PortMetrics), p.statusMux()},
		{netip.AddrPortFrom(netip.IPv6Unspecified(), PortHealth), health},
		{netip.AddrPortFrom(netip.IPv6Unspecified(), PortScrape), own},
	} {
		l, err := net.Listen("tcp", a.addr.String())
		if err != nil {
			return fail(listenError(a.addr, err))
		}
		serve(l, a.h)
	}
	if path := p.cfg.AdminSocket; path != "" {
		_ = os.Remove(path)
		l, err := net.Listen("unix", path)
		if err != nil {
			return fail(fmt.Errorf("open the admin socket: %w", err))
		}
		if err := os.Chmod(path, 0o600); err != nil {
			return fail(fmt.Errorf("protect the admin socket: %w", err))
		}
		serve(l, p.adminSocket())
	}
	if fd, ok := p.cfg.Inherited["admin"]; ok {
		f := os.NewFile(uintptr(fd), "admin")
		l, err := net.FileListener(f)
		_ = f.Close()
		if err != nil {
			return fail(fmt.Errorf("take the admin socket that was handed in: %w", err))
		}
		if l.Addr().Network() == "unix" {
			serve(l, p.adminSocket())
		} else {
			serve(l, p.adminTCP())
		}
	}
	return nil
}

// statusMux is for PortMetrics, which Kubernetes and Prometheus reach from outside. What ends or empties the proxy is
// for the processes beside it only.
func (p *Proxy) statusMux() *http.ServeMux {
	mux := http.NewServeMux()
	metrics := p.metricsHandler(!p.app.Scraped())
	if p.app.Scraped() {
		metrics = p.app.Metrics(metrics, func(err error) { p.logs.loops.Warn("the application's metrics are left out", "cause", err) })
	}
	metrics = fewReaders(metrics)
	mux.Handle("GET /stats/prometheus", metrics)
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz/ready", p.serveReady)
	mux.Handle("GET /app-health/", p.app)
	mux.Handle("GET /app-lifecycle/", p.app)
	mux.Handle("POST /drain", beside(func(http.ResponseWriter, *http.Request) { p.announce(drainQuiet) }))
	mux.Handle("POST /quitquitquit", beside(func(http.ResponseWriter, *http.Request) {
		select {
		case p.quit <- struct{}{}:
		default: // it has been asked for
		}
	}))
	return mux
}

// beside serves who calls from the same network namespace.
func beside(serve http.HandlerFunc) http.Handler {
	return http.NewCrossOriginProtection().Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "only processes beside the proxy may ask for that: call 127.0.0.1", http.StatusForbidden)
			return
		}
		serve(w, r)
	}))
}

// metricsHandler serves our metrics; process tells whether with those of the program, which an application's own would
// collide with.
func (p *Proxy) metricsHandler(process bool) http.Handler {
	reg := prometheus.NewRegistry()
	if process {
		reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	reg.MustRegister(
		scrape.New(scrape.Config{Registry: p.metrics, Component: "proxy", Tag: version(), Counters: []scrape.Counter{
			{Name: accesslog.MetricDropped, Help: "Access log lines that found no room.", Read: p.logs.dropped},
			{Name: export.MetricDropped, Help: "Spans that found no room.", Read: p.spans.dropped},
		}}),
	)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return ""
}

func (p *Proxy) serveReady(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-p.ready:
		if !p.draining.Load() {
			_, _ = io.WriteString(w, "ready\n")
			return
		}
		http.Error(w, "draining", http.StatusServiceUnavailable)
	default:
		http.Error(w, "not ready: waiting for a certificate and for orders from "+strings.Join(p.cfg.Control, ", "), http.StatusServiceUnavailable)
	}
}

// adminTCP is the admin page for a TCP port, which any user of the machine, and any web page that one of them looks at,
// can reach. It answers only who calls the machine by address or as localhost, because a page of a name that is made to
// point here (DNS rebinding) can read the answers; and changes nothing for the pages of other origins. Profiles, which
// slow the proxy down and show what is in it, are on the Unix socket only.
func (p *Proxy) adminTCP() http.Handler {
	mux := p.adminMux(false)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLocal(r.Host) {
			http.Error(w, fmt.Sprintf("host %q is not served: use localhost, an IP address or the Unix socket", r.Host), http.StatusMisdirectedRequest)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// isLocal reports whether a Host field names this machine in a way that no name server has a say in.
func isLocal(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	} else if strings.HasPrefix(host, "[") {
		host = strings.TrimSuffix(host[1:], "]")
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// adminSocket is the admin page for the Unix socket, which only its owner can open.
func (p *Proxy) adminSocket() http.Handler {
	mux := p.adminMux(true)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// adminMux has what both have. What changes something is reached by POST only.
func (p *Proxy) adminMux(profiles bool) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { p.servePage(w, profiles) })
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, p.Status()) })
	mux.HandleFunc("GET /config", p.serveConfig)
	mux.HandleFunc("GET /edges", p.serveEdges)
	mux.HandleFunc("GET /ready", p.serveReady)
	mux.Handle("GET /stats/prometheus", p.metricsHandler(true))
	mux.Handle("POST /reopen_logs", http.NewCrossOriginProtection().Handler(http.HandlerFunc(p.serveReopen)))
	return mux
}

// serveReopen is Envoy's POST /reopen_logs.
func (p *Proxy) serveReopen(w http.ResponseWriter, _ *http.Request) {
	p.ReopenLogs()
	_, _ = io.WriteString(w, "OK\n")
}

// ReopenLogs has the files of access logs opened anew, after a log rotation has moved them away. It does not wait for
// that. Any goroutine may call it.
func (p *Proxy) ReopenLogs() { p.logs.reopen() }

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v)
}

// ConfigEntry is one resource as the admin page shows it.
type ConfigEntry struct {
	Kind    string        `json:"kind"`
	Name    string        `json:"name"`
	State   string        `json:"state"`
	Updated time.Time     `json:"updated"`
	Text    string        `json:"text,omitempty"`
	Plan    plan.Resource `json:"plan,omitempty"`
}

// serveConfig dumps what is in force: ?kind=listener|route|cluster|endpoints|secret|name, ?text for people.
func (p *Proxy) serveConfig(w http.ResponseWriter, r *http.Request) {
	kind := r.URL.Query().Get("kind")
	out := []ConfigEntry{}
	for _, e := range p.table.Dump() {
		if kind != "" && e.Kind.String() != kind {
			continue
		}
		c := ConfigEntry{Kind: e.Kind.String(), Name: e.Name, State: e.State.String(), Updated: e.Updated}
		if e.Resource != nil {
			c.Text, c.Plan = e.Resource.String(), e.Resource
			if s, ok := e.Resource.(*plan.Secret); ok {
				c.Plan = &plan.Secret{Name: s.Name, Chain: s.Chain, Roots: s.Roots} // never the key
			}
		}
		out = append(out, c)
	}
	if r.URL.Query().Has("text") {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		for _, c := range out {
			if c.Text == "" {
				c.Text = fmt.Sprintf("%s %s: %s\n", c.Kind, c.Name, c.State)
			}
			_, _ = io.WriteString(w, c.Text)
		}
		return
	}
	writeJSON(w, out)
}

// Edge is one arrow of the picture, as this proxy counts it.
type Edge struct {
	Reporter    string         `json:"reporter"`
	Source      telemetry.Peer `json:"source"`
	Destination telemetry.Peer `json:"destination"`
	Service     string         `json:"service"`
	Requests    uint64         `json:"requests"`
	Failures    uint64         `json:"failures"`
	MutualTLS   uint64         `json:"mtls"`
	Plain       uint64         `json:"plain"`
	Connections uint64         `json:"connections"`
	P50         float64        `json:"p50_ms"`
	P99         float64        `json:"p99_ms"`
}

func (p *Proxy) serveEdges(w http.ResponseWriter, _ *http.Request) {
	out := []Edge{}
	for _, e := range p.metrics.Snapshot().Edges() {
		out = append(out, Edge{
			Reporter: e.Reporter.String(), Source: e.Source, Destination: e.Destination, Service: e.Service.Name,
			Requests: e.Requests, Failures: e.Failures, MutualTLS: e.MutualTLS, Plain: e.Plain, Connections: e.Opened,
			P50: ms(e.Latency.Quantile(0.5)), P99: ms(e.Latency.Quantile(0.99)),
		})
	}
	writeJSON(w, out)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

var page = template.Must(template.New("page").Parse(`<!doctype html><meta charset="utf-8"><title>{{.Name}} · lateen</title>
<meta name="viewport" content="width=device-width"><style>
:root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif}body{max-width:46rem;margin:3rem auto;padding:0 1rem}
h1{font-weight:600;margin:0}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.5rem}dt{opacity:.6}dd{margin:0}
a{margin-right:1.2rem}.ok{color:#1a8f5a}.no{color:#c0392b}</style>
<h1>{{.Name}}.{{.Namespace}}</h1><p class="{{if .Ready}}ok">ready after {{printf "%.0f" .ReadyMS}} ms{{else}}no">not ready{{end}}</p>
<dl><dt>role<dd>{{.Role}}<dt>identity<dd>{{.Identity}}<dt>certificate until<dd>{{.Expires.Format "2006-01-02 15:04:05 MST"}}
<dt>control plane<dd class="{{if .Connected}}ok">connected{{else}}no">away; the last orders stay in force{{end}}
<dt>orders<dd>{{.Resources}} resources, newest of {{.Updated.Format "15:04:05"}}{{if .Refused}}<dt>refused<dd class="no">{{.Refused}}{{end}}
{{range .Ports}}<dt>port<dd class="{{if .Open}}ok">{{.Bind}} open{{else}}no">{{.Bind}} not open: {{.Cause}}{{end}}
{{end}}<dt>accelerator<dd>{{.Accelerator}}<dt>memory<dd>{{printf "%.1f" .RSSMiB}} MiB resident</dl>
<p><a href="/config?text">orders as text</a><a href="/config">as JSON</a><a href="/edges">traffic</a><a href="/stats/prometheus">metrics</a><a href="/status">status</a>{{if .Profiles}}<a href="/debug/pprof/">profiles</a>{{end}}</p>`))

func (p *Proxy) servePage(w http.ResponseWriter, profiles bool) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := page.Execute(w, struct {
		Status
		Profiles bool
	}{p.Status(), profiles}); err != nil {
		p.logs.loops.Warn("admin page", "cause", err)
	}
}
