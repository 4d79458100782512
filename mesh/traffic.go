package mesh

import "time"

// Traffic is a DestinationRule: how the endpoints of a host are reached, and its subsets.
type Traffic struct {
	Origin
	Namespace, Name string
	Host            string // fully qualified or with "*."
	// Selector limits it to client workloads of its namespace; nil: all.
	Selector   Labels
	Policy     TrafficPolicy
	Subsets    []Subset
	Visibility Visibility
}

// Ref names the rule.
func (t *Traffic) Ref() Ref { return Ref{KindTraffic, t.Namespace, t.Name} }

// Subset is a named part of a service's workloads.
type Subset struct {
	Name   string
	Labels Labels
	Policy TrafficPolicy // what it sets replaces the host's
	Line   int
}

// TrafficPolicy is a set of settings; nil fields are unset.
type TrafficPolicy struct {
	Balance       *Balance
	Connections   *Connections
	Outlier       *Outlier
	TLS           *ClientTLS
	Tunnel        *Tunnel
	ProxyProtocol int // 0: none
	RetryBudget   *RetryBudget
	Ports         map[uint16]TrafficPolicy // portLevelSettings
}

// Balance is a load balancer setting.
type Balance struct {
	Simple         string // as written: LEAST_REQUEST, ROUND_ROBIN, RANDOM, PASSTHROUGH, LEAST_CONN; empty: unset
	ConsistentHash *ConsistentHash
	Locality       *Locality
	Warmup         time.Duration
}

// ConsistentHash is a hash setting; one input is set.
type ConsistentHash struct {
	Header, Query string
	Cookie        *Cookie
	SourceIP      bool
	Maglev        bool
	Size          int // ring or table size; 0: default
}

// Cookie names a hash cookie.
type Cookie struct {
	Name, Path string
	TTL        *time.Duration // nil: never set it ourselves
}

// Locality is a locality setting.
type Locality struct {
	Enabled    *bool
	Distribute []LocalityWeights
	Failover   map[string]string // region to region
	Priority   []string
}

// LocalityWeights spreads the traffic of one source locality.
type LocalityWeights struct {
	From string
	To   map[string]uint32
}

// Connections is a connection pool setting; nil or 0 fields are unset.
type Connections struct {
	MaxConnections                                                uint32
	ConnectTimeout, IdleTimeout, MaxDuration                      time.Duration // TCP
	KeepaliveTime, KeepaliveInterval                              time.Duration
	KeepaliveProbes                                               uint32
	MaxPending, MaxRequests, MaxRequestsPerConnection, MaxRetries uint32
	MaxConcurrentStreams                                          uint32
	HTTPIdleTimeout                                               time.Duration
	H2Upgrade                                                     string // DEFAULT, DO_NOT_UPGRADE, UPGRADE
	UseClientProtocol                                             bool
}

// Outlier is outlier detection.
type Outlier struct {
	Consecutive5xx, ConsecutiveGateway, ConsecutiveLocal *uint32
	SplitLocal                                           bool
	Interval, BaseEjection                               time.Duration
	MaxEjectionPercent, MinHealthPercent                 uint32
	StatusCodes                                          []int
}

// ClientTLS is a client TLS setting.
type ClientTLS struct {
	Mode                      string // DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL
	SNI, Credential           string
	CertFile, KeyFile, CAFile string
	SubjectAltNames           []string
	InsecureSkipVerify        *bool
}

// Tunnel sends TCP through an HTTP proxy.
type Tunnel struct {
	Post bool // POST instead of CONNECT
	Host string
	Port uint16
}

// RetryBudget bounds concurrent retries.
type RetryBudget struct {
	Percent float64
	Min     uint32
}
