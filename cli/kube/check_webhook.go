package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"

	admission "k8s.io/api/admissionregistration/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// hookPatience is the longest, in seconds, that the creation of a pod should wait for a webhook.
const hookPatience = 10

// hook is a webhook of ours, of either kind.
type hook struct {
	name              string // of its registration and its own
	client            admission.WebhookClientConfig
	policy            *admission.FailurePolicyType
	timeout           *int32
	namespaces, which *meta.LabelSelector
	injects           bool
}

// hooks are the webhooks of ours.
func (l *look) hooks(ctx context.Context) ([]hook, error) {
	mutating, err := l.mutating(ctx)
	if err != nil {
		return nil, err
	}
	validating, err := l.validating(ctx)
	if err != nil {
		return nil, err
	}
	var out []hook
	for _, m := range mutating {
		if m.Labels[labelInstallation] == "" {
			continue
		}
		for _, w := range m.Webhooks {
			out = append(out, hook{m.Name + " " + w.Name, w.ClientConfig, w.FailurePolicy, w.TimeoutSeconds, w.NamespaceSelector, w.ObjectSelector, true})
		}
	}
	for _, v := range validating {
		if v.Labels[labelInstallation] == "" {
			continue
		}
		for _, w := range v.Webhooks {
			out = append(out, hook{v.Name + " " + w.Name, w.ClientConfig, w.FailurePolicy, w.TimeoutSeconds, w.NamespaceSelector, w.ObjectSelector, false})
		}
	}
	return out, nil
}

// webhookChecks judge how the API server calls us.
func webhookChecks() group {
	const reapply = "apply the registration as it was installed: `lateen manifest generate --skip-crds | kubectl apply --server-side -f -`, with the values of the installation"
	return group{"webhooks", []check{
		{name: "each revision's injection webhook is registered", judge: hooksRegistered, next: reapply},
		{
			name: "the API server believes them: their caBundle is the mesh's roots", judge: eachHook(failed, hookBelieved),
			next: "see why lateend does not write it: " + logsHint + "; pods are refused meanwhile",
		},
		{
			name: "the Services that they name have endpoints", judge: eachHook(failed, hookServed),
			next: "bring lateend back; until then pods can be let in without proxies, see \"When the webhook is away\" in docs/injection.md",
		},
		{name: fmt.Sprintf("they are waited for no longer than %d s, and pods that they cannot judge are refused", hookPatience), judge: eachHook(warned, hookStrict), next: reapply},
		{name: "they leave the cluster's own namespaces alone", judge: eachHook(warned, hookHarmless), next: reapply},
	}}
}

func hooksRegistered(ctx context.Context, l *look) verdict {
	controls, err := l.controls(ctx)
	if err != nil {
		return trouble(err)
	}
	list, err := l.mutating(ctx)
	if err != nil {
		return trouble(err)
	}
	have := map[string]bool{}
	for _, m := range list {
		if m.Labels[labelInstallation] != "" && len(m.Webhooks) > 0 {
			have[m.Labels[labelRevision]] = true
		}
	}
	var why []string
	for _, d := range controls {
		if revision := d.Labels[labelRevision]; !have[revision] {
			why = append(why, fmt.Sprintf("revision %s (Deployment %s) has none: its pods get no proxies", revision, d.Name))
		}
	}
	return unless(failed, why)
}

// eachHook judges each webhook of ours.
func eachHook(level level, fault func(context.Context, *look, hook) (string, error)) func(context.Context, *look) verdict {
	return func(ctx context.Context, l *look) verdict {
		list, err := l.hooks(ctx)
		if err != nil {
			return trouble(err)
		}
		if len(list) == 0 {
			return skip("no webhook is registered")
		}
		var why []string
		for _, h := range list {
			text, err := fault(ctx, l, h)
			if err != nil {
				return trouble(err)
			}
			if text != "" {
				why = append(why, h.name+": "+text)
			}
		}
		return unless(level, why)
	}
}

func hookBelieved(ctx context.Context, l *look, h hook) (string, error) {
	text, err := l.roots(ctx)
	if err != nil {
		return "", err
	}
	roots, bundle := certificates([]byte(text)), certificates(h.client.CABundle)
	switch {
	case len(bundle) == 0:
		return "its caBundle is empty", nil
	case !maps.Equal(fingerprints(roots), fingerprints(bundle)):
		return "its caBundle is others than " + rootsName + " has", nil
	}
	return "", nil
}

func hookServed(ctx context.Context, l *look, h hook) (string, error) {
	s := h.client.Service
	if s == nil {
		return "", nil
	}
	slicesOf, err := once(l, "endpoints of "+s.Namespace+"/"+s.Name, func() ([]discovery.EndpointSlice, error) {
		list, err := l.kube.DiscoveryV1().EndpointSlices(s.Namespace).List(ctx, meta.ListOptions{LabelSelector: discovery.LabelServiceName + "=" + s.Name})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	})
	if err != nil {
		return "", err
	}
	for _, slice := range slicesOf {
		if slices.ContainsFunc(slice.Endpoints, func(e discovery.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }) {
			return "", nil
		}
	}
	becomes := "refused"
	if h.policy != nil && *h.policy == admission.Ignore {
		becomes = "let in unjudged"
	}
	return fmt.Sprintf("Service %s/%s has no endpoint that is ready: what it is asked about is %s", s.Namespace, s.Name, becomes), nil
}

func hookStrict(_ context.Context, _ *look, h hook) (string, error) {
	switch {
	case h.timeout != nil && *h.timeout > hookPatience:
		return fmt.Sprintf("timeoutSeconds is %d", *h.timeout), nil
	case h.injects && h.policy != nil && *h.policy == admission.Ignore:
		return "failurePolicy is Ignore: while lateend is away pods start without proxies and their policies", nil
	}
	return "", nil
}

func hookHarmless(_ context.Context, _ *look, h hook) (string, error) {
	if !h.injects {
		return "", nil // what is judged is configuration of the mesh only
	}
	selector, err := meta.LabelSelectorAsSelector(h.namespaces)
	if err != nil {
		return "", fmt.Errorf("read the selector of %s: %w", h.name, err)
	}
	// As somebody may have labelled them, by mistake, for injection.
	for _, asks := range []labels.Set{{}, {"istio-injection": "enabled"}, {labelRevision: "default"}} {
		for _, name := range unmeshed() {
			if selector.Matches(labels.Merge(asks, labels.Set{"kubernetes.io/metadata.name": name})) {
				return "it is asked about pods of " + name + ", too: with lateend away the cluster could not repair itself", nil
			}
		}
	}
	return "", nil
}
