package api

import (
	"regexp"

	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

var (
	grpcService = regexp.MustCompile(`^(?i)\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*$`)
	grpcMethod  = regexp.MustCompile(`^[A-Za-z_][A-Za-z_0-9]*$`)
)

// validateGRPCRoute fills in the schema's defaults and judges the rest.
func validateGRPCRoute(c *check) {
	s := &c.Spec.(*gateway.GRPCRoute).Spec
	c.parents(s.ParentRefs)
	c.hostnames(s.Hostnames)
	matches := 0
	for i := range s.Rules {
		r := &s.Rules[i]
		p := in("spec.rules", i)
		matches += len(r.Matches)
		for j := range r.Matches {
			c.methodMatch(in(p, "matches", j), &r.Matches[j])
		}
		c.filters(in(p, "filters"), HTTPFilters(r.Filters), false)
		for j := range r.BackendRefs {
			b := &r.BackendRefs[j]
			bp := in(p, "backendRefs", j)
			c.backend(bp, &b.BackendObjectReference)
			c.filters(in(bp, "filters"), HTTPFilters(b.Filters), false)
		}
		if r.SessionPersistence != nil {
			c.warn(in(p, "sessionPersistence"), "is accepted but not acted on yet; it has no effect")
		}
	}
	if matches > maxMatches {
		c.fault("spec.rules", "have %d matches together, more than the %d allowed; split the route", matches, maxMatches)
	}
}

func (c *check) methodMatch(p string, m *gateway.GRPCRouteMatch) {
	if x := m.Method; x != nil {
		if x.Type == nil {
			x.Type = new(gateway.GRPCMethodMatchExact)
		}
		if x.Service == nil && x.Method == nil {
			c.fault(in(p, "method"), "is empty; name a service, a method, or both")
		}
		exact := *x.Type == gateway.GRPCMethodMatchExact
		for _, f := range []struct {
			name string
			text *string
			form *regexp.Regexp
		}{{"service", x.Service, grpcService}, {"method", x.Method, grpcMethod}} {
			switch {
			case f.text == nil:
			case exact && !f.form.MatchString(*f.text):
				c.fault(in(p, "method", f.name), "%q is not the name of a %s", *f.text, f.name)
			case !exact:
				c.regex(in(p, "method", f.name), *f.text)
			}
		}
	}
	for i := range m.Headers {
		h := &m.Headers[i]
		if h.Type == nil {
			h.Type = new(gateway.GRPCHeaderMatchExact)
		}
		if *h.Type == gateway.GRPCHeaderMatchRegularExpression {
			c.regex(in(p, "headers", i, "value"), h.Value)
		}
	}
}

// HTTPFilters are the filters of a GRPCRoute as an HTTPRoute's, which have all of them.
func HTTPFilters(list []gateway.GRPCRouteFilter) []gateway.HTTPRouteFilter {
	out := make([]gateway.HTTPRouteFilter, 0, len(list))
	for _, f := range list {
		out = append(out, gateway.HTTPRouteFilter{
			Type: gateway.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
			ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef,
		})
	}
	return out
}
