package accesslog

import (
	"net/netip"
	"time"

	"github.com/lateen-mesh/lateen/telemetry"
)

// Headers finds a header field. The name is in lower case; the value is valid
// until the headers change.
type Headers interface {
	Get(name string) ([]byte, bool)
}

// Entry is what a line tells about one request or connection. The zero value of
// a field is "not known", written "-". Fields of bytes and Headers are read
// during Append only and may point into the loop's buffers.
type Entry struct {
	// Start is when the request's first byte, or the connection, arrived.
	Start time.Time
	// Duration is from Start to the last byte sent.
	Duration time.Duration
	// RequestDuration is from Start to the last byte received from the client, RequestTxDuration to the last byte
	// sent upstream, ResponseDuration to the first byte received from upstream.
	RequestDuration, RequestTxDuration, ResponseDuration time.Duration

	// Protocol is "HTTP/1.1", "HTTP/2" and so on; empty for TCP.
	Protocol string
	// UpstreamProtocol is the same for the upstream's side.
	UpstreamProtocol string
	// Method, Scheme, Authority and Path are the request's.
	Method, Scheme, Authority, Path []byte
	// Request, Response and Trailers are the header fields; nil if there are none.
	Request, Response, Trailers Headers
	// Status is the HTTP status sent; 0 if none was.
	Status int
	// GRPC is the gRPC status.
	GRPC telemetry.GRPCStatus

	// Reason says what went wrong, Particular the particular of this case; see telemetry.Reason.AppendDetails.
	Reason     telemetry.Reason
	Particular string
	// Decider names the object that decided, as in "bookinfo.yaml:12 VirtualService default/reviews".
	Decider string
	// Flags are the response flags; the caller adds those of Reason and of what happened besides.
	Flags telemetry.Flags
	// Termination says why the connection ended, for reasons below HTTP.
	Termination string
	// UpstreamFailure and DownstreamFailure say why a TLS handshake with that side failed.
	UpstreamFailure, DownstreamFailure string

	// BytesReceived and BytesSent are the body bytes from and to the client, or all bytes of a TCP connection.
	BytesReceived, BytesSent uint64
	// The sizes of the header sections, and the bytes on each wire.
	RequestHeaderBytes, ResponseHeaderBytes, ResponseTrailerBytes uint64
	DownstreamWireReceived, DownstreamWireSent                    uint64
	UpstreamWireReceived, UpstreamWireSent                        uint64
	// Attempts is how often the request was sent upstream.
	Attempts uint64
	// ConnectionID and UpstreamConnectionID number the connections.
	ConnectionID, UpstreamConnectionID uint64

	// UpstreamHost is the endpoint that was picked, UpstreamRemote and UpstreamLocal are the connection's addresses.
	UpstreamHost, UpstreamRemote, UpstreamLocal netip.AddrPort
	// DownstreamRemote is the client as it is known from proxies before us, DownstreamDirect the connection's peer.
	DownstreamRemote, DownstreamDirect netip.AddrPort
	// DownstreamLocal is the original destination, DownstreamDirectLocal the listener's address.
	DownstreamLocal, DownstreamDirectLocal netip.AddrPort
	// UpstreamCluster is the cluster's name, as in "outbound|9080||reviews.default.svc.cluster.local".
	UpstreamCluster string
	// Route is the route's name, FilterChain that of the filter chain.
	Route, FilterChain string
	// ServerName is the TLS server name that the client asked for.
	ServerName string

	// TLS properties of both sides.
	DownstreamPeerURI, DownstreamLocalURI, DownstreamTLSVersion, DownstreamTLSCipher string
	UpstreamPeerURI, UpstreamLocalURI, UpstreamTLSVersion, UpstreamTLSCipher         string

	// TraceID and SpanID are those of the exchange; zero if it is not traced.
	TraceID [16]byte
	SpanID  [8]byte
	// LogType is "DownstreamEnd", "TcpConnectionEnd", "TcpPeriodic" and so on.
	LogType string
}
