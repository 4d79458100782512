package compile

import (
	"testing"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// TestUnreadableConditionDenies: an address or port that cannot be read must not widen what a policy allows.
func TestUnreadableConditionDenies(t *testing.T) {
	for _, c := range []mesh.AuthzCondition{
		{Key: "source.ip", NotValues: []string{"10.0.0.0/8", "10.0.0.0/99"}},
		{Key: "remote.ip", Values: []string{"nowhere"}},
		{Key: "destination.port", Values: []string{"80", "http"}},
	} {
		b := mesh.NewBuilder()
		p := &mesh.Authz{Namespace: "default", Name: "p", Action: "ALLOW", Rules: []mesh.AuthzRule{{When: []mesh.AuthzCondition{c}}}}
		snap, _ := b.Apply([]mesh.Change{{Ref: p.Ref(), Object: p}})
		res, _ := Compile(mesh.NewView(snap), &Asker{Namespace: "default", Workload: "w"}, plan.KindListener, plan.ListenerInbound)
		policies := res.(*plan.Listener).Chains[0].Authz.Policies
		if len(policies) != 1 || policies[0].Action != plan.ActionDeny || len(policies[0].Rules) != 1 {
			t.Errorf("%v: %+v", c, policies)
		}
	}
}

// TestUnreadablePeerAuthenticationDemandsMutualTLS: what it may have said counts more than what others say.
func TestUnreadablePeerAuthenticationDemandsMutualTLS(t *testing.T) {
	for name, tt := range map[string]struct {
		namespace string
		selector  mesh.Labels
		strict    bool
	}{
		"its own workload":         {"default", mesh.Labels{"app": "a"}, true},
		"its own namespace":        {"default", nil, true},
		"the mesh":                 {"istio-system", nil, true},
		"another workload":         {"default", mesh.Labels{"app": "b"}, false},
		"another namespace's":      {"other", nil, false},
		"a workload of the mesh's": {"istio-system", mesh.Labels{"app": "a"}, true},
	} {
		b := mesh.NewBuilder()
		closed := &mesh.Authn{Namespace: tt.namespace, Name: "closed", Selector: tt.selector, Mode: mesh.MTLSStrict, Unreadable: true}
		open := &mesh.Authn{
			Namespace: "default", Name: "open", Selector: mesh.Labels{"app": "a"}, Mode: mesh.MTLSDisable,
			Ports: map[uint16]mesh.MTLSMode{8080: mesh.MTLSPermissive},
		}
		snap, _ := b.Apply([]mesh.Change{{Ref: closed.Ref(), Object: closed}, {Ref: open.Ref(), Object: open}})
		a := newAsking(mesh.NewView(snap), &Asker{Namespace: "default", Workload: "w", Labels: mesh.Labels{"app": "a"}})
		modes := a.peerModes()
		if got := len(modes) == 1 && modes[0].mode == plan.TLSStrict; got != tt.strict {
			t.Errorf("%s: %v", name, modes)
		}
	}
}
