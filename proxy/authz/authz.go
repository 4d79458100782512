// Package authz judges who may do what: plan.Authz compiled once, asked for
// every connection or request.
//
// In: the policies of a chain and, each time, what is known of the peer and its
// request. Out: a Verdict with the policy that decided. It must not know
// sockets or where policies come from. An Authz is immutable; any goroutine may
// judge with it.
//
// The rules are Istio's: deny policies before allow policies; without any allow
// policy what is not denied is allowed; with some, what none of them allows is
// denied. On a plain TCP connection a rule that looks at a request never
// matches in an allow policy, and in a deny policy the parts that look at it
// are left out, so that doubt denies.
package authz

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
)

// Input is what is known when a decision is asked for.
type Input struct {
	// Principal is the peer's SPIFFE ID without its scheme ("cluster.local/ns/default/sa/web"); empty without mTLS.
	// The next three are its parts.
	Principal, Namespace, ServiceAccount, TrustDomain string
	// SourceIP is the peer's address, RemoteIP the client's as far as proxies in between are believed.
	SourceIP, RemoteIP, DestIP netip.Addr
	DestPort                   uint16
	SNI                        string
	// Head is the request; nil: a connection as such.
	Head *stream.Head
	// Path is the request's normalised path without its query, Host its authority as sent.
	Path, Host []byte
}

// Verdict is a decision.
type Verdict struct {
	Allowed bool
	// Policy is the one that decided; nil: no policy applied, or no allow policy matched.
	Policy *plan.Policy
	// Rule is the index of the rule that matched; -1 if none did.
	Rule   int
	Reason telemetry.Reason
	// Shadow is a dry-run policy that would have denied; nil: none.
	Shadow *plan.Policy
}

// Authz is a compiled plan.Authz.
type Authz struct {
	deny, allow, shadowDeny []policy
	shadowAllow             []policy
}

type policy struct {
	plan  *plan.Policy
	rules []rule
}

// rule matches if from, to and when all do.
type rule struct {
	from     []source
	to       []operation
	when     []condition
	httpOnly bool // some part of it looks at the request
}

// New compiles policies. trustDomain and its aliases count as one in principals. A condition that cannot be judged
// is an error: guessing would open or close what was not meant.
func New(p *plan.Authz, trustDomain string, aliases []string) (*Authz, error) {
	a := &Authz{}
	if p == nil {
		return a, nil
	}
	domains := append([]string{trustDomain}, aliases...)
	for i := range p.Policies {
		pp := &p.Policies[i]
		c := policy{plan: pp}
		for j := range pp.Rules {
			r, err := newRule(&pp.Rules[j], domains)
			if err != nil {
				return nil, fmt.Errorf("authorization policy %s, rule %d: %w", pp.Name, j+1, err)
			}
			c.rules = append(c.rules, r)
		}
		switch {
		case pp.Action == plan.ActionDeny && pp.DryRun:
			a.shadowDeny = append(a.shadowDeny, c)
		case pp.Action == plan.ActionAllow && pp.DryRun:
			a.shadowAllow = append(a.shadowAllow, c)
		case pp.Action == plan.ActionDeny:
			a.deny = append(a.deny, c)
		case pp.Action == plan.ActionAllow:
			a.allow = append(a.allow, c)
		case pp.Action == plan.ActionAudit: // marks only; nothing to decide
		default:
			return nil, fmt.Errorf("authorization policy %s: unknown action %d", pp.Name, pp.Action)
		}
	}
	return a, nil
}

// Judge decides. A nil Authz allows everything.
func (a *Authz) Judge(in *Input) Verdict {
	if a == nil {
		return Verdict{Allowed: true, Rule: -1}
	}
	shadow := a.shadow(in)
	for i := range a.deny {
		if r := a.deny[i].match(in, true); r >= 0 {
			return Verdict{Policy: a.deny[i].plan, Rule: r, Reason: telemetry.DeniedByPolicy, Shadow: shadow}
		}
	}
	if len(a.allow) == 0 {
		return Verdict{Allowed: true, Rule: -1, Shadow: shadow}
	}
	for i := range a.allow {
		if r := a.allow[i].match(in, false); r >= 0 {
			return Verdict{Allowed: true, Policy: a.allow[i].plan, Rule: r, Shadow: shadow}
		}
	}
	return Verdict{Rule: -1, Reason: telemetry.NotAllowed, Shadow: shadow}
}

// shadow is the dry-run policy that would have denied.
func (a *Authz) shadow(in *Input) *plan.Policy {
	for i := range a.shadowDeny {
		if a.shadowDeny[i].match(in, true) >= 0 {
			return a.shadowDeny[i].plan
		}
	}
	for i := range a.shadowAllow {
		if a.shadowAllow[i].match(in, false) >= 0 {
			return nil
		}
	}
	if len(a.shadowAllow) > 0 {
		return a.shadowAllow[0].plan
	}
	return nil
}

// match returns the first rule that matches, -1 if none does.
func (p *policy) match(in *Input, deny bool) int {
	for i := range p.rules {
		if p.rules[i].matches(in, deny) {
			return i
		}
	}
	return -1
}

func (r *rule) matches(in *Input, deny bool) bool {
	if in.Head == nil && r.httpOnly && !deny {
		return false
	}
	if len(r.from) > 0 && !anyOf(r.from, func(s *source) bool { return s.matches(in) }) {
		return false
	}
	if len(r.to) > 0 && !anyOf(r.to, func(o *operation) bool { return o.matches(in) }) {
		return false
	}
	for i := range r.when {
		if !r.when[i].matches(in) {
			return false
		}
	}
	return true
}

func anyOf[T any](list []T, f func(*T) bool) bool {
	for i := range list {
		if f(&list[i]) {
			return true
		}
	}
	return false
}

func newRule(p *plan.PolicyRule, domains []string) (rule, error) {
	var r rule
	for i := range p.From {
		s := newSource(&p.From[i], domains)
		r.httpOnly = r.httpOnly || p.From[i].HTTPOnly()
		r.from = append(r.from, s)
	}
	for i := range p.To {
		r.httpOnly = r.httpOnly || p.To[i].HTTPOnly()
		r.to = append(r.to, newOperation(&p.To[i]))
	}
	for i := range p.When {
		c, err := newCondition(&p.When[i], domains)
		if err != nil {
			return r, err
		}
		r.httpOnly = r.httpOnly || c.http
		r.when = append(r.when, c)
	}
	return r, nil
}

// source is a conjunction of lists, each with its negation.
type source struct {
	principals, namespaces, accounts, domains texts
	requestPrincipals                         texts
	ips, remoteIPs                            nets
}

func newSource(p *plan.Source, domains []string) source {
	return source{
		principals:        newTexts(withAliases(p.Principals, domains), withAliases(p.NotPrincipals, domains)),
		namespaces:        newTexts(p.Namespaces, p.NotNamespaces),
		accounts:          newTexts(p.ServiceAccounts, p.NotServiceAccounts),
		domains:           newTexts(p.TrustDomains, p.NotTrustDomains),
		requestPrincipals: newTexts(p.RequestPrincipals, p.NotRequestPrincipals),
		ips:               newNets(p.IPs, p.NotIPs),
		remoteIPs:         newNets(p.RemoteIPs, p.NotRemoteIPs),
	}
}

// withAliases repeats a principal of the mesh's own trust domain for each of its aliases.
func withAliases(list []plan.StringMatch, domains []string) []plan.StringMatch {
	var out []plan.StringMatch
	for _, m := range list {
		out = append(out, m)
		domain, rest, ok := strings.Cut(m.Value, "/")
		if !ok || m.Kind == plan.MatchSuffix || len(domains) < 2 {
			continue
		}
		own := false
		for _, d := range domains {
			own = own || d == domain
		}
		if !own {
			continue
		}
		for _, d := range domains {
			if d != domain {
				out = append(out, plan.StringMatch{Kind: m.Kind, Value: d + "/" + rest})
			}
		}
	}
	return out
}

func (s *source) matches(in *Input) bool {
	if !s.principals.matchString(in.Principal) || !s.namespaces.matchString(in.Namespace) || !s.domains.matchString(in.TrustDomain) {
		return false
	}
	if s.accounts.set && !s.accounts.matchPair(in.Namespace, in.ServiceAccount) {
		return false
	}
	if !s.ips.match(in.SourceIP) {
		return false
	}
	if in.Head == nil {
		return true // what only a request shows is left out
	}
	// No token is looked at yet: there is no request principal, so that only the negations are met.
	return s.requestPrincipals.matchString("") && s.remoteIPs.match(in.RemoteIP)
}

// operation is a conjunction of lists, each with its negation.
type operation struct {
	hosts, methods, paths texts
	ports                 ports
}

func newOperation(p *plan.Operation) operation {
	return operation{
		hosts: newTexts(folded(p.Hosts), folded(p.NotHosts)), methods: newTexts(p.Methods, p.NotMethods),
		paths: newTexts(p.Paths, p.NotPaths), ports: ports{p.Ports, p.NotPorts},
	}
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
	if in.Head == nil {
		return true
	}
	return o.hosts.match(in.Host) && o.methods.match(in.Head.Method()) && o.paths.match(in.Path)
}

// condition is one "when".
type condition struct {
	http  bool
	match func(in *Input) bool
}

func (c *condition) matches(in *Input) bool {
	if c.http && in.Head == nil {
		return true // reached in deny policies only
	}
	return c.match(in)
}

func newCondition(p *plan.Condition, domains []string) (condition, error) {
	text := newTexts(p.Values, p.NotValues)
	ips := newNets(p.Prefixes, p.NotPrefixes)
	switch p.Key {
	case "source.ip":
		return condition{match: func(in *Input) bool { return ips.match(in.SourceIP) }}, nil
	case "remote.ip":
		return condition{http: true, match: func(in *Input) bool { return ips.match(in.RemoteIP) }}, nil
	case "destination.ip":
		return condition{match: func(in *Input) bool { return ips.match(in.DestIP) }}, nil
	case "destination.port":
		n := ports{p.Ports, p.NotPorts}
		return condition{match: func(in *Input) bool { return n.match(in.DestPort) }}, nil
	case "source.namespace":
		return condition{match: func(in *Input) bool { return text.matchString(in.Namespace) }}, nil
	case "source.serviceAccount":
		return condition{match: func(in *Input) bool { return text.matchPair(in.Namespace, in.ServiceAccount) }}, nil
	case "source.trustDomain":
		return condition{match: func(in *Input) bool { return text.matchString(in.TrustDomain) }}, nil
	case "source.principal":
		text = newTexts(withAliases(p.Values, domains), withAliases(p.NotValues, domains))
		return condition{match: func(in *Input) bool { return text.matchString(in.Principal) }}, nil
	case "connection.sni":
		return condition{match: func(in *Input) bool { return text.matchString(in.SNI) }}, nil
	}
	if name, ok := inBrackets(p.Key, "request.headers"); ok {
		name = strings.ToLower(name)
		return condition{http: true, match: func(in *Input) bool {
			v, _ := in.Head.Get(name)
			return text.match(v)
		}}, nil
	}
	if strings.HasPrefix(p.Key, "request.auth.") {
		// No token is looked at yet: the attribute is absent.
		return condition{http: true, match: func(*Input) bool { return text.matchString("") }}, nil
	}
	return condition{}, fmt.Errorf("condition key %q: %w", p.Key, errKey)
}

var errKey = errors.New("unknown; see the list of keys in Istio's AuthorizationPolicy conditions")

func inBrackets(key, prefix string) (string, bool) {
	rest, ok := strings.CutPrefix(key, prefix+"[")
	if !ok || !strings.HasSuffix(rest, "]") {
		return "", false
	}
	return strings.TrimSuffix(rest, "]"), true
}
