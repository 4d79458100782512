package world

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy"
	"github.com/lateen-mesh/lateen/redirect"
)

// Kind is whose data plane it is.
type Kind string

// The kinds.
const (
	Lateen Kind = "lateen"
	Envoy  Kind = "envoy"
)

// Workload is what a proxy stands before, or a gateway.
type Workload struct {
	Kind Kind
	// Binary is the path of a lateen-proxy instead of the world's; empty: the world's.
	Binary string
	// Role is proxy.RoleSidecar or proxy.RoleGateway.
	Role string
	// Name is unique in its namespace. An empty ServiceAccount is called like the workload.
	Name, Namespace, ServiceAccount string
	Labels                          map[string]string
	Addresses                       []netip.Addr
	// Ports are what the workload serves, by name.
	Ports map[string]uint16
	// Place is where the proxy runs; nil: in this process's own namespace. Only there the capture rules are not set.
	Place *Place
	// CertificateTTL is the lifetime of its certificates (not Envoy's); 0: 24 h.
	CertificateTTL time.Duration
	// Threads is the number of event loops (Envoy: of workers). 0: 1.
	Threads int
}

// Proxy is a running proxy.
type Proxy struct {
	w     *World
	load  Workload
	dir   string
	admin string // path of a Unix socket
	cmd   *exec.Cmd
	log   *os.File
	ended chan struct{}
	after func() // ends what stands beside the process
}

// Start starts a proxy and returns when it obeys the configuration as it is.
func (w *World) Start(ctx context.Context, load Workload) (*Proxy, error) {
	load.ServiceAccount, load.Threads = cmp.Or(load.ServiceAccount, load.Name), cmp.Or(load.Threads, 1)
	p := &Proxy{w: w, load: load, ended: make(chan struct{})}
	if err := p.start(ctx); err != nil {
		return nil, fmt.Errorf("start %s of %s/%s: %w", load.Kind, load.Namespace, load.Name, err)
	}
	w.mu.Lock()
	w.proxies = append(w.proxies, p)
	w.mu.Unlock()
	err := until(ctx, "it to be ready", func() error {
		select {
		case <-p.ended:
			return context.Canceled // more is in its log
		default:
		}
		text, err := p.Admin(ctx, "/ready")
		if err != nil {
			return err
		}
		if text = strings.TrimSpace(text); text != "LIVE" && text != "ready" {
			return errors.New(text)
		}
		return nil
	})
	if err == nil {
		err = p.Settle(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("start %s of %s/%s: %w; its log:\n%s", load.Kind, load.Namespace, load.Name, err, p.Log())
	}
	return p, nil
}

func (p *Proxy) start(ctx context.Context) error {
	var token host.Token
	err := host.Call(ctx, p.w.api, "POST", "/tokens", host.TokenRequest{
		Namespace: p.load.Namespace, ServiceAccount: p.load.ServiceAccount, Name: p.load.Name, Labels: p.load.Labels,
		Gateway: p.load.Role == proxy.RoleGateway,
	}, &token)
	if err != nil {
		return err
	}
	if p.dir, err = p.w.folder(p.load.Namespace + "." + p.load.Name); err != nil {
		return err
	}
	p.admin = filepath.Join(p.dir, "admin")
	if p.load.Place != nil && p.load.Role == proxy.RoleSidecar {
		if err := p.load.Place.Do(capture); err != nil {
			return err
		}
	}
	if p.load.Kind == Envoy {
		err = p.prepareEnvoy(ctx, token)
	} else {
		err = p.prepareLateen(token)
	}
	if err != nil {
		return err
	}
	if p.log, err = os.Create(filepath.Join(p.dir, "log")); err != nil {
		return err
	}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = p.dir, p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.load.Place.Do(p.cmd.Start); err != nil {
		return err
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // How it ended is told by Stop, and its log.
	}()
	return nil
}

// capture leads the traffic of a sidecar's place to its proxy. Names are not resolved in a world: DNS is left alone.
func capture() error {
	rules, err := redirect.Rules(redirect.Config{
		NoDNS: true, Proxy: redirect.Proxy{Mark: redirect.ProxyMark, Mask: redirect.ProxyMask},
	})
	if err != nil {
		return err
	}
	if err := redirect.Apply(rules); err != nil {
		return errors.Join(err, redirect.Check())
	}
	return nil
}

func (p *Proxy) prepareLateen(token host.Token) error {
	binary := cmp.Or(p.load.Binary, p.w.cfg.ProxyBinary)
	if binary == "" {
		return errors.New("no binary of lateen-proxy is given")
	}
	text, err := json.Marshal(proxy.Config{
		Role: p.load.Role, Name: p.load.Name, Namespace: p.load.Namespace, ServiceAccount: p.load.ServiceAccount,
		Labels: p.load.Labels, Addresses: p.load.Addresses, Ports: p.load.Ports, TrustDomain: token.TrustDomain,
		Control: token.Control, ControlName: token.ControlName, Roots: []byte(token.Roots), Token: token.Token,
		AdminSocket: p.admin, MarkSockets: p.load.Place != nil, DrainTime: time.Second, Loops: p.load.Threads,
		CertificateTTL: p.load.CertificateTTL,
		Workload: plan.Workload{
			Name: p.load.Name, Namespace: p.load.Namespace, App: p.load.Labels["app"], Version: p.load.Labels["version"],
			CanonicalName: cmp.Or(p.load.Labels["app"], p.load.Name), CanonicalRevision: cmp.Or(p.load.Labels["version"], "latest"),
		},
	})
	p.cmd = exec.Command(binary, "--config", "-")
	p.cmd.Stdin = bytes.NewReader(text)
	return err
}

// Settle returns when the proxy obeys all that was applied before, and an error if it refused something.
func (p *Proxy) Settle(ctx context.Context) error {
	var refused string
	err := until(ctx, "orders to be obeyed", func() error {
		c, err := p.w.client(ctx, p.load.Namespace, p.load.Name)
		switch {
		case err != nil:
			return err
		case c.Refused != "":
			refused = c.Refused
			return nil
		case !c.Connected || !c.Synced || len(c.Types) == 0 && p.load.Role == proxy.RoleSidecar:
			return fmt.Errorf("connected: %t, synced: %t, types: %v", c.Connected, c.Synced, slices.Sorted(maps.Keys(c.Types)))
		case p.load.Kind == Envoy:
			return p.warm(ctx)
		}
		return nil
	})
	if refused != "" {
		return fmt.Errorf("%s/%s refuses its orders: %s", p.load.Namespace, p.load.Name, refused)
	}
	return err
}

// Admin reads a page of the proxy's admin interface: its own, whichever kind it is of.
func (p *Proxy) Admin(ctx context.Context, path string) (string, error) {
	c := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", p.admin)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin"+path, nil)
	if err != nil {
		return "", err
	}
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	return string(body), err
}

// PID is the number of the proxy's process.
func (p *Proxy) PID() int { return p.cmd.Process.Pid }

// Log is what the process has said.
func (p *Proxy) Log() string {
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Stop ends the process. It is an error if it had ended by itself.
func (p *Proxy) Stop() error {
	var err error
	select {
	case <-p.ended:
		err = fmt.Errorf("%s of %s/%s ended by itself: %s; its log:\n%s", p.load.Kind, p.load.Namespace, p.load.Name, p.cmd.ProcessState, p.Log())
	default:
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	if p.after != nil {
		p.after()
	}
	return errors.Join(err, p.log.Close())
}
