package deploy

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Kind is what an object can be, and where the API server has it.
type Kind struct {
	// Name is the kind's.
	Name string
	// Resource is its path in the API.
	Resource schema.GroupVersionResource
	// Namespaced says that its objects are in namespaces.
	Namespaced bool
}

// InstallationKind is our record of what is installed.
const InstallationKind = "Installation"

// Installations is the resource of our record of what is installed.
var Installations = schema.GroupVersionResource{Group: "lateen.dev", Version: "v1alpha1", Resource: "installations"}

// kinds is the order in which objects are applied: what others name or need goes first. The webhooks go before
// Deployments, as a gateway's pod that is made without one has no proxy, and the CNI plugin before the webhooks, as pods
// that are told to count on it wait for it.
var kinds = []Kind{
	{"CustomResourceDefinition", schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}, false},
	{"ServiceAccount", schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, true},
	{"ClusterRole", rights("clusterroles"), false},
	{"ClusterRoleBinding", rights("clusterrolebindings"), false},
	{"Role", rights("roles"), true},
	{"RoleBinding", rights("rolebindings"), true},
	{"ConfigMap", schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, true},
	{"Service", schema.GroupVersionResource{Version: "v1", Resource: "services"}, true},
	{"DaemonSet", schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}, true},
	{"MutatingWebhookConfiguration", schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}, false},
	{"ValidatingWebhookConfiguration", schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}, false},
	{"Deployment", schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, true},
	{"PodDisruptionBudget", schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}, true},
	{"HorizontalPodAutoscaler", schema.GroupVersionResource{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}, true},
}

// others are kinds of objects beside an installation: what it stands in, and what is made while it runs.
var others = []Kind{
	{"Namespace", schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, false},
	{"Secret", schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, true},
	{"Lease", schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}, true},
	{"ClusterTrustBundle", schema.GroupVersionResource{Group: "certificates.k8s.io", Version: "v1", Resource: "clustertrustbundles"}, false},
	{"GatewayClass", schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}, false},
	{InstallationKind, Installations, false},
}

func rights(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: resource}
}

// Kinds are those of an installation's objects, in the order in which they are applied.
func Kinds() []Kind { return slices.Clone(kinds) }

// KindOf is an object's kind, in the version of the object.
func KindOf(o Object) (Kind, error) {
	of, err := schema.ParseGroupVersion(o.APIVersion)
	if err != nil {
		return Kind{}, fmt.Errorf("%s: %w", o, err)
	}
	for _, list := range [][]Kind{kinds, others} {
		for _, k := range list {
			if k.Name == o.Kind && k.Resource.Group == of.Group {
				k.Resource.Version = of.Version
				return k, nil
			}
		}
	}
	return Kind{}, fmt.Errorf("%s: nothing is known of this kind", o)
}

// rank is the place of a kind in the order; those that are not listed go last.
func rank(kind string) int {
	if i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == kind }); i >= 0 {
		return i
	}
	return len(kinds)
}
