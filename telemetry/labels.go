package telemetry

import (
	"slices"
	"strconv"
	"strings"
	"unique"
)

// Istio's metric names (Istio, reference, standard metrics).
const (
	MetricRequests         = "istio_requests_total"
	MetricRequestDuration  = "istio_request_duration_milliseconds"
	MetricRequestBytes     = "istio_request_bytes"
	MetricResponseBytes    = "istio_response_bytes"
	MetricRequestMessages  = "istio_request_messages_total"
	MetricResponseMessages = "istio_response_messages_total"
	MetricTCPOpened        = "istio_tcp_connections_opened_total"
	MetricTCPClosed        = "istio_tcp_connections_closed_total"
	MetricTCPSent          = "istio_tcp_sent_bytes_total"
	MetricTCPReceived      = "istio_tcp_received_bytes_total"
	MetricBuild            = "istio_build"
)

// Unknown is the value of a label whose content is not known.
const Unknown = "unknown"

// Other is the value of the labels of the series that takes what exceeds a cardinality limit.
const Other = "other"

// labelMaxBytes bounds a label's value: peers send their own metadata.
const labelMaxBytes = 512

// latest is the canonical revision of a workload that declares none.
const latest = "latest"

// EdgeLabels are the labels of istio_request_messages_total and
// istio_response_messages_total, and the first labels of all the others, in the
// order of EdgeKey.AppendValues. The message counters have no more than these,
// because they are reported while the stream is still open.
var EdgeLabels = []string{
	"reporter",
	"source_workload", "source_workload_namespace", "source_principal", "source_app", "source_version",
	"source_canonical_service", "source_canonical_revision", "source_cluster",
	"destination_workload", "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
	"destination_canonical_service", "destination_canonical_revision", "destination_cluster",
	"destination_service", "destination_service_name", "destination_service_namespace",
}

// RequestLabels are the labels of the HTTP and gRPC metrics, in the order of RequestKey.AppendValues.
var RequestLabels = append(slices.Clip(EdgeLabels),
	"request_protocol", "response_code", "grpc_response_status", "response_flags", "connection_security_policy")

// TCPLabels are the labels of the TCP metrics, in the order of TCPKey.AppendValues.
var TCPLabels = append(slices.Clip(EdgeLabels),
	"request_protocol", "response_flags", "connection_security_policy")

// Peer is one end of an exchange, as metrics and logs name it. An empty field is
// unknown.
type Peer struct {
	// Workload is the Deployment, StatefulSet or other owner, not the pod.
	Workload string
	// Namespace is the workload's namespace.
	Namespace string
	// Principal is the proven SPIFFE identity, as in "spiffe://cluster.local/ns/default/sa/default".
	Principal string
	// App and Version are the labels app and version.
	App, Version string
	// CanonicalService and CanonicalRevision are Istio's canonical service and revision.
	CanonicalService, CanonicalRevision string
	// Cluster is the name of the Kubernetes cluster.
	Cluster string
}

// PeerRef stands for a Peer's value in a key: two refs are equal if and only if
// the labels they give are. The zero PeerRef is the unknown peer. A ref is one
// word, so comparing and hashing it costs no more than a pointer.
type PeerRef struct{ h unique.Handle[Peer] }

// Ref returns the peer's ref. Make refs when a plan is compiled or a peer is
// first met: it hashes every field. Fields are made fit to be label values:
// valid UTF-8 of at most 512 bytes.
func (p Peer) Ref() PeerRef {
	p = Peer{
		label(p.Workload), label(p.Namespace), label(p.Principal), label(p.App), label(p.Version),
		label(p.CanonicalService), label(p.CanonicalRevision), label(p.Cluster),
	}
	if p.CanonicalRevision == latest {
		p.CanonicalRevision = ""
	}
	if p == (Peer{}) {
		return PeerRef{}
	}
	return PeerRef{unique.Make(p)}
}

// Peer returns the value.
func (r PeerRef) Peer() Peer {
	if r == (PeerRef{}) {
		return Peer{}
	}
	return r.h.Value()
}

func (r PeerRef) appendValues(dst []string) []string {
	p := r.Peer()
	return append(dst, known(p.Workload), known(p.Namespace), known(p.Principal), known(p.App), known(p.Version),
		known(p.CanonicalService), orElse(p.CanonicalRevision, latest), known(p.Cluster))
}

// Service is the destination service of an exchange. An empty field is unknown.
type Service struct {
	// Host is the full name, as in "reviews.default.svc.cluster.local".
	Host string
	// Name is the short name, as in "reviews"; or "PassthroughCluster", "BlackHoleCluster", "InboundPassthroughCluster".
	Name string
	// Namespace is the service's namespace.
	Namespace string
}

// ServiceRef stands for a Service's value in a key, as PeerRef does for a Peer's.
type ServiceRef struct{ h unique.Handle[Service] }

// Ref returns the service's ref; see Peer.Ref.
func (s Service) Ref() ServiceRef {
	s = Service{label(s.Host), label(s.Name), label(s.Namespace)}
	if s == (Service{}) {
		return ServiceRef{}
	}
	return ServiceRef{unique.Make(s)}
}

// Service returns the value.
func (r ServiceRef) Service() Service {
	if r == (ServiceRef{}) {
		return Service{}
	}
	return r.h.Value()
}

// Reporter says which side of the exchange counts it.
type Reporter uint8

// The reporters.
const (
	// ReporterSource: the client's proxy, and gateways.
	ReporterSource Reporter = iota
	// ReporterDestination: the server's proxy.
	ReporterDestination
	// ReporterWaypoint: a waypoint.
	ReporterWaypoint
)

// String returns the value of the label reporter.
func (r Reporter) String() string {
	return choose(uint8(r), "source", "destination", "waypoint")
}

// Protocol is what the exchange spoke.
type Protocol uint8

// The protocols.
const (
	// ProtocolHTTP: HTTP of any version.
	ProtocolHTTP Protocol = iota
	// ProtocolGRPC: gRPC.
	ProtocolGRPC
	// ProtocolTCP: bytes.
	ProtocolTCP
)

// String returns the value of the label request_protocol.
func (p Protocol) String() string { return choose(uint8(p), "http", "grpc", "tcp") }

// Security says how the connection was secured. Istio's client side reports
// unknown, because only the server side knows for certain.
type Security uint8

// The connection security policies.
const (
	// SecurityUnknown: the reporter cannot tell.
	SecurityUnknown Security = iota
	// SecurityNone: not mutual TLS.
	SecurityNone
	// SecurityMutualTLS: mutual TLS.
	SecurityMutualTLS
)

// String returns the value of the label connection_security_policy.
func (s Security) String() string { return choose(uint8(s), Unknown, "none", "mutual_tls") }

// GRPCStatus is a gRPC status code or, the zero value, the absence of one.
type GRPCStatus uint8

// NoGRPCStatus stands for an exchange that is not gRPC, or that ended without a status.
const NoGRPCStatus GRPCStatus = 0

// grpcCodes are the names of the status codes 0 to 16.
//
// Source: gRPC core documentation, "Status codes and their use in gRPC".
var grpcCodes = [...]string{
	"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
	"ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss",
	"Unauthenticated",
}

// GRPCCode returns the status for the wire's number. Numbers that gRPC does not
// define become 2 (UNKNOWN), as the gRPC specification has clients do; that also
// bounds the number of label values.
func GRPCCode(code int) GRPCStatus {
	if code < 0 || code >= len(grpcCodes) {
		code = 2
	}
	return GRPCStatus(code + 1)
}

// GRPCFromHTTP returns the gRPC status that stands for an HTTP status when a
// response to a gRPC request carries no grpc-status of its own.
//
// Source: gRPC core documentation, "HTTP to gRPC status code mapping".
func GRPCFromHTTP(status int) GRPCStatus {
	switch status {
	case 400:
		return GRPCCode(13) // INTERNAL
	case 401:
		return GRPCCode(16) // UNAUTHENTICATED
	case 403:
		return GRPCCode(7) // PERMISSION_DENIED
	case 404:
		return GRPCCode(12) // UNIMPLEMENTED
	case 429, 502, 503, 504:
		return GRPCCode(14) // UNAVAILABLE
	default:
		return GRPCCode(2) // UNKNOWN
	}
}

// Code returns the wire's number; -1 for NoGRPCStatus.
func (s GRPCStatus) Code() int { return int(s) - 1 }

// Name returns the code's name in camel case, as in "InvalidArgument"; "" for NoGRPCStatus.
func (s GRPCStatus) Name() string {
	if s == NoGRPCStatus || int(s) > len(grpcCodes) {
		return ""
	}
	return grpcCodes[s-1]
}

// String returns the value of the label grpc_response_status: the number, or "" for NoGRPCStatus.
func (s GRPCStatus) String() string {
	if s == NoGRPCStatus {
		return ""
	}
	return strconv.Itoa(s.Code())
}

// EdgeKey names who talks to whom, and who counts it. It is comparable.
type EdgeKey struct {
	Source, Destination PeerRef
	Service             ServiceRef
	Reporter            Reporter
}

// AppendValues appends the values of EdgeLabels.
func (k EdgeKey) AppendValues(dst []string) []string {
	dst = append(dst, k.Reporter.String())
	dst = k.Source.appendValues(dst)
	dst = k.Destination.appendValues(dst)
	s := k.Service.Service()
	return append(dst, known(s.Host), known(s.Name), known(s.Namespace))
}

// RequestKey names a series of the HTTP and gRPC metrics. It is comparable.
type RequestKey struct {
	Source, Destination PeerRef
	Service             ServiceRef
	// Flags are the response flags.
	Flags Flags
	// Code is the HTTP status; 0 if the client left before one was sent.
	Code uint16
	// GRPC is the gRPC status.
	GRPC     GRPCStatus
	Reporter Reporter
	Protocol Protocol
	Security Security
}

// Edge returns the edge that the request belongs to.
func (k *RequestKey) Edge() EdgeKey {
	return EdgeKey{Source: k.Source, Destination: k.Destination, Service: k.Service, Reporter: k.Reporter}
}

// AppendValues appends the values of RequestLabels.
func (k *RequestKey) AppendValues(dst []string) []string {
	return append(k.Edge().AppendValues(dst),
		k.Protocol.String(), strconv.Itoa(int(k.Code)), k.GRPC.String(), k.Flags.String(), k.Security.String())
}

// TCPKey names a series of the TCP metrics. It is comparable.
type TCPKey struct {
	Source, Destination PeerRef
	Service             ServiceRef
	// Flags are the response flags.
	Flags    Flags
	Reporter Reporter
	Security Security
}

// Edge returns the edge that the connection belongs to.
func (k *TCPKey) Edge() EdgeKey {
	return EdgeKey{Source: k.Source, Destination: k.Destination, Service: k.Service, Reporter: k.Reporter}
}

// AppendValues appends the values of TCPLabels.
func (k *TCPKey) AppendValues(dst []string) []string {
	return append(k.Edge().AppendValues(dst), ProtocolTCP.String(), k.Flags.String(), k.Security.String())
}

// label makes a foreign string fit to be a label's value. The value "unknown" is
// the same label as no value, so it is the same ref.
func label(s string) string {
	if len(s) > labelMaxBytes {
		s = s[:labelMaxBytes]
	}
	s = strings.ToValidUTF8(s, "")
	if s == Unknown {
		return ""
	}
	return s
}

func known(s string) string { return orElse(s, Unknown) }

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func choose(i uint8, names ...string) string {
	if int(i) < len(names) {
		return names[i]
	}
	return Unknown
}
