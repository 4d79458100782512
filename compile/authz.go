package compile

import (
	"net/netip"

	"strconv"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// selected lists the policies that hold for the asker's workload: those of the root namespace and of its own.
func selected[T mesh.Object](a *asking, of func(namespace string) []T, selector func(T) mesh.Labels) []T {
	namespaces := []string{a.config.RootNamespace}
	if a.namespace != a.config.RootNamespace {
		namespaces = append(namespaces, a.namespace)
	}
	var out []T
	for _, ns := range namespaces {
		for _, p := range of(ns) {
			if s := selector(p); s == nil || a.labels().Match(s) {
				out = append(out, p)
			}
		}
	}
	return out
}

// authz gathers the authorization policies for the asker's workload; nil if there is none.
func (a *asking) authz() *plan.Authz {
	out := &plan.Authz{}
	for _, p := range selected(a, a.Authz, func(p *mesh.Authz) mesh.Labels { return p.Selector }) {
		policy := plan.Policy{Name: p.Namespace + "/" + p.Name, DryRun: p.DryRun, Origin: origin(p.Origin, 0)}
		switch p.Action {
		case "", "ALLOW":
			policy.Action = plan.ActionAllow
		case "DENY":
			policy.Action = plan.ActionDeny
		case "AUDIT":
			policy.Action = plan.ActionAudit
		default:
			// An external authorizer that cannot be asked must not leave the door open.
			policy.Action = plan.ActionDeny
		}
		for i := range p.Rules {
			policy.Rules = append(policy.Rules, policyRule(&p.Rules[i]))
		}
		out.Policies = append(out.Policies, policy)
	}
	if len(out.Policies) == 0 {
		return nil
	}
	return out
}

func policyRule(r *mesh.AuthzRule) plan.PolicyRule {
	var out plan.PolicyRule
	for _, f := range r.From {
		out.From = append(out.From, plan.Source{
			Principals: affixes(f.Principals), NotPrincipals: affixes(f.NotPrincipals),
			RequestPrincipals: affixes(f.RequestPrincipals), NotRequestPrincipals: affixes(f.NotRequestPrincipals),
			Namespaces: affixes(f.Namespaces), NotNamespaces: affixes(f.NotNamespaces),
			TrustDomains: affixes(f.TrustDomains), NotTrustDomains: affixes(f.NotTrustDomains),
			ServiceAccounts: affixes(f.ServiceAccounts), NotServiceAccounts: affixes(f.NotServiceAccounts),
			IPs: f.IPs, NotIPs: f.NotIPs, RemoteIPs: f.RemoteIPs, NotRemoteIPs: f.NotRemoteIPs,
		})
	}
	for _, o := range r.To {
		out.To = append(out.To, plan.Operation{
			Hosts: affixes(o.Hosts), NotHosts: affixes(o.NotHosts), Ports: o.Ports, NotPorts: o.NotPorts,
			Methods: affixes(o.Methods), NotMethods: affixes(o.NotMethods), Paths: paths(o.Paths), NotPaths: paths(o.NotPaths),
		})
	}
	for _, w := range r.When {
		c := plan.Condition{Key: w.Key}
		switch w.Key {
		case "source.ip", "remote.ip", "destination.ip":
			c.Prefixes, c.NotPrefixes = prefixes(w.Values), prefixes(w.NotValues)
		case "destination.port":
			c.Ports, c.NotPorts = ports(w.Values), ports(w.NotValues)
		default:
			c.Values, c.NotValues = affixes(w.Values), affixes(w.NotValues)
		}
		out.When = append(out.When, c)
	}
	return out
}

// affixes reads the values of a policy: "*" is presence, "x*" a prefix, "*x" a suffix.
func affixes(values []string) []plan.StringMatch {
	var out []plan.StringMatch
	for _, v := range values {
		out = append(out, affix(v))
	}
	return out
}

func affix(v string) plan.StringMatch {
	if v == "*" {
		return plan.StringMatch{Kind: plan.MatchPresent}
	}
	if s, ok := strings.CutSuffix(v, "*"); ok {
		return plan.StringMatch{Kind: plan.MatchPrefix, Value: s}
	}
	if s, ok := strings.CutPrefix(v, "*"); ok {
		return plan.StringMatch{Kind: plan.MatchSuffix, Value: s}
	}
	return plan.StringMatch{Kind: plan.MatchExact, Value: v}
}

// paths is affixes for paths, which may be templates.
func paths(values []string) []plan.StringMatch {
	var out []plan.StringMatch
	for _, v := range values {
		if strings.Contains(v, "{*}") || strings.Contains(v, "{**}") {
			out = append(out, plan.StringMatch{Kind: plan.MatchPath, Value: v})
			continue
		}
		out = append(out, affix(v))
	}
	return out
}

func prefixes(values []string) []netip.Prefix {
	var out []netip.Prefix
	for _, v := range values {
		if p, err := netip.ParsePrefix(v); err == nil {
			out = append(out, p)
		} else if addr, err := netip.ParseAddr(v); err == nil {
			out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	return out
}

func ports(values []string) []uint16 {
	var out []uint16
	for _, v := range values {
		if n, err := strconv.ParseUint(v, 10, 16); err == nil {
			out = append(out, uint16(n))
		}
	}
	return out
}

// authn lists the peer authentications for the asker's workload from the widest to the narrowest: mesh, namespace,
// workload. In each scope the oldest counts alone.
func (a *asking) authn() []*mesh.Authn {
	var out []*mesh.Authn
	scope := func(namespace string, selecting bool) {
		for _, p := range a.Authn(namespace) {
			if selecting == (p.Selector != nil) && (!selecting || a.labels().Match(p.Selector)) {
				out = append(out, p)
				return
			}
		}
	}
	scope(a.config.RootNamespace, false)
	if a.namespace != a.config.RootNamespace {
		scope(a.namespace, false)
	}
	scope(a.namespace, true)
	return out
}

// peerMode is what encryption the asker's workload demands on a port (0: on ports without a setting of their own),
// and the policy that says so.
func (a *asking) peerMode(port uint16) (plan.TLSMode, plan.Origin) {
	mode, from := mesh.MTLSPermissive, plan.Origin{}
	for _, p := range a.authn() {
		if p.Mode != mesh.MTLSUnset {
			mode, from = p.Mode, origin(p.Origin, 0)
		}
		if m, ok := p.Ports[port]; ok && p.Selector != nil && m != mesh.MTLSUnset {
			mode, from = m, origin(p.Origin, 0)
		}
	}
	return tlsMode(mode), from
}

func tlsMode(m mesh.MTLSMode) plan.TLSMode {
	switch m {
	case mesh.MTLSDisable:
		return plan.TLSNone
	case mesh.MTLSStrict:
		return plan.TLSStrict
	default:
		return plan.TLSPermissive
	}
}

// portModes lists the ports with a setting of their own.
func (a *asking) portModes() map[uint16]plan.TLSMode {
	out := map[uint16]plan.TLSMode{}
	for _, p := range a.authn() {
		if p.Selector == nil {
			continue
		}
		for port := range p.Ports {
			out[port], _ = a.peerMode(port)
		}
	}
	return out
}
