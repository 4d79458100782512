// Package proxy is the data plane: one program for sidecars and gateways that
// obeys the plan which the control plane sends.
//
// In: connections, captured or accepted, and resources of a plan. Out: bytes to
// where the plan says, and what happened in metrics, logs and spans. Everything
// that is done for each byte happens on event loops (worker), each of which owns
// its connections; everything else (control plane, DNS, admin page, exporters)
// happens on goroutines that Run owns. The package must not know clusters, YAML
// or Envoy's types.
package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/agent"
	"github.com/lateen-mesh/lateen/identity/channel"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/probe"
	"github.com/lateen-mesh/lateen/proxy/table"
	"github.com/lateen-mesh/lateen/telemetry/metrics"
	"github.com/lateen-mesh/lateen/xds/client"
)

// The ports of a sidecar, Istio's.
const (
	PortAdmin    = 15000 // admin page, loopback only
	PortOutbound = 15001
	PortInbound  = 15006
	PortMetrics  = 15020
	PortTunnel   = plan.PortHBONE
	PortHealth   = 15021
	PortDNS      = 15053
	PortScrape   = 15090 // the proxy's own metrics
)

// Mark is the SO_MARK of the proxy's own connections, which the capture rules let pass (Istio's 1337).
const Mark = 0x539

// The roles of a proxy.
const (
	RoleSidecar = "sidecar"
	RoleGateway = "gateway"
)

// Config is what a proxy must be told at its start; everything else is in the plan.
type Config struct {
	Role string // RoleSidecar or RoleGateway
	// Name is the workload's name in its namespace; Labels and the rest describe it to the control plane.
	Name           string
	Namespace      string
	ServiceAccount string
	Labels         map[string]string
	Addresses      []netip.Addr
	Workload       plan.Workload
	Locality       string
	// Ports are the ports that the workload serves; the control plane registers the workload with them.
	Ports map[string]uint16

	TrustDomain string
	// Control lists the control plane's addresses; ControlName is what its certificate must say.
	Control     []string
	ControlName string
	Roots       []byte // PEM: whom to believe at the start
	// RootsFile holds roots that others keep up to date (a ConfigMap of Kubernetes): they are trusted beside those that come
	// with certificates. Empty: there are none.
	RootsFile string
	// Authority lists the addresses of another certificate authority than the control plane, which speaks Istio's
	// certificate service, such as cert-manager's istio-csr; AuthorityName is what its certificate must say. One of Roots or
	// RootsFile must vouch for it. It is shown the token at each renewal. Empty: the control plane issues certificates.
	Authority     []string
	AuthorityName string
	Token         string // one-time join token
	// TokenFile holds a token instead that others renew (a bound token of Kubernetes): it is read each time.
	TokenFile string
	// App is what is done for the application on PortMetrics: its probes and its metrics. Its Address and Mark are ours.
	App probe.Config

	// Inherited are listening sockets that were opened by somebody else: port or "admin" to file descriptor.
	Inherited map[string]int
	// AdminSocket is the path of a Unix socket for the admin page, besides PortAdmin; empty: none.
	AdminSocket string
	// NamesFile remembers the names that were used, for the next start; empty: none.
	NamesFile string
	// Resolvers are the DNS servers behind ours; empty: those of /etc/resolv.conf.
	Resolvers []string
	// ClusterDNS: these know the names of Kubernetes' Services, too, and are asked for them while the control plane is away.
	ClusterDNS bool
	// MarkSockets sets Mark on the proxy's own connections (needs CAP_NET_ADMIN).
	MarkSockets bool
	// Accelerator is the state of the node's accelerator (redirect/accelerate), which others attach: AcceleratorOn, or
	// why there is none, to be shown; empty: AcceleratorOff.
	Accelerator string
	// Loops is the number of event loops; 0: one, or one for every two CPUs beyond two.
	Loops int
	// StdlibTLS leaves TLS 1.3 to crypto/tls after the handshake too, should our own record layer ever be in doubt.
	StdlibTLS bool
	// CertificateTTL is the lifetime of the workload's certificates, which are renewed at half of it (Istio's SECRET_TTL);
	// 0: 24 h, 4 s at least.
	CertificateTTL time.Duration
	// DrainTime bounds how long open connections may go on after the end was asked for; 0: 5 s.
	DrainTime time.Duration
	// DrainLeast, of DrainTime, is how long connections are taken after that in any case, for clients that do not know yet;
	// 0: no longer than others are open. It is not waited for where the end was announced before (POST /drain).
	DrainLeast time.Duration

	Mark   uint32       `json:"-"`
	Logger *slog.Logger `json:"-"`
}

// The states of the accelerator that are not a reason why it is unavailable.
const (
	AcceleratorOn  = "on"
	AcceleratorOff = "off"
)

const drainTime = 5 * time.Second

// Validate returns all faults of the configuration at once.
func (c *Config) Validate() error {
	var errs []error
	if c.Role != RoleSidecar && c.Role != RoleGateway {
		errs = append(errs, fmt.Errorf("role %q: want %s or %s", c.Role, RoleSidecar, RoleGateway))
	}
	if c.Name == "" || c.Namespace == "" || c.ServiceAccount == "" {
		errs = append(errs, errors.New("name, namespace and service account must be set"))
	}
	if len(c.Control) == 0 {
		errs = append(errs, errors.New("no address of the control plane is given"))
	}
	if len(c.Roots) == 0 {
		errs = append(errs, errors.New("no root certificate of the control plane is given"))
	}
	return errors.Join(errs...)
}

// Proxy is one running data plane.
type Proxy struct {
	cfg     Config
	table   *table.Table
	holder  *identity.Holder
	channel *channel.Channel
	// authority leads to another certificate authority; nil: channel does.
	authority *channel.Channel
	agent     *agent.Agent
	xds       *client.Client
	metrics   *metrics.Registry
	workers   []*worker
	logs      logFiles
	spans     *spans
	hosts     *hosts
	tls       tlsConfigs
	self      self
	started   time.Time
	ready     chan struct{}
	readyAt   atomic.Int64 // ns after started; 0: not yet

	unknown     *table.Listener // for destinations that the mesh does not know
	passthrough *table.Choice
	connected   atomic.Bool
	lostAt      atomic.Int64 // when connected became false, in Unix ns; 0: it has not been true
	draining    atomic.Bool
	drainedAll  chan struct{}
	quit        chan struct{} // gets something when the end is asked for over HTTP
	app         *probe.Handler
	left        atomic.Int32 // workers with open connections, while draining
	gateways    gateways
}

// New prepares a proxy; nothing is opened yet.
func New(cfg Config) (*Proxy, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure proxy: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MarkSockets {
		cfg.Mark = Mark
	}
	if cfg.DrainTime == 0 {
		cfg.DrainTime = drainTime
	}
	if cfg.TrustDomain == "" {
		cfg.TrustDomain = "cluster.local"
	}
	p := &Proxy{cfg: cfg, started: time.Now(), ready: make(chan struct{}), drainedAll: make(chan struct{}), quit: make(chan struct{}, 1), metrics: metrics.New(metrics.Config{})}
	if err := p.initIdentity(); err != nil {
		return nil, err
	}
	if err := p.initApp(); err != nil {
		return nil, err
	}
	p.table = table.New(table.Config{
		Subscribe: p.subscribe, Unsubscribe: p.unsubscribe, TrustDomain: cfg.TrustDomain, Logger: cfg.Logger,
	})
	p.xds = client.New(client.Config{Dialer: dialer{p.channel}, Node: p.node(), Handler: feed{p}, Logger: cfg.Logger})
	p.self = newSelf(&cfg)
	p.logs.init(cfg.Logger)
	p.spans = newSpans(p.logs.loops)
	p.spans.name = cmp.Or(cfg.Workload.CanonicalName, cfg.Workload.Name, cfg.Name) + "." + cfg.Namespace
	p.spans.dial = p.dialer().DialContext
	p.unknown = p.table.Unknown()
	p.passthrough = p.unknown.Chains[0].TCP.Choose(0)
	return p, nil
}

func (p *Proxy) initApp() (err error) {
	cfg := p.cfg.App
	cfg.Mark = p.cfg.Mark
	if len(p.cfg.Addresses) > 0 {
		cfg.Address = p.cfg.Addresses[0]
	}
	p.app, err = probe.New(cfg)
	return err
}

func (p *Proxy) initIdentity() error {
	bundle, err := identity.ParseBundle(p.cfg.TrustDomain, p.cfg.Roots)
	if err != nil {
		return fmt.Errorf("read the control plane's root certificates: %w", err)
	}
	p.holder = identity.NewHolder(bundle)
	p.tls.holder = p.holder
	if p.channel, err = channel.New(channel.Config{
		Addresses: p.cfg.Control, ServerName: p.cfg.ControlName, TrustDomain: p.cfg.TrustDomain, Holder: p.holder, Mark: p.cfg.Mark,
	}); err != nil {
		return fmt.Errorf("prepare the way to the control plane: %w", err)
	}
	id := identity.ID{TrustDomain: p.cfg.TrustDomain, Namespace: p.cfg.Namespace, ServiceAccount: p.cfg.ServiceAccount}
	cfg := agent.Config{
		Channel: p.channel, ID: id, Holder: p.holder, Logger: p.cfg.Logger, TTL: p.cfg.CertificateTTL,
		Token: p.token, Cluster: p.cfg.Workload.Cluster,
	}
	if p.cfg.RootsFile != "" {
		cfg.Roots = func() ([]byte, error) { return readLimited(p.cfg.RootsFile, rootsMax) }
	}
	if len(p.cfg.Authority) > 0 {
		if p.authority, err = channel.New(channel.Config{
			Addresses: p.cfg.Authority, ServerName: p.cfg.AuthorityName, TrustDomain: p.cfg.TrustDomain, Holder: p.holder, Mark: p.cfg.Mark,
		}); err != nil {
			return fmt.Errorf("prepare the way to the certificate authority: %w", err)
		}
		cfg.Channel, cfg.TokenOnly = p.authority, true
	}
	p.agent, err = agent.New(cfg)
	if err != nil {
		return fmt.Errorf("prepare the identity agent: %w", err)
	}
	return nil
}

// Bounds of what is read of files, in bytes.
const (
	tokenMax = 16 << 10
	rootsMax = 1 << 20
)

// token is what proves the identity while there is no certificate.
func (p *Proxy) token(context.Context) (string, error) {
	if p.cfg.TokenFile == "" {
		return p.cfg.Token, nil
	}
	text, err := readLimited(p.cfg.TokenFile, tokenMax)
	return strings.TrimSpace(string(text)), err
}

// readLimited reads a file, but not more than so many bytes.
func readLimited(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, most))
}

// Run obeys the plan until ctx ends, then drains and returns when all that it started has ended.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.channel.Close()
	if p.authority != nil {
		defer p.authority.Close()
	}
	for range loops(p.cfg.Loops, runtime.GOMAXPROCS(0)) {
		w, err := p.newWorker()
		if err != nil {
			return fmt.Errorf("make an event loop: %w", err)
		}
		p.workers = append(p.workers, w)
	}
	live, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var group sync.WaitGroup
	errs := make(chan error, 1)
	run := func(what string, f func(context.Context) error) {
		group.Go(func() {
			if err := f(live); err != nil && live.Err() == nil {
				select {
				case errs <- fmt.Errorf("%s: %w", what, err):
				default: // one is enough to end the run
				}
			}
		})
	}
	for _, w := range p.workers {
		run("event loop", w.loop.Run)
	}
	p.logs.start(live, &group)
	p.spans.start(live, &group)
	p.startHosts(live, &group)
	if err := p.open(run); err != nil {
		stop()
		group.Wait()
		return err
	}
	run("identity", p.agent.Run)
	run("control plane", p.runXDS)
	run("names", p.rememberNames)
	run("memory", func(ctx context.Context) error { return returnMemory(ctx, p.cfg.Logger) })
	var failed error
	select {
	case <-ctx.Done():
		p.drain(p.cfg.DrainLeast)
	case <-p.quit:
		p.drain(0)
	case failed = <-errs:
	}
	stop()
	group.Wait()
	return failed
}

// loops is how many event loops there are if so many are asked for, on so many CPUs, of which the runtime counts those
// that a CPU quota of the cgroup allows.
func loops(asked, cpus int) int {
	if asked > 0 {
		return asked
	}
	return max(1, cpus/2)
}

// runXDS asks for the plan once there is an identity to show.
func (p *Proxy) runXDS(ctx context.Context) error {
	select {
	case <-p.agent.Ready():
	case <-ctx.Done():
		return nil
	}
	if p.cfg.Role == RoleGateway {
		p.table.WatchListeners(p.gateways.update)
		p.markReady() // a gateway without any port to open is ready, too
	} else {
		p.table.Listener(plan.ListenerInbound)
		p.table.Await(plan.KindListener, plan.ListenerInbound, p.markReady)
	}
	p.preload()
	return p.xds.Run(ctx)
}

func (p *Proxy) markReady() {
	if p.readyAt.CompareAndSwap(0, int64(time.Since(p.started))) {
		p.cfg.Logger.Info("ready", "after", time.Duration(p.readyAt.Load()).Round(time.Millisecond))
		close(p.ready)
	}
}

// Ready is closed when the proxy has its identity and its first orders.
func (p *Proxy) Ready() <-chan struct{} { return p.ready }

// announce tells the other ends of open connections to take their requests elsewhere, and the kubelet that we are not
// ready. New connections are still served: others learn only by and by that they should not come here. It reports
// whether that had been done before. quiet is how long an idle connection of HTTP/1 is left open.
func (p *Proxy) announce(quiet time.Duration) (before bool) {
	if !p.draining.CompareAndSwap(false, true) {
		return true
	}
	for _, w := range p.workers {
		w.loop.Post(func() { w.drain(quiet) })
	}
	return false
}

// drain lets open connections end, for a bounded time, and takes new ones for the least one.
func (p *Proxy) drain(least time.Duration) {
	most := time.After(p.cfg.DrainTime)
	if !p.announce(max(drainQuiet, least-drainLast)) {
		<-time.After(min(least, p.cfg.DrainTime))
	}
	p.left.Store(int32(len(p.workers)))
	for _, w := range p.workers {
		w.loop.Post(w.end)
	}
	select {
	case <-p.drainedAll:
	case <-most:
	}
}

// drained is told by a draining worker that it has nothing open.
func (p *Proxy) drained(w *worker) {
	if w.empty {
		return
	}
	w.empty = true
	if p.left.Add(-1) == 0 {
		close(p.drainedAll)
	}
}
