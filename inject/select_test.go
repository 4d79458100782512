package inject

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func injector(t *testing.T, change func(*Config)) *Injector {
	t.Helper()
	cfg := testConfig()
	if change != nil {
		change(&cfg)
	}
	in, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// TestDecide goes down the order in which Istio decides: each row says less than the one that decides before it.
func TestDecide(t *testing.T) {
	selectors := func(c *Config) {
		c.NeverInjectSelector = []meta.LabelSelector{{}, {MatchLabels: map[string]string{"kind": "never"}}}
		c.AlwaysInjectSelector = []meta.LabelSelector{{MatchExpressions: []meta.LabelSelectorRequirement{
			{Key: "kind", Operator: meta.LabelSelectorOpIn, Values: []string{"always", "never"}},
		}}}
	}
	disabled := func(c *Config) { selectors(c); c.Policy = PolicyDisabled }
	proxied := []core.Container{{Name: "app"}, {Name: ProxyContainer}}
	for _, tt := range []struct {
		name                string
		change              func(*Config)
		host                bool
		namespace           string
		label, note, kind   string
		containers          []core.Container
		annotations         map[string]string
		want                bool
		reason, warningPart string
	}{
		{name: "injected already", label: "true", annotations: map[string]string{annotationStatus: "{}"}, containers: proxied, reason: "it has a proxy already"},
		{name: "a status alone", annotations: map[string]string{annotationStatus: "{}"}, want: true, reason: "policy enabled"},
		{name: "host network", host: true, label: "true", reason: "hostNetwork"},
		{name: "kube-system", namespace: "kube-system", label: "true", reason: "namespace kube-system is never"},
		{name: "kube-public", namespace: "kube-public", label: "true", reason: "never"},
		{name: "kube-node-lease", namespace: "kube-node-lease", label: "true", reason: "never"},
		{name: "local-path-storage", namespace: "local-path-storage", label: "true", reason: "never"},
		{name: "label before annotation", label: "false", note: "true", reason: `label sidecar.istio.io/inject: "false"`},
		{name: "label before annotation, the other way", label: "true", note: "false", want: true, reason: `label sidecar.istio.io/inject: "true"`},
		{name: "annotation", note: "false", reason: `annotation sidecar.istio.io/inject: "false"`},
		{name: "annotation before selectors", note: "true", kind: "never", change: selectors, want: true, reason: "annotation"},
		{name: "neither true nor false", label: "yes", note: "false", want: true, reason: "policy enabled", warningPart: `"yes" is neither`},
		{name: "never before always", kind: "never", change: selectors, reason: "neverInjectSelector kind=never"},
		{name: "always", kind: "always", change: selectors, want: true, reason: "alwaysInjectSelector kind in (always,never)"},
		{name: "always before policy", kind: "always", change: disabled, want: true, reason: "alwaysInjectSelector"},
		{name: "label before policy", label: "true", change: disabled, want: true, reason: "label"},
		{name: "policy disabled", change: disabled, reason: "policy disabled"},
		{name: "policy enabled", change: selectors, want: true, reason: "policy enabled"},
	} {
		pod := core.Pod{Spec: core.PodSpec{HostNetwork: tt.host, Containers: tt.containers}}
		if tt.containers == nil {
			pod.Spec.Containers = []core.Container{{Name: "app"}}
		}
		pod.Labels, pod.Annotations = map[string]string{"kind": tt.kind}, map[string]string{}
		if tt.label != "" {
			pod.Labels[labelInject] = tt.label
		}
		if tt.note != "" {
			pod.Annotations[labelInject] = tt.note
		}
		maps.Copy(pod.Annotations, tt.annotations)
		text, err := json.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		got, err := injector(t, tt.change).Inject(Request{Pod: text, Namespace: tt.namespace})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got.Inject != tt.want || !strings.Contains(got.Reason, tt.reason) || (len(got.Patch) > 0) != tt.want {
			t.Errorf("%s: %v (%s), %d operations; want %v (%s)", tt.name, got.Inject, got.Reason, len(got.Patch), tt.want, tt.reason)
		}
		if warnings := strings.Join(got.Warnings, "\n"); !strings.Contains(warnings, tt.warningPart) || (warnings == "") != (tt.warningPart == "") {
			t.Errorf("%s: warnings %q, want %q", tt.name, warnings, tt.warningPart)
		}
	}
}

// TestAsks: which webhook the API server calls, by the labels of namespace and pod. At most one does.
func TestAsks(t *testing.T) {
	type m = map[string]string
	for _, tt := range []struct {
		name     string
		revision string
		auto     bool
		ns, pod  m
		want     string // the webhook; empty: none
		reason   string
	}{
		{name: "nothing", reason: "neither the namespace"},
		{name: "namespace enabled", ns: m{labelInjection: "enabled"}, want: "namespace", reason: "namespace label istio-injection=enabled"},
		{name: "namespace enabled, pod not", ns: m{labelInjection: "enabled"}, pod: m{labelInject: "false"}, reason: `label sidecar.istio.io/inject: "false"`},
		{name: "namespace disabled, pod not", ns: m{labelInjection: "disabled"}, pod: m{labelInject: "true"}, reason: "istio-injection=disabled"},
		{name: "injection beats revision", ns: m{labelInjection: "disabled", labelRevision: "default"}, reason: "istio-injection=disabled"},
		{name: "injection beats revision, the other way", ns: m{labelInjection: "enabled", labelRevision: "canary"}, want: "namespace"},
		{name: "injection is for the default revision", revision: "canary", ns: m{labelInjection: "enabled", labelRevision: "canary"}, reason: "means the revision default"},
		{name: "namespace revision", revision: "canary", ns: m{labelRevision: "canary"}, want: "rev.namespace", reason: "namespace label istio.io/rev=canary"},
		{name: "namespace revision, pod not", revision: "canary", ns: m{labelRevision: "canary"}, pod: m{labelInject: "false"}},
		{name: "revision default", ns: m{labelRevision: "default"}, want: "rev.namespace"},
		{name: "another revision", ns: m{labelRevision: "canary"}, pod: m{labelInject: "true"}, reason: "another revision"},
		{name: "a pod's revision", revision: "canary", pod: m{labelRevision: "canary"}, want: "rev.object", reason: "label istio.io/rev=canary"},
		{name: "a pod's revision and no", revision: "canary", pod: m{labelRevision: "canary", labelInject: "false"}},
		{name: "a pod's revision is not asked for in a labelled namespace", revision: "canary", ns: m{labelRevision: "other"}, pod: m{labelRevision: "canary"}},
		{name: "a pod's other revision", pod: m{labelRevision: "canary", labelInject: "true"}, reason: "another revision"},
		{name: "pod alone", pod: m{labelInject: "true"}, want: "object", reason: `label sidecar.istio.io/inject: "true"`},
		{name: "pod alone is for the default revision", revision: "canary", pod: m{labelInject: "true"}},
		{name: "by default", auto: true, want: "auto", reason: "unless they say otherwise"},
		{name: "by default, pod not", auto: true, pod: m{labelInject: "false"}},
		{name: "by default, pod asks", auto: true, pod: m{labelInject: "true"}, want: "object"},
		{name: "by default, namespace not", auto: true, ns: m{labelInjection: "disabled"}},
		{name: "by default, not in kube-system", auto: true, ns: m{labelName: "kube-system"}, reason: "kube-system is never"},
		{name: "kube-system is not even asked about", ns: m{labelInjection: "enabled", labelName: "kube-system"}, pod: m{labelInject: "true"}, reason: "never"},
	} {
		r := Registered{Revision: tt.revision, ByDefault: tt.auto, Namespace: "istio-system", Service: "lateend"}
		got := r.Asks(&core.Namespace{ObjectMeta: meta.ObjectMeta{Labels: tt.ns}}, tt.pod)
		if got.Inject != (tt.want != "") || !strings.Contains(got.Reason, tt.reason) || tt.want != "" && !strings.HasPrefix(got.Reason, "webhook "+tt.want+":") {
			t.Errorf("%s: %+v, want %q (%s)", tt.name, got, tt.want, tt.reason)
		}
		var matched []string
		for _, w := range r.Object().Webhooks {
			if matches(w.NamespaceSelector, tt.ns) && matches(w.ObjectSelector, tt.pod) {
				matched = append(matched, strings.TrimSuffix(w.Name, "."+webhookDomain))
			}
		}
		if len(matched) > 1 || strings.Join(matched, "") != tt.want {
			t.Errorf("%s: registered webhooks %q, want %q", tt.name, matched, tt.want)
		}
	}
}

// TestConfig: a bad configuration is told whole, and what is unknown in it.
func TestConfig(t *testing.T) {
	cfg := Config{
		Policy: "perhaps", LogLevel: "loud", NeverInjectSelector: []meta.LabelSelector{{MatchLabels: map[string]string{"a b": "c"}}},
	}
	cfg.Capture.IncludeInboundPorts = []uint16{0}
	_, err := New(cfg)
	for _, want := range []string{"proxyImage and initImage", `policy "perhaps"`, `"loud" is not a level`, "selector 1: key: Invalid value: \"a b\"", "0 is not a port"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q in it", err, want)
		}
	}
	if _, err := ReadConfig([]byte("proxyImages: a")); err == nil || !strings.Contains(err.Error(), "proxyImages") {
		t.Error(err)
	}
	got, err := ReadConfig([]byte("{proxyImage: p, initImage: i, cni: true, capture: {excludeOutboundRanges: [10.0.0.0/8]}, resources: {limits: {cpu: 1}}}"))
	if err != nil || !got.CNI || got.Capture.ExcludeOutboundRanges[0].String() != "10.0.0.0/8" || got.Resources.Limits.Cpu().String() != "1" {
		t.Error(got, err)
	}
}

// TestOwner: the workload behind a pod, as Istio names it.
func TestOwner(t *testing.T) {
	for _, tt := range []struct {
		ref, hash, name, generate string
		want                      Owner
	}{
		{"apps/v1 ReplicaSet reviews-7d8", "7d8", "", "reviews-7d8-", Owner{"apps/v1", "Deployment", "reviews"}},
		{"apps/v1 ReplicaSet reviews", "", "", "reviews-", Owner{"apps/v1", "ReplicaSet", "reviews"}},
		{"batch/v1 Job night-29012345", "", "", "", Owner{"batch/v1", "CronJob", "night"}},
		{"batch/v1 Job once", "", "", "", Owner{"batch/v1", "Job", "once"}},
		{"apps/v1 StatefulSet db", "", "db-0", "", Owner{"apps/v1", "StatefulSet", "db"}},
		{"", "", "alone", "", Owner{"v1", "Pod", "alone"}},
		{"", "", "", "many-", Owner{"v1", "Pod", "many"}},
	} {
		pod := &core.Pod{ObjectMeta: meta.ObjectMeta{Name: tt.name, GenerateName: tt.generate, Labels: map[string]string{"pod-template-hash": tt.hash}}}
		if f := strings.Fields(tt.ref); len(f) == 3 {
			pod.OwnerReferences = []meta.OwnerReference{{APIVersion: f[0], Kind: f[1], Name: f[2], Controller: new(true)}}
		}
		if got := ownerOf(pod, Owner{}); got != tt.want {
			t.Errorf("%+v: %+v, want %+v", tt, got, tt.want)
		}
	}
}
