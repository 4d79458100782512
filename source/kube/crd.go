package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/lateen-mesh/lateen/api"
)

// custom is a kind of users' own that the mesh reads.
type custom struct {
	kind, group, resource string
	versions              []string // by preference
}

// customs are the kinds that are watched where they are installed. Those that are not acted on are watched too, so that
// their status says so.
var customs = []custom{
	{api.KindVirtualService, networkGroup, "virtualservices", networkVersions},
	{api.KindDestinationRule, networkGroup, "destinationrules", networkVersions},
	{api.KindGateway, networkGroup, "gateways", networkVersions},
	{api.KindServiceEntry, networkGroup, "serviceentries", networkVersions},
	{api.KindWorkloadEntry, networkGroup, "workloadentries", networkVersions},
	{api.KindWorkloadGroup, networkGroup, "workloadgroups", networkVersions},
	{api.KindSidecar, networkGroup, "sidecars", networkVersions},
	{api.KindEnvoyFilter, networkGroup, "envoyfilters", []string{"v1alpha3"}},
	{api.KindProxyConfig, networkGroup, "proxyconfigs", []string{"v1beta1"}},
	{api.KindPeerAuthentication, securityGroup, "peerauthentications", []string{"v1", "v1beta1"}},
	{api.KindAuthorizationPolicy, securityGroup, "authorizationpolicies", []string{"v1", "v1beta1"}},
	{api.KindRequestAuthentication, securityGroup, "requestauthentications", []string{"v1", "v1beta1"}},
	{api.KindTelemetry, "telemetry.istio.io", "telemetries", []string{"v1", "v1alpha1"}},
	{api.KindWasmPlugin, "extensions.istio.io", "wasmplugins", []string{"v1alpha1"}},
	{api.KindTrafficExtension, "extensions.istio.io", "trafficextensions", []string{"v1alpha1"}},
	{api.KindGatewayClass, api.GroupGateway, "gatewayclasses", gatewayVersions},
	{api.KindListenedGateway, api.GroupGateway, "gateways", gatewayVersions},
	{api.KindHTTPRoute, api.GroupGateway, "httproutes", gatewayVersions},
	{api.KindGRPCRoute, api.GroupGateway, "grpcroutes", []string{"v1"}},
	{api.KindReferenceGrant, api.GroupGateway, "referencegrants", gatewayVersions},
}

const (
	networkGroup  = "networking.istio.io"
	securityGroup = "security.istio.io"
)

var (
	networkVersions = []string{"v1", "v1beta1", "v1alpha3"}
	gatewayVersions = []string{"v1", "v1beta1"}
)

// definitions is the resource of CustomResourceDefinitions, of which only the names are read, but for one
// whose kind is not served.
var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// crdFeed tells which kinds are installed.
func (s *Store) crdFeed() *feed {
	r := s.api.metadata.Resource(definitions)
	return &feed{
		name: definitions.Resource, notice: s.notice,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return r.List(ctx, o) },
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return r.Watch(ctx, o)
		},
		convert: func(o runtime.Object) any {
			m := o.(*metav1.PartialObjectMetadata)
			if slices.ContainsFunc(customs, func(c custom) bool { return c.definition() == m.Name }) {
				return true
			}
			return nil
		},
	}
}

// Versions are those in which objects of a CustomResourceDefinition are read, by preference; none: its kind is not read.
func Versions(definition string) []string {
	for _, c := range customs {
		if c.definition() == definition {
			return slices.Clone(c.versions)
		}
	}
	return nil
}

func (c custom) definition() string { return c.resource + "." + c.group }

// follow begins to watch kinds that were installed, and ends it for those that were removed, with all their objects.
// The caller holds mu.
func (s *Store) follow(start func(*feed)) {
	s.feeds = slices.DeleteFunc(s.feeds, func(f *feed) bool { return f.ended() })
	items, whole := s.crds.take()
	s.defined = s.defined || whole
	for _, c := range customs {
		there, told := items[key{Name: c.definition()}]
		if !told && !whole {
			continue
		}
		at := slices.IndexFunc(s.feeds, func(f *feed) bool { return f.name == c.definition() && !f.closed() })
		switch {
		case there != nil && at < 0:
			f := s.customFeed(c)
			s.feeds = append(s.feeds, f)
			start(f)
		case there == nil && at >= 0:
			s.feeds[at].end()
		}
	}
}

// customFeed watches the objects of a kind in the first of its versions that is served.
func (s *Store) customFeed(c custom) *feed {
	v := &version{custom: c, api: s.api}
	return &feed{
		name: c.definition(), convert: written, apply: objectsRead(c.kind), notice: s.notice,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			r, err := v.served(ctx)
			if err != nil {
				return nil, err
			}
			list, err := s.api.dynamic.Resource(r).List(ctx, o)
			return list, v.judge(err)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			r, err := v.served(ctx)
			if err != nil {
				return nil, err
			}
			w, err := s.api.dynamic.Resource(r).Watch(ctx, o)
			return w, v.judge(err)
		},
	}
}

// version finds out in which version a kind is served.
type version struct {
	custom
	api *clients

	mu    sync.Mutex
	found schema.GroupVersionResource
}

// unservedError is that a kind is defined in no version that we read, so that it has no objects for us.
type unservedError struct {
	custom
	cause string
}

func (e *unservedError) Error() string {
	return fmt.Sprintf("served in none of the versions %v that are read: %s; see `kubectl describe crd %s`", e.versions, e.cause, e.definition())
}

// served returns the resource in its version; or an *unservedError.
func (v *version) served(ctx context.Context) (schema.GroupVersionResource, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.found.Resource != "" {
		return v.found, nil
	}
	for _, name := range v.versions {
		raw, err := v.api.discovery.Get().AbsPath("/apis", v.group, name).SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx).Raw()
		if apierrors.IsNotFound(err) {
			continue
		}
		var list metav1.APIResourceList
		if err == nil {
			err = json.Unmarshal(raw, &list)
		}
		if err != nil {
			return v.found, err
		}
		if slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == v.resource }) {
			v.found = schema.GroupVersionResource{Group: v.group, Version: name, Resource: v.resource}
			return v.found, nil
		}
	}
	return v.found, v.absent(ctx)
}

// definition is what is read of a CustomResourceDefinition.
type definition struct {
	Spec struct {
		Versions []struct {
			Name   string `json:"name"`
			Served bool   `json:"served"`
		} `json:"versions"`
	} `json:"spec"`
	Status struct {
		Conditions []metav1.Condition `json:"conditions"`
	} `json:"status"`
}

// absent is why a kind is not served. Where its definition says that it should be, the definition is a moment old, or the
// API server is that was asked: there may be objects that nobody sees yet.
func (v *version) absent(ctx context.Context) error {
	raw, err := v.api.discovery.Get().AbsPath("/apis", definitions.Group, definitions.Version, definitions.Resource).
		Param("fieldSelector", fields.OneTermEqualSelector("metadata.name", v.definition()).String()).
		SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx).Raw()
	var list struct {
		Items []definition `json:"items"`
	}
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		return err
	}
	for _, d := range list.Items {
		var has []string
		for _, x := range d.Spec.Versions {
			if x.Served {
				has = append(has, x.Name)
			}
		}
		if !slices.ContainsFunc(has, func(name string) bool { return slices.Contains(v.versions, name) }) {
			err := &unservedError{v.custom, fmt.Sprintf("its definition has %v", has)}
			if v.group == securityGroup {
				return errors.New(err.Error()) // there may be policies in these, and doubt denies
			}
			return err
		}
		names := meta.FindStatusCondition(d.Status.Conditions, "NamesAccepted")
		if names != nil && names.Status == metav1.ConditionFalse && !meta.IsStatusConditionTrue(d.Status.Conditions, "Established") {
			return &unservedError{v.custom, "its names are not accepted: " + names.Message}
		}
	}
	return fmt.Errorf("%s is defined, but not served yet", v.definition())
}

// judge notes that a version is not served any more.
func (v *version) judge(err error) error {
	if apierrors.IsNotFound(err) {
		v.mu.Lock()
		v.found = schema.GroupVersionResource{}
		v.mu.Unlock()
	}
	return err
}
