package balance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// twin is an API server and a network in memory.
type twin struct {
	t      *testing.T
	b      *Balancer
	caches map[string]cache.Indexer
	dead   map[string]bool
	routes map[string]string
}

func newTwin(t *testing.T, pool string) *twin {
	w := &twin{t: t, caches: map[string]cache.Indexer{}, dead: map[string]bool{}, routes: map[string]string{}}
	for _, kind := range []string{"services", "nodes", "slices"} {
		w.caches[kind] = cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	}
	w.b = New(Config{Pool: netip.MustParsePrefix(pool), Router: w})
	w.b.services = corelisters.NewServiceLister(w.caches["services"])
	w.b.nodes = corelisters.NewNodeLister(w.caches["nodes"])
	w.b.slices = discoverylisters.NewEndpointSliceLister(w.caches["slices"])
	w.b.update = func(_ context.Context, s *corev1.Service) error { return w.caches["services"].Update(s) }
	for n := 1; n <= 2; n++ {
		w.add("nodes", &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node%d", n)},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		})
	}
	return w
}

func (w *twin) Alive(node string) bool { return !w.dead[node] }

func (w *twin) Route(address netip.Addr, node string) error {
	w.routes[address.String()] = node
	return nil
}

func (w *twin) Unroute(address netip.Addr) error {
	delete(w.routes, address.String())
	return nil
}

func (w *twin) add(kind string, object any) {
	w.t.Helper()
	if err := w.caches[kind].Add(object); err != nil {
		w.t.Fatal(err)
	}
}

// service adds a LoadBalancer; later ones are younger.
func (w *twin) service(name string, change func(*corev1.Service)) {
	w.t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(int64(len(w.caches["services"].List())), 0))},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer},
	}
	if change != nil {
		change(s)
	}
	w.add("services", s)
}

func (w *twin) reconcile() {
	w.t.Helper()
	if err := w.b.reconcile(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *twin) want(want map[string]string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.routes); diff != "" {
		w.t.Errorf("routes (-want +got):\n%s", diff)
	}
}

func TestAddresses(t *testing.T) {
	w := newTwin(t, "172.31.0.0/24")
	class := "other"
	w.service("first", nil)
	w.service("second", nil)
	w.service("inner", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	w.service("foreign", func(s *corev1.Service) { s.Spec.LoadBalancerClass = &class })
	w.reconcile()
	w.want(map[string]string{"172.31.0.1": "node1", "172.31.0.2": "node1"})

	// One that has gone gives its address back, and another keeps its own.
	s, err := w.b.services.Services("a").Get("first")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.caches["services"].Delete(s); err != nil {
		t.Fatal(err)
	}
	w.reconcile()
	w.want(map[string]string{"172.31.0.2": "node1"})
	w.service("third", nil)
	w.reconcile()
	w.want(map[string]string{"172.31.0.1": "node1", "172.31.0.2": "node1"})
}

func TestNodeEnds(t *testing.T) {
	w := newTwin(t, "172.31.0.0/24")
	w.service("first", nil)
	w.reconcile()
	w.dead["node1"] = true
	w.reconcile()
	w.want(map[string]string{"172.31.0.1": "node2"})
	// An address does not wander without need.
	w.dead["node1"] = false
	w.reconcile()
	w.want(map[string]string{"172.31.0.1": "node2"})
}

func TestLocal(t *testing.T) {
	w := newTwin(t, "172.31.0.0/24")
	w.service("first", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })
	w.reconcile()
	w.want(map[string]string{})
	node, no := "node2", false
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "first-x", Labels: map[string]string{discoveryv1.LabelServiceName: "first"}},
		Endpoints:  []discoveryv1.Endpoint{{NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &no}}},
	}
	w.add("slices", slice)
	w.reconcile()
	w.want(map[string]string{})
	slice = slice.DeepCopy()
	slice.Endpoints[0].Conditions.Ready = nil // unknown is to be taken for ready
	w.add("slices", slice)
	w.reconcile()
	w.want(map[string]string{"172.31.0.1": "node2"})
}

func TestPoolIsBounded(t *testing.T) {
	w := newTwin(t, "172.31.0.0/30")
	for n := range 4 {
		w.service(fmt.Sprintf("s%d", n), nil)
	}
	err := w.b.reconcile(t.Context())
	if err == nil {
		t.Fatal("four addresses of a pool that has three")
	}
	if errors.Unwrap(err) != nil || len(w.routes) != 3 {
		t.Errorf("%v, routes %v", err, w.routes)
	}
}
