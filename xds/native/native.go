// Package native is the wire of our own data plane: the resources of a plan as
// protobuf messages, documented in native.proto.
//
// In: a plan.Resource or bytes. Out: the other one. It knows nothing of xDS
// streams. Both planes link it, so it needs no protobuf runtime beyond
// protowire: one table (schema.go) says which field of which plan type has
// which number, and one pair of functions walks it. The rules are proto3's: a
// field that is absent is the zero value, and a field that this version does
// not know is skipped, so that old proxies and new control planes, and the
// reverse, understand one another. What must not be guessed is refused: an
// enumeration value that this version does not know. The functions may be
// called from any goroutine.
package native

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/lateen-mesh/lateen/plan"
)

// typePrefix begins the type URL of every resource.
const typePrefix = "type.googleapis.com/lateen.plan.v1."

// message is the top-level message of a kind.
type message struct {
	kind plan.Kind
	name string
	make func() plan.Resource
}

var messages = [...]message{
	{plan.KindCluster, "Cluster", func() plan.Resource { return new(plan.Cluster) }},
	{plan.KindEndpoints, "Endpoints", func() plan.Resource { return new(plan.Endpoints) }},
	{plan.KindSecret, "Secret", func() plan.Resource { return new(plan.Secret) }},
	{plan.KindListener, "Listener", func() plan.Resource { return new(plan.Listener) }},
	{plan.KindRoute, "Route", func() plan.Resource { return new(plan.Route) }},
	{plan.KindName, "Name", func() plan.Resource { return new(plan.Name) }},
}

// TypeURL is the type URL of a kind; empty for an unknown one.
func TypeURL(kind plan.Kind) string {
	for _, m := range messages {
		if m.kind == kind {
			return typePrefix + m.name
		}
	}
	return ""
}

// KindOf undoes TypeURL.
func KindOf(typeURL string) (plan.Kind, bool) {
	for _, m := range messages {
		if typePrefix+m.name == typeURL {
			return m.kind, true
		}
	}
	return 0, false
}

// TypeURLs lists all type URLs in the order in which a change is carried.
func TypeURLs() []string {
	var out []string
	for _, k := range plan.Kinds() {
		out = append(out, TypeURL(k))
	}
	return out
}

// Encode returns a resource's message. Equal resources give equal bytes.
func Encode(r plan.Resource) []byte {
	return appendMessage(nil, reflect.ValueOf(r).Elem())
}

// Decode reads a resource of a kind. Its error names the resource, the path of the field that is at fault, and why.
func Decode(kind plan.Kind, body []byte) (plan.Resource, error) {
	i := slices.IndexFunc(messages[:], func(m message) bool { return m.kind == kind })
	if i < 0 {
		return nil, fmt.Errorf("decode %s: there is no message for this kind", kind)
	}
	if len(body) > bodyMax {
		return nil, fmt.Errorf("decode %s: %d bytes, at most %d are taken", kind, len(body), bodyMax)
	}
	r := messages[i].make()
	if err := new(decoder).message(body, reflect.ValueOf(r).Elem(), 0); err != nil {
		return nil, fmt.Errorf("decode %s %q: %w", kind, r.ResourceName(), err)
	}
	return r, nil
}
