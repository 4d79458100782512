package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	authorization "k8s.io/api/authorization/v1"
	lease "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	fakedynamic "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/inject"
	"github.com/lateen-mesh/lateen/source/kube"
)

// stage is a double of a cluster in which all is well, to be spoilt.
type stage struct {
	t       *testing.T
	now     time.Time
	roots   string
	objects map[string]runtime.Object // by "kind namespace/name"
	custom  map[string]*unstructured.Unstructured
	known   map[string]definition
	version version.Info
	refused map[string]bool              // "verb resource" that this user may not
	pages   map[string]map[string]string // by "pod:port", by path
	serving *tls.Config
	skew    time.Duration // of the API server's clock
}

func newStage(t *testing.T) *stage {
	t.Helper()
	authority, err := ca.New(ca.Config{Dir: filepath.Join(t.TempDir(), "ca")})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := authority.ServerCertificate([]string{"lateend"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{
		t: t, now: time.Now().Truncate(time.Second), roots: string(authority.Bundle().PEM(authority.TrustDomain())), serving: cert.TLS(),
		objects: map[string]runtime.Object{}, custom: map[string]*unstructured.Unstructured{},
		known: map[string]definition{}, version: version.Info{Major: "1", Minor: "36", GitVersion: "v1.36.0"},
		refused: map[string]bool{}, pages: map[string]map[string]string{},
	}
	s.cluster()
	s.installation()
	s.workload()
	return s
}

// put adds an object.
func (s *stage) put(o runtime.Object) {
	m := o.(meta.Object)
	s.objects[fmt.Sprintf("%T %s/%s", o, m.GetNamespace(), m.GetName())] = o
}

// get finds an object, to be spoilt.
func get[T meta.Object](s *stage, namespace, name string) T {
	s.t.Helper()
	var zero T
	o, there := s.objects[fmt.Sprintf("%T %s/%s", zero, namespace, name)]
	if !there {
		s.t.Fatalf("no %T %s/%s", zero, namespace, name)
	}
	return o.(T)
}

// drop takes an object away.
func drop[T meta.Object](s *stage, namespace, name string) {
	s.t.Helper()
	get[T](s, namespace, name)
	var zero T
	delete(s.objects, fmt.Sprintf("%T %s/%s", zero, namespace, name))
}

func named(namespace, name string, labels map[string]string) meta.ObjectMeta {
	return meta.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}
}

func (s *stage) cluster() {
	node := &core.Node{ObjectMeta: named("", "n1", nil)}
	node.Status.NodeInfo = core.NodeSystemInfo{
		OperatingSystem: "linux", Architecture: "amd64", KernelVersion: "6.1.0-13-amd64", KubeletVersion: "v1.36.0", ContainerRuntimeVersion: "containerd://2.1.0",
	}
	node.Status.Conditions = []core.NodeCondition{{Type: core.NodeReady, Status: core.ConditionTrue}}
	s.put(node)
	s.put(&lease.Lease{ObjectMeta: named(nodeLeases, "n1", nil), Spec: lease.LeaseSpec{RenewTime: &meta.MicroTime{Time: s.now}}})
	for name, labels := range map[string]map[string]string{"kube-system": nil, deploy.Namespace: nil, "shop": {"istio-injection": "enabled"}} {
		s.put(&core.Namespace{ObjectMeta: named("", name, labels)})
	}
}

func (s *stage) installation() {
	const holder, seconds = "lateend-1_abc", int32(15)
	labels := map[string]string{"app": controlApp, labelRevision: "default", labelInstallation: "default", "sidecar.istio.io/inject": "false"}
	s.put(&apps.Deployment{
		ObjectMeta: named(deploy.Namespace, "lateend", labels), Spec: apps.DeploymentSpec{Replicas: new(int32(1))}, Status: apps.DeploymentStatus{ReadyReplicas: 1},
	})
	s.put(&core.Pod{
		ObjectMeta: named(deploy.Namespace, "lateend-1", labels), Spec: core.PodSpec{Containers: []core.Container{{Name: "lateend", Image: "lateend:1"}}},
		Status: core.PodStatus{Phase: core.PodRunning, Conditions: []core.PodCondition{{Type: core.PodReady, Status: core.ConditionTrue}}},
	})
	s.put(&lease.Lease{ObjectMeta: named(deploy.Namespace, leaseName, nil), Spec: lease.LeaseSpec{
		HolderIdentity: new(holder), LeaseDurationSeconds: new(seconds), RenewTime: &meta.MicroTime{Time: s.now},
	}})
	for _, namespace := range []string{deploy.Namespace, "shop"} {
		s.put(&core.ConfigMap{ObjectMeta: named(namespace, rootsName, nil), Data: map[string]string{rootsKey: s.roots}})
	}
	s.put(&core.ConfigMap{ObjectMeta: named(deploy.Namespace, injectionName, nil), Data: map[string]string{"config.yaml": "{proxyImage: p:1, initImage: i:1}"}})
	hook := inject.Registered{Namespace: deploy.Namespace, Service: "lateend", CABundle: []byte(s.roots)}.Object()
	hook.Labels[labelInstallation] = "default"
	s.put(hook)
	s.put(&discovery.EndpointSlice{
		ObjectMeta: named(deploy.Namespace, "lateend-x", map[string]string{discovery.LabelServiceName: "lateend"}),
		Endpoints:  []discovery.Endpoint{{Conditions: discovery.EndpointConditions{Ready: new(true)}}},
	})
	for name, d := range map[string]map[string]any{
		"virtualservices.networking.istio.io": {"group": "networking.istio.io", "names": map[string]any{"plural": "virtualservices", "kind": "VirtualService"}},
		"gateways.networking.istio.io":        {"group": "networking.istio.io", "names": map[string]any{"plural": "gateways", "kind": "Gateway"}},
	} {
		d["versions"] = []any{map[string]any{"name": "v1", "served": true, "storage": true}, map[string]any{"name": "v1beta1", "served": true}}
		s.custom[name] = &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": name}, "spec": d,
			"status": map[string]any{"conditions": []any{map[string]any{"type": "Established", "status": "True"}}},
		}}
		s.known[name] = definitionOf(s.custom[name].Object)
	}
	s.pages["lateend-1:15014"] = map[string]string{
		"/status":  `{"version": "v1", "warnings": []}`,
		"/proxies": `[{"name": "web-1", "namespace": "shop", "role": "sidecar", "connected": true, "synced": true, "identity": "spiffe://cluster.local/ns/shop/sa/web"}]`,
	}
}

// store defines a kind and puts an object of it, shop/it, into the cluster.
func (s *stage) store(group, resource, kind string, spec map[string]any) *unstructured.Unstructured {
	d := s.custom["virtualservices.networking.istio.io"].DeepCopy()
	d.SetName(resource + "." + group)
	_ = unstructured.SetNestedField(d.Object, group, "spec", "group")
	_ = unstructured.SetNestedField(d.Object, map[string]any{"plural": resource, "kind": kind}, "spec", "names")
	version := "v1"
	if v := kube.Versions(d.GetName()); len(v) > 0 {
		version = v[0]
	}
	_ = unstructured.SetNestedSlice(d.Object, []any{map[string]any{"name": version, "served": true, "storage": true}}, "spec", "versions")
	s.custom[d.GetName()] = d
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": group + "/" + version, "kind": kind, "spec": spec}}
	o.SetName("it")
	if resource != "gatewayclasses" {
		o.SetNamespace("shop")
	}
	s.custom["it"] = o
	return o
}

func (s *stage) workload() {
	s.put(s.pod("shop", "web-1"))
	s.pages["web-1:15000"] = map[string]string{
		"/status": fmt.Sprintf(`{"version": "v1", "ready": true, "connected": true, "rss_mib": 9.5, "updated": %q, "certificate_expires": %q}`,
			s.now.Add(-time.Minute).Format(time.RFC3339), s.now.Add(12*time.Hour).Format(time.RFC3339)),
		"/config": `[{"kind": "cluster", "name": "web", "state": "ready", "text": "cluster web\n  endpoints\n"}]`,
	}
	virtual := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": map[string]any{"namespace": "shop", "name": "web"},
		"spec": map[string]any{"hosts": []any{"web"}, "http": []any{map[string]any{"route": []any{map[string]any{"destination": map[string]any{"host": "web"}}}}}},
	}}
	s.custom["web"] = virtual
}

// pod is one with a proxy that is ready.
func (s *stage) pod(namespace, name string) *core.Pod {
	always := core.ContainerRestartPolicyAlways
	p := &core.Pod{
		ObjectMeta: named(namespace, name, nil),
		Spec: core.PodSpec{
			InitContainers: []core.Container{{Name: inject.InitContainer}, {Name: proxyContainer, RestartPolicy: &always}},
			Containers:     []core.Container{{Name: "web"}},
		},
		Status: core.PodStatus{
			Phase:                 core.PodRunning,
			InitContainerStatuses: []core.ContainerStatus{{Name: inject.InitContainer, State: core.ContainerState{Terminated: &core.ContainerStateTerminated{}}}, {Name: proxyContainer, Ready: true}},
		},
	}
	p.Annotations = map[string]string{annotationStatus: "{}"}
	p.CreationTimestamp = meta.Time{Time: s.now.Add(-time.Hour)}
	return p
}

// world is the cluster as the commands ask it.
func (s *stage) world() *world {
	var typed []runtime.Object
	for _, o := range s.objects {
		typed = append(typed, o)
	}
	kinds := map[schema.GroupVersionResource]string{definitions: "CustomResourceDefinitionList"}
	resources := map[string]schema.GroupVersionResource{"CustomResourceDefinition": definitions}
	for name, u := range s.custom {
		if d := definitionOf(u.Object); d.storage != "" {
			r := schema.GroupVersionResource{Group: d.group, Version: d.storage, Resource: d.resource}
			kinds[r], resources[d.group+"/"+d.kind] = d.kind+"List", r
		} else if name == "" {
			s.t.Fatal("an object without a name")
		}
	}
	objects := fakedynamic.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds)
	for _, u := range s.custom {
		kind := u.GroupVersionKind()
		r, found := resources[kind.Kind]
		if !found {
			r = resources[kind.Group+"/"+kind.Kind]
		}
		// Told the resource: the fake takes a Gateway's to be gatewaies.
		if err := objects.Tracker().Create(r, u, u.GetNamespace()); err != nil {
			s.t.Fatal(err)
		}
	}
	clients := fake.NewSimpleClientset(typed...)
	clients.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &s.version
	clients.PrependReactor("create", "selfsubjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authorization.SelfSubjectAccessReview)
		asked := review.Spec.ResourceAttributes
		review.Status.Allowed = !s.refused[asked.Verb+" "+asked.Resource] && !s.refused[asked.Verb]
		return true, review, nil
	})
	return &world{
		kube: clients, objects: objects,
		dial: s.dial, now: func() time.Time { return s.now }, version: "v1", certDays: 60,
		date:  func(context.Context) (time.Time, error) { return s.now.Add(s.skew), nil },
		known: func() (map[string]definition, error) { return s.known, nil },
		wanted: func() ([]deploy.Object, error) {
			return []deploy.Object{{APIVersion: "v1", Kind: "Namespace"}, {APIVersion: "apps/v1", Kind: "Deployment", Namespace: deploy.Namespace}}, nil
		},
	}
}

// oneConn is a listener for one connection.
type oneConn struct {
	conns chan net.Conn
	once  sync.Once
}

func (o *oneConn) Accept() (net.Conn, error) {
	if c, more := <-o.conns; more {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (o *oneConn) Close() error   { o.once.Do(func() { close(o.conns) }); return nil }
func (o *oneConn) Addr() net.Addr { return forwardedAddr{} }

// dial connects to a page of a pod.
func (s *stage) dial(_ context.Context, _, pod string, port int) (net.Conn, error) {
	ours, theirs := net.Pipe()
	s.t.Cleanup(func() { _ = theirs.Close() })
	if port == portWebhook {
		go func() { _ = tls.Server(theirs, s.serving).Handshake() }()
		return ours, nil
	}
	pages, there := s.pages[fmt.Sprintf("%s:%d", pod, port)]
	if !there {
		return nil, errors.New("connection refused")
	}
	l := &oneConn{conns: make(chan net.Conn, 1)}
	l.conns <- theirs
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, there := pages[r.URL.Path]
		if !there {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(text))
	})}
	go func() { _ = server.Serve(l) }()
	s.t.Cleanup(func() { _ = server.Close() })
	return ours, nil
}

// hook is the registration of the injection webhook.
func (s *stage) hook() *admission.MutatingWebhookConfiguration {
	return get[*admission.MutatingWebhookConfiguration](s, "", "lateen-sidecar-injector")
}
