package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// text builds an indented text, one thing on each line.
type text struct {
	b     strings.Builder
	depth int
}

func (t *text) line(format string, args ...any) {
	t.b.WriteString(strings.Repeat("  ", t.depth))
	fmt.Fprintf(&t.b, format, args...)
	t.b.WriteByte('\n')
}

func (t *text) in(f func()) {
	t.depth++
	f()
	t.depth--
}

// from is " <- origin" or nothing.
func from(o Origin) string {
	if s := o.String(); s != "" {
		return "  <- " + s
	}
	return ""
}

// String prints the listener with its chains.
func (l *Listener) String() string {
	t := &text{}
	bind := ""
	if l.Bind.IsValid() {
		bind = " on " + l.Bind.String()
	}
	t.line("listener %s (%s%s)", l.Name, l.Direction, bind)
	t.in(func() {
		for i := range l.Chains {
			l.Chains[i].print(t)
		}
		l.Telemetry.print(t)
	})
	return t.b.String()
}

func (c *Chain) print(t *text) {
	t.line("chain %s: %s%s%s", c.Name, c.Match, c.Protocol, from(c.Origin))
	t.in(func() {
		if c.TLS.Mode != TLSNone {
			t.line("tls %s", c.TLS)
		}
		if c.HTTP != nil {
			c.HTTP.print(t)
		}
		if c.TCP != nil {
			t.line("bytes to %s", clusters(c.TCP.Clusters))
		}
		if c.Authz != nil {
			c.Authz.print(t)
		}
	})
}

// String is the conjunction as words, with a space after it; empty if everything matches.
func (m ChainMatch) String() string {
	var parts []string
	if len(m.Ports) > 0 {
		parts = append(parts, "port "+joinFunc(m.Ports, func(p uint16) string { return strconv.Itoa(int(p)) }))
	}
	if len(m.SNI) > 0 {
		parts = append(parts, "server name "+strings.Join(m.SNI, ","))
	}
	if len(m.Destinations) > 0 {
		parts = append(parts, "to "+joinFunc(m.Destinations, netip.Prefix.String))
	}
	if len(m.Sources) > 0 {
		parts = append(parts, "from "+joinFunc(m.Sources, netip.Prefix.String))
	}
	if len(parts) == 0 {
		return ""
	}
	return strings.Join(parts, " and ") + ", "
}

func joinFunc[T any](list []T, f func(T) string) string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return strings.Join(out, ",")
}

// String is the mode with what it needs.
func (s ServerTLS) String() string {
	out := s.Mode.String()
	if s.Secret != "" {
		out += " with " + s.Secret
	}
	if s.CertFile != "" {
		out += " with " + s.CertFile
	}
	if len(s.SubjectAltNames) > 0 {
		out += " for " + strings.Join(s.SubjectAltNames, ",")
	}
	if s.RedirectHTTPS {
		out += ", plaintext redirected to https"
	}
	return out
}

func (h *HTTP) print(t *text) {
	if h.Inline != nil {
		h.Inline.print(t)
		return
	}
	how := ""
	if h.ByHost {
		how = ", or the route of the request's host"
	}
	t.line("requests by route %q%s", h.Route, how)
}

func clusters(list []WeightedCluster) string {
	if len(list) == 1 {
		return list[0].Cluster
	}
	return joinFunc(list, func(w WeightedCluster) string { return fmt.Sprintf("%s %d", w.Cluster, w.Weight) })
}

func (s *Telemetry) print(t *text) {
	for _, a := range s.AccessLogs {
		t.line("access log to %s", a.Path)
	}
	if s.Tracing != nil {
		t.line("spans to %s, %g %%", s.Tracing.Endpoint, s.Tracing.Sampling)
	}
	if s.NoMetrics {
		t.line("no metrics")
	}
}

// String prints the route with its hosts and rules.
func (r *Route) String() string {
	t := &text{}
	r.print(t)
	return t.b.String()
}

func (r *Route) print(t *text) {
	t.line("route %s", r.Name)
	t.in(func() {
		for i := range r.Hosts {
			h := &r.Hosts[i]
			t.line("host %s: %s", h.Name, strings.Join(h.Domains, " "))
			t.in(func() {
				if h.RequireTLS {
					t.line("plaintext redirected to https")
				}
				for j := range h.Rules {
					h.Rules[j].print(t)
				}
			})
		}
	})
}

func (r *Rule) print(t *text) {
	name := ""
	if r.Name != "" {
		name = " " + r.Name
	}
	t.line("rule%s: %s%s", name, r.Match, from(r.Origin))
	t.in(func() {
		switch {
		case r.Redirect != nil:
			t.line("redirect %d %s", r.Redirect.Code, r.Redirect)
		case r.Direct != nil:
			t.line("answer %d %q", r.Direct.Code, r.Direct.Body)
		default:
			t.line("to %s", clusters(r.Clusters))
		}
		r.printExtras(t)
	})
}

func (r *Rule) printExtras(t *text) {
	if w := r.Rewrite; w != nil {
		t.line("rewrite path %q prefix %q authority %q regex %q %q", w.Path, w.Prefix, w.Authority, w.Regex, w.Substitution)
	}
	if !r.Request.Empty() {
		t.line("request headers %s", r.Request)
	}
	if !r.Response.Empty() {
		t.line("response headers %s", r.Response)
	}
	if f := r.Fault; f != nil {
		if f.Delay > 0 {
			t.line("fault: delay %s for %g %%", f.Delay, f.DelayPercent)
		}
		if f.AbortPercent > 0 {
			t.line("fault: abort http %d grpc %d for %g %%", f.AbortStatus, f.AbortGRPC, f.AbortPercent)
		}
	}
	if r.Timeout > 0 {
		t.line("timeout %s", r.Timeout)
	}
	if p := r.Retry; p != nil {
		t.line("retry %s", p)
	}
	for _, m := range r.Mirrors {
		t.line("mirror %g %% to %s", m.Percent, m.Cluster)
	}
	if r.CORS != nil {
		t.line("cors for %s", joinFunc(r.CORS.AllowOrigins, StringMatch.String))
	}
	for _, h := range r.HashOn {
		t.line("hash on %s", h)
	}
}

// String is the conjunction as words; "everything" if it is empty.
func (m RequestMatch) String() string {
	var parts []string
	add := func(what string, s StringMatch) {
		if s.Kind != MatchNone {
			parts = append(parts, what+" "+s.String())
		}
	}
	add("path", m.Path)
	add("method", m.Method)
	add("scheme", m.Scheme)
	add("authority", m.Authority)
	for _, h := range m.Headers {
		parts = append(parts, "header "+h.String())
	}
	for _, q := range m.Query {
		parts = append(parts, "query "+q.String())
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, " and ")
}

// String is for example `end-user = jason` or `not x-debug present`.
func (h HeaderMatch) String() string {
	not := ""
	if h.Invert {
		not = "not "
	}
	return not + h.Name + " " + h.Value.String()
}

// String shows where the redirect leads.
func (r Redirect) String() string {
	parts := []string{}
	for _, p := range [][2]string{{"scheme", r.Scheme}, {"authority", r.Authority}, {"path", r.Path}, {"prefix", r.Prefix}} {
		if p[1] != "" {
			parts = append(parts, p[0]+" "+p[1])
		}
	}
	if r.Port != 0 {
		parts = append(parts, fmt.Sprintf("port %d", r.Port))
	}
	return strings.Join(parts, " ")
}

// String lists the edits: "-x =a:1 +b:2".
func (e HeaderEdits) String() string {
	var parts []string
	for _, n := range e.Remove {
		parts = append(parts, "-"+n)
	}
	for _, h := range e.Set {
		parts = append(parts, "="+h.Name+":"+h.Value)
	}
	for _, h := range e.Add {
		parts = append(parts, "+"+h.Name+":"+h.Value)
	}
	return strings.Join(parts, " ")
}

// String is for example "2 times on connect-failure,unavailable".
func (r Retry) String() string {
	s := fmt.Sprintf("%d times on %s", r.Attempts, r.On)
	if len(r.StatusCodes) > 0 {
		s += " " + joinFunc(r.StatusCodes, strconv.Itoa)
	}
	if r.PerTryTimeout > 0 {
		s += ", each within " + r.PerTryTimeout.String()
	}
	return s
}

// String lists the conditions by Envoy's names.
func (r RetryOn) String() string {
	var parts []string
	for i, n := range RetryOnNames {
		if r&(1<<i) != 0 {
			parts = append(parts, n)
		}
	}
	return strings.Join(parts, ",")
}

// String names the input.
func (h HashOn) String() string {
	switch {
	case h.Header != "":
		return "header " + h.Header
	case h.Cookie != "":
		return "cookie " + h.Cookie
	case h.Query != "":
		return "query " + h.Query
	}
	return "source address"
}

// String prints the cluster.
func (c *Cluster) String() string {
	t := &text{}
	t.line("cluster %s%s", c.Name, from(c.Origin))
	t.in(func() {
		t.line("endpoints by %s, %s, %s, %s", c.Discovery, c.Balance.Algorithm, c.Protocol, c.TLS)
		for _, a := range c.Addresses {
			t.line("at %s:%d", a.Host, a.Port)
		}
		for _, h := range c.Balance.HashOn {
			t.line("hash on %s", h)
		}
		if c.BindSource != "" {
			t.line("from %s", c.BindSource)
		}
		if c.Limits != (Limits{}) {
			t.line("limits%s", c.Limits)
		}
		if c.ConnectTimeout != 0 {
			t.line("connect within %s", c.ConnectTimeout)
		}
		if o := c.Outlier; o != nil {
			t.line("eject after %d errors, %d gateway errors; base %s, at most %d %%", o.Consecutive5xx, o.ConsecutiveGateway, o.BaseEjection, o.MaxEjectionPercent)
		}
	})
	return t.b.String()
}

// String is the mode with what it demands.
func (c ClientTLS) String() string {
	s := c.Mode.String()
	if c.Mode == ClientTLSNone {
		return s
	}
	if c.SNI != "" {
		s += " as " + c.SNI
	}
	if len(c.Identities) > 0 {
		s += " to " + strings.Join(c.Identities, ",")
	}
	return s
}

// String lists the limits that are set, each with a space before it.
func (l Limits) String() string {
	s := ""
	for _, p := range []struct {
		name  string
		value uint32
	}{
		{"connections", l.Connections}, {"pending", l.PendingRequests}, {"requests", l.Requests}, {"retries", l.Retries},
		{"requests per connection", l.RequestsPerConnection}, {"streams", l.ConcurrentStreams},
	} {
		if p.value > 0 {
			s += fmt.Sprintf(" %s %d", p.name, p.value)
		}
	}
	if l.ConnectionDuration > 0 {
		s += " duration " + l.ConnectionDuration.Round(time.Millisecond).String()
	}
	if l.RetryBudget > 0 {
		s += fmt.Sprintf(" retry budget %g %%", l.RetryBudget)
	}
	return s
}

// String prints one endpoint on each line.
func (e *Endpoints) String() string {
	t := &text{}
	t.line("endpoints %s (%d)", e.Name, len(e.Endpoints))
	t.in(func() {
		for i := range e.Endpoints {
			t.line("%s", &e.Endpoints[i])
		}
	})
	return t.b.String()
}

// String is for example "10.0.0.7:9080 healthy mtls reviews-v1 v1".
func (e *Endpoint) String() string {
	parts := []string{}
	if e.Host != "" {
		parts = append(parts, fmt.Sprintf("%s:%d", e.Host, e.Port))
	} else {
		parts = append(parts, e.Address.String())
	}
	parts = append(parts, e.Health.String())
	if e.MTLS {
		parts = append(parts, "mtls")
	}
	if e.Weight > 1 {
		parts = append(parts, fmt.Sprintf("weight %d", e.Weight))
	}
	parts = append(parts, e.Workload.Name, e.Workload.Version, e.Locality, e.Identity)
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")
}

func (a *Authz) print(t *text) {
	for i := range a.Policies {
		p := &a.Policies[i]
		dry := ""
		if p.DryRun {
			dry = " (dry run)"
		}
		t.line("%s%s by %s%s", p.Action, dry, p.Name, from(p.Origin))
		t.in(func() {
			if len(p.Rules) == 0 {
				t.line("nothing")
			}
			for j := range p.Rules {
				t.line("%s", p.Rules[j])
			}
		})
	}
}

// String is the rule as words.
func (r PolicyRule) String() string {
	var parts []string
	if len(r.From) > 0 {
		parts = append(parts, "from "+joinFunc(r.From, Source.String))
	}
	if len(r.To) > 0 {
		parts = append(parts, "to "+joinFunc(r.To, Operation.String))
	}
	for _, c := range r.When {
		parts = append(parts, "when "+c.String())
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, " ")
}

type fieldText struct {
	name    string
	yes, no []string
}

func fields(list []fieldText) string {
	var parts []string
	for _, f := range list {
		if len(f.yes) > 0 {
			parts = append(parts, f.name+" "+strings.Join(f.yes, "|"))
		}
		if len(f.no) > 0 {
			parts = append(parts, "not "+f.name+" "+strings.Join(f.no, "|"))
		}
	}
	if len(parts) == 0 {
		return "anything"
	}
	return strings.Join(parts, " and ")
}

func texts[T any](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = fmt.Sprint(v)
	}
	return out
}

// String is the source as words.
func (s Source) String() string {
	return fields([]fieldText{
		{"principal", texts(s.Principals), texts(s.NotPrincipals)},
		{"request principal", texts(s.RequestPrincipals), texts(s.NotRequestPrincipals)},
		{"namespace", texts(s.Namespaces), texts(s.NotNamespaces)},
		{"trust domain", texts(s.TrustDomains), texts(s.NotTrustDomains)},
		{"service account", texts(s.ServiceAccounts), texts(s.NotServiceAccounts)},
		{"ip", texts(s.IPs), texts(s.NotIPs)},
		{"remote ip", texts(s.RemoteIPs), texts(s.NotRemoteIPs)},
	})
}

// String is the operation as words.
func (o Operation) String() string {
	return fields([]fieldText{
		{"host", texts(o.Hosts), texts(o.NotHosts)},
		{"port", texts(o.Ports), texts(o.NotPorts)},
		{"method", texts(o.Methods), texts(o.NotMethods)},
		{"path", texts(o.Paths), texts(o.NotPaths)},
	})
}

// String is the condition as words.
func (c Condition) String() string {
	return fields([]fieldText{{
		c.Key,
		slices.Concat(texts(c.Values), texts(c.Prefixes), texts(c.Ports)),
		slices.Concat(texts(c.NotValues), texts(c.NotPrefixes), texts(c.NotPorts)),
	}})
}

// String is the answer on one line.
func (n *Name) String() string {
	return fmt.Sprintf("name %s = %s\n", n.Name, joinFunc(n.Addresses, netip.Addr.String))
}

// String tells what is there, never the key itself.
func (s *Secret) String() string {
	return fmt.Sprintf("secret %s: chain %d bytes, key %t, roots %d bytes\n", s.Name, len(s.Chain), len(s.Key) > 0, len(s.Roots))
}
