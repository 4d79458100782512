package table

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// rewrite is a compiled regular rewrite of a path.
type rewrite struct {
	regex        *regexp.Regexp
	substitution []byte // in Go's syntax
}

// newRewrite compiles an RE2 expression and its substitution, in which \0 to \9 are groups and \\ is a backslash, as
// Envoy's regex_rewrite has it.
func newRewrite(expr, substitution string) (*rewrite, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, fmt.Errorf("rewrite expression %q: %w", expr, err)
	}
	var b strings.Builder
	for i := 0; i < len(substitution); i++ {
		c := substitution[i]
		switch {
		case c == '$':
			b.WriteString("$$")
			continue
		case c != '\\':
			b.WriteByte(c)
			continue
		}
		i++
		switch {
		case i < len(substitution) && substitution[i] == '\\':
			b.WriteByte('\\')
		case i < len(substitution) && '0' <= substitution[i] && substitution[i] <= '9':
			if n := int(substitution[i] - '0'); n > re.NumSubexp() {
				return nil, fmt.Errorf(`rewrite substitution %q: \%d, but %q has %d groups`, substitution, n, expr, re.NumSubexp())
			}
			b.WriteString("${" + substitution[i:i+1] + "}")
		default:
			return nil, fmt.Errorf(`rewrite substitution %q: after \ comes a digit or another \`, substitution)
		}
	}
	return &rewrite{re, []byte(b.String())}, nil
}

// Rewrite appends the rewritten path with the query.
func (r *Rule) Rewrite(dst, path, query []byte) []byte {
	w := r.Plan.Rewrite
	switch {
	case r.rewrite != nil:
		dst = append(dst, r.rewrite.regex.ReplaceAll(path, r.rewrite.substitution)...)
	case w.Prefix != "":
		dst = appendJoined(dst, w.Path, path[min(len(w.Prefix), len(path)):])
	case w.Path != "":
		dst = append(dst, w.Path...)
	default:
		dst = append(dst, path...)
	}
	return appendQuery(dst, query)
}

// appendJoined puts a new prefix before the rest of a path; the result starts with a slash.
func appendJoined(dst []byte, prefix string, rest []byte) []byte {
	if !strings.HasPrefix(prefix, "/") && (prefix != "" || !bytes.HasPrefix(rest, []byte("/"))) {
		dst = append(dst, '/')
	}
	return append(append(dst, prefix...), rest...)
}

func appendQuery(dst, query []byte) []byte {
	if len(query) == 0 {
		return dst
	}
	return append(append(dst, '?'), query...)
}

// Location appends the target of the rule's redirect. A port that is the scheme's own is left out, as in Istio.
func (r *Rule) Location(dst []byte, q *Request) []byte {
	p := r.Plan.Redirect
	own := "http"
	if q.TLS {
		own = "https"
	}
	scheme := own
	if p.Scheme != "" {
		scheme = p.Scheme
	}
	port := p.Port
	if p.PortFromRequest {
		port = q.Port
	}
	dst = append(append(dst, scheme...), "://"...)
	switch {
	case p.Authority != "":
		dst = append(dst, p.Authority...)
	case port != 0 || scheme != own && isPortOf(q.Port, own):
		dst = append(dst, q.Host...) // the request's port does not apply there
	default:
		dst = append(dst, q.Head.Authority()...)
	}
	if port != 0 && !isPortOf(port, scheme) {
		dst = strconv.AppendUint(append(dst, ':'), uint64(port), 10)
	}
	switch {
	case p.Path != "":
		if p.Path[0] != '/' {
			dst = append(dst, '/') // else it would become part of the host
		}
		dst = append(dst, p.Path...)
		if strings.Contains(p.Path, "?") {
			return dst // its query takes the place of the request's
		}
	case p.MatchedPrefix != "":
		dst = appendJoined(dst, p.Prefix, q.Path[min(len(p.MatchedPrefix), len(q.Path)):])
	default:
		dst = append(dst, q.Path...)
	}
	return appendQuery(dst, q.Query)
}

// isPortOf reports whether a port is a scheme's own (RFC 9110 sections 4.2.1 and 4.2.2).
func isPortOf(port uint16, scheme string) bool {
	return scheme == "http" && port == 80 || scheme == "https" && port == 443
}
