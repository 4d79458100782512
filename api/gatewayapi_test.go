package api

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

// What is left out of a route has the schema's defaults, as it has when it comes from an API server.
func TestGatewayDefaults(t *testing.T) {
	r := Decode("a.yaml", []byte(`
apiVersion: gateway.networking.k8s.io/v1beta1
kind: HTTPRoute
metadata: {name: web}
spec: {parentRefs: [{name: web}]}
status: {parents: [{anything: goes}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec: {gatewayClassName: lateen, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web}
spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
`))
	if len(r.Faults) > 0 || len(r.Objects) != 3 {
		t.Fatalf("%d objects, faults %v", len(r.Objects), r.Faults)
	}
	want := []gateway.HTTPRouteRule{{Matches: []gateway.HTTPRouteMatch{{
		Path: &gateway.HTTPPathMatch{Type: new(gateway.PathMatchPathPrefix), Value: new("/")},
	}}}}
	if diff := cmp.Diff(want, r.Objects[0].Spec.(*gateway.HTTPRoute).Spec.Rules); diff != "" {
		t.Error(diff)
	}
	for i, kind := range []string{KindHTTPRoute, KindListenedGateway, KindGateway} {
		if r.Objects[i].Kind != kind {
			t.Errorf("object %d is a %s, want %s", i, r.Objects[i].Kind, kind)
		}
		text, err := Encode(r.Objects[i])
		if err != nil {
			t.Fatal(err)
		}
		again := Decode("b.yaml", text)
		if len(again.Faults) > 0 || len(again.Objects) != 1 || again.Objects[0].Ref != r.Objects[i].Ref {
			t.Errorf("%s\nis read again as %v, faults %v", text, again.Objects, again.Faults)
		}
	}
}
