package attach

import (
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/lateen-mesh/lateen/api"
)

// Deployed is how the workloads of a Gateway stand.
type Deployed struct {
	// Addresses are where clients reach it.
	Addresses []gateway.GatewayStatusAddress
	// Ready: some workload runs.
	Ready bool
	// Waiting says in words what is waited for, unless Ready.
	Waiting string
}

// supportedFeatures are the Gateway API's names of what is acted on, sorted.
var supportedFeatures = []gateway.FeatureName{
	"GRPCRoute", "Gateway", "GatewayHTTPListenerIsolation", "GatewayInfrastructurePropagation", "GatewayPort8080", "HTTPRoute",
	"HTTPRoute303RedirectStatusCode", "HTTPRoute307RedirectStatusCode", "HTTPRoute308RedirectStatusCode", "HTTPRouteBackendProtocolH2C",
	"HTTPRouteBackendProtocolWebSocket", "HTTPRouteBackendRequestHeaderModification", "HTTPRouteBackendTimeout", "HTTPRouteHostRewrite",
	"HTTPRouteMethodMatching", "HTTPRouteNamedRouteRule", "HTTPRouteParentRefPort", "HTTPRoutePathRedirect", "HTTPRoutePathRewrite",
	"HTTPRoutePortRedirect", "HTTPRouteQueryParamMatching", "HTTPRouteRequestMirror", "HTTPRouteRequestMultipleMirrors",
	"HTTPRouteRequestPercentageMirror", "HTTPRouteRequestTimeout", "HTTPRouteResponseHeaderModification", "HTTPRouteSchemeRedirect",
	"Mesh", "MeshConsumerRoute", "MeshHTTPRouteBackendRequestHeaderModification", "MeshHTTPRouteNamedRouteRule",
	"MeshHTTPRouteQueryParamMatching", "MeshHTTPRouteRedirectPath", "MeshHTTPRouteRedirectPort", "MeshHTTPRouteRewritePath",
	"MeshHTTPRouteSchemeRedirect", "ReferenceGrant",
}

// Status is what the status of each object says: a gateway.GatewayClassStatus, GatewayStatus or RouteStatus, in which
// the parents are ours only. Generations and times are left to the caller, who knows them. deployed tells how the workloads
// of a Gateway stand; nil: that is not known, and nothing is said of it, neither Programmed nor addresses.
func (r *Result) Status(deployed func(*Gateway) *Deployed) map[api.Ref]any {
	out := map[api.Ref]any{}
	for _, ref := range r.Classes {
		st := gateway.GatewayClassStatus{Conditions: []meta.Condition{condition("Accepted", Verdict{}, "Accepted")}}
		for _, name := range supportedFeatures {
			st.SupportedFeatures = append(st.SupportedFeatures, gateway.SupportedFeature{Name: name})
		}
		out[ref] = st
	}
	for _, g := range r.Gateways {
		out[g.Object.Ref] = g.status(deployed(g))
	}
	for ref, list := range r.Parents {
		st := gateway.RouteStatus{}
		for _, p := range list {
			st.Parents = append(st.Parents, gateway.RouteParentStatus{ParentRef: p.Ref, ControllerName: Controller, Conditions: []meta.Condition{
				condition("Accepted", p.accepted, "Accepted"), condition("ResolvedRefs", p.resolved, "ResolvedRefs"),
			}})
		}
		out[ref] = st
	}
	return out
}

// condition is that of a verdict; fine is the reason where all is well.
func condition(kind string, v Verdict, fine string) meta.Condition {
	if v.bad() {
		return meta.Condition{Type: kind, Status: meta.ConditionFalse, Reason: v.Reason, Message: v.Message}
	}
	return meta.Condition{Type: kind, Status: meta.ConditionTrue, Reason: fine}
}

func (g *Gateway) status(d *Deployed) gateway.GatewayStatus {
	var st gateway.GatewayStatus
	accepted := condition("Accepted", g.accepted, "Accepted")
	programmed := g.programmed(d)
	if programmed != nil && !g.accepted.bad() {
		st.Addresses = d.Addresses
	}
	for _, l := range g.Listeners {
		if !l.Open() && !g.accepted.bad() {
			accepted.Reason = string(gateway.GatewayReasonListenersNotValid)
			accepted.Message = "not every listener can be opened; see the status of each"
		}
		st.Listeners = append(st.Listeners, l.status(g, programmed))
	}
	st.Conditions = []meta.Condition{accepted}
	if programmed != nil {
		st.Conditions = append(st.Conditions, condition("Programmed", *programmed, "Programmed"))
	}
	return st
}

// programmed tells whether the Gateway runs; nil: it is not known.
func (g *Gateway) programmed(d *Deployed) *Verdict {
	switch {
	case g.accepted.bad():
		return &Verdict{Reason: "Invalid", Message: "the Gateway is not accepted: " + g.accepted.Message}
	case d == nil:
		return nil
	case len(d.Addresses) == 0:
		return &Verdict{Reason: string(gateway.GatewayReasonAddressNotAssigned), Message: d.Waiting}
	case !d.Ready:
		return &Verdict{Reason: string(gateway.GatewayReasonNoResources), Message: d.Waiting}
	}
	return &Verdict{}
}

func (l *Listener) status(g *Gateway, programmed *Verdict) gateway.ListenerStatus {
	accepted := l.accepted
	if l.conflicted.bad() {
		accepted.worse(l.conflicted.Reason, l.conflicted.Message)
	}
	switch {
	case g.accepted.bad() || !l.Open():
		programmed = &Verdict{Reason: string(gateway.ListenerReasonInvalid), Message: "the listener is not open"}
	case programmed != nil && programmed.bad():
		programmed = &Verdict{Reason: string(gateway.ListenerReasonPending), Message: programmed.Message}
	}
	conflicted := meta.Condition{Type: "Conflicted", Status: meta.ConditionFalse, Reason: string(gateway.ListenerReasonNoConflicts)}
	if l.conflicted.bad() {
		conflicted.Status, conflicted.Reason, conflicted.Message = meta.ConditionTrue, l.conflicted.Reason, l.conflicted.Message
	}
	st := gateway.ListenerStatus{
		Name: l.Name, SupportedKinds: l.kinds, AttachedRoutes: l.Attached, Conditions: []meta.Condition{
			condition("Accepted", accepted, "Accepted"), conflicted, condition("ResolvedRefs", l.resolved, "ResolvedRefs"),
		},
	}
	if programmed != nil {
		st.Conditions = append(st.Conditions, condition("Programmed", *programmed, "Programmed"))
	}
	return st
}

// Problem is something about an object that keeps it from being in force as it is written.
type Problem struct {
	Object *api.Object
	Verdict
}

// Problems lists them, in the order of the objects.
func (r *Result) Problems() []Problem {
	var out []Problem
	add := func(o *api.Object, list ...Verdict) {
		for _, v := range list {
			if v.bad() {
				out = append(out, Problem{o, v})
			}
		}
	}
	for _, g := range r.Gateways {
		add(g.Object, g.accepted)
		for _, l := range g.Listeners {
			add(g.Object, l.accepted, l.conflicted, l.resolved)
		}
	}
	for ref, list := range r.Parents {
		for i, p := range list {
			add(r.objects[ref], p.accepted)
			if i == 0 || p.resolved.Message != list[i-1].resolved.Message { // mostly the same for all parents
				add(r.objects[ref], p.resolved)
			}
		}
	}
	return out
}
