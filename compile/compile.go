// Package compile decides: from a snapshot of the mesh, who asks and what for,
// it makes one resource of a plan.
//
// In: a mesh.View and an Asker. Out: a plan.Resource, or nil when there is none
// of that name; the View then knows everything on which the answer depends. The
// functions are pure: the same mesh and the same asker give the same answer. The
// package must not know clocks, sockets, clusters or encodings. Cache adds what
// makes it incremental and shared; it may be read from any goroutine and is
// changed by one.
//
// Each noun of the plan has its file here.
package compile

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// clusterDomain is the domain of Kubernetes services.
const clusterDomain = "svc.cluster.local"

// asking is one question under way.
type asking struct {
	*mesh.View
	role      Role
	namespace string
	asker     *Asker // read through labels, locality and workload only
	uses      uses
	config    *mesh.Config
}

func newAsking(v *mesh.View, who *Asker) *asking {
	return &asking{View: v, role: who.Role, namespace: who.Namespace, asker: who, config: v.Config()}
}

func (a *asking) labels() mesh.Labels {
	a.uses |= usesLabels
	return a.asker.Labels
}

func (a *asking) locality() string {
	a.uses |= usesLocality
	return a.asker.Locality
}

func (a *asking) workload() string {
	a.uses |= usesWorkload
	return a.asker.Workload
}

// Compile makes the resource of that kind and name; nil if there is none.
// personal reports whether the answer holds for this asker only and not for all of its role and namespace.
func Compile(v *mesh.View, who *Asker, kind plan.Kind, name string) (res plan.Resource, personal bool) {
	a := newAsking(v, who)
	res = a.resource(kind, name)
	return res, a.uses != 0
}

func (a *asking) resource(kind plan.Kind, name string) plan.Resource {
	switch kind {
	case plan.KindListener:
		return orNil(a.listener(name))
	case plan.KindRoute:
		return orNil(a.route(name))
	case plan.KindCluster:
		return orNil(a.cluster(name))
	case plan.KindEndpoints:
		return orNil(a.endpoints(name))
	case plan.KindSecret:
		return orNil(a.secret(name))
	case plan.KindName:
		return orNil(a.name(name))
	}
	return nil
}

// orNil makes an untyped nil of a nil pointer.
func orNil[T any, P interface {
	*T
	plan.Resource
}](p P) plan.Resource {
	if p == nil {
		return nil
	}
	return p
}

// Names lists the resources of a kind that an asker gets without naming them, sorted: what Envoy and gateways
// subscribe to.
func Names(v *mesh.View, who *Asker, kind plan.Kind) []string { return newAsking(v, who).names(kind) }

func (a *asking) names(kind plan.Kind) []string {
	switch {
	case kind == plan.KindListener && a.role == Gateway:
		return a.gatewayListeners()
	case kind == plan.KindListener:
		return a.sidecarListeners()
	case kind == plan.KindCluster:
		return a.clusterNames()
	}
	return nil
}

// origin turns the mesh's origin into the plan's; line is that of the part that decided, 0: the object's.
func origin(o mesh.Origin, line int) plan.Origin {
	if line == 0 {
		line = o.Line
	}
	return plan.Origin{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, File: o.File, Line: line}
}

func protocol(p mesh.Protocol) plan.Protocol {
	switch p {
	case mesh.HTTP:
		return plan.ProtocolHTTP
	case mesh.HTTP2:
		return plan.ProtocolHTTP2
	case mesh.GRPC:
		return plan.ProtocolGRPC
	case mesh.TCP:
		return plan.ProtocolTCP
	case mesh.TLS, mesh.HTTPS:
		return plan.ProtocolTLS
	default:
		return plan.ProtocolAuto
	}
}

func serviceName(s *mesh.Service) plan.ServiceName {
	return plan.ServiceName{Host: s.Host, Name: s.ShortName, Namespace: s.Namespace}
}

// clusterName is Istio's name of a cluster.
func clusterName(port uint16, subset, host string) string {
	return "outbound|" + strconv.Itoa(int(port)) + "|" + subset + "|" + host
}

// splitCluster undoes clusterName; ok is false for other names.
func splitCluster(name string) (port uint16, subset, host string, ok bool) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 || parts[0] != "outbound" {
		return 0, "", "", false
	}
	n, err := strconv.ParseUint(parts[1], 10, 16)
	return uint16(n), parts[2], parts[3], err == nil && n > 0
}

// hosts lists the full names that a host, as a client of the asker's namespace writes it, can stand for, in the
// order in which a resolver's search list tries them.
func (a *asking) hosts(written string) []string {
	written = strings.TrimSuffix(strings.ToLower(written), ".")
	if written == "" {
		return nil
	}
	if _, err := netip.ParseAddr(written); err == nil {
		return []string{written}
	}
	out := []string{written}
	switch dots := strings.Count(written, "."); {
	case strings.HasSuffix(written, "."+clusterDomain):
	case dots == 0:
		out = append(out, written+"."+a.namespace+"."+clusterDomain)
	case dots == 1:
		out = append(out, written+"."+clusterDomain)
	case strings.HasSuffix(written, ".svc"):
		out = append(out, written+".cluster.local")
	}
	return out
}

// service finds the service that a host stands for, trying wildcard services last.
func (a *asking) service(written string) *mesh.Service {
	names := a.hosts(written)
	for _, h := range names {
		if s := a.Service(a.namespace, h); s != nil {
			return s
		}
	}
	for _, h := range names {
		for _, p := range mesh.Patterns(h)[1:] {
			if s := a.Service(a.namespace, p); s != nil && p != "*" {
				return s
			}
		}
	}
	return nil
}

// splitPort cuts "host:port" or "[v6]:port".
func splitPort(s string) (host string, port uint16, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 16)
	host = strings.TrimSuffix(strings.TrimPrefix(s[:i], "["), "]")
	return host, uint16(n), err == nil && n > 0 && host != ""
}
