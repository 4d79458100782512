package host

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	readyInterval = 20 * time.Millisecond
	readyLimit    = 20 * time.Second
	backoffFirst  = 100 * time.Millisecond
	backoffMost   = 5 * time.Second
	// steady is how long lateend must have run for its next start to come at once.
	steady = 10 * time.Second
	// tellLimit bounds how long lateend is told the state of a workload.
	tellLimit = time.Second
	// controlGrace is what lateend gets to end.
	controlGrace = 2 * time.Second
)

// control keeps the control plane running.
type control struct {
	host *host
	log  *logPipe
	work sync.WaitGroup

	mu      sync.Mutex
	running *child
	over    context.CancelFunc
}

// TokenRequest is what a token is made for (POST /tokens).
type TokenRequest struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	TTL            string `json:"ttl,omitempty"`
	// Name binds the token's owner to the workload of that name, and Labels to its labels.
	Name   string            `json:"name,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Gateway lets the owner be a gateway, which gets its namespace's TLS keys.
	Gateway bool `json:"gateway,omitempty"`
}

// Token is what lateend gives a workload to join with (POST /tokens).
type Token struct {
	Token       string   `json:"token"`
	Roots       string   `json:"roots"` // PEM
	TrustDomain string   `json:"trustDomain"`
	Control     []string `json:"control"`
	ControlName string   `json:"controlName"`
}

// start starts lateend, waits until it serves, and keeps it running until stop.
func (c *control) start(ctx context.Context) (err error) {
	if c.log, err = newLogPipe(c.host.cfg.Dir.Log("lateend")); err != nil {
		return err
	}
	first, err := c.spawn()
	if err != nil {
		c.log.close()
		return err
	}
	live, over := context.WithCancel(context.WithoutCancel(ctx))
	c.over = over
	c.work.Go(func() { c.supervise(live, first) })
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	for {
		if err := Call(ctx, c.host.cfg.Dir.API(), http.MethodGet, "/ready", nil, nil); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-first.ended:
			words := c.log.lastWords()
			c.stop()
			return fmt.Errorf("the control plane ended at its start with code %d; its last words:\n%s", first.code(), words)
		case <-ctx.Done():
			words := c.log.lastWords()
			c.stop()
			return fmt.Errorf("the control plane is not ready after %s; its last words:\n%s", readyLimit, words)
		}
	}
}

// spawn starts lateend once.
func (c *control) spawn() (*child, error) {
	cfg := c.host.cfg
	address := netip.AddrPortFrom(bridgeAddresses()[0].Addr(), controlPort)
	cmd := exec.Command(cfg.Lateend, "--dir", cfg.Dir.Config(), "--state", cfg.Dir.State(),
		"--listen", address.String(), "--api", cfg.Dir.API())
	cmd.Stdout, cmd.Stderr = c.log.out, c.log.out
	started, err := c.host.reaper.start(cmd)
	if err != nil {
		return nil, fmt.Errorf("start the control plane: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = started
	return started, nil
}

// supervise starts lateend again whenever it ends, each time later, until ctx ends.
func (c *control) supervise(ctx context.Context, running *child) {
	backoff := backoffFirst
	for {
		since := time.Now()
		if running != nil {
			select {
			case <-running.ended:
			case <-ctx.Done():
				return
			}
			c.host.log.Warn("the control plane ended; the proxies go on with their last orders", "code",
				running.code(), "again_in", backoff)
		}
		if time.Since(since) > steady {
			backoff = backoffFirst
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return
		}
		backoff = min(2*backoff, backoffMost)
		var err error
		if running, err = c.spawn(); err != nil {
			c.host.log.Error("the control plane does not start", "cause", err)
		}
	}
}

// stop ends the control plane for good.
func (c *control) stop() {
	if c.over == nil {
		return // it never started
	}
	c.over()
	c.over = nil
	c.work.Wait()
	defer c.log.close()
	c.mu.Lock()
	running := c.running
	c.mu.Unlock()
	running.signal(syscall.SIGTERM)
	select {
	case <-running.ended:
	case <-time.After(controlGrace):
		running.signal(syscall.SIGKILL)
		<-running.ended
	}
}

// token asks lateend for a join token, for as long as a restart of it may take.
func (c *control) token(ctx context.Context, ask TokenRequest) (*Token, error) {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	ask.TTL = "1m"
	for {
		var t Token
		err := Call(ctx, c.host.cfg.Dir.API(), http.MethodPost, "/tokens", ask, &t)
		if err == nil {
			return &t, nil
		}
		if _, refused := errors.AsType[*CallError](err); refused {
			return nil, fmt.Errorf("get a join token for %s/%s: %w", ask.Namespace, ask.ServiceAccount, err)
		}
		select {
		case <-time.After(backoffFirst):
		case <-ctx.Done():
			return nil, fmt.Errorf("get a join token for %s/%s from the control plane, which does not answer: %w",
				ask.Namespace, ask.ServiceAccount, err)
		}
	}
}

// The states of a workload that its host tells lateend (POST /workloads).
const (
	stateHealthy   = "healthy"
	stateUnhealthy = "unhealthy"
	stateDraining  = "draining"
	stateGone      = "gone"
)

// tell tells lateend the state of a workload. It is no fault that lateend is away: it finds out by itself, only later.
func (c *control) tell(ctx context.Context, w *workload, state string) {
	ctx, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	body := map[string]string{"namespace": w.req.Namespace, "name": w.req.Name, "state": state}
	if err := Call(ctx, c.host.cfg.Dir.API(), http.MethodPost, "/workloads", body, nil); err != nil {
		c.host.log.Info("the control plane is not told of a workload", "workload", w.key(), "state", state, "cause", err)
	}
}
