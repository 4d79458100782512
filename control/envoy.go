package control

import (
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/compile"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/xds/envoy"
	"github.com/lateen-mesh/lateen/xds/server"
)

// flavourOf is the kind of data plane in a scope, whose name begins with the role.
func flavourOf(scope string) envoy.Flavour {
	role, _, _ := strings.Cut(scope, "/")
	switch role {
	case compile.GRPC.String():
		return envoy.GRPC
	case compile.Gateway.String():
		return envoy.Gateway
	default:
		return envoy.Sidecar
	}
}

// optionsOf are what a plan does not say to Envoy, and our own proxy is told in other ways.
func optionsOf(c *Control, config *mesh.Config) envoy.Options {
	return envoy.Options{TrustDomain: c.cfg.TrustDomain, RegistryOnly: config.RegistryOnly}
}

// reconfigure takes over the mesh's configuration and reports whether what was encoded before is void.
func (s *planSource) reconfigure(config *mesh.Config) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	options := optionsOf(s.c, config)
	if options == s.options {
		return false
	}
	s.options = options
	clear(s.encoded)
	return true
}

// envoyBody encodes that one of a resource's forms in Envoy's types which bears a name; false if there is none.
func (s *planSource) envoyBody(f envoy.Flavour, o envoy.Options, res plan.Resource, name string) ([]byte, bool) {
	list, err := envoy.Encode(f, res, o)
	if err != nil {
		s.c.log.Warn("a resource cannot be said in Envoy's terms and is not sent; a client that asks for it finds nothing", "cause", err)
		return nil, false
	}
	for _, r := range list {
		if r.Name != name {
			continue
		}
		body, err := r.Body()
		if err != nil {
			s.c.log.Error("a resource is not sent", "cause", err)
		}
		return body, err == nil
	}
	return nil, false
}

// listed is a list of the plan's names, and of what Envoy calls them.
type listed struct{ plan, envoy []string }

// envoyNames translates a list of names, the same list into the same one.
func (s *planSource) envoyNames(at server.Key, kind plan.Kind) []string {
	names := s.c.cache.Names(at.Scope, kind)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.lists[at]; same(l.plan, names) {
		return l.envoy
	}
	var out []string
	for _, n := range names {
		out = append(out, envoy.Names(flavourOf(at.Scope), kind, n)...)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	s.lists[at] = listed{names, out}
	return out
}

// same reports whether two lists are one.
func same(a, b []string) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
