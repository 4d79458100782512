package kube

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// vouchRetry is how soon it is looked again whether a registration can be made to count: twice as long each time, up to
// rootsRetry, until it counts or is another one.
const vouchRetry = time.Second

// registration is one of our webhooks as the API server has it: what of it is ours to write.
type registration struct {
	resource schema.GroupVersionResource
	name     string
	// complete brings what is missing besides caBundle into the webhooks of a registration; nil: nothing is. more says
	// that it is to be called again soon.
	complete func(ctx context.Context, hooks []any) (more bool)
}

// registrations are those of this server.
func (s *Store) registrations() []registration {
	of := func(resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: resource}
	}
	var out []registration
	if s.config.Roots == nil {
		return nil
	}
	if s.config.Webhook != "" {
		out = append(out, registration{of("mutatingwebhookconfigurations"), s.config.Webhook, nil})
	}
	if s.config.Validator != "" {
		v := &validator{store: s, ruled: map[string]bool{}}
		out = append(out, registration{of("validatingwebhookconfigurations"), s.config.Validator, v.complete})
	}
	return out
}

// vouch keeps the mesh's roots in the registration of our webhook until ctx ends, so that the API server believes us.
// Every server does so, not the leader alone: a revision that does not lead has webhooks of its own, and what servers of
// one mesh write is the same.
func (s *Store) vouch(ctx context.Context, at registration) {
	f := s.clusterWide(at.resource, at.name)
	var registered *unstructured.Unstructured
	again := time.AfterFunc(rootsRetry, func() { f.notice() })
	defer again.Stop()
	again.Stop()
	wait, told := vouchRetry, ""
	s.tend(ctx, func(n []news) {
		if n[0].whole {
			registered = nil
		}
		for _, item := range n[0].items {
			registered, _ = item.(*unstructured.Unstructured)
			wait = vouchRetry
		}
		more, err := false, f.trouble()
		if registered != nil && err == nil {
			more, err = s.believe(ctx, at, registered)
		}
		again.Stop()
		if more {
			again.Reset(wait)
			wait = min(2*wait, rootsRetry)
		}
		if err == nil {
			told = ""
		} else if ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			s.log.Log(ctx, slog.LevelWarn, "the API server cannot be told to believe the webhook; pods or configuration may be refused",
				at.resource.Resource, at.name, "cause", err)
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

// believe writes the roots, and what else is missing, into a registration where they differ. A registration that has
// changed meanwhile comes anew.
func (s *Store) believe(ctx context.Context, at registration, registered *unstructured.Unstructured) (more bool, err error) {
	roots := bytes.TrimSpace(s.config.Roots())
	hooks, _, err := unstructured.NestedSlice(registered.Object, "webhooks") // a copy
	if err != nil || len(roots) == 0 {
		return false, err
	}
	text := base64.StdEncoding.EncodeToString(append(roots, '\n'))
	for _, h := range hooks {
		hook, _ := h.(map[string]any)
		if client, _ := hook["clientConfig"].(map[string]any); client != nil {
			client["caBundle"] = text
		}
	}
	if at.complete != nil {
		more = at.complete(ctx, hooks)
	}
	if reflect.DeepEqual(hooks, registered.Object["webhooks"]) {
		return more, nil
	}
	if err := s.ration.Wait(ctx); err != nil {
		return more, err
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": registered.GetResourceVersion()}, "webhooks": hooks,
	})
	if err != nil {
		return more, err
	}
	_, err = s.api.dynamic.Resource(at.resource).Patch(ctx, registered.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: userAgent})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return more, nil
	}
	return more, err
}
