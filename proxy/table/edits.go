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
	remove   []string // lower case
	set, add []edit
}

type edit struct {
	name   []byte // as written
	field  string // in lower case
	static []byte // the value if no operator is in it; nil otherwise
	parts  []plan.TemplatePart
}

func newEdits(p plan.HeaderEdits) *Edits {
	if p.Empty() {
		return nil
	}
	e := &Edits{}
	for _, name := range p.Remove {
		e.remove = append(e.remove, strings.ToLower(name))
	}
	for _, h := range p.Set {
		e.set = append(e.set, newEdit(h))
	}
	for _, h := range p.Add {
		e.add = append(e.add, newEdit(h))
	}
	return e
}

func newEdit(h plan.Header) edit {
	e := edit{name: []byte(h.Name), field: strings.ToLower(h.Name), parts: plan.Template(h.Value)}
	switch {
	case len(e.parts) == 0:
		e.static = []byte{}
	case len(e.parts) == 1 && !e.parts[0].Operator:
		e.static = []byte(e.parts[0].Text)
	}
	return e
}

// Apply makes the edits in the order remove, set, add.
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
	value := e.static
	if value == nil {
		value = e.expand(v)
	}
	switch {
	case e.field == "host" || e.field == ":authority":
		h.SetAuthority(value)
	case e.field == ":path":
		h.SetPath(value)
	case set:
		h.Set(e.field, value)
	default:
		h.Add(e.name, value)
	}
}

func (e *edit) expand(v Values) []byte {
	value := make([]byte, 0, 128)
	for _, p := range e.parts {
		if p.Operator {
			if out, ok := v.AppendValue(value, p.Text); ok {
				value = out
				continue
			}
			value = append(append(append(value, '%'), p.Text...), '%')
			continue
		}
		value = append(value, p.Text...)
	}
	return value
}
