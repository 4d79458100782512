// Package attach decides what the objects of the Gateway API come to: which
// listeners of which Gateway are open, which routes are attached to them or to
// a Service, what the routes become in the picture of the mesh, and what the
// status of each object says.
//
// In: the objects, and what they refer to. Out: gateways and routes of the
// picture, the same that Istio's Gateway and VirtualService become, and the
// status of each object. Attach is pure; it must not know a cluster, a folder
// or a clock. It may be called concurrently.
//
// Where Kubernetes has CustomResourceDefinitions for them, these have judged the
// objects; package api judges the same of files.
package attach

import (
	"cmp"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

// Controller is the name by which GatewayClasses, and the status of routes, name us.
const Controller = "lateen.dev/gateway-controller"

// ClassLateen and ClassIstio are the GatewayClasses that are ours unless an object of that name says otherwise. Where
// Istio runs it has made the class istio, and the Gateways of that class are its own.
const (
	ClassLateen = "lateen"
	ClassIstio  = "istio"
)

// LabelGateway is on the workloads of a Gateway: its name.
const LabelGateway = "gateway.networking.k8s.io/gateway-name"

// Input is what is attached, and what it refers to.
type Input struct {
	// Objects are GatewayClasses, Gateways, routes and ReferenceGrants.
	Objects []*api.Object
	// Labels returns a namespace's; nil if it has none, or is not known.
	Labels func(namespace string) map[string]string
	// Service returns a Service of that name; nil if there is none.
	Service func(namespace, name string) *mesh.Service
	// Host returns a service by its full name, for gateways that run already; nil if there is none.
	Host func(host string) *mesh.Service
	// Secret returns a Secret; nil if there is none, or none that is known.
	Secret func(namespace, name string) *core.Secret
	// Parameters reports whether there is a ConfigMap of that name; nil: there is any.
	Parameters func(namespace, name string) bool
}

// Result is what the objects come to.
type Result struct {
	// Made are the mesh objects of each object that makes any.
	Made map[api.Ref][]mesh.Object
	// Gateways are those of our classes, by namespace and name.
	Gateways []*Gateway
	// Foreign are the Gateways of classes that are known to be another controller's.
	Foreign []api.Ref
	// Parents are what became of each route at each of its parents that is ours, or a Service.
	Parents map[api.Ref][]Parent
	// Classes are the names of the classes that are ours and written.
	Classes []api.Ref
	objects map[api.Ref]*api.Object
}

// Any reports whether there is anything to attach.
func (r *Result) Any() bool { return len(r.objects) > 0 }

// Verdict is a condition's status, reason and message. The zero value is that all is well.
type Verdict struct {
	Reason, Message string // empty reason: all is well
	// Field is the place in the object, as keys and positions.
	Field []any
}

func (v Verdict) bad() bool { return v.Reason != "" }

// worse keeps the first bad verdict.
func (v *Verdict) worse(reason, message string, field ...any) {
	if !v.bad() {
		*v = Verdict{reason, message, field}
	}
}

// job is one Attach under way.
type job struct {
	Input
	grants   []*api.Object
	gateways map[string]*Gateway // by namespace/name
	result   *Result
}

// Attach decides what all objects come to.
func Attach(in Input) *Result {
	j := &job{Input: in, gateways: map[string]*Gateway{}, result: &Result{
		Made: map[api.Ref][]mesh.Object{}, Parents: map[api.Ref][]Parent{}, objects: map[api.Ref]*api.Object{},
	}}
	list := slices.Clone(in.Objects)
	slices.SortFunc(list, func(a, b *api.Object) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.Kind, b.Kind))
	})
	classes := map[string]*api.Object{}
	for _, o := range list {
		j.result.objects[o.Ref] = o
		switch o.Kind {
		case api.KindGatewayClass:
			classes[o.Name] = o
			if o.Spec.(*gateway.GatewayClass).Spec.ControllerName == Controller {
				j.result.Classes = append(j.result.Classes, o.Ref)
			}
		case api.KindReferenceGrant:
			j.grants = append(j.grants, o)
		}
	}
	for _, o := range list {
		spec, ok := o.Spec.(*gateway.Gateway)
		if !ok {
			continue
		}
		class := string(spec.Spec.GatewayClassName)
		if ours(classes, class) {
			g := j.gateway(o, spec)
			j.gateways[o.Namespace+"/"+o.Name] = g
			j.result.Gateways = append(j.result.Gateways, g)
		} else if classes[class] != nil {
			j.result.Foreign = append(j.result.Foreign, o.Ref)
		}
	}
	for _, o := range list {
		switch spec := o.Spec.(type) {
		case *gateway.HTTPRoute:
			j.route(o, spec.Spec.CommonRouteSpec, spec.Spec.Hostnames, func(r *rules) { r.http(spec.Spec.Rules) })
		case *gateway.GRPCRoute:
			j.route(o, spec.Spec.CommonRouteSpec, spec.Spec.Hostnames, func(r *rules) { r.grpc(spec.Spec.Rules) })
		}
	}
	slices.SortFunc(j.result.Gateways, func(a, b *Gateway) int {
		return cmp.Or(strings.Compare(a.Object.Namespace, b.Object.Namespace), strings.Compare(a.Object.Name, b.Object.Name))
	})
	return j.result
}

func ours(classes map[string]*api.Object, name string) bool {
	if o := classes[name]; o != nil {
		return o.Spec.(*gateway.GatewayClass).Spec.ControllerName == Controller
	}
	return name == ClassLateen || name == ClassIstio
}

// granted reports whether an object of one namespace may refer to one of another: a ReferenceGrant there says so.
func (j *job) granted(fromKind, fromNamespace, toKind, toNamespace, toName string) bool {
	if fromNamespace == toNamespace {
		return true
	}
	for _, o := range j.grants {
		if o.Namespace != toNamespace {
			continue
		}
		spec := o.Spec.(*gateway.ReferenceGrant).Spec
		from := slices.ContainsFunc(spec.From, func(f gateway.ReferenceGrantFrom) bool {
			return f.Group == api.GroupGateway && string(f.Kind) == fromKind && string(f.Namespace) == fromNamespace
		})
		to := slices.ContainsFunc(spec.To, func(t gateway.ReferenceGrantTo) bool {
			return t.Group == "" && string(t.Kind) == toKind && (t.Name == nil || *t.Name == "" || string(*t.Name) == toName)
		})
		if from && to {
			return true
		}
	}
	return false
}

// or is what a text points to, or else the other.
func or[T ~string](p *T, other string) string {
	if p == nil {
		return other
	}
	return string(*p)
}

func origin(o *api.Object) mesh.Origin {
	return mesh.Origin{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, File: o.File, Line: o.Line, Created: o.Created}
}
