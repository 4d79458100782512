// Package translate makes of the files by which others are installed what they mean for an installation of ours.
//
// In comes the text of an IstioOperator; out go a profile, values of our chart, and a warning for each field that has no
// meaning here. The package must not know the chart, nor a cluster. All functions may be called concurrently.
package translate

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/lateen-mesh/lateen/deploy/overlay"
)

// operatorKind is the kind of the files by which Istio is installed.
const operatorKind = "IstioOperator"

// Installation is one of Istio as ours.
type Installation struct {
	// Profile is ours that comes nearest; empty: the file names none.
	Profile string
	// Values are what of the file has a meaning here.
	Values map[string]any
	// Warnings name what has none, with the file's name and line.
	Warnings []string
}

// fields says what becomes of the fields of an IstioOperator: the value of that path in the chart. Those that are empty
// are passed over in silence. A field whose path stands here is taken with all that is in it.
var fields = map[string]string{
	"apiVersion": "", "kind": "", "metadata": "",
	"spec.meshConfig":                             "meshConfig",
	"spec.revision":                               "revision",
	"spec.values.revision":                        "revision",
	"spec.values.meshConfig":                      "meshConfig",
	"spec.values.global.imagePullPolicy":          "imagePullPolicy",
	"spec.values.global.imagePullSecrets":         "imagePullSecrets",
	"spec.values.global.network":                  "network",
	"spec.values.global.meshID":                   "injection.config.meshID",
	"spec.values.global.multiCluster.clusterName": "clusterName",

	"spec.components.pilot.k8s.replicaCount":         "lateend.replicas",
	"spec.components.pilot.k8s.resources":            "lateend.resources",
	"spec.components.pilot.k8s.nodeSelector":         "lateend.nodeSelector",
	"spec.components.pilot.k8s.tolerations":          "lateend.tolerations",
	"spec.components.pilot.k8s.affinity":             "lateend.affinity",
	"spec.components.pilot.k8s.podAnnotations":       "lateend.podAnnotations",
	"spec.components.pilot.k8s.hpaSpec.minReplicas":  "lateend.autoscaling.min",
	"spec.components.pilot.k8s.hpaSpec.maxReplicas":  "lateend.autoscaling.max",
	"spec.values.pilot.replicaCount":                 "lateend.replicas",
	"spec.values.pilot.resources":                    "lateend.resources",
	"spec.values.pilot.autoscaleEnabled":             "lateend.autoscaling.enabled",
	"spec.values.pilot.autoscaleMin":                 "lateend.autoscaling.min",
	"spec.values.pilot.autoscaleMax":                 "lateend.autoscaling.max",
	"spec.values.pilot.cpu.targetAverageUtilization": "lateend.autoscaling.cpuPercent",

	"spec.values.global.proxy.resources":                           "injection.config.resources",
	"spec.values.global.proxy.logLevel":                            "injection.config.logLevel",
	"spec.values.global.proxy.autoInject":                          "injection.config.policy",
	"spec.values.global.proxy.holdApplicationUntilProxyStarts":     "injection.config.holdApplicationUntilProxyStarts",
	"spec.values.sidecarInjectorWebhook.enableNamespacesByDefault": "injection.enableNamespacesByDefault",
	"spec.values.sidecarInjectorWebhook.neverInjectSelector":       "injection.config.neverInjectSelector",
	"spec.values.sidecarInjectorWebhook.alwaysInjectSelector":      "injection.config.alwaysInjectSelector",

	"spec.components.cni.enabled":       "cni.enabled",
	"spec.components.cni.k8s.resources": "cni.resources",
	"spec.values.istio_cni.enabled":     "cni.enabled",
	"spec.values.pilot.cni.enabled":     "cni.enabled",
	"spec.values.cni.cniConfDir":        "cni.lists",
	"spec.values.cni.cniBinDir":         "cni.programs",
	"spec.values.cni.resources":         "cni.resources",

	"spec.components.ingressGateways[0].enabled":                "gateways.ingress.enabled",
	"spec.components.ingressGateways[0].name":                   "gateways.ingress.name",
	"spec.components.ingressGateways[0].label.istio":            "gateways.ingress.label",
	"spec.components.ingressGateways[0].k8s.replicaCount":       "gateways.ingress.replicas",
	"spec.components.ingressGateways[0].k8s.resources":          "gateways.ingress.resources",
	"spec.components.ingressGateways[0].k8s.service.type":       "gateways.ingress.service.type",
	"spec.components.ingressGateways[0].k8s.service.ports":      "gateways.ingress.service.ports",
	"spec.components.ingressGateways[0].k8s.serviceAnnotations": "gateways.ingress.service.annotations",
	"spec.components.egressGateways[0].enabled":                 "gateways.egress.enabled",
	"spec.components.egressGateways[0].name":                    "gateways.egress.name",
	"spec.components.egressGateways[0].label.istio":             "gateways.egress.label",
	"spec.components.egressGateways[0].k8s.replicaCount":        "gateways.egress.replicas",
	"spec.components.egressGateways[0].k8s.resources":           "gateways.egress.resources",
	"spec.components.egressGateways[0].k8s.service.type":        "gateways.egress.service.type",
	"spec.components.egressGateways[0].k8s.service.ports":       "gateways.egress.service.ports",
	"spec.components.egressGateways[0].k8s.serviceAnnotations":  "gateways.egress.service.annotations",
}

// hints say more of fields that have no meaning here.
var hints = map[string]string{
	"spec.hub":                           "it names Istio's images; give ours with --set hub=...",
	"spec.tag":                           "it names Istio's images; give ours with --set tag=...",
	"spec.values.global.hub":             "it names Istio's images; give ours with --set hub=...",
	"spec.values.global.tag":             "it names Istio's images; give ours with --set tag=...",
	"spec.namespace":                     "it is always istio-system",
	"spec.components.base":               "the CustomResourceDefinitions are always installed",
	"spec.values.cni.chained":            "the plugin is always one of the list",
	"spec.values.istio_cni.chained":      "the plugin is always one of the list",
	"spec.values.cni.excludeNamespaces":  "pods that are not injected are left alone",
	"spec.values.cni.repair":             "pods that started before the plugin get their rules when it comes",
	"spec.components.cni.namespace":      "it is always istio-system",
	"spec.components.pilot.k8s.env":      "lateend has none of istiod's switches",
	"spec.components.ztunnel":            "there is no node proxy yet",
	"spec.unvalidatedValues":             "only values with a name are translated",
	"spec.components.pilot.enabled":      "the control plane is always installed",
	"spec.components.ingressGateways":    "write a list",
	"spec.components.egressGateways":     "write a list",
	"spec.values.gateways":               "configure gateways in spec.components",
	"spec.components.pilot.k8s.strategy": "lateend's is fixed",
}

// profiles are ours for those of Istio.
var profiles = map[string]string{
	"default": "default", "demo": "default", "minimal": "minimal", "empty": "minimal", "remote": "", "preview": "default",
	"stable": "default", "ambient": "", "openshift": "", "openshift-ambient": "", "external": "",
}

// IsIstioOperator reports whether a text is an IstioOperator rather than values.
func IsIstioOperator(text []byte) bool {
	var head struct {
		Kind string `yaml:"kind"`
	}
	return yaml.Unmarshal(text, &head) == nil && head.Kind == operatorKind
}

// IstioOperator says what an IstioOperator means here; name is the file's, for warnings.
func IstioOperator(name, text string) (Installation, error) {
	t := translation{name: name, out: Installation{Values: map[string]any{}}}
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var doc yaml.Node
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			return t.out, nil
		} else if err != nil {
			return t.out, fmt.Errorf("%s: read the %s: %w", name, operatorKind, err)
		}
		if len(doc.Content) == 0 {
			continue
		}
		if doc.Content[0].Kind != yaml.MappingNode {
			return t.out, fmt.Errorf("%s:%d: read the %s: it is no object", name, doc.Content[0].Line, operatorKind)
		}
		if err := t.visit("", doc.Content[0]); err != nil {
			return t.out, err
		}
	}
}

type translation struct {
	name string
	out  Installation
}

// visit takes a node with all below it. Trees of YAML are as deep as their text is long, which the caller bounds; what
// lies below fields is not walked.
func (t *translation) visit(path string, n *yaml.Node) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	to, known := fields[path]
	switch {
	case path == "spec.profile":
		t.profile(n)
	case known:
		return t.take(to, n)
	case path != "" && !leads(path):
		t.warn(path, n)
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if err := t.visit(strings.TrimPrefix(path+"."+n.Content[i].Value, "."), at(n.Content[i+1], n.Content[i].Line)); err != nil {
				return err
			}
		}
	case n.Kind == yaml.SequenceNode:
		for i, e := range n.Content {
			if err := t.visit(fmt.Sprintf("%s[%d]", path, i), e); err != nil {
				return err
			}
		}
	case n.Tag != "!!null":
		t.warn(path, n)
	}
	return nil
}

// at is a node that stands on the line of its key.
func at(n *yaml.Node, line int) *yaml.Node {
	c := *n
	c.Line = line
	return &c
}

// leads reports whether there are fields below a path.
func leads(path string) bool {
	for field := range fields {
		if rest, ok := strings.CutPrefix(field, path); ok && (rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	return path == "spec"
}

// take puts a node at the value of a path. Of two that mean the same the last one counts.
func (t *translation) take(to string, n *yaml.Node) error {
	if to == "" || n.Tag == "!!null" {
		return nil
	}
	var value any
	if err := n.Decode(&value); err != nil {
		return fmt.Errorf("%s:%d: %w", t.name, n.Line, err)
	}
	names := strings.Split(to, ".")
	for _, name := range slices.Backward(names) {
		value = map[string]any{name: value}
	}
	t.out.Values = overlay.Values(t.out.Values, value.(map[string]any))
	return nil
}

func (t *translation) profile(n *yaml.Node) {
	if t.out.Profile = profiles[n.Value]; t.out.Profile == "" {
		t.out.Warnings = append(t.out.Warnings, fmt.Sprintf("%s:%d: the profile %s has no counterpart here; the default one is taken", t.name, n.Line, n.Value))
	}
}

func (t *translation) warn(path string, n *yaml.Node) {
	text := fmt.Sprintf("%s:%d: %s has no meaning here", t.name, n.Line, path)
	if hint := hints[path]; hint != "" {
		text += ": " + hint
	}
	t.out.Warnings = append(t.out.Warnings, text)
}
