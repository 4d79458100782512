package kubetest_test

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/test/kubetest"
)

const manifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: lateen.test/web:1
        args: [serve, ":8080"]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

// TestUp uses a cluster as an end-to-end test does: an image, objects, a request.
func TestUp(t *testing.T) {
	c := kubetest.Up(t)
	ctx := t.Context()
	if err := c.Load(ctx, map[string]string{"lateen.test/web:1": filepath.Join("../..", "bin/kube/toolbox")}); err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Kubectl(ctx, "rollout", "status", "deploy/web", "--timeout=2m"); err != nil {
		t.Fatal(err)
	}
	address, err := c.Kubectl(ctx, "get", "service", "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
	if err != nil || !strings.HasPrefix(address, "172.31.") {
		t.Fatalf("the address is %q, %v", address, err)
	}
	transport := c.Transport()
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: time.Second}
	// kube-proxy may not yet know of the address.
	for deadline := time.Now().Add(time.Minute); ; {
		response, err := client.Get("http://" + address + "/")
		if err == nil {
			response.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(100 * time.Millisecond)
	}
	if _, err := c.Kubectl(ctx, "get", "nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("an order that cannot be: %v", err)
	}
}

// TestUpAPI keeps objects, and has the controllers that belong to them, where no pod can run.
func TestUpAPI(t *testing.T) {
	c := kubetest.UpAPI(t)
	ctx := t.Context()
	if err := c.Apply(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Kubectl(ctx, "wait", "--for=create", "pod", "-l", "app=web", "--timeout=1m"); err != nil {
		t.Error("no controller made a pod: ", err)
	}
	if nodes, err := c.Kubectl(ctx, "get", "nodes", "-o", "name"); err != nil || nodes != "" {
		t.Errorf("nodes %q, %v", nodes, err)
	}
}
