package table

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/authz"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// Listener is a compiled plan.Listener.
type Listener struct {
	Plan   *plan.Listener
	Chains []*Chain
	sni    bool
	byPort map[uint16][]*Chain // chains that name ports, with those that name none, in order
	other  []*Chain            // chains that name no port
}

// Chain is a compiled plan.Chain.
type Chain struct {
	Plan  *plan.Chain
	Authz *authz.Authz // nil: allow
	Route *Route       // nil if there is none
	TCP   *Choices     // nil: refuse bytes
}

// ConnMatch is what chains are chosen by.
type ConnMatch struct {
	Port         uint16
	Dest, Source netip.Addr
	SNI          []byte // lower case is not required; nil while unknown
}

// newListener compiles a listener that check has passed.
func (t *Table) newListener(p *plan.Listener, v *view) *Listener {
	l := &Listener{Plan: p, byPort: map[uint16][]*Chain{}}
	for i := range p.Chains {
		c := t.newChain(&p.Chains[i], v)
		l.sni = l.sni || len(c.Plan.Match.SNI) > 0 || c.Plan.TLS.Mode == plan.TLSPassthrough
		l.Chains = append(l.Chains, c)
		for _, port := range c.Plan.Match.Ports {
			l.byPort[port] = nil
		}
		if len(c.Plan.Match.Ports) == 0 {
			l.other = append(l.other, c)
		}
	}
	for port := range l.byPort {
		for _, c := range l.Chains {
			if len(c.Plan.Match.Ports) == 0 || slices.Contains(c.Plan.Match.Ports, port) {
				l.byPort[port] = append(l.byPort[port], c)
			}
		}
	}
	return l
}

func (t *Table) newChain(p *plan.Chain, v *view) *Chain {
	c := &Chain{Plan: p}
	if p.Authz != nil && len(p.Authz.Policies) > 0 {
		a, err := authz.New(p.Authz, t.cfg.TrustDomain, t.cfg.Aliases)
		if err != nil {
			panic("table: policies that were in order when they arrived are not: " + err.Error())
		}
		c.Authz = a
	}
	if p.TCP != nil {
		c.TCP = newChoices(p.TCP.Clusters, v)
	}
	switch h := p.HTTP; {
	case h == nil:
	case h.Inline != nil:
		c.Route = newRoute(h.Inline, v)
	case h.Route != "":
		if d := t.entries[ref{plan.KindRoute, h.Route}]; d != nil {
			c.Route, _ = d.value.(*Route)
		}
	}
	return c
}

// NeedsSNI reports whether the choice of a chain needs the client's server name.
func (l *Listener) NeedsSNI() bool { return l.sni }

// Match returns the chain for a connection: of those whose addresses and ports fit, the one with the most
// specific server name, the first of equals; nil if none fits.
func (l *Listener) Match(m *ConnMatch) *Chain {
	chains, ok := l.byPort[m.Port]
	if !ok {
		chains = l.other
	}
	var best *Chain
	score := -1
	for _, c := range chains {
		p := &c.Plan.Match
		if len(p.Destinations) > 0 && !containsAddr(p.Destinations, m.Dest) || len(p.Sources) > 0 && !containsAddr(p.Sources, m.Source) {
			continue
		}
		s := 0
		if len(p.SNI) > 0 {
			if s = sniScore(p.SNI, m.SNI); s < 0 {
				continue
			}
		}
		if s > score {
			best, score = c, s
		}
	}
	return best
}

// exactScore is above any suffix's length (RFC 1035 bounds names to 255 bytes).
const exactScore = 1 << 10

// sniScore says how specifically one of the patterns fits the name; -1: not at all.
func sniScore(patterns []string, name []byte) int {
	best := -1
	for _, p := range patterns {
		switch suffix, wild := strings.CutPrefix(p, "*"); {
		case p == "*":
			best = max(best, 1)
		case wild && len(name) > len(suffix) && stream.EqualFold(name[len(name)-len(suffix):], suffix):
			best = max(best, 1+len(suffix))
		case !wild && len(name) == len(p) && stream.EqualFold(name, p):
			return exactScore
		}
	}
	return best
}

func containsAddr(prefixes []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Unknown is the treatment of connections to where the mesh knows nothing: they are passed on as they are.
func (t *Table) Unknown() *Listener {
	p := &plan.Listener{Name: plan.ClusterPassthrough, Chains: []plan.Chain{{
		Name: "other", Protocol: plan.ProtocolTCP,
		TCP:     &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: plan.ClusterPassthrough}}},
		Service: plan.ServiceName{Name: plan.ClusterPassthrough},
	}}}
	return t.newListener(p, t.view.Load())
}
