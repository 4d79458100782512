package compile

import (
	"reflect"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// policies are the traffic policies in force for a service and an asker, the oldest first; several for one host
// are taken together.
type policies []*mesh.Traffic

// traffic finds the traffic policies for a service: those of the asker's namespace, else of the service's, else of
// the root namespace (Istio's order). One that selects the asker's workload beats those that select nobody.
func (a *asking) traffic(s *mesh.Service) policies {
	seen := map[string]bool{}
	for _, ns := range []string{a.namespace, s.Namespace, a.config.RootNamespace} {
		if seen[ns] {
			continue
		}
		seen[ns] = true
		var all, mine policies
		for _, t := range a.Traffic(ns, a.namespace, s.Host) {
			switch {
			case t.Selector == nil:
				all = append(all, t)
			case ns == a.namespace && a.labels().Match(t.Selector):
				mine = append(mine, t)
			}
		}
		if len(mine) > 0 {
			return mine
		}
		if len(all) > 0 {
			return all
		}
	}
	return nil
}

// origin is where the policy for a subset was written, or that for the host.
func (p policies) origin(subset string) plan.Origin {
	for _, t := range p {
		for i := range t.Subsets {
			if subset != "" && t.Subsets[i].Name == subset {
				return origin(t.Origin, t.Subsets[i].Line)
			}
		}
	}
	if len(p) == 0 {
		return plan.Origin{}
	}
	return origin(p[0].Origin, 0)
}

// subset finds a subset by name; nil: there is none, as there is for the empty name.
func (p policies) subset(name string) *mesh.Subset {
	for _, t := range p {
		for i := range t.Subsets {
			if name != "" && t.Subsets[i].Name == name {
				return &t.Subsets[i]
			}
		}
	}
	return nil
}

func (p policies) subsetNames() []string {
	var names []string
	for _, t := range p {
		for i := range t.Subsets {
			names = append(names, t.Subsets[i].Name)
		}
	}
	return names
}

// merged is the policy for a subset and port: the host's, overlaid by the subset's.
func (p policies) merged(subset string, port uint16) mesh.TrafficPolicy {
	var out mesh.TrafficPolicy
	for _, t := range p {
		if !empty(t.Policy) {
			out = onPort(t.Policy, port)
			break
		}
	}
	if s := p.subset(subset); s != nil {
		out = overlay(out, s.Policy)
		out.Ports = s.Policy.Ports
		out = onPort(out, port)
	}
	return out
}

// onPort is a policy where a port may have settings of its own: they inherit nothing, what they leave out has its
// default.
func onPort(p mesh.TrafficPolicy, port uint16) mesh.TrafficPolicy {
	if at, ok := p.Ports[port]; ok {
		p.Balance, p.Connections, p.Outlier, p.TLS = at.Balance, at.Connections, at.Outlier, at.TLS
	}
	return p
}

func empty(p mesh.TrafficPolicy) bool {
	return p.Balance == nil && p.Connections == nil && p.Outlier == nil && p.TLS == nil && p.Tunnel == nil &&
		p.ProxyProtocol == 0 && p.RetryBudget == nil && len(p.Ports) == 0
}

// overlay puts what over sets in the place of what base sets.
func overlay(base, over mesh.TrafficPolicy) mesh.TrafficPolicy {
	if over.Balance != nil {
		base.Balance = over.Balance
	}
	if over.Connections != nil {
		base.Connections = over.Connections
	}
	if over.Outlier != nil {
		base.Outlier = over.Outlier
	}
	if over.TLS != nil {
		base.TLS = over.TLS
	}
	if over.Tunnel != nil {
		base.Tunnel = over.Tunnel
	}
	if over.ProxyProtocol != 0 {
		base.ProxyProtocol = over.ProxyProtocol
	}
	if over.RetryBudget != nil {
		base.RetryBudget = over.RetryBudget
	}
	return base
}

func hashOn(h *mesh.ConsistentHash) plan.HashOn {
	out := plan.HashOn{Header: strings.ToLower(h.Header), Query: h.Query, SourceIP: h.SourceIP}
	if k := h.Cookie; k != nil {
		out.Cookie, out.CookiePath, out.CookieTTL = k.Name, k.Path, k.TTL
	}
	return out
}

// hashed gives a rule the hash inputs of its clusters, each once, for clients that hash before they choose a cluster, as
// gRPC's do (gRFC A42). Where the hash says which endpoint it is, a retry may go there again (Istio leaves the
// predicate out).
func (a *asking) hashed(r *plan.Rule) {
	for _, c := range r.Clusters {
		port, subset, host, ok := splitCluster(c.Cluster)
		if !ok {
			continue
		}
		s := a.Service(a.namespace, host)
		if s == nil || s.Headless && a.role == Sidecar {
			continue
		}
		b := a.traffic(s).merged(subset, port).Balance
		if b == nil || b.ConsistentHash == nil {
			continue
		}
		on := hashOn(b.ConsistentHash)
		if !slices.ContainsFunc(r.HashOn, func(x plan.HashOn) bool { return reflect.DeepEqual(x, on) }) {
			r.HashOn = append(r.HashOn, on)
		}
	}
	if len(r.HashOn) > 0 && r.Retry != nil {
		r.Retry.AvoidPrevious = false
	}
}

// subset returns the labels of a service's subset; known is false if no policy defines it. The empty subset is
// everything.
func (a *asking) subset(s *mesh.Service, name string) (labels mesh.Labels, known bool) {
	if name == "" {
		return nil, true
	}
	sub := a.traffic(s).subset(name)
	if sub == nil {
		return nil, false
	}
	return sub.Labels, true
}
