package source

import (
	"crypto/tls"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

func gateway(o *api.Object, g *networking.Gateway) *mesh.Gateway {
	out := &mesh.Gateway{Origin: origin(o), Namespace: o.Namespace, Name: o.Name, Selector: g.Selector}
	for i, s := range g.Servers {
		server := mesh.Server{
			Name: s.Name, Line: o.LineOf("spec", "servers", i), Bind: s.Bind, Port: uint16(s.Port.GetNumber()), TLS: serverTLS(s.Tls),
		}
		if server.Name == "" {
			server.Name = s.Port.GetName()
		}
		server.Protocol, _ = protocolName(s.Port.GetProtocol())
		for _, h := range s.Hosts {
			namespace, host, found := strings.Cut(h, "/")
			switch {
			case !found:
				namespace, host = "*", h
			case namespace == ".":
				namespace = o.Namespace
			}
			server.Hosts = append(server.Hosts, mesh.GatewayHost{Namespace: namespace, Host: strings.ToLower(host)})
		}
		out.Servers = append(out.Servers, server)
	}
	return out
}

func serverTLS(t *networking.ServerTLSSettings) *mesh.ServerTLS {
	if t == nil {
		return nil
	}
	out := &mesh.ServerTLS{
		Mode: t.Mode.String(), Redirect: t.HttpsRedirect, Credential: t.CredentialName, CertFile: t.ServerCertificate, KeyFile: t.PrivateKey,
		CAFile: t.CaCertificates, SubjectAltNames: t.SubjectAltNames,
		MinVersion: tlsVersion(t.MinProtocolVersion), MaxVersion: tlsVersion(t.MaxProtocolVersion),
	}
	for _, name := range t.CipherSuites {
		if number, ok := api.Cipher(name); ok {
			out.CipherSuites = append(out.CipherSuites, number)
		}
	}
	return out
}

func tlsVersion(v networking.ServerTLSSettings_TLSProtocol) uint16 {
	switch v {
	case networking.ServerTLSSettings_TLSV1_0:
		return tls.VersionTLS10
	case networking.ServerTLSSettings_TLSV1_1:
		return tls.VersionTLS11
	case networking.ServerTLSSettings_TLSV1_2:
		return tls.VersionTLS12
	case networking.ServerTLSSettings_TLSV1_3:
		return tls.VersionTLS13
	}
	return 0
}

func authn(o *api.Object, p *security.PeerAuthentication) *mesh.Authn {
	out := &mesh.Authn{Origin: origin(o), Namespace: o.Namespace, Name: o.Name, Selector: selector(p.Selector.GetMatchLabels()), Mode: mtlsMode(p.Mtls)}
	for port, m := range p.PortLevelMtls {
		if out.Ports == nil {
			out.Ports = map[uint16]mesh.MTLSMode{}
		}
		out.Ports[uint16(port)] = mtlsMode(m)
	}
	return out
}

func mtlsMode(m *security.PeerAuthentication_MutualTLS) mesh.MTLSMode {
	switch m.GetMode() {
	case security.PeerAuthentication_MutualTLS_DISABLE:
		return mesh.MTLSDisable
	case security.PeerAuthentication_MutualTLS_PERMISSIVE:
		return mesh.MTLSPermissive
	case security.PeerAuthentication_MutualTLS_STRICT:
		return mesh.MTLSStrict
	}
	return mesh.MTLSUnset
}

func authz(o *api.Object, p *security.AuthorizationPolicy) *mesh.Authz {
	out := &mesh.Authz{
		Origin: origin(o), Namespace: o.Namespace, Name: o.Name, Selector: selector(p.Selector.GetMatchLabels()), Action: p.Action.String(),
		Provider: p.GetProvider().GetName(),
	}
	out.DryRun, _ = strconv.ParseBool(o.Annotations["istio.io/dry-run"])
	for _, r := range p.Rules {
		rule := mesh.AuthzRule{}
		for _, f := range r.From {
			rule.From = append(rule.From, caller(o.Namespace, f.Source))
		}
		for _, t := range r.To {
			p := t.Operation
			rule.To = append(rule.To, mesh.AuthzOperation{
				Hosts: p.GetHosts(), NotHosts: p.GetNotHosts(), Methods: p.GetMethods(), NotMethods: p.GetNotMethods(),
				Paths: p.GetPaths(), NotPaths: p.GetNotPaths(), Ports: ports(p.GetPorts()), NotPorts: ports(p.GetNotPorts()),
			})
		}
		for _, w := range r.When {
			rule.When = append(rule.When, mesh.AuthzCondition{Key: w.Key, Values: w.Values, NotValues: w.NotValues})
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

// closed is what is in force of a policy that cannot be read: mutual TLS is demanded, or every request denied.
func closed(o *api.Object, u *api.Unreadable) mesh.Object {
	name := o.Name
	switch o.Kind {
	case api.KindPeerAuthentication:
		return &mesh.Authn{
			Origin: origin(o), Namespace: o.Namespace, Name: o.Name, Selector: selector(u.Selector), Mode: mesh.MTLSStrict, Unreadable: true,
		}
	case api.KindRequestAuthentication:
		name = o.Kind + " " + name // an AuthorizationPolicy may have the same one
	}
	return &mesh.Authz{
		Origin: origin(o), Namespace: o.Namespace, Name: name, Selector: selector(u.Selector), Action: "DENY", Rules: []mesh.AuthzRule{{}},
	}
}

func caller(namespace string, s *security.Source) mesh.AuthzSource {
	accounts := func(list []string) []string {
		var out []string
		for _, a := range list {
			if !strings.Contains(a, "/") {
				a = namespace + "/" + a
			}
			out = append(out, a)
		}
		return out
	}
	return mesh.AuthzSource{
		Principals: s.GetPrincipals(), NotPrincipals: s.GetNotPrincipals(),
		RequestPrincipals: s.GetRequestPrincipals(), NotRequestPrincipals: s.GetNotRequestPrincipals(),
		Namespaces: s.GetNamespaces(), NotNamespaces: s.GetNotNamespaces(),
		ServiceAccounts: accounts(s.GetServiceAccounts()), NotServiceAccounts: accounts(s.GetNotServiceAccounts()),
		TrustDomains: s.GetTrustDomains(), NotTrustDomains: s.GetNotTrustDomains(),
		IPs: prefixes(s.GetIpBlocks()), NotIPs: prefixes(s.GetNotIpBlocks()),
		RemoteIPs: prefixes(s.GetRemoteIpBlocks()), NotRemoteIPs: prefixes(s.GetNotRemoteIpBlocks()),
	}
}

func ports(list []string) []uint16 {
	var out []uint16
	for _, s := range list {
		if n, err := strconv.ParseUint(s, 10, 16); err == nil {
			out = append(out, uint16(n))
		}
	}
	return out
}
