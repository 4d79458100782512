package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// narrowing lists, from the widest scope to the narrowest, the objects that hold for the asker's workload: the root
// namespace's, its own namespace's, and its own namespace's that selects it. In each scope the oldest counts alone.
func narrowing[T mesh.Object](a *asking, of func(namespace string) []T, selector func(T) mesh.Labels) []T {
	var out []T
	first := func(namespace string, selecting bool) {
		for _, p := range of(namespace) {
			if s := selector(p); selecting == (s != nil) && (!selecting || a.labels().Match(s)) {
				out = append(out, p)
				return
			}
		}
	}
	first(a.config.RootNamespace, false)
	if a.namespace != a.config.RootNamespace {
		first(a.namespace, false)
	}
	first(a.namespace, true)
	return out
}

// authzOf lists the policies of a namespace that hold for the asker's workload.
func (a *asking) authzOf(namespace string) []*mesh.Authz {
	return slices.DeleteFunc(a.Authz(namespace), func(p *mesh.Authz) bool { return p.Selector != nil && !a.labels().Match(p.Selector) })
}

// authz gathers the authorization policies for the asker's workload; nil if there is none.
func (a *asking) authz() *plan.Authz {
	list := a.authzOf(a.config.RootNamespace)
	if a.namespace != a.config.RootNamespace {
		list = append(list, a.authzOf(a.namespace)...)
	}
	out := &plan.Authz{}
	for _, p := range list {
		policy := plan.Policy{Name: p.Namespace + "/" + p.Name, DryRun: p.DryRun, Origin: origin(p.Origin, 0)}
		switch p.Action {
		case "", "ALLOW":
			policy.Action = plan.ActionAllow
		case "DENY":
			policy.Action = plan.ActionDeny
		case "AUDIT":
			policy.Action = plan.ActionAudit
		default:
			// CUSTOM: an external authorizer that cannot be asked must not leave the door open.
			policy.Action, policy.DryRun = plan.ActionDeny, false
		}
		for i := range p.Rules {
			if !readable(&p.Rules[i]) { // validation refuses such a policy; if it comes all the same, doubt denies
				policy.Action, policy.DryRun, policy.Rules = plan.ActionDeny, false, []plan.PolicyRule{{}}
				break
			}
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

// readable reports whether every address and port of a rule's conditions can be read: one that is left out would widen
// what the rule allows.
func readable(r *mesh.AuthzRule) bool {
	for _, w := range r.When {
		for _, values := range [][]string{w.Values, w.NotValues} {
			switch w.Key {
			case "source.ip", "remote.ip", "destination.ip":
				if len(prefixes(values)) != len(values) {
					return false
				}
			case "destination.port":
				if len(ports(values)) != len(values) {
					return false
				}
			}
		}
	}
	return true
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

// authn lists the peer authentications for the asker's workload from the widest to the narrowest.
func (a *asking) authn() []*mesh.Authn {
	return narrowing(a, a.Authn, func(p *mesh.Authn) mesh.Labels { return p.Selector })
}

// peerModes is what encryption the asker's workload demands, and which policy says so: on ports with a setting of
// their own, and on all others (port 0).
func (a *asking) peerModes() map[uint16]peerMode {
	for _, p := range slices.Concat(a.Authn(a.config.RootNamespace), a.Authn(a.namespace)) {
		if p.Unreadable && (p.Selector == nil || a.labels().Match(p.Selector)) { // doubt denies
			return map[uint16]peerMode{0: {plan.TLSStrict, origin(p.Origin, 0)}}
		}
	}
	rest := peerMode{mode: plan.TLSPermissive}
	out := map[uint16]peerMode{}
	for _, p := range a.authn() {
		if p.Mode != mesh.MTLSUnset {
			rest = peerMode{tlsMode(p.Mode), origin(p.Origin, 0)}
		}
		for port, m := range p.Ports {
			if p.Selector != nil && m != mesh.MTLSUnset { // ports count only in a workload's own policy
				out[port] = peerMode{tlsMode(m), origin(p.Origin, 0)}
			}
		}
	}
	out[0] = rest
	return out
}

type peerMode struct {
	mode   plan.TLSMode
	origin plan.Origin
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
