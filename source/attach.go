package source

import (
	"reflect"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source/attach"
)

// Attached is what the Gateway API's objects come to.
func (s *Set) Attached() *attach.Result { return s.attached }

// Reattach looks anew at the Gateway API's objects, when what Config.Parameters says has changed.
func (s *Set) Reattach() []mesh.Change {
	before := map[mesh.Ref]mesh.Object{}
	s.attach(before)
	return s.changes(before)
}

// attachment keeps the Gateway API's objects apart and reports whether what they come to may have changed: by
// themselves, or by what they refer to.
func (s *Set) attachment(upsert []*api.Object, remove []api.Ref) bool {
	concerned := false
	for _, ref := range remove {
		delete(s.attachable, ref)
		concerned = concerned || concerns(ref.Kind)
	}
	for _, o := range upsert {
		if attachable(o.Kind) {
			s.attachable[o.Ref] = o
		}
		concerned = concerned || concerns(o.Kind)
	}
	return concerned && (len(s.attachable) > 0 || s.attached.Any())
}

func attachable(kind string) bool {
	return slices.Contains([]string{api.KindGatewayClass, api.KindListenedGateway, api.KindHTTPRoute, api.KindGRPCRoute, api.KindReferenceGrant}, kind)
}

func concerns(kind string) bool {
	return attachable(kind) || slices.Contains([]string{api.KindNamespace, api.KindService, api.KindSecret}, kind)
}

// attach decides anew what all of the Gateway API's objects come to: few of them, for they are routes and not endpoints.
func (s *Set) attach(before map[mesh.Ref]mesh.Object) {
	in := attach.Input{
		Parameters: s.parameters,
		Labels: func(namespace string) map[string]string {
			if o := s.objects[api.Ref{Kind: api.KindNamespace, Name: namespace}]; o != nil {
				return o.Labels
			}
			return nil
		},
		Service: func(namespace, name string) *mesh.Service { return s.serviceNamed(namespace, s.fqdn(namespace, name)) },
		Host: func(host string) *mesh.Service {
			short := strings.TrimSuffix(strings.TrimSuffix(host, "."+s.domain), ".svc")
			if name, namespace, found := strings.Cut(short, "."); found {
				return s.serviceNamed(namespace, s.fqdn(namespace, name))
			}
			return nil
		},
		Secret: func(namespace, name string) *core.Secret {
			if o := s.objects[api.Ref{Kind: api.KindSecret, Namespace: namespace, Name: name}]; o != nil {
				return o.Spec.(*core.Secret)
			}
			return nil
		},
	}
	for _, o := range s.attachable {
		in.Objects = append(in.Objects, o)
	}
	result := attach.Attach(in)
	for ref := range s.attached.Made {
		if _, still := result.Made[ref]; !still {
			s.drop(ref, before)
		}
	}
	for ref, list := range result.Made {
		if !reflect.DeepEqual(s.made[ref], list) {
			s.drop(ref, before)
			s.claim(s.objects[ref], list, before)
		}
	}
	s.attached = result
}

func (s *Set) serviceNamed(namespace, host string) *mesh.Service {
	svc, _ := s.winner(mesh.Ref{Kind: mesh.KindService, Namespace: namespace, Name: host}).(*mesh.Service)
	return svc
}
