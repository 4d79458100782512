package source

import (
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

func (a *analysis) judgeRoutes() {
	inMesh := map[string][]*mesh.Route{}
	for _, r := range a.routes {
		if r.Ranked {
			continue // see attach.Problems
		}
		o := a.object(r)
		if slices.Contains(r.Gateways, mesh.GatewayMesh) {
			for i, h := range r.Hosts {
				for _, other := range inMesh[h] {
					if overlap(r.Visibility, other.Visibility) {
						a.add(o, CodeSameHost, LevelError, []any{"spec", "hosts", i},
							"%s is also routed by %s, and for sidecars only the older one counts; join the two", h, place(a.object(other)))
						break
					}
				}
				inMesh[h] = append(inMesh[h], r)
			}
		}
		if !a.judges(r) {
			continue
		}
		a.bindings(o, r)
		a.reachable(o, r)
		for i, h := range r.HTTP {
			for j, d := range h.Routes {
				a.target(o, r, d, []any{"spec", "http", i, "route", j, "destination"})
			}
			for j, m := range h.Mirrors {
				path := []any{"spec", "http", i, "mirrors", j, "destination"}
				if !o.Has(path...) {
					path = []any{"spec", "http", i, "mirror"}
				}
				a.target(o, r, m.Destination, path)
			}
			if other, known := a.delegate[h.Delegate]; h.Delegate != "" && (!known || !other) {
				what := "there is no VirtualService %s; apply it, or the rule is left out"
				if known {
					what = "VirtualService %s has hosts of its own and cannot be delegated to; remove its hosts"
				}
				a.add(o, CodeNotFound, LevelError, []any{"spec", "http", i, "delegate"}, what, h.Delegate)
			}
		}
		for i, t := range r.TLS {
			for j, d := range t.Routes {
				a.target(o, r, d, []any{"spec", "tls", i, "route", j, "destination"})
			}
		}
		for i, t := range r.TCP {
			for j, d := range t.Routes {
				a.target(o, r, d, []any{"spec", "tcp", i, "route", j, "destination"})
			}
		}
	}
}

// overlap reports whether some namespace may see both.
func overlap(a, b mesh.Visibility) bool {
	if a.None || b.None {
		return false
	}
	if len(a.Namespaces) == 0 || len(b.Namespaces) == 0 {
		return true
	}
	return slices.ContainsFunc(a.Namespaces, b.Sees)
}

// bindings judges the gateways that a route names.
func (a *analysis) bindings(o *api.Object, r *mesh.Route) {
	for i, name := range r.Gateways {
		if name == mesh.GatewayMesh {
			continue
		}
		g := a.gateways[name]
		if g == nil {
			a.add(o, CodeNotFound, LevelError, []any{"spec", "gateways", i}, "there is no Gateway %s; apply it, or correct the name", name)
			continue
		}
		for j, h := range r.Hosts {
			admitted := slices.ContainsFunc(g.Servers, func(s mesh.Server) bool {
				return slices.ContainsFunc(s.Hosts, func(b mesh.GatewayHost) bool {
					return (b.Namespace == "*" || b.Namespace == r.Namespace) && meets(b.Host, h)
				})
			})
			if !admitted {
				a.add(o, CodeHostNotInGateway, LevelWarning, []any{"spec", "hosts", j},
					"no server of Gateway %s has the host %s; add it there, or correct it here", name, h)
			}
		}
	}
}

// meets reports whether some name is covered by both patterns.
func meets(a, b string) bool {
	x, wildX := strings.CutPrefix(a, "*")
	y, wildY := strings.CutPrefix(b, "*")
	switch {
	case wildX && wildY:
		return strings.HasSuffix(x, y) || strings.HasSuffix(y, x)
	case wildX:
		return strings.HasSuffix(y, x)
	case wildY:
		return strings.HasSuffix(x, y)
	}
	return a == b
}

// reachable tells of rules behind one that takes everything.
func (a *analysis) reachable(o *api.Object, r *mesh.Route) {
	for i, h := range r.HTTP {
		if len(h.Matches) == 0 && i+1 < len(r.HTTP) {
			a.add(o, CodeUnreachable, LevelWarning, []any{"spec", "http", i + 1},
				"this and later rules are never used, as rule %d (line %d) has no match and takes everything; move that one to the end", i, h.Line)
			return
		}
	}
}

// target judges a destination: its host, subset and port.
func (a *analysis) target(o *api.Object, r *mesh.Route, d mesh.Destination, path []any) {
	at := func(field string) []any { return append(slices.Clone(path), field) }
	s := a.known(r.Namespace, d.Host)
	if s == nil {
		a.add(o, CodeNotFound, LevelError, at("host"),
			"no service has the host %s, so requests for it fail%s", d.Host, a.nearby(r.Namespace, d.Host))
		return
	}
	if _, ok := s.Port(d.Port); d.Port != 0 && !ok {
		a.add(o, CodeNotFound, LevelError, at("port"), "service %s has no port %d", s.Host, d.Port)
	}
	if d.Port == 0 && len(s.Ports) > 1 && !slices.Contains(r.Gateways, mesh.GatewayMesh) {
		a.add(o, CodePortNeeded, LevelError, path, "service %s has %d ports; add port.number to say which", s.Host, len(s.Ports))
	}
	if d.Subset == "" {
		return
	}
	for _, p := range mesh.Patterns(d.Host) {
		for _, t := range a.traffic[p] {
			if t.Visibility.Sees(r.Namespace) && slices.ContainsFunc(t.Subsets, func(x mesh.Subset) bool { return x.Name == d.Subset }) {
				return
			}
		}
	}
	a.add(o, CodeNotFound, LevelError, at("subset"),
		"no DestinationRule for %s has a subset %q, so requests for it fail; add it, or correct the name", d.Host, d.Subset)
}
