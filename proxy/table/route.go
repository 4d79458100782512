package table

import (
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// Route is a compiled plan.Route. A nil Route matches nothing.
type Route struct {
	Plan     *plan.Route
	exact    map[string]*VirtualHost
	suffixes []suffixHost // longest first
	any      *VirtualHost
}

type suffixHost struct {
	suffix string // with its leading dot
	host   *VirtualHost
}

// VirtualHost is a compiled plan.VirtualHost.
type VirtualHost struct {
	Plan  *plan.VirtualHost
	rules []*Rule
	index *index // nil: few rules
}

// Rule is a compiled plan.Rule.
type Rule struct {
	Plan              *plan.Rule
	Choices           *Choices // nil: a redirect or a direct response
	Request, Response *Edits   // nil: none
	Mirrors           []Mirror
	match             requestMatch
	rewrite           *rewrite // nil: none by expression
	origins           []textMatch
}

// Mirror is a compiled plan.Mirror.
type Mirror struct {
	Choice  *Choice
	Percent float64 // 0 to 100
}

// Choices are clusters with weights.
type Choices struct {
	list  []*Choice
	upTo  []uint32 // cumulative weights; nil for a single choice
	total uint32
}

// Choice is one cluster to send to.
type Choice struct {
	Name              string
	Cluster           *balance.Cluster // nil: the control plane knows none of that name
	Request, Response *Edits           // nil: none
}

// Request is what rules look at.
type Request struct {
	Head        *stream.Head
	Path, Query []byte // the path normalised and without its query
	Host        []byte // without port
	Port        uint16
	TLS         bool
	Rand        uint32
}

// newRoute compiles a route that checkRoute has passed.
func newRoute(p *plan.Route, v *view) *Route {
	r := &Route{Plan: p, exact: map[string]*VirtualHost{}}
	for i := range p.Hosts {
		h := &VirtualHost{Plan: &p.Hosts[i]}
		for j := range h.Plan.Rules {
			h.rules = append(h.rules, newRule(&h.Plan.Rules[j], v))
		}
		h.index = newIndex(h.rules)
		for _, d := range h.Plan.Domains {
			r.add(strings.ToLower(d), h)
		}
	}
	slices.SortStableFunc(r.suffixes, func(a, b suffixHost) int { return len(b.suffix) - len(a.suffix) })
	return r
}

// add enters a host under a domain; of two hosts of one domain the first counts.
func (r *Route) add(domain string, h *VirtualHost) {
	suffix, wild := strings.CutPrefix(domain, "*")
	switch {
	case domain == "*":
		if r.any == nil {
			r.any = h
		}
	case wild:
		r.suffixes = append(r.suffixes, suffixHost{suffix, h})
	case r.exact[domain] == nil:
		r.exact[domain] = h
	}
}

func newRule(p *plan.Rule, v *view) *Rule {
	r := &Rule{
		Plan: p, Choices: newChoices(p.Clusters, v), Request: newEdits(p.Request), Response: newEdits(p.Response),
		match: newRequestMatch(&p.Match),
	}
	for _, m := range p.Mirrors {
		r.Mirrors = append(r.Mirrors, Mirror{&Choice{Name: m.Cluster, Cluster: v.clusters[m.Cluster]}, m.Percent})
	}
	if w := p.Rewrite; w != nil && w.Regex != "" {
		r.rewrite, _ = newRewrite(w.Regex, w.Substitution) // checked when it arrived
	}
	if p.CORS != nil {
		for _, o := range p.CORS.AllowOrigins {
			r.origins = append(r.origins, newTextMatch(o))
		}
	}
	return r
}

func newChoices(list []plan.WeightedCluster, v *view) *Choices {
	if len(list) == 0 {
		return nil
	}
	c := &Choices{}
	for _, w := range list {
		c.list = append(c.list, &Choice{w.Cluster, v.clusters[w.Cluster], newEdits(w.Request), newEdits(w.Response)})
		c.total += w.Weight // checkWeights has seen to it that the sum fits
		c.upTo = append(c.upTo, c.total)
	}
	if len(list) == 1 || c.total == 0 {
		c.upTo = nil
	}
	return c
}

// Choose picks a cluster by weight; the first one if all weights are 0. rand is a random number.
func (c *Choices) Choose(rand uint32) *Choice {
	if c.upTo == nil {
		return c.list[0]
	}
	x := uint32(uint64(rand) * uint64(c.total) >> 32) // below total, which ends the list
	i := 0
	for x >= c.upTo[i] {
		i++
	}
	return c.list[i]
}

// Match returns the virtual host for a request and the first of its rules that matches; nil, nil if no host fits,
// and a nil rule if none of its rules does. It does not allocate, except for a header field that is sent more than
// once, an escaped query parameter that is matched by an expression, and an authority above 256 bytes.
func (r *Route) Match(q *Request) (*VirtualHost, *Rule) {
	h := r.host(q)
	if h == nil {
		return nil, nil
	}
	if h.index != nil {
		return h, h.index.match(h.rules, q)
	}
	for _, rule := range h.rules {
		if rule.match.matches(q) {
			return h, rule
		}
	}
	return h, nil
}

// host finds the virtual host: exact before suffix, long suffixes before short ones, "*" last. A domain with a port
// fits the authority, one without the host at any port.
func (r *Route) host(q *Request) *VirtualHost {
	if r == nil {
		return nil
	}
	if len(r.exact)+len(r.suffixes) == 0 {
		return r.any
	}
	var lower [256]byte
	authority := appendLower(lower[:0], q.Head.Authority())
	if h := r.exact[string(authority)]; h != nil {
		return h
	}
	host := authority[:min(len(q.Host), len(authority))] // what Host is, but for the port
	if len(host) < len(authority) {
		if h := r.exact[string(host)]; h != nil {
			return h
		}
	}
	for _, s := range r.suffixes {
		if endsIn(host, s.suffix) || endsIn(authority, s.suffix) {
			return s.host
		}
	}
	return r.any
}

// endsIn reports whether a name ends in a suffix and has more than that.
func endsIn(name []byte, suffix string) bool {
	return len(name) > len(suffix) && string(name[len(name)-len(suffix):]) == suffix
}

// AllowsOrigin reports whether the rule's CORS policy lists an origin.
func (r *Rule) AllowsOrigin(origin []byte) bool {
	return slices.ContainsFunc(r.origins, func(m textMatch) bool { return m.matches(origin) })
}

// appendLower appends p in lower case (ASCII).
func appendLower(dst, p []byte) []byte {
	dst = append(dst, p...)
	for i, c := range dst[len(dst)-len(p):] {
		if 'A' <= c && c <= 'Z' {
			dst[len(dst)-len(p)+i] = c | 0x20
		}
	}
	return dst
}
