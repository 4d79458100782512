package kube

import (
	"context"
	"hash/maphash"
	"maps"
	"strings"
	"unique"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source"
)

// foreignSlices selects the EndpointSlices of Services whose endpoints are not what Kubernetes' own controller makes of
// the pods that the Service selects. Those we make of the pods ourselves, by the same rules, as the pods have to be
// watched anyway: an endpoint that changes is told one step earlier, and is held once.
const foreignSlices = discovery.LabelServiceName + "," + discovery.LabelManagedBy + "!=endpointslice-controller.k8s.io"

// coreFeeds watch Kubernetes' own kinds.
func (s *Store) coreFeeds() []*feed {
	c := s.api.core
	pods := sharing{newShared[string](), newShared[uint16]()}
	return []*feed{
		s.typed(c, "namespaces", "", metav1.ListOptions{}, &core.NamespaceList{}, namespaceOf, namespacesRead),
		s.typed(c, "nodes", "", metav1.ListOptions{}, &core.NodeList{}, nodeOf, nodesRead),
		s.typed(c, "services", "", metav1.ListOptions{}, &core.ServiceList{}, serviceObject, objectsRead(api.KindService)),
		s.typed(c, "pods", "", metav1.ListOptions{}, &core.PodList{}, pods.pod, podsRead),
		s.typed(s.api.discovery, "endpointslices", "", metav1.ListOptions{LabelSelector: foreignSlices}, &discovery.EndpointSliceList{}, sliceOf, slicesRead),
		s.single(c, "configmaps", key{Namespace: api.RootNamespace, Name: api.ConfigName}, &core.ConfigMapList{}, meshConfig, objectsRead(api.KindConfigMap)),
	}
}

// typed watches a resource that client-go knows the types of; with narrow as the selectors, in all namespaces if
// namespace is empty.
func (s *Store) typed(c rest.Interface, resource, namespace string, narrow metav1.ListOptions, list runtime.Object, convert func(runtime.Object) any,
	apply func(*turn, map[key]any, bool),
) *feed {
	return &feed{
		name: resource, convert: convert, apply: apply, notice: s.notice,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector, o.FieldSelector = narrow.LabelSelector, narrow.FieldSelector
			into := list.DeepCopyObject()
			err := c.Get().Namespace(namespace).Resource(resource).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(into)
			return into, err
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.FieldSelector, o.Watch = narrow.LabelSelector, narrow.FieldSelector, true
			return c.Get().Namespace(namespace).Resource(resource).VersionedParams(&o, metav1.ParameterCodec).Watch(ctx)
		},
	}
}

// single watches one object.
func (s *Store) single(c rest.Interface, resource string, k key, list runtime.Object, convert func(runtime.Object) any,
	apply func(*turn, map[key]any, bool),
) *feed {
	only := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", k.Name).String()}
	f := s.typed(c, resource, k.Namespace, only, list, convert, apply)
	f.name = resource + " " + k.String()
	return f
}

// namespace is what the mesh reads of one.
type namespace struct {
	network string
	object  *api.Object // its labels, by which Gateways choose the routes that they take
}

func namespaceOf(o runtime.Object) any {
	k := o.(*core.Namespace)
	return &namespace{source.Network(k.Labels), &api.Object{
		Ref: api.Ref{Kind: api.KindNamespace, Name: k.Name}, APIVersion: "v1", Labels: k.Labels, Created: created(k.CreationTimestamp),
		Spec: &core.Namespace{},
	}}
}

func nodeOf(o runtime.Object) any { return source.Locality(o.(*core.Node).Labels) }

// serviceObject keeps of a Service what the mesh reads.
func serviceObject(o runtime.Object) any {
	k := o.(*core.Service)
	in := &k.Spec
	spec := core.ServiceSpec{
		Type: in.Type, ClusterIP: in.ClusterIP, ClusterIPs: in.ClusterIPs, ExternalName: in.ExternalName, Selector: in.Selector,
		PublishNotReadyAddresses: in.PublishNotReadyAddresses,
	}
	for _, p := range in.Ports {
		spec.Ports = append(spec.Ports, core.ServicePort{Name: p.Name, Protocol: p.Protocol, AppProtocol: p.AppProtocol, Port: p.Port, TargetPort: p.TargetPort})
	}
	return &stored{object: &api.Object{
		Ref: api.Ref{Kind: api.KindService, Namespace: k.Namespace, Name: k.Name}, APIVersion: "v1", Labels: k.Labels,
		Annotations: annotations(k.Annotations), Created: created(k.CreationTimestamp), Spec: &core.Service{Spec: spec},
	}}
}

// created is a time as api.Object has it.
func created(t metav1.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// annotations keeps those that a mesh may read: Istio's and ours.
func annotations(all map[string]string) map[string]string {
	var out map[string]string
	for k, v := range all {
		if group, _, _ := strings.Cut(k, "/"); strings.HasSuffix(group, "istio.io") || strings.HasSuffix(group, "lateen.dev") {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

// sliceOf keeps of an EndpointSlice what the mesh reads.
func sliceOf(o runtime.Object) any {
	s := o.(*discovery.EndpointSlice)
	s.ObjectMeta = metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, Labels: s.Labels, CreationTimestamp: s.CreationTimestamp}
	return s
}

// secretObject keeps of a Secret its key material.
func secretObject(o runtime.Object) any {
	k := o.(*core.Secret)
	return &stored{object: &api.Object{
		Ref: api.Ref{Kind: api.KindSecret, Namespace: k.Namespace, Name: k.Name}, APIVersion: "v1",
		Created: created(k.CreationTimestamp), Spec: &core.Secret{Type: k.Type, Data: k.Data},
	}}
}

// sharing makes workloads of pods. Those of one Deployment have the same labels and ports, which are held once.
type sharing struct {
	labels shared[string]
	ports  shared[uint16]
}

func (x *sharing) pod(o runtime.Object) any {
	k := o.(*core.Pod)
	w := source.Pod(k)
	if w == nil {
		return nil
	}
	w.Labels, w.Targets = x.labels.same(w.Labels), x.ports.same(w.Targets)
	for _, s := range []*string{&w.Namespace, &w.Origin.Namespace, &w.ServiceAccount, &w.WorkloadName, &w.CanonicalName, &w.CanonicalRevision} {
		*s = unique.Make(*s).Value()
	}
	return &pod{workload: w, node: unique.Make(k.Spec.NodeName).Value(), ownLocality: w.Locality != "", ownNetwork: w.Network != ""}
}

// shared finds maps that are the same.
type shared[V comparable] struct {
	seen map[uint64]map[string]V // by hash; one that collides is not shared
	seed maphash.Seed
}

// sharedMax bounds the maps that are remembered; beyond it all are forgotten, and found anew from then on.
const sharedMax = 1 << 16

func newShared[V comparable]() shared[V] {
	return shared[V]{map[uint64]map[string]V{}, maphash.MakeSeed()}
}

// same returns the map that is as m, and m itself the first time.
func (x *shared[V]) same(m map[string]V) map[string]V {
	if len(m) == 0 {
		return m
	}
	var sum uint64
	for k, v := range m {
		sum += maphash.Comparable(x.seed, k) ^ maphash.Comparable(x.seed, v)<<1 // the order of the pairs must not count
	}
	if old, ok := x.seen[sum]; ok {
		if maps.Equal(old, m) {
			return old
		}
		return m
	}
	if len(x.seen) >= sharedMax {
		clear(x.seen)
	}
	x.seen[sum] = m
	return m
}
