package plan

import "time"

// Route decides what happens to each request of one set of hosts. For an
// outbound listener it is named by host and port as Istio names a virtual
// host, "reviews.default.svc.cluster.local:9080"; for a gateway "gateway|8080".
type Route struct {
	Name string
	// Hosts are tried most specific first: exact, then "*.suffix" by length, then "*".
	Hosts []VirtualHost
}

// ResourceName is the route's name.
func (r *Route) ResourceName() string { return r.Name }

// ResourceKind is KindRoute.
func (r *Route) ResourceKind() Kind { return KindRoute }

// VirtualHost is the rules of one or more host names.
type VirtualHost struct {
	Name string
	// Domains are lower case, with or without port: "reviews", "reviews:9080", "*.example.com", "*".
	Domains []string
	// Rules are tried in order; the first that matches acts. A request that matches none gets 404.
	Rules []Rule
	// RequireTLS answers plaintext requests with a redirect to https.
	RequireTLS bool
	// Service is the destination service in telemetry when no rule names a cluster.
	Service ServiceName
}

// Rule is one decision about requests. Exactly one of Clusters, Redirect and Direct says where it goes.
type Rule struct {
	Name   string
	Match  RequestMatch
	Origin Origin

	Clusters []WeightedCluster
	Redirect *Redirect
	Direct   *DirectResponse

	Rewrite  *Rewrite
	Request  HeaderEdits
	Response HeaderEdits
	// Timeout is for the whole exchange including retries; 0: none.
	Timeout time.Duration
	Retry   *Retry // nil: none
	Fault   *Fault
	Mirrors []Mirror
	CORS    *CORS
	// HashOn are the consistent-hash inputs in order, used by clusters that balance by hash and have none of their own,
	// and by clients that hash before they choose a cluster.
	HashOn []HashOn
	// Operation names the client span: "reviews.default.svc.cluster.local:9080/*".
	Operation string
}

// RequestMatch is a conjunction; an empty field matches everything.
type RequestMatch struct {
	Path      StringMatch // without the query; MatchNone: any
	Method    StringMatch
	Scheme    StringMatch
	Authority StringMatch
	Headers   []HeaderMatch
	Query     []HeaderMatch
	// SourcePorts etc. are decided when compiling, not here.
}

// HeaderMatch matches a field or a query parameter by name.
type HeaderMatch struct {
	Name   string // lower case for headers
	Value  StringMatch
	Invert bool
}

// Rewrite changes a request before it is sent on.
type Rewrite struct {
	// Path replaces the matched prefix (or the whole path after an exact or regex match); empty: leave.
	Path string
	// Prefix is the matched prefix that Path replaces; empty: replace the whole path.
	Prefix    string
	Authority string // empty: leave
	// Regex and Substitution rewrite the path by RE2; Regex empty: not used.
	Regex, Substitution string
}

// Redirect answers with a redirect.
type Redirect struct {
	Scheme    string // empty: the request's
	Authority string // empty: the request's, without port if Port is set
	Path      string // replaces the path; empty: leave
	Prefix    string // replaces the prefix MatchedPrefix; empty: leave
	// MatchedPrefix is what Prefix replaces.
	MatchedPrefix string
	Port          uint16 // 0: none
	// PortFromRequest derives the port from the request's own instead of the scheme's default.
	PortFromRequest bool
	Code            int // 301, 302, 303, 307 or 308
}

// DirectResponse answers without any upstream.
type DirectResponse struct {
	Code int
	Body string
}

// HeaderEdits change fields; applied in the order remove, set, add. Values may hold Envoy's command operators
// (%DOWNSTREAM_REMOTE_ADDRESS%), which are replaced: see Template.
type HeaderEdits struct {
	Set    []Header
	Add    []Header
	Remove []string // lower case
}

// Empty reports whether nothing is edited.
func (e HeaderEdits) Empty() bool { return len(e.Set) == 0 && len(e.Add) == 0 && len(e.Remove) == 0 }

// Header is a field.
type Header struct{ Name, Value string }

// Retry says when a failed attempt is made again.
type Retry struct {
	Attempts      int // beyond the first
	PerTryTimeout time.Duration
	On            RetryOn
	StatusCodes   []int // with OnStatusCodes
	// AvoidPrevious prefers endpoints that have not been tried.
	AvoidPrevious bool
	// Backoff is the base interval; 0: 25 ms. The n-th wait is random in [0, (2^n-1)·Backoff), at most 10 × Backoff.
	Backoff time.Duration
}

// RetryOn is a set of conditions, named as Envoy's x-envoy-retry-on names them.
type RetryOn uint32

// The conditions.
const (
	On5xx RetryOn = 1 << iota
	OnGatewayError
	OnReset
	OnResetBeforeRequest
	OnConnectFailure
	OnRefusedStream
	OnRetriable4xx
	OnStatusCodes // retriable-status-codes
	OnGRPCCancelled
	OnGRPCDeadlineExceeded
	OnGRPCInternal
	OnGRPCResourceExhausted
	OnGRPCUnavailable
)

// RetryOnNames maps each condition to its name, in the order of the bits.
var RetryOnNames = []string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-4xx",
	"retriable-status-codes", "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

// Fault is injected on the client side, before the request leaves.
type Fault struct {
	Delay        time.Duration
	DelayPercent float64 // 0 to 100
	AbortStatus  int     // HTTP status; 0: none
	AbortGRPC    int     // gRPC status code; -1: none
	AbortPercent float64
}

// Mirror sends a copy of requests elsewhere and drops the answers.
type Mirror struct {
	Cluster string
	Percent float64 // 0 to 100
}

// CORS is answered by the proxy (Fetch standard, section 3.2).
type CORS struct {
	AllowOrigins     []StringMatch
	AllowMethods     []string
	AllowHeaders     []string
	ExposeHeaders    []string
	MaxAge           time.Duration // 0: not sent
	AllowCredentials bool
	// ForwardUnmatched sends preflights of other origins on instead of answering them.
	ForwardUnmatched bool
}

// HashOn is one input of a consistent hash.
type HashOn struct {
	Header string // lower case
	Cookie string
	// CookieTTL makes the proxy set the cookie if it is missing and TTL is not nil (0: a session cookie).
	CookieTTL  *time.Duration
	CookiePath string
	SourceIP   bool
	Query      string
}
