package kube

import (
	"slices"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/api"
)

// gatewayCondition is a condition of a Gateway; nil if there is none.
func (s *apiServer) gatewayCondition(name, kind string) object {
	status, _ := s.get(api.KindListenedGateway, name)["status"].(object)
	list, _ := status["conditions"].([]any)
	for _, c := range list {
		if m, _ := c.(object); m["type"] == kind {
			return m
		}
	}
	return nil
}

const edgeText = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, uid: some-uid}
spec:
  gatewayClassName: istio
  listeners: [{name: http, port: 80, protocol: HTTP}, {name: admin, port: 8080, protocol: HTTP}]
  infrastructure: {labels: {team: a}, annotations: {note: b}}
`

// ports are those of the Gateway's Service.
func (s *apiServer) ports() []any {
	spec, _ := s.get("Service", "default/edge-istio")["spec"].(object)
	list, _ := spec["ports"].([]any)
	var out []any
	for _, p := range list {
		out = append(out, p.(object)["port"])
	}
	return out
}

// running are the kinds of what runs a Gateway.
var running = []string{"ServiceAccount", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}

// missing are the kinds of what should run a Gateway and is not there.
func (s *apiServer) missing(account string) []string {
	return slices.DeleteFunc(slices.Clone(running), func(kind string) bool { return s.get(kind, "default/"+account) != nil })
}

// TestDeploy: what runs a Gateway comes by itself, is repaired, tells its address, follows its parameters, and goes when
// the Gateway runs elsewhere.
func TestDeploy(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(edgeText)
	r := follow(t, s)
	r.await("it is deployed", func() bool { return len(s.missing("edge-istio")) == 0 })
	for _, kind := range running {
		m := metadataOf(s.get(kind, "default/edge-istio"))
		owners, _ := m["ownerReferences"].([]any)
		labels, _ := m["labels"].(object)
		notes, _ := m["annotations"].(object)
		if len(owners) != 1 || owners[0].(object)["uid"] != "some-uid" || labels["team"] != "a" || notes["note"] != "b" {
			t.Errorf("%s: %v", kind, m)
		}
	}
	r.await("the classes are made", func() bool {
		return s.get(api.KindGatewayClass, "/lateen") != nil && s.get(api.KindGatewayClass, "/istio") != nil
	})
	r.await("the gateway waits for its address", func() bool {
		c := s.gatewayCondition("default/edge", "Programmed")
		return c["reason"] == "AddressNotAssigned" && s.gatewayCondition("default/edge", "Accepted")["status"] == "True"
	})
	if !r.Serves("default", "edge-istio", "edge") || r.Serves("default", "edge-istio", "other") || r.Serves("default", "default", "") {
		t.Error("it is not told by its account")
	}

	s.balance("10.9.9.9")
	r.await("it has its address", func() bool {
		return slices.Equal(s.reached("default/edge"), []any{"10.9.9.9"}) && s.gatewayCondition("default/edge", "Programmed")["status"] == "True"
	})

	o := s.get("Service", "default/edge-istio")
	o["spec"].(object)["ports"] = []any{object{"name": "other", "port": 1}}
	s.put(o)
	r.await("it is repaired", func() bool { return slices.Equal(s.ports(), []any{15021.0, 80.0, 8080.0}) })

	s.apply(strings.Replace(edgeText, "infrastructure: {", "infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: edge}, ", 1))
	r.await("there are no such parameters", func() bool {
		return s.gatewayCondition("default/edge", "Accepted")["reason"] == "InvalidParameters"
	})
	s.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: edge}\ndata: {service: '{spec: {type: ClusterIP}}', deployment: '{spec: {replicas: 3}}'}\n")
	r.await("it follows its parameters", func() bool {
		service, _ := s.get("Service", "default/edge-istio")["spec"].(object)
		deployment, _ := s.get("Deployment", "default/edge-istio")["spec"].(object)
		return service["type"] == "ClusterIP" && deployment["replicas"] == 3.0
	})

	s.apply("apiVersion: v1\nkind: Service\nmetadata: {name: ingress}\nspec: {selector: {app: ingress}, ports: [{name: http, port: 80}]}\n")
	s.apply(edgeText + "  addresses: [{type: Hostname, value: ingress}]\n")
	r.await("it runs elsewhere", func() bool {
		return len(s.missing("edge-istio")) == len(running) && s.gatewayCondition("default/edge", "Programmed")["status"] == "True"
	})
}

// TestDeployForeign: what somebody else has made under the name of a part is left alone, and the Gateway's status says so.
func TestDeployForeign(t *testing.T) {
	s := newServer(t)
	s.define()
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: edge-istio}\nspec: {ports: [{name: http, port: 7}]}\n"
	s.apply(edgeText + "---\n" + service)
	r := follow(t, s)
	r.await("it is told", func() bool {
		c := s.gatewayCondition("default/edge", "Programmed")
		text, _ := c["message"].(string)
		return c["status"] == "False" && strings.Contains(text, "Service default/edge-istio already")
	})
	if got := s.ports(); !slices.Equal(got, []any{7.0}) {
		t.Errorf("the Service of somebody else has the ports %v", got)
	}
}

// TestDeployMistyped: what runs a Gateway stays while its address is one that names no Service.
func TestDeployMistyped(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(edgeText)
	r := follow(t, s)
	r.await("it is deployed", func() bool { return len(s.missing("edge-istio")) == 0 })
	s.apply(edgeText + "  addresses: [{type: Hostname, value: www.example.com}]\n")
	r.await("it is told", func() bool {
		return s.gatewayCondition("default/edge", "Accepted")["reason"] == "UnsupportedAddress"
	})
	s.apply(strings.Replace(edgeText, "name: edge", "name: other", 1)) // which is looked at after the first
	r.await("another one is deployed", func() bool { return len(s.missing("other-istio")) == 0 })
	if gone := s.missing("edge-istio"); len(gone) > 0 {
		t.Errorf("there went %v", gone)
	}
}

// TestDeployClass: what runs a Gateway goes when its class is another controller's, and stays while nobody knows whose it is.
func TestDeployClass(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(edgeText)
	r := follow(t, s)
	r.await("it is deployed", func() bool { return len(s.missing("edge-istio")) == 0 })
	s.apply(strings.Replace(edgeText, "gatewayClassName: istio", "gatewayClassName: nginx", 1))
	s.apply(strings.Replace(edgeText, "name: edge", "name: other", 1))
	r.await("another one is deployed", func() bool { return len(s.missing("other-istio")) == 0 })
	if gone := s.missing("edge-istio"); len(gone) > 0 {
		t.Errorf("with a class that is not known went %v", gone)
	}
	s.apply("apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: nginx}\nspec: {controllerName: nginx.dev/c}\n")
	r.await("what ran it is gone", func() bool { return len(s.missing("edge-istio")) == len(running) })
	if gone := s.missing("other-istio"); len(gone) > 0 {
		t.Errorf("of the other went %v", gone)
	}
}

// TestDeployLate: a server that leads before everything was read has the deployer look as soon as it was, also if what was read
// last changes nothing for the Gateways.
func TestDeployLate(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(strings.Replace(reachedText, "kind: Secret", "kind: None", 1))
	release := s.hold("/secrets")
	defer release()
	defer s.hold("policy/poddisruptionbudgets")() // the deployer makes no classes, which would wake it
	r := follow(t, s)
	r.await("a Secret is asked for", func() bool { return s.has("/secrets?") })
	woken := make(chan struct{}, 16)
	r.await("it leads", func() bool {
		r.Store.mu.Lock()
		defer r.Store.mu.Unlock()
		if r.deploying == nil {
			return false
		}
		r.deploying = func() { woken <- struct{}{} }
		return true
	})
	defer s.hold("gateway.networking.k8s.io/gateways")() // nor is a status written
	defer s.hold("gateway.networking.k8s.io/httproutes")()
	release()
	r.await("the deployer is woken", func() bool { return len(woken) > 0 })
}
