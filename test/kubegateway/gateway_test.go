package kubegateway

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source/kube"
	"github.com/lateen-mesh/lateen/test/kubetest"
)

// patience bounds each wait.
const patience = 3 * time.Minute

const world = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec: {gatewayClassName: lateen, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 80}]}]}
`

// TestGateway: the definitions of the chart are installed while we run; a Gateway is deployed, repaired and told of in
// its status, and so is its route.
func TestGateway(t *testing.T) {
	c := kubetest.UpAPI(t)
	at, err := kube.Reach(c.Kubeconfig, "")
	if err != nil {
		t.Fatal(err)
	}
	do := func(args ...string) string {
		t.Helper()
		out, err := c.Kubectl(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	await := func(what, want string, args ...string) {
		t.Helper()
		began := time.Now()
		limit, look := time.NewTimer(patience), time.NewTicker(200*time.Millisecond)
		defer limit.Stop()
		defer look.Stop()
		for {
			out, err := c.Kubectl(t.Context(), args...)
			if err == nil && strings.TrimSpace(out) == want {
				t.Logf("%s: after %s", what, time.Since(began).Round(time.Millisecond))
				return
			}
			select {
			case <-look.C:
			case <-limit.C:
				t.Fatalf("waited in vain: %s: %q, %v", what, out, err)
			}
		}
	}
	do("create", "namespace", "istio-system")
	store, err := kube.Open(kube.Config{Cluster: at, Apply: func([]mesh.Change) {}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	definitions, err := os.ReadFile(filepath.Join("..", "..", "deploy", "chart", "crds", "gateway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(t.Context(), string(definitions)); err != nil {
		t.Fatal(err)
	}
	do("wait", "--for=condition=Established", "--timeout=120s", "crd", "httproutes.gateway.networking.k8s.io", "gateways.gateway.networking.k8s.io")
	if err := c.Apply(t.Context(), world); err != nil {
		t.Fatal(err)
	}
	const gateway = "gateways.gateway.networking.k8s.io"
	await("the class is accepted", "True", "get", "gatewayclass", "lateen", "-o", `jsonpath={.status.conditions[?(@.type=="Accepted")].status}`)
	await("it is deployed", "edge-lateen edge-lateen", "get", "deployment,service", "-l", "lateen.dev/managed=gateway", "-o", "jsonpath={.items[*].metadata.name}")
	await("the route is accepted", "True", "get", "httproute", "web", "-o", `jsonpath={.status.parents[0].conditions[?(@.type=="Accepted")].status}`)
	await("it has the address of its Service, and waits for a pod", "NoResources", "get", gateway, "edge", "-o", `jsonpath={.status.conditions[?(@.type=="Programmed")].reason}`)
	await("its routes are counted", "1", "get", gateway, "edge", "-o", "jsonpath={.status.listeners[0].attachedRoutes}")
	await("the address is the Service's", do("get", "service", "edge-lateen", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"),
		"get", gateway, "edge", "-o", "jsonpath={.status.addresses[0].value}")
	do("patch", "deployment", "edge-lateen", "--type=merge", "-p", `{"spec":{"template":{"spec":{"serviceAccountName":"other"}}}}`)
	await("it is repaired", "edge-lateen", "get", "deployment", "edge-lateen", "-o", "jsonpath={.spec.template.spec.serviceAccountName}")
	do("delete", "poddisruptionbudget", "edge-lateen")
	await("what was deleted is back", "edge-lateen", "get", "poddisruptionbudget", "-o", "jsonpath={.items[*].metadata.name}")
}
