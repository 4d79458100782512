// Package plan is what one proxy is ordered to do: the target language of the
// compiler, the value that travels over the wire and the value that the data
// plane obeys. It is the one vocabulary that both planes share.
//
// In: nothing. Out: five kinds of named Resource (Listener, Route, Cluster,
// Endpoints, Name) and a sixth, Secret, for gateways. A resource refers to
// others by name, so that each can be asked for on demand, cached and shared by
// every proxy of a scope. Values are immutable once they have left the
// compiler; any goroutine may read them. The package must not know sockets,
// clocks, clusters or encodings.
package plan

import "fmt"

// Kind is a kind of resource; its text is part of the wire's type name.
type Kind uint8

// The kinds, in the order in which a change is carried: what is referred to goes before what refers to it.
const (
	KindCluster Kind = iota + 1
	KindEndpoints
	KindSecret
	KindListener
	KindRoute
	KindName
)

// Kinds lists every Kind in that order.
func Kinds() []Kind {
	return []Kind{KindCluster, KindEndpoints, KindSecret, KindListener, KindRoute, KindName}
}

var kindNames = [...]string{"", "cluster", "endpoints", "secret", "listener", "route", "name"}

// String returns the kind's name, for example "cluster".
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Resource is one named part of a plan. String prints it for a person.
type Resource interface {
	ResourceName() string
	ResourceKind() Kind
	fmt.Stringer
}

// Origin is the piece of configuration that made a decision, so that whoever
// obeys it can say why.
type Origin struct {
	Kind, Namespace, Name string
	File                  string // empty when the object did not come from a file
	Line                  int    // 1-based; 0 if unknown
}

// String is "Kind namespace/name" and, if known, "file:line"; empty for no origin.
func (o Origin) String() string {
	if o == (Origin{}) {
		return ""
	}
	s := o.Kind + " " + o.Namespace + "/" + o.Name
	if o.File != "" || o.Line != 0 {
		s += fmt.Sprintf(" (%s:%d)", o.File, o.Line)
	}
	return s
}

// Protocol is what a port speaks.
type Protocol uint8

// The protocols a proxy tells apart.
const (
	ProtocolAuto  Protocol = iota // undeclared: detect from the bytes of both sides
	ProtocolHTTP                  // HTTP/1.1
	ProtocolHTTP2                 // HTTP/2 without negotiation, or by ALPN under TLS
	ProtocolGRPC                  // HTTP/2 with gRPC's status rules
	ProtocolTCP                   // opaque bytes
	ProtocolTLS                   // opaque TLS, routed by SNI
)

var protocolNames = [...]string{"auto", "http", "http2", "grpc", "tcp", "tls"}

// String returns the protocol's name in lower case.
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return fmt.Sprintf("protocol(%d)", uint8(p))
}

// IsHTTP reports whether the protocol is relayed request by request.
func (p Protocol) IsHTTP() bool {
	return p == ProtocolHTTP || p == ProtocolHTTP2 || p == ProtocolGRPC
}

// StringMatch matches a text. The zero value matches nothing.
type StringMatch struct {
	Kind       MatchKind
	Value      string // for MatchRegex an RE2 expression that must match the whole text
	IgnoreCase bool   // for exact and prefix only, as in Istio
}

// MatchKind is how a StringMatch compares.
type MatchKind uint8

// The ways to compare.
const (
	MatchNone    MatchKind = iota
	MatchExact             // equal
	MatchPrefix            // starts with
	MatchSuffix            // ends with
	MatchRegex             // RE2, whole text
	MatchPresent           // any value, present
	MatchPath              // path template: {*} is one segment, {**} the rest
)

var matchNames = [...]string{"none", "=", "prefix", "suffix", "regex", "present", "template"}

// String returns the way's name.
func (k MatchKind) String() string {
	if int(k) < len(matchNames) {
		return matchNames[k]
	}
	return fmt.Sprintf("match(%d)", uint8(k))
}
