package authz

import (
	"bytes"
	"net/netip"
	"strings"

	"github.com/lateen-mesh/lateen/plan"
)

// texts is an or-ed list of text matches and the list of what must not match.
// An absent attribute is the empty text; it matches nothing that is listed.
type texts struct {
	set     bool // some list is not empty
	yes, no matcher
}

func newTexts(yes, no []plan.StringMatch) texts {
	return texts{len(yes)+len(no) > 0, newMatcher(yes), newMatcher(no)}
}

func (t *texts) match(p []byte) bool {
	return !t.set || (t.yes.empty || t.yes.match(p)) && (t.no.empty || !t.no.match(p))
}

func (t *texts) matchString(s string) bool {
	if !t.set {
		return true
	}
	var buf [256]byte
	return t.match(append(buf[:0], s...))
}

// matchPair matches "namespace/name".
func (t *texts) matchPair(namespace, name string) bool {
	if !t.set {
		return true
	}
	if name == "" {
		return t.match(nil)
	}
	var buf [256]byte
	return t.match(append(append(append(buf[:0], namespace...), '/'), name...))
}

// matcher is a list of text matches, the exact ones as a set.
type matcher struct {
	empty     bool
	exact     map[string]struct{}
	exactFold map[string]struct{}
	present   bool
	prefixes  []affix
	suffixes  []affix
	templates [][]string
}

type affix struct {
	text string
	fold bool
}

func newMatcher(list []plan.StringMatch) matcher {
	m := matcher{empty: len(list) == 0}
	for _, s := range list {
		value := s.Value
		if s.IgnoreCase {
			value = strings.ToLower(value)
		}
		switch s.Kind {
		case plan.MatchExact:
			if s.IgnoreCase {
				m.exactFold = with(m.exactFold, value)
			} else {
				m.exact = with(m.exact, value)
			}
		case plan.MatchPrefix:
			m.prefixes = append(m.prefixes, affix{value, s.IgnoreCase})
		case plan.MatchSuffix:
			m.suffixes = append(m.suffixes, affix{value, s.IgnoreCase})
		case plan.MatchPresent:
			m.present = true
		case plan.MatchPath:
			m.templates = append(m.templates, strings.Split(value, "/"))
		}
	}
	return m
}

func with(set map[string]struct{}, s string) map[string]struct{} {
	if set == nil {
		set = map[string]struct{}{}
	}
	set[s] = struct{}{}
	return set
}

func (m *matcher) match(p []byte) bool {
	if len(p) == 0 {
		return false
	}
	if m.present {
		return true
	}
	if _, ok := m.exact[string(p)]; ok {
		return true
	}
	if m.exactFold != nil {
		var buf [256]byte
		if _, ok := m.exactFold[string(lower(buf[:0], p))]; ok {
			return true
		}
	}
	for _, a := range m.prefixes {
		if len(p) >= len(a.text) && a.equal(p[:len(a.text)]) {
			return true
		}
	}
	for _, a := range m.suffixes {
		if len(p) >= len(a.text) && a.equal(p[len(p)-len(a.text):]) {
			return true
		}
	}
	for _, t := range m.templates {
		if template(t, p) {
			return true
		}
	}
	return false
}

func (a affix) equal(p []byte) bool {
	if !a.fold {
		return string(p) == a.text
	}
	for i, c := range p {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != a.text[i] {
			return false
		}
	}
	return true
}

func lower(dst, p []byte) []byte {
	for _, c := range p {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		dst = append(dst, c)
	}
	return dst
}

// template matches a path: {*} is one non-empty segment, {**} any number of segments.
func template(want []string, p []byte) bool {
	for i, w := range want {
		if w == "{**}" {
			if i == len(want)-1 {
				return true
			}
			for {
				if template(want[i+1:], p) {
					return true
				}
				j := bytes.IndexByte(p, '/')
				if j < 0 {
					return false
				}
				p = p[j+1:]
			}
		}
		segment, rest, more := bytes.Cut(p, []byte("/"))
		if w == "{*}" && len(segment) == 0 || w != "{*}" && string(segment) != w {
			return false
		}
		if !more {
			return i == len(want)-1
		}
		p = rest
	}
	return false
}

// nets is an or-ed list of address ranges and the list of what must not match.
type nets struct{ yes, no []netip.Prefix }

func newNets(yes, no []netip.Prefix) nets { return nets{yes, no} }

func (n *nets) match(a netip.Addr) bool {
	return (len(n.yes) == 0 || contains(n.yes, a)) && (len(n.no) == 0 || !contains(n.no, a))
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap()
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// ports is an or-ed list of ports and the list of what must not match.
type ports struct{ yes, no []uint16 }

func (n *ports) match(port uint16) bool {
	return (len(n.yes) == 0 || containsPort(n.yes, port)) && (len(n.no) == 0 || !containsPort(n.no, port))
}

func containsPort(list []uint16, port uint16) bool {
	for _, p := range list {
		if p == port {
			return true
		}
	}
	return false
}
