package source

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

func (s *Set) route(o *api.Object, v *networking.VirtualService) *mesh.Route {
	out := &mesh.Route{
		Origin: origin(o), Namespace: o.Namespace, Name: o.Name, Gateways: gatewayRefs(o.Namespace, v.Gateways),
		Visibility: visibility(o.Namespace, v.ExportTo, s.exports.route),
	}
	for _, h := range v.Hosts {
		out.Hosts = append(out.Hosts, s.host(o.Namespace, h))
	}
	if len(v.Gateways) == 0 && len(v.Hosts) > 0 {
		out.Gateways = []string{mesh.GatewayMesh}
	}
	for i, h := range v.Http {
		r := s.httpRule(o.Namespace, h)
		r.Line = o.LineOf("spec", "http", i)
		out.HTTP = append(out.HTTP, r)
	}
	for i, t := range v.Tls {
		r := mesh.TLSRule{Line: o.LineOf("spec", "tls", i), Routes: s.l4Routes(o.Namespace, t.Route)}
		for _, m := range t.Match {
			r.Matches = append(r.Matches, mesh.L4Match{
				SNI: lower(m.SniHosts), Destinations: prefixes(m.DestinationSubnets), Port: uint16(m.Port), SourceLabels: m.SourceLabels,
				SourceNamespace: m.SourceNamespace, Gateways: gatewayRefs(o.Namespace, m.Gateways),
			})
		}
		out.TLS = append(out.TLS, r)
	}
	for i, t := range v.Tcp {
		r := mesh.TCPRule{Line: o.LineOf("spec", "tcp", i), Routes: s.l4Routes(o.Namespace, t.Route)}
		for _, m := range t.Match {
			r.Matches = append(r.Matches, mesh.L4Match{
				Destinations: prefixes(m.DestinationSubnets), Port: uint16(m.Port), SourceLabels: m.SourceLabels,
				SourceNamespace: m.SourceNamespace, Gateways: gatewayRefs(o.Namespace, m.Gateways),
			})
		}
		out.TCP = append(out.TCP, r)
	}
	return out
}

func lower(list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, strings.ToLower(s))
	}
	return out
}

func (s *Set) l4Routes(namespace string, list []*networking.RouteDestination) []mesh.Destination {
	var out []mesh.Destination
	for _, r := range list {
		d := s.destination(namespace, r.Destination)
		d.Weight = uint32(r.Weight)
		out = append(out, d)
	}
	return out
}

func (s *Set) destination(namespace string, d *networking.Destination) mesh.Destination {
	return mesh.Destination{Host: s.host(namespace, d.GetHost()), Subset: d.GetSubset(), Port: uint16(d.GetPort().GetNumber())}
}

func (s *Set) httpRule(namespace string, h *networking.HTTPRoute) mesh.HTTPRule {
	out := mesh.HTTPRule{
		Name: h.Name, Timeout: h.Timeout.AsDuration(), Headers: headers(h.Headers), Retry: retry(h.Retries),
		Fault: fault(h.Fault), CORS: cors(h.CorsPolicy), Redirect: redirect(h.Redirect),
	}
	for _, m := range h.Match {
		out.Matches = append(out.Matches, httpMatch(namespace, m))
	}
	for _, r := range h.Route {
		d := s.destination(namespace, r.Destination)
		d.Weight, d.Headers = uint32(r.Weight), headers(r.Headers)
		out.Routes = append(out.Routes, d)
	}
	if d := h.DirectResponse; d != nil {
		out.Direct = &mesh.DirectResponse{Status: int(d.Status), Body: d.Body.GetString_() + string(d.Body.GetBytes())}
	}
	if d := h.Delegate; d != nil {
		ns := d.Namespace
		if ns == "" {
			ns = namespace
		}
		out.Delegate = ns + "/" + d.Name
	}
	if w := h.Rewrite; w != nil {
		out.Rewrite = &mesh.Rewrite{URI: w.Uri, Authority: w.Authority, Regex: w.UriRegexRewrite.GetMatch(), Substitution: w.UriRegexRewrite.GetRewrite()}
	}
	for _, m := range h.Mirrors {
		out.Mirrors = append(out.Mirrors, mesh.Mirror{Destination: s.destination(namespace, m.Destination), Percent: percentOr(m.Percentage, 100)})
	}
	if h.Mirror != nil {
		percent := percentOr(h.MirrorPercentage, percentOf(h.MirrorPercent))
		out.Mirrors = append(out.Mirrors, mesh.Mirror{Destination: s.destination(namespace, h.Mirror), Percent: percent})
	}
	return out
}

func percentOr(p *networking.Percent, absent float64) float64 {
	if p == nil {
		return absent
	}
	return p.Value
}

// percentOf is the old form of a mirror's share; absent is everything.
func percentOf(p *wrapperspb.UInt32Value) float64 {
	if p == nil {
		return 100
	}
	return float64(p.Value)
}

func httpMatch(namespace string, m *networking.HTTPMatchRequest) mesh.HTTPMatch {
	out := mesh.HTTPMatch{
		Name: m.Name, URI: stringMatch(m.Uri), Method: stringMatch(m.Method), Scheme: stringMatch(m.Scheme), Authority: stringMatch(m.Authority),
		Port: uint16(m.Port), SourceLabels: m.SourceLabels, SourceNamespace: m.SourceNamespace, Gateways: gatewayRefs(namespace, m.Gateways),
	}
	if out.URI.Kind == mesh.MatchExact || out.URI.Kind == mesh.MatchPrefix {
		out.URI.IgnoreCase = m.IgnoreUriCase
	}
	out.Headers = append(fieldMatches(m.Headers, true, false), fieldMatches(m.WithoutHeaders, true, true)...)
	out.Query = fieldMatches(m.QueryParams, false, false)
	return out
}

func fieldMatches(group map[string]*networking.StringMatch, header, invert bool) []mesh.FieldMatch {
	var out []mesh.FieldMatch
	for _, name := range slices.Sorted(maps.Keys(group)) {
		f := mesh.FieldMatch{Name: name, Value: stringMatch(group[name]), Invert: invert}
		if header {
			f.Name = strings.ToLower(name)
		}
		if f.Value.Kind == mesh.MatchNone || f.Value.Kind == mesh.MatchRegex && f.Value.Value == "*" {
			f.Value = mesh.StringMatch{Kind: mesh.MatchPresent}
		}
		out = append(out, f)
	}
	return out
}

func stringMatch(m *networking.StringMatch) mesh.StringMatch {
	switch m := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return mesh.StringMatch{Kind: mesh.MatchExact, Value: m.Exact}
	case *networking.StringMatch_Prefix:
		return mesh.StringMatch{Kind: mesh.MatchPrefix, Value: m.Prefix}
	case *networking.StringMatch_Regex:
		return mesh.StringMatch{Kind: mesh.MatchRegex, Value: m.Regex}
	}
	return mesh.StringMatch{}
}

func headers(h *networking.Headers) mesh.Headers {
	return mesh.Headers{Request: headerEdits(h.GetRequest()), Response: headerEdits(h.GetResponse())}
}

func headerEdits(h *networking.Headers_HeaderOperations) mesh.HeaderEdits {
	fields := func(group map[string]string) []mesh.Field {
		var out []mesh.Field
		for _, name := range slices.Sorted(maps.Keys(group)) {
			out = append(out, mesh.Field{Name: name, Value: group[name]})
		}
		return out
	}
	return mesh.HeaderEdits{Set: fields(h.GetSet()), Add: fields(h.GetAdd()), Remove: h.GetRemove()}
}

func redirect(r *networking.HTTPRedirect) *mesh.Redirect {
	if r == nil {
		return nil
	}
	_, derived := r.RedirectPort.(*networking.HTTPRedirect_DerivePort)
	return &mesh.Redirect{
		URI: r.Uri, PrefixRewrite: r.PrefixRewrite, Authority: r.Authority, Scheme: r.Scheme, Port: uint16(r.GetPort()), Code: int(r.RedirectCode),
		PortFromRequest: derived && r.GetDerivePort() == networking.HTTPRedirect_FROM_REQUEST_PORT,
	}
}

func retry(r *networking.HTTPRetry) *mesh.Retry {
	if r == nil {
		return nil
	}
	out := &mesh.Retry{
		Attempts: int(r.Attempts), PerTryTimeout: r.PerTryTimeout.AsDuration(), Backoff: r.Backoff.AsDuration(),
		IgnorePrevious: r.RetryIgnorePreviousHosts == nil || r.RetryIgnorePreviousHosts.Value, RemoteLocalities: r.RetryRemoteLocalities.GetValue(),
	}
	for on := range strings.SplitSeq(r.RetryOn, ",") {
		if on = strings.TrimSpace(on); on != "" {
			out.On = append(out.On, on)
		}
	}
	return out
}

func fault(f *networking.HTTPFaultInjection) *mesh.Fault {
	if f == nil {
		return nil
	}
	out := &mesh.Fault{}
	if d := f.Delay; d != nil {
		out.Delay = d.GetFixedDelay().AsDuration()
		out.DelayPercent = percentOr(d.Percentage, float64(d.Percent))
	}
	if a := f.Abort; a != nil {
		out.AbortHTTP, out.AbortGRPC = int(a.GetHttpStatus()), a.GetGrpcStatus()
		out.AbortPercent = percentOr(a.Percentage, 0)
	}
	return out
}

func cors(p *networking.CorsPolicy) *mesh.CORS {
	if p == nil {
		return nil
	}
	out := &mesh.CORS{
		AllowMethods: p.AllowMethods, AllowHeaders: p.AllowHeaders, ExposeHeaders: p.ExposeHeaders, MaxAge: p.MaxAge.AsDuration(),
		AllowCredentials: p.AllowCredentials.GetValue(),
		ForwardUnmatched: p.UnmatchedPreflights != networking.CorsPolicy_IGNORE,
	}
	for _, o := range p.AllowOrigins {
		out.AllowOrigins = append(out.AllowOrigins, anyOrigin(stringMatch(o)))
	}
	for _, o := range p.AllowOrigin {
		out.AllowOrigins = append(out.AllowOrigins, anyOrigin(mesh.StringMatch{Kind: mesh.MatchExact, Value: o}))
	}
	return out
}

// anyOrigin makes the customary "*" what it means.
func anyOrigin(m mesh.StringMatch) mesh.StringMatch {
	if m.Kind == mesh.MatchExact && m.Value == "*" {
		return mesh.StringMatch{Kind: mesh.MatchPresent}
	}
	return m
}
