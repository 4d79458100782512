package table

import (
	"strings"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// Values replaces command operators in header values.
type Values interface {
	// AppendValue appends what the operator ("DOWNSTREAM_REMOTE_ADDRESS", "REQ(x-user)") stands for; false if it is
	// unknown, which leaves the text as it was written.
	AppendValue(dst []byte, operator string) ([]byte, bool)
}

// Edits are compiled plan.HeaderEdits.
type Edits struct {
	remove   []string
	set, add []edit
}

type edit struct {
	name  string
	lower string
	parts []part // a literal, or an operator
}

type part struct {
	text     string
	operator bool
}

func newEdits(p plan.HeaderEdits) *Edits {
	if p.Empty() {
		return nil
	}
	e := &Edits{remove: p.Remove}
	for _, h := range p.Set {
		e.set = append(e.set, newEdit(h))
	}
	for _, h := range p.Add {
		e.add = append(e.add, newEdit(h))
	}
	return e
}

func newEdit(h plan.Header) edit {
	return edit{h.Name, strings.ToLower(h.Name), template(h.Value)}
}

// template splits a value into literals and %OPERATORS%.
func template(s string) []part {
	var out []part
	literal := ""
	for s != "" {
		before, rest, ok := strings.Cut(s, "%")
		literal += before
		if !ok {
			break
		}
		op, after, ok := strings.Cut(rest, "%")
		switch {
		case !ok: // a lone %
			literal += "%" + rest
			after = ""
		case op == "":
			literal += "%"
		default:
			if literal != "" {
				out = append(out, part{literal, false})
				literal = ""
			}
			out = append(out, part{op, true})
		}
		s = after
	}
	if literal != "" || len(out) == 0 {
		out = append(out, part{literal, false})
	}
	return out
}

// Apply makes the edits: remove, set, add.
func (e *Edits) Apply(h *stream.Head, v Values) {
	for _, name := range e.remove {
		h.Del(name)
	}
	for i := range e.set {
		e.set[i].apply(h, v, true)
	}
	for i := range e.add {
		e.add[i].apply(h, v, false)
	}
}

func (e *edit) apply(h *stream.Head, v Values, set bool) {
	var buf [128]byte
	value := buf[:0]
	for _, p := range e.parts {
		if !p.operator {
			value = append(value, p.text...)
			continue
		}
		out, ok := v.AppendValue(value, p.text)
		if !ok {
			out = append(append(append(value, '%'), p.text...), '%')
		}
		value = out
	}
	switch {
	case e.lower == "host" || e.lower == ":authority":
		h.SetAuthority(value)
	case e.lower == ":path":
		h.SetPath(value)
	case set:
		h.Set(e.lower, value)
	default:
		h.Add([]byte(e.name), value)
	}
}
