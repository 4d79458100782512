package compile

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// name answers a DNS question. The question is a full name: resolvers append their search list themselves, so only
// the name as it stands, and Kubernetes' own short forms, are looked up.
func (a *asking) name(asked string) *plan.Name {
	s := a.service(asked)
	if s == nil {
		return nil
	}
	n := &plan.Name{Name: asked}
	for _, p := range s.Addresses {
		if p.IsSingleIP() {
			n.Addresses = append(n.Addresses, p.Addr())
		}
	}
	if s.Headless {
		for _, w := range a.Workloads(s) {
			if w.Health == mesh.Healthy || s.NotReady {
				n.Addresses = append(n.Addresses, w.Addresses...)
			}
		}
	}
	slices.SortFunc(n.Addresses, func(x, y netip.Addr) int { return x.Compare(y) })
	n.Addresses = slices.Compact(n.Addresses)
	if len(n.Addresses) == 0 && !s.Headless {
		return nil // whoever else knows the name may answer
	}
	return n
}

// secret is the key material that a gateway terminates TLS with. Only gateways get one, and only of their own
// namespace.
func (a *asking) secret(name string) *plan.Secret {
	if a.role != Gateway {
		return nil
	}
	if strings.HasPrefix(name, mesh.SecretAnywhere) {
		return a.granted(name)
	}
	if a.labels()[labelGateway] != "" {
		return nil // it gets what its Gateway names, and not whatever is in its namespace
	}
	rest, ok := strings.CutPrefix(name, secretPrefix)
	if !ok {
		return nil
	}
	namespace, short, _ := strings.Cut(rest, "/")
	if namespace != a.namespace {
		return nil
	}
	s := a.Secret(namespace, short)
	if s == nil {
		return nil
	}
	roots := s.Roots
	if len(roots) == 0 {
		if ca := a.Secret(namespace, short+rootsSuffix); ca != nil {
			roots = ca.Roots
		}
	}
	return &plan.Secret{Name: name, Chain: s.Chain, Key: s.Key, Roots: roots}
}

// labelGateway names the Gateway of the Gateway API that a workload serves.
const labelGateway = "gateway.networking.k8s.io/gateway-name"

// granted is a secret of any namespace that a listener of the asker's names; source has seen to it that it may.
func (a *asking) granted(name string) *plan.Secret {
	for _, g := range a.Gateways(a.namespace, a.labels()) {
		for i := range g.Servers {
			if t := g.Servers[i].TLS; t == nil || t.Credential != name {
				continue
			}
			namespace, short, _ := strings.Cut(strings.TrimPrefix(name, mesh.SecretAnywhere), "/")
			if s := a.Secret(namespace, short); s != nil {
				return &plan.Secret{Name: name, Chain: s.Chain, Key: s.Key}
			}
		}
	}
	return nil
}

const (
	// secretPrefix begins the name of a secret that comes from a Kubernetes Secret, as in Istio.
	secretPrefix = "kubernetes://"
	// rootsSuffix ends the name of the Secret that holds a server's client roots, where they are kept apart.
	rootsSuffix = "-cacert"
)
