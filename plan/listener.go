package plan

import (
	"net/netip"
	"time"
)

// The names under which a proxy asks for listeners.
const (
	// ListenerInbound is a sidecar's inbound side: every port of its workload in one resource.
	ListenerInbound = "inbound"
	// ListenerGateway prefixes a gateway's listeners, "gateway|8080"; a gateway subscribes to all listeners of its
	// scope by wildcard.
	ListenerGateway = "gateway|"
)

// Direction is which way a listener's traffic goes.
type Direction uint8

// The directions.
const (
	Outbound Direction = iota // from the workload into the mesh
	Inbound                   // from the mesh to the workload
	Gateway                   // from outside into the mesh, on an address of our own
)

var directionNames = [...]string{"outbound", "inbound", "gateway"}

// String returns the direction's name in lower case.
func (d Direction) String() string { return directionNames[d] }

// Listener says what to do with connections that were captured or accepted at
// one place. An outbound listener is named by the original destination,
// "10.0.0.7:9080" ("[fd00::7]:9080"), or by host and port for clients that
// do without capture ("reviews.default.svc.cluster.local:9080"). It may be the
// answer of last resort for a destination that the mesh does not know.
type Listener struct {
	Name      string
	Direction Direction
	// Bind is the address to open, for gateways only; otherwise the zero value.
	Bind netip.AddrPort
	// Chains are tried in order; the first whose Match fits is obeyed. A connection that fits none is closed.
	Chains []Chain
	// Telemetry is how to tell what happened.
	Telemetry Telemetry
}

// ResourceName is the listener's name.
func (l *Listener) ResourceName() string { return l.Name }

// ResourceKind is KindListener.
func (l *Listener) ResourceKind() Kind { return KindListener }

// Chain is one way in which a listener treats a connection.
type Chain struct {
	Name  string
	Match ChainMatch
	// TLS is how the peer's encryption is met; ServerTLS zero value: plaintext only.
	TLS ServerTLS
	// Protocol is what to speak inside.
	Protocol Protocol
	// HTTP is how requests are treated when the protocol is, or is detected as, HTTP; nil: treat as bytes.
	HTTP *HTTP
	// TCP is where bytes go when the protocol is not HTTP; nil: refuse them.
	TCP *TCP
	// Authz is judged per connection, and again per request where requests are seen; nil: allow.
	Authz *Authz
	// Service is the destination service of this chain for telemetry; empty if it depends on the route.
	Service ServiceName
	Origin  Origin
}

// ChainMatch is a conjunction; an empty field matches everything.
type ChainMatch struct {
	Ports        []uint16       // original destination ports
	SNI          []string       // exact, or "*.suffix", lower case; needs a TLS ClientHello
	Destinations []netip.Prefix // original destination addresses
	Sources      []netip.Prefix // peer addresses
}

// TLSMode is how a chain meets encryption.
type TLSMode uint8

// The modes of ServerTLS.
const (
	TLSNone        TLSMode = iota // plaintext; TLS bytes are passed on as they are
	TLSPermissive                 // mesh mTLS or plaintext, told apart by the first bytes
	TLSStrict                     // mesh mTLS only
	TLSSimple                     // terminate with Secret
	TLSMutual                     // terminate with Secret and demand a client certificate
	TLSOptional                   // terminate with Secret, verify a client certificate if there is one
	TLSPassthrough                // route by SNI, never terminate
	TLSMesh                       // terminate with the mesh identity and demand one (Gateway ISTIO_MUTUAL)
)

var tlsModeNames = [...]string{"plaintext", "permissive", "strict", "simple", "mutual", "optional mutual", "passthrough", "mesh"}

// String returns the mode's name in lower case.
func (m TLSMode) String() string { return tlsModeNames[m] }

// ServerTLS is the server side of a chain's encryption.
type ServerTLS struct {
	Mode TLSMode
	// Secret names the Secret resource to terminate with, for TLSSimple, TLSMutual and TLSOptional.
	Secret string
	// CertFile, KeyFile and CAFile name PEM files on the proxy's machine instead.
	CertFile, KeyFile, CAFile string
	// SubjectAltNames, if any, are the names of which a client certificate must bear one.
	SubjectAltNames []string
	MinVersion      uint16 // crypto/tls's numbers; 0 is TLS 1.2
	MaxVersion      uint16 // 0 is TLS 1.3
	CipherSuites    []uint16
	// RedirectHTTPS answers plaintext HTTP on this chain with 301 to https.
	RedirectHTTPS bool
	// ALPN offered, in order; empty: by the chain's protocol.
	ALPN []string
}

// HTTP is how a listener treats requests.
type HTTP struct {
	// Route names the Route resource in force when the request's host does not select another one.
	Route string
	// ByHost: the host of a request may select another Route, asked for as "host:port" (outbound only).
	ByHost bool
	// Inline is the route itself, for inbound listeners, which need no further resource; then Route is empty.
	Inline *Route
	// ServerName replaces the Server field of responses; empty: leave it.
	ServerName string
	// ForwardClientCert is what to do with x-forwarded-client-cert.
	ForwardClientCert ClientCert
	// AppendForwardedFor adds the peer's address to x-forwarded-for.
	AppendForwardedFor bool
	// TrustedHops is the number of proxies in front whose x-forwarded-for is believed (gateways).
	TrustedHops int
	// PathNormalization as in MeshConfig.
	PathNormalization PathNormalization
	// IdleTimeout closes a connection without requests; 0: 1 h.
	IdleTimeout time.Duration
	// Peers: exchange workload metadata with mesh peers in x-envoy-peer-metadata.
	Peers bool
	// HTTP10 accepts HTTP/1.0 requests.
	HTTP10 bool
}

// ClientCert is the treatment of x-forwarded-client-cert.
type ClientCert uint8

// The treatments that Istio uses.
const (
	ClientCertLeave         ClientCert = iota // outbound: pass on as it is
	ClientCertAppendForward                   // inbound sidecar: append our view
	ClientCertSanitizeSet                     // gateway: replace by our view
	ClientCertSanitize                        // remove
	ClientCertForward                         // pass on what a client says that has shown a certificate, else remove
)

var clientCertNames = [...]string{"leave", "append", "replace", "remove", "forward"}

// String returns the treatment's name in lower case.
func (c ClientCert) String() string { return clientCertNames[c] }

// PathNormalization is MeshConfig's setting of the same name.
type PathNormalization uint8

// The settings of PathNormalization.
const (
	PathBase                  PathNormalization = iota // RFC 3986 dot segments; backslash to slash
	PathNone                                           // as received
	PathMergeSlashes                                   // base, and // to /
	PathDecodeAndMergeSlashes                          // merge, and %2F %5C decoded first
)

var pathNames = [...]string{"base", "none", "merge slashes", "decode and merge slashes"}

// String returns the setting's name in lower case.
func (p PathNormalization) String() string { return pathNames[p] }

// TCP is where a connection's bytes go: one cluster, chosen by weight.
type TCP struct {
	Clusters []WeightedCluster
	// IdleTimeout closes a connection over which nothing travels; 0: 1 h.
	IdleTimeout time.Duration
	// Tunnel leads the bytes through the clusters' endpoints, which are HTTP proxies; nil: to them.
	Tunnel *Tunnel
}

// Tunnel is what an HTTP proxy is asked to connect to.
type Tunnel struct {
	Target string // "host:port"
	Post   bool   // by POST, for proxies that know no CONNECT
}

// WeightedCluster is a choice among clusters. Weights are relative; a single cluster needs none.
type WeightedCluster struct {
	Cluster  string
	Weight   uint32
	Request  HeaderEdits // for HTTP routes
	Response HeaderEdits
}

// ServiceName names a destination service in telemetry.
type ServiceName struct {
	Host      string // reviews.default.svc.cluster.local
	Name      string // reviews
	Namespace string // default
}

// Telemetry is how a listener tells what happened.
type Telemetry struct {
	AccessLogs []AccessLog
	Tracing    *Tracing // nil: no spans are made; headers are passed on
	// NoMetrics turns the standard metrics off.
	NoMetrics bool
}

// AccessLog is one sink of access log lines.
type AccessLog struct {
	Path   string // file path, "/dev/stdout" or "/dev/stderr"
	Format string // Envoy's command operators; empty: Istio's default text format
	JSON   bool   // write JSON with Istio's default keys, or Labels if there are any
	Labels map[string]string
	// MinStatus logs only responses with at least this status code; 0: all. ErrorsOnly logs only requests that
	// a proxy answered itself or that failed.
	MinStatus  int
	ErrorsOnly bool
}

// Tracing is how spans are made and where they go.
type Tracing struct {
	Provider  TracingProvider
	Endpoint  string  // Zipkin: "http://host:port/api/v2/spans"; OTLP: "http://host:port"
	Sampling  float64 // percent, 0 to 100
	Tags      map[string]string
	HeaderTag map[string]string // tag name -> request header
}

// TracingProvider is the protocol spans are sent by.
type TracingProvider uint8

// The providers.
const (
	TracingZipkin TracingProvider = iota
	TracingOTLP
)

var tracingNames = [...]string{"zipkin", "otlp"}

// String returns the provider's name in lower case.
func (p TracingProvider) String() string { return tracingNames[p] }
