// Package balance gives Services of type LoadBalancer addresses, as a cloud does.
//
// In come Services, Nodes and EndpointSlices of the API server; out go addresses in the Services' status, and routes by
// which a Router leads each address to one node, whose kube-proxy takes it from there. A node that has ended is left at
// once. The package must not know how a route is made. All methods may be called concurrently.
package balance

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// retry is when something that could not be done is tried again.
const retry = time.Second

// Router leads addresses to nodes.
type Router interface {
	// Alive says whether a node runs, sooner than Kubernetes knows.
	Alive(node string) bool
	// Route leads an address to a node, instead of where it led before.
	Route(address netip.Addr, node string) error
	// Unroute makes an address lead nowhere.
	Unroute(address netip.Addr) error
}

// Config is what a Balancer needs.
type Config struct {
	Client kubernetes.Interface
	// Pool has the addresses to give; its first is left out.
	Pool   netip.Prefix
	Router Router
	Logger *slog.Logger
}

// Balancer gives addresses.
type Balancer struct {
	cfg      Config
	wake     chan struct{}
	services corelisters.ServiceLister
	nodes    corelisters.NodeLister
	slices   discoverylisters.EndpointSliceLister
	// update writes the status of a Service.
	update func(context.Context, *corev1.Service) error
	// routes are the nodes that addresses lead to; Run's alone.
	routes map[netip.Addr]string
}

// New makes a Balancer that Run lets work.
func New(cfg Config) *Balancer {
	b := &Balancer{cfg: cfg, wake: make(chan struct{}, 1), routes: map[netip.Addr]string{}}
	b.update = func(ctx context.Context, s *corev1.Service) error {
		_, err := cfg.Client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, s, metav1.UpdateOptions{})
		return err
	}
	return b
}

// Wake tells that what Alive says has changed.
func (b *Balancer) Wake() {
	select {
	case b.wake <- struct{}{}:
	default: // it is about to look anyway
	}
}

// Run works until ctx ends.
func (b *Balancer) Run(ctx context.Context) error {
	factory := informers.NewSharedInformerFactory(b.cfg.Client, 0)
	defer factory.Shutdown()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.services = factory.Core().V1().Services().Lister()
	b.nodes = factory.Core().V1().Nodes().Lister()
	b.slices = factory.Discovery().V1().EndpointSlices().Lister()
	changed := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { b.Wake() },
		UpdateFunc: func(any, any) { b.Wake() },
		DeleteFunc: func(any) { b.Wake() },
	}
	for _, informer := range []cache.SharedIndexInformer{
		factory.Core().V1().Services().Informer(), factory.Core().V1().Nodes().Informer(),
		factory.Discovery().V1().EndpointSlices().Informer(),
	} {
		if _, err := informer.AddEventHandler(changed); err != nil {
			return fmt.Errorf("watch the cluster: %w", err)
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		}
		if err := b.reconcile(ctx); err != nil && ctx.Err() == nil {
			b.cfg.Logger.Warn("load balancer addresses", "err", err)
			defer time.AfterFunc(retry, b.Wake).Stop()
		}
	}
}

// reconcile looks at all Services anew: there are few.
func (b *Balancer) reconcile(ctx context.Context) error {
	all, err := b.services.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	all = slices.DeleteFunc(all, func(s *corev1.Service) bool { return !ours(s) })
	slices.SortFunc(all, func(a, b *corev1.Service) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	used := map[netip.Addr]bool{}
	for _, s := range all {
		if address, ok := b.address(s); ok {
			used[address] = true
		}
	}
	for _, s := range all {
		address, ok := b.address(s)
		if !ok {
			if address, err = b.assign(ctx, s, used); err != nil {
				return err
			}
		}
		if err := b.lead(s, address); err != nil {
			return err
		}
	}
	for address := range b.routes {
		if used[address] {
			continue
		}
		if err := b.cfg.Router.Unroute(address); err != nil {
			return err
		}
		delete(b.routes, address)
	}
	return nil
}

func ours(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.LoadBalancerClass == nil && s.DeletionTimestamp == nil
}

// address is the one that a Service has already.
func (b *Balancer) address(s *corev1.Service) (netip.Addr, bool) {
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if address, err := netip.ParseAddr(ingress.IP); err == nil && b.cfg.Pool.Contains(address) {
			return address, true
		}
	}
	return netip.Addr{}, false
}

// assign gives a Service the first address that is free.
func (b *Balancer) assign(ctx context.Context, s *corev1.Service, used map[netip.Addr]bool) (netip.Addr, error) {
	address := b.cfg.Pool.Addr().Next()
	for used[address] {
		address = address.Next()
	}
	if !b.cfg.Pool.Contains(address) {
		return address, fmt.Errorf("service %s/%s: all addresses of %s are in use", s.Namespace, s.Name, b.cfg.Pool)
	}
	used[address] = true
	s = s.DeepCopy()
	mode := corev1.LoadBalancerIPModeVIP
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address.String(), IPMode: &mode}}
	if err := b.update(ctx, s); err != nil {
		return address, fmt.Errorf("give service %s/%s address %s: %w", s.Namespace, s.Name, address, err)
	}
	return address, nil
}

// lead routes an address to a node that can serve it. It stays where it is as long as it can.
func (b *Balancer) lead(s *corev1.Service, address netip.Addr) error {
	candidates, err := b.candidates(s)
	if err != nil || len(candidates) == 0 || slices.Contains(candidates, b.routes[address]) {
		return err
	}
	if err := b.cfg.Router.Route(address, candidates[0]); err != nil {
		return err
	}
	b.routes[address] = candidates[0]
	return nil
}

// candidates are the nodes that can serve a Service, sorted.
func (b *Balancer) candidates(s *corev1.Service) ([]string, error) {
	all, err := b.nodes.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var names []string
	for _, n := range all {
		if b.cfg.Router.Alive(n.Name) && ready(n) {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	if s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return names, nil
	}
	endpoints, err := b.slices.EndpointSlices(s.Namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: s.Name}))
	if err != nil {
		return nil, fmt.Errorf("list endpoints of %s/%s: %w", s.Namespace, s.Name, err)
	}
	return slices.DeleteFunc(names, func(name string) bool { return !hasEndpoint(endpoints, name) }), nil
}

func ready(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func hasEndpoint(all []*discoveryv1.EndpointSlice, node string) bool {
	for _, slice := range all {
		for _, e := range slice.Endpoints {
			if e.NodeName != nil && *e.NodeName == node && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				return true
			}
		}
	}
	return false
}
