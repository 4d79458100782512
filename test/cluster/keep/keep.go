// Package keep is a test cluster from within: the first process of its namespaces, which holds its network, its control
// plane and its nodes.
//
// In come a Layout and a listener of the outer machine; out go lines about how it comes up, and a cluster. Orders, such as
// to kill a node, come by HTTP over a Unix socket (see Orders). The package must not touch anything outside of the
// cluster's namespaces but its folder, its logs and its control groups. What Run has started ends with it, at the latest
// because it is the first process of a process namespace.
package keep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lateen-mesh/lateen/test/cluster/balance"
	"github.com/lateen-mesh/lateen/test/cluster/layout"
	"github.com/lateen-mesh/lateen/test/cluster/pki"
)

const (
	// patience bounds each step of coming up; a loaded machine of one processor needs some of it.
	patience = 3 * time.Minute
	// interval is between two looks at something of which nobody tells.
	interval = 50 * time.Millisecond
)

// Config is what a cluster needs.
type Config struct {
	Layout layout.Layout
	// API listens on the outer machine's loopback interface, on the Layout's port.
	API net.Listener
	// Node is the command that becomes a node: see package node.
	Node []string
	// Progress gets a line for each step.
	Progress io.Writer
	// Logger tells what happens later.
	Logger *slog.Logger
}

// Keeper is a cluster.
type Keeper struct {
	cfg       Config
	started   time.Time
	authority *pki.Authority
	config    *rest.Config
	client    *kubernetes.Clientset
	// pause and nameServer are archives of the images that every node has.
	pause, nameServer string
	balancer          *balance.Balancer
	// failed gets the first component that ended by itself.
	failed chan error

	mu sync.Mutex
	// components are the control plane's, in the order of their start.
	components []*process
	// nodes holds those that are up, by number.
	nodes map[int]*machine
}

// New makes a cluster that Run brings up.
func New(cfg Config) (*Keeper, error) {
	if err := cfg.Layout.Validate(); err != nil {
		return nil, err
	}
	authority, err := pki.New("lateen-cluster-" + cfg.Layout.Name)
	if err != nil {
		return nil, err
	}
	return &Keeper{cfg: cfg, authority: authority, failed: make(chan error, 1), nodes: map[int]*machine{}}, nil
}

// Run brings the cluster up, calls ready, and keeps it up until ctx ends or a component of the control plane does.
func (k *Keeper) Run(ctx context.Context, ready func()) error {
	k.started = time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer k.stop()
	defer cancel()
	if err := k.prepare(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		select {
		case err := <-k.failed:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	group.Go(func() error {
		if err := k.up(ctx); err != nil {
			return err
		}
		group.Go(func() error { return k.serve(ctx) })
		group.Go(func() error { return k.forward(ctx) })
		group.Go(func() error { return k.balancer.Run(ctx) })
		if err := k.addOns(ctx); err != nil {
			return err
		}
		ready()
		return nil
	})
	return group.Wait()
}

// prepare makes what the processes find when they start.
func (k *Keeper) prepare() error {
	// What a process namespace has for /proc is to be that namespace's.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := k.makeNetwork(); err != nil {
		return err
	}
	if err := k.writeSecrets(); err != nil {
		return err
	}
	kubeconfig, err := os.ReadFile(k.cfg.Layout.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	if k.config, err = clientcmd.RESTConfigFromKubeConfig(kubeconfig); err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	k.config.QPS = -1
	if k.client, err = kubernetes.NewForConfig(k.config); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	k.balancer = balance.New(balance.Config{
		Client: k.client, Pool: k.cfg.Layout.Balancers(), Router: router{k}, Logger: k.cfg.Logger,
	})
	return nil
}

// up starts the control plane and the nodes beside each other: a node needs an API server only for its kubelet.
func (k *Keeper) up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	serving := make(chan struct{})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(serving)
		return k.startControlPlane(ctx)
	})
	group.Go(func() error {
		if k.cfg.Layout.Nodes == 0 {
			return nil
		}
		if err := k.makeImages(); err != nil {
			return err
		}
		nodes, ctx := errgroup.WithContext(ctx)
		for n := 1; n <= k.cfg.Layout.Nodes; n++ {
			nodes.Go(func() error { return k.startNode(ctx, n, serving) })
		}
		return nodes.Wait()
	})
	return group.Wait()
}

// addOns waits until pods that use the cluster can be made.
func (k *Keeper) addOns(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := k.awaitAccount(ctx); err != nil || k.cfg.Layout.Nodes == 0 {
		return err
	}
	if err := k.apply(ctx, nameServer); err != nil {
		return err
	}
	for n := 1; n <= k.cfg.Layout.Nodes; n++ {
		if err := k.awaitNode(ctx, n); err != nil {
			return err
		}
	}
	k.progress("%d nodes are ready", k.cfg.Layout.Nodes)
	if err := k.awaitNameServer(ctx); err != nil {
		return err
	}
	k.progress("the cluster's DNS answers")
	return nil
}

func (k *Keeper) progress(format string, args ...any) {
	// Who started the cluster may have gone.
	_, _ = fmt.Fprintf(k.cfg.Progress, "%5.1fs %s\n", time.Since(k.started).Seconds(), fmt.Sprintf(format, args...))
}

// stop ends all processes. Nothing of them is to be kept, so none is asked to end well.
func (k *Keeper) stop() {
	k.mu.Lock()
	nodes, components := k.nodes, k.components
	k.nodes, k.components = map[int]*machine{}, nil
	k.mu.Unlock()
	for _, m := range nodes {
		m.process.kill()
	}
	for _, p := range components {
		p.kill()
	}
}

// fail tells Run that the cluster cannot go on.
func (k *Keeper) fail(err error) {
	select {
	case k.failed <- err:
	default: // one is enough
	}
}

// poll asks until it is so, and says what it waited for when it never was.
func poll(ctx context.Context, what string, so func(context.Context) (bool, error)) error {
	for {
		ok, err := so(ctx)
		if ok && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, errors.Join(context.Cause(ctx), err))
		case <-time.After(interval):
		}
	}
}
