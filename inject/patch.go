package inject

import (
	"slices"
	"strconv"
	"strings"
)

// Patch is a JSON patch (RFC 6902). Ours adds and removes, and replaces scalars and whole handlers.
type Patch []Operation

// Operation is one step of a Patch.
type Operation struct {
	Op    string `json:"op"`   // add, remove or replace
	Path  string `json:"path"` // JSON pointer (RFC 6901)
	Value any    `json:"value,omitempty"`
}

var pointerEscape = strings.NewReplacer("~", "~0", "/", "~1")

// pointer writes a JSON pointer of keys (string) and positions (int).
func pointer(path []any) string {
	var b strings.Builder
	for _, e := range path {
		b.WriteByte('/')
		switch e := e.(type) {
		case int:
			b.WriteString(strconv.Itoa(e))
		case string:
			b.WriteString(pointerEscape.Replace(e))
		}
	}
	return b.String()
}

func (p *Patch) add(value any, path ...any) {
	*p = append(*p, Operation{"add", pointer(path), value})
}

func (p *Patch) remove(path ...any) { *p = append(*p, Operation{"remove", pointer(path), nil}) }

func (p *Patch) replace(value any, path ...any) {
	*p = append(*p, Operation{"replace", pointer(path), value})
}

// insert puts values into the list at path, which has so many items already, before them or behind. A list without
// items may not be there, or be null: it is made.
func (p *Patch) insert(have int, before bool, values []any, path ...any) {
	if len(values) == 0 {
		return
	}
	if have == 0 {
		p.add(values, path...)
		return
	}
	for i, v := range values {
		at := have + i
		if before {
			at = i
		}
		p.add(v, append(slices.Clone(path), at)...)
	}
}

// put sets keys of the map at path; one without keys is made.
func (p *Patch) put(values map[string]string, have bool, path ...any) {
	if len(values) == 0 {
		return
	}
	if !have {
		p.add(values, path...)
		return
	}
	for _, k := range sortedKeys(values) {
		p.add(values[k], append(slices.Clone(path), k)...)
	}
}
