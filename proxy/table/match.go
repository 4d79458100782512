package table

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/authz"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// textMatch is a compiled plan.StringMatch.
type textMatch struct {
	kind     plan.MatchKind
	value    string // in lower case with fold
	fold     bool
	regex    *regexp.Regexp
	template authz.Template
}

func newTextMatch(m plan.StringMatch) textMatch {
	t := textMatch{kind: m.Kind, value: m.Value, fold: m.IgnoreCase}
	switch m.Kind {
	case plan.MatchRegex:
		t.regex = regexp.MustCompile(whole(m.Value)) // checked when it arrived
	case plan.MatchPath:
		t.template, _ = authz.NewTemplate(m.Value) // checked, too; an empty one matches nothing
	default: // compared as it is
	}
	if t.fold {
		t.value = strings.ToLower(t.value)
	}
	return t
}

// any reports that there is nothing to match.
func (t *textMatch) any() bool { return t.kind == plan.MatchNone }

func (t *textMatch) matches(p []byte) bool {
	if t.kind == plan.MatchRegex {
		return t.regex.Match(p)
	}
	return t.plain(p)
}

// plain is matches for all kinds but expressions; it lets p stay on the stack.
func (t *textMatch) plain(p []byte) bool {
	switch t.kind {
	case plan.MatchExact:
		return len(p) == len(t.value) && t.equal(p)
	case plan.MatchPrefix:
		return len(p) >= len(t.value) && t.equal(p[:len(t.value)])
	case plan.MatchSuffix:
		return len(p) >= len(t.value) && t.equal(p[len(p)-len(t.value):])
	case plan.MatchPresent:
		return true
	case plan.MatchPath:
		return t.template.Match(p)
	default:
		return false
	}
}

// equal compares texts of one length.
func (t *textMatch) equal(p []byte) bool {
	if t.fold {
		return stream.EqualFold(p, t.value)
	}
	return string(p) == t.value
}

// requestMatch is a compiled plan.RequestMatch.
type requestMatch struct {
	path, method, scheme, authority textMatch
	headers, query                  []fieldMatch
}

// fieldMatch is a compiled plan.HeaderMatch.
type fieldMatch struct {
	name   string
	value  textMatch
	invert bool
}

func newRequestMatch(m *plan.RequestMatch) requestMatch {
	r := requestMatch{
		path: newTextMatch(m.Path), method: newTextMatch(m.Method), scheme: newTextMatch(m.Scheme), authority: newTextMatch(m.Authority),
	}
	for _, h := range m.Headers {
		r.headers = append(r.headers, fieldMatch{strings.ToLower(h.Name), newTextMatch(h.Value), h.Invert})
	}
	for _, q := range m.Query {
		r.query = append(r.query, fieldMatch{q.Name, newTextMatch(q.Value), q.Invert})
	}
	return r
}

func (m *requestMatch) matches(q *Request) bool {
	if !m.path.any() && !m.path.matches(q.Path) ||
		!m.method.any() && !m.method.matches(q.Head.Method()) ||
		!m.authority.any() && !m.authority.matches(q.Head.Authority()) ||
		!m.scheme.any() && !m.scheme.matches(schemeOf(q)) {
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

// matchesHeader matches a field; several of one name count as one, joined by commas (RFC 9110 section 5.3).
func (f *fieldMatch) matchesHeader(h *stream.Head) bool {
	value, n := []byte(nil), 0
	for i := range h.Len() {
		name, v := h.At(i)
		if !stream.EqualFold(name, f.name) {
			continue
		}
		if n++; n > 1 {
			return f.judge(joined(h, f.name), true)
		}
		value = v
	}
	if n == 0 {
		v, ok := pseudo(h, f.name)
		return f.judge(v, ok)
	}
	return f.judge(value, true)
}

// judge applies the match to a value. What is missing matches nothing; where the match is inverted it counts as
// empty, as Istio has it for withoutHeaders, unless mere presence is asked for.
func (f *fieldMatch) judge(value []byte, there bool) bool {
	if !there {
		return f.invert && (f.value.kind == plan.MatchPresent || !f.value.matches(nil))
	}
	return f.value.matches(value) != f.invert
}

// joined is the values of all fields of a name, with commas between.
func joined(h *stream.Head, name string) []byte {
	var out []byte
	for i := range h.Len() {
		if n, v := h.At(i); stream.EqualFold(n, name) {
			if out != nil {
				out = append(out, ',')
			}
			out = append(slices.Grow(out, 1), v...)
		}
	}
	return out
}

// pseudo is what HTTP/2 writes as a pseudo-header field.
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

// matchesQuery matches a query parameter as it is written, as Envoy does; of several of one name the first.
func (f *fieldMatch) matchesQuery(query []byte) bool {
	for len(query) > 0 {
		var part []byte
		part, query, _ = bytes.Cut(query, []byte("&"))
		key, value, _ := bytes.Cut(part, []byte("="))
		if string(key) == f.name {
			return f.judge(value, true)
		}
	}
	return f.judge(nil, false)
}
