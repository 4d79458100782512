// Package control assembles lateend, the control plane: configuration from a
// folder, the picture of the mesh, the compiler, xDS, the certificate authority
// and the API that the command line talks to.
//
// It is wiring: what is decided is decided elsewhere. In: Config. Out: a running
// control plane until its context ends.
package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/compile"
	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/inject"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source"
	"github.com/lateen-mesh/lateen/source/dir"
	"github.com/lateen-mesh/lateen/source/kube"
	"github.com/lateen-mesh/lateen/xds/envoy"
	"github.com/lateen-mesh/lateen/xds/native"
	"github.com/lateen-mesh/lateen/xds/server"
)

// ServerName is the DNS name in the control plane's own certificate.
const ServerName = "lateend"

// Config is what a control plane needs.
type Config struct {
	// Dir is the folder of configuration. Either it or Kube must be given.
	Dir string
	// Kube is how the API server is reached of the cluster that holds the configuration, and whose pods are workloads.
	Kube *kube.Cluster
	// State is where the authority's key, allocated addresses and known workloads are kept; mode 0700.
	State string
	// Listen is the address for proxies: xDS and certificates over TLS.
	Listen string
	// API is the path of the Unix socket for the command line.
	API string
	// Plaintext is an address for xDS without TLS, whose clients are believed to be who they say; empty: none. Whoever
	// reaches it may read the configuration of any namespace, but not the keys of gateways.
	Plaintext string
	// Admin is the TCP address of a page that shows the same, without keys, and changes nothing, to callers from this
	// machine, or from its pod; others get metrics and readiness only. Empty: none.
	Admin       string
	TrustDomain string // empty: cluster.local
	// CASecret names the Secret, in the namespace of this server, that holds the authority's key for all servers of the
	// mesh, and the next ones; it is made if it is not there. A Secret cacerts beside it, of an authority that somebody else
	// has made, counts before it. Empty: the key is in State. It needs Kube.
	CASecret string
	// Names are DNS names by which the control plane is called besides ServerName, such as lateend.istio-system.svc.
	Names []string
	// Inject, unless nil, has Kubernetes' webhooks served, on the address Webhooks (empty: DefaultWebhooks).
	Inject *inject.Config
	// InjectAnew reads what Inject was read from anew, again and again: what differs counts for pods that come later. Nil: it
	// never differs.
	InjectAnew func() (inject.Config, error)
	Webhooks   string
	Logger     *slog.Logger
}

// Control is one control plane.
type Control struct {
	cfg       Config
	log       *slog.Logger
	locks     locks
	authority *ca.Authority
	tokens    *ca.Tokens
	cache     *compile.Cache
	xds       *server.Server
	store     store
	folder    *dir.Store    // the store if that is a folder, else nil
	cluster   *kube.Store   // the store if that is a cluster, else nil
	read      chan struct{} // closed when the first picture is complete
	readOnce  sync.Once
	registry  *registry
	service   *ca.Service // of certificates
	grants    *grants
	source    *planSource
	started   time.Time
	addr      string                 // what proxies connect to
	webhooks  atomic.Pointer[string] // what the API server connects to; nil: not yet
	admin     atomic.Pointer[string] // where the admin page is; nil: not yet
	plaintext atomic.Pointer[string] // where xDS without TLS is; nil: not yet

	mu         sync.Mutex // the picture: one change at a time
	builder    *mesh.Builder
	written    map[mesh.Ref]struct{}    // workloads of the configuration
	registered map[mesh.Ref]mesh.Object // workloads that registered themselves
	told       []source.Finding         // in the log
	refused    []api.Fault              // the same
}

// New reads the configuration and prepares everything; nothing is served yet. The state folder and the socket are
// locked from here until Run returns, or the process ends.
func New(cfg Config) (*Control, error) {
	if cfg.State == "" || cfg.Listen == "" || cfg.API == "" {
		return nil, errors.New("configure control plane: the folder of state, the address to listen on and the API socket must be named")
	}
	if (cfg.Dir == "") == (cfg.Kube == nil) {
		return nil, errors.New("configure control plane: the configuration is in a folder (--dir) or in Kubernetes (--kube); name one of them")
	}
	if cfg.TrustDomain == "" {
		cfg.TrustDomain = "cluster.local"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Webhooks = cmp.Or(cfg.Webhooks, DefaultWebhooks)
	if cfg.Inject != nil {
		if err := cfg.Inject.Validate(); err != nil {
			return nil, fmt.Errorf("configure injection: %w", err)
		}
	}
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return nil, fmt.Errorf("make the state folder: %w", err)
	}
	held, err := takeLocks(&cfg)
	if err != nil {
		return nil, fmt.Errorf("start the control plane: %w", err)
	}
	c := &Control{
		cfg: cfg, log: cfg.Logger, locks: held, cache: compile.NewCache(), builder: mesh.NewBuilder(), started: time.Now(),
		written: map[mesh.Ref]struct{}{}, registered: map[mesh.Ref]mesh.Object{}, read: make(chan struct{}),
	}
	if err := c.open(); err != nil {
		held.release()
		return nil, err
	}
	return c, nil
}

// open reads what there is: the authority's key, the known workloads, the configuration.
func (c *Control) open() (err error) {
	if c.authority, err = c.openAuthority(); err != nil {
		return fmt.Errorf("start the certificate authority: %w", err)
	}
	c.tokens = ca.NewTokens(c.authority)
	c.source = newPlanSource(c)
	c.xds = server.New(server.Config{
		Identify: c.identify, Logger: c.log, Order: slices.Concat(native.TypeURLs(), envoy.TypeURLs()),
	})
	if c.grants, err = newGrants(filepath.Join(c.cfg.State, "grants.json")); err != nil {
		return err
	}
	if c.registry, err = newRegistry(filepath.Join(c.cfg.State, "workloads.jsonl"), c.enrolled, c.isWritten, c.log); err != nil {
		return err
	}
	if err := c.openStore(); err != nil {
		c.registry.close()
		return fmt.Errorf("read the configuration: %w", err)
	}
	c.service = ca.NewService(ca.ServiceConfig{Authority: c.authority, Logger: c.log, Authenticators: c.authenticators()})
	return nil
}

// store is where the configuration is: source/dir or source/kube.
type store interface {
	// Run follows what changes until ctx ends.
	Run(ctx context.Context) error
	// Status tells how the configuration stands.
	Status() source.Status
	// List returns the objects in force of a kind, namespace and name; empty is any.
	List(kind, namespace, name string) []*api.Object
}

// openStore opens the folder, which is read at once, or the cluster, which is read when the store runs.
func (c *Control) openStore() (err error) {
	if c.cfg.Kube != nil {
		cfg := kube.Config{
			Cluster: c.cfg.Kube, Logger: c.log, Apply: c.configured, Found: c.tell, Report: c.report,
			Roots: func() []byte { return c.authority.Bundle().PEM(c.authority.TrustDomain()) },
			Keys:  c.cfg.CASecret, UseKeys: c.useKeys, RotateKeys: c.rotateKeys,
		}
		if c.cfg.Inject != nil {
			cfg.Revision = cmp.Or(c.cfg.Inject.Revision, inject.DefaultRevision)
			cfg.Webhook, cfg.Validator = inject.Names(cfg.Revision)
		}
		c.cluster, err = kube.Open(cfg)
		c.store = c.cluster
		return err
	}
	c.folder, err = dir.Open(dir.Config{
		Dir: c.cfg.Dir, StateFile: filepath.Join(c.cfg.State, "config.json"), Logger: c.log, Admit: c.admit,
		Apply: func(changes []mesh.Change, findings []source.Finding) {
			c.tell(findings)
			c.configured(changes)
		},
		Report: c.report,
	})
	c.store = c.folder
	if err == nil {
		c.configured(nil) // the first push, also of an empty mesh
	}
	return err
}

// identify proves the caller of an xDS stream by its certificate. Who comes without TLS, where that is allowed at all,
// proves nothing.
func (c *Control) identify(ctx context.Context) (string, error) {
	if p, ok := peer.FromContext(ctx); ok && c.cfg.Plaintext != "" && p.AuthInfo == nil {
		return "", nil
	}
	id, _, err := ca.Authenticators{ca.MeshCertificate{Authority: c.authority}}.Authenticate(ctx, nil)
	if err != nil {
		return "", err
	}
	return id.String(), nil
}

// tell logs findings that were not there before.
func (c *Control) tell(list []source.Finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range unsaid(list, c.told) {
		level := slog.LevelWarn
		if f.Level == source.LevelInfo {
			level = slog.LevelInfo
		}
		c.log.Log(context.Background(), level, "configuration", "finding", f.String())
	}
	c.told = list
}

// report logs faults that were not there before.
func (c *Control) report(faults []api.Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range unsaid(faults, c.refused) {
		c.log.Error("configuration refused; the last good one stays in force", "fault", f.String())
	}
	c.refused = faults
}

// unsaid are those of a list that are not among what was said before.
func unsaid[T comparable](list, before []T) (out []T) {
	known := make(map[T]struct{}, len(before))
	for _, x := range before {
		known[x] = struct{}{}
	}
	for _, x := range list {
		if _, said := known[x]; !said {
			out = append(out, x)
		}
	}
	return out
}

// Run serves until ctx ends and returns when all that it started has ended.
func (c *Control) Run(ctx context.Context) error {
	defer c.locks.release()
	defer c.registry.close()
	host, _, err := net.SplitHostPort(c.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %q: %w", c.cfg.Listen, err)
	}
	var ips []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil && !a.IsUnspecified() {
		ips = append(ips, a)
	}
	cert, err := c.authority.ServerCertificate(append([]string{ServerName, "localhost"}, c.cfg.Names...), ips)
	if err != nil {
		return fmt.Errorf("make the control plane's certificate: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for proxies: %w; is another control plane running? name another address with --listen", err)
	}
	c.addr = l.Addr().String()
	g := grpc.NewServer(append(c.xds.Options(), grpc.Creds(credentials.NewTLS(cert.TLS())))...)
	c.xds.Register(g)
	securityapi.RegisterIstioCertificateServiceServer(g, c.service)
	var group sync.WaitGroup
	live, stop := context.WithCancel(ctx)
	defer group.Wait()
	defer stop()
	errs := make(chan error, 8)
	run := func(what string, f func(context.Context) error) {
		group.Go(func() {
			if err := f(live); err != nil && live.Err() == nil {
				errs <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}
	run("configuration", c.store.Run)
	run("workloads", func(ctx context.Context) error { return c.registry.run(ctx, c.connected) })
	run("housekeeping", c.sweep)
	run("API", c.serveAPI)
	if c.cfg.Admin != "" {
		run("admin page", c.serveAdmin)
	}
	if c.cfg.Plaintext != "" {
		run("xDS without TLS", c.servePlaintext)
	}
	if c.cfg.Inject != nil {
		run("webhooks", c.serveWebhooks)
	}
	group.Go(func() {
		select {
		case <-c.read: // what proxies are told before that would take from them what they have
		case <-live.Done():
			_ = l.Close()
			return
		}
		c.log.Info("control plane ready", "listen", c.addr, "api", c.cfg.API, "config", cmp.Or(c.cfg.Dir, "Kubernetes"))
		if err := g.Serve(c.xds.Listener(l)); err != nil && live.Err() == nil {
			errs <- fmt.Errorf("xDS: %w", err)
		}
	})
	group.Go(func() {
		<-live.Done()
		c.xds.Drain()
		g.Stop()
	})
	select {
	case <-ctx.Done():
		return nil
	case err := <-errs:
		return err
	}
}

// sweepEvery is how often answers that nobody wants any more are let go.
const sweepEvery = time.Minute

func (c *Control) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.source.forget(c.xds)
		case <-ctx.Done():
			return nil
		}
	}
}
