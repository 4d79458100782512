package attach

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// The labels of what is deployed for a Gateway.
const (
	// LabelManaged is on every such object, with ManagedGateway.
	LabelManaged   = "lateen.dev/managed"
	ManagedGateway = "gateway"
	labelClass     = "gateway.networking.k8s.io/gateway-class-name"
	labelRevision  = "istio.io/rev"
)

// annotationServiceType, on a Gateway, chooses the type of its Service, as in Istio; LoadBalancer unless set.
const annotationServiceType = "networking.istio.io/service-type"

// The bounds and the aim of the autoscaler.
const (
	replicasMin   = 1
	replicasMax   = 5
	processorGoal = 80 // percent of what a pod asks for
)

// portHealth is where the proxy tells whether it is ready, which load balancers look at.
const portHealth = 15021

// Document is an object of Kubernetes as JSON has it.
type Document = map[string]any

// NameOf is the name of what is deployed for a Gateway: its own and its class's, shortened where that is no name of a
// Service.
func NameOf(name, class string) string { return label(name+"-"+class, serviceName) }

// LabelOf is the value of LabelGateway for a Gateway: its name, shortened where that is no label's value.
func LabelOf(name string) string { return label(name, nil) }

var serviceName = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)

const labelMax = 63

func label(name string, form *regexp.Regexp) string {
	if len(name) <= labelMax && (form == nil || form.MatchString(name)) {
		return name
	}
	const kept, digits = 50, 12
	sum := sha256.Sum256([]byte(name))
	begin := strings.ReplaceAll(name[:min(kept-1, len(name))], ".", "-")
	return strings.TrimRight("g"+begin, "-") + "-" + hex.EncodeToString(sum[:])[:digits]
}

// Account is the service account of a Gateway's own workloads.
func (g *Gateway) Account() string {
	return NameOf(g.Object.Name, string(g.Spec.GatewayClassName))
}

// Parameters names the ConfigMap in the Gateway's namespace that changes what is deployed; empty: none.
func (g *Gateway) Parameters() string {
	if x := g.Spec.Infrastructure; x != nil && x.ParametersRef != nil {
		return x.ParametersRef.Name
	}
	return ""
}

// Documents are the objects that run a Gateway: ServiceAccount, Deployment, Service, HorizontalPodAutoscaler and
// PodDisruptionBudget. The Deployment's pods get their proxy by injection. uid is the Gateway's, that owns them all.
// parameters are the texts of its ConfigMap: under serviceAccount, deployment, service, horizontalPodAutoscaler and
// podDisruptionBudget each a part of the object that is laid over ours. The error is for the user.
func (g *Gateway) Documents(uid string, parameters map[string]string) ([]Document, error) {
	parts := []struct {
		key, version, kind string
		spec               Document
	}{
		{"serviceAccount", "v1", "ServiceAccount", nil},
		{"deployment", "apps/v1", "Deployment", g.deployment()},
		{"service", "v1", "Service", g.service()},
		{"horizontalPodAutoscaler", "autoscaling/v2", "HorizontalPodAutoscaler", Document{
			"minReplicas": int64(replicasMin), "maxReplicas": int64(replicasMax),
			"scaleTargetRef": Document{"apiVersion": "apps/v1", "kind": "Deployment", "name": g.Account()},
			"metrics": []any{Document{"type": "Resource", "resource": Document{
				"name": "cpu", "target": Document{"type": "Utilization", "averageUtilization": int64(processorGoal)},
			}}},
		}},
		{"podDisruptionBudget", "policy/v1", "PodDisruptionBudget", Document{
			"maxUnavailable": int64(1), "selector": Document{"matchLabels": g.selector()},
		}},
	}
	var known []string
	var out []Document
	for _, p := range parts {
		known = append(known, p.key)
		o := Document{"apiVersion": p.version, "kind": p.kind, "metadata": g.metadata(uid)}
		if p.spec != nil {
			o["spec"] = p.spec
		}
		if text := parameters[p.key]; text != "" {
			var over Document
			if err := yaml.Unmarshal([]byte(text), &over); err != nil {
				return nil, fmt.Errorf("parameter %s is no YAML: %w", p.key, err)
			}
			o = whole(overlay(o, over)).(Document)
		}
		out = append(out, o)
	}
	for key := range parameters {
		if !slices.Contains(known, key) {
			return nil, fmt.Errorf("there is no parameter %s; here are %s", key, strings.Join(known, ", "))
		}
	}
	return out, nil
}

func (g *Gateway) selector() Document {
	return Document{LabelGateway: LabelOf(g.Object.Name)}
}

func (g *Gateway) labels() Document {
	out := Document{}
	if x := g.Spec.Infrastructure; x != nil {
		for k, v := range x.Labels {
			out[string(k)] = string(v)
		}
	}
	if rev := g.Object.Labels[labelRevision]; rev != "" {
		out[labelRevision] = rev
	}
	out[LabelGateway], out[LabelManaged] = LabelOf(g.Object.Name), ManagedGateway
	out[labelClass] = LabelOf(string(g.Spec.GatewayClassName))
	return out
}

func (g *Gateway) annotations() Document {
	out := Document{}
	if x := g.Spec.Infrastructure; x != nil {
		for k, v := range x.Annotations {
			out[string(k)] = string(v)
		}
	}
	return out
}

func (g *Gateway) metadata(uid string) Document {
	out := Document{
		"name": g.Account(), "namespace": g.Object.Namespace, "labels": g.labels(),
		"ownerReferences": []any{Document{
			"apiVersion": g.Object.APIVersion, "kind": "Gateway", "name": g.Object.Name, "uid": uid, "controller": true,
		}},
	}
	if a := g.annotations(); len(a) > 0 {
		out["annotations"] = a
	}
	return out
}

func (g *Gateway) deployment() Document {
	labels, annotations := g.labels(), g.annotations()
	labels["sidecar.istio.io/inject"] = "true"
	annotations["inject.istio.io/templates"] = "gateway"
	return Document{
		"selector": Document{"matchLabels": g.selector()},
		"template": Document{
			"metadata": Document{"labels": labels, "annotations": annotations},
			"spec": Document{
				"serviceAccountName": g.Account(), "automountServiceAccountToken": false, // it asks lateend, and no API server
				"containers": []any{Document{
					// The webhook makes the proxy of it. The policy is said, as Kubernetes takes "auto" for a tag that moves.
					"name": "istio-proxy", "image": "auto", "imagePullPolicy": "IfNotPresent",
					"resources": Document{"requests": Document{"cpu": "100m", "memory": "64Mi"}},
				}},
			},
		},
	}
}

func (g *Gateway) service() Document {
	ports := []any{Document{"name": "status-port", "port": int64(portHealth), "protocol": "TCP", "appProtocol": "tcp"}}
	seen := map[int32]bool{portHealth: true}
	for _, l := range g.Listeners {
		if seen[l.Port] || l.accepted.bad() {
			continue
		}
		seen[l.Port] = true
		protocol := strings.ToLower(string(l.Protocol))
		ports = append(ports, Document{
			"name": fmt.Sprintf("%s-%d", protocol, l.Port), "port": int64(l.Port), "protocol": "TCP", "appProtocol": protocol,
		})
	}
	spec := Document{
		"type": cmp.Or(g.Object.Annotations[annotationServiceType], "LoadBalancer"), "selector": g.selector(), "ports": ports,
	}
	if len(g.Spec.Addresses) > 0 {
		if a := g.Spec.Addresses[0]; a.Value != "" && (a.Type == nil || *a.Type == gateway.IPAddressType) {
			spec["loadBalancerIP"] = a.Value
		}
	}
	return spec
}

// overlay lays one part of an object over another: fields replace fields, and in lists of named things those of the same
// name; null removes a field.
func overlay(under, over any) any {
	switch o := over.(type) {
	case Document:
		u, ok := under.(Document)
		if !ok {
			return over
		}
		out := maps.Clone(u)
		for k, v := range o {
			if v == nil {
				delete(out, k)
			} else if old, there := out[k]; there {
				out[k] = overlay(old, v)
			} else {
				out[k] = v
			}
		}
		return out
	case []any:
		u, ok := under.([]any)
		if !ok {
			return over
		}
		return overlayList(u, o)
	}
	return over
}

func overlayList(under, over []any) any {
	name := func(v any) any { m, _ := v.(Document); return m["name"] }
	for _, v := range slices.Concat(under, over) {
		if name(v) == nil {
			return over
		}
	}
	out := slices.Clone(under)
	for _, v := range over {
		if i := slices.IndexFunc(out, func(x any) bool { return name(x) == name(v) }); i >= 0 {
			out[i] = overlay(out[i], v)
		} else {
			out = append(out, v)
		}
	}
	return out
}

// whole makes whole numbers of those that YAML has as floating ones, as Kubernetes' own JSON has them.
func whole(v any) any {
	switch v := v.(type) {
	case Document:
		for k, x := range v {
			v[k] = whole(x)
		}
	case []any:
		for i, x := range v {
			v[i] = whole(x)
		}
	case float64:
		if n := int64(v); float64(n) == v {
			return n
		}
	}
	return v
}

// Holds reports whether an object has everything that is wanted of it, whatever else it has. Lists are as long as they
// are wanted.
func Holds(has, wanted any) bool {
	switch w := wanted.(type) {
	case Document:
		h, ok := has.(Document)
		if !ok {
			return len(w) == 0
		}
		for k, v := range w {
			if !Holds(h[k], v) {
				return false
			}
		}
		return true
	case []any:
		h, ok := has.([]any)
		if !ok || len(h) != len(w) {
			return len(w) == 0 && !ok
		}
		for i := range w {
			if !Holds(h[i], w[i]) {
				return false
			}
		}
		return true
	}
	return has == wanted
}
