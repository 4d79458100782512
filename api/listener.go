package api

import (
	"net/netip"
	"slices"
	"strings"

	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

func validateGatewayClass(c *check) {
	if ref := c.Spec.(*gateway.GatewayClass).Spec.ParametersRef; ref != nil {
		c.warn("spec.parametersRef", "is accepted but not acted on yet; name parameters in a Gateway's infrastructure.parametersRef")
	}
}

// validateListeners judges a Gateway of the Gateway API.
func validateListeners(c *check) {
	g := c.Spec.(*gateway.Gateway)
	for i := range g.Spec.Listeners {
		c.listener(in("spec.listeners", i), &g.Spec.Listeners[i])
		c.listenerTwins(g.Spec.Listeners, i)
	}
	for i, a := range g.Spec.Addresses {
		c.gatewayAddress(in("spec.addresses", i), a, g.Spec.Addresses[:i])
	}
	if s := g.Spec.DefaultScope; s != "" && s != gateway.GatewayDefaultScopeNone {
		c.warn("spec.defaultScope", "is accepted but not acted on yet; it has no effect")
	}
	if l := g.Spec.AllowedListeners; l != nil && l.Namespaces != nil && l.Namespaces.From != nil && *l.Namespaces.From != gateway.NamespacesFromNone {
		c.warn("spec.allowedListeners", "ListenerSets are not read yet; it has no effect")
	}
	if x := g.Spec.Infrastructure; x != nil {
		labels := map[string]string{}
		for k, v := range x.Labels {
			labels[string(k)] = string(v)
		}
		c.labels("spec.infrastructure.labels", labels)
	}
}

func (c *check) listener(p string, l *gateway.Listener) {
	encrypted := l.Protocol == gateway.HTTPSProtocolType || l.Protocol == gateway.TLSProtocolType
	plain := l.Protocol == gateway.HTTPProtocolType || l.Protocol == gateway.TCPProtocolType || l.Protocol == gateway.UDPProtocolType
	switch {
	case plain && l.TLS != nil:
		c.fault(in(p, "tls"), "protocol %s is not encrypted; write HTTPS, or remove tls", l.Protocol)
	case l.Protocol == gateway.TLSProtocolType && (l.TLS == nil || l.TLS.Mode == nil):
		c.fault(p, "protocol TLS needs tls with a mode")
	case l.Protocol == gateway.HTTPSProtocolType && l.TLS != nil && l.TLS.Mode != nil && *l.TLS.Mode != gateway.TLSModeTerminate:
		c.fault(in(p, "tls", "mode"), "HTTPS is decrypted here: write Terminate, or TLS as the protocol")
	}
	if t := l.TLS; t != nil && encrypted && (t.Mode == nil || *t.Mode == gateway.TLSModeTerminate) && len(t.CertificateRefs)+len(t.Options) == 0 {
		c.fault(in(p, "tls"), "certificateRefs is missing; name the Secret with the certificate")
	}
	if !encrypted && l.Protocol != gateway.HTTPProtocolType && l.Hostname != nil && *l.Hostname != "" && plain {
		c.fault(in(p, "hostname"), "protocol %s knows no host names; remove it", l.Protocol)
	}
}

func (c *check) listenerTwins(list []gateway.Listener, i int) {
	l := &list[i]
	for j := range list[:i] {
		o := &list[j]
		switch {
		case o.Name == l.Name:
			c.fault(in("spec.listeners", i, "name"), "two listeners are named %q; rename one", l.Name)
		case o.Port == l.Port && o.Protocol == l.Protocol && ListenerHost(o) == ListenerHost(l):
			c.fault(in("spec.listeners", i), "opens port %d for the same host as listener %s; remove one", l.Port, o.Name)
		}
	}
}

// ListenerHost is the host of a listener, "*" for any.
func ListenerHost(l *gateway.Listener) string {
	if l.Hostname == nil || *l.Hostname == "" {
		return "*"
	}
	return string(*l.Hostname)
}

func (c *check) gatewayAddress(p string, a gateway.GatewaySpecAddress, before []gateway.GatewaySpecAddress) {
	kind := gateway.IPAddressType
	if a.Type != nil {
		kind = *a.Type
	}
	_, err := netip.ParseAddr(a.Value)
	switch {
	case kind == gateway.IPAddressType && a.Value != "" && err != nil:
		c.fault(in(p, "value"), "%q is not an address", a.Value)
	case kind == gateway.HostnameAddressType && a.Value != "" && !isHost(a.Value, true):
		c.fault(in(p, "value"), "%q is not a host", a.Value)
	}
	if a.Value != "" && slices.ContainsFunc(before, func(o gateway.GatewaySpecAddress) bool {
		return o.Value == a.Value && (o.Type == nil) == (a.Type == nil) && (o.Type == nil || *o.Type == kind)
	}) {
		c.fault(in(p, "value"), "%s is listed twice; remove one", a.Value)
	}
}

// parents judges what a route is attached to: several references to one parent are told apart by section or port.
func (c *check) parents(refs []gateway.ParentReference) {
	whole := func(r *gateway.ParentReference) string {
		return strings.Join([]string{value(r.Group), value(r.Kind), value(r.Namespace), string(r.Name)}, "/")
	}
	for i := range refs {
		r := &refs[i]
		for j := range refs[:i] {
			o := &refs[j]
			if whole(o) != whole(r) {
				continue
			}
			p := in("spec.parentRefs", i)
			part := func(r *gateway.ParentReference) bool { return value(r.SectionName) != "" || r.Port != nil }
			switch {
			case !part(r) || !part(o):
				c.fault(p, "refers to %s again; add sectionName or port to both, or remove one", r.Name)
			case value(r.SectionName) == value(o.SectionName) && portOf(r) == portOf(o):
				c.fault(p, "refers to the same part of %s again; remove one", r.Name)
			}
			break
		}
	}
}

func portOf(r *gateway.ParentReference) int32 {
	if r.Port == nil {
		return 0
	}
	return *r.Port
}

// value is what a text points to; empty for nil.
func value[T ~string](p *T) string {
	if p == nil {
		return ""
	}
	return string(*p)
}
