package attach

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

// rules makes the rules of one route.
type rules struct {
	*job
	object             *api.Object
	free               bool // no ReferenceGrant is needed
	list               []mesh.HTTPRule
	accepted, resolved Verdict
}

// statusFailed is the answer where a rule leads nowhere (the Gateway API's).
const statusFailed = 500

func (r *rules) http(list []gateway.HTTPRouteRule) {
	for i := range list {
		x := &list[i]
		out := mesh.HTTPRule{Name: or(x.Name, ""), Line: r.object.LineOf("spec", "rules", i)}
		for j := range x.Matches {
			out.Matches = append(out.Matches, httpMatch(&x.Matches[j]))
		}
		if t := x.Timeouts; t != nil {
			out.Timeout, out.TryTimeout = api.RouteDuration(t.Request), api.RouteDuration(t.BackendRequest)
		}
		out.Retry = retry(x.Retry)
		var to []backend
		for _, b := range x.BackendRefs {
			to = append(to, backend{b.BackendRef, b.Filters})
		}
		r.finish(out, x.Filters, to, i)
	}
}

func (r *rules) grpc(list []gateway.GRPCRouteRule) {
	for i := range list {
		x := &list[i]
		out := mesh.HTTPRule{Name: or(x.Name, ""), Line: r.object.LineOf("spec", "rules", i)}
		for j := range x.Matches {
			out.Matches = append(out.Matches, grpcMatch(&x.Matches[j]))
		}
		var to []backend
		for _, b := range x.BackendRefs {
			to = append(to, backend{b.BackendRef, api.HTTPFilters(b.Filters)})
		}
		r.finish(out, api.HTTPFilters(x.Filters), to, i)
	}
}

// backend is where requests go, with edits.
type backend struct {
	gateway.BackendRef
	filters []gateway.HTTPRouteFilter
}

// finish gives a rule its filters and destinations. One that leads nowhere, or that has something that is not supported,
// answers with 500: requests must not go where another rule would have them.
func (r *rules) finish(out mesh.HTTPRule, filters []gateway.HTTPRouteFilter, to []backend, i int) {
	fails := false
	for n := range filters {
		if !r.filter(&out, &filters[n], i, n) {
			fails = true
		}
	}
	for n := range to {
		d, ok := r.destination(&to[n], i, n)
		if !ok {
			fails = true
		}
		if d.Weight > 0 {
			out.Routes = append(out.Routes, d)
		}
	}
	invalid := !slices.ContainsFunc(out.Routes, func(d mesh.Destination) bool { return !d.Invalid })
	if fails || out.Redirect == nil && invalid {
		out.Routes, out.Redirect, out.Rewrite, out.Mirrors = nil, nil, nil, nil
		out.Direct = &mesh.DirectResponse{Status: statusFailed}
	}
	r.list = append(r.list, out)
}

// destination resolves a backend; ok is false if it asks for what is not supported.
func (r *rules) destination(b *backend, i, n int) (d mesh.Destination, ok bool) {
	field := []any{"spec", "rules", i, "backendRefs", n}
	d = r.resolve(&b.BackendObjectReference, field)
	d.Weight = 1
	if b.Weight != nil {
		d.Weight = uint32(*b.Weight)
	}
	for _, f := range b.filters {
		switch f.Type {
		case gateway.HTTPRouteFilterRequestHeaderModifier:
			d.Headers.Request = headerEdits(f.RequestHeaderModifier)
		case gateway.HTTPRouteFilterResponseHeaderModifier:
			d.Headers.Response = headerEdits(f.ResponseHeaderModifier)
		default:
			r.accepted.worse(string(gateway.RouteReasonUnsupportedValue),
				fmt.Sprintf("a filter %s of a single backend is not supported yet; move it to the rule", f.Type), append(field, "filters")...)
			return d, false
		}
	}
	return d, true
}

// resolve finds what a reference means; what it says is wrong makes the destination invalid.
func (r *rules) resolve(ref *gateway.BackendObjectReference, field []any) mesh.Destination {
	namespace, name := or(ref.Namespace, r.object.Namespace), string(ref.Name)
	var port uint16
	if ref.Port != nil {
		port = uint16(*ref.Port)
	}
	bad := func(reason gateway.RouteConditionReason, format string, args ...any) mesh.Destination {
		r.resolved.worse(string(reason), fmt.Sprintf(format, args...), field...)
		return mesh.Destination{Invalid: true}
	}
	group, kind := or(ref.Group, ""), or(ref.Kind, api.KindService)
	if group == "networking.istio.io" && kind == "Hostname" {
		return mesh.Destination{Host: strings.ToLower(name), Port: port}
	}
	if group != "" || kind != api.KindService {
		return bad(gateway.RouteReasonInvalidKind, "a backend is a Service, not a %s of the group %q", kind, group)
	}
	if !r.free && !r.granted(r.object.Kind, r.object.Namespace, api.KindService, namespace, name) {
		return bad(gateway.RouteReasonRefNotPermitted, "no ReferenceGrant in the namespace %s lets a %s of %s use the Service %s", namespace, r.object.Kind, r.object.Namespace, name)
	}
	s := r.Service(namespace, name)
	if s == nil {
		return bad(gateway.RouteReasonBackendNotFound, "there is no Service %s/%s; requests for it get 500", namespace, name)
	}
	if _, ok := s.Port(port); !ok {
		return bad(gateway.RouteReasonBackendNotFound, "Service %s/%s has no port %d; requests for it get 500", namespace, name, port)
	}
	return mesh.Destination{Host: s.Host, Port: port}
}

// filter acts on one filter of a rule; false if it is not supported.
func (r *rules) filter(out *mesh.HTTPRule, f *gateway.HTTPRouteFilter, i, n int) bool {
	field := []any{"spec", "rules", i, "filters", n}
	switch f.Type {
	case gateway.HTTPRouteFilterRequestHeaderModifier:
		out.Headers.Request = headerEdits(f.RequestHeaderModifier)
	case gateway.HTTPRouteFilterResponseHeaderModifier:
		out.Headers.Response = headerEdits(f.ResponseHeaderModifier)
	case gateway.HTTPRouteFilterRequestRedirect:
		out.Redirect = redirect(f.RequestRedirect)
	case gateway.HTTPRouteFilterURLRewrite:
		out.Rewrite = rewrite(f.URLRewrite)
	case gateway.HTTPRouteFilterRequestMirror:
		m := f.RequestMirror
		if d := r.resolve(&m.BackendRef, append(field, "requestMirror", "backendRef")); !d.Invalid {
			out.Mirrors = append(out.Mirrors, mesh.Mirror{Destination: d, Percent: percent(m)})
		}
	case gateway.HTTPRouteFilterCORS:
		out.CORS = cors(f.CORS)
	default:
		r.accepted.worse(string(gateway.RouteReasonUnsupportedValue),
			fmt.Sprintf("a filter of type %s is not supported; requests that it is for get 500", f.Type), field...)
		return false
	}
	return true
}

func percent(m *gateway.HTTPRequestMirrorFilter) float64 {
	switch {
	case m.Percent != nil:
		return float64(*m.Percent)
	case m.Fraction != nil && m.Fraction.Denominator != nil:
		return 100 * float64(m.Fraction.Numerator) / float64(*m.Fraction.Denominator)
	case m.Fraction != nil:
		return float64(m.Fraction.Numerator)
	}
	return 100
}

func httpMatch(m *gateway.HTTPRouteMatch) mesh.HTTPMatch {
	out := mesh.HTTPMatch{}
	if p := m.Path; p != nil {
		out.URI = mesh.StringMatch{Kind: mesh.MatchSegments, Value: or(p.Value, "/")}
		switch gateway.PathMatchType(or(p.Type, string(gateway.PathMatchPathPrefix))) {
		case gateway.PathMatchExact:
			out.URI.Kind = mesh.MatchExact
		case gateway.PathMatchRegularExpression:
			out.URI.Kind = mesh.MatchRegex
		default:
		}
	}
	if m.Method != nil {
		out.Method = mesh.StringMatch{Kind: mesh.MatchExact, Value: string(*m.Method)}
	}
	for _, h := range m.Headers {
		out.Headers = matchField(out.Headers, strings.ToLower(string(h.Name)), h.Value, or(h.Type, "") == string(gateway.HeaderMatchRegularExpression))
	}
	for _, q := range m.QueryParams {
		out.Query = matchField(out.Query, string(q.Name), q.Value, or(q.Type, "") == string(gateway.QueryParamMatchRegularExpression))
	}
	return out
}

// matchField adds a field; of several with one name the first counts.
func matchField(list []mesh.FieldMatch, name, value string, regex bool) []mesh.FieldMatch {
	if slices.ContainsFunc(list, func(f mesh.FieldMatch) bool { return f.Name == name }) {
		return list
	}
	m := mesh.StringMatch{Kind: mesh.MatchExact, Value: value}
	if regex {
		m.Kind = mesh.MatchRegex
	}
	return append(list, mesh.FieldMatch{Name: name, Value: m})
}

// grpcMatch is what a method means as a path: "/package.Service/Method".
func grpcMatch(m *gateway.GRPCRouteMatch) mesh.HTTPMatch {
	out := mesh.HTTPMatch{}
	if x := m.Method; x != nil {
		service, method := or(x.Service, ""), or(x.Method, "")
		part := func(text, any string) string {
			if text == "" {
				return any
			}
			return text
		}
		switch {
		case or(x.Type, "") == string(gateway.GRPCMethodMatchRegularExpression):
			out.URI = mesh.StringMatch{Kind: mesh.MatchRegex, Value: "/" + part(service, "[^/]+") + "/" + part(method, "[^/]+")}
		case method == "":
			out.URI = mesh.StringMatch{Kind: mesh.MatchSegments, Value: "/" + service}
		case service == "":
			out.URI = mesh.StringMatch{Kind: mesh.MatchRegex, Value: "/[^/]+/" + regexp.QuoteMeta(method)}
		default:
			out.URI = mesh.StringMatch{Kind: mesh.MatchExact, Value: "/" + service + "/" + method}
		}
	}
	for _, h := range m.Headers {
		out.Headers = matchField(out.Headers, strings.ToLower(string(h.Name)), h.Value, or(h.Type, "") == string(gateway.GRPCHeaderMatchRegularExpression))
	}
	return out
}

func headerEdits(f *gateway.HTTPHeaderFilter) mesh.HeaderEdits {
	fields := func(list []gateway.HTTPHeader) []mesh.Field {
		var out []mesh.Field
		for _, h := range list {
			out = append(out, mesh.Field{Name: string(h.Name), Value: strings.ReplaceAll(h.Value, "%", "%%")}) // no template
		}
		return out
	}
	return mesh.HeaderEdits{Set: fields(f.Set), Add: fields(f.Add), Remove: f.Remove}
}

// redirect is answered with 302 unless said otherwise, and leads to the port of the scheme, or else of the listener.
func redirect(f *gateway.HTTPRequestRedirectFilter) *mesh.Redirect {
	out := &mesh.Redirect{Scheme: or(f.Scheme, ""), Authority: or(f.Hostname, ""), Code: 302}
	if f.StatusCode != nil {
		out.Code = *f.StatusCode
	}
	switch {
	case f.Port != nil:
		out.Port = uint16(*f.Port)
	case out.Scheme == "https":
		out.Port = 443
	case out.Scheme == "http":
		out.Port = 80
	default:
		out.PortOfListener = true
	}
	if p := f.Path; p != nil && p.ReplaceFullPath != nil {
		out.URI = rooted(*p.ReplaceFullPath)
	} else if p != nil {
		out.PrefixRewrite = rooted(or(p.ReplacePrefixMatch, ""))
	}
	return out
}

func rewrite(f *gateway.HTTPURLRewriteFilter) *mesh.Rewrite {
	out := &mesh.Rewrite{Authority: or(f.Hostname, "")}
	if p := f.Path; p != nil && p.ReplaceFullPath != nil {
		out.URI, out.Whole = rooted(*p.ReplaceFullPath), true
	} else if p != nil {
		out.URI = rooted(or(p.ReplacePrefixMatch, ""))
	}
	return out
}

// rooted is a path with its slash; an empty one is all of it.
func rooted(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}

// retry is also made where no connection was had, as by default.
func retry(r *gateway.HTTPRouteRetry) *mesh.Retry {
	if r == nil {
		return nil
	}
	out := &mesh.Retry{Attempts: 2, Backoff: api.RouteDuration(r.Backoff), IgnorePrevious: true}
	if r.Attempts != nil {
		out.Attempts = *r.Attempts
	}
	if len(r.Codes) > 0 {
		out.On = []string{"connect-failure", "refused-stream", "unavailable", "cancelled"}
	}
	for _, code := range r.Codes {
		out.On = append(out.On, strconv.Itoa(int(code)))
	}
	return out
}

func cors(f *gateway.HTTPCORSFilter) *mesh.CORS {
	out := &mesh.CORS{MaxAge: time.Duration(f.MaxAge) * time.Second, AllowCredentials: f.AllowCredentials != nil && *f.AllowCredentials}
	for _, o := range f.AllowOrigins {
		m := mesh.StringMatch{Kind: mesh.MatchExact, Value: string(o)}
		if o == "*" {
			m = mesh.StringMatch{Kind: mesh.MatchPresent}
		} else if strings.Contains(string(o), "*") {
			m = mesh.StringMatch{Kind: mesh.MatchRegex, Value: strings.ReplaceAll(regexp.QuoteMeta(string(o)), `\*`, `.*`)}
		}
		out.AllowOrigins = append(out.AllowOrigins, m)
	}
	for _, m := range f.AllowMethods {
		out.AllowMethods = append(out.AllowMethods, string(m))
	}
	for _, h := range f.AllowHeaders {
		out.AllowHeaders = append(out.AllowHeaders, string(h))
	}
	for _, h := range f.ExposeHeaders {
		out.ExposeHeaders = append(out.ExposeHeaders, string(h))
	}
	return out
}
