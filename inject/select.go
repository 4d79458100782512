package inject

import (
	"fmt"
	"slices"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// What decides. The label is Istio's, the annotation its deprecated form.
const (
	labelInject    = "sidecar.istio.io/inject"
	labelRevision  = "istio.io/rev"
	labelInjection = "istio-injection"
	labelName      = "kubernetes.io/metadata.name" // of every namespace
)

// ignoredNamespaces get no proxies whatever they say: without their pods there is no cluster (Istio's IgnoredNamespaces).
func ignoredNamespaces() []string {
	return []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}
}

// Decision is whether a pod is injected, and why.
type Decision struct {
	Inject bool
	Reason string
}

// namedSelector is a label selector and its text, for reasons.
type namedSelector struct {
	labels.Selector
	text string
}

// compileSelectors leaves out empty selectors, which would choose every pod (as Istio does).
func compileSelectors(list []meta.LabelSelector) ([]namedSelector, error) {
	var out []namedSelector
	for i := range list {
		s, err := meta.LabelSelectorAsSelector(&list[i])
		if err != nil {
			return nil, fmt.Errorf("selector %d: %w", i+1, err)
		}
		if !s.Empty() {
			out = append(out, namedSelector{s, s.String()})
		}
	}
	return out, nil
}

// Decide says whether a pod that the webhook is asked about gets a proxy.
func (in *Injector) Decide(pod *core.Pod, namespace string) Decision {
	d, _ := in.decide(pod, namespace)
	return d
}

// decide judges a pod that the API server has sent, in Istio's order (pkg/kube/inject, injectRequired). That the pod
// has a proxy already is judged first: a second one would take its ports.
func (in *Injector) decide(pod *core.Pod, namespace string) (Decision, []string) {
	if _, done := pod.Annotations[annotationStatus]; done && hasProxy(pod) {
		return Decision{false, "it has a proxy already: the annotation " + annotationStatus + " and the container " + ProxyContainer + " are there"}, nil
	}
	if pod.Spec.HostNetwork {
		return Decision{false, "hostNetwork: the rules would capture the traffic of the whole node"}, nil
	}
	if slices.Contains(ignoredNamespaces(), namespace) {
		return Decision{false, "the namespace " + namespace + " is never injected"}, nil
	}
	value, from := pod.Annotations[labelInject], "annotation"
	if v, ok := pod.Labels[labelInject]; ok {
		value, from = v, "label"
	}
	var warnings []string
	switch value {
	case "true", "false":
		return Decision{value == "true", fmt.Sprintf("%s %s: %q", from, labelInject, value)}, nil
	case "":
	default:
		warnings = append(warnings, fmt.Sprintf("%s %s: %q is neither \"true\" nor \"false\" and does not count", from, labelInject, value))
	}
	set := labels.Set(pod.Labels)
	for _, s := range in.never {
		if s.Matches(set) {
			return Decision{false, "neverInjectSelector " + s.text}, warnings
		}
	}
	for _, s := range in.always {
		if s.Matches(set) {
			return Decision{true, "alwaysInjectSelector " + s.text}, warnings
		}
	}
	if in.cfg.Policy == PolicyDisabled {
		return Decision{false, "policy disabled, and the pod does not ask for a proxy"}, warnings
	}
	return Decision{true, "policy enabled, and the pod does not say otherwise"}, warnings
}

func hasProxy(pod *core.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Containers, isProxy) || slices.ContainsFunc(pod.Spec.InitContainers, isProxy)
}
