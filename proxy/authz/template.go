package authz

import (
	"bytes"
	"fmt"
	"strings"
)

// Template is a compiled path template (Istio's AuthorizationPolicy paths, Envoy's uri_template): of its segments
// {*} stands for exactly one that is not empty, {**} for any text, slashes included, and the rest for themselves.
type Template []string

// NewTemplate compiles a template. Nothing but plain segments may follow {**}, as in Istio, so that a match never
// has to try combinations.
func NewTemplate(s string) (Template, error) {
	t := Template(strings.Split(s, "/"))
	open := false
	for _, segment := range t {
		operator := segment == "{*}" || segment == "{**}"
		switch {
		case !operator && strings.ContainsAny(segment, "{}*"):
			return nil, fmt.Errorf("path template %q: {*} and {**} must be whole segments", s)
		case operator && open:
			return nil, fmt.Errorf("path template %q: no operator may follow {**}", s)
		}
		open = open || segment == "{**}"
	}
	return t, nil
}

// Match reports whether the whole path fits.
func (t Template) Match(path []byte) bool {
	for i, want := range t {
		if want == "{**}" {
			return t[i+1:].matchTail(path)
		}
		segment, rest, more := bytes.Cut(path, []byte("/"))
		if want == "{*}" && len(segment) == 0 || want != "{*}" && string(segment) != want {
			return false
		}
		if !more {
			return i == len(t)-1
		}
		path = rest
	}
	return false
}

// matchTail reports whether the template fits what follows some slash of the path, or is over.
func (t Template) matchTail(path []byte) bool {
	if len(t) == 0 {
		return true
	}
	for {
		i := bytes.IndexByte(path, '/')
		if i < 0 {
			return false
		}
		if path = path[i+1:]; t.Match(path) {
			return true
		}
	}
}
