package kubestore

import (
	"context"
	"errors"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source/kube"
	"github.com/lateen-mesh/lateen/test/kubetest"
)

// patience bounds each wait.
const patience = 90 * time.Second

// rig is a cluster and the picture that a Store makes of it.
type rig struct {
	t       *testing.T
	cluster *kubetest.Cluster
	store   *kube.Store

	mu      sync.Mutex
	objects map[mesh.Ref]mesh.Object
	read    bool
}

func newRig(t *testing.T) *rig {
	t.Helper()
	c, err := kubetest.New(t.Context(), kubetest.Config{Nodes: 1, Logs: filepath.Join(t.ArtifactDir(), "cluster"), Progress: t.Output()})
	if errors.Is(err, kubetest.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{t: t, cluster: c, objects: map[mesh.Ref]mesh.Object{}}
	at, err := kube.Reach(c.Kubeconfig, "")
	if err != nil {
		t.Fatal(err)
	}
	r.kubectl("create", "namespace", "istio-system")
	r.store, err = kube.Open(kube.Config{
		Cluster: at, Apply: r.take, Roots: func() []byte { return []byte("the roots") },
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.store.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) take(changes []mesh.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read = true
	for _, c := range changes {
		if c.Object == nil {
			delete(r.objects, c.Ref)
		} else {
			r.objects[c.Ref] = c.Object
		}
	}
}

func (r *rig) kubectl(args ...string) string {
	r.t.Helper()
	out, err := r.cluster.Kubectl(r.t.Context(), args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) apply(yaml string) {
	r.t.Helper()
	if err := r.cluster.Apply(r.t.Context(), yaml); err != nil {
		r.t.Fatal(err)
	}
}

// await waits until something is so.
func (r *rig) await(what string, so func() bool) {
	r.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !so() {
		select {
		case <-look.C:
		case <-limit.C:
			r.t.Fatalf("waited in vain: %s; faults %v", what, r.store.Status().Faults)
		}
	}
}

func (r *rig) object(kind mesh.Kind, namespace, name string) mesh.Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.objects[mesh.Ref{Kind: kind, Namespace: namespace, Name: name}]
}

// pods counts the workloads of pods in a namespace that are in a state.
func (r *rig) pods(namespace string, health mesh.Health) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.objects {
		if w, ok := o.(*mesh.Workload); ok && w.Kind == mesh.OriginPod && w.Namespace == namespace && w.Health == health {
			n++
		}
	}
	return n
}

// definitions is the file of Istio's CustomResourceDefinitions, as its Go module has it.
func definitions(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api").Output()
	if err != nil {
		t.Fatalf("find Istio's module: %v", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "kubernetes", "customresourcedefinitions.gen.yaml")
}

const app = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reviews, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: web}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v1, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: reviews}}
  template:
    metadata: {labels: {app: reviews, version: v1}}
    spec:
      serviceAccountName: reviews
      terminationGracePeriodSeconds: 1
      containers: [{name: app, image: IMAGE, imagePullPolicy: IfNotPresent, ports: [{name: web, containerPort: 9080}]}]
`

const rule = `
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec: {host: reviews, subsets: [{name: v1, labels: {version: "VERSION"}}]}
`

// TestStore reads a real cluster from before Istio's kinds are installed until a Deployment is gone.
func TestStore(t *testing.T) {
	if testing.Short() {
		t.Skip("a cluster takes its time: not with -short")
	}
	r := newRig(t)
	r.await("the first picture", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.read })
	if faults := r.store.Status().Faults; len(faults) > 0 {
		t.Errorf("faults: %v", faults)
	}
	s, _ := r.object(mesh.KindService, "default", "kubernetes.default.svc.cluster.local").(*mesh.Service)
	if s == nil || len(s.Addresses) != 1 {
		t.Fatalf("the API server's own Service is %+v", s)
	}
	r.await("the API server's endpoint", func() bool { // which the API server itself keeps in a slice
		r.mu.Lock()
		defer r.mu.Unlock()
		for ref := range r.objects {
			if ref.Kind == mesh.KindWorkload && strings.HasPrefix(ref.Name, "kubernetes/") {
				return true
			}
		}
		return false
	})

	t.Run("kinds", func(t *testing.T) { r.kinds(t) })
	t.Run("pods", func(t *testing.T) { r.lives(t) })
	t.Run("identity", func(t *testing.T) { r.identity(t) })
	t.Run("join", func(t *testing.T) { r.join(t) })
}

// kinds: Istio's kinds are read once they are installed, and their status is written.
func (r *rig) kinds(t *testing.T) {
	r.kubectl("apply", "--server-side", "-f", definitions(t))
	r.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	r.kubectl("create", "namespace", "shop")
	r.apply(strings.Replace(rule, "VERSION", "v1", 1))
	version := func() string {
		x, _ := r.object(mesh.KindTraffic, "shop", "reviews").(*mesh.Traffic)
		if x == nil {
			return ""
		}
		return x.Subsets[0].Labels["version"]
	}
	r.await("the rule", func() bool { return version() == "v1" })
	r.kubectl("wait", "--for=condition=Accepted", "-n", "shop", "destinationrule/reviews", "--timeout=60s")

	// The schema of the definition lets this pass; it means nothing.
	r.apply(strings.Replace(rule, "VERSION", "*", 1))
	r.kubectl("wait", "--for=condition=Accepted=false", "-n", "shop", "destinationrule/reviews", "--timeout=60s")
	r.await("one fault", func() bool { return len(r.store.Status().Faults) == 1 }) // those of kinds that were not served yet go
	if version() != "v1" {
		t.Errorf("version %q", version())
	}
	r.apply(strings.Replace(rule, "VERSION", "v2", 1))
	r.await("the rule is good again", func() bool { return version() == "v2" })
	r.kubectl("wait", "--for=jsonpath={.status.observedGeneration}=3", "-n", "shop", "destinationrule/reviews", "--timeout=60s")
}

// lives: pods are workloads when they are ready, and go when they end.
func (r *rig) lives(t *testing.T) {
	image := r.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.images[*].names[0]}")
	pause := ""
	for name := range strings.FieldsSeq(image) {
		if strings.Contains(name, "pause") {
			pause = name
		}
	}
	if pause == "" {
		t.Fatalf("no image does nothing: %s", image)
	}
	r.kubectl("label", "node", "--all", "topology.kubernetes.io/region=eu", "topology.kubernetes.io/zone=a", "--overwrite")
	r.apply(strings.Replace(app, "IMAGE", pause, 1))
	r.await("two pods", func() bool { return r.pods("shop", mesh.Healthy) == 2 })
	name := r.kubectl("get", "pods", "-n", "shop", "-o", "jsonpath={.items[0].metadata.name}")
	r.await("the node's zone", func() bool {
		w, _ := r.object(mesh.KindWorkload, "shop", name).(*mesh.Workload)
		return w != nil && w.Locality == "eu/a" && w.ServiceAccount == "reviews" && w.WorkloadName == "reviews-v1" && w.Targets["web"] == 9080
	})
	r.kubectl("scale", "-n", "shop", "deployment/reviews-v1", "--replicas=0")
	r.await("no pods", func() bool {
		return r.object(mesh.KindWorkload, "shop", name) == nil && r.pods("shop", mesh.Healthy) == 0
	})
}

// identity: the leader spreads the roots, and the API server says whose a token is.
func (r *rig) identity(t *testing.T) {
	if holder := r.kubectl("get", "lease", "-n", "istio-system", "lateend-leader", "-o", "jsonpath={.spec.holderIdentity}"); holder == "" {
		t.Error("nobody holds the Lease")
	}
	r.await("the roots", func() bool {
		out, err := r.cluster.Kubectl(t.Context(), "get", "configmap", "-n", "shop", kube.RootsName, "-o", `jsonpath={.data.root-cert\.pem}`)
		return err == nil && out == "the roots"
	})
	token := r.kubectl("create", "token", "reviews", "-n", "shop", "--audience", kube.Audience)
	namespace, name, err := r.store.Account(t.Context(), "10.0.0.1", token)
	if err != nil || namespace != "shop" || name != "reviews" {
		t.Errorf("the token is of %s/%s: %v", namespace, name, err)
	}
	if _, _, err := r.store.Account(t.Context(), "10.0.0.1", r.kubectl("create", "token", "reviews", "-n", "shop")); err == nil {
		t.Error("a token for the API server proves a workload")
	}
	if err := r.store.MayReadSecrets(t.Context(), "shop", "reviews"); err == nil {
		t.Error("an account without any right may read Secrets")
	}
	r.kubectl("create", "role", "keys", "-n", "shop", "--verb=get,list,watch", "--resource=secrets")
	r.kubectl("create", "rolebinding", "keys", "-n", "shop", "--role=keys", "--serviceaccount=shop:reviews")
	r.await("the right", func() bool { return r.store.MayReadSecrets(t.Context(), "shop", "reviews") == nil })
}
