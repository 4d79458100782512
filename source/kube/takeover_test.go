package kube

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source/attach"
)

// since are the states that an object has had after a version.
func (s *apiServer) since(version int, kind, name string) (out []object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.history {
		if c.version > version && c.resource == resourceOf(kind) && nameOf(c.object) == name {
			out = append(out, c.object)
		}
	}
	return out
}

// now is the version of what was stored last.
func (s *apiServer) now() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// has reports whether something that was asked for is so.
func (s *apiServer) has(part string) bool {
	return slices.ContainsFunc(s.asked(), func(q string) bool { return strings.Contains(q, part) })
}

// findings counts what the analysis found of a DestinationRule, by its status.
func (s *apiServer) findings(name string) int {
	status, _ := s.get(api.KindDestinationRule, name)["status"].(object)
	list, _ := status["validationMessages"].([]any)
	return len(list)
}

// reached are the addresses in a Gateway's status.
func (s *apiServer) reached(name string) (out []any) {
	status, _ := s.get(api.KindListenedGateway, name)["status"].(object)
	list, _ := status["addresses"].([]any)
	for _, a := range list {
		out = append(out, a.(object)["value"])
	}
	return out
}

const reachedText = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Secret
metadata: {name: cert}
type: kubernetes.io/tls
data: {tls.crt: LS0t, tls.key: LS0t}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec: {parentRefs: [{name: edge, sectionName: http}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, uid: some-uid}
spec:
  gatewayClassName: istio
  listeners: [{name: http, port: 80, protocol: HTTP}, {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}]
---`

// TestTakeOver: a server that starts anew, or begins to lead, leaves a status alone that is right: it says nothing before it
// has read what objects refer to, looked at all of them, and seen what is deployed.
func TestTakeOver(t *testing.T) {
	for name, standby := range map[string]bool{"restart": false, "standby": true} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.define()
			s.apply(reachedText + ruleText("a", "7"))
			first, stop := begin(t, s)
			first.await("it is deployed", func() bool {
				return s.get("Deployment", "default/edge-istio") != nil && s.get("Service", "default/edge-istio") != nil
			})
			s.balance("10.9.9.9")
			first.await("all status is right", func() bool {
				status, _ := s.get(api.KindListenedGateway, "default/edge")["status"].(object)
				text, _ := json.Marshal(status["listeners"])
				return s.findings("default/a") == 1 && s.parents("default/web")[attach.Controller]["status"] == "True" &&
					slices.Equal(s.reached("default/edge"), []any{"10.9.9.9"}) && s.gatewayCondition("default/edge", "Programmed")["status"] == "True" &&
					strings.Contains(string(text), "has no certificate") && strings.Contains(string(text), `"attachedRoutes":1`) &&
					s.acceptance(api.KindGatewayClass, "/istio") != nil && s.acceptance(api.KindGatewayClass, "/lateen") != nil
			})
			version := s.now()
			tracked := map[string]object{}
			for _, x := range []string{"DestinationRule default/a", "HTTPRoute default/web", api.KindListenedGateway + " default/edge", "GatewayClass /istio", "GatewayClass /lateen"} {
				kind, name, _ := strings.Cut(x, " ")
				tracked[x] = s.get(kind, name)
			}

			var r *rig
			if standby {
				r = follow(t, s)
				r.await("the other server has looked", func() bool { return len(r.Status().Findings) > 0 })
			}
			stop()
			s.mu.Lock()
			s.requests = nil
			s.mu.Unlock()
			release := s.hold("policy/poddisruptionbudgets")
			defer release()
			if !standby {
				secrets := s.hold("/secrets")
				defer secrets()
				r = follow(t, s)
				r.await("a Secret is asked for", func() bool { return s.has("/secrets?") })
				r.await("it leads", func() bool { return s.has("/poddisruptionbudgets?") })
				secrets()
			}
			for _, name := range []string{"b", "c"} { // when c is told, what was to be told at first is
				s.apply(ruleText(name, "7"))
				r.await("another rule", func() bool { return s.findings("default/"+name) == 1 })
			}
			release()
			s.balance("10.9.9.10")
			r.await("another address", func() bool { return slices.Equal(s.reached("default/edge"), []any{"10.9.9.10"}) })
			for x, was := range tracked {
				kind, name, _ := strings.Cut(x, " ")
				want, _ := json.Marshal(was["status"])
				for _, o := range s.since(version, kind, name) {
					got, _ := json.Marshal(o["status"])
					if text := strings.ReplaceAll(string(got), "10.9.9.10", "10.9.9.9"); text != string(want) {
						t.Errorf("%s: it was said\n%s\nwhere it was\n%s", x, text, want)
					}
				}
			}
		})
	}
}

// balance gives the Service of the Gateway edge an address, and its Deployment a pod.
func (s *apiServer) balance(address string) {
	o := s.get("Service", "default/edge-istio")
	o["status"] = object{"loadBalancer": object{"ingress": []any{object{"ip": address}}}}
	s.put(o)
	o = s.get("Deployment", "default/edge-istio")
	o["status"] = object{"availableReplicas": 1}
	s.put(o)
}
