package table

import (
	"bytes"
	"regexp"
	"slices"
	"strconv"
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
	Rules []*Rule
}

// Rule is a compiled plan.Rule.
type Rule struct {
	Plan              *plan.Rule
	Choices           *Choices
	Request, Response *Edits
	Mirrors           []Mirror
	match             requestMatch
	rewrite           *regexp.Regexp
	substitution      []byte
}

// Mirror is a compiled plan.Mirror.
type Mirror struct {
	Choice  *Choice
	Percent float64
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
	Request, Response *Edits
}

// Request is what rules look at.
type Request struct {
	Head        *stream.Head
	Path, Query []byte
	Host        []byte // without port
	Port        uint16
	TLS         bool
	Rand        uint32
}

func newRoute(p *plan.Route, v *view) *Route {
	r := &Route{Plan: p, exact: map[string]*VirtualHost{}}
	for i := range p.Hosts {
		h := &VirtualHost{Plan: &p.Hosts[i]}
		for j := range h.Plan.Rules {
			h.Rules = append(h.Rules, newRule(&h.Plan.Rules[j], v))
		}
		for _, d := range h.Plan.Domains {
			suffix, wild := strings.CutPrefix(d, "*")
			switch {
			case d == "*":
				if r.any == nil {
					r.any = h
				}
			case wild:
				r.suffixes = append(r.suffixes, suffixHost{suffix, h})
			case r.exact[d] == nil:
				r.exact[d] = h
			}
		}
	}
	slices.SortStableFunc(r.suffixes, func(a, b suffixHost) int { return len(b.suffix) - len(a.suffix) })
	return r
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
		r.rewrite = regexp.MustCompile(w.Regex) // checked when it arrived
		r.substitution = []byte(goTemplate(w.Substitution))
	}
	return r
}

// goTemplate turns RE2's \1 into Go's ${1}.
func goTemplate(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '$':
			b.WriteString("$$")
		case s[i] == '\\' && i+1 < len(s) && '0' <= s[i+1] && s[i+1] <= '9':
			i++
			b.WriteString("${" + s[i:i+1] + "}")
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '\\':
			i++
			b.WriteByte('\\')
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func newChoices(list []plan.WeightedCluster, v *view) *Choices {
	if len(list) == 0 {
		return nil
	}
	c := &Choices{}
	for _, w := range list {
		c.list = append(c.list, &Choice{w.Cluster, v.clusters[w.Cluster], newEdits(w.Request), newEdits(w.Response)})
		c.total += w.Weight
		c.upTo = append(c.upTo, c.total)
	}
	if len(list) == 1 || c.total == 0 {
		c.upTo = nil
	}
	return c
}

// Choose picks a cluster by weight. rand is a random number.
func (c *Choices) Choose(rand uint32) *Choice {
	if c.upTo == nil {
		return c.list[0]
	}
	x := uint32(uint64(rand) * uint64(c.total) >> 32)
	for i, end := range c.upTo {
		if x < end {
			return c.list[i]
		}
	}
	return c.list[len(c.list)-1]
}

// Match returns the virtual host for a request and the first of its rules that matches; nil, nil if no host fits,
// and a nil rule if none of its rules does.
func (r *Route) Match(q *Request) (*VirtualHost, *Rule) {
	h := r.host(q)
	if h == nil {
		return nil, nil
	}
	for _, rule := range h.Rules {
		if rule.match.matches(q) {
			return h, rule
		}
	}
	return h, nil
}

// host finds the virtual host: exact before suffix, long suffixes before short ones, "*" last.
func (r *Route) host(q *Request) *VirtualHost {
	if r == nil {
		return nil
	}
	var buf [256]byte
	authority := appendLower(buf[:0], q.Head.Authority())
	if h := r.exact[string(authority)]; h != nil {
		return h
	}
	host := appendLower(buf[:0], q.Host)
	if h := r.exact[string(host)]; h != nil {
		return h
	}
	for _, s := range r.suffixes {
		if len(host) > len(s.suffix) && bytes.HasSuffix(host, []byte(s.suffix)) {
			return s.host
		}
	}
	return r.any
}

// RetriesStatus reports whether the retry policy lists a status.
func (r *Rule) RetriesStatus(code int) bool {
	return r.Plan.Retry != nil && slices.Contains(r.Plan.Retry.StatusCodes, code)
}

// Rewrite appends the rewritten path with the query.
func (r *Rule) Rewrite(dst, path, query []byte) []byte {
	w := r.Plan.Rewrite
	switch {
	case r.rewrite != nil:
		dst = append(dst, r.rewrite.ReplaceAll(path, r.substitution)...)
	case w.Prefix != "" && len(path) >= len(w.Prefix):
		dst = appendJoined(dst, w.Path, path[len(w.Prefix):])
	case w.Path != "":
		dst = append(dst, w.Path...)
	default:
		dst = append(dst, path...)
	}
	if len(query) > 0 {
		dst = append(append(dst, '?'), query...)
	}
	return dst
}

// appendJoined puts a new prefix before the rest of a path; the result starts with a slash.
func appendJoined(dst []byte, prefix string, rest []byte) []byte {
	if !strings.HasPrefix(prefix, "/") && !(prefix == "" && len(rest) > 0 && rest[0] == '/') {
		dst = append(dst, '/')
	}
	return append(append(dst, prefix...), rest...)
}

// Location appends the target of the rule's redirect.
func (r *Rule) Location(dst []byte, q *Request) []byte {
	p := r.Plan.Redirect
	scheme := p.Scheme
	if scheme == "" {
		scheme = "http"
		if q.TLS {
			scheme = "https"
		}
	}
	dst = append(append(dst, scheme...), "://"...)
	switch {
	case p.Authority != "":
		dst = append(dst, p.Authority...)
	case p.Port != 0 || p.PortFromRequest || p.Scheme != "":
		dst = append(dst, q.Host...)
	default:
		dst = append(dst, q.Head.Authority()...)
	}
	port := p.Port
	if p.PortFromRequest {
		port = q.Port
	}
	if port != 0 && !(scheme == "http" && port == 80) && !(scheme == "https" && port == 443) {
		dst = strconv.AppendUint(append(dst, ':'), uint64(port), 10)
	}
	switch {
	case p.Path != "":
		dst = append(dst, p.Path...)
		if strings.Contains(p.Path, "?") {
			return dst
		}
	case p.MatchedPrefix != "" && len(q.Path) >= len(p.MatchedPrefix):
		dst = appendJoined(dst, p.Prefix, q.Path[len(p.MatchedPrefix):])
	default:
		dst = append(dst, q.Path...)
	}
	if len(q.Query) > 0 {
		dst = append(append(dst, '?'), q.Query...)
	}
	return dst
}

func appendLower(dst, p []byte) []byte {
	for _, c := range p {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		dst = append(dst, c)
	}
	return dst
}
