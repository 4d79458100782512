package kube

import (
	"reflect"
	"slices"
	"time"

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
	if len(a.faults) > 0 {
		return nil // the last good version counts, and its status says so by its generation
	}
	next := map[string]any{}
	switch st := w.attached[ref].(type) {
	case gatewayapi.GatewayClassStatus:
		own := asJSON(&st)
		next["conditions"] = a.conditionsOf(a.whole["conditions"], own["conditions"])
		next["supportedFeatures"] = own["supportedFeatures"]
	case gatewayapi.GatewayStatus:
		own := asJSON(&st)
		next["conditions"] = a.conditionsOf(a.whole["conditions"], own["conditions"])
		next["addresses"] = own["addresses"] // nil removes them
		next["listeners"] = a.listenersOf(own["listeners"])
	default:
		parents, ours := a.parentsOf(st)
		if !ours {
			return nil
		}
		next["parents"] = parents
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
