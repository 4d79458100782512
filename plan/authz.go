package plan

import "net/netip"

// Authz is who may do what: judged in Istio's order, deny before allow. With
// no allow policy at all everything that is not denied is allowed.
type Authz struct {
	Policies []Policy
}

// Action is what a matching policy does.
type Action uint8

// The actions, in the order in which they are judged.
const (
	ActionDeny Action = iota
	ActionAllow
	ActionAudit
)

var actionNames = [...]string{"deny", "allow", "audit"}

// String returns the action's name in lower case.
func (a Action) String() string { return actionNames[a] }

// Policy is one AuthorizationPolicy. It matches if one of its rules does; without rules it matches nothing.
type Policy struct {
	Name   string // namespace/name
	Action Action
	DryRun bool
	Rules  []PolicyRule
	Origin Origin
}

// PolicyRule matches if From (or-ed), To (or-ed) and When (and-ed) all match; empty lists match everything.
type PolicyRule struct {
	From []Source
	To   []Operation
	When []Condition
}

// Source is a conjunction of fields; each list is or-ed, a Not list must not match. Principals are written
// without "spiffe://".
type Source struct {
	Principals, NotPrincipals               []StringMatch
	RequestPrincipals, NotRequestPrincipals []StringMatch
	Namespaces, NotNamespaces               []StringMatch
	TrustDomains, NotTrustDomains           []StringMatch
	ServiceAccounts, NotServiceAccounts     []StringMatch // "namespace/name"
	IPs, NotIPs                             []netip.Prefix
	RemoteIPs, NotRemoteIPs                 []netip.Prefix
}

// Operation is a conjunction of fields; each list is or-ed, a Not list must not match.
type Operation struct {
	Hosts, NotHosts     []StringMatch
	Ports, NotPorts     []uint16
	Methods, NotMethods []StringMatch
	Paths, NotPaths     []StringMatch
}

// Condition is one "when": Key in Istio's terms, such as "request.headers[x-token]" or "source.ip".
type Condition struct {
	Key               string
	Values, NotValues []StringMatch
	// Prefixes hold the values of the IP keys, Ports those of destination.port.
	Prefixes, NotPrefixes []netip.Prefix
	Ports, NotPorts       []uint16
}

// HTTPOnly reports whether the source names what only a request can show.
func (s Source) HTTPOnly() bool {
	return len(s.RequestPrincipals)+len(s.NotRequestPrincipals)+len(s.RemoteIPs)+len(s.NotRemoteIPs) > 0
}

// HTTPOnly reports whether the operation names what only a request can show.
func (o Operation) HTTPOnly() bool {
	return len(o.Hosts)+len(o.NotHosts)+len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths) > 0
}
