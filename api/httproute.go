package api

import (
	"regexp"
	"slices"
	"strings"
	"time"

	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

// maxMatches is how many matches all rules of a route may have together (the Gateway API's bound).
const maxMatches = 128

// validateHTTPRoute fills in the schema's defaults and judges the rest.
func validateHTTPRoute(c *check) {
	s := &c.Spec.(*gateway.HTTPRoute).Spec
	c.parents(s.ParentRefs)
	c.hostnames(s.Hostnames)
	if len(s.Rules) == 0 {
		s.Rules = []gateway.HTTPRouteRule{{}}
	}
	matches := 0
	names := map[string]bool{}
	for i := range s.Rules {
		r := &s.Rules[i]
		p := in("spec.rules", i)
		if n := value(r.Name); n != "" && names[n] {
			c.fault(in(p, "name"), "two rules are named %q; rename one", n)
		} else {
			names[n] = true
		}
		if len(r.Matches) == 0 {
			r.Matches = []gateway.HTTPRouteMatch{{}}
		}
		matches += len(r.Matches)
		for j := range r.Matches {
			c.requestMatch(in(p, "matches", j), &r.Matches[j])
		}
		c.routeRule(p, r)
	}
	if matches > maxMatches {
		c.fault("spec.rules", "have %d matches together, more than the %d allowed; split the route", matches, maxMatches)
	}
	if s.UseDefaultGateways != "" && s.UseDefaultGateways != gateway.GatewayDefaultScopeNone {
		c.warn("spec.useDefaultGateways", "is accepted but not acted on yet; name the Gateway in parentRefs")
	}
}

func (c *check) hostnames(list []gateway.Hostname) {
	for i, h := range list {
		host := string(h)
		switch {
		case isIP(host):
			c.fault(in("spec.hostnames", i), "%q is an address; host names only are matched", host)
		case host == "*" || !isHost(host, true) || strings.ToLower(host) != host:
			c.fault(in("spec.hostnames", i), "%q is not a host; write %s, or leave hostnames out for any", host, hostForm)
		}
	}
}

func (c *check) requestMatch(p string, m *gateway.HTTPRouteMatch) {
	if m.Path == nil {
		m.Path = &gateway.HTTPPathMatch{}
	}
	if m.Path.Type == nil {
		m.Path.Type = new(gateway.PathMatchPathPrefix)
	}
	if m.Path.Value == nil {
		m.Path.Value = new("/")
	}
	c.pathMatch(in(p, "path", "value"), *m.Path.Type, *m.Path.Value)
	seen := map[string]bool{}
	for i := range m.Headers {
		h := &m.Headers[i]
		hp := in(p, "headers", i)
		if name := strings.ToLower(string(h.Name)); seen[name] {
			c.warn(in(hp, "name"), "%s is matched twice, and the first counts; remove one", h.Name)
		} else {
			seen[name] = true
		}
		if h.Type == nil {
			h.Type = new(gateway.HeaderMatchExact)
		}
		if *h.Type == gateway.HeaderMatchRegularExpression {
			c.regex(in(hp, "value"), h.Value)
		}
	}
	params := map[string]bool{}
	for i := range m.QueryParams {
		q := &m.QueryParams[i]
		qp := in(p, "queryParams", i)
		if name := string(q.Name); params[name] {
			c.warn(in(qp, "name"), "%s is matched twice, and the first counts; remove one", q.Name)
		} else {
			params[name] = true
		}
		if q.Type == nil {
			q.Type = new(gateway.QueryParamMatchExact)
		}
		if *q.Type == gateway.QueryParamMatchRegularExpression {
			c.regex(in(qp, "value"), q.Value)
		}
	}
}

func (c *check) pathMatch(p string, kind gateway.PathMatchType, path string) {
	if kind == gateway.PathMatchRegularExpression {
		c.regex(p, path)
		return
	}
	for _, bad := range []string{"//", "/./", "/../", "%2f", "%2F", "#"} {
		if strings.Contains(path, bad) {
			c.fault(p, "%q holds %s, which no request's path does after it was normalised; remove it", path, bad)
			return
		}
	}
	switch {
	case !strings.HasPrefix(path, "/"):
		c.fault(p, "%q does not begin with /", path)
	case strings.HasSuffix(path, "/.."), strings.HasSuffix(path, "/."):
		c.fault(p, "%q ends with dots, which no request's path does after it was normalised", path)
	case !pathText.MatchString(path):
		c.fault(p, "%q has characters that a path cannot have; write them as %%xx", path)
	}
}

func (c *check) routeRule(p string, r *gateway.HTTPRouteRule) {
	prefix := len(r.Matches) == 1 && *r.Matches[0].Path.Type == gateway.PathMatchPathPrefix
	c.filters(in(p, "filters"), r.Filters, prefix)
	for i := range r.BackendRefs {
		b := &r.BackendRefs[i]
		bp := in(p, "backendRefs", i)
		c.backend(bp, &b.BackendObjectReference)
		c.filters(in(bp, "filters"), b.Filters, prefix)
		if slices.ContainsFunc(r.Filters, func(f gateway.HTTPRouteFilter) bool { return f.RequestRedirect != nil }) {
			c.fault(bp, "a rule that redirects sends nothing to backends; remove one of the two")
		}
	}
	if t := r.Timeouts; t != nil && t.Request != nil && t.BackendRequest != nil {
		whole, each := RouteDuration(t.Request), RouteDuration(t.BackendRequest)
		if whole != 0 && each > whole {
			c.fault(in(p, "timeouts", "backendRequest"), "%s is longer than request, %s, which ends before", each, whole)
		}
	}
	if r.Retry != nil {
		for i, code := range r.Retry.Codes {
			if code < 400 || code > 599 {
				c.fault(in(p, "retry", "codes", i), "%d is not a status of a failure; write 400 to 599", code)
			}
		}
	}
	if r.SessionPersistence != nil {
		c.warn(in(p, "sessionPersistence"), "is accepted but not acted on yet; it has no effect")
	}
}

// RouteDuration reads a duration of a route, which Decode has judged; 0 for none.
func RouteDuration(d *gateway.Duration) time.Duration {
	if d == nil {
		return 0
	}
	out, err := time.ParseDuration(string(*d))
	if err != nil {
		return 0
	}
	return out
}

func (c *check) backend(p string, b *gateway.BackendObjectReference) {
	if value(b.Group) == "" && (b.Kind == nil || *b.Kind == KindService) && b.Port == nil {
		c.fault(p, "port is missing; say which port of Service %s", b.Name)
	}
}

// filters judges those of a rule or of one backend. prefix: the rule has one match, by a path's prefix.
func (c *check) filters(p string, list []gateway.HTTPRouteFilter, prefix bool) {
	seen := map[gateway.HTTPRouteFilterType]bool{}
	for i := range list {
		f := &list[i]
		fp := in(p, i)
		repeatable := f.Type == gateway.HTTPRouteFilterRequestMirror || f.Type == gateway.HTTPRouteFilterExtensionRef
		if seen[f.Type] && !repeatable {
			c.fault(fp, "%s stands here twice; join the two", f.Type)
		}
		seen[f.Type] = true
		c.filterUnion(fp, f)
		if m := f.RequestMirror; m != nil {
			c.mirror(in(fp, "requestMirror"), m)
		}
		if f.RequestRedirect != nil {
			c.pathModifier(in(fp, "requestRedirect", "path"), f.RequestRedirect.Path, prefix)
		}
		if f.URLRewrite != nil {
			c.pathModifier(in(fp, "urlRewrite", "path"), f.URLRewrite.Path, prefix)
		}
		for _, m := range []*gateway.HTTPHeaderFilter{f.RequestHeaderModifier, f.ResponseHeaderModifier} {
			c.headerFilter(fp, m)
		}
		if f.CORS != nil {
			c.corsFilter(in(fp, "cors"), f.CORS)
		}
	}
	if seen[gateway.HTTPRouteFilterRequestRedirect] && seen[gateway.HTTPRouteFilterURLRewrite] {
		c.fault(p, "RequestRedirect and URLRewrite cannot stand together; keep one of the two")
	}
}

func (c *check) mirror(p string, m *gateway.HTTPRequestMirrorFilter) {
	c.backend(in(p, "backendRef"), &m.BackendRef)
	if m.Percent != nil && m.Fraction != nil {
		c.fault(p, "has percent and fraction; keep one of the two")
	}
	if f := m.Fraction; f != nil {
		if f.Denominator == nil {
			f.Denominator = new(int32(100))
		}
		if f.Numerator > *f.Denominator {
			c.fault(in(p, "fraction"), "%d of %d is more than everything", f.Numerator, *f.Denominator)
		}
	}
}

// filterUnion holds the field that a filter has against its type.
func (c *check) filterUnion(p string, f *gateway.HTTPRouteFilter) {
	for _, x := range []struct {
		kind  gateway.HTTPRouteFilterType
		field string
		set   bool
	}{
		{gateway.HTTPRouteFilterRequestHeaderModifier, "requestHeaderModifier", f.RequestHeaderModifier != nil},
		{gateway.HTTPRouteFilterResponseHeaderModifier, "responseHeaderModifier", f.ResponseHeaderModifier != nil},
		{gateway.HTTPRouteFilterRequestMirror, "requestMirror", f.RequestMirror != nil},
		{gateway.HTTPRouteFilterRequestRedirect, "requestRedirect", f.RequestRedirect != nil},
		{gateway.HTTPRouteFilterURLRewrite, "urlRewrite", f.URLRewrite != nil},
		{gateway.HTTPRouteFilterCORS, "cors", f.CORS != nil},
		{gateway.HTTPRouteFilterExternalAuth, "externalAuth", f.ExternalAuth != nil},
		{gateway.HTTPRouteFilterExtensionRef, "extensionRef", f.ExtensionRef != nil},
	} {
		switch {
		case x.set && f.Type != x.kind:
			c.fault(in(p, x.field), "belongs to type %s, this is a filter of type %s", x.kind, f.Type)
		case !x.set && f.Type == x.kind:
			c.fault(p, "%s is missing, which a filter of type %s needs", x.field, x.kind)
		}
	}
}

func (c *check) pathModifier(p string, m *gateway.HTTPPathModifier, prefix bool) {
	if m == nil {
		return
	}
	full, part := m.Type == gateway.FullPathHTTPPathModifier, m.Type == gateway.PrefixMatchHTTPPathModifier
	switch {
	case full != (m.ReplaceFullPath != nil):
		c.fault(p, "replaceFullPath and type ReplaceFullPath belong together")
	case part != (m.ReplacePrefixMatch != nil):
		c.fault(p, "replacePrefixMatch and type ReplacePrefixMatch belong together")
	case part && !prefix:
		c.fault(p, "a prefix can be replaced only if the rule has exactly one match, and that of type PathPrefix")
	}
}

func (c *check) headerFilter(p string, m *gateway.HTTPHeaderFilter) {
	if m == nil {
		return
	}
	for list, names := range map[string][]gateway.HTTPHeader{"set": m.Set, "add": m.Add} {
		seen := map[string]bool{}
		for _, h := range names {
			name := strings.ToLower(string(h.Name))
			if seen[name] {
				c.fault(p, "%s names %s twice; remove one", list, h.Name)
			}
			seen[name] = true
		}
	}
	for _, name := range m.Remove {
		if !fieldName.MatchString(name) {
			c.fault(p, "remove: %q is not the name of a header", name)
		}
	}
}

var origin = regexp.MustCompile(`(^\*$)|(^(http(s)?):\/\/(((\*\.)?([a-zA-Z0-9\-]+\.)*[a-zA-Z0-9-]+|\*)(:([0-9]{1,5}))?)$)`)

func (c *check) corsFilter(p string, f *gateway.HTTPCORSFilter) {
	for i, o := range f.AllowOrigins {
		switch {
		case o == "*" && len(f.AllowOrigins) > 1:
			c.fault(in(p, "allowOrigins", i), "* means every origin and must stand alone")
		case !origin.MatchString(string(o)):
			c.fault(in(p, "allowOrigins", i), "%q is not an origin; write https://a.host, https://*.a.host or *", o)
		}
	}
	if len(f.AllowMethods) > 1 && slices.Contains(f.AllowMethods, "*") {
		c.fault(in(p, "allowMethods"), "* means every method and must stand alone")
	}
	if len(f.AllowHeaders) > 1 && slices.Contains(f.AllowHeaders, "*") {
		c.fault(in(p, "allowHeaders"), "* means every header and must stand alone")
	}
	if f.MaxAge == 0 {
		f.MaxAge = 5
	}
}
