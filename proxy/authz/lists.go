package authz

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/plan"
)

// texts is an or-ed list of text matches and the list of what must not match.
// An absent attribute is the empty text; it matches nothing that is listed.
type texts struct{ yes, no matcher }

func newTexts(yes, no []plan.StringMatch) (texts, error) {
	y, err := newMatcher(yes)
	if err != nil {
		return texts{}, err
	}
	n, err := newMatcher(no)
	return texts{y, n}, err
}

// none reports that there is nothing to match.
func (t *texts) none() bool { return t.yes.empty && t.no.empty }

func (t *texts) match(p []byte) bool {
	return (t.yes.empty || matches(&t.yes, p)) && (t.no.empty || !matches(&t.no, p))
}

func (t *texts) matchString(s string) bool {
	return (t.yes.empty || matches(&t.yes, s)) && (t.no.empty || !matches(&t.no, s))
}

// matchPair matches "namespace/name".
func (t *texts) matchPair(namespace, name string) bool {
	switch {
	case t.none():
		return true
	case name == "":
		return t.match(nil)
	}
	var buf [256]byte
	return t.match(append(append(append(buf[:0], namespace...), '/'), name...))
}

// matcher is a list of text matches, the exact ones as sets.
type matcher struct {
	empty     bool // the list is
	present   bool
	exact     map[string]struct{}
	exactFold map[string]struct{} // in lower case
	affixes   []affix
	templates []Template
}

// affix is how a text begins or ends.
type affix struct {
	text string // in lower case with fold
	fold bool
	end  bool
}

func newMatcher(list []plan.StringMatch) (matcher, error) {
	m := matcher{empty: len(list) == 0, exact: map[string]struct{}{}, exactFold: map[string]struct{}{}}
	for _, s := range list {
		value := s.Value
		if s.IgnoreCase {
			value = strings.ToLower(value)
		}
		switch s.Kind {
		case plan.MatchExact:
			if s.IgnoreCase {
				m.exactFold[value] = struct{}{}
			} else {
				m.exact[value] = struct{}{}
			}
		case plan.MatchPrefix, plan.MatchSuffix:
			m.affixes = append(m.affixes, affix{value, s.IgnoreCase, s.Kind == plan.MatchSuffix})
		case plan.MatchPresent:
			m.present = true
		case plan.MatchPath:
			t, err := NewTemplate(s.Value)
			if err != nil {
				return m, err
			}
			m.templates = append(m.templates, t)
		default: // to leave it out of a list would open or close what was not meant
			return m, fmt.Errorf("a match %q, which policies do not know", s)
		}
	}
	return m, nil
}

// matches is for both forms in which texts come, so that neither is copied.
func matches[T string | []byte](m *matcher, p T) bool {
	if len(p) == 0 {
		return false
	}
	if m.present {
		return true
	}
	if _, ok := m.exact[string(p)]; ok {
		return true
	}
	if len(m.exactFold) > 0 {
		var buf [256]byte
		if _, ok := m.exactFold[string(appendLower(buf[:0], p))]; ok {
			return true
		}
	}
	for i := range m.affixes {
		if matchesAffix(&m.affixes[i], p) {
			return true
		}
	}
	for _, t := range m.templates {
		if t.Match([]byte(p)) {
			return true
		}
	}
	return false
}

func matchesAffix[T string | []byte](a *affix, p T) bool {
	n := len(a.text)
	switch {
	case len(p) < n:
		return false
	case a.end:
		p = p[len(p)-n:]
	default:
		p = p[:n]
	}
	for i := range n {
		c := p[i]
		if a.fold && 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != a.text[i] {
			return false
		}
	}
	return true
}

func appendLower[T string | []byte](dst []byte, p T) []byte {
	for i := range len(p) {
		c := p[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		dst = append(dst, c)
	}
	return dst
}

// nets is an or-ed list of address ranges and the list of what must not match. An address that is not known is in no
// range.
type nets struct{ yes, no ranges }

func newNets(yes, no []netip.Prefix) nets { return nets{newRanges(yes), newRanges(no)} }

func (n *nets) none() bool { return n.yes.empty() && n.no.empty() }

func (n *nets) match(a netip.Addr) bool {
	return (n.yes.empty() || n.yes.contains(a)) && (n.no.empty() || !n.no.contains(a))
}

// ranges are address ranges: a set for each length that occurs.
type ranges struct {
	lengths []int
	set     map[netip.Prefix]struct{}
}

func newRanges(list []netip.Prefix) ranges {
	var r ranges
	for _, p := range list {
		if r.set == nil {
			r.set = map[netip.Prefix]struct{}{}
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		r.set[p.Masked()] = struct{}{}
		if !slices.Contains(r.lengths, p.Bits()) {
			r.lengths = append(r.lengths, p.Bits())
		}
	}
	return r
}

func (r *ranges) empty() bool { return len(r.set) == 0 }

func (r *ranges) contains(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, n := range r.lengths {
		if p, err := a.Prefix(n); err == nil {
			if _, ok := r.set[p]; ok {
				return true
			}
		}
	}
	return false
}

// ports is an or-ed list of ports and the list of what must not match.
type ports struct{ yes, no []uint16 }

func (n *ports) none() bool { return len(n.yes)+len(n.no) == 0 }

func (n *ports) match(port uint16) bool {
	return (len(n.yes) == 0 || slices.Contains(n.yes, port)) && (len(n.no) == 0 || !slices.Contains(n.no, port))
}
