package envoy

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbachttp "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbacnetwork "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/lateen-mesh/lateen/plan"
)

const filterRBACNetwork = "envoy.filters.network.rbac"

// judges lists the filters' actions in Istio's order, with the action in the plan. Envoy's LOG marks a request and
// lets it pass.
var judges = [...]struct {
	action plan.Action
	name   string
	rbac   rbac.RBAC_Action
}{
	{plan.ActionAudit, "audit", rbac.RBAC_LOG},
	{plan.ActionDeny, "deny", rbac.RBAC_DENY},
	{plan.ActionAllow, "allow", rbac.RBAC_ALLOW},
}

// rbacHTTP writes a filter for each action that some policy takes. What policies would do that are only tried out is
// told in Envoy's shadow statistics.
func rbacHTTP(a *plan.Authz) ([]*hcm.HttpFilter, error) {
	var out []*hcm.HttpFilter
	for _, j := range judges {
		real, tried, err := rules(a, j.action, j.rbac, true)
		if err != nil {
			return nil, err
		}
		if real == nil && tried == nil {
			continue
		}
		c := &rbachttp.RBAC{Rules: real, ShadowRules: tried}
		if tried != nil {
			c.ShadowRulesStatPrefix = shadowPrefix(j.name)
		}
		// Envoy wants names of their own; routes do not refer to these filters.
		out = append(out, httpFilter(filterRBAC+"."+j.name, c))
	}
	return out, nil
}

// rbacNetwork is rbacHTTP for connections. What only a request can show is unknown there: a rule that allows by it
// allows nothing, and one that denies by it denies without it, as in Istio.
func rbacNetwork(a *plan.Authz) ([]*listener.Filter, error) {
	var out []*listener.Filter
	for _, j := range judges {
		real, tried, err := rules(a, j.action, j.rbac, false)
		if err != nil {
			return nil, err
		}
		if real == nil && tried == nil {
			continue
		}
		c := &rbacnetwork.RBAC{Rules: real, ShadowRules: tried, StatPrefix: "tcp."}
		if tried != nil {
			c.ShadowRulesStatPrefix = shadowPrefix(j.name)
		}
		out = append(out, networkFilter(filterRBACNetwork, c))
	}
	return out, nil
}

func shadowPrefix(action string) string { return "istio_dry_run_" + action + "_" }

// rules gathers the policies of an action: those in force, and those that are only tried out. Nil if there is none.
func rules(a *plan.Authz, action plan.Action, as rbac.RBAC_Action, http bool) (real, tried *rbac.RBAC, err error) {
	if a == nil {
		return nil, nil, nil
	}
	for i := range a.Policies {
		p := &a.Policies[i]
		if p.Action != action {
			continue
		}
		into := &real
		if p.DryRun {
			into = &tried
		}
		if *into == nil {
			*into = &rbac.RBAC{Action: as, Policies: map[string]*rbac.Policy{}}
		}
		for n := range p.Rules {
			r, err := policyOf(&p.Rules[n], http, action)
			if err != nil {
				return nil, nil, fmt.Errorf("policy %s: rule %d: %w", p.Name, n+1, err)
			}
			if r != nil {
				(*into).Policies[policyName(p.Name, n)] = r
			}
		}
	}
	return real, tried, nil
}

// policyName is Istio's, from "namespace/name".
func policyName(name string, rule int) string {
	namespace, name, _ := strings.Cut(name, "/")
	return "ns[" + namespace + "]-policy[" + name + "]-rule[" + strconv.Itoa(rule) + "]"
}

// judge writes one rule's parts.
type judge struct {
	http bool
	// lenient drops what only a request can show, for denials on connections.
	lenient bool
}

// policyOf writes a rule; nil if it can match no connection.
func policyOf(r *plan.PolicyRule, http bool, action plan.Action) (*rbac.Policy, error) {
	j := judge{http: http, lenient: !http && action != plan.ActionAllow}
	var from []*rbac.Principal
	for i := range r.From {
		if p, ok := j.source(&r.From[i]); ok {
			from = append(from, p)
		}
	}
	var to []*rbac.Permission
	for i := range r.To {
		if p, ok := j.operation(&r.To[i]); ok {
			to = append(to, p)
		}
	}
	if len(r.From) > 0 && len(from) == 0 || len(r.To) > 0 && len(to) == 0 {
		return nil, nil
	}
	who, what := []*rbac.Principal{}, []*rbac.Permission{}
	if len(from) > 0 {
		who = append(who, anyOf(from))
	}
	if len(to) > 0 {
		what = append(what, anyAllowed(to))
	}
	for i := range r.When {
		p, q, ok, err := j.condition(&r.When[i])
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, nil
		}
		who, what = append(who, p...), append(what, q...)
	}
	return &rbac.Policy{Principals: []*rbac.Principal{allOf(who)}, Permissions: []*rbac.Permission{allAllowed(what)}}, nil
}

func anyOf(list []*rbac.Principal) *rbac.Principal {
	if len(list) == 1 {
		return list[0]
	}
	return &rbac.Principal{Identifier: &rbac.Principal_OrIds{OrIds: &rbac.Principal_Set{Ids: list}}}
}

func allOf(list []*rbac.Principal) *rbac.Principal {
	switch len(list) {
	case 0:
		return &rbac.Principal{Identifier: &rbac.Principal_Any{Any: true}}
	case 1:
		return list[0]
	}
	return &rbac.Principal{Identifier: &rbac.Principal_AndIds{AndIds: &rbac.Principal_Set{Ids: list}}}
}

func notPrincipal(p *rbac.Principal) *rbac.Principal {
	return &rbac.Principal{Identifier: &rbac.Principal_NotId{NotId: p}}
}

func anyAllowed(list []*rbac.Permission) *rbac.Permission {
	if len(list) == 1 {
		return list[0]
	}
	return &rbac.Permission{Rule: &rbac.Permission_OrRules{OrRules: &rbac.Permission_Set{Rules: list}}}
}

func allAllowed(list []*rbac.Permission) *rbac.Permission {
	switch len(list) {
	case 0:
		return &rbac.Permission{Rule: &rbac.Permission_Any{Any: true}}
	case 1:
		return list[0]
	}
	return &rbac.Permission{Rule: &rbac.Permission_AndRules{AndRules: &rbac.Permission_Set{Rules: list}}}
}

func notPermission(p *rbac.Permission) *rbac.Permission {
	return &rbac.Permission{Rule: &rbac.Permission_NotRule{NotRule: p}}
}

// principals and permissions add a list that is or-ed and a list of which none may match.
func principals[T any](out []*rbac.Principal, yes, no []T, one func(T) *rbac.Principal) []*rbac.Principal {
	if len(yes) > 0 {
		out = append(out, anyOf(each(yes, one)))
	}
	if len(no) > 0 {
		out = append(out, notPrincipal(anyOf(each(no, one))))
	}
	return out
}

func permissions[T any](out []*rbac.Permission, yes, no []T, one func(T) *rbac.Permission) []*rbac.Permission {
	if len(yes) > 0 {
		out = append(out, anyAllowed(each(yes, one)))
	}
	if len(no) > 0 {
		out = append(out, notPermission(anyAllowed(each(no, one))))
	}
	return out
}

func each[T, U any](list []T, f func(T) U) []U {
	out := make([]U, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}

// source writes who calls; false if no connection can match.
func (j judge) source(s *plan.Source) (*rbac.Principal, bool) {
	if s.HTTPOnly() && !j.http && !j.lenient {
		return nil, false
	}
	var out []*rbac.Principal
	out = principals(out, s.Principals, s.NotPrincipals, authenticated)
	out = principals(out, s.Namespaces, s.NotNamespaces, inNamespace)
	out = principals(out, s.TrustDomains, s.NotTrustDomains, inTrustDomain)
	out = principals(out, s.ServiceAccounts, s.NotServiceAccounts, serviceAccount)
	out = principals(out, s.IPs, s.NotIPs, directIP)
	if j.http {
		out = principals(out, s.RequestPrincipals, s.NotRequestPrincipals, requestPrincipal)
		out = principals(out, s.RemoteIPs, s.NotRemoteIPs, remoteIP)
	}
	return allOf(out), true
}

// peer matches the caller's SPIFFE ID by an expression.
func peer(m *matcher.StringMatcher) *rbac.Principal {
	return &rbac.Principal{Identifier: &rbac.Principal_Authenticated_{Authenticated: &rbac.Principal_Authenticated{PrincipalName: m}}}
}

const spiffe = "spiffe://"

func authenticated(m plan.StringMatch) *rbac.Principal {
	switch m.Kind {
	case plan.MatchExact, plan.MatchPrefix:
		m.Value = spiffe + m.Value
	case plan.MatchRegex:
		m.Value = spiffe + "(?:" + m.Value + ")"
	default: // its end, or that there is one
	}
	return peer(text(m))
}

// segment is an expression for one part of a SPIFFE ID.
func segment(m plan.StringMatch) string {
	const some = "[^/]*"
	quoted := regexp.QuoteMeta(m.Value)
	switch m.Kind {
	case plan.MatchExact:
		return quoted
	case plan.MatchPrefix:
		return quoted + some
	case plan.MatchSuffix:
		return some + quoted
	case plan.MatchRegex:
		return "(?:" + m.Value + ")"
	case plan.MatchPresent:
		return "[^/]+"
	default:
		return "[^\\s\\S]"
	}
}

func inNamespace(m plan.StringMatch) *rbac.Principal {
	return peer(regexText(spiffe + "[^/]+/ns/" + segment(m) + "/.*"))
}

func inTrustDomain(m plan.StringMatch) *rbac.Principal {
	return peer(regexText(spiffe + segment(m) + "/.*"))
}

// serviceAccount matches "namespace/name".
func serviceAccount(m plan.StringMatch) *rbac.Principal {
	quoted := strings.Replace(regexp.QuoteMeta(m.Value), "/", "/sa/", 1)
	expr := spiffe + "[^/]+/ns/"
	switch m.Kind {
	case plan.MatchExact:
		expr += quoted
	case plan.MatchPrefix:
		expr += quoted + ".*"
	case plan.MatchSuffix:
		expr += ".*" + quoted
	case plan.MatchPresent:
		expr += "[^/]+/sa/[^/]+"
	default:
		expr = "[^\\s\\S]"
	}
	return peer(regexText(expr))
}

func directIP(p netip.Prefix) *rbac.Principal {
	return &rbac.Principal{Identifier: &rbac.Principal_DirectRemoteIp{DirectRemoteIp: cidrs([]netip.Prefix{p})[0]}}
}

func remoteIP(p netip.Prefix) *rbac.Principal {
	return &rbac.Principal{Identifier: &rbac.Principal_RemoteIp{RemoteIp: cidrs([]netip.Prefix{p})[0]}}
}

// requestPrincipal never matches: a plan verifies no tokens yet, so no request has proven one.
func requestPrincipal(plan.StringMatch) *rbac.Principal { return nobody() }

func nobody() *rbac.Principal {
	return notPrincipal(&rbac.Principal{Identifier: &rbac.Principal_Any{Any: true}})
}

// operation writes what is asked for; false if no connection can match.
func (j judge) operation(o *plan.Operation) (*rbac.Permission, bool) {
	if o.HTTPOnly() && !j.http && !j.lenient {
		return nil, false
	}
	out := permissions(nil, o.Ports, o.NotPorts, toPort)
	if j.http {
		out = permissions(out, o.Hosts, o.NotHosts, func(m plan.StringMatch) *rbac.Permission {
			m.IgnoreCase = m.Kind != plan.MatchRegex && m.Kind != plan.MatchPresent
			return withHeader(":authority", m)
		})
		out = permissions(out, o.Methods, o.NotMethods, func(m plan.StringMatch) *rbac.Permission { return withHeader(":method", m) })
		out = permissions(out, o.Paths, o.NotPaths, toPath)
	}
	return allAllowed(out), true
}

func toPort(p uint16) *rbac.Permission {
	return &rbac.Permission{Rule: &rbac.Permission_DestinationPort{DestinationPort: uint32(p)}}
}

func withHeader(name string, m plan.StringMatch) *rbac.Permission {
	return &rbac.Permission{Rule: &rbac.Permission_Header{Header: header(name, m, false)}}
}

func toPath(m plan.StringMatch) *rbac.Permission {
	return &rbac.Permission{Rule: &rbac.Permission_UrlPath{UrlPath: &matcher.PathMatcher{Rule: &matcher.PathMatcher_Path{Path: text(m)}}}}
}

// condition writes a "when"; ok is false if no connection can match.
func (j judge) condition(c *plan.Condition) (who []*rbac.Principal, what []*rbac.Permission, ok bool, err error) {
	key, field := c.Key, ""
	if name, rest, found := strings.Cut(c.Key, "["); found {
		key, field = name, strings.TrimSuffix(rest, "]")
	}
	requestOnly := strings.HasPrefix(key, "request.") || key == "remote.ip"
	if requestOnly && !j.http {
		return nil, nil, j.lenient, nil
	}
	switch key {
	case "request.headers":
		what = permissions(nil, c.Values, c.NotValues, func(m plan.StringMatch) *rbac.Permission { return withHeader(strings.ToLower(field), m) })
	case "source.ip":
		who = principals(nil, c.Prefixes, c.NotPrefixes, directIP)
	case "remote.ip":
		who = principals(nil, c.Prefixes, c.NotPrefixes, remoteIP)
	case "source.namespace":
		who = principals(nil, c.Values, c.NotValues, inNamespace)
	case "source.principal":
		who = principals(nil, c.Values, c.NotValues, authenticated)
	case "source.serviceAccount":
		who = principals(nil, c.Values, c.NotValues, serviceAccount)
	case "source.trustDomain":
		who = principals(nil, c.Values, c.NotValues, inTrustDomain)
	case "request.auth.principal", "request.auth.audiences", "request.auth.presenter", "request.auth.claims":
		who = principals(nil, c.Values, c.NotValues, requestPrincipal)
	case "destination.ip":
		what = permissions(nil, c.Prefixes, c.NotPrefixes, func(p netip.Prefix) *rbac.Permission {
			return &rbac.Permission{Rule: &rbac.Permission_DestinationIp{DestinationIp: cidrs([]netip.Prefix{p})[0]}}
		})
	case "destination.port":
		what = permissions(nil, c.Ports, c.NotPorts, toPort)
	case "connection.sni":
		what = permissions(nil, c.Values, c.NotValues, func(m plan.StringMatch) *rbac.Permission {
			return &rbac.Permission{Rule: &rbac.Permission_RequestedServerName{RequestedServerName: text(m)}}
		})
	default:
		return nil, nil, false, fmt.Errorf("condition %q is not known to Envoy", c.Key)
	}
	return who, what, true, nil
}
