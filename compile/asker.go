package compile

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
)

// Role is what kind of data plane asks.
type Role uint8

// The roles.
const (
	Sidecar Role = iota
	Gateway
	// GRPC is a gRPC client that does without a proxy.
	GRPC
)

var roleNames = []string{"sidecar", "gateway", "grpc"}

// String returns the role's name in lower case.
func (r Role) String() string { return roleNames[r] }

// Asker is who asks. What of it an answer depends on, beyond role and
// namespace, is recorded, so that answers can be shared by all askers that are
// alike in it.
type Asker struct {
	Role      Role
	Namespace string
	Workload  string // its name in the namespace
	Labels    mesh.Labels
	Locality  string // region/zone/subzone
}

// uses is a set of an asker's properties.
type uses uint8

const (
	usesLabels uses = 1 << iota
	usesLocality
	usesWorkload
	usesAll = usesLabels | usesLocality | usesWorkload
)

// scope writes role, namespace and the properties in use as one text: "sidecar/default/app=reviews,version=v1//pod".
func (a *Asker) scope(u uses) string {
	parts := []string{a.Role.String(), url.QueryEscape(a.Namespace), "*"}
	if u&usesLabels != 0 {
		var labels []string
		for _, k := range slices.Sorted(maps.Keys(a.Labels)) {
			labels = append(labels, url.QueryEscape(k)+"="+url.QueryEscape(a.Labels[k]))
		}
		parts[2] = strings.Join(labels, ",")
	}
	for _, p := range []struct {
		use   uses
		value string
	}{{usesLocality, a.Locality}, {usesWorkload, a.Workload}} {
		if u&p.use != 0 {
			parts = append(parts, url.QueryEscape(p.value))
		} else {
			parts = append(parts, "*")
		}
	}
	return strings.Join(parts, "/")
}

// parseScope undoes scope(usesAll); ok is false for any other text.
func parseScope(s string) (a Asker, ok bool) {
	parts := strings.Split(s, "/")
	if len(parts) != 5 {
		return a, false
	}
	role := slices.Index(roleNames, parts[0])
	a = Asker{Role: Role(max(role, 0)), Labels: mesh.Labels{}}
	ok = role >= 0
	read := func(text string) string {
		value, err := url.QueryUnescape(text)
		ok = ok && err == nil
		return value
	}
	a.Namespace, a.Locality, a.Workload = read(parts[1]), read(parts[3]), read(parts[4])
	if parts[2] != "" {
		for pair := range strings.SplitSeq(parts[2], ",") {
			k, v, _ := strings.Cut(pair, "=")
			a.Labels[read(k)] = read(v)
		}
	}
	return a, ok
}
