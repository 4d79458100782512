package kubeinstall

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/cli/kube"
	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/test/kubemesh"
)

// app is a server in the mesh, which takes mutual TLS only, behind the gateway, and Jobs that call it from inside of the
// mesh and from outside of it.
const app = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: "lateen.test/web:1", args: [serve, ":8080"], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: ["*"], gateways: [edge], http: [{route: [{destination: {host: web}}]}]}
`

const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: call, namespace: NAMESPACE}
spec:
  backoffLimit: RETRIES
  template:
    spec:
      restartPolicy: Never
      containers: [{name: call, image: "lateen.test/web:1", args: [get, "http://web.shop/"]}]
`

// rig is a cluster that Lateen is installed in.
type rig struct{ *kubemesh.Mesh }

// images name those of this checkout.
var images = []string{"--set", "hub=" + kubemesh.Hub, "--set", "imagePullPolicy=IfNotPresent"}

// lateen runs a command of lateen's against the cluster, and returns what it printed.
func (r rig) lateen(args ...string) string {
	r.Helper()
	var out, errs strings.Builder
	if code := kube.Execute(r.Context(), append(args, "--kubeconfig", r.Kubeconfig), strings.NewReader(""), &out, &errs); code != 0 {
		r.Broken(fmt.Errorf("lateen %s: exit code %d: %s\n%s", strings.Join(args, " "), code, errs.String(), out.String()))
	}
	r.Logf("lateen %s\n%s", strings.Join(args, " "), out.String())
	return out.String()
}

// TestInstall: what the command installs runs with the rights that the chart gives it, injects, and carries requests; it
// is changed, stood beside, and taken away by commands.
func TestInstall(t *testing.T) {
	r := rig{kubemesh.Up(t, kubemesh.Config{Nodes: 1, Bare: true, Programs: []string{"cmd/lateen-operator"}})}
	if err := r.Load(t.Context(), map[string]string{"lateen.test/web:1": filepath.Join("../..", "bin/kube/toolbox")}); err != nil {
		t.Fatal(err)
	}
	install := append([]string{"install", "--profile", "ambient-ready"}, images...)
	r.Step("install", func() { r.lateen(install...) })
	r.Put(app)
	r.Ready("shop", "deploy/web")
	r.jobs()
	r.gateway()
	if out := r.Do("logs", "-n", deploy.Namespace, "deploy/lateend"); strings.Contains(out, "forbidden") {
		t.Errorf("lateend lacks a right:\n%s", out)
	}
	r.Step("replace lateend", r.replaced)
	r.Step("install again", func() {
		out := strings.ReplaceAll(r.lateen(install...), "unchanged", "")
		for _, change := range []string{"created", "changed", "deleted"} {
			if strings.Contains(out, change) {
				t.Errorf("something was %s", change)
			}
		}
		if out := r.lateen(append([]string{"manifest", "diff", "--profile", "ambient-ready"}, images...)...); out != "" {
			t.Errorf("there are differences:\n%s", out)
		}
	})
	r.Step("upgrade in place", r.upgraded)
	r.Step("upgrade beside", r.beside)
	r.Step("upgrade to what is not there", r.broken)
	r.Step("operator", r.operated)
	r.Step("uninstall", r.uninstalled)
}

// Where the conditions of an Installation are, and which spec they are of.
const condition = `jsonpath={.metadata.generation} {.status.observedGeneration} {.status.conditions[0].status} {.status.conditions[0].reason} {.status.conditions[0].message}`

// settled waits until the operator says that the installation is ready as it is wanted now.
func (r rig) settled() {
	r.Helper()
	r.Await("the installation is ready", func() string {
		got := r.Do("get", "installation", "default", "-o", condition)
		if f := strings.Fields(got); len(f) < 3 || f[0] != f[1] || f[2] != "True" {
			return got
		}
		return ""
	})
}

// operated: an operator goes on with what was installed, repairs and changes it, keeps it when a fault comes, takes it away
// when it is deleted, and makes it again when somebody writes it down, with the same root.
func (r rig) operated() {
	r.Helper()
	r.lateen(append([]string{"operator", "init"}, images...)...)
	r.Do("delete", "-n", deploy.Namespace, "deploy/lateend", "--wait")
	r.Await("lateend comes back", func() string {
		if r.Do("get", "-n", deploy.Namespace, "deploy", "lateend", "--ignore-not-found", "-o", "name") == "" {
			return "it is not there"
		}
		return ""
	})
	r.settled()
	r.Ready(deploy.Namespace, "deploy/lateend")
	change := func(values string) {
		r.Helper()
		r.Do("patch", "installation", "default", "--type=merge", "-p", `{"spec": {"values": {"lateend": `+values+`}}}`)
	}
	change(`{"podAnnotations": {"changed": "yes"}}`)
	r.settled()
	if got := r.Do("get", "pods", "-n", deploy.Namespace, "-l", "app=lateend", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].metadata.annotations.changed}"); got != "yes" {
		r.Errorf("of lateend's pods have changed %q", got)
	}
	change(`{"replicas": "many"}`)
	r.Await("the fault is told", func() string {
		if got := r.Do("get", "installation", "default", "-o", condition); !strings.Contains(got, "InvalidSpec") || !strings.Contains(got, "kubectl edit") {
			return got
		}
		return ""
	})
	r.gateway()
	out := r.lateen("upgrade", "--set", "lateend.replicas=1")
	if !strings.Contains(out, "√ operator: all of it is ready") {
		r.Errorf("the operator was not asked:\n%s", out)
	}
	if out := r.Do("logs", "-n", deploy.Namespace, "deploy/lateen-operator"); strings.Contains(out, "forbidden") {
		r.Errorf("the operator lacks a right:\n%s", out)
	}
	file := filepath.Join(r.TempDir(), "installation.yaml")
	wanted := "apiVersion: lateen.dev/v1alpha1\nkind: Installation\nmetadata: {name: default}\nspec: " +
		r.Do("get", "installation", "default", "-o", "jsonpath={.spec}") + "\n"
	if err := os.WriteFile(file, []byte(wanted), 0o600); err != nil {
		r.Fatal(err)
	}
	r.Do("delete", "installation", "default")
	if got := r.installed("lateen.dev/installation"); got != "" {
		r.Errorf("there is left: %s", got)
	}
	r.Do("apply", "-f", file)
	r.settled()
	r.gateway()
}

// replaced: lateend's replacement has the same key: the proxies know it.
func (r rig) replaced() {
	r.Helper()
	roots := func() string {
		return r.Do("get", "configmap", "-n", "shop", "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`)
	}
	before := roots()
	r.Do("delete", "pod", "-n", deploy.Namespace, "-l", "app=lateend")
	r.Ready(deploy.Namespace, "deploy/lateend")
	r.Do("rollout", "restart", "-n", "shop", "deploy/web")
	r.Ready("shop", "deploy/web")
	r.gateway()
	if after := roots(); after != before || !strings.Contains(after, "CERTIFICATE") {
		r.Errorf("the roots were\n%s\nand are\n%s", before, after)
	}
}

// upgraded: values stay unless they are given anew, and what is no longer wanted goes.
func (r rig) upgraded() {
	r.Helper()
	r.lateen("upgrade", "--set", "lateend.replicas=2")
	if got := r.Do("get", "pdb,daemonset", "-n", deploy.Namespace, "-o", "name"); got != "poddisruptionbudget.policy/lateend\ndaemonset.apps/lateen-cni" {
		r.Errorf("with two replicas there are %s", got)
	}
	if out := r.lateen("upgrade", "--set", "lateend.replicas=1"); !strings.Contains(out, "deleted PodDisruptionBudget istio-system/lateend") {
		r.Errorf("nothing was deleted:\n%s", out)
	}
	const ready = `jsonpath={.spec.profile} {.spec.values.hub} {.status.conditions[0].status} {.status.conditions[0].reason}`
	if got := r.Do("get", "installation", "default", "-o", ready); got != "ambient-ready lateen.test True Installed" {
		r.Errorf("the record says %s", got)
	}
}

// beside: a second control plane takes the application over, and gives it back.
func (r rig) beside() {
	r.Helper()
	r.lateen("upgrade", "--revision", "canary")
	for _, move := range []struct{ revision, label, other string }{{"canary", "istio.io/rev=canary", "istio-injection-"}, {"default", "istio-injection=enabled", "istio.io/rev-"}} {
		r.Do("label", "namespace", "shop", "--overwrite", move.label, move.other)
		r.Do("rollout", "restart", "-n", "shop", "deploy/web")
		r.Ready("shop", "deploy/web")
		r.Await("the old pod has ended", func() string {
			if got := r.Do("get", "pods", "-n", "shop", "-l", "app=web", "-o", `jsonpath={.items[*].metadata.annotations.istio\.io/rev}`); got != move.revision {
				return "the revisions are " + got
			}
			return ""
		})
		r.gateway()
	}
	r.lateen("uninstall", "--revision", "canary", "-y")
	if got := r.installed("lateen.dev/installation=canary"); got != "" {
		r.Errorf("of the revision there is left: %s", got)
	}
	r.gateway()
}

// until ends a context when a text was written.
type until struct {
	strings.Builder
	text string
	end  context.CancelFunc
}

func (u *until) Write(p []byte) (int, error) {
	if strings.Contains(string(p), u.text) {
		u.end()
	}
	return u.Builder.Write(p)
}

// broken: an image that is not there is told as such while it is waited for, in the end, and in the record; what was there
// goes on.
func (r rig) broken() {
	r.Helper()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := &until{text: "ImagePullBackOff", end: cancel}
	var errs strings.Builder
	if code := kube.Execute(ctx, []string{"upgrade", "--set", "tag=none", "--kubeconfig", r.Kubeconfig}, strings.NewReader(""), out, &errs); code != 1 {
		r.Errorf("exit code %d", code)
	}
	r.Logf("%s%s", out.String(), errs.String())
	record := r.Do("get", "installation", "default", "-o", "jsonpath={.status.conditions[0].status} {.status.conditions[0].message}")
	for _, text := range []string{errs.String(), record} {
		if !strings.Contains(text, "ImagePullBackOff: the image lateen.test/") || !strings.Contains(text, "--set tag=") {
			r.Errorf("%s does not say what is wrong", text)
		}
	}
	if !strings.HasPrefix(record, "False ") {
		r.Errorf("the record says %s", record)
	}
	r.gateway()
	r.lateen("upgrade", "--set", "tag=dev")
}

// installed are the names of all objects with a label.
func (r rig) installed(label string) string {
	r.Helper()
	var kinds []string
	for _, k := range deploy.Kinds() {
		kinds = append(kinds, k.Resource.Resource+"."+k.Resource.Group)
	}
	return r.Do("get", strings.ReplaceAll(strings.Join(kinds, ","), ".,", ","), "-A", "-l", label, "-o", "name")
}

// uninstalled: nothing is left but the definitions and the namespace, and pods start without proxies.
func (r rig) uninstalled() {
	r.Helper()
	out := r.lateen("uninstall", "--purge", "-y")
	r.lateen("operator", "remove", "-y")
	if !strings.Contains(out, "Pods with a proxy of it: 1.") || strings.Contains(out, "‼") {
		r.Errorf("it said\n%s", out)
	}
	left := []string{r.installed("lateen.dev/installation"), r.installed("app.kubernetes.io/part-of=lateen"), r.Do("get", "installations", "-o", "name")}
	left = append(left, r.Do("get", "configmaps", "-A", "--field-selector", "metadata.name=istio-ca-root-cert", "-o", "name"))
	left = append(left, r.Do("get", "secrets,leases,pods", "-n", deploy.Namespace, "-o", "name"))
	if got := strings.Join(left, ""); got != "" {
		r.Errorf("there is left: %s", got)
	}
	r.Do("rollout", "restart", "-n", "shop", "deploy/web")
	r.Ready("shop", "deploy/web")
	if out := r.lateen("uninstall", "--purge", "-y"); !strings.Contains(out, "There is nothing") {
		r.Errorf("it said\n%s", out)
	}
}

// jobs: one in the mesh calls the server and ends, proxy and all; one outside of it is refused.
func (r rig) jobs() {
	r.Helper()
	r.Do("create", "namespace", "outside")
	for namespace, retries := range map[string]string{"shop": "3", "outside": "0"} {
		r.Put(strings.NewReplacer("NAMESPACE", namespace, "RETRIES", retries).Replace(job))
	}
	r.Do("wait", "-n", "shop", "--for=condition=Complete", "job/call", "--timeout=2m")
	r.Do("wait", "-n", "outside", "--for=condition=Failed", "job/call", "--timeout=2m")
}

// gateway: a request from outside of the cluster comes to the server.
func (r rig) gateway() {
	r.Helper()
	client, url := r.Client(), "http://"+r.Address(deploy.Namespace, "istio-ingressgateway")+"/"
	r.Await("the gateway answers", func() string {
		response, err := client.Get(url)
		if err != nil {
			return err.Error()
		}
		text, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK || !strings.HasPrefix(string(text), "web-") {
			return response.Status + " " + string(text)
		}
		return ""
	})
}
