package apply_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/deploy/apply"
	"github.com/lateen-mesh/lateen/test/kubetest"
)

// patience bounds each wait, on a machine that does much else.
const patience = 3 * time.Minute

// rig is an API server, where no pod runs.
type rig struct {
	*testing.T
	cluster *kubetest.Cluster
	at      *rest.Config
	client  dynamic.Interface
	applier *apply.Applier

	mu   sync.Mutex
	told []string // warnings since they were last asked for
}

func newRig(t *testing.T) *rig {
	r := &rig{T: t, cluster: kubetest.UpAPI(t)}
	at, err := clientcmd.BuildConfigFromFlags("", r.cluster.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	at.QPS, at.Burst = 200, 400
	r.at = at
	if r.client, err = dynamic.NewForConfig(at); err != nil {
		t.Fatal(err)
	}
	r.applier = apply.New(apply.Config{Client: r.client, Tell: func(s apply.Step) {
		if s.Warning {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, s.Text)
		}
	}})
	return r
}

// warnings are those since they were last asked for.
func (r *rig) warnings() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := strings.Join(r.told, "\n")
	r.told = nil
	return out
}

func (r *rig) kubectl(args ...string) string {
	r.Helper()
	out, err := r.cluster.Kubectl(r.Context(), args...)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// installation is one of the control plane alone, with values as YAML.
func (r *rig) installation(name, values string) apply.Installation {
	r.Helper()
	var i apply.Installation
	var err error
	i.Name, i.Spec.Profile = name, "minimal"
	if i.Spec.Values, err = deploy.ReadValues([]byte(values)); err != nil {
		r.Fatal(err)
	}
	return i
}

// install applies it, and does not wait, since nothing becomes ready.
func (r *rig) install(name, values string) {
	r.Helper()
	if err := r.applier.Install(r.Context(), r.installation(name, values), 0); err != nil {
		r.Fatal(err)
	}
}

// changes are those that Compare tells, without what is unchanged.
func (r *rig) changes(name, values string) string {
	r.Helper()
	list, err := r.applier.Compare(r.Context(), r.installation(name, values))
	if err != nil {
		r.Fatal(err)
	}
	var out []string
	for _, d := range list {
		if d.Change != apply.Unchanged {
			out = append(out, string(d.Change)+" "+d.Object.String())
		}
		before, after := d.Change == apply.Deleted || d.Change == apply.Changed, d.Change == apply.Created || d.Change == apply.Changed
		if (d.Before != "") != before || (d.After != "") != after || before && d.Before == d.After {
			r.Errorf("%s %s from %q to %q", d.Object, d.Change, d.Before, d.After)
		}
	}
	return strings.Join(out, ", ")
}

// TestCluster has an installation applied, compared and taken away on a real API server.
func TestCluster(t *testing.T) {
	r := newRig(t)
	if got := r.changes("default", ""); !strings.Contains(got, "created Deployment istio-system/lateend") || strings.Contains(got, "changed") {
		t.Errorf("before: %s", got)
	}
	r.install("default", "")
	if got := r.changes("default", ""); got != "" {
		t.Errorf("after: %s", got)
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"compared", r.compared},
		{"conflicts", r.conflicts},
		{"helms", r.helms},
		{"pruned", r.pruned},
		{"wanted", r.wanted},
		{"foreign", r.foreign},
		{"operated", r.operated},
		{"removal", r.removal},
	} {
		began := time.Now()
		step.do()
		t.Logf("%6.1fs %s", time.Since(began).Seconds(), step.name)
	}
}

// compared: what would be created, changed and deleted is told, and nothing is done.
func (r *rig) compared() {
	if got := r.changes("default", "lateend: {replicas: 2}"); got != "changed Deployment istio-system/lateend, created PodDisruptionBudget istio-system/lateend" {
		r.Errorf("two replicas: %s", got)
	}
	if got := r.changes("default", "istiodService: false"); got != "changed Deployment istio-system/lateend, deleted Service istio-system/istiod" {
		r.Errorf("no istiod: %s", got)
	}
	if got := r.changes("default", ""); got != "" {
		r.Errorf("something was done: %s", got)
	}
}

// conflicts: what others have made of our fields is told and put back; their own stay.
func (r *rig) conflicts() {
	r.kubectl("patch", "-n", deploy.Namespace, "service/lateend", "--type=merge", "-p", `{"metadata": {"annotations": {"theirs": "stays"}}, "spec": {"selector": {"app": "other"}}}`)
	if got := r.changes("default", ""); got != "changed Service istio-system/lateend" {
		r.Errorf("a changed Service: %s", got)
	}
	r.warnings()
	r.install("default", "")
	if got := r.warnings(); !strings.Contains(got, `Service istio-system/lateend was changed by others, and is as it should be again (conflict with "kubectl-patch"`) {
		r.Errorf("it was told: %s", got)
	}
	if got := r.kubectl("get", "-n", deploy.Namespace, "service/lateend", "-o", "jsonpath={.spec.selector.app} {.metadata.annotations.theirs}"); got != "lateend stays" {
		r.Errorf("it is %s", got)
	}
	// A definition that somebody else keeps is his.
	const crd = "crd/sidecars.networking.istio.io"
	r.kubectl("label", crd, "--overwrite", "app=theirs", "--field-manager=they")
	r.install("default", "")
	if got := r.warnings(); !strings.Contains(got, "sidecars.networking.istio.io is another's and stays as it is") || !strings.Contains(got, "metadata.labels.app") {
		r.Errorf("it was told: %s", got)
	}
	if got := r.kubectl("get", crd, "-o", "jsonpath={.metadata.labels.app}"); got != "theirs" {
		r.Errorf("it is %s", got)
	}
	// What is Helm's is left to Helm.
	r.kubectl("annotate", "-n", deploy.Namespace, "service/lateend", "meta.helm.sh/release-name=mesh")
	if err := r.applier.Install(r.Context(), r.installation("default", ""), 0); err == nil || !strings.Contains(err.Error(), "of Helm's release mesh: change it with `helm upgrade`") {
		r.Errorf("a Service of Helm's: %v", err)
	}
	if _, err := r.applier.Removal(r.Context(), "default"); err == nil || !strings.Contains(err.Error(), "run `helm uninstall mesh -n istio-system`") {
		r.Errorf("a Service of Helm's: %v", err)
	}
	r.kubectl("annotate", "-n", deploy.Namespace, "service/lateend", "meta.helm.sh/release-name-")
}

// refusing is an API server that lists no Services.
type refusing struct{ http.RoundTripper }

func (x refusing) RoundTrip(q *http.Request) (*http.Response, error) {
	if q.URL.Path == "/api/v1/services" {
		return nil, errors.New("no Services are listed")
	}
	return x.RoundTripper.RoundTrip(q)
}

// helms: an Installation of what Helm has installed can be deleted: all that is Helm's stays, and what all share. What is in
// the way of its end stands in its status.
func (r *rig) helms() {
	mark := func(mark, kinds string) {
		r.kubectl("annotate", kinds, "-n", deploy.Namespace, "-l", apply.LabelInstallation+"=default", "meta.helm.sh/release-name"+mark)
	}
	const kinds = "serviceaccounts,deployments,roles,rolebindings,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations"
	mark("=mesh", kinds)
	const lease = "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {namespace: istio-system, name: lateend-leader}\nspec: {}\n"
	if err := r.cluster.Apply(r.Context(), lease); err != nil {
		r.Fatal(err)
	}
	r.kubectl("patch", "installation/default", "--type=merge", "-p", `{"metadata": {"finalizers": ["`+apply.Finalizer+`"]}}`)
	r.kubectl("delete", "installation/default", "--wait=false")
	i, err := r.applier.Find(r.Context(), "default")
	if err != nil {
		r.Fatal(err)
	}

	at := rest.CopyConfig(r.at)
	at.Wrap(func(rt http.RoundTripper) http.RoundTripper { return refusing{rt} })
	client, err := dynamic.NewForConfig(at)
	if err != nil {
		r.Fatal(err)
	}
	if err := apply.New(apply.Config{Client: client}).Finish(r.Context(), *i, patience); err == nil || !strings.Contains(err.Error(), "no Services are listed") {
		r.Errorf("without a list of Services: %v", err)
	}
	if got := r.kubectl("get", "installation/default", "-o", "jsonpath={.status.conditions[0].message}"); !strings.Contains(got, "it was deleted, and cannot go: look for what is installed") {
		r.Errorf("the status says %s", got)
	}

	r.warnings()
	if err := r.applier.Finish(r.Context(), *i, patience); err != nil {
		r.Error(err)
	}
	if got := r.warnings(); !strings.Contains(got, "of Helm's release mesh") {
		r.Errorf("it was told: %s", got)
	}
	for object, stays := range map[string]bool{
		"installation/default": false, "service/istiod": false, "deployment/lateend": true, "clusterrole/lateend": true, "configmap/istio": true,
		"lease/lateend-leader": true,
	} {
		if got := r.kubectl("get", "-n", deploy.Namespace, object, "--ignore-not-found", "-o", "name"); (got != "") != stays {
			r.Errorf("%s: there is %q", object, got)
		}
	}
	mark("-", kinds)
	r.install("default", "")
	if got := r.changes("default", ""); got != "" {
		r.Errorf("afterwards: %s", got)
	}
}

// pruned: what is wanted no more goes, what is of another revision stays.
func (r *rig) pruned() {
	r.kubectl("create", "namespace", "shop")
	r.install("default", "{secretNamespaces: [shop], lateend: {replicas: 2}}")
	r.install("canary", "")
	const objects = "rolebindings,poddisruptionbudgets,deployments"
	if got := r.kubectl("get", objects, "-A", "-l", apply.LabelInstallation, "-o", "name"); strings.Count(got, "\n") != 7 {
		r.Errorf("there are\n%s", got)
	}
	r.install("default", "istiodService: false")
	want := "deployment.apps/lateend,deployment.apps/lateend-canary,rolebinding.rbac.authorization.k8s.io/lateend,rolebinding.rbac.authorization.k8s.io/lateend-canary," +
		"rolebinding.rbac.authorization.k8s.io/lateend-canary-secrets,rolebinding.rbac.authorization.k8s.io/lateend-secrets"
	got := strings.Split(r.kubectl("get", objects, "-A", "-l", apply.LabelInstallation, "-o", "name"), "\n")
	slices.Sort(got)
	if diff := cmp.Diff(want, strings.Join(got, ",")); diff != "" {
		r.Errorf("(-want +got):\n%s", diff)
	}
	r.install("default", "")
}

// wanted: the record says what was wanted last, and nothing that somebody else has added before.
func (r *rig) wanted() {
	r.kubectl("patch", "installation/default", "--type=merge", "-p", `{"metadata": {"labels": {"team": "a"}}, "spec": {"values": {"network": "theirs"}}}`)
	r.install("default", "tag: dev")
	const path = "jsonpath={.metadata.labels.team} {.spec} {.status.applied} {.status.conditions[0].reason} {.status.version}"
	const spec = `{"profile":"minimal","values":{"tag":"dev"}}`
	if got := r.kubectl("get", "installation/default", "-o", path); got != "a "+spec+" "+spec+" NotWaitedFor dev" {
		r.Errorf("the record says %s", got)
	}
}

// foreign: a release of the Gateway API that is newer than ours, or of another channel, stays whole.
func (r *rig) foreign() {
	const crd = "gateways.gateway.networking.k8s.io"
	version := r.kubectl("get", "crd", crd, "-o", `jsonpath={.metadata.annotations.gateway\.networking\.k8s\.io/bundle-version}`)
	for _, tt := range []struct{ version, channel, want string }{
		{"v99.0.0", "standard", "the Gateway API v99.0.0 (standard channel) is there and stays as it is"},
		{version, "experimental", "the Gateway API " + version + " (experimental channel) is there and stays"},
		{"v0.0.1", "standard", ""},
		{version, "standard", ""},
	} {
		// Our own manager has written it, so that there is no conflict that would keep it.
		r.kubectl("annotate", "crd", crd, "--overwrite", "--field-manager=lateen",
			"gateway.networking.k8s.io/bundle-version="+tt.version, "gateway.networking.k8s.io/channel="+tt.channel)
		r.warnings()
		r.install("default", "")
		if got := r.warnings(); (tt.want == "") == strings.Contains(got, "the Gateway API") || !strings.Contains(got, tt.want) {
			r.Errorf("%s %s: it was told: %s", tt.version, tt.channel, got)
		}
		if tt.want == "" {
			continue
		}
		if got := r.kubectl("get", "crd", crd, "-o", `jsonpath={.metadata.annotations.gateway\.networking\.k8s\.io/bundle-version}`); got != tt.version {
			r.Errorf("%s %s: it is %s", tt.version, tt.channel, got)
		}
		if got := r.changes("default", ""); got != "" {
			r.Errorf("%s %s: there would be %s", tt.version, tt.channel, got)
		}
	}
}

// operated: an operator is one that renews its Lease.
func (r *rig) operated() {
	lease := `{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"namespace": "istio-system", "name": "lateen-operator"},
		"spec": {"holderIdentity": "HOLDER", "leaseDurationSeconds": 15, "renewTime": "TIME"}}`
	for _, tt := range []struct {
		name, holder string
		age          time.Duration
		want         bool
	}{
		{"given back", "", 0, false},
		{"renewed", "x", 0, true},
		{"left", "x", time.Hour, false},
	} {
		renewed := time.Now().UTC().Add(-tt.age).Format(metav1.RFC3339Micro)
		if err := r.cluster.Apply(r.Context(), strings.NewReplacer("HOLDER", tt.holder, "TIME", renewed).Replace(lease)); err != nil {
			r.Fatal(err)
		}
		if got, err := r.applier.Operated(r.Context()); err != nil || got != tt.want {
			r.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
	r.kubectl("delete", "lease", "-n", deploy.Namespace, "lateen-operator")
	if got, err := r.applier.Operated(r.Context()); err != nil || got {
		r.Errorf("no Lease: %v, %v", got, err)
	}
}

// removal: what goes with one revision, with the last one, and in which order.
func (r *rig) removal() {
	names := func(list []deploy.Object) string {
		var out []string
		for _, o := range list {
			out = append(out, o.String())
		}
		return strings.Join(out, ", ")
	}
	of := func(revision string) apply.Removal {
		r.Helper()
		out, err := r.applier.Removal(r.Context(), revision)
		if err != nil {
			r.Fatal(err)
		}
		return out
	}
	r.kubectl("create", "secret", "generic", "-n", deploy.Namespace, "lateen-ca")
	one := of("canary")
	if got := names(one.Objects); one.Last || !strings.HasPrefix(got, "ValidatingWebhookConfiguration lateen-validator-canary, MutatingWebhookConfiguration lateen-sidecar-injector-canary, Deployment istio-system/lateend-canary, ") ||
		strings.Contains(got, "lateend,") || strings.Contains(got, "lateen-ca") || !strings.HasSuffix(got, "Installation canary") {
		r.Errorf("with canary go %s", got)
	}
	if shared := of("default"); shared.Last || names(shared.Kept) == "" || strings.Contains(names(shared.Objects), "canary") {
		r.Errorf("with default go %s, and there stay %s", names(shared.Objects), names(shared.Kept))
	}
	if all := of(""); !all.Last || !strings.Contains(names(all.Objects), "Secret istio-system/lateen-ca") || !strings.Contains(names(all.Objects), "Installation canary, Installation default") {
		r.Errorf("with all go %s", names(all.Objects))
	}
	r.gateways(of)
	// Somebody's finalizer stays, an operator's that is not there any more goes.
	r.kubectl("patch", "installation/canary", "--type=merge", "-p", `{"metadata": {"finalizers": ["`+apply.Finalizer+`"]}}`)
	for _, rev := range []string{"canary", "default"} {
		if err := r.applier.Remove(context.WithoutCancel(r.Context()), of(rev), patience); err != nil {
			r.Fatal(err)
		}
	}
	if got := names(of("").Objects); got != "Deployment shop/edge-istio" {
		r.Errorf("there is left %s", got)
	}
	if err := r.applier.Remove(context.WithoutCancel(r.Context()), of(""), patience); err != nil {
		r.Fatal(err)
	}
	if got := names(of("").Objects); got != "" {
		r.Errorf("there is left %s", got)
	}
	if got := r.kubectl("get", "secret", "-n", deploy.Namespace, "lateen-ca", "--ignore-not-found", "-o", "name"); got != "" {
		r.Errorf("there is left %s", got)
	}
}

// gateways: classes that lateend has made go, those of somebody else stay; what runs Gateways is named, and goes with all.
func (r *rig) gateways(of func(string) apply.Removal) {
	const class = `{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "NAME"}, "spec": {"controllerName": "lateen.dev/gateway-controller"}}`
	for name, manager := range map[string]string{"lateen": "lateend", "istio": "somebody"} {
		file := filepath.Join(r.TempDir(), "class.json")
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(class, "NAME", name)), 0o600); err != nil {
			r.Fatal(err)
		}
		r.kubectl("create", "-f", file, "--field-manager="+manager)
	}
	r.kubectl("create", "deployment", "-n", "shop", "edge-istio", "--image=auto")
	r.kubectl("label", "deployment", "-n", "shop", "edge-istio", "lateen.dev/managed=gateway")
	for revision, want := range map[string][3]bool{"canary": {false, false, false}, "": {true, true, true}} {
		got := of(revision)
		goes := func(kind, name string) bool {
			return slices.ContainsFunc(got.Objects, func(o deploy.Object) bool { return o.Kind == kind && o.Name == name })
		}
		if has := [3]bool{goes("GatewayClass", "lateen"), goes("Deployment", "edge-istio"), len(got.Gateways) == 1}; has != want {
			r.Errorf("%q: %v", revision, has)
		}
		if goes("GatewayClass", "istio") {
			r.Errorf("%q: somebody's class goes", revision)
		}
	}
}
