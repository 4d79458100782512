package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// route decides about the requests for a host and port, "host:port" as a client writes it, or about those of a
// gateway's port, "gateway|port".
func (a *asking) route(name string) *plan.Route {
	if rest, ok := strings.CutPrefix(name, plan.ListenerGateway); ok {
		if a.role != Gateway {
			return nil
		}
		return a.gatewayRoute(name, rest)
	}
	host, port, ok := splitPort(name)
	if !ok {
		return nil
	}
	s := a.service(host)
	if addr, err := netip.ParseAddr(host); err == nil && s == nil {
		s = a.ServiceAt(a.namespace, addr.Unmap(), port)
	}
	names := a.hosts(host)
	if s != nil && !strings.HasPrefix(s.Host, "*") {
		names = []string{s.Host}
	}
	routes := a.meshRoutes(names, s, port)
	if s != nil {
		if _, ok := s.Port(port); !ok {
			s = nil
		}
	}
	h := plan.VirtualHost{Name: name, Domains: a.domains(s, host, port)}
	if s != nil {
		h.Service = serviceName(s)
		if !strings.HasPrefix(s.Host, "*") {
			h.Name = s.Host + ":" + strconv.Itoa(int(port))
		}
	}
	switch {
	case len(routes) > 0:
		var rules []ranked
		for _, r := range routes {
			rules = append(rules, a.rules(r, mesh.GatewayMesh, port)...)
		}
		h.Rules = inOrder(rules)
	case s != nil:
		h.Rules = []plan.Rule{a.defaultRule(s, port)}
	}
	if len(h.Rules) == 0 {
		return nil
	}
	return &plan.Route{Name: name, Hosts: []plan.VirtualHost{h}}
}

// meshRoutes finds the routes with HTTP rules for a host, by any of its names. In the mesh the oldest counts alone; but
// those of the Gateway API go before it and count together: those of the asker's namespace, which are for it only, or
// else those of the service's own.
func (a *asking) meshRoutes(names []string, s *mesh.Service, port uint16) []*mesh.Route {
	for _, h := range names {
		var oldest *mesh.Route
		var own, all []*mesh.Route
		for _, r := range a.Routes(a.namespace, mesh.GatewayMesh, h) {
			switch {
			case len(r.HTTP) == 0 || r.Port != 0 && r.Port != port:
			case !r.Ranked && oldest == nil:
				oldest = r
			case !r.Ranked:
			case s != nil && r.Namespace != s.Namespace:
				own = append(own, r)
			default:
				all = append(all, r)
			}
		}
		switch {
		case len(own) > 0:
			return own
		case len(all) > 0:
			return all
		case oldest != nil:
			return []*mesh.Route{oldest}
		}
	}
	return nil
}

// domains lists the spellings of a service's host, each with and without port, and the host as asked.
func (a *asking) domains(s *mesh.Service, asked string, port uint16) []string {
	names := []string{strings.ToLower(asked)}
	if addr, err := netip.ParseAddr(asked); err == nil {
		names = []string{bracketed(addr)}
	}
	if s != nil && !strings.HasPrefix(s.Host, "*") {
		names = append(names, s.Host)
		if short, ok := strings.CutSuffix(s.Host, "."+clusterDomain); ok {
			names = append(names, short, short+".svc")
			if name, ns, ok := strings.Cut(short, "."); ok && ns == a.namespace {
				names = append(names, name)
			}
		}
		for _, p := range s.Addresses {
			if p.IsSingleIP() {
				names = append(names, bracketed(p.Addr()))
			}
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	out := make([]string, 0, 2*len(names))
	for _, n := range names {
		out = append(out, n, n+":"+strconv.Itoa(int(port)))
	}
	return out
}

func bracketed(addr netip.Addr) string {
	if addr.Is6() {
		return "[" + addr.String() + "]"
	}
	return addr.String()
}

// The default retries (Istio's).
const retryAttempts = 2

func defaultRetry() *plan.Retry {
	return &plan.Retry{
		Attempts:      retryAttempts,
		On:            plan.OnConnectFailure | plan.OnRefusedStream | plan.OnGRPCUnavailable | plan.OnGRPCCancelled | plan.OnStatusCodes,
		AvoidPrevious: true,
	}
}

// defaultRule sends everything to the service.
func (a *asking) defaultRule(s *mesh.Service, port uint16) plan.Rule {
	r := plan.Rule{
		Name: "default", Clusters: []plan.WeightedCluster{{Cluster: clusterName(port, "", s.Host)}}, Retry: a.retry(nil),
		Operation: s.Host + ":" + strconv.Itoa(int(port)) + "/*", Origin: origin(s.Origin, 0),
	}
	a.hashed(&r)
	return r
}

// rules compiles the HTTP rules of a route for one gateway (or the mesh) and port.
func (a *asking) rules(r *mesh.Route, gateway string, port uint16) []ranked {
	var out []ranked
	for i := range r.HTTP {
		rule := &r.HTTP[i]
		if rule.Delegate != "" {
			out = append(out, a.delegated(r, rule, gateway, port)...)
			continue
		}
		out = append(out, a.rule(r, rule, nil, gateway, port)...)
	}
	return out
}

// delegated compiles the rules of the route that a rule delegates to; it delegates no further.
func (a *asking) delegated(r *mesh.Route, root *mesh.HTTPRule, gateway string, port uint16) []ranked {
	namespace, name, _ := strings.Cut(root.Delegate, "/")
	d := a.Route(namespace, name)
	if d == nil {
		return nil
	}
	var out []ranked
	for i := range d.HTTP {
		if rule := &d.HTTP[i]; rule.Delegate == "" {
			// The delegate itself is bound to no gateway: the root's count.
			bound := *d
			bound.Gateways = r.Gateways
			out = append(out, a.rule(&bound, rule, root, gateway, port)...)
		}
	}
	return out
}

// rule compiles one HTTP rule: one plan.Rule for each of its matches that is for this asker, or two for a match of path
// segments.
func (a *asking) rule(r *mesh.Route, rule, root *mesh.HTTPRule, gateway string, port uint16) []ranked {
	roots := []mesh.HTTPMatch{{}}
	if root != nil && len(root.Matches) > 0 {
		roots = root.Matches
	}
	matches := rule.Matches
	if len(matches) == 0 {
		matches = []mesh.HTTPMatch{{}}
	}
	var out []ranked
	for _, rm := range roots {
		for _, m := range matches {
			both, ok := narrow(rm, m)
			if !ok || both.Port != 0 && both.Port != port ||
				!a.applies(both.Gateways, r.Gateways, gateway, both.SourceLabels, both.SourceNamespace) {
				continue
			}
			at := rank{}
			if r.Ranked {
				at = rankOf(both)
			}
			for _, part := range segments(both) {
				p := a.action(r, rule, part, port)
				p.Match = requestMatch(part.HTTPMatch)
				out = append(out, ranked{p, at})
			}
		}
	}
	return out
}

// narrow joins a root's match with its delegate's, which must not contradict it.
func narrow(root, m mesh.HTTPMatch) (mesh.HTTPMatch, bool) {
	out := m
	for _, f := range []struct {
		root mesh.StringMatch
		to   *mesh.StringMatch
	}{{root.URI, &out.URI}, {root.Method, &out.Method}, {root.Scheme, &out.Scheme}, {root.Authority, &out.Authority}} {
		joined, ok := narrowText(f.root, *f.to)
		if !ok {
			return out, false
		}
		*f.to = joined
	}
	out.Headers = slices.Concat(root.Headers, m.Headers)
	out.Query = slices.Concat(root.Query, m.Query)
	if out.Port == 0 {
		out.Port = root.Port
	} else if root.Port != 0 && root.Port != out.Port {
		return out, false
	}
	if len(out.Gateways) == 0 {
		out.Gateways = root.Gateways
	}
	if len(out.SourceLabels) == 0 {
		out.SourceLabels = root.SourceLabels
	}
	if out.SourceNamespace == "" {
		out.SourceNamespace = root.SourceNamespace
	}
	return out, true
}

func narrowText(root, m mesh.StringMatch) (mesh.StringMatch, bool) {
	switch {
	case root.Kind == mesh.MatchNone:
		return m, true
	case m.Kind == mesh.MatchNone:
		return root, true
	case root == m:
		return m, true
	case root.Kind == mesh.MatchRegex || m.Kind == mesh.MatchRegex:
		return m, false
	case root.Kind == mesh.MatchPrefix && (m.Kind == mesh.MatchPrefix || m.Kind == mesh.MatchExact):
		return m, strings.HasPrefix(m.Value, root.Value)
	}
	return m, false
}

// action is what a rule does, without its match.
func (a *asking) action(r *mesh.Route, rule *mesh.HTTPRule, m part, port uint16) plan.Rule {
	p := plan.Rule{
		Name: rule.Name, Origin: origin(r.Origin, rule.Line), Timeout: rule.Timeout, Retry: a.retry(rule.Retry),
		Request: headerEdits(rule.Headers.Request), Response: headerEdits(rule.Headers.Response),
	}
	if m.Name != "" {
		p.Name = strings.TrimPrefix(rule.Name+"."+m.Name, ".")
	}
	switch {
	case rule.Redirect != nil:
		p.Redirect, p.Retry = redirect(rule.Redirect, m, port), nil
	case rule.Direct != nil:
		p.Direct, p.Retry = &plan.DirectResponse{Code: rule.Direct.Status, Body: rule.Direct.Body}, nil
	default:
		p.Clusters = a.destinations(rule.Routes, port)
		a.hashed(&p)
		p.Operation = a.operation(r, rule, m.HTTPMatch, port)
	}
	if t := rule.TryTimeout; t != 0 && p.Retry != nil {
		p.Retry.PerTryTimeout = t
	} else if t != 0 && (p.Timeout == 0 || t < p.Timeout) {
		p.Timeout = t
	}
	p.Rewrite = rewrite(rule.Rewrite, m)
	p.Fault = fault(rule.Fault)
	for _, x := range rule.Mirrors {
		p.Mirrors = append(p.Mirrors, plan.Mirror{Cluster: a.clusterOf(x.Destination, port), Percent: x.Percent})
	}
	p.CORS = cors(rule.CORS)
	return p
}

func rewrite(w *mesh.Rewrite, m part) *plan.Rewrite {
	if w == nil {
		return nil
	}
	out := &plan.Rewrite{Path: w.URI, Authority: w.Authority, Regex: w.Regex, Substitution: w.Substitution}
	switch {
	case w.URI == "" || w.Whole:
	case m.segments:
		out.Prefix, out.Path = m.replace(w.URI)
	case m.URI.Kind == mesh.MatchPrefix:
		out.Prefix = m.URI.Value
	case m.URI.Kind == mesh.MatchNone:
		out.Prefix = "/"
	}
	return out
}

// operation names the client spans of a rule: by its one destination, or by the route, and by the path.
func (a *asking) operation(r *mesh.Route, rule *mesh.HTTPRule, m mesh.HTTPMatch, port uint16) string {
	name := r.Origin.Name
	if len(rule.Routes) == 1 {
		name, port = rule.Routes[0].Host, a.destinationPort(rule.Routes[0], port)
	}
	path := "/*"
	switch m.URI.Kind {
	case mesh.MatchExact, mesh.MatchRegex:
		path = m.URI.Value
	case mesh.MatchPrefix:
		path = m.URI.Value + "*"
	default:
	}
	return name + ":" + strconv.Itoa(int(port)) + path
}

// destinations are the clusters of weighted destinations. Those of weight 0 get nothing, unless all have it.
func (a *asking) destinations(list []mesh.Destination, port uint16) []plan.WeightedCluster {
	var out []plan.WeightedCluster
	for _, d := range list {
		if d.Weight == 0 && len(list) > 1 {
			continue
		}
		cluster := plan.ClusterInvalid
		if !d.Invalid {
			cluster = a.clusterOf(d, port)
		}
		out = append(out, plan.WeightedCluster{
			Cluster: cluster, Weight: d.Weight,
			Request: headerEdits(d.Headers.Request), Response: headerEdits(d.Headers.Response),
		})
	}
	return out
}

func (a *asking) clusterOf(d mesh.Destination, port uint16) string {
	return clusterName(a.destinationPort(d, port), d.Subset, d.Host)
}

// destinationPort is the port that a destination names, else its service's only port, else the one that was called.
func (a *asking) destinationPort(d mesh.Destination, port uint16) uint16 {
	if d.Port != 0 {
		return d.Port
	}
	if s := a.Service(a.namespace, d.Host); s != nil && len(s.Ports) == 1 {
		return s.Ports[0].Number
	}
	return port
}

func requestMatch(m mesh.HTTPMatch) plan.RequestMatch {
	out := plan.RequestMatch{Path: text(m.URI), Method: text(m.Method), Scheme: text(m.Scheme), Authority: text(m.Authority)}
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, plan.HeaderMatch{Name: h.Name, Value: text(h.Value), Invert: h.Invert})
	}
	for _, q := range m.Query {
		out.Query = append(out.Query, plan.HeaderMatch{Name: q.Name, Value: text(q.Value), Invert: q.Invert})
	}
	return out
}

func text(m mesh.StringMatch) plan.StringMatch {
	return plan.StringMatch{Kind: plan.MatchKind(m.Kind), Value: m.Value, IgnoreCase: m.IgnoreCase}
}

func headerEdits(e mesh.HeaderEdits) plan.HeaderEdits {
	out := plan.HeaderEdits{}
	for _, f := range e.Set {
		out.Set = append(out.Set, plan.Header(f))
	}
	for _, f := range e.Add {
		out.Add = append(out.Add, plan.Header(f))
	}
	for _, n := range e.Remove {
		out.Remove = append(out.Remove, strings.ToLower(n))
	}
	return out
}

func redirect(r *mesh.Redirect, m part, port uint16) *plan.Redirect {
	out := &plan.Redirect{
		Scheme: r.Scheme, Authority: r.Authority, Path: r.URI, Prefix: r.PrefixRewrite, Port: r.Port,
		PortFromRequest: r.PortFromRequest, Code: r.Code,
	}
	if r.PortOfListener {
		out.Port = port
	}
	switch {
	case r.PrefixRewrite == "":
	case m.segments:
		if out.MatchedPrefix, out.Prefix = m.replace(r.PrefixRewrite); out.MatchedPrefix == "" {
			out.Path, out.Prefix = out.Prefix, ""
		}
	case m.URI.Kind == mesh.MatchPrefix:
		out.MatchedPrefix = m.URI.Value
	default:
		out.MatchedPrefix = "/"
	}
	if out.Code == 0 {
		out.Code = 301
	}
	return out
}

// retry is a rule's policy, else the mesh's, else Istio's default.
func (a *asking) retry(r *mesh.Retry) *plan.Retry {
	if r == nil {
		if r = a.config.DefaultRetry; r == nil {
			return defaultRetry()
		}
	}
	if r.Attempts <= 0 {
		return nil
	}
	out := defaultRetry()
	out.Attempts, out.PerTryTimeout, out.Backoff, out.AvoidPrevious = r.Attempts, r.PerTryTimeout, r.Backoff, r.IgnorePrevious
	if len(r.On) == 0 {
		return out
	}
	out.On = 0
	for _, c := range r.On {
		if code, err := strconv.Atoi(c); err == nil {
			out.StatusCodes = append(out.StatusCodes, code)
			out.On |= plan.OnStatusCodes
			continue
		}
		if i := slices.Index(plan.RetryOnNames, c); i >= 0 {
			out.On |= 1 << i
		}
	}
	return out
}

// grpcNames are the names of gRPC's status codes, by number.
var grpcNames = []string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
	"DATA_LOSS", "UNAUTHENTICATED",
}

func fault(f *mesh.Fault) *plan.Fault {
	if f == nil {
		return nil
	}
	out := &plan.Fault{
		Delay: f.Delay, DelayPercent: f.DelayPercent, AbortStatus: f.AbortHTTP, AbortGRPC: -1, AbortPercent: f.AbortPercent,
	}
	if f.AbortGRPC != "" {
		if n, err := strconv.Atoi(f.AbortGRPC); err == nil {
			out.AbortGRPC = n
		} else {
			out.AbortGRPC = slices.Index(grpcNames, strings.ToUpper(f.AbortGRPC))
		}
	}
	return out
}

func cors(c *mesh.CORS) *plan.CORS {
	if c == nil {
		return nil
	}
	out := &plan.CORS{
		AllowMethods: c.AllowMethods, AllowHeaders: c.AllowHeaders, ExposeHeaders: c.ExposeHeaders,
		MaxAge: c.MaxAge.Truncate(time.Second), AllowCredentials: c.AllowCredentials, ForwardUnmatched: c.ForwardUnmatched,
	}
	for _, o := range c.AllowOrigins {
		out.AllowOrigins = append(out.AllowOrigins, text(o))
	}
	return out
}
