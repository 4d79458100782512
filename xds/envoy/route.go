package envoy

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previous "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lateen-mesh/lateen/plan"
)

// route writes the rules of a set of hosts.
func (e *encoder) route(p *plan.Route) ([]Resource, error) {
	m, err := e.routeConfig(p)
	if err != nil {
		return nil, err
	}
	if v := fallback(p); v != nil && e.flavour == Sidecar {
		m.VirtualHosts = append(m.VirtualHosts, v)
	}
	name := Names(e.flavour, plan.KindRoute, p.Name)[0]
	m.Name = name
	return []Resource{{TypeURL: TypeURL(plan.KindRoute), Name: name, Message: m}}, nil
}

func (e *encoder) routeConfig(p *plan.Route) (*route.RouteConfiguration, error) {
	out := &route.RouteConfiguration{Name: p.Name}
	if e.flavour != GRPC {
		out.ValidateClusters = wrapperspb.Bool(false) // a route may arrive before its cluster does
	}
	taken := map[string]bool{} // Envoy refuses a route in which two hosts share a domain or a name
	for i := range p.Hosts {
		v, err := e.virtualHost(p, &p.Hosts[i], taken)
		if err != nil {
			return nil, err
		}
		if len(v.Domains) > 0 {
			out.VirtualHosts = append(out.VirtualHosts, v)
		}
	}
	return out, nil
}

func (e *encoder) virtualHost(p *plan.Route, h *plan.VirtualHost, taken map[string]bool) (*route.VirtualHost, error) {
	v := &route.VirtualHost{Name: h.Name}
	v.IncludeRequestAttemptCount = e.flavour != GRPC && !inbound(p.Name)
	if v.Name == "" || taken["name "+v.Name] {
		v.Name += "#" + strconv.Itoa(len(taken))
	}
	taken["name "+v.Name] = true
	for _, d := range h.Domains {
		if !taken[d] {
			taken[d] = true
			v.Domains = append(v.Domains, d)
		}
	}
	if h.RequireTLS {
		v.RequireTls = route.VirtualHost_ALL
	}
	for i := range h.Rules {
		r, err := e.rule(p, &h.Rules[i])
		if err != nil {
			return nil, fmt.Errorf("host %s: rule %d: %w", h.Name, i+1, err)
		}
		v.Routes = append(v.Routes, r)
	}
	return v, nil
}

// inbound reports whether a route leads to the asker's own workload: there Istio counts no attempts.
func inbound(name string) bool {
	return name == plan.ClusterInboundPassthrough || strings.HasPrefix(name, "inbound|")
}

// fallback is what a sidecar does with requests to a service's address that name a host which is not the service's:
// they go to the service, whoever they name. Nil if the route has rules for every host, or for no service.
func fallback(p *plan.Route) *route.VirtualHost {
	if len(p.Hosts) == 0 || p.Hosts[0].Service.Host == "" || strings.HasPrefix(p.Name, plan.ListenerGateway) {
		return nil
	}
	port := portOf(p.Name)
	if port == 0 || slices.ContainsFunc(p.Hosts, func(h plan.VirtualHost) bool { return slices.Contains(h.Domains, "*") }) {
		return nil
	}
	return everything("allow_any", "outbound|"+strconv.Itoa(int(port))+"||"+p.Hosts[0].Service.Host)
}

// everything sends every request to one cluster.
func everything(name, cluster string) *route.VirtualHost {
	return &route.VirtualHost{Name: name, Domains: []string{"*"}, IncludeRequestAttemptCount: true, Routes: []*route.Route{{
		Name:  name,
		Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier: &route.RouteAction_Cluster{Cluster: cluster}, Timeout: duration(0),
		}},
	}}}
}

// portOf is the port in the name of a route; 0 if there is none.
func portOf(name string) uint16 {
	if rest, ok := strings.CutPrefix(name, plan.ListenerGateway); ok {
		name, _, _ = strings.Cut(rest, "|")
	} else {
		name = name[strings.LastIndexByte(name, ':')+1:]
	}
	n, _ := strconv.ParseUint(name, 10, 16) // 0 is the answer if it is none
	return uint16(n)
}

func (e *encoder) rule(p *plan.Route, r *plan.Rule) (*route.Route, error) {
	match, err := e.match(&r.Match)
	if err != nil {
		return nil, err
	}
	out := &route.Route{Name: r.Name, Match: match}
	switch {
	case r.Redirect != nil:
		out.Action = &route.Route_Redirect{Redirect: redirect(r.Redirect, portOf(p.Name))}
	case r.Direct != nil:
		out.Action = &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{
			Status: uint32(r.Direct.Code), Body: inlineText(r.Direct.Body),
		}}
	case len(r.Clusters) == 0:
		out.Action = &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 503}}
	default:
		out.Action = &route.Route_Route{Route: e.action(r)}
	}
	if f := r.Fault; f != nil {
		out.TypedPerFilterConfig = map[string]*anypb.Any{filterFault: pack(fault(f))}
	}
	if e.flavour == GRPC {
		return out, nil
	}
	if c := r.CORS; c != nil {
		if out.TypedPerFilterConfig == nil {
			out.TypedPerFilterConfig = map[string]*anypb.Any{}
		}
		out.TypedPerFilterConfig[filterCORS] = pack(cors(c))
	}
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = additions(r.Request), removals(r.Request)
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = additions(r.Response), removals(r.Response)
	if len(r.Clusters) == 1 { // A destination's edits come after the rule's; Envoy makes those of weighted clusters first.
		c := &r.Clusters[0]
		out.RequestHeadersToAdd = append(out.RequestHeadersToAdd, additions(c.Request)...)
		out.RequestHeadersToRemove = append(out.RequestHeadersToRemove, removals(c.Request)...)
		out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, additions(c.Response)...)
		out.ResponseHeadersToRemove = append(out.ResponseHeadersToRemove, removals(c.Response)...)
	}
	if r.Operation != "" {
		out.Decorator = &route.Decorator{Operation: r.Operation}
	}
	return out, nil
}

var errTemplate = errors.New("a path template is matched by Envoy only")

func (e *encoder) match(m *plan.RequestMatch) (*route.RouteMatch, error) {
	out := &route.RouteMatch{}
	switch m.Path.Kind {
	case plan.MatchExact:
		out.PathSpecifier = &route.RouteMatch_Path{Path: m.Path.Value}
	case plan.MatchPrefix:
		out.PathSpecifier = &route.RouteMatch_Prefix{Prefix: m.Path.Value}
	case plan.MatchRegex:
		out.PathSpecifier = &route.RouteMatch_SafeRegex{SafeRegex: regex(m.Path.Value)}
	case plan.MatchSuffix:
		out.PathSpecifier = &route.RouteMatch_SafeRegex{SafeRegex: regex(".*" + regexp.QuoteMeta(m.Path.Value))}
	case plan.MatchPath:
		if e.flavour == GRPC {
			return nil, errTemplate
		}
		out.PathSpecifier = &route.RouteMatch_SafeRegex{SafeRegex: regex(templateRegex(m.Path.Value))}
	default:
		out.PathSpecifier = &route.RouteMatch_Prefix{Prefix: "/"}
	}
	if m.Path.IgnoreCase && m.Path.Kind != plan.MatchRegex {
		out.CaseSensitive = wrapperspb.Bool(false)
	}
	for _, h := range []plan.HeaderMatch{{Name: ":method", Value: m.Method}, {Name: ":scheme", Value: m.Scheme}, {Name: ":authority", Value: m.Authority}} {
		if h.Value.Kind != plan.MatchNone {
			out.Headers = append(out.Headers, header(h.Name, h.Value, false))
		}
	}
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, header(h.Name, h.Value, h.Invert))
	}
	for _, q := range m.Query {
		if q.Invert {
			return nil, fmt.Errorf("query parameter %s: a match of a parameter cannot be inverted here", q.Name)
		}
		x := &route.QueryParameterMatcher{Name: q.Name}
		if q.Value.Kind == plan.MatchPresent {
			x.QueryParameterMatchSpecifier = &route.QueryParameterMatcher_PresentMatch{PresentMatch: true}
		} else {
			x.QueryParameterMatchSpecifier = &route.QueryParameterMatcher_StringMatch{StringMatch: text(q.Value)}
		}
		out.QueryParameters = append(out.QueryParameters, x)
	}
	return out, nil
}

func (e *encoder) action(r *plan.Rule) *route.RouteAction {
	out := &route.RouteAction{RetryPolicy: e.retry(r.Retry)}
	e.destinations(out, r.Clusters)
	for _, h := range r.HashOn {
		if x := hashOn(h); x != nil {
			out.HashPolicy = append(out.HashPolicy, x)
		}
	}
	if e.flavour == GRPC {
		if r.Timeout > 0 {
			out.MaxStreamDuration = &route.RouteAction_MaxStreamDuration{MaxStreamDuration: duration(r.Timeout)}
		}
		return out
	}
	out.Timeout = duration(r.Timeout)
	// Deprecated, but Istio's choice, too: beside max_stream_duration Envoy takes no notice of timeout.
	out.MaxGrpcTimeout = duration(r.Timeout) //nolint:staticcheck // see above
	e.rewrite(out, r)
	for _, m := range r.Mirrors {
		out.RequestMirrorPolicies = append(out.RequestMirrorPolicies, &route.RouteAction_RequestMirrorPolicy{
			Cluster: m.Cluster, RuntimeFraction: runtimePercent(m.Percent), TraceSampled: wrapperspb.Bool(false),
		})
	}
	return out
}

// destinations says where a route leads: to one cluster by name, or to several by weight.
func (e *encoder) destinations(out *route.RouteAction, list []plan.WeightedCluster) {
	if slices.ContainsFunc(list, func(c plan.WeightedCluster) bool { return c.Cluster == plan.ClusterInvalid }) {
		out.ClusterNotFoundResponseCode = route.RouteAction_INTERNAL_SERVER_ERROR
	}
	if len(list) == 1 {
		out.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: list[0].Cluster}
		return
	}
	weighted := &route.WeightedCluster{}
	for _, c := range list {
		w := &route.WeightedCluster_ClusterWeight{Name: c.Cluster, Weight: wrapperspb.UInt32(c.Weight)}
		if e.flavour != GRPC {
			w.RequestHeadersToAdd, w.RequestHeadersToRemove = additions(c.Request), removals(c.Request)
			w.ResponseHeadersToAdd, w.ResponseHeadersToRemove = additions(c.Response), removals(c.Response)
			if host := hostEdit(c.Request); host != "" {
				w.HostRewriteSpecifier = &route.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: host}
			}
		}
		weighted.Clusters = append(weighted.Clusters, w)
	}
	out.ClusterSpecifier = &route.RouteAction_WeightedClusters{WeightedClusters: weighted}
}

func (e *encoder) rewrite(out *route.RouteAction, r *plan.Rule) {
	host := hostEdit(r.Request)
	if len(r.Clusters) == 1 {
		host = cmp.Or(hostEdit(r.Clusters[0].Request), host)
	}
	if w := r.Rewrite; w != nil {
		if w.Authority != "" {
			host = w.Authority
		}
		switch {
		case w.Regex != "":
			out.RegexRewrite = &matcher.RegexMatchAndSubstitute{Pattern: regex(w.Regex), Substitution: w.Substitution}
		case w.Path != "" && w.Prefix == "" && (r.Match.Path.Kind == plan.MatchPrefix || r.Match.Path.Kind == plan.MatchNone):
			out.RegexRewrite = &matcher.RegexMatchAndSubstitute{
				Pattern: regex("^/.*$"), Substitution: strings.ReplaceAll(w.Path, `\`, `\\`),
			}
		default:
			out.PrefixRewrite = w.Path
		}
	}
	if host != "" {
		out.HostRewriteSpecifier = &route.RouteAction_HostRewriteLiteral{HostRewriteLiteral: host}
	}
}

// The names under which Envoy knows what decides where to retry.
const predicatePrevious = "envoy.retry_host_predicates.previous_hosts"

// How retries look for a host that has not been tried, and by how much their pauses grow.
const (
	selectionAttempts = 5
	backoffDefault    = 25 * time.Millisecond
	backoffGrowth     = 10
)

// grpcRetries are the conditions that a gRPC client can tell (gRFC A44).
const grpcRetries = plan.OnGRPCCancelled | plan.OnGRPCDeadlineExceeded | plan.OnGRPCInternal | plan.OnGRPCResourceExhausted |
	plan.OnGRPCUnavailable

func (e *encoder) retry(p *plan.Retry) *route.RetryPolicy {
	if p == nil || p.Attempts <= 0 {
		return nil
	}
	on := p.On
	if e.flavour == GRPC {
		if on &= grpcRetries; on == 0 {
			return nil
		}
	}
	var names []string
	for i, name := range plan.RetryOnNames {
		if on&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	out := &route.RetryPolicy{RetryOn: strings.Join(names, ","), NumRetries: wrapperspb.UInt32(uint32(p.Attempts))}
	if p.Backoff > 0 {
		out.RetryBackOff = &route.RetryPolicy_RetryBackOff{
			BaseInterval: duration(max(p.Backoff, time.Millisecond)), MaxInterval: duration(max(p.Backoff, time.Millisecond) * backoffGrowth),
		}
	}
	if e.flavour == GRPC {
		return out
	}
	if p.PerTryTimeout > 0 {
		out.PerTryTimeout = duration(p.PerTryTimeout)
	}
	for _, code := range p.StatusCodes {
		out.RetriableStatusCodes = append(out.RetriableStatusCodes, uint32(code))
	}
	if p.AvoidPrevious {
		out.HostSelectionRetryMaxAttempts = selectionAttempts
		out.RetryHostPredicate = []*route.RetryPolicy_RetryHostPredicate{{
			Name:       predicatePrevious,
			ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: pack(&previous.PreviousHostsPredicate{})},
		}}
	}
	return out
}

func redirect(r *plan.Redirect, port uint16) *route.RedirectAction {
	out := &route.RedirectAction{HostRedirect: r.Authority}
	switch r.Code {
	case 302:
		out.ResponseCode = route.RedirectAction_FOUND
	case 303:
		out.ResponseCode = route.RedirectAction_SEE_OTHER
	case 307:
		out.ResponseCode = route.RedirectAction_TEMPORARY_REDIRECT
	case 308:
		out.ResponseCode = route.RedirectAction_PERMANENT_REDIRECT
	}
	if r.Scheme != "" {
		out.SchemeRewriteSpecifier = &route.RedirectAction_SchemeRedirect{SchemeRedirect: r.Scheme}
	}
	switch {
	case r.Prefix != "":
		out.PathRewriteSpecifier = &route.RedirectAction_PrefixRewrite{PrefixRewrite: r.Prefix}
	case r.Path != "":
		out.PathRewriteSpecifier = &route.RedirectAction_PathRedirect{PathRedirect: r.Path}
	}
	switch {
	case r.Port != 0:
		out.PortRedirect = uint32(r.Port)
	case r.PortFromRequest:
		out.PortRedirect = uint32(port)
	}
	return out
}

func hashOn(h plan.HashOn) *route.RouteAction_HashPolicy {
	switch {
	case h.Header != "":
		return &route.RouteAction_HashPolicy{PolicySpecifier: &route.RouteAction_HashPolicy_Header_{
			Header: &route.RouteAction_HashPolicy_Header{HeaderName: h.Header},
		}}
	case h.Cookie != "":
		c := &route.RouteAction_HashPolicy_Cookie{Name: h.Cookie, Path: h.CookiePath}
		if h.CookieTTL != nil {
			c.Ttl = duration(*h.CookieTTL)
		}
		return &route.RouteAction_HashPolicy{PolicySpecifier: &route.RouteAction_HashPolicy_Cookie_{Cookie: c}}
	case h.SourceIP:
		return &route.RouteAction_HashPolicy{PolicySpecifier: &route.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &route.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}}
	case h.Query != "":
		return &route.RouteAction_HashPolicy{PolicySpecifier: &route.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &route.RouteAction_HashPolicy_QueryParameter{Name: h.Query},
		}}
	}
	return nil
}

func inlineText(s string) *core.DataSource {
	if s == "" {
		return nil
	}
	return &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: s}}
}

// isHost reports whether a field is the request's host, which Envoy lets a route rewrite but not edit.
func isHost(name string) bool { return strings.EqualFold(name, "host") || name == ":authority" }

func hostEdit(e plan.HeaderEdits) string {
	for _, h := range e.Set {
		if isHost(h.Name) {
			return h.Value
		}
	}
	return ""
}

func additions(e plan.HeaderEdits) []*core.HeaderValueOption {
	var out []*core.HeaderValueOption
	add := func(list []plan.Header, how core.HeaderValueOption_HeaderAppendAction) {
		for _, h := range list {
			if !isHost(h.Name) {
				out = append(out, &core.HeaderValueOption{
					Header: &core.HeaderValue{Key: h.Name, Value: format(h.Value)}, AppendAction: how, KeepEmptyValue: true,
				})
			}
		}
	}
	add(e.Set, core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	add(e.Add, core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	return out
}

// format writes a value so that Envoy, which refuses a % that it cannot read, finds the same operators in it as we do.
func format(value string) string {
	var b strings.Builder
	for _, p := range plan.Template(value) {
		if p.Operator {
			b.WriteString("%" + p.Text + "%")
		} else {
			b.WriteString(strings.ReplaceAll(p.Text, "%", "%%"))
		}
	}
	return b.String()
}

func removals(e plan.HeaderEdits) []string {
	return slices.DeleteFunc(slices.Clone(e.Remove), func(n string) bool { return isHost(n) || strings.HasPrefix(n, ":") })
}
