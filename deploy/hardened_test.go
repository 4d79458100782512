package deploy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/deploy/overlay"
	"github.com/lateen-mesh/lateen/inject"
)

// looseEnds are in which ways a container may do more than it should: nothing runs as root, writes to its image, has a
// capability or gains one, or calls what the runtime's own filter forbids.
func looseEnds(pod *core.PodSpec, c *core.Container) (out []string) {
	s, of := c.SecurityContext, pod.SecurityContext
	if s == nil {
		s = &core.SecurityContext{}
	}
	if of == nil {
		of = &core.PodSecurityContext{}
	}
	unless := func(holds bool, what string) {
		if !holds {
			out = append(out, what)
		}
	}
	is := func(p *bool, want bool) bool { return p != nil && *p == want }
	unless(is(s.RunAsNonRoot, true) || s.RunAsNonRoot == nil && is(of.RunAsNonRoot, true), "runs as root")
	unless(is(s.ReadOnlyRootFilesystem, true), "writes to its root")
	unless(is(s.AllowPrivilegeEscalation, false), "may gain privileges")
	unless(is(s.Privileged, false), "privileged")
	seccomp := s.SeccompProfile
	if seccomp == nil {
		seccomp = of.SeccompProfile
	}
	unless(seccomp != nil && seccomp.Type == core.SeccompProfileTypeRuntimeDefault, "no seccomp profile")
	unless(s.Capabilities != nil && slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}), "capabilities not dropped")
	if s.Capabilities != nil {
		for _, c := range s.Capabilities.Add {
			out = append(out, string(c))
		}
	}
	unless(!pod.HostNetwork, "the host's network")
	unless(!pod.HostPID && !pod.HostIPC, "the host's processes")
	for _, v := range pod.Volumes {
		unless(v.HostPath == nil, "the host's files "+v.Name)
	}
	unless(is(pod.AutomountServiceAccountToken, false), "a token for the API server")
	return out
}

// injected is a manifest after the webhook, with a configuration of injection.
func injected(t *testing.T, config, text string) core.PodSpec {
	t.Helper()
	cfg, err := inject.ReadConfig([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	in, err := inject.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := in.Documents([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var d apps.Deployment
	if err := yaml.Unmarshal(out, &d); err != nil {
		t.Fatal(err)
	}
	return d.Spec.Template.Spec
}

// application is a user's, which mounts no token, so that what it has more than it should is ours.
const application = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec: {automountServiceAccountToken: false, containers: [{name: web, image: web}]}
`

// TestHardened lists, of every container that an installation or an injection makes, what it may do more than an ordinary
// one: what is not listed is not root, writes nothing but its volumes, and has no capability.
func TestHardened(t *testing.T) {
	got := map[string][]string{}
	add := func(who string, pod core.PodSpec) {
		for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
			if c.Name != "web" {
				got[who+": "+c.Name] = looseEnds(&pod, &c)
			}
		}
	}
	objects := rendered(t, Config{Values: values(t, full)})
	config := find[core.ConfigMap](t, objects, "ConfigMap", "lateen-injection").Data["config.yaml"]
	operator, err := RenderOperator(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range append(objects, operator...) {
		switch {
		case o.Kind == "Deployment" && strings.Contains(o.YAML, "image: auto"):
			add(o.Name, injected(t, config, o.YAML))
		case o.Kind == "Deployment" || o.Kind == "DaemonSet":
			var d apps.Deployment
			if err := yaml.Unmarshal([]byte(o.YAML), &d); err != nil {
				t.Fatal(err)
			}
			add(o.Name, d.Spec.Template.Spec)
		}
	}
	for name, more := range map[string]string{
		"a pod": "", "a classic pod": "classicSidecars: true", "a pod of the CNI plugin": "cni: true", "a classic pod of the CNI plugin": "{cni: true, classicSidecars: true}",
	} {
		extra, err := ReadValues([]byte(more))
		if err != nil {
			t.Fatal(err)
		}
		text, err := yaml.Marshal(overlay.Values(map[string]any{"proxyImage": "p:1", "initImage": "i:1"}, extra))
		if err != nil {
			t.Fatal(err)
		}
		add(name, injected(t, string(text), application))
	}
	// Without the CNI plugin the capture rules are set from within the pod.
	initial := []string{"runs as root", "NET_ADMIN"}
	want := map[string][]string{
		"istio-egressgateway: istio-proxy":  nil,
		"istio-ingressgateway: istio-proxy": nil,
		"lateend: lateend":                  {"a token for the API server"}, // for the rights in docs/kubernetes.md
		"lateen-operator: lateen-operator":  {"a token for the API server"},
		// It writes a node's list of plugins and sets rules in pods' networks; docs/injection.md. Whoever may be given
		// SYS_ADMIN counts as one who may gain privileges.
		"lateen-cni: install": {
			"runs as root", "may gain privileges", "SYS_ADMIN", "NET_ADMIN", "the host's network",
			"the host's files lists", "the host's files programs", "the host's files results", "the host's files networks",
		},
		"a pod: istio-proxy":                                 nil,
		"a pod: lateen-init":                                 initial,
		"a classic pod: istio-proxy":                         nil,
		"a classic pod: lateen-init":                         initial,
		"a pod of the CNI plugin: istio-proxy":               nil,
		"a pod of the CNI plugin: lateen-validation":         nil,
		"a classic pod of the CNI plugin: istio-proxy":       nil,
		"a classic pod of the CNI plugin: lateen-validation": nil,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("of %d containers (-want +got):\n%s", len(got), d)
	}
}
