package kube

import (
	"context"
	"encoding/base64"
	"strings"
	"sync/atomic"
	"testing"
)

const registrationText = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: NAME}
webhooks:
- {name: a, clientConfig: {service: {name: lateend}}}
- {name: b, clientConfig: {service: {name: lateend}, caBundle: b2xk}, timeoutSeconds: 5}
`

// bundles are those of a registration's webhooks.
func (s *apiServer) bundles(name string) (out []any) {
	list, _ := s.get("MutatingWebhookConfiguration", "/"+name)["webhooks"].([]any)
	for _, h := range list {
		out = append(out, h.(object)["clientConfig"].(object)["caBundle"])
	}
	return out
}

// TestVouch: our webhook's registration has the mesh's roots whenever it is there, and nobody else's has.
func TestVouch(t *testing.T) {
	s := newServer(t)
	var roots atomic.Value
	roots.Store("PEM")
	store, err := Open(Config{Cluster: s.cluster(), Webhook: "ours", Roots: func() []byte { return []byte(roots.Load().(string)) }})
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
	has := func(name, text string) bool {
		want := base64.StdEncoding.EncodeToString([]byte(text + "\n"))
		list := s.bundles(name)
		return len(list) == 2 && list[0] == want && list[1] == want
	}
	register := func(name string) { s.apply(strings.Replace(registrationText, "NAME", name, 1)) }
	register("theirs")
	register("ours")
	r.await("the roots", func() bool { return has("ours", "PEM") })
	if list := s.get("MutatingWebhookConfiguration", "/ours")["webhooks"].([]any); list[1].(object)["timeoutSeconds"] != 5.0 {
		t.Errorf("more was changed: %v", list)
	}
	s.remove("MutatingWebhookConfiguration", "/ours")
	roots.Store("OTHER")
	register("ours")
	r.await("other roots in a new one", func() bool { return has("ours", "OTHER") })
	register("ours")
	r.await("the roots again", func() bool { return has("ours", "OTHER") })
	if list := s.bundles("theirs"); list[0] != nil || list[1] != "b2xk" {
		t.Errorf("somebody else's has %v", list)
	}
}
