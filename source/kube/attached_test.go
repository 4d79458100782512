package kube

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayapi "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source/attach"
)

// parents are those in a route's status, by controller.
func (s *apiServer) parents(name string) map[string]object {
	status, _ := s.get(api.KindHTTPRoute, name)["status"].(object)
	list, _ := status["parents"].([]any)
	out := map[string]object{}
	for _, p := range list {
		m, _ := p.(object)
		out[m["controllerName"].(string)], _ = m["conditions"].([]any)[0].(object)
	}
	return out
}

const gatewayClass = `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: lateen}
spec: {controllerName: lateen.dev/gateway-controller}
---`

// TestAttached: the Gateway API's objects become routes and gateways of the mesh, and their status says so beside what
// other controllers say; what they refer to may come later and change.
func TestAttached(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: lateen}
spec: {controllerName: lateen.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: lateen
  listeners:
  - {name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec: {parentRefs: [{name: edge, sectionName: http}], rules: [{backendRefs: [{name: web, port: 80}]}]}
status: {parents: [{controllerName: other.dev/c, parentRef: {name: other}, conditions: [{type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}]}]}
`)
	r := follow(t, s)
	const ours = "lateen.dev/gateway-controller"
	r.await("the namespace is not among the listener's", func() bool {
		p := s.parents("default/web")
		return p[ours]["status"] == "False" && p[ours]["reason"] == "NotAllowedByListeners" && p[ours]["observedGeneration"] == 1.0 && p["other.dev/c"] != nil
	})
	s.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {team: a}}\n")
	r.await("it is now", func() bool {
		p := s.parents("default/web")
		route, _ := r.object(mesh.KindRoute, "default", "httproute/web").(*mesh.Route)
		return p[ours]["status"] == "True" && p["other.dev/c"] != nil && route != nil && slices.Contains(route.Gateways, "default/edge/http")
	})
	r.await("the class is accepted", func() bool {
		return s.acceptance(api.KindGatewayClass, "/lateen")["status"] == "True"
	})
	r.await("the gateway's status counts its routes", func() bool {
		status, _ := s.get(api.KindListenedGateway, "default/edge")["status"].(object)
		list, _ := status["listeners"].([]any)
		if len(list) != 2 {
			return false
		}
		first, _ := list[0].(object)
		return first["attachedRoutes"] == 1.0
	})
	s.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: cert}\ntype: kubernetes.io/tls\ndata: {tls.crt: LS0t, tls.key: LS0t}\n")
	r.await("the Secret is read", func() bool { return r.object(mesh.KindSecret, "default", "cert") != nil })
	for _, q := range s.asked() {
		if strings.Contains(q, "/secrets") && !strings.Contains(q, "fieldSelector=metadata.name%3Dcert") {
			t.Errorf("asked for more than the secret: %s", q)
		}
	}
	s.remove(api.KindListenedGateway, "default/edge")
	r.await("nothing of ours is told of the route", func() bool {
		p := s.parents("default/web")
		return p[ours] == nil && p["other.dev/c"] != nil && r.object(mesh.KindRoute, "default", "httproute/web") == nil
	})
}

// TestAttachedRefused: an object of the Gateway API with a fault says so in its status, whether it was in order before or
// not; the last good version stays in force, and the status of others is left alone.
func TestAttachedRefused(t *testing.T) {
	s := newServer(t)
	s.define()
	const route = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: NAME}
spec: {parentRefs: [{name: edge}, {name: others}], rules: [{matches: [{path: {type: RegularExpression, value: "VALUE"}}]}]}
`
	named := func(name, value string) string {
		return strings.NewReplacer("NAME", name, "VALUE", value).Replace(route)
	}
	const gateway = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec: {gatewayClassName: lateen, listeners: [{name: http, port: 80, protocol: HTTPPROTOCOL}]}
`
	s.apply(gatewayClass + strings.ReplaceAll(gateway, "PROTOCOL", "") + "---" + named("web", "/(a|b)") + "---" + named("new", "/(a"))
	r := follow(t, s)
	const ours = "lateen.dev/gateway-controller"
	says := func(name, status string, generation float64) func() bool {
		return func() bool {
			p := s.parents("default/" + name)[ours]
			return p["status"] == status && p["observedGeneration"] == generation && (status == "True" || p["reason"] == "UnsupportedValue" && strings.Contains(p["message"].(string), "/(a"))
		}
	}
	r.await("the route is accepted", says("web", "True", 1))
	r.await("the other is not", says("new", "False", 1))
	s.apply(named("web", "/(a"))
	r.await("the route with a fault is not", says("web", "False", 2))
	if m, _ := r.object(mesh.KindRoute, "default", "httproute/web").(*mesh.Route); m == nil {
		t.Error("the last good version is not in force")
	}
	if status, _ := s.get(api.KindHTTPRoute, "default/web")["status"].(object); len(status["parents"].([]any)) != 1 {
		t.Errorf("the status tells of others' parents: %v", status)
	}
	s.apply(named("web", "/(a|b)"))
	r.await("the route is accepted again", says("web", "True", 3))
	s.apply(strings.ReplaceAll(gateway, "PROTOCOL", ", tls: {mode: Terminate}"))
	r.await("the Gateway is refused", func() bool {
		a := s.acceptance(api.KindListenedGateway, "default/edge")
		return a["status"] == "False" && a["reason"] == "Invalid" && a["observedGeneration"] == 2.0
	})
}

// TestAttachedWaits: what a former version of a route came to is not told of the one that was just read.
func TestAttachedWaits(t *testing.T) {
	s, err := Open(Config{Cluster: newServer(t).cluster()})
	if err != nil {
		t.Fatal(err)
	}
	ref := api.Ref{Kind: api.KindHTTPRoute, Namespace: "default", Name: "web"}
	s.status.attach(map[api.Ref]any{ref: gatewayapi.RouteStatus{Parents: []gatewayapi.RouteParentStatus{{ControllerName: attach.Controller}}}})
	route := &unstructured.Unstructured{Object: object{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": ref.Kind, "spec": object{},
		"metadata": object{"name": ref.Name, "namespace": ref.Namespace, "generation": int64(2)},
	}}
	next := turn{picture: &s.picture, status: s.status, read: map[api.Ref]*account{}}
	objectsRead(ref.Kind)(&next, map[key]any{{Namespace: ref.Namespace, Name: ref.Name}: written(route)}, true)
	if early := s.status.waiting(); len(early) > 0 || next.read[ref] == nil {
		t.Errorf("there would be written %v, and are read %v", early, next.read)
	}
}
