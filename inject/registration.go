package inject

import (
	"fmt"
	"slices"

	admission "k8s.io/api/admissionregistration/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// webhookDomain ends the names of our webhooks.
const webhookDomain = "inject.lateen.dev"

// Names of the registrations of the revision default; those of another one end with it.
const (
	injectorName  = "lateen-sidecar-injector"
	validatorName = "lateen-validator"
)

// Names are those of a revision's MutatingWebhookConfiguration and ValidatingWebhookConfiguration; an empty one is
// DefaultRevision.
func Names(revision string) (injector, validator string) {
	if revision == "" || revision == DefaultRevision {
		return injectorName, validatorName
	}
	return injectorName + "-" + revision, validatorName + "-" + revision
}

// webhookTimeout, in seconds, is how long the API server waits before it refuses a pod. Istio leaves Kubernetes' 10.
const webhookTimeout = 5

// Registered is what a MutatingWebhookConfiguration is made of.
type Registered struct {
	Revision string // empty: DefaultRevision
	// ByDefault injects pods in namespaces that say nothing (Istio's enableNamespacesByDefault).
	ByDefault bool
	// Namespace and Service are where the webhook serves, on port 443.
	Namespace, Service string
	// CABundle is whom the API server shall believe, PEM.
	CABundle []byte
}

// rule is one way in which a pod comes to be injected: by a label of its namespace or of its own. At most one rule
// holds for a pod, as in Istio's chart (mutatingwebhook.yaml), so that its labels keep their meaning.
type rule struct {
	name              string
	namespace, object []meta.LabelSelectorRequirement
}

func is(key string, values ...string) meta.LabelSelectorRequirement {
	return meta.LabelSelectorRequirement{Key: key, Operator: meta.LabelSelectorOpIn, Values: values}
}

func isNot(key string, values ...string) meta.LabelSelectorRequirement {
	return meta.LabelSelectorRequirement{Key: key, Operator: meta.LabelSelectorOpNotIn, Values: values}
}

func unset(key string) meta.LabelSelectorRequirement {
	return meta.LabelSelectorRequirement{Key: key, Operator: meta.LabelSelectorOpDoesNotExist}
}

func (r Registered) rules() []rule {
	revision := firstOf(r.Revision, DefaultRevision)
	type list = []meta.LabelSelectorRequirement
	rules := []rule{
		{"rev.namespace", list{is(labelRevision, revision), unset(labelInjection)}, list{isNot(labelInject, "false")}},
		{"rev.object", list{unset(labelRevision), unset(labelInjection)}, list{isNot(labelInject, "false"), is(labelRevision, revision)}},
	}
	if revision != DefaultRevision {
		return rules
	}
	rules = append(rules,
		rule{"namespace", list{is(labelInjection, "enabled")}, list{isNot(labelInject, "false")}},
		rule{"object", list{unset(labelRevision), unset(labelInjection)}, list{is(labelInject, "true"), unset(labelRevision)}},
	)
	if r.ByDefault {
		rules = append(rules, rule{"auto", list{unset(labelRevision), unset(labelInjection)}, list{unset(labelInject), unset(labelRevision)}})
	}
	return rules
}

// selectors are those of a rule. Namespaces that are never injected are not even asked about, so that a webhook that
// is down cannot keep the cluster's own pods from starting.
func (r rule) selectors() (namespace, object *meta.LabelSelector) {
	guarded := append(slices.Clone(r.namespace), isNot(labelName, ignoredNamespaces()...))
	return &meta.LabelSelector{MatchExpressions: guarded}, &meta.LabelSelector{MatchExpressions: r.object}
}

// Object is the MutatingWebhookConfiguration by which the API server has pods injected. Only the creation of pods is
// asked about. When the webhook cannot be reached these pods are refused (Istio's failurePolicy: Fail), as one without
// a proxy would run without its policies; pods of the cluster itself, and of the control plane by their label, are not
// asked about. `kubectl delete mutatingwebhookconfiguration NAME` ends it all.
func (r Registered) Object() *admission.MutatingWebhookConfiguration {
	revision := firstOf(r.Revision, DefaultRevision)
	name, _ := Names(revision)
	out := &admission.MutatingWebhookConfiguration{
		TypeMeta:   meta.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: meta.ObjectMeta{Name: name, Labels: map[string]string{labelRevision: revision, "app": "sidecar-injector"}},
	}
	for _, rule := range r.rules() {
		namespace, object := rule.selectors()
		out.Webhooks = append(out.Webhooks, admission.MutatingWebhook{
			Name: rule.name + "." + webhookDomain, NamespaceSelector: namespace, ObjectSelector: object,
			ClientConfig: admission.WebhookClientConfig{
				Service:  &admission.ServiceReference{Namespace: r.Namespace, Name: r.Service, Path: new(Path), Port: new(int32(443))},
				CABundle: r.CABundle,
			},
			Rules: []admission.RuleWithOperations{{
				Operations: []admission.OperationType{admission.Create},
				Rule:       admission.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
			FailurePolicy: new(admission.Fail), SideEffects: new(admission.SideEffectClassNone),
			ReinvocationPolicy: new(admission.NeverReinvocationPolicy), TimeoutSeconds: new(int32(webhookTimeout)),
			AdmissionReviewVersions: []string{"v1"},
		})
	}
	return out
}

// Asks says whether the API server asks the webhook about a pod, by the labels of its namespace and its own. What the
// webhook then answers is another matter (Injector.Inject).
func (r Registered) Asks(namespace *core.Namespace, podLabels map[string]string) Decision {
	for _, rule := range r.rules() {
		n, o := rule.selectors()
		if matches(n, namespace.Labels) && matches(o, podLabels) {
			return Decision{true, fmt.Sprintf("webhook %s: %s", rule.name, describe(rule, namespace, podLabels))}
		}
	}
	switch injection := namespace.Labels[labelInjection]; {
	case slices.Contains(ignoredNamespaces(), namespace.Labels[labelName]):
		return Decision{false, "the namespace " + namespace.Labels[labelName] + " is never injected"}
	case podLabels[labelInject] == "false":
		return Decision{false, "label " + labelInject + ": \"false\""}
	case injection != "" && injection != "enabled":
		return Decision{false, fmt.Sprintf("namespace label %s=%s", labelInjection, injection)}
	case injection != "":
		return Decision{false, fmt.Sprintf("namespace label %s=%s means the revision %s; this is %s", labelInjection, injection, DefaultRevision, r.Revision)}
	case namespace.Labels[labelRevision] != "":
		return Decision{false, fmt.Sprintf("namespace label %s=%s means another revision than %s", labelRevision, namespace.Labels[labelRevision], firstOf(r.Revision, DefaultRevision))}
	case podLabels[labelRevision] != "":
		return Decision{false, fmt.Sprintf("label %s=%s means another revision than %s", labelRevision, podLabels[labelRevision], firstOf(r.Revision, DefaultRevision))}
	}
	return Decision{false, fmt.Sprintf("neither the namespace (%s=enabled or %s) nor the pod (%s: \"true\") asks for it", labelInjection, labelRevision, labelInject)}
}

// describe names the label by which a rule holds.
func describe(r rule, namespace *core.Namespace, podLabels map[string]string) string {
	switch r.name {
	case "rev.namespace":
		return "namespace label " + labelRevision + "=" + namespace.Labels[labelRevision]
	case "namespace":
		return "namespace label " + labelInjection + "=enabled"
	case "rev.object":
		return "label " + labelRevision + "=" + podLabels[labelRevision]
	case "object":
		return "label " + labelInject + ": \"true\""
	}
	return "namespaces are injected unless they say otherwise"
}

func matches(selector *meta.LabelSelector, set map[string]string) bool {
	s, err := meta.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(labels.Set(set))
}
