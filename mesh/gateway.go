package mesh

// Gateway is an Istio Gateway: ports opened on the workloads that Selector picks.
type Gateway struct {
	Origin
	Namespace, Name string
	Selector        Labels
	Servers         []Server
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
	Mode                      string // PASSTHROUGH, SIMPLE, MUTUAL, AUTO_PASSTHROUGH, ISTIO_MUTUAL, OPTIONAL_MUTUAL
	Redirect                  bool
	Credential                string // name of a Secret in the namespace of the gateway's workload
	CertFile, KeyFile, CAFile string
	SubjectAltNames           []string
	MinVersion, MaxVersion    uint16 // crypto/tls's numbers; 0: default
	CipherSuites              []uint16
}

// Secret is a TLS Secret.
type Secret struct {
	Origin
	Namespace, Name   string
	Chain, Key, Roots []byte // PEM
}

// Ref names the secret.
func (s *Secret) Ref() Ref { return Ref{KindSecret, s.Namespace, s.Name} }
