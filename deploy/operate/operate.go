// Package operate keeps the installations of a cluster as their objects of the kind Installation want them: it makes and
// upgrades them, repairs what others change or delete, writes down how far they are, and takes them away when they are
// deleted.
//
// In come a cluster's Installations, and the events of all that was made of them; out go changes by deploy/apply, the same
// that the command line makes. The package must not know what is installed: that is deploy's. An Operator's Run is called
// once; any number of operators may run beside each other, in one cluster, as one of them works at a time.
package operate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/deploy/apply"
)

// The times of the Lease, those that Kubernetes' own components have.
const (
	renewWithin = 10 * time.Second
	renewEvery  = 2 * time.Second
)

// The client's own bounds of calls to the API server. Repairing an installation where nothing is amiss takes some 120.
const (
	callsPerSecond = 50
	callsBurst     = 150
)

// Config is what an Operator works with.
type Config struct {
	// Cluster says how the API server is reached.
	Cluster *rest.Config
	// Identity tells this operator from others, such as the name of its pod.
	Identity string
	// Logger gets what is done and what is odd; nil: nobody.
	Logger *slog.Logger
}

// Operator keeps the installations of a cluster.
type Operator struct {
	log      *slog.Logger
	client   dynamic.Interface
	metadata metadata.Interface
	leases   coordination.LeasesGetter
	identity string
	// removing holds the one installation that is taken away now.
	removing chan struct{}

	mu      sync.Mutex
	keepers map[string]*keeper // by revision
}

// Reach says how the API server is reached: as the administrator of a kubeconfig does, or with "" as the account of the pod
// that this runs in.
func Reach(kubeconfig string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find out how the API server is reached: %w; run it in a pod with a service account, or give --kubeconfig", err)
	}
	return cfg, nil
}

// New builds an Operator.
func New(c Config) (*Operator, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	at := rest.CopyConfig(c.Cluster)
	at.QPS, at.Burst, at.UserAgent = callsPerSecond, callsBurst, apply.OperatorName
	client, err := dynamic.NewForConfig(at)
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	heads, err := metadata.NewForConfig(at)
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	at = rest.CopyConfig(at)
	at.Timeout = renewWithin / 2 // a lost call must leave time for another, and its own bounds keep no other back
	leases, err := coordination.NewForConfig(at)
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	return &Operator{
		log: c.Logger, client: client, metadata: heads, leases: leases, identity: c.Identity,
		removing: make(chan struct{}, 1), keepers: map[string]*keeper{},
	}, nil
}

// errLost says that another operator may work now.
var errLost = errors.New("the Lease " + deploy.Namespace + "/" + apply.OperatorName + " was lost; is the API server slow or away?")

// Run waits until this operator is the one that works, and works until ctx ends. It returns an error if it cannot work any
// more: start it anew.
func (o *Operator) Run(ctx context.Context) error {
	electing, end := context.WithCancel(klog.NewContext(context.WithoutCancel(ctx), logr.Discard()))
	defer end()
	started, ended := make(chan struct{}), make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: apply.OperatorName,
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: deploy.Namespace, Name: apply.OperatorName}, Client: o.leases,
			LockConfig: resourcelock.ResourceLockConfig{Identity: o.identity},
		},
		LeaseDuration: apply.LeaseDuration, RenewDeadline: renewWithin, RetryPeriod: renewEvery, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				close(started)
				defer close(ended)
				defer end() // the Lease is given back when nothing works any more
				o.work(leading, ctx)
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(identity string) {
				if identity != o.identity {
					o.log.Info("another operator works; this one stands by", "as", identity)
				}
			},
		},
	})
	if err != nil {
		return fmt.Errorf("make the Lease: %w", err)
	}
	defer context.AfterFunc(ctx, func() {
		select {
		case <-started:
		default:
			end()
		}
	})()
	elector.Run(electing)
	select {
	case <-started:
		<-ended
	default:
	}
	if ctx.Err() == nil {
		return errLost
	}
	return nil
}

// work keeps the installations until it leads no more, or is to end.
func (o *Operator) work(leading, until context.Context) {
	o.log.Info("this operator works", "lease", deploy.Namespace+"/"+apply.OperatorName, "as", o.identity)
	ctx, stop := context.WithCancelCause(context.WithoutCancel(leading))
	defer stop(nil)
	for _, end := range []context.Context{leading, until} {
		defer context.AfterFunc(end, func() { stop(apply.ErrSuperseded) })()
	}
	var group sync.WaitGroup
	defer group.Wait()
	// Without the definitions there is nothing to watch. They are kept like an installation.
	grounded := make(chan struct{})
	var once sync.Once
	a := o.applier("")
	ground := newKeeper("", o.log, func(ctx context.Context) error {
		err := a.Ground(ctx)
		if err == nil {
			once.Do(func() { close(grounded) })
		}
		return err
	})
	group.Go(func() { ground.run(ctx) })
	select {
	case <-ctx.Done():
	case <-grounded:
		o.watch(ctx, &group, ground)
	}
}

// applier makes what a revision wants; what it tells is logged.
func (o *Operator) applier(revision string) *apply.Applier {
	log := o.log.With("revision", revision)
	return apply.New(apply.Config{Client: o.client, Tell: func(s apply.Step) {
		switch {
		case s.Warning:
			log.Warn(s.Text)
		case s.Done && s.Err == nil && !idle(s.Text):
			log.Info(s.Component+": "+s.Text, "took", s.Took.Round(time.Millisecond))
		}
	}})
}

// idle reports whether a step has found everything as it should be: it then tells first what was unchanged.
func idle(text string) bool {
	return strings.HasPrefix(strings.TrimLeft(text, "0123456789 "), string(apply.Unchanged))
}
