package telemetry

type reasonRow struct {
	name, doc string
	flags     Flags
	details   string
	status    uint16
	hint      string
}

// The words that Envoy's details begin with when an upstream stream ends early.
const (
	resetBefore = "upstream_reset_before_response_started"
	resetAfter  = "upstream_reset_after_response_started"
)

// reasons describes each Reason. Details and flags are Envoy's (its response
// code details page and the reset reasons of its HTTP utilities) so that
// dashboards and alerts made for Istio go on working; where Envoy has no word,
// the details are the reason's own.
var reasons = [reasonCount]reasonRow{
	None: {
		"none", "Nothing went wrong; the upstream's own answer was passed on.",
		0, "via_upstream", 0,
		"Nothing to do in the mesh: an error status without a reason was sent by the application; read its log.",
	},
	NoListener: {
		"no_listener", "No listener or filter chain takes the connection: its port, server name or protocol is not in the plan.",
		FlagNR, "filter_chain_not_found", 0,
		"Compare the address, port and server name with the Services and Gateways of the proxy; `lateen analyze` finds ports without a Service.",
	},
	NoRoute: {
		"no_route", "The listener has no route for the request's host and path.",
		FlagNR, "route_not_found", 404,
		"Compare the request's host and path with the hosts and matches of the VirtualService or HTTPRoute; a route without a catch-all match answers 404 to the rest.",
	},
	NoCluster: {
		"no_cluster", "The route names a cluster that is not in the plan: a missing Service, subset or port.",
		FlagNC, "cluster_not_found", 503,
		"Check that the route's destination host, port and subset exist; `lateen analyze` names the missing DestinationRule subset.",
	},
	UnknownDestination: {
		"unknown_destination", "The destination is not in the registry and outboundTrafficPolicy is REGISTRY_ONLY.",
		0, "direct_response", 502,
		"Add a ServiceEntry for the host, or set outboundTrafficPolicy to ALLOW_ANY.",
	},
	NoHealthyEndpoint: {
		"no_healthy_endpoint", "The cluster has no endpoint that may be picked: none exists, none is ready, or all are ejected.",
		FlagUH, "no_healthy_upstream", 503,
		"Check that the Service selects ready pods and that outlierDetection has not ejected them all.",
	},
	ConfigMissing: {
		"config_missing", "Configuration asked for on demand did not arrive in time.",
		FlagNFCF, "route_configuration_not_found", 503,
		"Check that the control plane is up and reachable on port 15012 and that the proxy's certificate is valid; the destination works again once the proxy is connected.",
	},
	DirectResponse: {
		"direct_response", "The route answers by itself.",
		0, "direct_response", 0,
		"Nothing to do if the answer is wanted; otherwise look for directResponse in the route.",
	},
	Redirect: {
		"redirect", "The route redirects the client.",
		0, "direct_response", 301,
		"Nothing to do if the redirect is wanted; otherwise look for redirect in the route or httpsRedirect in the Gateway.",
	},
	LoopDetected: {
		"loop_detected", "The request passed through this proxy before.",
		0, "loop_detected", 502,
		"Look for a route or ServiceEntry whose destination resolves to the proxy that sends to it.",
	},
	ConnectionLimit: {
		"connection_limit", "The cluster's limit on connections is reached.",
		FlagUO, resetBefore + "{overflow}", 503,
		"Raise connectionPool.tcp.maxConnections in the DestinationRule, or add endpoints.",
	},
	PendingOverflow: {
		"pending_overflow", "The cluster's limit on waiting or active requests is reached.",
		FlagUO, resetBefore + "{overflow}", 503,
		"Raise http1MaxPendingRequests or http2MaxRequests in the DestinationRule, or add endpoints.",
	},
	DNSFailure: {
		"dns_failure", "The upstream's name could not be resolved.",
		FlagDF, "dns_resolution_failure", 503,
		"Check the host of the ServiceEntry and the resolver in the proxy's /etc/resolv.conf.",
	},
	ConnectRefused: {
		"connect_refused", "The endpoint refused the TCP connection.",
		FlagUF, resetBefore + "{remote_connection_failure}", 503,
		"Check that the application listens on the Service's targetPort, and on 0.0.0.0 or localhost as its proxy expects.",
	},
	ConnectTimeout: {
		"connect_timeout", "The endpoint did not accept the connection in time.",
		FlagUF, resetBefore + "{connection_timeout}", 503,
		"Check NetworkPolicy and firewalls on the way (15008 for HBONE) and connectionPool.tcp.connectTimeout.",
	},
	ConnectUnreachable: {
		"connect_unreachable", "The network has no way to the endpoint.",
		FlagUF, resetBefore + "{local_connection_failure}", 503,
		"Check routes between the nodes and that the endpoint's address still belongs to a pod.",
	},
	TunnelRefused: {
		"tunnel_refused", "The HBONE peer or HTTP proxy granted no tunnel.",
		FlagUF, resetBefore + "{remote_connection_failure}", 503,
		"Read the peer's access log: it refused by policy (403), found no such workload (404) or could not reach it (503).",
	},
	TLSFailure: {
		"tls_failure", "The TLS handshake failed.",
		FlagUF, resetBefore + "{remote_connection_failure|TLS_error}", 503,
		"Compare both sides' TLS modes: a DestinationRule's tls.mode beats automatic mutual TLS, and a plaintext port cannot answer a handshake.",
	},
	TLSIdentityMismatch: {
		"tls_identity_mismatch", "The peer proved an identity that is not among those expected.",
		FlagUF, resetBefore + "{remote_connection_failure|TLS_error}", 503,
		"Compare the peer's service account and trust domain with the Service's endpoints, subjectAltNames and trustDomainAliases.",
	},
	TLSNoCertificate: {
		"tls_no_certificate", "The peer presented no certificate where one is required.",
		FlagUF, resetBefore + "{remote_connection_failure|TLS_error}", 503,
		"Put the peer into the mesh, or let the port accept it: PeerAuthentication PERMISSIVE, or tls mode SIMPLE at a gateway.",
	},
	TLSExpired: {
		"tls_expired", "The peer's certificate is outside its validity period.",
		FlagUF, resetBefore + "{remote_connection_failure|TLS_error}", 503,
		"Compare the clocks of both nodes, and check that the peer's proxy can reach the certificate authority to rotate.",
	},
	TLSUntrusted: {
		"tls_untrusted", "The peer's certificate does not lead to a root of the trust bundle.",
		FlagUF, resetBefore + "{remote_connection_failure|TLS_error}", 503,
		"Check that both sides were issued by the same root, or that its bundle was distributed; a root that was replaced without overlap has this effect.",
	},
	NoIdentity: {
		"no_identity", "This proxy holds no valid certificate of its own yet.",
		FlagUF, resetBefore + "{remote_connection_failure|TLS_error}", 503,
		"Check the proxy's log for refused certificate requests: an unknown service account, a bad token, or an unreachable authority.",
	},
	UpstreamReset: {
		"upstream_reset", "The upstream reset the stream before it answered.",
		FlagUR, resetBefore + "{remote_reset}", 503,
		"Read the application's log; a retry policy with reset-before-request helps where the request may be repeated.",
	},
	UpstreamClosed: {
		"upstream_closed", "The upstream closed the connection before it answered.",
		FlagUC, resetBefore + "{connection_termination}", 503,
		"Make the application's keep-alive timeout longer than idleTimeout of the connection pool, or let idempotent requests be retried.",
	},
	UpstreamRefusedStream: {
		"upstream_refused_stream", "The upstream refused the stream before doing any work.",
		FlagUR, resetBefore + "{remote_refused_stream_reset}", 503,
		"The upstream is draining or over its stream limit; retryOn refused-stream repeats such requests safely.",
	},
	UpstreamCut: {
		"upstream_cut", "The upstream ended the response before it was complete.",
		FlagUC, resetAfter + "{connection_termination}", 0,
		"Read the application's log for a crash or a timeout of its own; the client has a truncated response.",
	},
	UpstreamProtocolError: {
		"upstream_protocol_error", "The upstream's answer is not valid HTTP.",
		FlagUPE, resetBefore + "{protocol_error}", 502,
		"Check the Service port's name or appProtocol: an HTTP/2 or TCP server declared as http answers like this.",
	},
	RequestTimeout: {
		"request_timeout", "The upstream did not complete its answer within the route's timeout.",
		FlagUT, "response_timeout", 504,
		"Find the slow span in the trace, or raise timeout in the route.",
	},
	PerTryTimeout: {
		"per_try_timeout", "The last try did not answer within the per-try timeout.",
		FlagUT, "upstream_per_try_timeout", 504,
		"Raise retries.perTryTimeout, or lower attempts so that all of them fit into timeout.",
	},
	StreamDurationLimit: {
		"stream_duration_limit", "The stream lived longer than the route allows.",
		FlagUMSDR, "upstream_max_stream_duration_reached", 504,
		"Raise the route's maximum stream duration, or let the client reconnect.",
	},
	RetriesExhausted: {
		"retries_exhausted", "Every permitted try failed; the last answer was passed on.",
		FlagURX, "via_upstream", 0,
		"Look at the endpoints that were tried in the access log: retries hide one bad endpoint, not a service that fails everywhere.",
	},
	LocalReset: {
		"local_reset", "The proxy gave the upstream stream up.",
		FlagLR, resetBefore + "{local_reset}", 503,
		"Read the proxy's log at the same moment: the stream was given up for a limit or a policy change.",
	},
	FaultAbort: {
		"fault_abort", "A configured fault aborted the request.",
		FlagFI, "fault_filter_abort", 503,
		"Remove fault.abort from the VirtualService if the experiment is over.",
	},
	FaultDelay: {
		"fault_delay", "A configured fault delayed the request.",
		FlagDI, "via_upstream", 0,
		"Remove fault.delay from the VirtualService if the experiment is over.",
	},
	RateLimited: {
		"rate_limited", "A limit counted in this proxy was hit.",
		FlagRL, "local_rate_limited", 429,
		"Raise the limit, or slow the client down: it may read the rate limit headers of the response.",
	},
	RateLimitedGlobally: {
		"rate_limited_globally", "A limit counted by the rate limit service was hit.",
		FlagRL, "request_rate_limited", 429,
		"Raise the limit at the rate limit service, or slow the client down.",
	},
	RateLimitUnavailable: {
		"rate_limit_unavailable", "The rate limit service could not be asked and the policy is to refuse.",
		FlagRLSE, "rate_limiter_error", 500,
		"Check that the rate limit service is up, or let requests pass while it is away.",
	},
	Overload: {
		"overload", "The proxy shed load to stay within its own limits.",
		FlagOM, "overload", 503,
		"Give the proxy more CPU or memory, or add replicas.",
	},
	DeniedByPolicy: {
		"denied_by_policy", "A DENY policy matched.",
		0, "rbac_access_denied_matched_policy[none]", 403,
		"Read the policy and rule that the log names; a DENY beats every ALLOW.",
	},
	NotAllowed: {
		"not_allowed", "ALLOW policies apply to the workload and none matched.",
		0, "rbac_access_denied_matched_policy[none]", 403,
		"Compare the caller's identity, method and path with the ALLOW rules; without mutual TLS the caller has no identity and principals never match.",
	},
	MTLSRequired: {
		"mtls_required", "The workload accepts mutual TLS only (STRICT) and the client spoke without it.",
		FlagNR, "filter_chain_not_found", 0,
		"Put the client into the mesh, or set PeerAuthentication to PERMISSIVE for the port until it is.",
	},
	TokenInvalid: {
		"token_invalid", "The request's JWT is malformed, expired, for another audience, or not signed by a key of its issuer.",
		0, "jwt_authn_access_denied", 401,
		"Decode the token and compare iss, aud and exp with the RequestAuthentication; check the clock of the issuer.",
	},
	TokenKeysUnavailable: {
		"token_keys_unavailable", "The keys of the JWT's issuer could not be fetched.",
		0, "jwt_authn_access_denied{Jwks_remote_fetch_is_failed}", 401,
		"Check that jwksUri answers from the control plane and from the proxy, or put the keys into jwks.",
	},
	ExternalDenied: {
		"external_denied", "The external authorizer refused.",
		FlagUAEX, "ext_authz_denied", 403,
		"Read the authorizer's log for this request id.",
	},
	ExternalUnavailable: {
		"external_unavailable", "The external authorizer could not be asked and the policy is to refuse.",
		FlagUAEX, "ext_authz_error", 403,
		"Check that the provider's service and port exist and answer within its timeout; failOpen lets requests pass meanwhile.",
	},
	DownstreamClosed: {
		"downstream_closed", "The client closed the connection before the answer was complete.",
		FlagDC, "downstream_remote_disconnect", 0,
		"Compare the client's timeout with the duration in the log: it gave up waiting.",
	},
	DownstreamReset: {
		"downstream_reset", "The client reset the stream before the answer was complete.",
		FlagDR, "http2.remote_reset", 0,
		"Compare the client's deadline with the duration in the log: it cancelled the call.",
	},
	DownstreamProtocolError: {
		"downstream_protocol_error", "What the client sent is not valid HTTP.",
		FlagDPE, "http1.codec_error", 400,
		"Check that the client speaks HTTP on this port: TLS or HTTP/2 sent to a plain HTTP/1.1 port looks like this.",
	},
	HeadersTooLarge: {
		"headers_too_large", "The request's header section is larger than the limit.",
		FlagDPE, "http1.headers_too_large", 431,
		"Look for cookies or tokens that grow; shorten them or raise the limit.",
	},
	BodyTooLarge: {
		"body_too_large", "The request's body is larger than the limit.",
		0, "request_payload_too_large", 413,
		"Raise the limit on bodies, or stream without a filter that must hold the whole body.",
	},
	HostMissing: {
		"host_missing", "The request names no host.",
		0, "missing_host_header", 400,
		"Make the client send a Host header (HTTP/1.1) or :authority (HTTP/2).",
	},
	PathInvalid: {
		"path_invalid", "The request's path cannot be normalized.",
		0, "path_normalization_failed", 400,
		"Check the client's percent-encoding, or choose another pathNormalization.",
	},
	HeaderInvalid: {
		"header_invalid", "A header that is strictly checked has an invalid value.",
		FlagIH, "request_headers_failed_strict_check", 400,
		"Check the values of the client's x-envoy-* headers.",
	},
	VersionUnsupported: {
		"version_unsupported", "The request's HTTP version is not accepted.",
		0, "low_version", 426,
		"Make the client speak HTTP/1.1 or newer, or accept HTTP/1.0.",
	},
	UpgradeRefused: {
		"upgrade_refused", "The route does not permit the protocol upgrade that was asked for.",
		0, "upgrade_failed", 403,
		"Permit the upgrade for the route, or check what the client asks for in its Upgrade header.",
	},
	HeaderTimeout: {
		"header_timeout", "The client did not complete its request headers in time.",
		0, "request_header_timeout", 408,
		"A slow or hostile client; raise the header timeout if such clients are wanted.",
	},
	ReceiveTimeout: {
		"receive_timeout", "The client did not complete its request in time.",
		0, "request_overall_timeout", 408,
		"Raise the request timeout if large uploads over slow links are wanted.",
	},
	IdleTimeout: {
		"idle_timeout", "Nothing moved on the stream or connection for too long.",
		FlagSI, "stream_idle_timeout", 408,
		"Raise the idle timeout, or let one side send keep-alives.",
	},
	ConnectionDurationLimit: {
		"connection_duration_limit", "The connection lived longer than its limit.",
		FlagDT, "duration_timeout", 0,
		"Nothing to do: the limit spreads long-lived connections; raise it if clients cannot reconnect.",
	},
	Draining: {
		"draining", "The proxy is being stopped or replaced and takes nothing new.",
		0, "downstream_local_disconnect(deferred_close_on_drained_connection)", 503,
		"Nothing to do: clients reconnect to another replica; raise the drain duration if they are slow to do so.",
	},
	InternalError: {
		"internal_error", "The proxy broke an invariant of its own.",
		0, "internal_error", 500,
		"Report a bug with the proxy's log of that moment and its version.",
	},
}
