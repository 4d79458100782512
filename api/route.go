package api

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// Bounds of Istio's on a direct response's body, in bytes.
const (
	maxBody  = 1 << 20
	longBody = 100 << 10
)

func validateRoute(c *check) {
	v := c.Spec.(*networking.VirtualService)
	if len(v.Hosts) == 0 && len(v.Gateways) > 0 {
		c.fault("spec.gateways", "a route without hosts is for others to delegate to and cannot name gateways; add hosts or remove gateways")
	}
	if len(v.Hosts) == 0 && len(v.Http) == 0 {
		c.fault("spec", "hosts is missing; name the hosts whose traffic this routes")
	}
	c.routeHosts(v)
	c.gatewayNames("spec.gateways", v.Gateways)
	c.exportTo("spec.exportTo", v.ExportTo)
	if len(v.Http)+len(v.Tls)+len(v.Tcp) == 0 {
		c.fault("spec", "there is no rule; add http, tls or tcp")
	}
	for i, h := range v.Http {
		c.httpRule(in("spec.http", i), h, len(v.Hosts) == 0)
	}
	for i, t := range v.Tls {
		p := in("spec.tls", i)
		c.l4Routes(p, t.Route)
		if len(t.Match) == 0 {
			c.fault(in(p, "match"), "is empty; a tls rule needs a match with sniHosts")
		}
		for j, m := range t.Match {
			c.sni(in(p, "match", j), m, v.Hosts)
		}
	}
	for i, t := range v.Tcp {
		p := in("spec.tcp", i)
		c.l4Routes(p, t.Route)
		for j, m := range t.Match {
			mp := in(p, "match", j)
			c.optionalPort(in(mp, "port"), m.Port)
			c.subnets(in(mp, "destinationSubnets"), m.DestinationSubnets)
			c.source(mp, m.SourceLabels, m.SourceNamespace, m.Gateways)
		}
	}
}

func (c *check) routeHosts(v *networking.VirtualService) {
	inMesh := len(v.Gateways) == 0 || slices.Contains(v.Gateways, "mesh")
	for i, h := range v.Hosts {
		p := in("spec.hosts", i)
		switch {
		case slices.ContainsFunc(v.Hosts[:i], func(o string) bool { return strings.EqualFold(o, h) }):
			c.fault(p, "%q is listed twice; remove one", h)
		case h == "*" && inMesh:
			c.fault(p, "* is allowed only on gateways; name the gateway under gateways, or the hosts here")
		case !isHost(h, true) && !isPrefix(h):
			c.fault(p, "%q is not a host; write a DNS name, *.a.name or an address", h)
		}
	}
}

func (c *check) gatewayNames(path string, list []string) {
	for i, g := range list {
		namespace, name, found := strings.Cut(g, "/")
		if !found {
			namespace, name = DefaultNamespace, g
		}
		if namespace != "." && !dnsLabel.MatchString(namespace) || !isHost(name, false) {
			c.fault(in(path, i), "%q is not a gateway; write its name, namespace/name, or mesh for all sidecars", g)
		}
	}
}

func (c *check) source(path string, labels map[string]string, namespace string, gateways []string) {
	c.labels(in(path, "sourceLabels"), labels)
	if namespace != "" && !dnsLabel.MatchString(namespace) {
		c.fault(in(path, "sourceNamespace"), "%q is not a namespace", namespace)
	}
	c.gatewayNames(in(path, "gateways"), gateways)
}

func (c *check) sni(p string, m *networking.TLSMatchAttributes, hosts []string) {
	if len(m.SniHosts) == 0 {
		c.fault(in(p, "sniHosts"), "is empty; name the hosts that clients ask for")
	}
	for i, s := range m.SniHosts {
		sp := in(p, "sniHosts", i)
		switch {
		case !isHost(s, true):
			c.fault(sp, "%q is not a host; write a DNS name or *.a.name", s)
		case !slices.ContainsFunc(hosts, func(h string) bool { return covers(h, s) }):
			c.fault(sp, "%q is none of the route's hosts; add it to spec.hosts", s)
		}
	}
	c.optionalPort(in(p, "port"), m.Port)
	c.subnets(in(p, "destinationSubnets"), m.DestinationSubnets)
	c.source(p, m.SourceLabels, m.SourceNamespace, m.Gateways)
}

// covers reports whether every name that narrow stands for is one that wide stands for.
func covers(wide, narrow string) bool {
	wide, narrow = strings.ToLower(wide), strings.ToLower(narrow)
	if rest, ok := strings.CutPrefix(wide, "*"); ok {
		return strings.HasSuffix(strings.TrimPrefix(narrow, "*"), rest)
	}
	return wide == narrow
}

func (c *check) l4Routes(p string, routes []*networking.RouteDestination) {
	if len(routes) == 0 {
		c.fault(p, "route is missing; name a destination")
	}
	weights := make([]int32, len(routes))
	for i, r := range routes {
		weights[i] = r.Weight
		c.destination(in(p, "route", i, "destination"), r.Destination)
	}
	c.weights(in(p, "route"), weights)
}

func (c *check) weights(p string, weights []int32) {
	sum := 0
	for i, w := range weights {
		if w < 0 {
			c.fault(in(p, i, "weight"), "is %d; it cannot be negative", w)
		}
		sum += int(w)
	}
	if len(weights) > 1 && sum == 0 {
		c.fault(p, "has %d destinations and no weight; give each a weight", len(weights))
	}
}

func (c *check) destination(p string, d *networking.Destination) {
	switch {
	case d == nil:
		c.fault(p, "is missing; name the host to send to")
		return
	case d.Host == "*" || strings.HasPrefix(d.Host, "*."):
		c.fault(in(p, "host"), "%q has a wildcard; a destination is one host", d.Host)
	case !isHost(d.Host, false) && !isIP(d.Host):
		c.fault(in(p, "host"), "%q is not a host; write a service's name", d.Host)
	}
	if d.Subset != "" && !dnsName.MatchString(d.Subset) {
		c.fault(in(p, "subset"), "%q is not the name of a subset", d.Subset)
	}
	if d.Port != nil {
		c.port(in(p, "port", "number"), d.Port.Number)
	}
}

func (c *check) httpRule(p string, h *networking.HTTPRoute, delegate bool) {
	c.httpAction(p, h, delegate)
	for i, m := range h.Match {
		c.httpMatch(in(p, "match", i), m)
	}
	weights := make([]int32, len(h.Route))
	for i, r := range h.Route {
		rp := in(p, "route", i)
		weights[i] = r.Weight
		c.destination(in(rp, "destination"), r.Destination)
		c.headers(in(rp, "headers"), r.Headers)
	}
	c.weights(in(p, "route"), weights)
	c.headers(in(p, "headers"), h.Headers)
	c.retries(in(p, "retries"), h.Retries)
	c.injection(in(p, "fault"), h.Fault)
	c.mirrors(p, h)
	c.cors(in(p, "corsPolicy"), h.CorsPolicy)
}

// httpAction judges what a rule does: exactly one of four things.
func (c *check) httpAction(p string, h *networking.HTTPRoute, delegate bool) {
	var actions []string
	for name, set := range map[string]bool{"route": len(h.Route) > 0, "redirect": h.Redirect != nil, "directResponse": h.DirectResponse != nil, "delegate": h.Delegate != nil} {
		if set {
			actions = append(actions, name)
		}
	}
	slices.Sort(actions)
	switch {
	case len(actions) == 0:
		c.fault(p, "the rule does nothing; add route, redirect, directResponse or delegate")
	case len(actions) > 1:
		c.fault(p, "has %s; keep one of them", strings.Join(actions, " and "))
	}
	if h.Redirect != nil || h.DirectResponse != nil {
		for name, set := range map[string]bool{"fault": h.Fault != nil, "rewrite": h.Rewrite != nil} {
			if set {
				c.fault(in(p, name), "has no effect on a rule that answers by itself; remove it")
			}
		}
	}
	if d := h.Delegate; d != nil {
		switch {
		case delegate:
			c.fault(in(p, "delegate"), "a route that others delegate to cannot delegate itself; only one level is allowed")
		case d.Name == "":
			c.fault(in(p, "delegate"), "name is missing; name the VirtualService that holds the rules")
		}
	}
	c.redirect(in(p, "redirect"), h.Redirect)
	if d := h.DirectResponse; d != nil {
		size := len(d.Body.GetString_()) + len(d.Body.GetBytes())
		switch {
		case d.Status < 200 || d.Status > 599:
			c.fault(in(p, "directResponse", "status"), "%d is not a final status; write 200 to 599", d.Status)
		case size > maxBody:
			c.fault(in(p, "directResponse", "body"), "has %d bytes, more than the %d allowed", size, maxBody)
		case size > longBody:
			c.warn(in(p, "directResponse", "body"), "has %d bytes, which every proxy keeps in memory; prefer a service for long answers", size)
		}
	}
	if w := h.Rewrite; w != nil {
		rp := in(p, "rewrite")
		switch {
		case w.Uri == "" && w.Authority == "" && w.UriRegexRewrite == nil:
			c.fault(rp, "is empty; add uri, authority or uriRegexRewrite")
		case w.Uri != "" && w.UriRegexRewrite != nil:
			c.fault(rp, "has uri and uriRegexRewrite; keep one of them")
		}
		if w.UriRegexRewrite != nil {
			c.regex(in(rp, "uriRegexRewrite", "match"), w.UriRegexRewrite.Match)
		}
	}
}

func (c *check) redirect(p string, r *networking.HTTPRedirect) {
	if r == nil {
		return
	}
	if r.Uri == "" && r.Authority == "" && r.RedirectPort == nil && r.Scheme == "" && r.PrefixRewrite == "" && r.RedirectCode == 0 {
		c.fault(p, "is empty; add uri, authority, port or scheme")
	}
	if r.Uri != "" && r.PrefixRewrite != "" {
		c.fault(p, "has uri and prefixRewrite; keep one of them")
	}
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		c.fault(in(p, "scheme"), "%q is not http or https", r.Scheme)
	}
	if r.RedirectCode != 0 && !slices.Contains([]uint32{301, 302, 303, 307, 308}, r.RedirectCode) {
		c.fault(in(p, "redirectCode"), "%d does not redirect; write 301, 302, 303, 307 or 308", r.RedirectCode)
	}
	if _, ok := r.RedirectPort.(*networking.HTTPRedirect_Port); ok {
		c.port(in(p, "port"), r.GetPort())
	}
}

func (c *check) httpMatch(p string, m *networking.HTTPMatchRequest) {
	for name, s := range map[string]*networking.StringMatch{"uri": m.Uri, "scheme": m.Scheme, "method": m.Method, "authority": m.Authority} {
		if s != nil {
			if s.MatchType == nil {
				c.fault(in(p, name), "is empty; add exact, prefix or regex")
			}
			c.stringMatch(in(p, name), s)
		}
	}
	for list, group := range map[string]map[string]*networking.StringMatch{"headers": m.Headers, "withoutHeaders": m.WithoutHeaders} {
		for name, s := range group {
			if name == "" || !fieldName.MatchString(strings.TrimPrefix(name, ":")) && !strings.HasPrefix(name, "@request.auth.claims") {
				c.fault(in(p, list, name), "%q is not the name of a header", name)
			}
			if strings.HasPrefix(name, "@request.auth.claims") {
				c.fault(in(p, list, name), "routing by the claims of a token is not supported yet; remove this match")
			}
			c.stringMatch(in(p, list, name), s)
		}
	}
	for name, s := range m.QueryParams {
		if name == "" {
			c.fault(in(p, "queryParams", name), "a parameter's name must not be empty")
		}
		c.stringMatch(in(p, "queryParams", name), s)
	}
	c.optionalPort(in(p, "port"), m.Port)
	c.source(p, m.SourceLabels, m.SourceNamespace, m.Gateways)
}

func (c *check) stringMatch(p string, s *networking.StringMatch) {
	switch m := s.GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		if m.Prefix == "" {
			c.fault(in(p, "prefix"), "is empty and so matches everything; leave the match out instead")
		}
	case *networking.StringMatch_Regex:
		c.regex(in(p, "regex"), m.Regex)
	}
}

func (c *check) headers(p string, h *networking.Headers) {
	for side, ops := range map[string]*networking.Headers_HeaderOperations{"request": h.GetRequest(), "response": h.GetResponse()} {
		for list, group := range map[string]map[string]string{"set": ops.GetSet(), "add": ops.GetAdd()} {
			for name, value := range group {
				hp := in(p, side, list, name)
				switch {
				case !fieldName.MatchString(strings.TrimPrefix(name, ":")):
					c.fault(hp, "%q is not the name of a header", name)
				case strings.ContainsAny(value, "\r\n\x00"):
					c.fault(hp, "a header's value is one line")
				}
				c.operators(hp, value)
			}
		}
		for i, name := range ops.GetRemove() {
			if !fieldName.MatchString(name) {
				c.fault(in(p, side, "remove", i), "%q is not the name of a header", name)
			}
		}
	}
}

// operator finds Envoy's command operators, as plan.Template does, and %%, which stands for one %.
var operator = regexp.MustCompile(`%%|%([A-Z0-9_]+)(\([^)]*\))?(:[0-9]+)?%`)

// operators are the names of those that a header's value may hold.
var operators = []string{
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_LOCAL_ADDRESS",
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_LOCAL_PORT", "DOWNSTREAM_PEER_URI_SAN", "DOWNSTREAM_REMOTE_ADDRESS",
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "HOSTNAME", "PROTOCOL", "REQ", "REQUESTED_SERVER_NAME", "RESPONSE_CODE",
	"RESPONSE_FLAGS", "UPSTREAM_CLUSTER", "UPSTREAM_HOST", "UPSTREAM_REMOTE_ADDRESS",
}

// operators refuses what would be sent as it is written, although it looks as if it were to be replaced.
func (c *check) operators(p, value string) {
	for _, m := range operator.FindAllStringSubmatch(value, -1) {
		if name := m[1]; name != "" && !slices.Contains(operators, name) {
			c.fault(p, "%%%s%% is no operator that is known in headers; write %%%% for each %% that is meant as such", name)
		} else if m[3] != "" || name == "REQ" && len(m[2]) < len("(x)") {
			c.fault(p, "%s: write REQ with the name of a header in parentheses, and no operator with a length", m[0])
		}
	}
}

// retryConditions are Envoy's conditions of when to try again.
var retryConditions = []string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx", "refused-stream",
	"retriable-status-codes", "retriable-headers", "http3-post-connect-failure",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

func (c *check) retries(p string, r *networking.HTTPRetry) {
	if r == nil {
		return
	}
	switch {
	case r.Attempts < 0:
		c.fault(in(p, "attempts"), "is %d; it cannot be negative", r.Attempts)
	case r.Attempts == 0 && (r.PerTryTimeout != nil || r.RetryOn != "" || r.RetryRemoteLocalities != nil || r.Backoff != nil):
		c.fault(p, "attempts is 0, so nothing is tried again; set attempts, or remove the other settings")
	}
	if r.RetryOn == "" {
		return
	}
	for on := range strings.SplitSeq(r.RetryOn, ",") {
		on = strings.TrimSpace(on)
		code, err := strconv.Atoi(on)
		if slices.Contains(retryConditions, on) || err == nil && code >= 100 && code <= 599 {
			continue
		}
		hint := ""
		if near := nearest(on, retryConditions); near != "" {
			hint = "; did you mean " + near + "?"
		}
		c.fault(in(p, "retryOn"), "%q is neither a condition nor a status from 100 to 599%s", on, hint)
	}
}

// grpcStatuses are the names of gRPC's status codes.
var grpcStatuses = []string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
	"UNAUTHENTICATED",
}

func (c *check) injection(p string, f *networking.HTTPFaultInjection) {
	if f == nil {
		return
	}
	if f.Abort == nil && f.Delay == nil {
		c.fault(p, "is empty; add abort or delay")
	}
	if a := f.Abort; a != nil {
		ap := in(p, "abort")
		c.percent(in(ap, "percentage", "value"), a.Percentage.GetValue())
		if a.Percentage == nil {
			c.warn(ap, "has no percentage, so no request is aborted; add percentage.value")
		}
		switch e := a.ErrorType.(type) {
		case nil:
			c.fault(ap, "does not say what to answer; add httpStatus or grpcStatus")
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			if e.HttpStatus < 200 || e.HttpStatus > 599 {
				c.fault(in(ap, "httpStatus"), "%d is not a final status; write 200 to 599", e.HttpStatus)
			}
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			number, err := strconv.Atoi(e.GrpcStatus)
			if !slices.Contains(grpcStatuses, e.GrpcStatus) && (err != nil || number < 0 || number > 16) {
				c.fault(in(ap, "grpcStatus"), "%q is not a status of gRPC; write a name such as UNAVAILABLE", e.GrpcStatus)
			}
		}
	}
	if d := f.Delay; d != nil {
		dp := in(p, "delay")
		c.percent(in(dp, "percentage", "value"), d.Percentage.GetValue())
		c.percent(in(dp, "percent"), float64(d.Percent))
		if d.Percentage == nil && d.Percent == 0 {
			c.warn(dp, "has no percentage, so no request is delayed; add percentage.value")
		}
		if d.HttpDelayType == nil {
			c.fault(dp, "does not say how long; add fixedDelay")
		}
	}
}

func (c *check) mirrors(p string, h *networking.HTTPRoute) {
	if h.Mirror != nil && len(h.Mirrors) > 0 {
		c.fault(p, "has mirror and mirrors; keep mirrors")
	}
	if h.Mirror != nil {
		c.destination(in(p, "mirror"), h.Mirror)
	}
	for _, name := range []string{"mirrorPercentage", "mirrorPercent", "mirror_percent"} {
		if h.Mirror == nil && c.has(in(p, name)) {
			c.warn(in(p, name), "has no effect without mirror; in mirrors, each item has a percentage of its own")
		}
	}
	c.percent(in(p, "mirrorPercentage", "value"), h.MirrorPercentage.GetValue())
	c.percent(in(p, "mirrorPercent"), float64(h.MirrorPercent.GetValue()))
	for i, m := range h.Mirrors {
		c.destination(in(p, "mirrors", i, "destination"), m.Destination)
		c.percent(in(p, "mirrors", i, "percentage", "value"), m.Percentage.GetValue())
	}
}

func (c *check) cors(p string, policy *networking.CorsPolicy) {
	if policy == nil {
		return
	}
	for i, o := range policy.AllowOrigins {
		op := in(p, "allowOrigins", i)
		if o.MatchType == nil {
			c.fault(op, "is empty; add exact, prefix or regex")
		}
		c.stringMatch(op, o)
	}
	for i, m := range policy.AllowMethods {
		if m != "*" && !fieldName.MatchString(m) {
			c.fault(in(p, "allowMethods", i), "%q is not a method", m)
		}
	}
	for list, names := range map[string][]string{"allowHeaders": policy.AllowHeaders, "exposeHeaders": policy.ExposeHeaders} {
		for i, n := range names {
			if !fieldName.MatchString(n) {
				c.fault(in(p, list, i), "%q is not the name of a header", n)
			}
		}
	}
	if age := policy.MaxAge; age != nil && age.Nanos != 0 {
		c.fault(in(p, "maxAge"), "is told to browsers in whole seconds; write whole seconds")
	}
}
