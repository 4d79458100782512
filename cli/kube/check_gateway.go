package kube

import (
	"context"
	"fmt"
	"slices"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source/attach"
)

// gatewaysInForce judges by their status the Gateways of the Gateway API that are ours, and what is attached to them or to
// Services.
func gatewaysInForce(ctx context.Context, l *look) verdict {
	there, err := l.definitions(ctx)
	if err != nil {
		return trouble(err)
	}
	var why []string
	classes := map[gateway.ObjectName]bool{}
	for _, step := range []struct {
		resource string
		read     func(*unstructured.Unstructured) ([]string, error)
	}{
		{"gatewayclasses", func(u *unstructured.Unstructured) ([]string, error) {
			var c gateway.GatewayClass
			err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &c)
			classes[gateway.ObjectName(u.GetName())] = c.Spec.ControllerName == attach.Controller
			return nil, err
		}},
		{"gateways", func(u *unstructured.Unstructured) ([]string, error) {
			var g gateway.Gateway
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &g); err != nil || !classes[g.Spec.GatewayClassName] {
				return nil, err
			}
			return gatewayFaults(&g), nil
		}},
		{"httproutes", routeFaults},
		{"grpcroutes", routeFaults},
	} {
		d, found := there[step.resource+"."+api.GroupGateway]
		if !found || d.storage == "" {
			continue
		}
		err := l.each(ctx, d, d.storage, func(u *unstructured.Unstructured) {
			faults, err := step.read(u)
			if err != nil {
				faults = []string{err.Error()}
			}
			for _, text := range faults {
				if line := fmt.Sprintf("%s %s/%s: %s", d.kind, u.GetNamespace(), u.GetName(), text); !slices.Contains(why, line) {
					why = append(why, line)
				}
			}
		})
		if err != nil {
			return trouble(err)
		}
	}
	slices.Sort(why)
	return unless(failed, why)
}

// gatewayFaults are those of a Gateway itself or, where it is accepted, of its listeners.
func gatewayFaults(g *gateway.Gateway) (why []string) {
	if text := unfulfilled(g.Status.Conditions, "Accepted"); text != "" {
		return []string{text}
	}
	for i := range g.Status.Listeners {
		x := &g.Status.Listeners[i]
		if text := unfulfilled(x.Conditions, "Accepted", "ResolvedRefs"); text != "" {
			why = append(why, fmt.Sprintf("listener %s: %s", x.Name, text))
		}
	}
	if text := unfulfilled(g.Status.Conditions, "Programmed"); text != "" {
		why = append(why, text)
	}
	return why
}

// routeFaults are those of a route at its parents that are ours.
func routeFaults(u *unstructured.Unstructured) (why []string, err error) {
	var r gateway.HTTPRoute // of which a GRPCRoute has the same status
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(map[string]any{"status": u.Object["status"]}, &r); err != nil {
		return nil, err
	}
	for i := range r.Status.Parents {
		if p := &r.Status.Parents[i]; p.ControllerName == attach.Controller {
			if text := unfulfilled(p.Conditions, "Accepted", "ResolvedRefs"); text != "" {
				why = append(why, text)
			}
		}
	}
	return why, nil
}

// unfulfilled says why the first of some conditions that does not hold does not; empty: all hold.
func unfulfilled(conditions []meta.Condition, kinds ...string) string {
	for _, kind := range kinds {
		c := apimeta.FindStatusCondition(conditions, kind)
		switch {
		case c == nil:
			return "the status does not say yet whether it is " + kind
		case c.Status != meta.ConditionTrue:
			return c.Reason + ": " + c.Message
		}
	}
	return ""
}
