// Package mesh is the picture of the mesh: what users wrote, read and with all
// names resolved, as immutable values, and the Snapshot that holds a consistent
// set of them with the indexes that a compiler asks for.
//
// In: values built by source from YAML or from a cluster. Out: Snapshot, View.
// It must not know YAML, protobuf, sockets, clocks or what a proxy is told. All
// values are immutable once they are in a Snapshot; any goroutine may read them.
package mesh

import (
	"fmt"
	"slices"
)

// Kind is a kind of object in the picture.
type Kind uint8

// The kinds.
const (
	KindService Kind = iota + 1
	KindWorkload
	KindRoute
	KindTraffic
	KindGateway
	KindAuthn
	KindAuthz
	KindTelemetry
	KindSecret
	KindConfig
)

var kindNames = [...]string{"", "service", "workload", "route", "traffic", "gateway", "authn", "authz", "telemetry", "secret", "config"}

// String returns the kind's name in lower case.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Object is one immutable thing in the picture.
type Object interface {
	// Ref is what the object is; no two objects of a Snapshot share one.
	Ref() Ref
	// From is the configuration that made it.
	From() Origin
}

// Ref names an object.
type Ref struct {
	Kind            Kind
	Namespace, Name string
}

// String is "kind namespace/name".
func (r Ref) String() string { return r.Kind.String() + " " + r.Namespace + "/" + r.Name }

// Origin is the piece of configuration that made an object.
type Origin struct {
	Kind, Namespace, Name string // as the user wrote them: "VirtualService"
	File                  string // empty when it did not come from a file
	Line                  int    // 1-based; 0 if unknown
	// Created orders objects that compete; nanoseconds since 1970, 0 if unknown (then Namespace and Name order them).
	Created int64
}

// From returns the origin itself; values embed Origin to be an Object.
func (o Origin) From() Origin { return o }

// Labels are key/value labels.
type Labels map[string]string

// Match reports whether every label of the selector is among l. An empty selector matches everything.
func (l Labels) Match(selector Labels) bool {
	for k, v := range selector {
		if got, ok := l[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Visibility is who may see an object: exportTo. The zero value is everybody.
type Visibility struct {
	Namespaces []string // names; "." is already resolved; "*" alone means everybody and is left out
	None       bool     // "~"
}

// Sees reports whether a namespace sees the object.
func (v Visibility) Sees(namespace string) bool {
	if v.None {
		return false
	}
	return len(v.Namespaces) == 0 || slices.Contains(v.Namespaces, namespace)
}

// Protocol is what a port speaks; the values are those of the plan.
type Protocol uint8

// The protocols.
const (
	Auto Protocol = iota
	HTTP
	HTTP2
	GRPC
	TCP
	TLS
	HTTPS // TLS whose inside is HTTP; terminated only by gateways
	UDP
)

var protocolNames = [...]string{"auto", "http", "http2", "grpc", "tcp", "tls", "https", "udp"}

// String returns the protocol's name in lower case.
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return fmt.Sprintf("protocol(%d)", uint8(p))
}

// IsHTTP reports whether requests can be told apart.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 || p == GRPC }

// StringMatch matches a text; the zero value matches nothing.
type StringMatch struct {
	Kind       MatchKind
	Value      string
	IgnoreCase bool
}

// MatchKind is how a StringMatch compares; the values are those of the plan.
type MatchKind uint8

// The ways to compare.
const (
	MatchNone MatchKind = iota
	MatchExact
	MatchPrefix
	MatchSuffix
	MatchRegex   // RE2, whole text
	MatchPresent // any value
	MatchPath    // path template with {*} and {**}
	// MatchSegments is a prefix of whole path segments: "/a" matches "/a" and "/a/b", but not "/ab". No plan knows it.
	MatchSegments
)
