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
