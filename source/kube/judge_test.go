package kube

import (
	"strings"
	"testing"
)

// TestJudge: an object is judged among all that is in force, which it does not change.
func TestJudge(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: old, namespace: default}
spec: {host: nowhere}
`)
	r := follow(t, s)
	r.read()
	rule := func(host string) []byte {
		return []byte(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"x","namespace":"default"},"spec":{"host":"` + host + `"}}`)
	}
	for _, tt := range []struct {
		name    string
		raw     []byte
		fault   string
		finding string
	}{
		{"fits", rule("web"), "", ""},
		{"fits nothing", rule("wep"), "", "no service has the host wep.default.svc.cluster.local"},
		{"faulty", rule(""), "host", ""},
	} {
		o, faults, findings := r.Judge(tt.raw)
		if (o == nil) != (tt.fault != "") || (len(faults) == 0) != (tt.fault == "") || len(faults) > 0 && !strings.Contains(faults[0].String(), tt.fault) {
			t.Errorf("%s: %v %v, want %q", tt.name, o, faults, tt.fault)
		}
		if (len(findings) == 0) != (tt.finding == "") || len(findings) > 0 && (!strings.Contains(findings[0].String(), tt.finding) || len(findings) > 1) {
			t.Errorf("%s: findings %v, want %q", tt.name, findings, tt.finding)
		}
	}
	if got := r.List("DestinationRule", "", ""); len(got) != 1 || got[0].Name != "old" {
		t.Errorf("in force is %v", got)
	}
	// Where many are judged already, what is wrong by itself is told, and nobody waits for the rest.
	for range judgesMax {
		r.judging <- struct{}{}
	}
	if o, _, findings := r.Judge(rule("wep")); o == nil || len(findings) > 0 {
		t.Errorf("%v, findings %v", o, findings)
	}
	if _, faults, _ := r.Judge(rule("")); len(faults) == 0 {
		t.Error("a fault is not told")
	}
}

// TestJudgeOthers: of the Gateway API's objects only those are judged that are this mesh's alone.
func TestJudgeOthers(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(gatewayClass + strings.NewReplacer("name: lateen", "name: other", "lateen.dev", "other.dev").Replace(gatewayClass) + `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec: {gatewayClassName: lateen, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: theirs}
spec: {gatewayClassName: other, listeners: [{name: http, port: 80, protocol: HTTP}]}
`)
	r := follow(t, s)
	r.read()
	object := func(version, kind, spec string) string {
		return `{"apiVersion":"gateway.networking.k8s.io/` + version + `","kind":"` + kind + `","metadata":{"name":"x","namespace":"default"},"spec":` + spec + `}`
	}
	r.await("it is known what is ours", func() bool {
		_, faults, _ := r.Judge([]byte(object("v1", "Gateway", `{"gatewayClassName":"lateen","speed":1}`)))
		return len(faults) > 0
	})
	route := func(parents string) string {
		return object("v1", "HTTPRoute", `{"parentRefs":[`+parents+`],"speed":1}`)
	}
	const ours, theirs, service = `{"name":"edge"}`, `{"name":"theirs"}`, `{"group":"","kind":"Service","name":"web"}`
	for _, tt := range []struct {
		name, raw string
		refused   bool
	}{
		{"a kind that is not read", object("v1alpha2", "TLSRoute", `{"parentRefs":[`+ours+`]}`), false},
		{"a version that is not read", object("v1alpha2", "HTTPRoute", `{"parentRefs":[`+theirs+`]}`), false},
		{"a route of theirs", route(theirs), false},
		{"a route of a Gateway that is not there", route(`{"name":"nowhere"}`), false},
		{"a route of ours and theirs", route(ours + "," + theirs), false},
		{"a route of ours", route(ours), true},
		{"a route within the mesh", route(service), true},
		{"a route of nobody", route(""), false},
		{"a Gateway of theirs", object("v1", "Gateway", `{"gatewayClassName":"other","speed":1}`), false},
		{"a Gateway of ours", object("v1", "Gateway", `{"gatewayClassName":"lateen","speed":1}`), true},
		{"a class of theirs", object("v1", "GatewayClass", `{"controllerName":"other.dev/gateway-controller","speed":1}`), false},
		{"a class of ours", object("v1", "GatewayClass", `{"controllerName":"lateen.dev/gateway-controller","speed":1}`), true},
		{"a grant, which is for all", object("v1", "ReferenceGrant", `{"speed":1}`), false},
	} {
		if _, faults, _ := r.Judge([]byte(tt.raw)); (len(faults) > 0) != tt.refused {
			t.Errorf("%s: %v, want a refusal: %t", tt.name, faults, tt.refused)
		}
	}
}
