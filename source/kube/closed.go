package kube

import (
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lateen-mesh/lateen/api"
)

// closed stands for a policy that is refused for faults, so that it is not as if there were none; nil for other kinds, and
// for a policy that would deny nothing if it could be read. See docs/decisions/010-fail-closed.md.
func closed(u *unstructured.Unstructured, faults []api.Fault) *api.Object {
	o := &api.Object{
		Ref: api.Ref{Kind: u.GetKind(), Namespace: u.GetNamespace(), Name: u.GetName()}, APIVersion: u.GetAPIVersion(),
		Created: created(u.GetCreationTimestamp()), Spec: &api.Unreadable{},
	}
	switch o.Kind {
	case api.KindPeerAuthentication, api.KindRequestAuthentication:
	case api.KindAuthorizationPolicy:
		dry, _ := strconv.ParseBool(u.GetAnnotations()["istio.io/dry-run"]) // a fault is not true
		action, _, _ := unstructured.NestedString(u.Object, "spec", "action")
		if dry || action == "AUDIT" {
			return nil
		}
	default:
		return nil
	}
	if slices.ContainsFunc(faults, func(f api.Fault) bool { return strings.HasPrefix(f.Path, "spec.selector") }) {
		return o
	}
	selector, found, err := unstructured.NestedStringMap(u.Object, "spec", "selector", "matchLabels")
	if found && err == nil {
		o.Spec = &api.Unreadable{Selector: selector}
		return o
	}
	selector, none := targeted(u)
	if none {
		return nil
	}
	o.Spec = &api.Unreadable{Selector: selector}
	return o
}

// gatewayOf is the label by which the pods of a Gateway of the Gateway API are known.
const gatewayOf = "gateway.networking.k8s.io/gateway-name"

// targeted is the selector that stands for a policy's targetRefs: that of the pods of a Gateway. none: the policy is for
// waypoints alone, which there are none of.
func targeted(u *unstructured.Unstructured) (selector map[string]string, none bool) {
	refs, _, _ := unstructured.NestedSlice(u.Object, "spec", "targetRefs")
	if one, found, _ := unstructured.NestedMap(u.Object, "spec", "targetRef"); found {
		refs = append(refs, one)
	}
	var gateways []string
	for _, r := range refs {
		ref, _ := r.(map[string]any)
		switch kind, name := value(ref["kind"]), value(ref["name"]); {
		case kind == "Gateway" && name != "":
			gateways = append(gateways, name)
		case !slices.Contains([]string{"Service", "ServiceEntry", "GatewayClass"}, kind):
			return nil, false
		}
	}
	switch len(gateways) {
	case 0:
		return nil, len(refs) > 0
	case 1:
		return map[string]string{gatewayOf: gateways[0]}, false
	}
	return nil, false // not worth telling apart: all of the namespace
}

// shut says what an object's faults do as long as they are there.
func shut(o *api.Object) api.Fault {
	whom := "the workloads that it selects"
	if o.Spec.(*api.Unreadable).Selector == nil {
		whom = "all workloads of its namespace (of the mesh, in " + api.RootNamespace + ")"
	}
	what := "every request to " + whom + " is denied"
	if o.Kind == api.KindPeerAuthentication {
		what = whom + " take mutual TLS only"
	}
	return api.Fault{Object: o.Ref.String(), Message: "there is no good version of it, so " + what + "; mend or delete it"}
}
