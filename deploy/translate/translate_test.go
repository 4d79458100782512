package translate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

const operator = `apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {name: prod, namespace: istio-system}
spec:
  profile: demo
  hub: docker.io/istio
  meshConfig:
    accessLogFile: /dev/stdout
  components:
    pilot:
      k8s:
        replicaCount: 3
        env:
          - {name: PILOT_TRACE_SAMPLING, value: "1"}
        hpaSpec: {minReplicas: 2, metrics: []}
    cni:
      enabled: true
      namespace: kube-system
    ingressGateways:
      - name: edge
        enabled: true
        namespace: edge
        label: {istio: edge, app: edge}
        k8s:
          service: {type: NodePort}
      - name: second
        enabled: true
  values:
    global:
      proxy: {logLevel: debug}
      tracer: {zipkin: {address: z}}
    sidecarInjectorWebhook: {enableNamespacesByDefault: true}
    revision:
`

func TestTranslate(t *testing.T) {
	got, err := IstioOperator("iop.yaml", operator)
	if err != nil {
		t.Fatal(err)
	}
	values, err := yaml.Marshal(got.Values)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`cni:
  enabled: true
gateways:
  ingress:
    enabled: true
    label: edge
    name: edge
    service:
      type: NodePort
injection:
  config:
    logLevel: debug
  enableNamespacesByDefault: true
lateend:
  autoscaling:
    min: 2
  replicas: 3
meshConfig:
  accessLogFile: /dev/stdout
`, string(values)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"iop.yaml:6: spec.hub has no meaning here: it names Istio's images; give ours with --set hub=...",
		"iop.yaml:13: spec.components.pilot.k8s.env has no meaning here: lateend has none of istiod's switches",
		"iop.yaml:15: spec.components.pilot.k8s.hpaSpec.metrics has no meaning here",
		"iop.yaml:18: spec.components.cni.namespace has no meaning here: it is always istio-system",
		"iop.yaml:22: spec.components.ingressGateways[0].namespace has no meaning here",
		"iop.yaml:23: spec.components.ingressGateways[0].label.app has no meaning here",
		"iop.yaml:26: spec.components.ingressGateways[1] has no meaning here",
		"iop.yaml:31: spec.values.global.tracer has no meaning here",
	}, got.Warnings); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Profile != "default" {
		t.Errorf("profile %q", got.Profile)
	}
}

// TestTranslateAll: every field of the translation is a value that the chart knows.
func TestTranslateAll(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "chart", "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var known map[string]any
	if err := yaml.Unmarshal(text, &known); err != nil {
		t.Fatal(err)
	}
	for from, to := range fields {
		if to == "" || strings.HasPrefix(to, "injection.config.") { // which has no defaults in the chart
			continue
		}
		var at any = known
		for name := range strings.SplitSeq(to, ".") {
			m, _ := at.(map[string]any)
			var there bool
			if at, there = m[name]; !there {
				t.Errorf("%s becomes %s, which the chart does not know", from, to)
				break
			}
		}
	}
	for istio, ours := range profiles {
		if _, err := os.Stat(filepath.Join("..", "profiles", ours+".yaml")); ours != "" && err != nil {
			t.Errorf("%s: %v", istio, err)
		}
	}
}

func TestTranslateFaults(t *testing.T) {
	for text, want := range map[string]string{
		"kind: IstioOperator\nspec: {profile: ambient}": "",
		"- a":       "f:1: read the IstioOperator: it is no object",
		"kind: [":   "f: read the IstioOperator",
		"spec: a\n": "",
	} {
		got, err := IstioOperator("f", text)
		switch {
		case (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want):
			t.Errorf("%s: %v, want %s", text, err, want)
		case err == nil && len(got.Warnings) != 1:
			t.Errorf("%s: warnings %v", text, got.Warnings)
		}
	}
	for text, want := range map[string]bool{operator: true, "tag: x": false, "kind: [": false, "": false} {
		if IsIstioOperator([]byte(text)) != want {
			t.Errorf("%q is not judged %v", text, want)
		}
	}
}

func FuzzTranslate(f *testing.F) {
	f.Add(operator)
	f.Add("a: &a [*a]")
	f.Fuzz(func(_ *testing.T, text string) {
		if len(text) < 1<<12 {
			_, _ = IstioOperator("f", text)
		}
	})
}
