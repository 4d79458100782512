package telemetry

import "math/bits"

// Flags is a set of Envoy's response flags: what %RESPONSE_FLAGS% prints and the
// label response_flags holds. The zero value is the empty set, written "-".
//
// Source: Envoy, advanced configuration, substitution formatter, RESPONSE_FLAGS.
type Flags uint32

// Envoy's response flags, in Envoy's order, which is also the order in which a set is written.
const (
	// FlagLH: the local service failed its health check.
	FlagLH Flags = 1 << iota
	// FlagUH: no healthy endpoint in the cluster.
	FlagUH
	// FlagUT: the upstream did not answer in time.
	FlagUT
	// FlagLR: the stream was reset locally.
	FlagLR
	// FlagUR: the upstream reset the stream.
	FlagUR
	// FlagUF: the upstream connection could not be made.
	FlagUF
	// FlagUC: the upstream closed the connection.
	FlagUC
	// FlagUO: a circuit breaker was open (overflow).
	FlagUO
	// FlagNR: no route or no filter chain matched.
	FlagNR
	// FlagDI: a delay was injected.
	FlagDI
	// FlagFI: an abort was injected.
	FlagFI
	// FlagRL: a rate limit was hit.
	FlagRL
	// FlagUAEX: external authorization refused.
	FlagUAEX
	// FlagRLSE: the rate limit service could not be asked.
	FlagRLSE
	// FlagDC: the client closed the connection.
	FlagDC
	// FlagURX: the retry limit, or the limit on connection attempts, was reached.
	FlagURX
	// FlagSI: the stream was idle for too long.
	FlagSI
	// FlagIH: a strictly checked x-envoy-* header was invalid.
	FlagIH
	// FlagDPE: the client broke the protocol.
	FlagDPE
	// FlagUMSDR: the maximum stream duration was reached.
	FlagUMSDR
	// FlagRFCF: the response came from a cache.
	FlagRFCF
	// FlagNFCF: configuration did not arrive in time.
	FlagNFCF
	// FlagDT: the maximum connection duration was reached.
	FlagDT
	// FlagUPE: the upstream broke the protocol.
	FlagUPE
	// FlagNC: the route names a cluster that does not exist.
	FlagNC
	// FlagOM: the proxy shed load.
	FlagOM
	// FlagDF: a name could not be resolved.
	FlagDF
	// FlagDO: the endpoint assignment asked to drop a share of the load.
	FlagDO
	// FlagDR: the client reset the HTTP/2 stream.
	FlagDR
	// FlagUDO: the endpoint assignment asked to drop all of the load.
	FlagUDO
)

type flagName struct{ short, long string }

var flagNames = [...]flagName{
	{"LH", "FailedLocalHealthCheck"},
	{"UH", "NoHealthyUpstream"},
	{"UT", "UpstreamRequestTimeout"},
	{"LR", "LocalReset"},
	{"UR", "UpstreamRemoteReset"},
	{"UF", "UpstreamConnectionFailure"},
	{"UC", "UpstreamConnectionTermination"},
	{"UO", "UpstreamOverflow"},
	{"NR", "NoRouteFound"},
	{"DI", "DelayInjected"},
	{"FI", "FaultInjected"},
	{"RL", "RateLimited"},
	{"UAEX", "UnauthorizedExternalService"},
	{"RLSE", "RateLimitServiceError"},
	{"DC", "DownstreamConnectionTermination"},
	{"URX", "UpstreamRetryLimitExceeded"},
	{"SI", "StreamIdleTimeout"},
	{"IH", "InvalidEnvoyRequestHeaders"},
	{"DPE", "DownstreamProtocolError"},
	{"UMSDR", "UpstreamMaxStreamDurationReached"},
	{"RFCF", "ResponseFromCacheFilter"},
	{"NFCF", "NoFilterConfigFound"},
	{"DT", "DurationTimeout"},
	{"UPE", "UpstreamProtocolError"},
	{"NC", "NoClusterFound"},
	{"OM", "OverloadManagerTerminated"},
	{"DF", "DnsResolutionFailed"},
	{"DO", "DropOverload"},
	{"DR", "DownstreamRemoteReset"},
	{"UDO", "UnconditionalDropOverload"},
}

// String returns the short names joined by commas, as in "UF,URX"; "-" for the empty set.
func (f Flags) String() string { return string(f.Append(nil)) }

// Append appends what String returns.
func (f Flags) Append(dst []byte) []byte { return f.join(dst, false) }

// AppendLong appends the long names joined by commas, as %RESPONSE_FLAGS_LONG% prints them.
func (f Flags) AppendLong(dst []byte) []byte { return f.join(dst, true) }

func (f Flags) join(dst []byte, long bool) []byte {
	if f == 0 {
		return append(dst, '-')
	}
	for rest, n := f, 0; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros32(uint32(rest))
		if i >= len(flagNames) {
			break
		}
		if n > 0 {
			dst = append(dst, ',')
		}
		n++
		if long {
			dst = append(dst, flagNames[i].long...)
		} else {
			dst = append(dst, flagNames[i].short...)
		}
	}
	return dst
}
