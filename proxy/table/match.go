package table

import (
	"bytes"
	"net/url"
	"regexp"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// textMatch is a compiled plan.StringMatch.
type textMatch struct {
	kind   plan.MatchKind
	value  []byte
	fold   bool
	regex  *regexp.Regexp
	pieces []piece // of a path template
}

// piece is one segment of a path template.
type piece struct {
	text      string
	one, rest bool
}

func newTextMatch(m plan.StringMatch) textMatch {
	t := textMatch{kind: m.Kind, value: []byte(m.Value), fold: m.IgnoreCase}
	switch m.Kind {
	case plan.MatchRegex:
		t.regex, _ = compileRegex(m.Value) // checked when it arrived
	case plan.MatchPath:
		for s := range bytes.SplitSeq([]byte(m.Value), []byte("/")) {
			t.pieces = append(t.pieces, piece{string(s), string(s) == "{*}", string(s) == "{**}"})
		}
	}
	if t.fold {
		t.value = bytes.ToLower(t.value)
	}
	return t
}

func (t *textMatch) matches(p []byte) bool {
	switch t.kind {
	case plan.MatchExact:
		if t.fold {
			return len(p) == len(t.value) && equalFold(p, string(t.value))
		}
		return bytes.Equal(p, t.value)
	case plan.MatchPrefix:
		if t.fold {
			return len(p) >= len(t.value) && equalFold(p[:len(t.value)], string(t.value))
		}
		return bytes.HasPrefix(p, t.value)
	case plan.MatchSuffix:
		return bytes.HasSuffix(p, t.value)
	case plan.MatchRegex:
		return t.regex.Match(p)
	case plan.MatchPresent:
		return true
	case plan.MatchPath:
		return matchTemplate(t.pieces, p)
	}
	return false
}

// matchTemplate matches a path against segments: {*} is one non-empty segment, {**} any number of them.
func matchTemplate(pieces []piece, p []byte) bool {
	for i, want := range pieces {
		if want.rest {
			if i == len(pieces)-1 {
				return true
			}
			for { // what follows {**} may begin at any later segment
				if matchTemplate(pieces[i+1:], p) {
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
		if want.one && len(segment) == 0 || !want.one && string(segment) != want.text {
			return false
		}
		if !more {
			return i == len(pieces)-1
		}
		p = rest
	}
	return false
}

// MatchAny reports whether one of the matches fits. It compiles expressions anew and is not for the hot path.
func MatchAny(list []plan.StringMatch, p []byte) bool {
	for _, m := range list {
		if t := newTextMatch(m); (t.kind != plan.MatchRegex || t.regex != nil) && t.matches(p) {
			return true
		}
	}
	return false
}

// requestMatch is a compiled plan.RequestMatch.
type requestMatch struct {
	path, method, scheme, authority textMatch
	headers, query                  []fieldMatch
}

type fieldMatch struct {
	name   string
	value  textMatch
	invert bool
}

func newRequestMatch(m *plan.RequestMatch) requestMatch {
	return requestMatch{
		path: newTextMatch(m.Path), method: newTextMatch(m.Method), scheme: newTextMatch(m.Scheme),
		authority: newTextMatch(m.Authority), headers: newFieldMatches(m.Headers), query: newFieldMatches(m.Query),
	}
}

func newFieldMatches(list []plan.HeaderMatch) []fieldMatch {
	var out []fieldMatch
	for _, h := range list {
		out = append(out, fieldMatch{h.Name, newTextMatch(h.Value), h.Invert})
	}
	return out
}

func (m *requestMatch) matches(q *Request) bool {
	if m.path.kind != plan.MatchNone && !m.path.matches(q.Path) ||
		m.method.kind != plan.MatchNone && !m.method.matches(q.Head.Method()) ||
		m.authority.kind != plan.MatchNone && !m.authority.matches(q.Head.Authority()) ||
		m.scheme.kind != plan.MatchNone && !m.scheme.matches(schemeOf(q)) {
		return false
	}
	for i := range m.headers {
		if !m.headers[i].matchesHeader(q.Head) {
			return false
		}
	}
	for i := range m.query {
		if !m.query[i].matchesQuery(q.Query) {
			return false
		}
	}
	return true
}

var (
	schemeHTTP  = []byte("http")
	schemeHTTPS = []byte("https")
)

func schemeOf(q *Request) []byte {
	if s := q.Head.Scheme(); len(s) > 0 {
		return s
	}
	if q.TLS {
		return schemeHTTPS
	}
	return schemeHTTP
}

// matchesHeader matches a field; several of one name count as one, joined by commas (RFC 9110 section 5.3). A
// field that is missing does not match, and so matches when the match is inverted, as in Envoy.
func (f *fieldMatch) matchesHeader(h *stream.Head) bool {
	var first, joined []byte
	n := 0
	for i := range h.Len() {
		name, value := h.At(i)
		if !stream.EqualFold(name, f.name) {
			continue
		}
		switch n++; n {
		case 1:
			first = value
		case 2:
			joined = append(append(append(joined, first...), ','), value...)
		default:
			joined = append(append(joined, ','), value...)
		}
	}
	if n == 0 {
		if v, ok := pseudo(h, f.name); ok {
			first, n = v, 1
		}
	}
	if n > 1 {
		first = joined
	}
	return (n > 0 && f.value.matches(first)) != f.invert
}

func pseudo(h *stream.Head, name string) ([]byte, bool) {
	switch name {
	case ":authority", "host":
		return h.Authority(), true
	case ":method":
		return h.Method(), true
	case ":path":
		return h.Path(), true
	case ":scheme":
		return h.Scheme(), len(h.Scheme()) > 0
	}
	return nil, false
}

func (f *fieldMatch) matchesQuery(query []byte) bool {
	for len(query) > 0 {
		var part []byte
		part, query, _ = bytes.Cut(query, []byte("&"))
		key, value, _ := bytes.Cut(part, []byte("="))
		if string(unescape(key)) == f.name {
			return f.value.matches(unescape(value)) != f.invert
		}
	}
	return f.invert
}

// unescape decodes a query component; one that needs no decoding is returned as it is.
func unescape(p []byte) []byte {
	if bytes.IndexByte(p, '%') < 0 && bytes.IndexByte(p, '+') < 0 {
		return p
	}
	if s, err := url.QueryUnescape(string(p)); err == nil {
		return []byte(s)
	}
	return p
}
