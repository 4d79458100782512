package envoy

import (
	"crypto/tls"
	"regexp"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	proxyprotocol "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	rawbuffer "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlssocket "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lateen-mesh/lateen/plan"
)

// The names of transport sockets.
const (
	socketTLS   = "envoy.transport_sockets.tls"
	socketRaw   = "envoy.transport_sockets.raw_buffer"
	socketProxy = "envoy.transport_sockets.upstream_proxy_protocol"
)

// The secrets that an agent serves beside Envoy, and the certificate provider in a gRPC client's bootstrap.
const (
	secretDefault = "default"
	secretRoots   = "ROOTCA"
	providerGRPC  = "default"
)

// The protocols that mesh peers negotiate, as in Istio.
const (
	alpnHTTP10 = "istio-http/1.0"
	alpnHTTP11 = "istio-http/1.1"
	alpnHTTP2  = "istio-h2"
	alpnPeer   = "istio-peer-exchange"
	alpnTCP    = "istio"
)

func socketOf(name string, config proto.Message) *core.TransportSocket {
	return &core.TransportSocket{Name: name, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: pack(config)}}
}

func tlsSocket(config proto.Message) *core.TransportSocket { return socketOf(socketTLS, config) }

func rawSocket() *core.TransportSocket { return socketOf(socketRaw, &rawbuffer.RawBuffer{}) }

// encrypt says how a cluster's connections are protected.
func (e *encoder) encrypt(m *cluster.Cluster, p *plan.Cluster) {
	wrap := func(s *core.TransportSocket) *core.TransportSocket {
		if p.ProxyProtocol == 0 {
			return s
		}
		config := &core.ProxyProtocolConfig{}
		if p.ProxyProtocol == 2 {
			config.Version = core.ProxyProtocolConfig_V2
		}
		return socketOf(socketProxy, &proxyprotocol.ProxyProtocolUpstreamTransport{Config: config, TransportSocket: s})
	}
	switch p.TLS.Mode {
	case plan.ClientTLSAuto:
		m.TransportSocketMatches = []*cluster.Cluster_TransportSocketMatch{
			{Name: "tlsMode-istio", Match: fields(tlsModeKey, tlsModeIstio), TransportSocket: wrap(tlsSocket(e.meshClient(p)))},
			{Name: "tlsMode-disabled", Match: &structpb.Struct{}, TransportSocket: wrap(rawSocket())},
		}
	case plan.ClientTLSMesh:
		m.TransportSocket = wrap(tlsSocket(e.meshClient(p)))
	case plan.ClientTLSSimple, plan.ClientTLSMutual:
		m.TransportSocket = wrap(tlsSocket(e.ordinaryClient(p)))
	default:
		if p.ProxyProtocol != 0 {
			m.TransportSocket = wrap(rawSocket())
		}
	}
}

// meshClient is the client side of mesh mTLS.
func (e *encoder) meshClient(p *plan.Cluster) *tlssocket.UpstreamTlsContext {
	alpn := []string{alpnTCP} // never istio-peer-exchange: it promises a header that plain Envoy neither sends nor reads
	switch p.Protocol {
	case plan.ProtocolHTTP2, plan.ProtocolGRPC:
		alpn = []string{alpnHTTP2, alpnTCP, "h2"}
	case plan.ProtocolHTTP:
		alpn = []string{alpnHTTP11, alpnTCP, "http/1.1"}
		if p.UseClientProtocol {
			alpn = []string{alpnTCP}
		}
	default:
	}
	return &tlssocket.UpstreamTlsContext{Sni: p.TLS.SNI, CommonTlsContext: &tlssocket.CommonTlsContext{
		TlsParams: &tlssocket.TlsParameters{
			TlsMinimumProtocolVersion: tlssocket.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlssocket.TlsParameters_TLSv1_3,
		},
		AlpnProtocols:                  alpn,
		TlsCertificateSdsSecretConfigs: []*tlssocket.SdsSecretConfig{e.agentSecret(secretDefault)},
		ValidationContextType:          e.meshPeers(typedNames(tlssocket.SubjectAltNameMatcher_URI, e.identities(p.TLS.Identities))),
	}}
}

// identities are who may be at the other end: those listed, else anybody of the mesh's trust domain.
func (e *encoder) identities(list []string) []*matcher.StringMatcher {
	if len(list) == 0 {
		return []*matcher.StringMatcher{text(plan.StringMatch{Kind: plan.MatchPrefix, Value: "spiffe://" + e.TrustDomain + "/"})}
	}
	var out []*matcher.StringMatcher
	for _, id := range list {
		out = append(out, text(plan.StringMatch{Kind: plan.MatchExact, Value: id}))
	}
	return out
}

func typedNames(kind tlssocket.SubjectAltNameMatcher_SanType, list []*matcher.StringMatcher) []*tlssocket.SubjectAltNameMatcher {
	var out []*tlssocket.SubjectAltNameMatcher
	for _, m := range list {
		out = append(out, &tlssocket.SubjectAltNameMatcher{SanType: kind, Matcher: m})
	}
	return out
}

// meshPeers verifies against the agent's roots.
func (e *encoder) meshPeers(names []*tlssocket.SubjectAltNameMatcher) *tlssocket.CommonTlsContext_CombinedValidationContext {
	return &tlssocket.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlssocket.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         &tlssocket.CertificateValidationContext{MatchTypedSubjectAltNames: names},
			ValidationContextSdsSecretConfig: e.agentSecret(secretRoots),
		},
	}
}

// agentSecret is a secret that the agent beside Envoy serves.
func (e *encoder) agentSecret(name string) *tlssocket.SdsSecretConfig {
	path := e.AgentSocket
	if !strings.HasPrefix(path, "unix:") {
		path = "unix:" + path
	}
	return &tlssocket.SdsSecretConfig{Name: name, SdsConfig: &core.ConfigSource{
		ResourceApiVersion: core.ApiVersion_V3, InitialFetchTimeout: duration(0),
		ConfigSourceSpecifier: &core.ConfigSource_ApiConfigSource{ApiConfigSource: &core.ApiConfigSource{
			ApiType: core.ApiConfigSource_GRPC, TransportApiVersion: core.ApiVersion_V3, SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*core.GrpcService{{TargetSpecifier: &core.GrpcService_GoogleGrpc_{
				GoogleGrpc: &core.GrpcService_GoogleGrpc{TargetUri: path, StatPrefix: "sdsstat"},
			}}},
		}},
	}}
}

// streamSecret is a secret that the control plane serves.
func streamSecret(name string) *tlssocket.SdsSecretConfig {
	config := ads()
	config.InitialFetchTimeout = nil // Envoy's, of 15 s: a secret that does not exist must not hold up everything else
	return &tlssocket.SdsSecretConfig{Name: name, SdsConfig: config}
}

// ordinaryClient is the client side of TLS with a server outside of the mesh.
func (e *encoder) ordinaryClient(p *plan.Cluster) *tlssocket.UpstreamTlsContext {
	t := &p.TLS
	c := &tlssocket.CommonTlsContext{AlpnProtocols: t.ALPN}
	if len(t.ALPN) == 0 {
		switch p.Protocol {
		case plan.ProtocolHTTP2, plan.ProtocolGRPC:
			c.AlpnProtocols = []string{"h2"}
		case plan.ProtocolHTTP:
			c.AlpnProtocols = []string{"http/1.1"}
		default:
		}
	}
	switch {
	case t.Mode == plan.ClientTLSMutual && t.Secret != "":
		c.TlsCertificateSdsSecretConfigs = []*tlssocket.SdsSecretConfig{streamSecret(t.Secret)}
	case t.CertFile != "":
		c.TlsCertificates = []*tlssocket.TlsCertificate{{CertificateChain: file(t.CertFile), PrivateKey: file(t.KeyFile)}}
	}
	out := &tlssocket.UpstreamTlsContext{Sni: t.SNI, CommonTlsContext: c}
	if t.InsecureSkipVerify {
		return out
	}
	v := &tlssocket.CertificateValidationContext{}
	for _, name := range t.Identities {
		kind := tlssocket.SubjectAltNameMatcher_DNS
		if strings.Contains(name, "://") {
			kind = tlssocket.SubjectAltNameMatcher_URI
		}
		v.MatchTypedSubjectAltNames = append(v.MatchTypedSubjectAltNames,
			&tlssocket.SubjectAltNameMatcher{SanType: kind, Matcher: text(plan.StringMatch{Kind: plan.MatchExact, Value: name})})
	}
	if len(t.Identities) == 0 && t.SNI != "" {
		v.MatchTypedSubjectAltNames = typedNames(tlssocket.SubjectAltNameMatcher_DNS, []*matcher.StringMatcher{
			text(plan.StringMatch{Kind: plan.MatchExact, Value: t.SNI}),
		})
	}
	if t.Secret != "" {
		c.ValidationContextType = &tlssocket.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlssocket.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: v, ValidationContextSdsSecretConfig: streamSecret(t.Secret + rootsSuffix),
			},
		}
		return out
	}
	v.TrustedCa = file(e.SystemRoots)
	if t.CAFile != "" {
		v.TrustedCa = file(t.CAFile)
	}
	c.ValidationContextType = &tlssocket.CommonTlsContext_ValidationContext{ValidationContext: v}
	return out
}

func file(path string) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: path}}
}

// grpcTLS is mesh mTLS for a gRPC client, whose bootstrap says where certificates come from (gRFC A29).
func (e *encoder) grpcTLS(t *plan.ClientTLS) *tlssocket.UpstreamTlsContext {
	instance := &tlssocket.CertificateProviderPluginInstance{InstanceName: providerGRPC, CertificateName: secretDefault}
	roots := &tlssocket.CertificateProviderPluginInstance{InstanceName: providerGRPC, CertificateName: secretRoots}
	return &tlssocket.UpstreamTlsContext{Sni: t.SNI, CommonTlsContext: &tlssocket.CommonTlsContext{
		TlsCertificateProviderInstance: instance,
		ValidationContextType: &tlssocket.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlssocket.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: &tlssocket.CertificateValidationContext{
					CaCertificateProviderInstance: roots,
					MatchSubjectAltNames:          e.identities(t.Identities), //nolint:staticcheck // the only one that gRPC reads
				},
			},
		},
	}}
}

// meshServer is the server side of mesh mTLS; alpn is what is offered to peers that negotiate.
func (e *encoder) meshServer(alpn []string, names []string) *tlssocket.DownstreamTlsContext {
	var peers []*matcher.StringMatcher
	for _, n := range names {
		peers = append(peers, text(plan.StringMatch{Kind: plan.MatchExact, Value: n}))
	}
	if len(peers) == 0 {
		peers = []*matcher.StringMatcher{regexText("spiffe://" + regexp.QuoteMeta(e.TrustDomain) + "/.*")}
	}
	return &tlssocket.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true),
		CommonTlsContext: &tlssocket.CommonTlsContext{
			TlsParams: &tlssocket.TlsParameters{
				TlsMinimumProtocolVersion: tlssocket.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlssocket.TlsParameters_TLSv1_3,
			},
			AlpnProtocols:                  alpn,
			TlsCertificateSdsSecretConfigs: []*tlssocket.SdsSecretConfig{e.agentSecret(secretDefault)},
			ValidationContextType:          e.meshPeers(typedNames(tlssocket.SubjectAltNameMatcher_URI, peers)),
		},
	}
}

// terminate is the server side of a gateway's TLS.
func (e *encoder) terminate(c *plan.Chain) *tlssocket.DownstreamTlsContext {
	t := &c.TLS
	alpn := t.ALPN
	if len(alpn) == 0 && c.HTTP != nil {
		alpn = []string{"h2", "http/1.1"}
	}
	if t.Mode == plan.TLSMesh {
		return e.meshServer(alpn, t.SubjectAltNames)
	}
	out := &tlssocket.DownstreamTlsContext{CommonTlsContext: &tlssocket.CommonTlsContext{
		AlpnProtocols: alpn,
		TlsParams: &tlssocket.TlsParameters{
			TlsMinimumProtocolVersion: version(t.MinVersion, tlssocket.TlsParameters_TLSv1_2),
			TlsMaximumProtocolVersion: version(t.MaxVersion, tlssocket.TlsParameters_TLSv1_3),
			CipherSuites:              suites(t.CipherSuites),
		},
	}}
	if t.Secret != "" {
		out.CommonTlsContext.TlsCertificateSdsSecretConfigs = []*tlssocket.SdsSecretConfig{streamSecret(t.Secret)}
	} else {
		out.CommonTlsContext.TlsCertificates = []*tlssocket.TlsCertificate{{CertificateChain: file(t.CertFile), PrivateKey: file(t.KeyFile)}}
	}
	if t.Mode != plan.TLSMutual && t.Mode != plan.TLSOptional {
		return out
	}
	out.RequireClientCertificate = wrapperspb.Bool(t.Mode == plan.TLSMutual)
	v := &tlssocket.CertificateValidationContext{}
	for _, n := range t.SubjectAltNames {
		kind := tlssocket.SubjectAltNameMatcher_DNS
		if strings.Contains(n, "://") {
			kind = tlssocket.SubjectAltNameMatcher_URI
		}
		v.MatchTypedSubjectAltNames = append(v.MatchTypedSubjectAltNames,
			&tlssocket.SubjectAltNameMatcher{SanType: kind, Matcher: text(plan.StringMatch{Kind: plan.MatchExact, Value: n})})
	}
	if t.Secret == "" {
		v.TrustedCa = file(t.CAFile)
		out.CommonTlsContext.ValidationContextType = &tlssocket.CommonTlsContext_ValidationContext{ValidationContext: v}
		return out
	}
	out.CommonTlsContext.ValidationContextType = &tlssocket.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlssocket.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: v, ValidationContextSdsSecretConfig: streamSecret(t.Secret + rootsSuffix),
		},
	}
	return out
}

func version(v uint16, otherwise tlssocket.TlsParameters_TlsProtocol) tlssocket.TlsParameters_TlsProtocol {
	switch v {
	case tls.VersionTLS10:
		return tlssocket.TlsParameters_TLSv1_0
	case tls.VersionTLS11:
		return tlssocket.TlsParameters_TLSv1_1
	case tls.VersionTLS12:
		return tlssocket.TlsParameters_TLSv1_2
	case tls.VersionTLS13:
		return tlssocket.TlsParameters_TLSv1_3
	default:
		return otherwise
	}
}

// suiteNames are BoringSSL's names of the cipher suites of TLS 1.2; those of 1.3 cannot be chosen.
var suiteNames = map[uint16]string{
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:       "ECDHE-ECDSA-AES256-GCM-SHA384",
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:         "ECDHE-RSA-AES256-GCM-SHA384",
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:       "ECDHE-ECDSA-AES128-GCM-SHA256",
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:         "ECDHE-RSA-AES128-GCM-SHA256",
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: "ECDHE-ECDSA-CHACHA20-POLY1305",
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:   "ECDHE-RSA-CHACHA20-POLY1305",
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA:          "ECDHE-ECDSA-AES128-SHA",
	tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA:            "ECDHE-RSA-AES128-SHA",
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA:          "ECDHE-ECDSA-AES256-SHA",
	tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA:            "ECDHE-RSA-AES256-SHA",
	tls.TLS_RSA_WITH_AES_256_GCM_SHA384:               "AES256-GCM-SHA384",
	tls.TLS_RSA_WITH_AES_128_GCM_SHA256:               "AES128-GCM-SHA256",
	tls.TLS_RSA_WITH_AES_128_CBC_SHA:                  "AES128-SHA",
	tls.TLS_RSA_WITH_AES_256_CBC_SHA:                  "AES256-SHA",
}

func suites(list []uint16) []string {
	var out []string
	for _, id := range list {
		if name := suiteNames[id]; name != "" {
			out = append(out, name)
		}
	}
	return out
}

// secret writes a certificate with its key, and the roots that clients are held against as a secret of their own.
func (e *encoder) secret(p *plan.Secret) []Resource {
	if e.flavour == GRPC {
		return nil
	}
	var out []Resource
	if len(p.Chain) > 0 {
		out = append(out, Resource{TypeURL: TypeURL(plan.KindSecret), Name: p.Name, Message: &tlssocket.Secret{
			Name: p.Name, Type: &tlssocket.Secret_TlsCertificate{TlsCertificate: &tlssocket.TlsCertificate{
				CertificateChain: inlineBytes(p.Chain), PrivateKey: inlineBytes(p.Key),
			}},
		}})
	}
	if len(p.Roots) > 0 {
		name := p.Name + rootsSuffix
		out = append(out, Resource{TypeURL: TypeURL(plan.KindSecret), Name: name, Message: &tlssocket.Secret{
			Name: name, Type: &tlssocket.Secret_ValidationContext{ValidationContext: &tlssocket.CertificateValidationContext{
				TrustedCa: inlineBytes(p.Roots),
			}},
		}})
	}
	return out
}

func inlineBytes(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}
