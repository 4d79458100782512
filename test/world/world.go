// Package world puts a mesh together for tests and benchmarks: the real control plane in this process over a folder of
// YAML, our proxy and a real Envoy as processes that obey it, networks between them, and backends that tell what they
// received.
//
// In come a Config, Workloads and YAML; out come proxies that obey it, and a way to know when they do (Settle). The
// package must not know what is tested or measured, nor package testing: errors are returned. What it starts ends with
// Close; processes also end with this one. The methods may be called concurrently, but two Applies race for who is last.
package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/control"
	"github.com/lateen-mesh/lateen/identity/ca"
)

const (
	// patience bounds each wait for a process or for the control plane.
	patience = 30 * time.Second
	// interval is between two looks at something that will be so soon, of which nobody tells.
	interval = 5 * time.Millisecond
)

// TrustDomain is that of every world.
const TrustDomain = "cluster.local"

// Config is what a world needs.
type Config struct {
	// Dir is an empty folder for all files. Its path must be short (40 bytes): Unix sockets are made in it.
	Dir string
	// ProxyBinary is the path of lateen-proxy: see Build. Needed for workloads of kind Lateen only.
	ProxyBinary string
	// Network is where the control plane listens; nil: the loopback interface of this process's own namespace.
	Network *Network
	// Logger gets the control plane's log; nil discards it.
	Logger *slog.Logger
}

// World is a running control plane and the proxies under it.
type World struct {
	cfg       Config
	api       string
	authority *ca.Authority
	stop      context.CancelFunc
	ended     chan error

	mu      sync.Mutex
	proxies []*Proxy
}

// Build builds lateen-proxy into a folder, with further flags of go build, and returns its path. It must be called from
// inside the module.
func Build(ctx context.Context, dir string, flags ...string) (string, error) {
	path := filepath.Join(dir, "lateen-proxy")
	args := slices.Concat([]string{"build", "-o", path}, flags, []string{"github.com/lateen-mesh/lateen/cmd/lateen-proxy"})
	cmd := exec.CommandContext(ctx, "go", args...)
	if len(flags) == 0 { // as images are built, so that nothing is compiled twice
		cmd.Args, cmd.Env = slices.Insert(cmd.Args, 2, "-trimpath"), append(os.Environ(), "CGO_ENABLED=0")
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build lateen-proxy: %w: %s", err, out)
	}
	return path, nil
}

// New starts a control plane and returns when it serves.
func New(ctx context.Context, cfg Config) (*World, error) {
	w := &World{cfg: cfg, api: filepath.Join(cfg.Dir, "api.sock"), ended: make(chan error, 1)}
	var place *Place
	at := netip.MustParseAddr("127.0.0.1")
	if cfg.Network != nil {
		place, at = cfg.Network.home, cfg.Network.gateway
	}
	config, state := filepath.Join(cfg.Dir, "config"), filepath.Join(cfg.Dir, "state")
	if err := os.MkdirAll(config, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of configuration: %w", err)
	}
	c, err := control.New(control.Config{
		Dir: config, State: state, Listen: netip.AddrPortFrom(at, 0).String(), API: w.api, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	// The control plane's own keys: they name peers that have no proxy, and Envoy, which has no agent beside it.
	if w.authority, err = ca.New(ca.Config{TrustDomain: TrustDomain, Dir: filepath.Join(state, "ca")}); err != nil {
		return nil, err
	}
	live, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.stop = stop
	go func() { w.ended <- place.Do(func() error { return c.Run(live) }) }()
	err = until(ctx, "the control plane to serve", func() error {
		return host.Call(ctx, w.api, "GET", "/ready", nil, nil)
	})
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Close ends the proxies and the control plane.
func (w *World) Close() error {
	w.mu.Lock()
	proxies := w.proxies
	w.proxies = nil
	w.mu.Unlock()
	var faults []error
	for _, p := range proxies {
		faults = append(faults, p.Stop())
	}
	w.stop()
	return errors.Join(append(faults, <-w.ended)...)
}

// Apply makes YAML documents part of the configuration, in the place of objects of the same names.
func (w *World) Apply(ctx context.Context, yaml string) error {
	if err := host.Call(ctx, w.api, "POST", "/apply?name=world.yaml", []byte(yaml), nil); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	return nil
}

// Delete takes the objects that YAML documents name out of the configuration.
func (w *World) Delete(ctx context.Context, yaml string) error {
	if err := host.Call(ctx, w.api, "POST", "/delete?name=world.yaml", []byte(yaml), nil); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

// Authority is the mesh's, to make certificates of any peer with.
func (w *World) Authority() *ca.Authority { return w.authority }

// client is what the control plane says of a proxy (GET /proxies).
type client struct {
	Name, Namespace   string
	Connected, Synced bool
	Refused           string
	Types             map[string]int
}

// client looks a workload up among the control plane's clients.
func (w *World) client(ctx context.Context, namespace, name string) (client, error) {
	var list []client
	if err := host.Call(ctx, w.api, "GET", "/proxies", nil, &list); err != nil {
		return client{}, err
	}
	for _, c := range list {
		if c.Namespace == namespace && c.Name == name {
			return c, nil
		}
	}
	return client{}, fmt.Errorf("%s/%s has not come to the control plane", namespace, name)
}

// Proxies returns the control plane's own account of its clients, as JSON, for messages.
func (w *World) Proxies(ctx context.Context) string {
	var text json.RawMessage
	if err := host.Call(ctx, w.api, "GET", "/proxies", nil, &text); err != nil {
		return err.Error()
	}
	return string(text)
}

// until waits for something that another process does, of which it tells nobody.
func until(ctx context.Context, what string, done func() error) error {
	tick, deadline := time.NewTicker(interval), time.NewTimer(patience)
	defer tick.Stop()
	defer deadline.Stop()
	for {
		err := done()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, ctx.Err(), err)
		case <-deadline.C:
			return fmt.Errorf("wait for %s: not within %s: %w", what, patience, err)
		}
	}
}

// folder makes a folder of the world's own.
func (w *World) folder(name string) (string, error) {
	dir := filepath.Join(w.cfg.Dir, name)
	return dir, os.MkdirAll(dir, 0o755)
}
