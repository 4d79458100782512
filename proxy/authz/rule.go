package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// rule matches if from, to and when all do.
type rule struct {
	from     []source
	to       []operation
	when     []condition
	httpOnly bool // some part of it looks at the request
}

func newRule(p *plan.PolicyRule, domains []string) (rule, error) {
	var r rule
	for i := range p.From {
		s, err := newSource(&p.From[i], domains)
		if err != nil {
			return r, fmt.Errorf("source %d: %w", i+1, err)
		}
		r.httpOnly = r.httpOnly || !s.requestPrincipals.none()
		r.from = append(r.from, s)
	}
	for i := range p.To {
		o, err := newOperation(&p.To[i])
		if err != nil {
			return r, fmt.Errorf("operation %d: %w", i+1, err)
		}
		r.httpOnly = r.httpOnly || !o.hosts.none() || !o.methods.none() || !o.paths.none()
		r.to = append(r.to, o)
	}
	for i := range p.When {
		c, err := newCondition(&p.When[i], domains)
		if err != nil {
			return r, fmt.Errorf("condition %q: %w", p.When[i].Key, err)
		}
		r.httpOnly = r.httpOnly || c.http
		r.when = append(r.when, c)
	}
	return r, nil
}

func (r *rule) matches(in *Input, deny bool) bool {
	if in.Head == nil && r.httpOnly && !deny {
		return false
	}
	if !anySource(r.from, in) || !anyOperation(r.to, in) {
		return false
	}
	for i := range r.when {
		if !r.when[i].matches(in, deny) {
			return false
		}
	}
	return true
}

func anySource(list []source, in *Input) bool {
	for i := range list {
		if list[i].matches(in) {
			return true
		}
	}
	return len(list) == 0
}

func anyOperation(list []operation, in *Input) bool {
	for i := range list {
		if list[i].matches(in) {
			return true
		}
	}
	return len(list) == 0
}

// errEmpty refuses what would match everything although it was written to narrow.
var errEmpty = errors.New("has no value that this version understands: write at least one, or leave it out")

// source is a conjunction of lists, each with its negation.
type source struct {
	principals, namespaces, accounts, domains texts
	requestPrincipals                         texts
	ips, remoteIPs                            nets
}

func newSource(p *plan.Source, domains []string) (source, error) {
	s := source{ips: newNets(p.IPs, p.NotIPs), remoteIPs: newNets(p.RemoteIPs, p.NotRemoteIPs)}
	any := !s.ips.none() || !s.remoteIPs.none()
	for _, list := range []struct {
		to      *texts
		yes, no []plan.StringMatch
	}{
		{&s.principals, withAliases(p.Principals, domains), withAliases(p.NotPrincipals, domains)},
		{&s.namespaces, p.Namespaces, p.NotNamespaces},
		{&s.accounts, p.ServiceAccounts, p.NotServiceAccounts},
		{&s.domains, p.TrustDomains, p.NotTrustDomains},
		{&s.requestPrincipals, p.RequestPrincipals, p.NotRequestPrincipals},
	} {
		var err error
		if *list.to, err = newTexts(list.yes, list.no); err != nil {
			return s, err
		}
		any = any || !list.to.none()
	}
	if !any {
		return s, errEmpty
	}
	return s, nil
}

// localDomain stands for the mesh's own trust domain, whatever its name (Istio's trust domain aliases).
const localDomain = "cluster.local"

// withAliases writes a principal of one of the mesh's own trust domains for all of them.
func withAliases(list []plan.StringMatch, domains []string) []plan.StringMatch {
	var out []plan.StringMatch
	for _, m := range list {
		domain, rest, ok := strings.Cut(m.Value, "/")
		if !ok || m.Kind != plan.MatchExact && m.Kind != plan.MatchPrefix || domain != localDomain && !slices.Contains(domains, domain) {
			out = append(out, m)
			continue
		}
		for _, d := range domains {
			out = append(out, plan.StringMatch{Kind: m.Kind, Value: d + "/" + rest, IgnoreCase: m.IgnoreCase})
		}
	}
	return out
}

func (s *source) matches(in *Input) bool {
	if !s.principals.matchString(in.Principal) || !s.namespaces.matchString(in.Namespace) || !s.domains.matchString(in.TrustDomain) ||
		!s.accounts.matchPair(in.Namespace, in.ServiceAccount) || !s.ips.match(in.SourceIP) || !s.remoteIPs.match(in.RemoteIP) {
		return false
	}
	// No token is looked at yet: there is no request principal, so that only the negations are met.
	return in.Head == nil || s.requestPrincipals.match(nil)
}

// operation is a conjunction of lists, each with its negation.
type operation struct {
	hosts, methods, paths texts
	ports                 ports
}

func newOperation(p *plan.Operation) (operation, error) {
	o := operation{ports: ports{p.Ports, p.NotPorts}}
	var err error
	if o.hosts, err = newTexts(folded(p.Hosts), folded(p.NotHosts)); err != nil {
		return o, err
	}
	if o.methods, err = newTexts(p.Methods, p.NotMethods); err != nil {
		return o, err
	}
	if o.paths, err = newTexts(p.Paths, p.NotPaths); err != nil {
		return o, err
	}
	if o.hosts.none() && o.methods.none() && o.paths.none() && o.ports.none() {
		return o, errEmpty
	}
	return o, nil
}

// folded makes host matches ignore case.
func folded(list []plan.StringMatch) []plan.StringMatch {
	out := append([]plan.StringMatch(nil), list...)
	for i := range out {
		out[i].IgnoreCase = true
	}
	return out
}

func (o *operation) matches(in *Input) bool {
	if !o.ports.match(in.DestPort) {
		return false
	}
	return in.Head == nil || o.hosts.match(in.Host) && o.methods.match(in.Head.Method()) && o.paths.match(in.Path)
}

// condition is one "when".
type condition struct {
	http  bool // it looks at the request
	match func(in *Input) bool
	// header is the field that it looks at, in lower case; then values is what it wants of it.
	header string
	values texts
}

func (c *condition) matches(in *Input, deny bool) bool {
	switch {
	case c.http && in.Head == nil:
		return true // without a request only deny policies come here
	case c.header != "":
		return c.values.matchField(in.Head, c.header, deny)
	}
	return c.match(in)
}

// newCondition compiles a condition. One that has no values of the form that its key wants is refused: values that
// could not be read were left out on the way here.
func newCondition(p *plan.Condition, domains []string) (condition, error) {
	switch p.Key {
	case "source.ip", "remote.ip", "destination.ip":
		return addressCondition(p)
	case "destination.port":
		n := ports{p.Ports, p.NotPorts}
		if n.none() || len(p.Values)+len(p.NotValues)+len(p.Prefixes)+len(p.NotPrefixes) > 0 {
			return condition{}, errEmpty
		}
		return condition{match: func(in *Input) bool { return n.match(in.DestPort) }}, nil
	case "source.principal":
		return textCondition(p, withAliases(p.Values, domains), withAliases(p.NotValues, domains))
	default:
		return textCondition(p, p.Values, p.NotValues)
	}
}

func addressCondition(p *plan.Condition) (condition, error) {
	n := newNets(p.Prefixes, p.NotPrefixes)
	if n.none() || len(p.Values)+len(p.NotValues)+len(p.Ports)+len(p.NotPorts) > 0 {
		return condition{}, errEmpty
	}
	switch p.Key {
	case "source.ip":
		return condition{match: func(in *Input) bool { return n.match(in.SourceIP) }}, nil
	case "remote.ip":
		return condition{match: func(in *Input) bool { return n.match(in.RemoteIP) }}, nil
	default:
		return condition{match: func(in *Input) bool { return n.match(in.DestIP) }}, nil
	}
}

func textCondition(p *plan.Condition, yes, no []plan.StringMatch) (condition, error) {
	text, err := newTexts(yes, no)
	if err != nil {
		return condition{}, err
	}
	if text.none() || len(p.Prefixes)+len(p.NotPrefixes)+len(p.Ports)+len(p.NotPorts) > 0 {
		return condition{}, errEmpty
	}
	switch p.Key {
	case "source.namespace":
		return condition{match: func(in *Input) bool { return text.matchString(in.Namespace) }}, nil
	case "source.serviceAccount":
		return condition{match: func(in *Input) bool { return text.matchPair(in.Namespace, in.ServiceAccount) }}, nil
	case "source.trustDomain":
		return condition{match: func(in *Input) bool { return text.matchString(in.TrustDomain) }}, nil
	case "source.principal":
		return condition{match: func(in *Input) bool { return text.matchString(in.Principal) }}, nil
	case "connection.sni":
		return condition{match: func(in *Input) bool { return text.matchString(in.SNI) }}, nil
	}
	if name, ok := strings.CutPrefix(p.Key, "request.headers["); ok && strings.HasSuffix(name, "]") {
		name = strings.ToLower(strings.TrimSuffix(name, "]"))
		return condition{http: true, header: name, values: text}, nil
	}
	if strings.HasPrefix(p.Key, "request.auth.") {
		// No token is looked at yet: the attribute is absent, so that only the negations are met.
		return condition{http: true, match: func(*Input) bool { return text.match(nil) }}, nil
	}
	return condition{}, errKey
}

var errKey = errors.New("is unknown: see the keys that Istio lists for AuthorizationPolicy conditions")

// matchField matches a field of the request. Whoever serves the request may take the first of several fields of one name,
// the last, or all of them as one list joined by commas (RFC 9110 section 5.3). In doubt it is denied: a deny policy
// matches if it does for any of these, an allow policy if it does for each field, and if nothing that must not be is in
// any of these.
func (t *texts) matchField(h *stream.Head, name string, deny bool) bool {
	switch name {
	case ":method":
		return t.match(h.Method())
	case ":path":
		return t.match(h.Path())
	case ":authority", "host":
		return t.match(h.Authority())
	}
	var joined []byte
	n := 0
	some, every, bad, allBad := false, true, false, true
	see := func(value []byte) {
		// A field without a value is there all the same.
		yes, no := t.yes.empty || t.yes.present || matches(&t.yes, value), t.no.present || matches(&t.no, value)
		some, every, bad, allBad = some || yes, every && yes, bad || no, allBad && no
	}
	for i := range h.Len() {
		field, v := h.At(i)
		if !stream.EqualFold(field, name) {
			continue
		}
		if n++; n == 1 {
			joined = v // its capacity ends where it does: what is appended goes elsewhere
		} else {
			joined = append(append(joined, ','), v...)
		}
		see(v)
	}
	switch n {
	case 0:
		return t.match(nil)
	case 1:
		return some && !bad
	}
	if deny {
		see(joined)
		return some && !allBad
	}
	return every && !bad && !matches(&t.no, joined)
}
