package kubeinstall

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

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

// TestInstall: what the chart makes runs with the rights that it gives itself, injects, and carries requests.
func TestInstall(t *testing.T) {
	r := rig{kubemesh.Up(t, kubemesh.Config{Nodes: 1})}
	if err := r.Load(t.Context(), map[string]string{"lateen.test/web:1": filepath.Join("../..", "bin/kube/toolbox")}); err != nil {
		t.Fatal(err)
	}
	r.Put(app)
	r.Ready("shop", "deploy/web")
	r.jobs()
	r.gateway()
	if out := r.Do("logs", "-n", deploy.Namespace, "deploy/lateend"); strings.Contains(out, "forbidden") {
		t.Errorf("lateend lacks a right:\n%s", out)
	}
	// Its replacement has the same key: the proxies know it.
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
		t.Errorf("the roots were\n%s\nand are\n%s", before, after)
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
