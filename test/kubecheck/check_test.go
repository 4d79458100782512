package kubecheck

import (
	"bytes"
	"encoding/base64"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/cli/kube"
	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/test/kubemesh"
)

var update = flag.Bool("update", false, "write the golden files anew")

const app = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
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
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}
`

// bare is a pod in a namespace that does not ask for proxies, yet.
const bare = `
apiVersion: v1
kind: Namespace
metadata: {name: late}
---
apiVersion: v1
kind: Pod
metadata: {name: early, namespace: late}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "lateen.test/web:1", args: [serve, ":8080"]}]
`

// rig is a mesh that commands look at.
type rig struct {
	*kubemesh.Mesh
	t *testing.T
}

// lateen runs a command and returns its exit code and what it wrote.
func (r *rig) lateen(args ...string) (int, string) {
	r.t.Helper()
	var out bytes.Buffer
	if args[0] != "__complete" {
		args = append(args, "--kubeconfig", r.Kubeconfig)
	}
	code := kube.Execute(r.t.Context(), args, strings.NewReader(""), &out, &out)
	return code, out.String()
}

// golden compares a text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

// sound checks until all holds.
func (r *rig) sound() string {
	r.t.Helper()
	code, out := r.lateen("check", "--proxy", "--wait", "5m")
	if code != 0 {
		r.t.Fatalf("exit code %d:\n%s", code, out)
	}
	return out
}

// TestCheck: before, after, and with one thing broken after the other.
func TestCheck(t *testing.T) {
	m := kubemesh.Up(t, kubemesh.Config{Nodes: 1, Bare: true})
	r := &rig{m, t}
	if err := m.Load(t.Context(), map[string]string{"lateen.test/web:1": filepath.Join("../..", "bin/kube/toolbox")}); err != nil {
		t.Fatal(err)
	}
	if flag.Lookup("cluster").Value.String() == "" { // a new one
		m.Step("check before the installation", func() {
			code, out := r.lateen("check", "--pre", "--fail-on=warning")
			if code != 0 {
				t.Errorf("exit code %d", code)
			}
			golden(t, "pre", strings.Join(slices.DeleteFunc(strings.SplitAfter(out, "\n"), func(line string) bool {
				return strings.Contains(line, "you may make and change") || strings.HasPrefix(line, "√ all") // as many as an installation has kinds
			}), ""))
		})
	}
	m.Step("install Lateen", func() { m.Install() })
	m.Put(app)
	m.Ready("shop", "deploy/web")
	m.Step("check the whole", func() { golden(t, "after", r.sound()) })
	m.Step("look", r.views)
	r.unsound()
	m.Step("check the whole, repaired", func() { golden(t, "after", r.sound()) })
}

// unsound breaks things and sees their lines turn.
func (r *rig) unsound() {
	replicas := func(n string) {
		r.Do("scale", "-n", deploy.Namespace, "deploy/lateend", "--replicas="+n)
		if n == "0" {
			r.Do("wait", "-n", deploy.Namespace, "--for=delete", "pod", "-l", "app=lateend", "--timeout=5m")
			return
		}
		r.Ready(deploy.Namespace, "deploy/lateend")
	}
	for _, tt := range []struct {
		name        string
		args        []string
		spoil, mend func()
		code        int
		lines       []string
	}{
		{
			name: "a root that ends too early", args: []string{"check", "--cert-days=40000", "--fail-on=warning"}, code: 1,
			spoil: func() {}, mend: func() {},
			lines: []string{"‼ the mesh's roots are good now, and for --cert-days more", "‼ what issues certificates is good now"},
		},
		{
			name: "a warning is no failure", args: []string{"check", "--cert-days=40000"}, code: 0,
			spoil: func() {}, mend: func() {},
			lines: []string{"‼ the mesh's roots are good now, and for --cert-days more"},
		},
		{
			name: "a pod without its proxy", args: []string{"check", "--proxy"}, code: 1,
			spoil: func() {
				r.Put(bare)
				r.Do("wait", "-n", "late", "--for=condition=Ready", "pod/early", "--timeout=5m")
				r.Do("label", "namespace", "late", "istio-injection=enabled")
			},
			mend:  func() { r.Do("delete", "namespace", "late") },
			lines: []string{"× every pod that should have a proxy has one\n    pod late/early has none"},
		},
		{
			name: "of another namespace only", args: []string{"check", "--proxy", "-n", "shop"}, code: 0,
			spoil: func() {}, mend: func() {},
			lines: []string{"√ every pod that should have a proxy has one", "√ every proxy has the control plane's orders"},
		},
		{
			name: "no definition", args: []string{"check"}, code: 1,
			spoil: func() { r.Do("delete", "crd", "wasmplugins.extensions.istio.io") },
			mend:  func() { r.Install() },
			lines: []string{"× Istio's CustomResourceDefinitions are installed", "wasmplugins.extensions.istio.io is not installed"},
		},
		{
			name: "nobody is there, and things go wrong meanwhile", args: []string{"check", "--proxy"}, code: 1,
			spoil: func() {
				replicas("0")
				r.Do("patch", "mutatingwebhookconfiguration", "lateen-sidecar-injector", "--type=json",
					"-p", `[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]`)
				r.Do("delete", "configmap", "-n", "shop", "istio-ca-root-cert")
				r.Do("patch", "virtualservice", "-n", "shop", "web", "--subresource=status", "--type=merge",
					"-p", `{"status":{"conditions":[{"type":"Accepted","status":"False","reason":"Invalid","message":"the sails are torn","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`)
			},
			mend: func() { replicas("1") },
			lines: []string{
				"× all its replicas are ready\n    Deployment lateend has been scaled to 0 replicas", "× one of them leads",
				"× every namespace has the mesh's roots\n    namespace shop has none",
				"× the API server believes them: their caBundle is the mesh's roots\n    lateen-sidecar-injector rev.namespace.inject.lateen.dev: its caBundle is empty",
				"× the Services that they name have endpoints", "× no object is refused\n    VirtualService shop/web: the sails are torn",
				"× every proxy has the control plane's orders, and obeys them", "- lateend finds nothing odd in them\n    no lateend is ready",
			},
		},
	} {
		r.Step(tt.name, func() {
			tt.spoil()
			code, out := r.lateen(tt.args...)
			for _, line := range tt.lines {
				if code != tt.code || !strings.Contains(out, line) {
					r.t.Errorf("%s: exit code %d, want %d with %q:\n%s", tt.name, code, tt.code, line, out)
				}
			}
			tt.mend()
		})
	}
}

// views are the commands that only show.
func (r *rig) views() {
	pod := r.Do("get", "pods", "-n", "shop", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}")
	report := filepath.Join(r.t.TempDir(), "report.tar.gz")
	for _, tt := range []struct {
		args []string
		has  []string
	}{
		{[]string{"status"}, []string{"ORDERS", pod, "istio-ingressgateway-", "gateway", "cluster.local/ns/shop/sa/default", "synced"}},
		{[]string{"status", "-n", "shop", "-o", "json"}, []string{`"synced": true`, `"version"`}},
		{[]string{"proxy-config", pod, "-n", "shop"}, []string{"listener"}},
		{[]string{"proxy-config", pod + ".shop", "listeners", "-o", "json"}, []string{`"kind": "listener"`}},
		{[]string{"version"}, []string{"lateen ", "lateend ", "(1)", "lateen-proxy "}},
		{[]string{"__complete", "proxy-config", "--kubeconfig", r.Kubeconfig, "-n", "shop", "web"}, []string{pod}},
		{[]string{"__complete", "check", "--kubeconfig", r.Kubeconfig, "-n", "sh"}, []string{"shop"}},
		{[]string{"bug-report", "-o", report}, []string{report}},
	} {
		code, out := r.lateen(tt.args...)
		for _, text := range tt.has {
			if code != 0 || !strings.Contains(out, text) {
				r.t.Errorf("%v: exit code %d, no %q in\n%s", tt.args, code, text, out)
			}
		}
	}
	r.noKeys(report)
	if code, out := r.lateen("status", "-n", "shop"); code == 0 {
		r.t.Logf("lateen status\n%s", out)
	}
}

// noKeys: the report has what the pods are and say, and no key.
func (r *rig) noKeys(report string) {
	text, err := exec.CommandContext(r.t.Context(), "tar", "-xzOf", report).Output()
	if err != nil {
		r.t.Fatal(err)
	}
	secret := r.Do("get", "secret", "-n", deploy.Namespace, "lateen-ca", "-o", `jsonpath={.data.root-key\.pem}`)
	key, err := base64.StdEncoding.DecodeString(secret)
	if err != nil || len(key) < 100 {
		r.t.Fatalf("the key is %q: %v", key, err)
	}
	for _, never := range []string{secret, string(key), "PRIVATE KEY"} {
		if strings.Contains(string(text), never) {
			r.t.Errorf("the report has %q", never)
		}
	}
	for _, has := range []string{"kind: VirtualService", "control plane ready", "kind: MutatingWebhookConfiguration", " checks hold"} {
		if !strings.Contains(string(text), has) {
			r.t.Errorf("the report has no %q", has)
		}
	}
}
