package kube

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// registrations is the resource of MutatingWebhookConfigurations.
var registrations = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}

// vouch keeps the mesh's roots in the registration of our webhook until ctx ends, so that the API server believes us.
// Every server does so, not the leader alone: a revision that does not lead has a webhook of its own, and what servers of
// one mesh write is the same.
func (s *Store) vouch(ctx context.Context) {
	f := s.clusterWide(registrations, s.config.Webhook)
	var registered *unstructured.Unstructured
	told := ""
	s.tend(ctx, func(n []news) {
		if n[0].whole {
			registered = nil
		}
		for _, item := range n[0].items {
			registered, _ = item.(*unstructured.Unstructured)
		}
		err := f.trouble()
		if registered != nil && err == nil {
			err = s.believe(ctx, registered)
		}
		if err == nil {
			told = ""
		} else if ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			s.log.Log(ctx, slog.LevelWarn, "the API server cannot be told to believe the webhook; pods may be refused",
				"mutatingwebhookconfiguration", s.config.Webhook, "cause", err)
		}
	}, f)
}

// clusterWide watches one object that is in no namespace.
func (s *Store) clusterWide(resource schema.GroupVersionResource, name string) *feed {
	r := s.api.dynamic.Resource(resource)
	only := fields.OneTermEqualSelector("metadata.name", name).String()
	return &feed{
		name: resource.Resource + " " + name,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			return r.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return r.Watch(ctx, o)
		},
		convert: func(o runtime.Object) any { return o },
	}
}

// believe writes the roots into a registration where they differ. A registration that has changed meanwhile comes anew.
func (s *Store) believe(ctx context.Context, registered *unstructured.Unstructured) error {
	roots := bytes.TrimSpace(s.config.Roots())
	hooks, _, err := unstructured.NestedSlice(registered.Object, "webhooks") // a copy
	if err != nil || len(roots) == 0 {
		return err
	}
	text := base64.StdEncoding.EncodeToString(append(roots, '\n'))
	same := true
	for _, h := range hooks {
		hook, _ := h.(map[string]any)
		client, _ := hook["clientConfig"].(map[string]any)
		if client != nil && client["caBundle"] != text {
			client["caBundle"], same = text, false
		}
	}
	if same {
		return nil
	}
	if err := s.status.ration.Wait(ctx); err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": registered.GetResourceVersion()}, "webhooks": hooks,
	})
	if err != nil {
		return err
	}
	_, err = s.api.dynamic.Resource(registrations).Patch(ctx, registered.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: userAgent})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
