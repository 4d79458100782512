package kube

import (
	"context"
	"encoding/base64"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const validationText = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: ours}
webhooks:
- {name: rev.validate.lateen.dev, clientConfig: {service: {name: lateend}}, failurePolicy: Fail}
- {name: validate.lateen.dev, clientConfig: {service: {name: lateend}}, failurePolicy: Fail}
- {name: gateway-api.validate.lateen.dev, clientConfig: {service: {name: lateend}}, failurePolicy: Ignore}
`

// askedAbout is what each webhook is asked about. Of the Gateway API it is what we read: other implementations read more.
var askedAbout = map[string][]string{
	"rev.validate.lateen.dev": ofIstio, "validate.lateen.dev": ofIstio,
	"gateway-api.validate.lateen.dev": {
		"[gateway.networking.k8s.io] [v1 v1beta1] [gatewayclasses]", "[gateway.networking.k8s.io] [v1 v1beta1] [gateways]",
		"[gateway.networking.k8s.io] [v1 v1beta1] [httproutes]", "[gateway.networking.k8s.io] [v1] [grpcroutes]",
		"[gateway.networking.k8s.io] [v1 v1beta1] [referencegrants]",
	},
}

var ofIstio = []string{
	"[networking.istio.io] [*] [*]", "[security.istio.io] [*] [*]", "[telemetry.istio.io] [*] [*]", "[extensions.istio.io] [*] [*]",
}

// ruled are the rules of webhooks, by name.
func ruled(hooks []object) map[string][]string {
	out := map[string][]string{}
	for _, h := range hooks {
		name, _ := h["name"].(string)
		list, _ := h["rules"].([]any)
		for _, x := range list {
			r, _ := x.(object)
			out[name] = append(out[name], fmt.Sprint(r["apiGroups"], r["apiVersions"], r["resources"]))
		}
	}
	return out
}

// TestValidator: the validation webhook is asked about a probe alone until the API server has been seen to ask it.
func TestValidator(t *testing.T) {
	s := newServer(t)
	store, err := Open(Config{Cluster: s.cluster(), Validator: "ours", Revision: "default", Roots: func() []byte { return []byte("PEM") }})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, server: s, Store: store}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	hooks := func() (out []object) {
		list, _ := s.get("ValidatingWebhookConfiguration", "/ours")["webhooks"].([]any)
		for _, h := range list {
			out = append(out, h.(object))
		}
		return out
	}
	all := func(so func(object) bool) func() bool {
		return func() bool {
			list := hooks()
			for _, h := range list {
				if !so(h) {
					return false
				}
			}
			return len(list) == 3
		}
	}
	s.apply(validationText)
	bundle := base64.StdEncoding.EncodeToString([]byte("PEM\n"))
	r.await("rules on condition", all(func(h object) bool {
		return h["rules"] != nil && h["matchConditions"] != nil && h["clientConfig"].(object)["caBundle"] == bundle
	}))
	s.mu.Lock()
	s.refusals = map[string]string{probeName: `admission webhook "validate.other.dev" denied the request: no`}
	s.mu.Unlock()
	s.define() // of Gateways, so that there can be a probe
	r.await("a probe", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.probes > 1 })
	if !all(func(h object) bool { return h["matchConditions"] != nil })() {
		t.Errorf("in force without having been seen: %v", hooks())
	}
	s.mu.Lock()
	s.refusals[probeName] = `admission webhook "rev.validate.lateen.dev" denied the request: no`
	s.mu.Unlock()
	r.await("rules without condition", all(func(h object) bool { return h["rules"] != nil && h["matchConditions"] == nil }))
	if s.get("Gateway", "istio-system/"+probeName) != nil {
		t.Error("the probe was stored")
	}
	if diff := cmp.Diff(askedAbout, ruled(hooks())); diff != "" {
		t.Errorf("the webhooks are asked about others: %s", diff)
	}
	// Somebody applies it anew.
	s.apply(validationText)
	r.await("rules again", all(func(h object) bool { return h["rules"] != nil && h["matchConditions"] == nil }))
}
