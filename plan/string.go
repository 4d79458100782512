package plan

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// text builds an indented text, one thing on each line.
type text struct {
	b     strings.Builder
	depth int
}

func (t *text) line(format string, args ...any) {
	t.b.WriteString(strings.Repeat("  ", t.depth))
	fmt.Fprintf(&t.b, format, args...)
	t.b.WriteByte('\n')
}

// optional writes a line of a name and what is set of some values; none if nothing is set.
func (t *text) optional(name string, set words) {
	if len(set) > 0 {
		t.line("%s %s", name, set)
	}
}

func (t *text) in(f func()) {
	t.depth++
	f()
	t.depth--
}

// words are parts of a sentence.
type words []string

// String joins the parts with commas.
func (w words) String() string { return strings.Join(w, ", ") }

// and joins the parts of a conjunction.
func (w words) and() string { return strings.Join(w, " and ") }

// when adds a text if a condition holds.
func (w *words) when(condition bool, text string) {
	if condition {
		*w = append(*w, text)
	}
}

// add adds a name and its value, unless the value is zero or an empty text.
func (w *words) add(name string, value any) {
	v := reflect.ValueOf(value)
	if v.IsZero() || v.Kind() == reflect.Slice && v.Len() == 0 {
		return
	}
	shown := fmt.Sprint(value)
	if v.Kind() == reflect.Slice {
		shown = strings.Join(texts(v), ",")
	}
	if shown != "" {
		*w = append(*w, strings.TrimPrefix(name+" "+shown, " "))
	}
}

func texts(slice reflect.Value) []string {
	out := make([]string, slice.Len())
	for i := range out {
		out[i] = fmt.Sprint(slice.Index(i).Interface())
	}
	return out
}

// from is " <- origin" or nothing.
func from(o Origin) string {
	if o == (Origin{}) {
		return ""
	}
	return "  <- " + o.String()
}

// String is "name.namespace (host)" as far as it is known.
func (s ServiceName) String() string {
	out := s.Name
	if s.Namespace != "" {
		out += "." + s.Namespace
	}
	if s.Host != "" {
		out += " (" + s.Host + ")"
	}
	return strings.TrimPrefix(out, " ")
}

// String is for example "prefix /api" or "= /login".
func (m StringMatch) String() string {
	s := m.Kind.String()
	if m.Value != "" {
		s += " " + m.Value
	}
	if m.IgnoreCase {
		s += " (any case)"
	}
	return s
}

// String is for example `end-user = jason` or `not x-debug present`.
func (h HeaderMatch) String() string {
	not := ""
	if h.Invert {
		not = "not "
	}
	return not + h.Name + " " + h.Value.String()
}

// String is "name: value".
func (h Header) String() string { return h.Name + ": " + h.Value }

// String lists the edits, in the order in which they are made.
func (e HeaderEdits) String() string {
	var w words
	w.add("remove", e.Remove)
	w.add("set", e.Set)
	w.add("add", e.Add)
	return w.String()
}

// String is the cluster's name, with the weight and what is particular to it.
func (c WeightedCluster) String() string {
	var w words
	w.add("request headers", c.Request)
	w.add("response headers", c.Response)
	out := c.Cluster
	if c.Weight > 0 {
		out += " weight " + strconv.Itoa(int(c.Weight))
	}
	if len(w) > 0 {
		out += " (" + w.String() + ")"
	}
	return out
}

// String prints one endpoint on each line.
func (e *Endpoints) String() string {
	t := &text{}
	t.line("endpoints %s (%d)", e.Name, len(e.Endpoints))
	t.in(func() {
		for i := range e.Endpoints {
			t.line("%s", &e.Endpoints[i])
		}
	})
	return t.b.String()
}

// String is for example "10.0.0.7:9080 healthy, mtls, workload reviews-v1.default".
func (e *Endpoint) String() string {
	at := e.Address.String()
	if e.Host != "" || e.Port != 0 {
		at = e.Host + ":" + strconv.Itoa(int(e.Port))
	}
	w := words{at + " " + e.Health.String()}
	w.when(e.MTLS, "mtls")
	w.when(e.Tunnel != TunnelNone, e.Tunnel.String())
	w.add("weight", e.Weight)
	w.add("locality", e.Locality)
	w.add("network", e.Network)
	w.add("identity", e.Identity)
	w.add("workload", e.Workload)
	return w.String()
}

// String is "name.namespace" with what telemetry knows of it.
func (w Workload) String() string {
	var out words
	out.add("", strings.TrimSuffix(w.Name+"."+w.Namespace, "."))
	out.add("app", w.App)
	out.add("version", w.Version)
	out.add("canonical name", w.CanonicalName)
	out.add("revision", w.CanonicalRevision)
	out.add("cluster", w.Cluster)
	return strings.Join(out, " ")
}

// String is the answer on one line.
func (n *Name) String() string {
	var w words
	w.add("", n.Addresses)
	if len(w) == 0 {
		w = words{"no address"}
	}
	return fmt.Sprintf("name %s: %s\n", n.Name, w)
}

// String tells what is there, never the key itself.
func (s *Secret) String() string {
	return fmt.Sprintf("secret %s: chain %d bytes, key %t, roots %d bytes\n", s.Name, len(s.Chain), len(s.Key) > 0, len(s.Roots))
}

// String is "host:port" with what is known of the endpoint there.
func (a Address) String() string {
	w := words{a.Host + ":" + strconv.Itoa(int(a.Port))}
	w.add("weight", a.Weight)
	w.add("locality", a.Locality)
	return strings.Join(w, " ")
}
