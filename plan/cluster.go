package plan

import "time"

// The clusters that every proxy knows without asking, named as in Envoy's configuration under Istio.
const (
	ClusterPassthrough        = "PassthroughCluster"        // to the original destination
	ClusterBlackHole          = "BlackHoleCluster"          // refuse
	ClusterInboundPassthrough = "InboundPassthroughCluster" // to the workload's own original destination
	ClusterInvalid            = "InvalidBackend"            // does not exist or may not be used: 500 (Gateway API)
)

// Cluster is one group of endpoints and how to reach them. Names are Istio's:
// "outbound|9080|v1|reviews.default.svc.cluster.local", "inbound|9080||".
type Cluster struct {
	Name      string
	Discovery Discovery
	// Addresses are what to resolve, for the DNS kinds.
	Addresses []Address
	Balance   Balance
	// Protocol is what the endpoints speak. UseClientProtocol follows the downstream request instead.
	Protocol          Protocol
	UseClientProtocol bool
	TLS               ClientTLS
	ConnectTimeout    time.Duration // 0: 10 s
	Limits            Limits
	Outlier           *Outlier // nil: none
	// BindSource is the source address of connections, for inbound clusters ("127.0.0.6"); empty: any.
	BindSource    string
	IdleTimeout   time.Duration // of pooled connections; 0: 1 h
	TCPKeepalive  Keepalive
	ProxyProtocol int // 0: none, 1 or 2: the version sent to endpoints
	Service       ServiceName
	// External: outside of the mesh; never mTLS by itself, and unknown in telemetry.
	External bool
	Subset   string
	Origin   Origin // the traffic policy in force, if any
}

// ResourceName is the cluster's name.
func (c *Cluster) ResourceName() string { return c.Name }

// ResourceKind is KindCluster.
func (c *Cluster) ResourceKind() Kind { return KindCluster }

// Discovery is where a cluster's endpoints come from.
type Discovery uint8

// The kinds of discovery.
const (
	DiscoverEndpoints   Discovery = iota // an Endpoints resource of the same name
	DiscoverDNS                          // resolve Addresses, use every answer
	DiscoverDNSFirst                     // resolve Addresses, use the first answer for new connections
	DiscoverOriginalDst                  // the connection's original destination
	DiscoverNothing                      // refuse
)

var discoveryNames = [...]string{"endpoints", "dns", "dns-first", "original-dst", "none"}

// String returns the discovery's name in lower case.
func (d Discovery) String() string { return discoveryNames[d] }

// Address is a host name or IP with a port.
type Address struct {
	Host string
	Port uint16
	// Labels and the rest describe the endpoint behind the address.
	Weight   uint32
	Locality string
}

// Algorithm is how an endpoint is chosen.
type Algorithm uint8

// The algorithms.
const (
	LeastRequest Algorithm = iota // the less busy of two random endpoints
	RoundRobin
	Random
	RingHash
	Maglev
	OriginalDestination // DestinationRule PASSTHROUGH
)

var algorithmNames = [...]string{"least request", "round robin", "random", "ring hash", "maglev", "passthrough"}

// String returns the algorithm's name in lower case.
func (a Algorithm) String() string { return algorithmNames[a] }

// Balance is how load is spread.
type Balance struct {
	Algorithm Algorithm
	// RingSize is the minimum ring size (default 1024) or Maglev's table size (default 65537).
	RingSize int
	// HashOn are the inputs of the hash algorithms; they are applied to routes that name this cluster.
	HashOn []HashOn
	// Locality: prefer endpoints of the same locality while healthy ones remain; needs Outlier.
	Locality bool
	// Failover orders localities to turn to: region to region.
	Failover map[string]string
	// From is the asking workload's own locality, for Locality, Failover and Distribute.
	From string
	// Distribute gives weights to localities of destination by the source's; already resolved for the scope.
	Distribute map[string]uint32
	Warmup     time.Duration
}

// ClientTLSMode is how a cluster's connections are encrypted.
type ClientTLSMode uint8

// The modes of ClientTLS.
const (
	ClientTLSNone   ClientTLSMode = iota
	ClientTLSAuto                 // mesh mTLS where the endpoint offers it, else plaintext
	ClientTLSMesh                 // mesh mTLS always
	ClientTLSSimple               // ordinary TLS
	ClientTLSMutual               // ordinary TLS with a client certificate
)

var clientTLSNames = [...]string{"plaintext", "auto mtls", "mtls", "simple tls", "mutual tls"}

// String returns the mode's name in lower case.
func (m ClientTLSMode) String() string { return clientTLSNames[m] }

// ClientTLS is the client side of a cluster's encryption.
type ClientTLS struct {
	Mode ClientTLSMode
	SNI  string
	// Identities are the SPIFFE IDs, or for simple TLS the DNS names, of which the server must prove one.
	// Empty with mesh TLS: any identity of the mesh's trust domain.
	Identities []string
	// Secret names the Secret with the client certificate and roots; CAFile, CertFile and KeyFile name files
	// on the proxy's machine instead. No roots at all: the operating system's.
	Secret                    string
	CAFile, CertFile, KeyFile string
	InsecureSkipVerify        bool
	ALPN                      []string // empty: by protocol
}

// Limits bound a cluster. 0 is unlimited.
type Limits struct {
	Connections           uint32
	PendingRequests       uint32
	Requests              uint32
	Retries               uint32
	RequestsPerConnection uint32
	ConcurrentStreams     uint32 // per HTTP/2 connection
	ConnectionDuration    time.Duration
	// RetryBudget limits concurrent retries to this percentage of requests; 0: not used.
	RetryBudget    float64
	RetryBudgetMin uint32
}

// Keepalive is TCP keepalive; zero fields are the operating system's.
type Keepalive struct {
	Time, Interval time.Duration
	Probes         uint32
}

// Outlier ejects endpoints that fail.
type Outlier struct {
	Consecutive5xx     uint32 // 0: off
	ConsecutiveGateway uint32 // 0: off
	ConsecutiveLocal   uint32 // 0: off; counted only with SplitLocal
	SplitLocal         bool
	Interval           time.Duration // 0: 10 s
	BaseEjection       time.Duration // 0: 30 s; multiplied by the number of ejections
	MaxEjectionPercent uint32        // 0: 10
	MinHealthPercent   uint32        // below it ejection is ignored; 0: off
	StatusCodes        []int
}
