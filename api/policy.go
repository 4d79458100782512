package api

import (
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"
	selecting "istio.io/api/type/v1beta1"
)

func validateAuthn(c *check) {
	a := c.Spec.(*security.PeerAuthentication)
	c.labels("spec.selector.matchLabels", a.Selector.GetMatchLabels())
	if len(a.PortLevelMtls) > 0 && len(a.Selector.GetMatchLabels()) == 0 {
		c.fault("spec.portLevelMtls", "needs a selector, as ports are those of certain workloads; add selector.matchLabels")
	}
	for port := range a.PortLevelMtls {
		c.port(in("spec.portLevelMtls", port), port)
	}
}

func validateAuthz(c *check) {
	a := c.Spec.(*security.AuthorizationPolicy)
	c.targets(a.Selector, a.TargetRef, a.TargetRefs)
	if a.TargetRef != nil || len(a.TargetRefs) > 0 {
		c.fault("spec", "targetRefs is not supported yet, and a policy that is not enforced must not look as if it were; use selector")
	}
	action := a.Action.String()
	switch {
	case len(a.Rules) == 0 && (action == "DENY" || action == "CUSTOM"):
		c.fault("spec", "%s without rules never matches; add rules, [{}] for every request", action)
	case action == "CUSTOM" && a.GetProvider().GetName() == "":
		c.fault("spec", "CUSTOM needs provider.name, one of the mesh's extensionProviders")
	case action != "CUSTOM" && a.GetProvider() != nil:
		c.fault("spec.provider", "belongs to action CUSTOM; remove it, or write action: CUSTOM")
	}
	if d, ok := c.Annotations["istio.io/dry-run"]; ok {
		if _, err := strconv.ParseBool(d); err != nil {
			c.fault("metadata.annotations.istio.io/dry-run", "%q is not true or false", d)
		}
	}
	for i, rule := range a.Rules {
		p := in("spec.rules", i)
		if rule.From != nil && len(rule.From) == 0 || c.has(in(p, "from")) && len(rule.From) == 0 {
			c.fault(in(p, "from"), "is empty; remove it to match every caller")
		}
		if c.has(in(p, "to")) && len(rule.To) == 0 {
			c.fault(in(p, "to"), "is empty; remove it to match every request")
		}
		for j, f := range rule.From {
			c.caller(in(p, "from", j), f.Source)
		}
		for j, t := range rule.To {
			c.operation(in(p, "to", j), t.Operation)
		}
		for j, w := range rule.When {
			c.condition(in(p, "when", j), w)
		}
	}
}

// targets judges the two ways to say whom an object is for.
func (c *check) targets(selector *selecting.WorkloadSelector, ref *selecting.PolicyTargetReference, refs []*selecting.PolicyTargetReference) {
	c.labels("spec.selector.matchLabels", selector.GetMatchLabels())
	set := 0
	for _, has := range []bool{selector != nil, ref != nil, len(refs) > 0} {
		if has {
			set++
		}
	}
	if set > 1 {
		c.fault("spec", "has more than one of selector, targetRef and targetRefs; keep one")
	}
	c.references(ref, refs)
}

func (c *check) references(ref *selecting.PolicyTargetReference, refs []*selecting.PolicyTargetReference) {
	for i, r := range append(slices.Clone(refs), ref) {
		p := in("spec.targetRefs", i)
		if i == len(refs) {
			p = "spec.targetRef"
		}
		if r.GetNamespace() != "" {
			c.fault(in(p, "namespace"), "names another namespace, which is not allowed; put the object there instead")
		}
	}
}

// filled tells of empty texts in lists and reports whether any list has an item.
func (c *check) filled(p string, lists map[string][]string) bool {
	found := false
	for name, list := range lists {
		found = found || len(list) > 0
		for i, s := range list {
			if s == "" {
				c.fault(in(p, name, i), "is empty; remove the item, or write * for any value")
			}
		}
	}
	return found
}

func (c *check) caller(p string, s *security.Source) {
	if s == nil {
		c.fault(p, "source is missing; write - source: with what the caller is known by")
		return
	}
	p = in(p, "source")
	blocks := map[string][]string{"ipBlocks": s.IpBlocks, "notIpBlocks": s.NotIpBlocks, "remoteIpBlocks": s.RemoteIpBlocks, "notRemoteIpBlocks": s.NotRemoteIpBlocks}
	names := map[string][]string{
		"principals": s.Principals, "notPrincipals": s.NotPrincipals, "requestPrincipals": s.RequestPrincipals,
		"notRequestPrincipals": s.NotRequestPrincipals, "namespaces": s.Namespaces, "notNamespaces": s.NotNamespaces,
		"serviceAccounts": s.ServiceAccounts, "notServiceAccounts": s.NotServiceAccounts,
		"trustDomains": s.TrustDomains, "notTrustDomains": s.NotTrustDomains,
	}
	if some, more := c.filled(p, names), c.filled(p, blocks); !some && !more {
		c.fault(p, "is empty; remove the rule's from to match every caller")
	}
	for name, list := range blocks {
		c.subnets(in(p, name), list)
	}
	accounts := len(s.ServiceAccounts)+len(s.NotServiceAccounts) > 0
	if accounts && len(s.Principals)+len(s.NotPrincipals)+len(s.Namespaces)+len(s.NotNamespaces) > 0 {
		c.fault(p, "serviceAccounts cannot stand beside namespaces or principals; keep one way to name the caller")
	}
	for name, list := range map[string][]string{"serviceAccounts": s.ServiceAccounts, "notServiceAccounts": s.NotServiceAccounts} {
		for i, a := range list {
			const maxReference = 320
			namespace, account, found := strings.Cut(a, "/")
			if !found {
				namespace, account = c.Namespace, a
			}
			if a != "" && (len(a) > maxReference || !dnsLabel.MatchString(namespace) || !dnsName.MatchString(account)) {
				c.fault(in(p, name, i), "%q is not a service account; write its name, or namespace/name, without wildcards", a)
			}
		}
	}
}

func (c *check) operation(p string, o *security.Operation) {
	if o == nil {
		c.fault(p, "operation is missing; write - operation: with what is asked for")
		return
	}
	p = in(p, "operation")
	if !c.filled(p, map[string][]string{
		"hosts": o.Hosts, "notHosts": o.NotHosts, "methods": o.Methods, "notMethods": o.NotMethods,
		"paths": o.Paths, "notPaths": o.NotPaths, "ports": o.Ports, "notPorts": o.NotPorts,
	}) {
		c.fault(p, "is empty; remove the rule's to to match every request")
	}
	for name, list := range map[string][]string{"ports": o.Ports, "notPorts": o.NotPorts} {
		for i, s := range list {
			if n, err := strconv.ParseUint(s, 10, 16); s != "" && (err != nil || n == 0) {
				c.fault(in(p, name, i), "%q is not a port; write a number from 1 to 65535 in quotes", s)
			}
		}
	}
	for name, list := range map[string][]string{"paths": o.Paths, "notPaths": o.NotPaths} {
		for i, s := range list {
			if strings.Contains(s, "{") || strings.Contains(s, "}") {
				c.template(in(p, name, i), s)
			}
		}
	}
}

// template judges a path with {*} for one segment and {**} for the rest, which may be followed by literal text only.
func (c *check) template(p, path string) {
	rest := false
	for i, segment := range strings.Split(path, "/") {
		switch {
		case i == 0 && segment != "":
			c.fault(p, "%q is not a path; begin with /", path)
			return
		case segment == "{**}" || segment == "{*}":
			if rest {
				c.fault(p, "{**} must be the last operator of %q", path)
				return
			}
			rest = segment == "{**}"
		case strings.ContainsAny(segment, "{}*"):
			c.fault(p, "%q mixes an operator with other text; {*} and {**} stand alone between two /", segment)
			return
		}
	}
}

// conditionKeys are the plain keys of a condition; the prefixes take [name] behind them.
var (
	conditionKeys = []string{
		"source.ip", "remote.ip", "source.namespace", "source.principal", "source.serviceAccount", "source.trustDomain",
		"request.auth.principal", "request.auth.audiences", "request.auth.presenter", "destination.ip", "destination.port", "connection.sni",
	}
	conditionPrefixes = []string{"request.headers[", "request.auth.claims[", "experimental.envoy.filters."}
)

func (c *check) condition(p string, w *security.Condition) {
	if !c.filled(p, map[string][]string{"values": w.Values, "notValues": w.NotValues}) {
		c.fault(p, "has neither values nor notValues; add one of them")
	}
	key := in(p, "key")
	prefixed := slices.ContainsFunc(conditionPrefixes, func(s string) bool { return strings.HasPrefix(w.Key, s) })
	switch {
	case prefixed && !strings.HasSuffix(w.Key, "]"):
		c.fault(key, "%q lacks its closing ]", w.Key)
		return
	case !prefixed && !slices.Contains(conditionKeys, w.Key):
		hint := ""
		if near := nearest(w.Key, conditionKeys); near != "" {
			hint = "; did you mean " + near + "?"
		}
		c.fault(key, "%q is not something that can be asked of a request%s", w.Key, hint)
		return
	}
	for name, list := range map[string][]string{"values": w.Values, "notValues": w.NotValues} {
		switch w.Key {
		case "source.ip", "remote.ip", "destination.ip":
			c.subnets(in(p, name), list)
		case "destination.port":
			for i, s := range list {
				if n, err := strconv.ParseUint(s, 10, 16); s != "" && (err != nil || n == 0) {
					c.fault(in(p, name, i), "%q is not a port; write a number from 1 to 65535 in quotes", s)
				}
			}
		}
	}
}
