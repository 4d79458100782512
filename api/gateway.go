package api

import (
	"crypto/tls"
	"encoding/pem"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	core "k8s.io/api/core/v1"
)

// gatewayProtocols are the protocols of a gateway's port.
var gatewayProtocols = []string{"HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "MONGO", "TCP", "TLS"}

func validateGateway(c *check) {
	g := c.Spec.(*networking.Gateway)
	c.labels("spec.selector", g.Selector)
	if len(g.Servers) == 0 {
		c.fault("spec", "servers is missing; a gateway opens at least one port")
	}
	names := map[string]bool{}
	for i, s := range g.Servers {
		p := in("spec.servers", i)
		if s.Port == nil {
			continue
		}
		c.port(in(p, "port", "number"), s.Port.Number)
		protocol := strings.ToUpper(s.Port.Protocol)
		if !slices.Contains(gatewayProtocols, protocol) {
			c.fault(in(p, "port", "protocol"), "%q is not a protocol of a gateway; write one of %s", s.Port.Protocol, strings.Join(gatewayProtocols, ", "))
		}
		switch {
		case s.Port.Name == "":
			c.fault(in(p, "port", "name"), "is empty; name the port")
		case names[s.Port.Name]:
			c.fault(in(p, "port", "name"), "two servers name their port %q; rename one", s.Port.Name)
		}
		names[s.Port.Name] = true
		if s.Bind != "" && !isIP(s.Bind) && !strings.HasPrefix(s.Bind, "unix://") {
			c.fault(in(p, "bind"), "%q is neither an address nor unix:///path", s.Bind)
		}
		c.serverHosts(in(p, "hosts"), s.Hosts)
		c.serverTLS(p, protocol, s.Tls)
	}
}

func (c *check) serverHosts(p string, hosts []string) {
	if len(hosts) == 0 {
		c.fault(p, "is empty; name the hosts, or * for all")
	}
	for i, h := range hosts {
		namespace, host, found := strings.Cut(h, "/")
		if !found {
			namespace, host = "*", h
		}
		switch {
		case namespace != "*" && namespace != "." && !dnsLabel.MatchString(namespace):
			c.fault(in(p, i), "%q is not a namespace; write a name, . for this one or * for all before the /", namespace)
		case !isHost(host, true) && !isIP(host):
			c.fault(in(p, i), "%q is not a host; write a DNS name, *.a.name or *", host)
		}
	}
}

func (c *check) serverTLS(p, protocol string, t *networking.ServerTLSSettings) {
	encrypted := protocol == "HTTPS" || protocol == "TLS"
	tp := in(p, "tls")
	sources := c.credentials(tp, t)
	switch {
	case t == nil && encrypted:
		c.fault(p, "protocol %s needs tls; add tls with a mode", protocol)
		return
	case t == nil:
		return
	case !encrypted && (c.has(in(tp, "mode")) || t.CredentialName != "" || t.ServerCertificate != "") && !t.HttpsRedirect:
		c.fault(tp, "protocol %s is not encrypted; write HTTPS or TLS as the port's protocol, or remove tls", protocol)
		return
	case !encrypted:
		return
	case t.HttpsRedirect:
		c.fault(in(tp, "httpsRedirect"), "redirects plain HTTP and stands on a port of protocol HTTP")
	}
	if t.MinProtocolVersion > t.MaxProtocolVersion && t.MaxProtocolVersion != networking.ServerTLSSettings_TLS_AUTO {
		c.fault(in(tp, "minProtocolVersion"), "%s is above maxProtocolVersion %s", t.MinProtocolVersion, t.MaxProtocolVersion)
	}
	switch t.Mode {
	case networking.ServerTLSSettings_PASSTHROUGH, networking.ServerTLSSettings_AUTO_PASSTHROUGH:
		if sources > 0 {
			c.fault(tp, "mode %s does not decrypt and needs no certificate; remove it, or write SIMPLE", t.Mode)
		}
		if t.Mode == networking.ServerTLSSettings_AUTO_PASSTHROUGH {
			c.warn(in(tp, "mode"), "AUTO_PASSTHROUGH joins networks, of which a mesh has one so far: the port stays closed; "+
				"write PASSTHROUGH with a VirtualService, or remove the server")
		}
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		if sources > 0 || t.CaCertificates != "" {
			c.fault(tp, "mode ISTIO_MUTUAL uses the mesh's own certificates; remove the others, or write MUTUAL")
		}
	default:
		if sources == 0 {
			c.fault(tp, "mode %s needs a certificate; add credentialName with a Secret's name, or serverCertificate and privateKey", t.Mode)
		}
		if (t.ServerCertificate == "") != (t.PrivateKey == "") {
			c.fault(tp, "serverCertificate and privateKey go together; add the other one")
		}
		if t.Mode == networking.ServerTLSSettings_MUTUAL && t.ServerCertificate != "" && t.CaCertificates == "" {
			c.fault(tp, "mode MUTUAL needs caCertificates to verify clients; add the file")
		}
	}
	for i, s := range t.CipherSuites {
		if _, ok := Cipher(s); !ok {
			c.warn(in(tp, "cipherSuites", i), "%q is not a cipher suite that we offer; it is left out", s)
		}
	}
}

// credentials judges in how many ways a certificate is named.
func (c *check) credentials(p string, t *networking.ServerTLSSettings) (sources int) {
	for _, set := range []bool{
		t.GetCredentialName() != "", len(t.GetCredentialNames()) > 0, len(t.GetTlsCertificates()) > 0, t.GetServerCertificate() != "" || t.GetPrivateKey() != "",
	} {
		if set {
			sources++
		}
	}
	if sources > 1 {
		c.fault(p, "names more than one certificate: keep one of credentialName, credentialNames, tlsCertificates and the files")
	}
	return sources
}

// Cipher returns crypto/tls's number of a cipher suite named as Istio does: in OpenSSL's words.
func Cipher(name string) (uint16, bool) {
	switch name {
	case "ECDHE-ECDSA-AES256-GCM-SHA384":
		return tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, true
	case "ECDHE-RSA-AES256-GCM-SHA384":
		return tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, true
	case "ECDHE-ECDSA-AES128-GCM-SHA256":
		return tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true
	case "ECDHE-RSA-AES128-GCM-SHA256":
		return tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, true
	case "ECDHE-ECDSA-CHACHA20-POLY1305":
		return tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, true
	case "ECDHE-RSA-CHACHA20-POLY1305":
		return tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, true
	case "AES256-GCM-SHA384":
		return tls.TLS_RSA_WITH_AES_256_GCM_SHA384, true
	case "AES128-GCM-SHA256":
		return tls.TLS_RSA_WITH_AES_128_GCM_SHA256, true
	}
	return 0, false
}

// PEM is what a Secret for TLS holds, whichever of Istio's two ways it is written.
type PEM struct{ Chain, Key, Roots []byte }

// Credential returns the PEM texts of a Secret: tls.crt, tls.key and ca.crt, or cert, key and cacert.
func Credential(s *core.Secret) PEM {
	pick := func(names ...string) []byte {
		for _, n := range names {
			if text, ok := s.StringData[n]; ok {
				return []byte(text)
			}
			if raw, ok := s.Data[n]; ok {
				return raw
			}
		}
		return nil
	}
	return PEM{pick("tls.crt", "cert"), pick("tls.key", "key"), pick("ca.crt", "cacert")}
}

func validateSecret(c *check) {
	s := c.Spec.(*core.Secret)
	switch s.Type {
	case core.SecretTypeTLS, core.SecretTypeOpaque, "":
	default:
		c.fault("type", "%q is not a type that a mesh reads; write kubernetes.io/tls, or leave it out", s.Type)
		return
	}
	p := Credential(s)
	switch {
	case p.Chain == nil && p.Key == nil && p.Roots == nil && s.Type == core.SecretTypeTLS:
		c.fault("", "has neither tls.crt nor tls.key; add both under data")
		return
	case p.Chain == nil && p.Key == nil && p.Roots == nil:
		c.warn("", "holds no certificate (tls.crt and tls.key, or cert and key, or cacert); it has no effect")
		return
	case (p.Chain == nil) != (p.Key == nil):
		c.fault("", "a certificate and its key go together; add the other one")
		return
	}
	if p.Chain != nil {
		if _, err := tls.X509KeyPair(p.Chain, p.Key); err != nil {
			c.fault("", "the certificate and the key cannot be used: %s", strings.TrimPrefix(err.Error(), "tls: "))
		}
	}
	if p.Roots != nil {
		if block, _ := pem.Decode(p.Roots); block == nil || block.Type != "CERTIFICATE" {
			c.fault("", "the roots are not a certificate in PEM form")
		}
	}
	for name := range s.Data {
		if !slices.Contains([]string{"tls.crt", "tls.key", "ca.crt", "cert", "key", "cacert"}, name) {
			c.warn(in("data", name), "is accepted but not acted on yet; it has no effect")
		}
	}
}
