package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// TrustName and trustSigner are those of the ClusterTrustBundle that holds the mesh's roots: Istio's names.
const (
	TrustName   = "istio.io:istiod-ca:root-cert"
	trustSigner = "istio.io/istiod-ca"
)

// trustVersions are those in which the API server may have ClusterTrustBundles, the better one first.
var trustVersions = []string{"v1", "v1beta1"}

// entrust keeps the roots in a ClusterTrustBundle until ctx ends, if the API server has such: that may change with it
// only, so that it is asked until it answers once.
func (s *Store) entrust(ctx context.Context) {
	resource := s.askTrust(ctx)
	if resource.Version == "" {
		return
	}
	f := s.clusterWide(resource, TrustName)
	var have *unstructured.Unstructured
	told := ""
	s.tend(ctx, func(n []news) {
		if n[0].whole {
			have = nil
		}
		for _, item := range n[0].items {
			have, _ = item.(*unstructured.Unstructured)
		}
		err := f.trouble()
		if err == nil && f.settled() {
			err = s.writeTrust(ctx, resource, have)
		}
		if err == nil {
			told = ""
		} else if ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			s.log.Log(ctx, slog.LevelWarn, "the mesh's roots cannot be written", "clustertrustbundle", TrustName, "cause", err)
		}
	}, f)
}

// askTrust asks how ClusterTrustBundles are served until the API server says so, or ctx ends; without a version they are not.
func (s *Store) askTrust(ctx context.Context) schema.GroupVersionResource {
	retry := time.NewTicker(s.retry)
	defer retry.Stop()
	for told := ""; ; {
		resource, err := s.trustResource(ctx)
		if err == nil || ctx.Err() != nil {
			return resource
		}
		if err.Error() != told {
			told = err.Error()
			s.log.Log(ctx, slog.LevelWarn, "the API server does not say whether it has ClusterTrustBundles; until it does none is written", "cause", err)
		}
		select {
		case <-ctx.Done():
			return resource
		case <-retry.C:
		}
	}
}

// trustResource is how ClusterTrustBundles are served; without a version they are not.
func (s *Store) trustResource(ctx context.Context) (schema.GroupVersionResource, error) {
	for _, version := range trustVersions {
		raw, err := s.api.core.Get().AbsPath("/apis/certificates.k8s.io/"+version).SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx).Raw()
		if apierrors.IsNotFound(err) {
			continue
		}
		var list metav1.APIResourceList
		if err == nil {
			err = json.Unmarshal(raw, &list)
		}
		if err != nil {
			return schema.GroupVersionResource{}, fmt.Errorf("ask what the API server has in certificates.k8s.io/%s: %w", version, err)
		}
		for _, r := range list.APIResources {
			if r.Name == "clustertrustbundles" {
				return schema.GroupVersionResource{Group: "certificates.k8s.io", Version: version, Resource: r.Name}, nil
			}
		}
	}
	return schema.GroupVersionResource{}, nil
}

// writeTrust writes the roots if those that are there are others.
func (s *Store) writeTrust(ctx context.Context, resource schema.GroupVersionResource, have *unstructured.Unstructured) error {
	roots := bytes.TrimSpace(s.config.Roots())
	if len(roots) == 0 {
		return nil
	}
	text := string(roots) + "\n"
	if have != nil {
		if is, _, err := unstructured.NestedString(have.Object, "spec", "trustBundle"); err == nil && is == text {
			return nil
		}
	}
	raw, err := json.Marshal(map[string]any{
		"apiVersion": resource.GroupVersion().String(), "kind": "ClusterTrustBundle",
		"metadata": map[string]any{"name": TrustName, "labels": map[string]string{labelRoots: "true"}},
		"spec":     map[string]any{"signerName": trustSigner, "trustBundle": text},
	})
	if err != nil {
		return err
	}
	if err := s.ration.Wait(ctx); err != nil {
		return err
	}
	force := true
	_, err = s.api.dynamic.Resource(resource).Patch(ctx, TrustName, types.ApplyPatchType, raw, metav1.PatchOptions{FieldManager: userAgent, Force: &force})
	return err
}
