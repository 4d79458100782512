package api

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of what Decode reads; more is refused.
const (
	// MaxFileBytes is the largest file.
	MaxFileBytes = 4 << 20
	// maxFaults is how many faults, and how many warnings, of a file are told.
	maxFaults = 100
	// maxDepth is how deeply mappings and lists may be nested.
	maxDepth = 64
	// maxAliased is how many nodes of a file may be reached through aliases.
	maxAliased = 10_000
	// maxObjects is the largest number of objects in a file.
	maxObjects = 20_000
)

// reader reads the documents of one file. Paths are texts: "spec.http[2].timeout".
type reader struct {
	file     string
	data     []byte
	faults   []Fault
	warnings []Fault
	aliased  int

	// The document under way.
	object  string
	offset  place // added to positions: a document's own, or a text's inside a document
	prefix  string
	fixed   *place // every position, for a text whose lines cannot be told
	places  map[string]place
	lenient bool // unknown fields are warnings; durations may be 0
	// unjudged leaves it to the caller to say what is not acted on.
	unjudged bool
	// placeless: the objects have no file, so that nothing has a position.
	placeless bool
}

func (r *reader) at(n *yaml.Node) place {
	if r.placeless {
		return place{}
	}
	if r.fixed != nil {
		return *r.fixed
	}
	return place{n.Line + r.offset.line, n.Column + r.offset.column}
}

func (r *reader) fault(at place, path, format string, args ...any) {
	if len(r.faults) < maxFaults {
		r.faults = append(r.faults, r.say(at, path, format, args...))
	}
}

func (r *reader) warn(at place, path, format string, args ...any) {
	if len(r.warnings) < maxFaults {
		r.warnings = append(r.warnings, r.say(at, path, format, args...))
	}
}

func (r *reader) say(at place, path, format string, args ...any) Fault {
	return Fault{File: r.file, Line: at.line, Column: at.column, Object: r.object, Path: r.prefix + path, Message: fmt.Sprintf(format, args...)}
}

// follow returns what an alias stands for; nil if the file's allowance of aliases is used up.
func (r *reader) follow(n *yaml.Node, path string) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		at := r.at(n)
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		r.aliased += weigh(n, maxAliased+1-r.aliased, 0)
		if r.aliased > maxAliased {
			if r.aliased < 2*maxAliased {
				r.fault(at, path, "aliases (*%s …) unfold to more than %d values; write them out", n.Anchor, maxAliased)
			}
			r.aliased = 2 * maxAliased
			return nil
		}
	}
	return n
}

// weigh counts the nodes below n as they would be visited, up to limit.
func weigh(n *yaml.Node, limit, depth int) int {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if depth > maxDepth {
		return limit
	}
	sum := 1
	for _, c := range n.Content {
		if sum >= limit {
			return sum
		}
		sum += weigh(c, limit-sum, depth+1)
	}
	return sum
}

// shallow reports whether n is nested no deeper than allowed; aliases are not followed.
func shallow(n *yaml.Node, depth int) bool {
	if depth > maxDepth {
		return false
	}
	for _, c := range n.Content {
		if !shallow(c, depth+1) {
			return false
		}
	}
	return true
}

// field is one key of a mapping.
type field struct {
	name       string
	key, value *yaml.Node // value is never an alias
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// mapping lists the fields of a mapping, with "<<" merged in; nulls are left out as if absent.
func (r *reader) mapping(n *yaml.Node, path string) []field {
	if n.Kind != yaml.MappingNode {
		r.fault(r.at(n), path, "must be an object with fields, is %s", describe(n))
		return nil
	}
	return slices.DeleteFunc(r.pairs(n, path), func(f field) bool { return isNull(f.value) })
}

// pairs is mapping with the nulls.
func (r *reader) pairs(n *yaml.Node, path string) []field {
	out := make([]field, 0, len(n.Content)/2)
	seen := make(map[string]int, len(n.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge" {
			merges = append(merges, value)
			continue
		}
		if key.Kind != yaml.ScalarNode {
			r.fault(r.at(key), path, "a field's name must be a text")
			continue
		}
		if first, dup := seen[key.Value]; dup {
			r.fault(r.at(key), dot(path, key.Value), "is written twice, first on line %d; remove one", first)
			continue
		}
		seen[key.Value] = r.at(key).line
		if value = r.follow(value, dot(path, key.Value)); value != nil {
			out = append(out, field{key.Value, key, value})
		}
	}
	for _, m := range merges {
		for _, f := range r.merged(m, path) {
			if _, dup := seen[f.name]; !dup {
				seen[f.name] = 0
				out = append(out, f)
			}
		}
	}
	return out
}

func (r *reader) merged(n *yaml.Node, path string) []field {
	if n = r.follow(n, path); n == nil {
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		return r.pairs(n, path)
	case yaml.SequenceNode:
		var out []field
		for _, c := range n.Content {
			if c = r.follow(c, path); c != nil && c.Kind == yaml.MappingNode {
				out = append(out, r.pairs(c, path)...)
			}
		}
		return out
	}
	r.fault(r.at(n), path, "only an object can be merged with <<")
	return nil
}

// list returns the items of a list.
func (r *reader) list(n *yaml.Node, path string) []*yaml.Node {
	if n.Kind != yaml.SequenceNode {
		r.fault(r.at(n), path, "must be a list, is %s; put - before each item", describe(n))
		return nil
	}
	out := make([]*yaml.Node, 0, len(n.Content))
	for i, c := range n.Content {
		p := path + "[" + strconv.Itoa(i) + "]"
		if c = r.follow(c, p); c == nil {
			return out
		}
		if isNull(c) {
			r.fault(r.at(c), p, "is empty; remove the item or fill it in")
			continue
		}
		r.mark(p, c)
		out = append(out, c)
	}
	return out
}

// mark keeps the place of a value.
func (r *reader) mark(path string, n *yaml.Node) { r.places[r.prefix+path] = r.at(n) }

// markField keeps the place of a field: its value if that is a scalar, else its key.
func (r *reader) markField(path string, f field) {
	if f.value.Kind == yaml.ScalarNode {
		r.mark(path, f.value)
		return
	}
	r.mark(path, f.key)
}

func dot(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// describe says what a node is, in words.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!bool":
		return "the truth value " + n.Value
	case "!!int", "!!float":
		return "the number " + n.Value
	}
	text := n.Value
	if len(text) > 60 {
		text = text[:60] + "…"
	}
	return "the text " + strconv.Quote(text)
}

// text reads a string. A date is a text too, as JSON knows no dates.
func (r *reader) text(n *yaml.Node, path string) (string, bool) {
	if n.Kind == yaml.ScalarNode {
		switch n.ShortTag() {
		case "!!str", "!!timestamp":
			return n.Value, true
		case "!!bool", "!!int", "!!float":
			r.fault(r.at(n), path, "must be a text, is %s; put it in quotes: %q", describe(n), n.Value)
			return "", false
		}
	}
	r.fault(r.at(n), path, "must be a text, is %s", describe(n))
	return "", false
}

func (r *reader) truth(n *yaml.Node, path string) (bool, bool) {
	if n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!bool" || n.Style == 0) {
		switch strings.ToLower(n.Value) {
		case "true", "yes", "on":
			return true, true
		case "false", "no", "off":
			return false, true
		}
	}
	r.fault(r.at(n), path, "must be true or false, is %s", describe(n))
	return false, false
}

// whole reads an integer from low to high.
func (r *reader) whole(n *yaml.Node, path string, low int64, high uint64) (int64, uint64, bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" {
		hint := ""
		if _, err := strconv.ParseInt(n.Value, 10, 64); err == nil {
			hint = "; remove the quotes"
		}
		r.fault(r.at(n), path, "must be a whole number, is %s%s", describe(n), hint)
		return 0, 0, false
	}
	digits := strings.ReplaceAll(n.Value, "_", "")
	u, err := strconv.ParseUint(strings.TrimPrefix(digits, "+"), 0, 64)
	if err == nil && u <= high {
		return int64(u), u, true
	}
	i, err := strconv.ParseInt(digits, 0, 64)
	if err == nil && i < 0 && i >= low {
		return i, 0, true
	}
	r.fault(r.at(n), path, "must be a whole number from %d to %d, is %s", low, high, n.Value)
	return 0, 0, false
}

// unknown tells that there is no such field, and which one may be meant.
func (r *reader) unknown(f field, path string, known []string) {
	message := "there is no such field"
	if r.lenient {
		message += ", so that it has no effect"
	}
	if near := nearest(f.name, known); near != "" {
		message += "; did you mean " + near + "?"
	} else if len(known) > 0 && len(known) <= 16 {
		slices.Sort(known)
		message += "; here are " + strings.Join(known, ", ")
	}
	if r.lenient {
		r.warn(r.at(f.key), dot(path, f.name), "%s", message)
		return
	}
	r.fault(r.at(f.key), dot(path, f.name), "%s", message)
}

// nearest is the known name that a user may have meant; "" if none is close.
func nearest(name string, known []string) string {
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s)) }
	best, distance := "", 3
	for _, k := range known {
		d := edits(plain(name), plain(k))
		if d < distance && d*2 < len(k) {
			best, distance = k, d
		}
	}
	return best
}

// edits is the number of letters to insert, remove, replace or swap with a neighbour that lead from a to b.
func edits(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var before, previous, current [65]int
	for j := range len(b) + 1 {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		current[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			current[j] = min(previous[j]+1, current[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				current[j] = min(current[j], before[j-2]+1)
			}
		}
		before, previous = previous, current
	}
	return previous[len(b)]
}
