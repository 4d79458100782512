package operate

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/deploy/apply"
	"github.com/lateen-mesh/lateen/test/kubetest"
)

// patience bounds each wait, on a machine that does much else.
const patience = 4 * time.Minute

// rig is an API server without nodes, where a stand-in plays the kubelets and lateend.
type rig struct {
	*testing.T
	cluster *kubetest.Cluster
	at      *rest.Config
	client  dynamic.Interface
	applier *apply.Applier
}

func newRig(t *testing.T) *rig {
	r := &rig{T: t, cluster: kubetest.UpAPI(t)}
	var err error
	if r.at, err = Reach(r.cluster.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	r.at.QPS, r.at.Burst = 200, 400
	if err := rest.LoadTLSFiles(r.at); err != nil {
		t.Fatal(err)
	}
	if r.client, err = dynamic.NewForConfig(r.at); err != nil {
		t.Fatal(err)
	}
	r.applier = apply.New(apply.Config{Client: r.client})
	return r
}

// operator runs one with the rights that the chart gives it, until the returned function is called.
func (r *rig) operator(identity string) (stop func()) {
	r.Helper()
	own := rest.CopyConfig(r.at)
	own.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + deploy.Namespace + ":" + apply.OperatorName,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + deploy.Namespace, "system:authenticated"},
	}
	o, err := New(Config{Cluster: own, Identity: identity, Logger: slog.New(slog.NewTextHandler(r.Output(), nil)).With("operator", identity)})
	if err != nil {
		r.Fatal(err)
	}
	return r.run(o.Run)
}

// run runs something until the returned function is called, or the test ends.
func (r *rig) run(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			r.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	r.Cleanup(stop)
	return stop
}

// Resources beside those of an installation.
var (
	pods     = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	webhooks = []schema.GroupVersionResource{
		{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
		{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"},
	}
)

// standIn says that pods run, as kubelets do, and gives the webhooks roots, as lateend does.
func (r *rig) standIn(ctx context.Context) error {
	roots := base64.StdEncoding.EncodeToString(r.at.CAData)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if list, err := r.client.Resource(pods).List(ctx, metav1.ListOptions{LabelSelector: "app=lateend"}); err == nil {
			for _, p := range list.Items {
				if phase, _, _ := unstructured.NestedString(p.Object, "status", "phase"); phase == "Running" {
					continue
				}
				if c, _, _ := unstructured.NestedSlice(p.Object, "spec", "containers"); len(c) == 1 && strings.HasSuffix(fmt.Sprint(c[0].(map[string]any)["image"]), ":slow") {
					continue // it never becomes ready
				}
				status := []byte(`{"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}`)
				_, _ = r.client.Resource(pods).Namespace(p.GetNamespace()).Patch(ctx, p.GetName(), types.StrategicMergePatchType, status, metav1.PatchOptions{}, "status")
			}
		}
		for _, of := range webhooks {
			list, err := r.client.Resource(of).List(ctx, metav1.ListOptions{LabelSelector: apply.LabelInstallation})
			if err != nil {
				continue
			}
			for _, h := range list.Items {
				var patch []string
				all, _, _ := unstructured.NestedSlice(h.Object, "webhooks")
				for i := range all {
					if has, _, _ := unstructured.NestedString(all[i].(map[string]any), "clientConfig", "caBundle"); has == roots {
						continue
					}
					patch = append(patch, fmt.Sprintf(`{"op": "add", "path": "/webhooks/%d/clientConfig/caBundle", "value": %q}`, i, roots))
				}
				if len(patch) > 0 {
					_, _ = r.client.Resource(of).Patch(ctx, h.GetName(), types.JSONPatchType, []byte("["+strings.Join(patch, ",")+"]"), metav1.PatchOptions{})
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// kubectl runs it and returns what it printed.
func (r *rig) kubectl(args ...string) string {
	r.Helper()
	out, err := r.cluster.Kubectl(r.Context(), args...)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// put applies YAML as users do.
func (r *rig) put(yaml string) {
	r.Helper()
	if err := r.cluster.Apply(r.Context(), yaml); err != nil {
		r.Fatal(err)
	}
}

// await waits until something is so; look says what is missing, or "".
func (r *rig) await(what string, look func() string) {
	r.Helper()
	began := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := look()
		if missing == "" {
			r.Logf("%6.1fs %s", time.Since(began).Seconds(), what)
			return
		}
		if time.Since(began) > patience {
			r.Fatalf("wait until %s: %s", what, missing)
		}
		<-tick.C
	}
}

// reads waits until an object's fields are so.
func (r *rig) reads(want, object, path string) {
	r.Helper()
	r.await(object+" is "+want, func() string {
		got, err := r.cluster.Kubectl(r.Context(), "get", "-n", deploy.Namespace, object, "-o", "jsonpath="+path)
		if err != nil {
			return err.Error()
		}
		if !strings.Contains(got, want) {
			return got
		}
		return ""
	})
}

// missing waits until an object is not there.
func (r *rig) missing(object string) {
	r.Helper()
	r.await(object+" is gone", func() string {
		return r.kubectl("get", "-n", deploy.Namespace, object, "--ignore-not-found", "-o", "name")
	})
}

const (
	installation = "apiVersion: lateen.dev/v1alpha1\nkind: Installation\nmetadata: {name: NAME}\nspec: {profile: minimal, values: {VALUES}}\n"
	// ready is of which spec it is said whether the installation is ready, and why not.
	ready = `{.metadata.generation} {.status.observedGeneration} {.status.conditions[0].status} {.status.conditions[0].reason} {.status.conditions[0].message}`
)

// want writes an Installation as users do.
func (r *rig) want(name, values string) {
	r.Helper()
	r.put(strings.NewReplacer("NAME", name, "VALUES", values).Replace(installation))
}

// settled waits until an installation is ready as it is wanted now.
func (r *rig) settled(name string) {
	r.Helper()
	r.await("the Installation "+name+" is ready", func() string {
		got := r.kubectl("get", "installation", name, "-o", "jsonpath="+ready)
		if f := strings.Fields(got); len(f) < 3 || f[0] != f[1] || f[2] != "True" {
			return got
		}
		return ""
	})
}

// TestOperator has an operator keep installations of a real API server, with no rights but those of its chart.
func TestOperator(t *testing.T) {
	r := newRig(t)
	r.run(r.standIn)
	r.init()
	stop := r.operator("first")
	r.await("the definitions are there", func() string {
		_, err := r.cluster.Kubectl(t.Context(), "get", "installations")
		if err != nil {
			return err.Error()
		}
		return ""
	})
	if could := r.operated(); !could {
		t.Error("nobody seems to work")
	}
	r.want("default", "")
	r.settled("default")
	r.repairs()
	r.changes()
	r.refuses()
	r.rights()
	r.asked()

	// Another operator stands by until the first one ends.
	stopSecond := r.operator("second")
	stop()
	r.reads("second", "lease/"+apply.OperatorName, "{.spec.holderIdentity}")
	r.kubectl("delete", "-n", deploy.Namespace, "service/lateend")
	r.reads("lateend", "service/lateend", "{.metadata.name}")
	r.removes(stopSecond)
}

// init makes the operator's objects, as `lateen operator init` does.
func (r *rig) init(set ...string) {
	r.Helper()
	objects, err := deploy.RenderOperator(deploy.Config{Set: set})
	if err == nil {
		err = r.applier.InitOperator(r.Context(), objects, 0)
	}
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) operated() bool {
	r.Helper()
	is, err := r.applier.Operated(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	return is
}

// repairs: what others delete or change comes back.
func (r *rig) repairs() {
	for _, object := range []string{"deployment/lateend", "clusterrole/lateend", "rolebinding/lateend", "mutatingwebhookconfiguration/lateen-sidecar-injector"} {
		before := r.kubectl("get", "-n", deploy.Namespace, object, "-o", "jsonpath={.metadata.uid}")
		r.kubectl("delete", "-n", deploy.Namespace, object)
		r.await(object+" has come back", func() string {
			now := r.kubectl("get", "-n", deploy.Namespace, object, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}")
			if now == "" || now == before {
				return "it is not there"
			}
			return ""
		})
	}
	r.kubectl("patch", "-n", deploy.Namespace, "service/lateend", "--type=merge", "-p", `{"spec": {"selector": {"app": "other"}}}`)
	r.reads("lateend", "service/lateend", "{.spec.selector.app}")
	r.kubectl("delete", "crd", "sidecars.networking.istio.io")
	r.reads("sidecars", "crd/sidecars.networking.istio.io", "{.metadata.name}")
	r.settled("default")
}

// changes: another spec is put in force, and what it wants no more goes.
func (r *rig) changes() {
	r.want("default", "lateend: {replicas: 2}")
	r.settled("default")
	r.reads("lateend", "pdb/lateend", "{.metadata.name}")
	r.want("default", "lateend: {replicas: 1}")
	r.missing("pdb/lateend")
	r.settled("default")
	// While something is waited for, the rest is repaired, and another wish counts at once.
	r.want("default", "tag: slow")
	r.reads("False Installing lateend: ", "installation/default", ready)
	r.kubectl("delete", "-n", deploy.Namespace, "serviceaccount/lateend", "service/istiod")
	r.reads("istiod", "service/istiod", "{.metadata.name}")
	r.reads("lateend", "serviceaccount/lateend", "{.metadata.name}")
	r.reads("False Installing lateend: ", "installation/default", ready)
	r.want("default", "lateend: {replicas: 1}")
	r.settled("default")
}

// refuses: a fault in the spec is told, and what was wanted before is kept.
func (r *rig) refuses() {
	r.want("default", "lateend: {replicas: many}")
	r.reads("False InvalidSpec judge the values", "installation/default", ready)
	r.reads("correct it with `kubectl edit installation default`; what was wanted before stays in force", "installation/default", ready)
	r.kubectl("delete", "-n", deploy.Namespace, "deployment/lateend")
	r.reads("1", "deployment/lateend", "{.spec.replicas}")
	r.reads(`{"lateend":{"replicas":1}}`, "installation/default", "{.status.applied.values}")
	r.want("default", "revision: other")
	r.reads("the revision is the name of the Installation", "installation/default", ready)
	r.want("default", "")
	r.settled("default")
}

// rights: what the operator may not give is told, and is given once it may.
func (r *rig) rights() {
	account := "--as=system:serviceaccount:" + deploy.Namespace + ":" + apply.OperatorName
	for _, verb := range []string{"escalate", "bind"} {
		if can, _ := r.cluster.Kubectl(r.Context(), "auth", "can-i", verb, "clusterroles", account); strings.TrimSpace(can) != "no" {
			r.Errorf("the operator may %s: %s", verb, can)
		}
	}
	r.kubectl("create", "namespace", "shop")
	r.want("canary", "secretNamespaces: [shop]")
	r.reads("is forbidden", "installation/canary", ready)
	r.reads("lateen operator init --set secretNamespaces", "installation/canary", ready)
	r.init("secretNamespaces={shop}")
	r.kubectl("annotate", "installation", "canary", "again=yes")
	r.settled("canary")
}

// asked: a command leaves the work to the operator, and says what comes of it. What others wrote is replaced.
func (r *rig) asked() {
	var i apply.Installation
	i.Name, i.Spec = "default", apply.Spec{Profile: "minimal", Values: map[string]any{"tag": "v2"}}
	if err := r.applier.Ask(r.Context(), i, patience); err != nil {
		r.Fatal(err)
	}
	r.reads("v2", "deployment/lateend", "{.spec.template.spec.containers[0].image}")
	i.Spec.Values = map[string]any{"network": "n1"}
	if err := r.applier.Ask(r.Context(), i, patience); err != nil {
		r.Fatal(err)
	}
	r.reads(`{"network":"n1"}`, "installation/default", "{.spec.values}")
}

// removes: with an Installation goes what belongs to it, but for what nobody could make anew, and what users wrote.
func (r *rig) removes(stop func()) {
	r.kubectl("create", "secret", "generic", "-n", deploy.Namespace, "lateen-ca")
	r.put("apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: mine, namespace: shop}\nspec: {}\n")
	r.kubectl("delete", "installation", "canary")
	if got := r.kubectl("get", "deployments", "-n", deploy.Namespace, "-o", "name"); strings.Contains(got, "canary") {
		r.Errorf("there is left %s", got)
	}
	r.want("canary", "")
	r.settled("canary")
	r.kubectl("delete", "installations", "--all") // at once; the last one takes what they share
	got := r.kubectl("get", "deployments,services,configmaps,roles,clusterroles,mutatingwebhookconfigurations", "-A", "-l", apply.LabelInstallation, "-o", "name")
	if got != "" {
		r.Errorf("there is left %s", got)
	}
	r.kubectl("get", "secret", "-n", deploy.Namespace, "lateen-ca")
	r.kubectl("get", "sidecars.networking.istio.io", "-n", "shop", "mine")
	stop() // as the end of its pod does, before it has no rights
	if err := r.applier.RemoveOperator(r.Context(), patience); err != nil {
		r.Error(err)
	}
	if got := r.kubectl("get", "deployments,serviceaccounts,roles,clusterroles", "-A", "-l", "app="+apply.OperatorName, "-o", "name"); got != "" {
		r.Errorf("of the operator there is left %s", got)
	}
}
