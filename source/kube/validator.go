package kube

import (
	"context"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lateen-mesh/lateen/api"
)

// What shows that the API server reaches the validation webhook: the creation of an object that is refused, as a dry run.
const (
	probeName = "lateen-validation-probe"
	// probeWord is in every refusal by a webhook of ours.
	probeWord = `validate.lateen.dev" denied the request`
	// probeCondition is the condition by which the webhook is asked about the probe and nothing else.
	probeCondition = "probe"
	// gatewayHook ends the names of the webhooks that are asked about objects of the Gateway API. The chart gives them the
	// failurePolicy Ignore, as other implementations read these objects as well and must not depend on us.
	gatewayHook = "gateway-api.validate.lateen.dev"
)

// validator brings the validation webhook into force. Its registration comes without rules, so that it is asked about
// nothing, and with the failurePolicy Fail. First it gets the rules, on the condition that the object is the probe; once
// the API server refuses the probe because the webhook says so, the condition goes. So nothing is refused because a
// webhook does not answer that never has; and no field is written that the chart writes as well, which would be a conflict
// of its next apply on the server's side.
type validator struct {
	store *Store
	// ruled are the webhooks, by name, whose rules are, or once were, those of this server, which may be of another version
	// than who wrote them before. Of servers of two versions the last one to start wins.
	ruled map[string]bool
}

// complete brings rules and conditions into the webhooks. more: they are soon in force.
func (v *validator) complete(ctx context.Context, hooks []any) (more bool) {
	for _, h := range hooks {
		hook, _ := h.(map[string]any)
		name, _ := hook["name"].(string)
		wanted := rules(name)
		switch written := hook["rules"]; {
		case hook == nil:
		case written == nil:
			hook["rules"], hook["matchConditions"] = wanted, condition()
			more = true
		case !v.ruled[name] && !reflect.DeepEqual(written, wanted):
			hook["rules"] = wanted
			more = true
		case reflect.DeepEqual(hook["matchConditions"], condition()):
			if reached, soon := v.probe(ctx); !reached {
				return soon
			}
			delete(hook, "matchConditions")
			v.ruled[name] = true
		default:
			v.ruled[name] = true
		}
	}
	return more
}

func condition() any {
	return []any{map[string]any{"name": probeCondition, "expression": `object.metadata.name == "` + probeName + `"`}}
}

// rules are what a webhook is asked about: what creates or changes an object, not what deletes one, nor writes its status.
// Istio's groups are the mesh's, whatever is in them. Of the Gateway API there are kinds and versions that others read and we
// do not; a version that the API server can convert into one of these comes as that (matchPolicy Equivalent, its default).
func rules(hook string) []any {
	rule := func(group string, versions, resources []any) any {
		return map[string]any{
			"apiGroups": []any{group}, "apiVersions": versions, "operations": []any{"CREATE", "UPDATE"}, "resources": resources, "scope": "*",
		}
	}
	ofGateways := strings.HasSuffix(hook, gatewayHook)
	var out []any
	var groups []string
	for _, c := range customs {
		switch {
		case ofGateways != (c.group == api.GroupGateway):
		case ofGateways:
			var versions []any
			for _, v := range c.versions {
				versions = append(versions, v)
			}
			out = append(out, rule(c.group, versions, []any{c.resource}))
		case !slices.Contains(groups, c.group):
			groups = append(groups, c.group)
			out = append(out, rule(c.group, []any{"*"}, []any{"*"}))
		}
	}
	return out
}

// probe reports whether the API server refuses, as our webhook says, a Gateway that opens no port; if not, whether it may
// soon.
func (v *validator) probe(ctx context.Context) (reached, soon bool) {
	i := slices.IndexFunc(customs, func(c custom) bool { return c.kind == api.KindGateway && c.group == networkGroup })
	r, err := (&version{custom: customs[i], api: v.store.api}).served(ctx)
	if err != nil {
		return false, false
	}
	namespace := v.store.leader.namespace
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": r.GroupVersion().String(), "kind": api.KindGateway, "spec": map[string]any{},
		"metadata": map[string]any{"name": probeName, "namespace": namespace, "labels": map[string]any{"istio.io/rev": v.store.config.Revision}},
	}}
	_, err = v.store.api.dynamic.Resource(r).Namespace(namespace).Create(ctx, o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err != nil && strings.Contains(err.Error(), probeWord), true
}
