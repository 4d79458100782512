package source

import (
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	core "k8s.io/api/core/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

// translate makes the mesh objects of one object; none for those without an effect.
func (s *Set) translate(o *api.Object) []mesh.Object {
	switch spec := o.Spec.(type) {
	case *core.Service:
		return []mesh.Object{s.service(o, spec)}
	case *core.Secret:
		p := api.Credential(spec)
		if p.Chain == nil && p.Roots == nil {
			return nil
		}
		return []mesh.Object{&mesh.Secret{Origin: origin(o), Namespace: o.Namespace, Name: o.Name, Chain: p.Chain, Key: p.Key, Roots: p.Roots}}
	case *networking.ServiceEntry:
		return s.entry(o, spec)
	case *networking.WorkloadEntry:
		return []mesh.Object{workload(o, spec)}
	case *networking.VirtualService:
		return []mesh.Object{s.route(o, spec)}
	case *networking.DestinationRule:
		return []mesh.Object{s.traffic(o, spec)}
	case *networking.Gateway:
		return []mesh.Object{gateway(o, spec)}
	case *security.PeerAuthentication:
		return []mesh.Object{authn(o, spec)}
	case *security.AuthorizationPolicy:
		return []mesh.Object{authz(o, spec)}
	case *api.Unreadable:
		return []mesh.Object{closed(o, spec)}
	case *telemetry.Telemetry:
		if spec.TargetRef != nil || len(spec.TargetRefs) > 0 {
			return nil
		}
		return []mesh.Object{telemetryOf(o, spec)}
	}
	if o.Kind == api.KindConfigMap {
		return []mesh.Object{s.config}
	}
	return nil
}

// origin is where an object was written.
func origin(o *api.Object) mesh.Origin {
	return mesh.Origin{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, File: o.File, Line: o.Line, Created: o.Created}
}

// selector is nil when it is written but empty: both mean everything.
func selector(labels map[string]string) mesh.Labels {
	if len(labels) == 0 {
		return nil
	}
	return labels
}

// host resolves a host as written in a rule: a name without dots is a service of the rule's own namespace.
func (s *Set) host(namespace, host string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if strings.Contains(host, ".") || strings.Contains(host, ":") || host == "*" {
		return host
	}
	return s.fqdn(namespace, host)
}

// fqdn is the full name of a service.
func (s *Set) fqdn(namespace, name string) string { return name + "." + namespace + ".svc." + s.domain }

// visibility resolves exportTo, or what the mesh says for objects that have none.
func visibility(namespace string, list, preset []string) mesh.Visibility {
	if len(list) == 0 {
		list = preset
	}
	var v mesh.Visibility
	for _, n := range list {
		switch n = strings.TrimSpace(n); n {
		case "*":
			return mesh.Visibility{}
		case "~":
			return mesh.Visibility{None: true}
		case ".":
			v.Namespaces = append(v.Namespaces, namespace)
		case "":
		default:
			v.Namespaces = append(v.Namespaces, n)
		}
	}
	slices.Sort(v.Namespaces)
	v.Namespaces = slices.Compact(v.Namespaces)
	return v
}

// gatewayRef resolves the name of a gateway as written in namespace.
func gatewayRef(namespace, name string) string {
	if name == mesh.GatewayMesh {
		return name
	}
	ns, rest, found := strings.Cut(name, "/")
	switch {
	case !found:
		return namespace + "/" + name
	case ns == ".":
		return namespace + "/" + rest
	}
	return name
}

func gatewayRefs(namespace string, names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, gatewayRef(namespace, n))
	}
	return out
}

// prefixes reads addresses and ranges, which api has judged already.
func prefixes(list []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
		} else if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, single(a))
		}
	}
	return out
}

func single(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen())
}

// wellKnownTCP are ports whose protocols let the server speak first, so that they cannot be detected.
var wellKnownTCP = []uint16{25, 53, 3306, 27017}

// protocol tells what a port speaks by its declaration: appProtocol, then the name's beginning, then the number.
func protocol(transport, app, name string, number uint16) mesh.Protocol {
	if strings.EqualFold(transport, "UDP") {
		return mesh.UDP
	}
	if p, ok := protocolName(app); ok {
		return p
	}
	if app == "" {
		if strings.HasPrefix(strings.ToLower(name), "grpc-web") {
			return mesh.HTTP2
		}
		prefix, _, _ := strings.Cut(name, "-")
		if p, ok := protocolName(prefix); ok {
			return p
		}
	}
	if slices.Contains(wellKnownTCP, number) {
		return mesh.TCP
	}
	return mesh.Auto
}

func protocolName(name string) (mesh.Protocol, bool) {
	switch strings.ToLower(name) {
	case "http", "http_proxy", "kubernetes.io/ws":
		return mesh.HTTP, true
	case "http2", "kubernetes.io/h2c", "grpc-web":
		return mesh.HTTP2, true
	case "grpc":
		return mesh.GRPC, true
	case "tcp", "mongo", "redis", "mysql":
		return mesh.TCP, true
	case "tls":
		return mesh.TLS, true
	case "https", "kubernetes.io/wss":
		return mesh.HTTPS, true
	case "udp":
		return mesh.UDP, true
	}
	return mesh.Auto, false
}
