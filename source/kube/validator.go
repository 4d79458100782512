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
)

// validator brings the validation webhook into force. Its registration comes without rules, so that it is asked about
// nothing, and with the failurePolicy Fail. First it gets the rules, on the condition that the object is the probe; once
// the API server refuses the probe because the webhook says so, the condition goes. So nothing is refused because a
// webhook does not answer that never has; and no field is written that the chart writes as well, which would be a conflict
// of its next apply on the server's side.
type validator struct {
	store *Store
	// ruled: the rules are, or once were, those of this server, which may be of another version than who wrote them before.
	// Of servers of two versions the last one to start wins.
	ruled bool
}

// complete brings rules and conditions into the webhooks. more: they are soon in force.
func (v *validator) complete(ctx context.Context, hooks []any) (more bool) {
	wanted := rules()
	for _, h := range hooks {
		hook, _ := h.(map[string]any)
		switch written := hook["rules"]; {
		case hook == nil:
		case written == nil:
			hook["rules"], hook["matchConditions"] = wanted, condition()
			more = true
		case !v.ruled && !reflect.DeepEqual(written, wanted):
			hook["rules"] = wanted
			more = true
		case reflect.DeepEqual(hook["matchConditions"], condition()):
			if reached, soon := v.probe(ctx); !reached {
				return soon
			}
			delete(hook, "matchConditions")
			v.ruled = true
		default:
			v.ruled = true
		}
	}
	return more
}

func condition() any {
	return []any{map[string]any{"name": probeCondition, "expression": `object.metadata.name == "` + probeName + `"`}}
}

// rules are what the webhook is asked about: what creates or changes an object of Istio's groups; not what deletes one,
// nor writes its status.
func rules() []any {
	var groups []any
	for _, c := range customs {
		if len(groups) == 0 || groups[len(groups)-1] != c.group {
			groups = append(groups, c.group)
		}
	}
	return []any{map[string]any{
		"apiGroups": groups, "apiVersions": []any{"*"}, "operations": []any{"CREATE", "UPDATE"}, "resources": []any{"*"}, "scope": "*",
	}}
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
