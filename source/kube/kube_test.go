package kube

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/tools/txtar"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source"
)

// patience bounds each wait.
const patience = 20 * time.Second

// rig is a Store over an API server, and the picture that it makes.
type rig struct {
	*Store
	t      *testing.T
	server *apiServer

	mu      sync.Mutex
	objects map[mesh.Ref]mesh.Object
	calls   int
	told    []mesh.Change
	news    chan struct{}
}

// follow runs a Store until the test ends.
func follow(t *testing.T, s *apiServer) *rig {
	t.Helper()
	r, _ := begin(t, s)
	return r
}

// begin runs a Store until the returned function is called, or the test ends.
func begin(t *testing.T, s *apiServer) (r *rig, stop func()) {
	t.Helper()
	r = &rig{t: t, server: s, objects: map[mesh.Ref]mesh.Object{}, news: make(chan struct{}, 1)}
	var err error
	r.Store, err = Open(Config{Cluster: s.cluster(), Apply: r.take})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the store does not end")
		}
	})
	t.Cleanup(stop)
	return r, stop
}

func (r *rig) take(changes []mesh.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	r.told = append(r.told, changes...)
	for _, c := range changes {
		if c.Object == nil {
			delete(r.objects, c.Ref)
		} else {
			r.objects[c.Ref] = c.Object
		}
	}
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// await waits until something is so.
func (r *rig) await(what string, so func() bool) {
	r.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for !so() {
		select {
		case <-r.news:
		case <-look.C:
		case <-limit.C:
			r.t.Fatalf("waited in vain: %s; faults %v", what, r.Status().Faults)
		}
	}
}

func (r *rig) read() {
	r.t.Helper()
	r.await("the first picture", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.calls > 0 })
}

func (r *rig) object(kind mesh.Kind, namespace, name string) mesh.Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.objects[mesh.Ref{Kind: kind, Namespace: namespace, Name: name}]
}

func (r *rig) workload(name string) *mesh.Workload {
	w, _ := r.object(mesh.KindWorkload, "default", name).(*mesh.Workload)
	return w
}

// worlds are the YAML of this repository's examples and goldens.
func worlds(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	add := func(name, text string) { out[name] += "\n---\n" + text }
	files, err := filepath.Glob("../../examples/bookinfo/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(f, "virtual-service-") { // they are alternatives to each other
			add("bookinfo", string(text))
		}
	}
	for _, pattern := range []string{"../testdata/*.txtar", "../../compile/testdata/*.txtar"} {
		archives, err := filepath.Glob(pattern)
		if err != nil || len(archives) == 0 {
			t.Fatalf("no goldens in %s: %v", pattern, err)
		}
		for _, f := range archives {
			a, err := txtar.ParseFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range a.Files {
				if filepath.Ext(x.Name) == ".yaml" {
					add(f, string(x.Data))
				}
			}
		}
	}
	return out
}

// placeless compares objects but for where they were written: a cluster has no files.
var placeless = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmp.FilterPath(func(p cmp.Path) bool {
	f, ok := p.Last().(cmp.StructField)
	return ok && (f.Name() == "Line" || f.Name() == "File")
}, cmp.Ignore())}

// TestSameAsFolder compares what a folder of YAML and the same objects in a cluster make of the mesh.
func TestSameAsFolder(t *testing.T) {
	for name, text := range worlds(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			decoded := api.Decode("world.yaml", []byte(text))
			if len(decoded.Objects) == 0 {
				t.Fatal("the world has no objects that can be read: ", decoded.Faults)
			}
			s := newServer(t)
			s.define()
			var valid []*api.Object
			for i, o := range decoded.Objects {
				if !slices.ContainsFunc(decoded.Objects[i+1:], func(later *api.Object) bool { return later.Ref == o.Ref }) {
					valid = append(valid, o) // of alternatives in one folder the last, as in the cluster
				}
				s.apply(text[o.Start:o.End])
			}
			want := map[mesh.Ref]mesh.Object{}
			for _, c := range source.New(source.Config{}).Apply(valid, nil) {
				if c.Object != nil {
					want[c.Ref] = c.Object
				}
			}
			r := follow(t, s)
			r.read()
			if faults := r.Status().Faults; len(faults) > 0 {
				t.Errorf("faults: %v", faults)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			for ref := range want {
				if _, there := r.objects[ref]; ref.Kind == mesh.KindSecret && !there {
					delete(want, ref) // nothing refers to it
				}
			}
			if diff := cmp.Diff(want, r.objects, placeless); diff != "" {
				t.Errorf("(-folder +cluster):\n%s", diff)
			}
		})
	}
}

const podYAML = `
apiVersion: v1
kind: Pod
metadata:
  name: NAME
  labels: {app: reviews, version: v1, pod-template-hash: 5f4d, security.istio.io/tlsMode: istio}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: reviews-v1-5f4d, uid: u, controller: true}]
spec:
  nodeName: n1
  serviceAccountName: bookinfo-reviews
  containers: [{name: app, ports: [{name: web, containerPort: 9080}]}]
status:
  phase: Running
  podIPs: [{ip: ADDRESS}]
  conditions: [{type: Ready, status: "READY"}]
`

func podText(name, ip, ready string) string {
	return strings.NewReplacer("NAME", name, "ADDRESS", ip, "READY", ready).Replace(podYAML)
}

func TestPods(t *testing.T) {
	s := newServer(t)
	s.apply(podText("reviews-1", "10.0.0.1", "True"))
	s.apply("apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: a}}")
	s.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {topology.istio.io/network: blue}}")
	r := follow(t, s)
	r.read()
	w := r.workload("reviews-1")
	if w == nil {
		t.Fatal("the pod is no workload")
	}
	type facts struct {
		Account, Locality, Network, Name, Canonical, Revision string
		MTLS                                                  bool
		Health                                                mesh.Health
		Target                                                uint16
	}
	of := func(w *mesh.Workload) facts {
		return facts{w.ServiceAccount, w.Locality, w.Network, w.WorkloadName, w.CanonicalName, w.CanonicalRevision, w.MTLS, w.Health, w.Targets["web"]}
	}
	want := facts{"bookinfo-reviews", "eu/a", "blue", "reviews-v1", "reviews", "v1", true, mesh.Healthy, 9080}
	if diff := cmp.Diff(want, of(w)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	s.apply(podText("reviews-1", "10.0.0.1", "False"))
	r.await("not ready", func() bool { return r.workload("reviews-1").Health == mesh.Unhealthy })
	s.apply("apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: b}}")
	r.await("another zone", func() bool { return r.workload("reviews-1").Locality == "eu/b" })
	s.apply(strings.Replace(podText("reviews-1", "10.0.0.1", "True"), "metadata:\n", "metadata:\n  deletionTimestamp: 2026-01-01T00:00:00Z\n", 1))
	r.await("draining", func() bool { return r.workload("reviews-1").Health == mesh.Draining })
	s.apply(strings.Replace(podText("reviews-1", "10.0.0.1", "False"), "Running", "Succeeded", 1))
	r.await("it has ended", func() bool { return r.workload("reviews-1") == nil })
}

// TestEntryBeforePod: what is written goes before a pod of the same name, and gives way to it again.
func TestEntryBeforePod(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(podText("reviews-1", "10.0.0.1", "True"))
	s.apply("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: reviews-1}\nspec: {address: 10.9.9.9}")
	r := follow(t, s)
	r.read()
	at := func() string { return r.workload("reviews-1").Addresses[0].String() }
	if got := at(); got != "10.9.9.9" {
		t.Errorf("the workload is at %s", got)
	}
	s.remove("WorkloadEntry", "default/reviews-1")
	r.await("the pod shows", func() bool { return at() == "10.0.0.1" })
}

// TestForeignSlices: the endpoints that others list for a Service are read from slices, with what is known of pods among
// them; slices of Kubernetes' own controller are not read.
func TestForeignSlices(t *testing.T) {
	s := newServer(t)
	s.apply(podText("reviews-1", "10.0.0.1", "True"))
	slice := `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: NAME, labels: {kubernetes.io/service-name: legacy, endpointslice.kubernetes.io/managed-by: BY}}
addressType: IPv4
ports: [{name: PORT, port: 3306, protocol: TCP}]
endpoints:
- addresses: [10.0.0.1]
  targetRef: {kind: Pod, name: reviews-1, namespace: default}
- addresses: [192.0.2.7]
  conditions: {ready: CONDITION}
`
	text := func(name, by, port, condition string) string {
		return strings.NewReplacer("NAME", name, "BY", by, "PORT", port, "CONDITION", condition).Replace(slice)
	}
	s.apply(text("a", "me", "db", "true"))
	s.apply(text("b", "me", "admin", "true"))
	s.apply(text("c", "endpointslice-controller.k8s.io", "own", "true"))
	r := follow(t, s)
	r.read()
	pod, out := r.workload("legacy/10.0.0.1"), r.workload("legacy/192.0.2.7")
	if pod == nil || out == nil {
		t.Fatalf("endpoints are missing: %v", r.objects)
	}
	if diff := cmp.Diff(map[string]uint16{"db": 3306, "admin": 3306}, out.Ports); diff != "" {
		t.Error(diff)
	}
	if !pod.Listed || !out.Listed || r.workload("reviews-1").Listed {
		t.Error("what slices list, and nothing else, must be picked by their Service alone")
	}
	if !pod.MTLS || pod.ServiceAccount != "bookinfo-reviews" || pod.Labels["kubernetes.io/service-name"] != "legacy" || out.MTLS {
		t.Errorf("pod %+v, other %+v", pod, out)
	}
	s.apply(strings.Replace(podText("reviews-1", "10.0.0.1", "True"), "tlsMode: istio", "tlsMode: disabled", 1))
	r.await("the pod's proxy is gone", func() bool { return !r.workload("legacy/10.0.0.1").MTLS })
	s.apply(text("a", "me", "db", "false"))
	s.apply(text("b", "me", "admin", "false"))
	r.await("not ready", func() bool { return r.workload("legacy/192.0.2.7") == nil })
	s.remove("EndpointSlice", "default/a")
	s.remove("EndpointSlice", "default/b")
	r.await("no slices", func() bool { return r.workload("legacy/10.0.0.1") == nil })
}

const rule = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: NAME}
spec: {host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: LIMIT}}}}
`

func ruleText(name, limit string) string {
	return strings.NewReplacer("NAME", name, "LIMIT", limit).Replace(rule)
}

func (r *rig) limit(name string) uint32 {
	x, _ := r.object(mesh.KindTraffic, "default", name).(*mesh.Traffic)
	if x == nil {
		return 0
	}
	return x.Policy.Connections.MaxConnections
}

// TestLastGood: an object with a fault leaves its last good version in force, says so, and hinders no other.
func TestLastGood(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(ruleText("a", "7"))
	r := follow(t, s)
	r.read()
	s.apply(ruleText("a", "-1"))
	s.apply(ruleText("b", "9"))
	r.await("the other rule", func() bool { return r.limit("b") == 9 })
	r.await("a fault", func() bool { return len(r.Status().Faults) == 1 })
	fault := r.Status().Faults[0]
	if r.limit("a") != 7 || fault.Object != "DestinationRule default/a" || !strings.Contains(fault.Path, "maxConnections") || fault.Line != 0 {
		t.Errorf("limit %d, fault %+v", r.limit("a"), fault)
	}
	s.apply(ruleText("a", "8"))
	r.await("it is good again", func() bool { return r.limit("a") == 8 && len(r.Status().Faults) == 0 })
}

// TestResync: after a watch that cannot be resumed, only what really differs is told, and nothing is dropped meanwhile.
func TestResync(t *testing.T) {
	for _, old := range []bool{false, true} {
		s := newServer(t)
		s.noStream = old
		s.define()
		for _, name := range []string{"a", "b", "c"} {
			s.apply(ruleText(name, "5"))
			s.apply(podText("pod-"+name, "10.0.0.1", "True"))
		}
		r := follow(t, s)
		r.read()
		s.mu.Lock()
		for ch := range s.streams { // nothing is told any more, and nothing of it is remembered
			close(ch)
		}
		clear(s.streams)
		s.mu.Unlock()
		r.mu.Lock()
		r.told = nil
		r.mu.Unlock()
		s.remove("DestinationRule", "default/a")
		s.remove("Pod", "default/pod-a")
		s.apply(ruleText("b", "6"))
		s.forget()
		r.await("the removals are seen", func() bool { return r.limit("a") == 0 && r.workload("pod-a") == nil && r.limit("b") == 6 })
		var told []string
		r.mu.Lock()
		for _, c := range r.told {
			told = append(told, c.Ref.String())
		}
		r.mu.Unlock()
		slices.Sort(told)
		want := []string{"traffic default/a", "traffic default/b", "workload default/pod-a"}
		if diff := cmp.Diff(want, slices.Compact(told)); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
	}
}

// TestComplete: nothing is told before everything was read once.
func TestComplete(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(ruleText("a", "7"))
	release := s.hold("security.istio.io/authorizationpolicies")
	defer release()
	r := follow(t, s)
	r.await("the other kinds are read", func() bool {
		r.Store.mu.Lock()
		defer r.Store.mu.Unlock()
		waiting := 0
		for _, f := range r.feeds {
			if !f.settled() {
				waiting++
			}
		}
		return waiting == 1 && len(r.feeds) > len(customs)
	})
	r.mu.Lock()
	calls := r.calls
	r.mu.Unlock()
	if calls != 0 {
		t.Error("something was told although policies have not been read")
	}
	release()
	r.read()
	if r.limit("a") != 7 {
		t.Error("the rule is not in force")
	}
}

// TestDefinitions: a kind that is not installed is no error, is read when it appears, and is gone with its definition.
func TestDefinitions(t *testing.T) {
	s := newServer(t)
	r := follow(t, s)
	r.read()
	if faults := r.Status().Faults; len(faults) > 0 {
		t.Errorf("faults: %v", faults)
	}
	for range 2 {
		s.defineOne(customs[1])
		s.apply(ruleText("a", "7"))
		r.await("the rule", func() bool { return r.limit("a") == 7 })
		s.remove("DestinationRule", "default/a")
		s.apply(ruleText("b", "7"))
		r.await("the second rule", func() bool { return r.limit("b") == 7 })
		s.remove("CustomResourceDefinition", "/destinationrules.networking.istio.io")
		r.await("it is gone", func() bool { return r.limit("b") == 0 })
		s.remove("DestinationRule", "default/b")
	}
}

// TestSecrets: only those that are referred to are read, where gateways run.
func TestSecrets(t *testing.T) {
	s := newServer(t)
	s.define()
	secret := "apiVersion: v1\nkind: Secret\nmetadata: {name: NAME, namespace: edge}\ntype: kubernetes.io/tls\ndata: {tls.crt: LS0t, tls.key: LS0t}\n"
	s.apply(strings.Replace(secret, "NAME", "front", 1))
	s.apply(strings.Replace(secret, "NAME", "other", 1))
	s.apply(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g}
spec:
  selector: {app: reviews}
  servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, credentialName: front}}]
`)
	r := follow(t, s)
	r.read()
	s.apply(strings.Replace(podText("gateway-1", "10.0.0.9", "True"), "name: gateway-1", "name: gateway-1\n  namespace: edge", 1))
	r.await("the secret", func() bool { return r.object(mesh.KindSecret, "edge", "front") != nil })
	for _, q := range s.asked() {
		if strings.Contains(q, "/secrets") && !strings.Contains(q, "fieldSelector=metadata.name%3Dfront") {
			t.Errorf("asked for more than the secret: %s", q)
		}
	}
	s.remove("Gateway", "default/g")
	r.await("nothing refers to it", func() bool { return r.object(mesh.KindSecret, "edge", "front") == nil })
}

// TestHiccup: where a resource cannot be read for a while it is told by itself, and what is refused is not told again.
func TestHiccup(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(ruleText("a", "never"))
	var mu sync.Mutex
	var log bytes.Buffer
	var reports [][]api.Fault
	store, err := Open(Config{
		Cluster: s.cluster(), Logger: slog.New(slog.NewTextHandler(&lockedWriter{mu: &mu, w: &log}, nil)),
		Report: func(f []api.Fault) { mu.Lock(); defer mu.Unlock(); reports = append(reports, f) },
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, server: s, Store: store}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	refused := func(object string) func() bool {
		return func() bool {
			return slices.ContainsFunc(r.Status().Faults, func(f api.Fault) bool { return f.Object == object })
		}
	}
	r.await("the rule is refused", refused("DestinationRule default/a"))
	breaks := func(so bool) {
		s.mu.Lock()
		s.broken = func(path string) bool { return so && path == "/api/v1/pods" }
		s.mu.Unlock()
	}
	breaks(true)
	s.cut()
	r.await("pods cannot be read", refused("pods"))
	breaks(false)
	r.await("pods can be read again", func() bool { return !refused("pods")() })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(reports) != 1 || len(reports[0]) != 1 || reports[0][0].Object != "DestinationRule default/a" {
		t.Errorf("reported %v", reports)
	}
	if !strings.Contains(log.String(), "resource=pods") {
		t.Errorf("the log says nothing of pods:\n%s", log.String())
	}
}
