package mesh

import "net/netip"

// Authn is a PeerAuthentication: what encryption a workload demands.
type Authn struct {
	Origin
	Namespace, Name string
	Selector        Labels // nil: the whole namespace, or the mesh in the root namespace
	Mode            MTLSMode
	Ports           map[uint16]MTLSMode
	// Unreadable: the policy has faults. It demands mutual TLS on every port, whatever other policies say.
	Unreadable bool
}

// Ref names the policy.
func (a *Authn) Ref() Ref { return Ref{KindAuthn, a.Namespace, a.Name} }

// MTLSMode is a PeerAuthentication mode.
type MTLSMode uint8

// The modes.
const (
	MTLSUnset MTLSMode = iota
	MTLSDisable
	MTLSPermissive
	MTLSStrict
)

// Authz is an AuthorizationPolicy.
type Authz struct {
	Origin
	Namespace, Name string
	Selector        Labels // nil: the whole namespace, or the mesh in the root namespace
	Action          string // ALLOW, DENY, AUDIT, CUSTOM
	Provider        string // for CUSTOM
	DryRun          bool
	Rules           []AuthzRule
}

// Ref names the policy.
func (a *Authz) Ref() Ref { return Ref{KindAuthz, a.Namespace, a.Name} }

// AuthzRule matches if From, To and When all do; empty matches everything.
type AuthzRule struct {
	From []AuthzSource
	To   []AuthzOperation
	When []AuthzCondition
}

// AuthzSource is a conjunction of or-ed lists.
type AuthzSource struct {
	Principals, NotPrincipals               []string
	RequestPrincipals, NotRequestPrincipals []string
	Namespaces, NotNamespaces               []string
	ServiceAccounts, NotServiceAccounts     []string // resolved to namespace/name
	TrustDomains, NotTrustDomains           []string
	IPs, NotIPs, RemoteIPs, NotRemoteIPs    []netip.Prefix
}

// AuthzOperation is a conjunction of or-ed lists.
type AuthzOperation struct {
	Hosts, NotHosts, Methods, NotMethods, Paths, NotPaths []string
	Ports, NotPorts                                       []uint16
}

// AuthzCondition is one "when".
type AuthzCondition struct {
	Key               string
	Values, NotValues []string
}
