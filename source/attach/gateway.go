package attach

import (
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

// Gateway is a Gateway of one of our classes.
type Gateway struct {
	Object    *api.Object
	Spec      *gateway.GatewaySpec
	Listeners []*Listener
	// Manual: its workloads run already, behind the Service that an address of type Hostname names; we deploy none.
	Manual bool
	// Behind is that Service; nil if there is none.
	Behind   *mesh.Service
	accepted Verdict
}

// Deployed reports whether workloads are to be made for the gateway.
func (g *Gateway) Deployed() bool { return !g.Manual && !g.accepted.bad() }

// Elsewhere reports whether workloads that run already carry the gateway, and none are to be made. Neither this nor Deployed: it
// has a fault, such as an address that names no Service.
func (g *Gateway) Elsewhere() bool { return g.Manual && !g.accepted.bad() }

// Listener is one port of a Gateway for one host.
type Listener struct {
	*gateway.Listener
	// Attached counts the routes.
	Attached int32
	// name is that by which routes are bound to it: "namespace/gateway/listener".
	name                           string
	kinds                          []gateway.RouteGroupKind
	accepted, resolved, conflicted Verdict
	selector                       labels.Selector // of namespaces; nil unless asked for
}

// Open reports whether the listener takes connections.
func (l *Listener) Open() bool { return !l.accepted.bad() && !l.conflicted.bad() && !l.noCertificate() }

// noCertificate: TLS cannot be terminated. Kinds of routes that are not known leave a listener open.
func (l *Listener) noCertificate() bool {
	return l.resolved.bad() && l.resolved.Reason != string(gateway.ListenerReasonInvalidRouteKinds)
}

func (j *job) gateway(o *api.Object, whole *gateway.Gateway) *Gateway {
	g := &Gateway{Object: o, Spec: &whole.Spec}
	j.addresses(g)
	if x := g.Spec.Infrastructure; x != nil && x.ParametersRef != nil {
		ref := x.ParametersRef
		field := []any{"spec", "infrastructure", "parametersRef"}
		switch {
		case ref.Group != "" || ref.Kind != api.KindConfigMap:
			g.accepted.worse(string(gateway.GatewayReasonInvalidParameters),
				fmt.Sprintf("parameters are in a ConfigMap of the Gateway's namespace, not in a %s of the group %q", ref.Kind, ref.Group), field...)
		case j.Parameters != nil && !j.Parameters(o.Namespace, ref.Name):
			g.accepted.worse(string(gateway.GatewayReasonInvalidParameters),
				fmt.Sprintf("there is no ConfigMap %s/%s; apply it, or remove the reference", o.Namespace, ref.Name), field...)
		}
	}
	if g.Spec.TLS != nil {
		g.accepted.worse(string(gateway.GatewayReasonInvalid),
			"certificates of clients are not verified by listeners yet, nor shown to backends, and ignoring this would let anybody in; remove it", "spec", "tls")
	}
	for i := range g.Spec.Listeners {
		g.Listeners = append(g.Listeners, j.listener(o, &g.Spec.Listeners[i], i))
	}
	for i, l := range g.Listeners {
		for _, other := range g.Listeners {
			if other.Port == l.Port && other.Protocol != l.Protocol && !other.accepted.bad() && !l.accepted.bad() {
				l.conflicted.worse(string(gateway.ListenerReasonProtocolConflict),
					fmt.Sprintf("listener %s opens port %d for %s; use another port", other.Name, l.Port, other.Protocol), "spec", "listeners", i)
			}
		}
	}
	if !g.accepted.bad() && !slices.ContainsFunc(g.Listeners, func(l *Listener) bool { return !l.accepted.bad() && !l.conflicted.bad() }) {
		g.accepted.worse(string(gateway.GatewayReasonListenersNotValid), "no listener can be opened; see the status of each")
	}
	if servers := j.servers(g); len(servers) > 0 && !g.accepted.bad() {
		j.result.Made[o.Ref] = servers
	}
	return g
}

// addresses judges what a Gateway asks for.
func (j *job) addresses(g *Gateway) {
	for i, a := range g.Spec.Addresses {
		kind := gateway.IPAddressType
		if a.Type != nil {
			kind = *a.Type
		}
		field := []any{"spec", "addresses", i}
		switch {
		case a.Value == "":
		case kind == gateway.IPAddressType && i == 0:
		case kind == gateway.HostnameAddressType && g.Behind == nil:
			g.Manual = true
			host := strings.ToLower(a.Value)
			if name, _, qualified := strings.Cut(host, "."); !qualified {
				g.Behind = j.Service(g.Object.Namespace, name)
			} else {
				g.Behind = j.Host(host)
			}
			if g.Behind == nil {
				g.accepted.worse(string(gateway.GatewayReasonUnsupportedAddress),
					fmt.Sprintf("there is no Service %s, behind which the gateway should run; apply it, or leave the address out to have a gateway deployed", a.Value), field...)
			}
		default:
			g.accepted.worse(string(gateway.GatewayReasonUnsupportedAddress),
				fmt.Sprintf("%s %q: one address is supported, of type IPAddress, or of type Hostname for a gateway that runs already", kind, a.Value), field...)
		}
	}
}

// routeKinds are the kinds of routes that listeners take.
func routeKinds() []gateway.RouteGroupKind {
	group := gateway.Group(api.GroupGateway)
	return []gateway.RouteGroupKind{{Group: &group, Kind: api.KindHTTPRoute}, {Group: &group, Kind: api.KindGRPCRoute}}
}

func (j *job) listener(o *api.Object, spec *gateway.Listener, i int) *Listener {
	l := &Listener{Listener: spec, name: o.Namespace + "/" + o.Name + "/" + string(spec.Name), kinds: []gateway.RouteGroupKind{}}
	at := func(path ...any) []any { return append([]any{"spec", "listeners", i}, path...) }
	if spec.Protocol != gateway.HTTPProtocolType && spec.Protocol != gateway.HTTPSProtocolType {
		l.accepted.worse(string(gateway.ListenerReasonUnsupportedProtocol),
			fmt.Sprintf("protocol %s is not supported yet; write HTTP or HTTPS, or use a Gateway of networking.istio.io", spec.Protocol), at("protocol")...)
		return l
	}
	if reservedPort(spec.Port) {
		l.accepted.worse(string(gateway.ListenerReasonPortUnavailable),
			fmt.Sprintf("port %d is used by the gateway itself; choose another", spec.Port), at("port")...)
	}
	l.kinds = routeKinds()
	if a := spec.AllowedRoutes; a != nil {
		if len(a.Kinds) > 0 {
			l.kinds = slices.DeleteFunc(l.kinds, func(k gateway.RouteGroupKind) bool {
				return !slices.ContainsFunc(a.Kinds, func(x gateway.RouteGroupKind) bool { return same(x, k) })
			})
		}
		for n, x := range a.Kinds {
			if !slices.ContainsFunc(routeKinds(), func(k gateway.RouteGroupKind) bool { return same(x, k) }) {
				l.resolved.worse(string(gateway.ListenerReasonInvalidRouteKinds),
					fmt.Sprintf("%s is no kind of route that this listener takes; write HTTPRoute or GRPCRoute", x.Kind), at("allowedRoutes", "kinds", n)...)
			}
		}
		if n := a.Namespaces; n != nil && n.From != nil && *n.From == gateway.NamespacesFromSelector {
			s, err := meta.LabelSelectorAsSelector(n.Selector)
			if err != nil || n.Selector == nil {
				s = labels.Nothing()
				l.accepted.worse(string(gateway.ListenerReasonUnsupportedValue), "from: Selector needs a selector that can be read",
					at("allowedRoutes", "namespaces", "selector")...)
			}
			l.selector = s
		}
	}
	if spec.Protocol == gateway.HTTPSProtocolType {
		j.certificates(o, l, at)
	}
	return l
}

func same(a, b gateway.RouteGroupKind) bool {
	return or(a.Group, api.GroupGateway) == or(b.Group, api.GroupGateway) && a.Kind == b.Kind
}

// reservedPort reports whether a gateway's own servers have the port.
func reservedPort(port int32) bool {
	return slices.Contains([]int32{15000, 15020, 15021, 15090}, port)
}

func (j *job) certificates(o *api.Object, l *Listener, at func(...any) []any) {
	invalid := string(gateway.ListenerReasonInvalidCertificateRef)
	if l.TLS == nil || len(l.TLS.CertificateRefs) == 0 {
		l.resolved.worse(invalid, "certificateRefs is missing; name the Secret with the certificate", at("tls")...)
		return
	}
	for i, ref := range l.TLS.CertificateRefs {
		field := at("tls", "certificateRefs", i)
		namespace := or(ref.Namespace, o.Namespace)
		name := namespace + "/" + string(ref.Name)
		switch {
		case or(ref.Group, "") != "" || or(ref.Kind, api.KindSecret) != api.KindSecret:
			l.resolved.worse(invalid, fmt.Sprintf("certificates are in Secrets, not in a %s", or(ref.Kind, "")), field...)
			continue
		case !j.granted(api.KindGateway, o.Namespace, api.KindSecret, namespace, string(ref.Name)):
			l.resolved.worse(string(gateway.ListenerReasonRefNotPermitted),
				fmt.Sprintf("no ReferenceGrant in the namespace %s lets Gateways of %s use the Secret %s", namespace, o.Namespace, ref.Name), field...)
			continue
		}
		s := j.Secret(namespace, string(ref.Name))
		if s == nil {
			l.resolved.worse(invalid, fmt.Sprintf("there is no Secret %s that lateend may read; apply it", name), field...)
			continue
		}
		if pem := api.Credential(s); s.Type != "" && s.Type != core.SecretTypeTLS && s.Type != core.SecretTypeOpaque {
			l.resolved.worse(invalid, fmt.Sprintf("Secret %s is of type %s, not %s", name, s.Type, core.SecretTypeTLS), field...)
		} else if _, err := tls.X509KeyPair(pem.Chain, pem.Key); err != nil {
			l.resolved.worse(invalid, fmt.Sprintf("Secret %s has no certificate with its key: %v", name, err), field...)
		}
	}
}

// credential names the Secret of a listener; empty if it may not be used. A Secret that is not there is named, too, so
// that it is looked for.
func (j *job) credential(o *api.Object, l *Listener) string {
	if l.TLS == nil || len(l.TLS.CertificateRefs) == 0 {
		return ""
	}
	ref := l.TLS.CertificateRefs[0]
	namespace := or(ref.Namespace, o.Namespace)
	if or(ref.Group, "") != "" || or(ref.Kind, api.KindSecret) != api.KindSecret ||
		!j.granted(api.KindGateway, o.Namespace, api.KindSecret, namespace, string(ref.Name)) {
		return ""
	}
	return mesh.SecretAnywhere + namespace + "/" + string(ref.Name)
}

// servers are the gateways of the picture, one for each listener. A listener whose certificate is not there yet is among
// them: connections to it fail until it is.
func (j *job) servers(g *Gateway) []mesh.Object {
	var out []mesh.Object
	for i, l := range g.Listeners {
		if l.accepted.bad() || l.conflicted.bad() {
			continue
		}
		m := &mesh.Gateway{
			Origin: origin(g.Object), Namespace: g.Object.Namespace, Name: g.Object.Name + "/" + string(l.Name), Isolated: true,
			Selector: mesh.Labels{LabelGateway: LabelOf(g.Object.Name)}, Workloads: g.Object.Namespace,
		}
		m.Line = g.Object.LineOf("spec", "listeners", i)
		if g.Manual {
			if g.Behind == nil || len(g.Behind.Selector) == 0 {
				continue
			}
			m.Selector, m.Workloads = g.Behind.Selector, g.Behind.Namespace
		}
		server := mesh.Server{
			Name: string(l.Name), Line: m.Line, Port: uint16(l.Port), Protocol: mesh.HTTP,
			Hosts: []mesh.GatewayHost{{Namespace: "*", Host: api.ListenerHost(l.Listener)}},
		}
		if l.Protocol == gateway.HTTPSProtocolType {
			credential := j.credential(g.Object, l)
			if credential == "" {
				continue
			}
			server.Protocol, server.TLS = mesh.HTTPS, &mesh.ServerTLS{Mode: "SIMPLE", Credential: credential}
		}
		m.Servers = []mesh.Server{server}
		out = append(out, m)
	}
	return out
}

// takes reports whether a listener takes routes of a kind and namespace.
func (j *job) takes(g *Gateway, l *Listener, kind, namespace string) bool {
	if !slices.ContainsFunc(l.kinds, func(k gateway.RouteGroupKind) bool { return string(k.Kind) == kind }) {
		return false
	}
	from := gateway.NamespacesFromSame
	if a := l.AllowedRoutes; a != nil && a.Namespaces != nil && a.Namespaces.From != nil {
		from = *a.Namespaces.From
	}
	switch from {
	case gateway.NamespacesFromAll:
		return true
	case gateway.NamespacesFromSelector:
		set := labels.Set{core.LabelMetadataName: namespace}
		maps.Copy(set, j.Labels(namespace))
		return l.selector.Matches(set)
	default:
		return namespace == g.Object.Namespace
	}
}
