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
	"fmt"
	"net/netip"

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
	deny, allow             []policy
	shadowDeny, shadowAllow []policy // dry runs
}

type policy struct {
	plan  *plan.Policy
	rules []rule
}

// New compiles policies. trustDomain ("": cluster.local) and its aliases count as one in principals. What cannot be
// judged, an unknown condition or one without a value, is an error: to guess would open or close what was not meant.
func New(p *plan.Authz, trustDomain string, aliases []string) (*Authz, error) {
	a := &Authz{}
	if p == nil {
		return a, nil
	}
	if trustDomain == "" {
		trustDomain = localDomain
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
