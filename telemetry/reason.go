package telemetry

import "strings"

// Reason says why a request or a connection was refused, failed or was answered
// by the proxy itself. The list is closed: the same word stands in the access
// log, in metrics, in the response header and in `lateen explain`, and each is
// documented in docs/reasons.md.
type Reason uint8

// The reasons, grouped by where they arise.
const (
	// None: nothing went wrong; the upstream's own answer was passed on.
	None Reason = iota

	// NoListener: no listener or filter chain takes the connection.
	NoListener
	// NoRoute: the listener has no route for the request's host and path.
	NoRoute
	// NoCluster: the route names a cluster that is not in the plan.
	NoCluster
	// UnknownDestination: the destination is not in the registry and the outbound policy is REGISTRY_ONLY.
	UnknownDestination
	// NoHealthyEndpoint: the cluster has no endpoint that may be picked.
	NoHealthyEndpoint
	// ConfigMissing: configuration asked for on demand did not arrive in time, because the control plane is away.
	ConfigMissing
	// DirectResponse: the route answers by itself.
	DirectResponse
	// Redirect: the route redirects the client.
	Redirect
	// LoopDetected: the request passed through this proxy before.
	LoopDetected

	// ConnectionLimit: the cluster's limit on connections is reached.
	ConnectionLimit
	// PendingOverflow: the cluster's limit on waiting or active requests is reached.
	PendingOverflow
	// DNSFailure: the upstream's name could not be resolved.
	DNSFailure
	// ConnectRefused: the endpoint refused the TCP connection.
	ConnectRefused
	// ConnectTimeout: the endpoint did not accept the connection in time.
	ConnectTimeout
	// ConnectUnreachable: the network has no way to the endpoint.
	ConnectUnreachable
	// TunnelRefused: the HBONE peer answered CONNECT with something other than 200.
	TunnelRefused
	// TLSFailure: the TLS handshake failed for a cause that has no Reason of its own.
	TLSFailure
	// TLSIdentityMismatch: the peer proved an identity that is not among those expected.
	TLSIdentityMismatch
	// TLSNoCertificate: the peer presented no certificate where one is required.
	TLSNoCertificate
	// TLSExpired: the peer's certificate is outside its validity period.
	TLSExpired
	// TLSUntrusted: the peer's certificate does not lead to a root of the trust bundle.
	TLSUntrusted
	// NoIdentity: this proxy holds no valid certificate of its own yet.
	NoIdentity

	// UpstreamReset: the upstream reset the stream before it answered.
	UpstreamReset
	// UpstreamClosed: the upstream closed the connection before it answered.
	UpstreamClosed
	// UpstreamRefusedStream: the upstream refused the stream before doing any work.
	UpstreamRefusedStream
	// UpstreamCut: the upstream ended the response before it was complete.
	UpstreamCut
	// UpstreamProtocolError: the upstream's answer is not valid HTTP.
	UpstreamProtocolError
	// RequestTimeout: the upstream did not complete its answer within the route's timeout.
	RequestTimeout
	// PerTryTimeout: the last try did not answer within the per-try timeout.
	PerTryTimeout
	// StreamDurationLimit: the stream lived longer than the route allows.
	StreamDurationLimit
	// RetriesExhausted: every permitted try failed; the last answer was passed on.
	RetriesExhausted
	// LocalReset: the proxy gave the upstream stream up.
	LocalReset

	// FaultAbort: a configured fault aborted the request.
	FaultAbort
	// FaultDelay: a configured fault delayed the request.
	FaultDelay
	// RateLimited: a limit counted in this proxy was hit.
	RateLimited
	// RateLimitedGlobally: a limit counted by the rate limit service was hit.
	RateLimitedGlobally
	// RateLimitUnavailable: the rate limit service could not be asked and the policy is to refuse.
	RateLimitUnavailable
	// Overload: the proxy shed load to stay within its own limits.
	Overload

	// DeniedByPolicy: a DENY policy matched.
	DeniedByPolicy
	// NotAllowed: ALLOW policies apply and none matched.
	NotAllowed
	// MTLSRequired: the workload accepts mutual TLS only (STRICT) and the client spoke without it.
	MTLSRequired
	// TokenInvalid: the request's JWT is malformed, expired, or not signed by a key of its issuer.
	TokenInvalid
	// TokenKeysUnavailable: the issuer's keys could not be fetched.
	TokenKeysUnavailable
	// ExternalDenied: the external authorizer refused.
	ExternalDenied
	// ExternalUnavailable: the external authorizer could not be asked and the policy is to refuse.
	ExternalUnavailable

	// DownstreamClosed: the client closed the connection before the answer was complete.
	DownstreamClosed
	// DownstreamReset: the client reset the stream before the answer was complete.
	DownstreamReset
	// DownstreamProtocolError: what the client sent is not valid HTTP.
	DownstreamProtocolError
	// HeadersTooLarge: the request's header section is larger than the limit.
	HeadersTooLarge
	// BodyTooLarge: the request's body is larger than the limit.
	BodyTooLarge
	// HostMissing: the request names no host.
	HostMissing
	// PathInvalid: the request's path cannot be normalized.
	PathInvalid
	// HeaderInvalid: a header that is strictly checked has an invalid value.
	HeaderInvalid
	// VersionUnsupported: the request's HTTP version is not accepted.
	VersionUnsupported
	// UpgradeRefused: the route does not permit the protocol upgrade that was asked for.
	UpgradeRefused
	// HeaderTimeout: the client did not complete its request headers in time.
	HeaderTimeout
	// ReceiveTimeout: the client did not complete its request in time.
	ReceiveTimeout
	// IdleTimeout: nothing moved on the stream or connection for too long.
	IdleTimeout
	// ConnectionDurationLimit: the connection lived longer than its limit.
	ConnectionDurationLimit
	// Draining: the proxy is being stopped or replaced and takes nothing new.
	Draining
	// InternalError: the proxy broke an invariant of its own.
	InternalError

	reasonCount
)

// detailsMaxBytes bounds what AppendDetails appends.
const detailsMaxBytes = 256

// String returns the reason's word, in snake case, as in "no_route".
func (r Reason) String() string { return r.row().name }

// Doc returns one sentence that says what happened.
func (r Reason) Doc() string { return r.row().doc }

// Hint returns what to do next, addressed to an operator.
func (r Reason) Hint() string { return r.row().hint }

// Flags returns the response flags that Envoy sets in this case.
func (r Reason) Flags() Flags { return r.row().flags }

// Details returns the text that Envoy's %RESPONSE_CODE_DETAILS% prints in this case.
func (r Reason) Details() string { return r.row().details }

// Status returns the HTTP status that the proxy answers with unless
// configuration names another; 0 where the upstream's or the route's own status
// is sent, or none because the stream or connection is closed.
func (r Reason) Status() int { return int(r.row().status) }

// GRPCStatus returns the gRPC status that stands for Status in a response to a
// gRPC request; NoGRPCStatus where Status is 0.
func (r Reason) GRPCStatus() GRPCStatus {
	if r.row().status == 0 {
		return NoGRPCStatus
	}
	return GRPCFromHTTP(r.Status())
}

// AppendDetails appends Details with a particular of this one case, in the form
// that Envoy gives it: a policy's name replaces what stands in square brackets,
// the cause of a reset is added within the braces, and a detail that has
// neither gets braces. White space and what is not printable ASCII become '_'.
// An empty particular appends Details as it is. At most 256 bytes are appended.
func (r Reason) AppendDetails(dst []byte, particular string) []byte {
	base := r.Details()
	if particular == "" {
		return append(dst, base...)
	}
	start, closing := len(dst), byte('}')
	switch base[len(base)-1] {
	case ']':
		dst, closing = append(dst, base[:strings.IndexByte(base, '[')+1]...), ']'
	case '}':
		dst = append(append(dst, base[:len(base)-1]...), '|')
	default:
		dst = append(append(dst, base...), '{')
	}
	for i := 0; i < len(particular) && len(dst)-start < detailsMaxBytes-1; i++ {
		c := particular[i]
		if c <= ' ' || c > '~' {
			c = '_'
		}
		dst = append(dst, c)
	}
	return append(dst, closing)
}

// Reasons returns every reason, in the order of its number.
func Reasons() []Reason {
	all := make([]Reason, reasonCount)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// ParseReason finds the reason that String calls word.
func ParseReason(word string) (Reason, bool) {
	for i := range reasons {
		if reasons[i].name == word {
			return Reason(i), true
		}
	}
	return None, false
}

func (r Reason) row() *reasonRow {
	if r >= reasonCount {
		r = InternalError
	}
	return &reasons[r]
}
