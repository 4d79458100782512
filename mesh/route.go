package mesh

import (
	"net/netip"
	"time"
)

// GatewayMesh is the name in Route.Gateways that stands for all sidecars.
const GatewayMesh = "mesh"

// Route is a VirtualService (or another kind of route): rules for one or more hosts.
type Route struct {
	Origin
	Namespace, Name string
	Hosts           []string // fully qualified, lower case, or with "*." or "*"
	// Gateways are GatewayMesh or "namespace/name".
	Gateways []string
	// Ranked (Gateway API): of all such routes for a host the rule with the most specific match counts, whatever the
	// order; of other routes the first rule that matches.
	Ranked bool
	// Port limits the route, in the mesh, to one port of its hosts; 0: all.
	Port       uint16
	HTTP       []HTTPRule
	TLS        []TLSRule
	TCP        []TCPRule
	Visibility Visibility
}

// Ref names the route.
func (r *Route) Ref() Ref { return Ref{KindRoute, r.Namespace, r.Name} }

// HTTPRule is one HTTP route rule. Exactly one of Routes, Redirect, Direct and Delegate is set.
type HTTPRule struct {
	Name     string
	Line     int         // in the file of the route's Origin; 0 if unknown
	Matches  []HTTPMatch // or-ed; empty: everything
	Routes   []Destination
	Redirect *Redirect
	Direct   *DirectResponse
	// Delegate is "namespace/name" of the route that holds the rules.
	Delegate string
	Rewrite  *Rewrite
	Headers  Headers
	Timeout  time.Duration // 0: none
	// TryTimeout is for each attempt; 0: what Retry says.
	TryTimeout time.Duration
	// Retry nil: the mesh's default.
	Retry   *Retry
	Fault   *Fault
	Mirrors []Mirror
	CORS    *CORS
}

// HTTPMatch is a conjunction. The source fields choose proxies, the others requests.
type HTTPMatch struct {
	Name                           string
	URI, Method, Scheme, Authority StringMatch
	Headers                        []FieldMatch // withoutHeaders are inverted ones
	Query                          []FieldMatch
	Port                           uint16 // 0: any
	SourceLabels                   Labels
	SourceNamespace                string
	Gateways                       []string // empty: the route's
}

// FieldMatch matches a header field or query parameter.
type FieldMatch struct {
	Name   string // lower case for headers
	Value  StringMatch
	Invert bool
}

// Destination is a weighted target.
type Destination struct {
	Host   string // fully qualified
	Subset string
	Port   uint16 // 0: the service's only port, or the one that was called
	Weight uint32 // relative; a lone destination with 0 gets everything
	// Invalid: the destination does not exist or may not be used; what it would get is answered with 500.
	Invalid bool
	Headers Headers
}

// Headers are edits of both directions.
type Headers struct{ Request, Response HeaderEdits }

// HeaderEdits change fields.
type HeaderEdits struct {
	Set, Add []Field
	Remove   []string
}

// Field is a header field.
type Field struct{ Name, Value string }

// Redirect answers with a redirect.
type Redirect struct {
	URI, PrefixRewrite, Authority, Scheme string
	Port                                  uint16
	PortFromRequest                       bool
	// PortOfListener: to the port on which the request came.
	PortOfListener bool
	Code           int // 0: 301
}

// DirectResponse answers at once.
type DirectResponse struct {
	Status int
	Body   string
}

// Rewrite changes the request's target.
type Rewrite struct {
	URI, Authority string
	// Whole: URI replaces the whole path, also after a match of its beginning.
	Whole               bool
	Regex, Substitution string
}

// Retry is a retry policy.
type Retry struct {
	Attempts         int // 0: no retries
	PerTryTimeout    time.Duration
	On               []string // conditions and status codes as written; empty: the default set
	Backoff          time.Duration
	IgnorePrevious   bool // retryIgnorePreviousHosts, true by default
	RemoteLocalities bool
}

// Fault is injected on the client side.
type Fault struct {
	Delay        time.Duration
	DelayPercent float64
	AbortHTTP    int
	AbortGRPC    string // a gRPC status name or number; empty: none
	AbortPercent float64
}

// Mirror is a copy of traffic.
type Mirror struct {
	Destination Destination
	Percent     float64
}

// CORS is a CORS policy.
type CORS struct {
	AllowOrigins                              []StringMatch
	AllowMethods, AllowHeaders, ExposeHeaders []string
	MaxAge                                    time.Duration
	AllowCredentials, ForwardUnmatched        bool
}

// TLSRule routes undecrypted TLS by SNI.
type TLSRule struct {
	Line    int
	Matches []L4Match
	Routes  []Destination
}

// TCPRule routes connections.
type TCPRule struct {
	Line    int
	Matches []L4Match
	Routes  []Destination
}

// L4Match is a conjunction.
type L4Match struct {
	SNI             []string // TLS only
	Destinations    []netip.Prefix
	Port            uint16
	SourceLabels    Labels
	SourceNamespace string
	Gateways        []string
}
