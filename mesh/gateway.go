package mesh

// Gateway is an Istio Gateway, or one listener of a Gateway API's: ports opened on the workloads that Selector picks.
type Gateway struct {
	Origin
	Namespace, Name string
	Selector        Labels
	// Workloads is the namespace of the workloads; empty: any.
	Workloads string
	// Isolated: a request belongs to the server with the most specific host for it, and to no other one's routes.
	Isolated bool
	Servers  []Server
}

// Ref names the gateway.
func (g *Gateway) Ref() Ref { return Ref{KindGateway, g.Namespace, g.Name} }

// Server is one port of a gateway.
type Server struct {
	Name     string
	Line     int
	Bind     string
	Port     uint16
	Protocol Protocol
	// Hosts are lower-case host names with the namespace that may bind to them: "*" any, "." resolved.
	Hosts []GatewayHost
	TLS   *ServerTLS
}

// GatewayHost is "namespace/host".
type GatewayHost struct{ Namespace, Host string }

// ServerTLS is a gateway's TLS setting.
type ServerTLS struct {
	Mode     string // PASSTHROUGH, SIMPLE, MUTUAL, AUTO_PASSTHROUGH, ISTIO_MUTUAL, OPTIONAL_MUTUAL
	Redirect bool
	// Credential names a Secret in the namespace of the gateway's workload; or with SecretAnywhere before it one of the
	// namespace in it, which has agreed.
	Credential                string
	CertFile, KeyFile, CAFile string
	SubjectAltNames           []string
	MinVersion, MaxVersion    uint16 // crypto/tls's numbers; 0: default
	CipherSuites              []uint16
}

// SecretAnywhere begins a credential's name that tells its namespace: "kubernetes-gateway://namespace/name", as in Istio.
const SecretAnywhere = "kubernetes-gateway://" //nolint:gosec // a name

// Secret is a TLS Secret.
type Secret struct {
	Origin
	Namespace, Name   string
	Chain, Key, Roots []byte // PEM
}

// Ref names the secret.
func (s *Secret) Ref() Ref { return Ref{KindSecret, s.Namespace, s.Name} }
