package kube

import (
	"reflect"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayapi "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source/attach"
)

// attach takes over what the Gateway API's objects come to.
func (w *statusWriter) attach(all map[api.Ref]any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attached = all
	for ref, a := range w.objects {
		if a.resource.Group == api.GroupGateway {
			w.judge(ref)
		}
	}
}

// attachedPatch is the status that an object of the Gateway API should have, as a merge patch; nil if it has it. What
// others have written stays: conditions of other types, and parents of other controllers. The caller holds mu.
func (w *statusWriter) attachedPatch(ref api.Ref, a *account) map[string]any {
	if w.attached == nil {
		return nil // not everything was read
	}
	next := w.attachedStatus(ref, a)
	if len(a.faults) > 0 {
		next = w.refusedStatus(ref, a)
	}
	same := true
	for name, value := range next {
		if old := a.whole[name]; !reflect.DeepEqual(old, value) && (!empty(old) || !empty(value)) {
			same = false
		}
	}
	if same {
		return nil
	}
	return map[string]any{"metadata": map[string]any{"resourceVersion": a.version}, "status": next}
}

// attachedStatus is the part of the status of an object in force that is ours; nil: it is not ours.
func (w *statusWriter) attachedStatus(ref api.Ref, a *account) map[string]any {
	switch st := w.attached[ref].(type) {
	case gatewayapi.GatewayClassStatus:
		own := asJSON(&st)
		return map[string]any{"conditions": a.conditionsOf(a.whole["conditions"], own["conditions"]), "supportedFeatures": own["supportedFeatures"]}
	case gatewayapi.GatewayStatus:
		own := asJSON(&st)
		next := map[string]any{
			"conditions": a.conditionsOf(a.whole["conditions"], own["conditions"]),
			"listeners":  a.listenersOf(own["listeners"]),
		}
		if meta.FindStatusCondition(st.Conditions, string(gatewayapi.GatewayConditionProgrammed)) != nil { // else nothing is known of them
			next["addresses"] = own["addresses"] // nil removes them
		}
		return next
	default:
		if parents, ours := a.parentsOf(st); ours {
			return map[string]any{"parents": parents}
		}
		return nil
	}
}

// refusedStatus is that of an object that is refused: its last good version, if any, stays in force, and the condition
// Accepted says why this one is not. What else the status says is of the generation that it names.
func (w *statusWriter) refusedStatus(ref api.Ref, a *account) map[string]any {
	refused := func(reason string) []metav1.Condition {
		return []metav1.Condition{{Type: conditionAccepted, Status: metav1.ConditionFalse, Reason: reason, Message: told(a.faults)}}
	}
	switch ref.Kind {
	case api.KindListenedGateway:
		if !w.ours(ref.Kind, ref.Namespace, ref.Name) && !w.ours(api.KindGatewayClass, "", a.class) {
			return nil
		}
		own := asJSON(&gatewayapi.GatewayStatus{Conditions: refused(string(gatewayapi.GatewayReasonInvalid))})
		return map[string]any{"conditions": a.conditionsOf(a.whole["conditions"], own["conditions"])}
	case api.KindHTTPRoute, api.KindGRPCRoute:
		var st gatewayapi.RouteStatus
		for _, p := range a.parents {
			if w.ourParent(ref.Namespace, p) {
				st.Parents = append(st.Parents, gatewayapi.RouteParentStatus{
					ParentRef: p, ControllerName: attach.Controller, Conditions: refused(string(gatewayapi.RouteReasonUnsupportedValue)),
				})
			}
		}
		if parents, ours := a.parentsOf(st); ours {
			return map[string]any{"parents": parents}
		}
	}
	return nil
}

// ours reports whether an object of the Gateway API is in force as ours. The caller holds mu.
func (w *statusWriter) ours(kind, namespace, name string) bool {
	return w.attached[api.Ref{Kind: kind, Namespace: namespace, Name: name}] != nil
}

// ourParent reports whether the parent of a route in a namespace is a Gateway of ours, or a Service. The caller holds mu.
func (w *statusWriter) ourParent(namespace string, p gatewayapi.ParentReference) bool {
	switch or(p.Group, api.GroupGateway) + "/" + or(p.Kind, api.KindGateway) {
	case api.GroupGateway + "/" + api.KindGateway:
		return w.ours(api.KindListenedGateway, or(p.Namespace, namespace), string(p.Name))
	case "/" + api.KindService:
		return true
	}
	return false
}

// owns reports whether an object of the Gateway API, which may have faults, is this mesh's alone: by its class, or by all its
// parents. Where nothing is in force yet nothing is known to be.
func (w *statusWriter) owns(u *unstructured.Unstructured) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	var of standing
	of.refers(u)
	switch ref := refOf(u); ref.Kind {
	case api.KindGatewayClass:
		controller, _, _ := unstructured.NestedString(u.Object, "spec", "controllerName")
		return controller == attach.Controller
	case api.KindListenedGateway:
		return w.ours(api.KindGatewayClass, "", of.class)
	case api.KindHTTPRoute, api.KindGRPCRoute:
		return len(of.parents) > 0 && !slices.ContainsFunc(of.parents, func(p gatewayapi.ParentReference) bool { return !w.ourParent(ref.Namespace, p) })
	}
	return false
}

// or is what a text points to, or else the other.
func or[T ~string](p *T, other string) string {
	if p == nil {
		return other
	}
	return string(*p)
}

// refers notes of an object that is refused what tells whether its status is ours to write: its parents, its class.
func (s *standing) refers(u *unstructured.Unstructured) {
	s.class, _, _ = unstructured.NestedString(u.Object, "spec", "gatewayClassName")
	list, _, _ := unstructured.NestedSlice(u.Object, "spec", "parentRefs")
	for _, x := range list {
		var p gatewayapi.ParentReference
		if m, ok := x.(map[string]any); ok && runtime.DefaultUnstructuredConverter.FromUnstructured(m, &p) == nil {
			s.parents = append(s.parents, p)
		}
	}
}

func empty(v any) bool {
	list, ok := v.([]any)
	return v == nil || ok && len(list) == 0
}

// asJSON is a status as JSON has it.
func asJSON(st any) map[string]any {
	out, err := runtime.DefaultUnstructuredConverter.ToUnstructured(st)
	if err != nil {
		return nil // of texts and numbers: never fails
	}
	return out
}

// conditionsOf puts our conditions among those that are there. Each keeps the time of its last change.
func (a *account) conditionsOf(there, ours any) []any {
	old, _ := there.([]any)
	own, _ := ours.([]any)
	var out []any
	find := func(list []any, kind any) map[string]any {
		for _, c := range list {
			if m, _ := c.(map[string]any); m["type"] == kind {
				return m
			}
		}
		return nil
	}
	for _, c := range old {
		m, _ := c.(map[string]any)
		if mine := find(own, m["type"]); mine == nil {
			out = append(out, c)
		}
	}
	for _, c := range own {
		m, _ := c.(map[string]any)
		since := any(time.Now().UTC().Format(time.RFC3339))
		if before := find(old, m["type"]); before != nil && before["status"] == m["status"] && before["lastTransitionTime"] != nil {
			since = before["lastTransitionTime"]
		}
		m["lastTransitionTime"], m["observedGeneration"] = since, a.generation
		out = append(out, m)
	}
	byType := func(x, y any) int { return compareText(x, y, "type") }
	slices.SortStableFunc(out, byType)
	return out
}

func compareText(x, y any, field string) int {
	a, _ := x.(map[string]any)
	b, _ := y.(map[string]any)
	switch s, t := value(a[field]), value(b[field]); {
	case s < t:
		return -1
	case s > t:
		return 1
	}
	return 0
}

func (a *account) listenersOf(ours any) []any {
	old, _ := a.whole["listeners"].([]any)
	own, _ := ours.([]any)
	var out []any
	for _, l := range own {
		m, _ := l.(map[string]any)
		var there any
		for _, o := range old {
			if before, _ := o.(map[string]any); before["name"] == m["name"] {
				there = before["conditions"]
			}
		}
		m["conditions"] = a.conditionsOf(there, m["conditions"])
		out = append(out, m)
	}
	return out
}

// parentsOf puts our parents of a route among those of others. ours: some are, or were.
func (a *account) parentsOf(status any) (out []any, ours bool) {
	old, _ := a.whole["parents"].([]any)
	out = []any{}
	for _, p := range old {
		if m, _ := p.(map[string]any); m["controllerName"] == attach.Controller {
			ours = true
		} else {
			out = append(out, p)
		}
	}
	st, ok := status.(gatewayapi.RouteStatus)
	if !ok {
		return out, ours
	}
	own, _ := asJSON(&st)["parents"].([]any)
	for _, p := range own {
		m, _ := p.(map[string]any)
		var there any
		for _, o := range old {
			before, _ := o.(map[string]any)
			if before["controllerName"] == attach.Controller && reflect.DeepEqual(before["parentRef"], m["parentRef"]) {
				there = before["conditions"]
			}
		}
		m["conditions"] = a.conditionsOf(there, m["conditions"])
		out = append(out, m)
	}
	return out, ours || len(own) > 0
}
