package trace

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/telemetry"
)

// Limits of a span. They also are its size, since a span is copied whole.
const (
	tagsMax      = 28
	textMaxBytes = 1024
	// tagMaxBytes is Istio's default for the longest tag (maxPathTagLength).
	tagMaxBytes = 256
)

// Kind says which side of a call the span is.
type Kind uint8

// The kinds.
const (
	// Server: the call was received.
	Server Kind = iota
	// Client: the call was sent.
	Client
)

// Span is a finished span. It holds no pointer to memory that changes, so it may be
// copied to another goroutine. The zero value is empty and may be filled; a loop
// fills the same one again and again.
type Span struct {
	Trace      ID
	ID, Parent SpanID
	Kind       Kind
	// Name is the operation, as Operation gives it.
	Name  string
	Start time.Time
	// Duration is from the first byte in to the last byte out.
	Duration time.Duration
	// Failed marks the span as one of an error.
	Failed bool

	tags  [tagsMax]tag
	count int
	text  [textMaxBytes]byte
	used  int
}

// tag is a key with a value that is either a string that never changes or a piece of Span.text.
type tag struct {
	key, value string
	from, to   int32
}

// Reset empties the span and sets its place.
func (s *Span) Reset(c *Context) {
	s.Trace, s.ID, s.Parent = c.Trace, c.Span, c.Parent
	s.Kind, s.Name, s.Start, s.Duration, s.Failed = Server, "", time.Time{}, 0, false
	s.count, s.used = 0, 0
}

// SetString sets a tag to a string, which is kept, not copied.
func (s *Span) SetString(key, value string) {
	if t := s.add(key); t != nil {
		t.value = value
	}
}

// SetBytes sets a tag to a copy of bytes, cut to 256.
func (s *Span) SetBytes(key string, value []byte) {
	if t := s.add(key); t != nil {
		n := copy(s.text[s.used:], value[:min(len(value), tagMaxBytes)])
		s.take(t, n)
	}
}

// SetUint sets a tag to a number.
func (s *Span) SetUint(key string, value uint64) {
	if t := s.add(key); t != nil {
		s.take(t, len(strconv.AppendUint(s.text[s.used:s.used:s.used+s.room()], value, 10)))
	}
}

// add returns a new tag, or nil if there is no room.
func (s *Span) add(key string) *tag {
	const longestNumber = 20
	if s.count == tagsMax || s.room() < longestNumber {
		return nil
	}
	t := &s.tags[s.count]
	*t = tag{key: key}
	s.count++
	return t
}

func (s *Span) room() int { return textMaxBytes - s.used }

// take gives the next n bytes of text to a tag.
func (s *Span) take(t *tag, n int) {
	t.from, t.to = int32(s.used), int32(s.used+n)
	s.used += n
}

// Tags calls yield with each tag, in the order in which they were set; what was
// cut in the middle of a character is made valid UTF-8.
func (s *Span) Tags(yield func(key, value string) bool) {
	for i := range s.count {
		t := &s.tags[i]
		value := t.value
		if t.to > t.from {
			value = string(s.text[t.from:t.to])
		}
		if !yield(t.key, strings.ToValidUTF8(value, "\ufffd")) {
			return
		}
	}
}

// Names of tags (Envoy's, and Istio's own with its prefix).
const (
	TagComponent           = "component"
	TagNodeID              = "node_id"
	TagURL                 = "http.url"
	TagMethod              = "http.method"
	TagProtocol            = "http.protocol"
	TagStatus              = "http.status_code"
	TagUserAgent           = "user_agent"
	TagRequestID           = "guid:x-request-id"
	TagRequestSize         = "request_size"
	TagResponseSize        = "response_size"
	TagResponseFlags       = "response_flags"
	TagUpstreamCluster     = "upstream_cluster"
	TagUpstreamClusterName = "upstream_cluster.name"
	TagDownstreamCluster   = "downstream_cluster"
	TagPeerAddress         = "peer.address"
	TagGRPCStatus          = "grpc.status_code"
	TagGRPCPath            = "grpc.path"
	TagError               = "error"
	TagCanonicalService    = "istio.canonical_service"
	TagCanonicalRevision   = "istio.canonical_revision"
	TagMeshID              = "istio.mesh_id"
	TagNamespace           = "istio.namespace"
	TagClusterID           = "istio.cluster_id"
	// TagReason is our own: the word of a telemetry.Reason.
	TagReason = "lateen.reason"
)

// HTTP is what Istio's tags tell about a request. Bytes are copied.
type HTTP struct {
	Method, Scheme, Authority, Path, UserAgent, RequestID []byte
	// Protocol is "HTTP/1.1", "HTTP/2" and so on.
	Protocol                 string
	Status                   int
	GRPC                     telemetry.GRPCStatus
	Flags                    telemetry.Flags
	Reason                   telemetry.Reason
	BytesReceived, BytesSent uint64
	// UpstreamCluster is the cluster's name, as in "outbound|9080||reviews.default.svc.cluster.local".
	UpstreamCluster string
	// Peer is the client's address in a server span, the endpoint's in a client span.
	Peer netip.AddrPort
}

// SetHTTP sets the tags that Istio sets, and Failed as Envoy does: no status, a
// status of 500 or more, or a gRPC status other than OK.
func (s *Span) SetHTTP(h *HTTP) {
	s.SetString(TagComponent, "proxy")
	s.SetBytes(TagMethod, h.Method)
	s.setURL(h)
	s.SetString(TagProtocol, orDash(h.Protocol))
	s.SetUint(TagStatus, uint64(max(0, h.Status)))
	s.SetUint(TagRequestSize, h.BytesReceived)
	s.SetUint(TagResponseSize, h.BytesSent)
	if t := s.add(TagResponseFlags); t != nil {
		var buf [128]byte
		s.take(t, copy(s.text[s.used:], h.Flags.Append(buf[:0])))
	}
	s.SetString(TagUpstreamCluster, h.UpstreamCluster)
	s.SetString(TagUpstreamClusterName, h.UpstreamCluster)
	if len(h.UserAgent) > 0 {
		s.SetBytes(TagUserAgent, h.UserAgent)
	}
	if len(h.RequestID) > 0 {
		s.SetBytes(TagRequestID, h.RequestID)
	}
	if h.Peer.IsValid() {
		if t := s.add(TagPeerAddress); t != nil {
			var buf [64]byte
			s.take(t, copy(s.text[s.used:], h.Peer.AppendTo(buf[:0])))
		}
	}
	if h.GRPC != telemetry.NoGRPCStatus {
		s.SetBytes(TagGRPCPath, h.Path)
		s.SetUint(TagGRPCStatus, uint64(h.GRPC.Code()))
	}
	if h.Reason != telemetry.None {
		s.SetString(TagReason, h.Reason.String())
	}
	if h.Status == 0 || h.Status >= 500 || h.GRPC.Code() > 0 {
		s.Failed = true
		s.SetString(TagError, "true")
	}
}

func (s *Span) setURL(h *HTTP) {
	t := s.add(TagURL)
	if t == nil {
		return
	}
	at := s.used
	for _, part := range [...][]byte{h.Scheme, []byte("://"), h.Authority, h.Path} {
		at += copy(s.text[at:], part[:min(len(part), tagMaxBytes)])
	}
	s.take(t, at-s.used)
}

// Operation returns the name that Istio gives to the spans of a route, as in
// "reviews.default.svc.cluster.local:9080/*". path is the route's path match, with
// "*" after a prefix; empty stands for "/*". Make it when a plan is compiled.
func Operation(host string, port uint16, path string) string {
	if path == "" {
		path = "/*"
	}
	return host + ":" + strconv.Itoa(int(port)) + path
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
