package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

// envelope is an object as it is written, in the customary order.
type envelope struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   metadata        `json:"metadata"`
	Spec       json.RawMessage `json:"spec,omitempty"`
}

type metadata struct {
	Name              string            `json:"name"`
	Namespace         string            `json:"namespace,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	CreationTimestamp *meta.Time        `json:"creationTimestamp,omitempty"`
}

// Encode writes an object as a YAML document that Decode reads as an equal
// object. Comments and layout are not kept; equal objects have equal texts.
func Encode(o *Object) ([]byte, error) {
	kind, _, _ := strings.Cut(o.Kind, ".")
	e := envelope{APIVersion: o.APIVersion, Kind: kind, Metadata: metadata{
		Name: o.Name, Namespace: o.Namespace, Labels: o.Labels, Annotations: o.Annotations,
	}}
	if o.Created != 0 {
		e.Metadata.CreationTimestamp = &meta.Time{Time: time.Unix(0, o.Created).UTC()}
	}
	var whole any
	switch spec := o.Spec.(type) {
	case *meshconfig.MeshConfig:
		text, err := configText(spec)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", o.Ref, err)
		}
		whole = struct {
			envelope
			Data map[string]string `json:"data"`
		}{e, map[string]string{configKey: string(text)}}
	case proto.Message:
		raw, err := protojson.Marshal(spec)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", o.Ref, err)
		}
		e.Spec = raw
		whole = e
	default:
		var err error
		if whole, err = e.around(spec); err != nil {
			return nil, fmt.Errorf("encode %s: %w", o.Ref, err)
		}
	}
	raw, err := json.Marshal(whole)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", o.Ref, err)
	}
	out, err := block(raw)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", o.Ref, err)
	}
	return out, nil
}

// around joins the envelope with the fields of a core object.
func (e envelope) around(spec any) (any, error) {
	switch s := spec.(type) {
	case *core.Service:
		raw, err := json.Marshal(s.Spec)
		e.Spec = raw
		return e, err
	case *core.Secret:
		return struct {
			envelope
			Type       core.SecretType   `json:"type,omitempty"`
			Immutable  *bool             `json:"immutable,omitempty"`
			Data       map[string][]byte `json:"data,omitempty"`
			StringData map[string]string `json:"stringData,omitempty"`
		}{e, s.Type, s.Immutable, s.Data, s.StringData}, nil
	case *core.Namespace:
		raw, err := json.Marshal(s.Spec)
		if len(s.Spec.Finalizers) > 0 {
			e.Spec = raw
		}
		return e, err
	case *core.ServiceAccount:
		return struct {
			envelope
			Secrets                      []core.ObjectReference      `json:"secrets,omitempty"`
			ImagePullSecrets             []core.LocalObjectReference `json:"imagePullSecrets,omitempty"`
			AutomountServiceAccountToken *bool                       `json:"automountServiceAccountToken,omitempty"`
		}{e, s.Secrets, s.ImagePullSecrets, s.AutomountServiceAccountToken}, nil
	case *gateway.GatewayClass:
		return e.over(s.Spec)
	case *gateway.Gateway:
		return e.over(s.Spec)
	case *gateway.HTTPRoute:
		return e.over(s.Spec)
	case *gateway.GRPCRoute:
		return e.over(s.Spec)
	case *gateway.ReferenceGrant:
		return e.over(s.Spec)
	}
	return nil, fmt.Errorf("no encoding for %T", spec)
}

// over is the envelope around a spec.
func (e envelope) over(spec any) (any, error) {
	raw, err := json.Marshal(spec)
	e.Spec = raw
	return e, err
}

// configText writes a MeshConfig. Its fields of value zero are left out, as everywhere; REGISTRY_ONLY, which is zero, is
// not what Decode takes for absent, and is written.
func configText(c *meshconfig.MeshConfig) ([]byte, error) {
	raw, err := protojson.Marshal(c)
	if err != nil {
		return nil, err
	}
	if p := c.OutboundTrafficPolicy; p == nil || p.Mode != meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY {
		return block(raw)
	}
	var fields, policy map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(fields["outboundTrafficPolicy"], &policy); err != nil {
		return nil, err
	}
	policy["mode"] = json.RawMessage(`"REGISTRY_ONLY"`)
	if fields["outboundTrafficPolicy"], err = json.Marshal(policy); err != nil {
		return nil, err
	}
	if raw, err = json.Marshal(fields); err != nil {
		return nil, err
	}
	return block(raw)
}

// block writes JSON as YAML in block form, its fields in the same order.
func block(raw []byte) ([]byte, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(raw, &n); err != nil {
		return nil, err
	}
	unflow(&n)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&n); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// unflow clears JSON's braces and quotes; the encoder quotes again what needs it.
func unflow(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		unflow(c)
	}
}
