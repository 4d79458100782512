package kubeinstall

import (
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/test/kubetest"
)

// patience bounds each wait.
const patience = 2 * time.Minute

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

// rig is a cluster to install in.
type rig struct {
	t *testing.T
	*kubetest.Cluster
}

func (r *rig) kubectl(args ...string) string {
	r.t.Helper()
	out, err := r.Kubectl(r.t.Context(), args...)
	if err != nil {
		r.fatal(err)
	}
	return out
}

// fatal ends the test with what the cluster says of itself.
func (r *rig) fatal(err error) {
	r.t.Helper()
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"logs", "-n", deploy.Namespace, "deploy/lateend", "--tail=50"},
	} {
		out, _ := r.Kubectl(r.t.Context(), args...)
		r.t.Logf("kubectl %s\n%s", strings.Join(args, " "), out)
	}
	r.t.Fatal(err)
}

// load builds the images of this checkout and gives them to the nodes.
func (r *rig) load() {
	r.t.Helper()
	folder := r.t.TempDir()
	names := []string{"lateend", "lateen-proxy", "lateen-cni"}
	build := exec.CommandContext(r.t.Context(), "go", "build", "-trimpath", "-ldflags=-s", "-o", folder)
	images := map[string]string{"lateen.test/web:1": filepath.Join("../..", "bin/kube/toolbox")}
	for _, name := range names {
		build.Args = append(build.Args, "../../cmd/"+name)
		images["lateen.test/"+name+":dev"] = filepath.Join(folder, name)
	}
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		r.t.Fatalf("%v\n%s", err, out)
	}
	if err := r.Load(r.t.Context(), images); err != nil {
		r.t.Fatal(err)
	}
}

// install applies what `lateen manifest generate` writes.
func (r *rig) install() {
	r.t.Helper()
	objects, err := deploy.Render(deploy.Config{Set: []string{"hub=lateen.test", "imagePullPolicy=IfNotPresent"}})
	if err != nil {
		r.t.Fatal(err)
	}
	definitions, err := deploy.Definitions()
	if err != nil {
		r.t.Fatal(err)
	}
	file := filepath.Join(r.t.TempDir(), "lateen.yaml")
	if err := os.WriteFile(file, deploy.Manifest(definitions, objects), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.kubectl("create", "namespace", deploy.Namespace)
	r.kubectl("apply", "--server-side", "-f", file)
	r.kubectl("rollout", "status", "-n", deploy.Namespace, "deploy/lateend", "--timeout=2m")
	r.kubectl("wait", "-n", deploy.Namespace, "--for=condition=Available", "deploy/istio-ingressgateway", "--timeout=2m")
}

// TestInstall: what the chart makes runs with the rights that it gives itself, injects, and carries requests.
func TestInstall(t *testing.T) {
	if testing.Short() {
		t.Skip("a cluster takes its time: not with -short")
	}
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
	r := &rig{t, c}
	r.load()
	r.install()
	if err := r.Apply(t.Context(), app); err != nil {
		r.fatal(err)
	}
	r.kubectl("rollout", "status", "-n", "shop", "deploy/web", "--timeout=2m")
	r.jobs()
	r.gateway()
	if out := r.kubectl("logs", "-n", deploy.Namespace, "deploy/lateend"); strings.Contains(out, "forbidden") {
		t.Errorf("lateend lacks a right:\n%s", out)
	}
	// Its replacement has the same key: the proxies know it.
	roots := func() string {
		return r.kubectl("get", "configmap", "-n", "shop", "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`)
	}
	before := roots()
	r.kubectl("delete", "pod", "-n", deploy.Namespace, "-l", "app=lateend")
	r.kubectl("rollout", "status", "-n", deploy.Namespace, "deploy/lateend", "--timeout=2m")
	r.kubectl("rollout", "restart", "-n", "shop", "deploy/web")
	r.kubectl("rollout", "status", "-n", "shop", "deploy/web", "--timeout=2m")
	r.gateway()
	if after := roots(); after != before || !strings.Contains(after, "CERTIFICATE") {
		t.Errorf("the roots were\n%s\nand are\n%s", before, after)
	}
}

// jobs: one in the mesh calls the server and ends, proxy and all; one outside of it is refused.
func (r *rig) jobs() {
	r.t.Helper()
	r.kubectl("create", "namespace", "outside")
	for namespace, retries := range map[string]string{"shop": "3", "outside": "0"} {
		if err := r.Apply(r.t.Context(), strings.NewReplacer("NAMESPACE", namespace, "RETRIES", retries).Replace(job)); err != nil {
			r.fatal(err)
		}
	}
	r.kubectl("wait", "-n", "shop", "--for=condition=Complete", "job/call", "--timeout=2m")
	r.kubectl("wait", "-n", "outside", "--for=condition=Failed", "job/call", "--timeout=2m")
}

// gateway: a request from outside of the cluster comes to the server.
func (r *rig) gateway() {
	r.t.Helper()
	address := r.kubectl("get", "service", "-n", deploy.Namespace, "istio-ingressgateway", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
	transport := r.Transport()
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	last := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		response, err := client.Get("http://" + address + "/")
		if err != nil {
			last = err.Error()
		} else {
			text, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK && strings.HasPrefix(string(text), "web-") {
				return
			}
			last = response.Status + " " + string(text)
		}
		<-time.After(200 * time.Millisecond)
	}
	r.fatal(errors.New("the gateway at " + address + " does not answer: " + last))
}
