// Package api is what users write: the accepted kinds of objects, Istio's and
// Kubernetes' own Go types, read strictly from YAML or JSON.
//
// In: the bytes of a file. Out: objects with the place of every field, and all
// faults and warnings of the file, each with file, line, column, object and
// path. It must not know what a mesh, a cluster or a proxy is, and reads no
// file itself. Every function may be called concurrently; an Object is not
// changed after Decode returns it.
package api

import (
	"fmt"
	"strconv"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

// RootNamespace is the namespace whose policies hold for the whole mesh and
// where the mesh's configuration lives, unless that configuration says otherwise.
const RootNamespace = "istio-system"

// DefaultNamespace is the namespace of an object that names none.
const DefaultNamespace = "default"

// Kinds of objects, as users write them.
const (
	KindService             = "Service"
	KindSecret              = "Secret"
	KindConfigMap           = "ConfigMap"
	KindNamespace           = "Namespace"
	KindServiceAccount      = "ServiceAccount"
	KindVirtualService      = "VirtualService"
	KindDestinationRule     = "DestinationRule"
	KindGateway             = "Gateway"
	KindServiceEntry        = "ServiceEntry"
	KindWorkloadEntry       = "WorkloadEntry"
	KindWorkloadGroup       = "WorkloadGroup"
	KindPeerAuthentication  = "PeerAuthentication"
	KindAuthorizationPolicy = "AuthorizationPolicy"
	KindTelemetry           = "Telemetry"
	KindGatewayClass        = "GatewayClass"
	KindHTTPRoute           = "HTTPRoute"
	KindGRPCRoute           = "GRPCRoute"
	KindReferenceGrant      = "ReferenceGrant"
	// KindListenedGateway is the Gateway API's Gateway, written "Gateway" like Istio's and told apart as kubectl does it.
	KindListenedGateway = "Gateway." + GroupGateway

	KindRequestAuthentication = "RequestAuthentication" // refused so far
)

// GroupGateway is the group of the Gateway API's kinds.
const GroupGateway = "gateway.networking.k8s.io"

// Ref names an object. Namespace is empty for a Namespace.
type Ref struct{ Kind, Namespace, Name string }

// String is "Kind namespace/name", without what is empty.
func (r Ref) String() string {
	switch {
	case r.Name == "":
		return r.Kind
	case r.Namespace == "":
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Object is one object that a user wrote.
type Object struct {
	Ref
	APIVersion          string // as written: networking.istio.io/v1beta1
	Labels, Annotations map[string]string
	// Created is metadata.creationTimestamp in nanoseconds since 1970; 0 if absent.
	Created int64
	// Spec is the typed content. For an Istio kind it is its spec (*v1alpha3.VirtualService …), for a core kind the
	// whole object (*v1.Service …), for the ConfigMap istio the *v1alpha1.MeshConfig in it, with Istio's defaults.
	Spec any
	// Proxy is the annotation proxy.istio.io/config of a workload; nil if there is none.
	Proxy *meshconfig.ProxyConfig
	// File and Line are the place of the document: the line of its first key, 1-based.
	File string
	Line int
	// Start and End are the bytes of the document in its file, without the line that separates it from the next.
	Start, End int
	// InList tells that the object is an item of a List, so that the document holds more than it.
	InList bool

	places map[string]place
	text   string
}

// place is where a field's value stands; columns and lines are 1-based.
type place struct{ line, column int }

// Text is the object's content without comments, layout and place: equal texts mean equal objects.
func (o *Object) Text() string { return o.text }

// LineOf is the line of a field, given as keys (string) and positions in lists (int) from the top of the object:
// o.LineOf("spec", "http", 2). A field that is not written has the line of what would hold it.
func (o *Object) LineOf(path ...any) int {
	pl := o.place(join(path))
	return pl.line
}

// Has reports whether a field is written and not null.
func (o *Object) Has(path ...any) bool {
	_, ok := o.places[join(path)]
	return ok
}

// Fault says at a place of the object what is wrong with it.
func (o *Object) Fault(message string, path ...any) Fault {
	p := join(path)
	pl := o.place(p)
	return Fault{File: o.File, Line: pl.line, Column: pl.column, Object: o.Ref.String(), Path: p, Message: message}
}

// place of a path, or of its nearest ancestor that is written.
func (o *Object) place(path string) place {
	for path != "" {
		if pl, ok := o.places[path]; ok {
			return pl
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return place{o.Line, 1}
}

func join(path []any) string {
	var b strings.Builder
	for i, e := range path {
		switch e := e.(type) {
		case int:
			b.WriteString("[" + strconv.Itoa(e) + "]")
		default:
			if i > 0 {
				b.WriteByte('.')
			}
			fmt.Fprint(&b, e)
		}
	}
	return b.String()
}

// Fault is something wrong, or with Result.Warnings something doubtful, in a file.
type Fault struct {
	File         string
	Line, Column int    // 1-based; 0 if unknown
	Object       string // "Kind namespace/name"; empty if it could not be told
	Path         string // spec.http[2].timeout; empty for the whole object
	Message      string // what is wrong, why, and what to write instead
}

// String is "file:line:column: object: path: message", without what is unknown.
func (f Fault) String() string {
	parts := make([]string, 0, 4)
	switch {
	case f.File != "" && f.Line > 0:
		parts = append(parts, fmt.Sprintf("%s:%d:%d", f.File, f.Line, f.Column))
	case f.File != "":
		parts = append(parts, f.File)
	case f.Line > 0:
		parts = append(parts, fmt.Sprintf("line %d:%d", f.Line, f.Column))
	}
	for _, p := range []string{f.Object, f.Path, f.Message} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ": ")
}

// Told is the fault without its place and object, for where these are known: "path: message".
func (f Fault) Told() string { return Fault{Path: f.Path, Message: f.Message}.String() }

// Result is what Decode found in a file.
type Result struct {
	// Objects in the order of the file; those with faults are left out.
	Objects []*Object
	// Faults: why the file must not be used. Ordered by line.
	Faults []Fault
	// Warnings: what is deprecated, and what is accepted but not acted on. Ordered by line.
	Warnings []Fault
}
