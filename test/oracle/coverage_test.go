package oracle

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/compile"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/source"
)

// TestCoverage: every field of a plan, and every value of its enumerations, is ordered by some world, or stands in
// uncovered.txt with the reason why none does. It asks the compiler, not the proxies.
func TestCoverage(t *testing.T) {
	c := coverage{}
	for _, k := range plan.Kinds() {
		if k != plan.KindName && k != plan.KindSecret {
			c.declare(kindType(k), map[reflect.Type]bool{})
		}
	}
	base, err := os.ReadFile("testdata/base.yaml")
	if err != nil {
		t.Fatal(err)
	}
	certs, err := newCertificates()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range readWorlds(t, "*", certs.replacer) {
		for _, res := range plansOf(t, w.name, string(base), w.yaml) {
			c.walk(reflect.ValueOf(res).Elem(), "")
		}
	}
	excused := readUncovered(t)
	for name, seen := range c {
		switch _, listed := excused[name]; {
		case !seen && !listed:
			t.Errorf("%s: no world orders it; write one, or say in uncovered.txt why not", name)
		case seen && listed:
			t.Errorf("uncovered.txt lists %s, which a world orders", name)
		}
		delete(excused, name)
	}
	for name := range excused {
		t.Errorf("uncovered.txt lists %s, which no plan has", name)
	}
}

// coverage tells of each field ("Rule.Timeout") and each value of an enumeration ("TLSMode strict") whether it was seen.
type coverage map[string]bool

func kindType(k plan.Kind) reflect.Type {
	return map[plan.Kind]reflect.Type{
		plan.KindCluster: reflect.TypeFor[plan.Cluster](), plan.KindEndpoints: reflect.TypeFor[plan.Endpoints](),
		plan.KindListener: reflect.TypeFor[plan.Listener](), plan.KindRoute: reflect.TypeFor[plan.Route](),
	}[k]
}

// ours reports whether a type is a struct of the plan; Origin tells of the YAML only.
func ours(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t.PkgPath() == reflect.TypeFor[plan.Route]().PkgPath() && t != reflect.TypeFor[plan.Origin]()
}

// declare notes all that can be ordered by a type.
func (c coverage) declare(t reflect.Type, known map[reflect.Type]bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if known[t] {
		return
	}
	known[t] = true
	for _, value := range valuesOf(t) {
		c[value] = false
	}
	if ours(t) {
		for f := range t.Fields() {
			if f.Type != reflect.TypeFor[plan.Origin]() {
				c[t.Name()+"."+f.Name] = false
				c.declare(f.Type, known)
			}
		}
	}
}

// valuesOf names the values of an enumeration of the plan: those from 0 on that have a name of their own.
func valuesOf(t reflect.Type) []string {
	var out []string
	if t == reflect.TypeFor[plan.RetryOn]() {
		for _, name := range plan.RetryOnNames {
			out = append(out, "RetryOn "+name)
		}
	}
	if t.Kind() == reflect.Uint8 && t.Implements(reflect.TypeFor[fmt.Stringer]()) {
		for i := range uint64(plan.MatchPath) + 8 {
			name := nameOf(t, i)
			if name == "" {
				break
			}
			out = append(out, name)
		}
	}
	return out
}

// nameOf names a value of an enumeration; empty if it has none, where String may panic or write a number.
func nameOf(t reflect.Type, value uint64) (name string) {
	defer func() {
		if recover() != nil {
			name = ""
		}
	}()
	v := reflect.New(t).Elem()
	v.SetUint(value)
	text := v.Interface().(fmt.Stringer).String()
	if strings.HasSuffix(text, fmt.Sprintf("(%d)", value)) {
		return ""
	}
	return t.Name() + " " + text
}

// walk notes what a value orders. in is the name of the field that it stands in.
func (c coverage) walk(v reflect.Value, in string) {
	t := v.Type()
	switch {
	case t == reflect.TypeFor[plan.RetryOn]():
		for i, name := range plan.RetryOnNames {
			if v.Uint()&(1<<i) != 0 {
				c["RetryOn "+name] = true
			}
		}
	case t.Kind() == reflect.Pointer && !v.IsNil():
		c.walk(v.Elem(), in)
	case t.Kind() == reflect.Slice:
		for i := range v.Len() {
			c.walk(v.Index(i), in)
		}
	case ours(t):
		for i := range t.NumField() {
			name := t.Name() + "." + t.Field(i).Name
			if _, declared := c[name]; declared {
				c[name] = c[name] || !v.Field(i).IsZero()
				c.walk(v.Field(i), name)
			}
		}
	case t.Kind() == reflect.Uint8 && t.Implements(reflect.TypeFor[fmt.Stringer]()):
		if name := nameOf(t, v.Uint()); name != "" {
			c[name] = true
		}
	}
}

// plansOf compiles what the three proxies of a rig are ordered in a world.
func plansOf(t *testing.T, name, base, yaml string) []plan.Resource {
	t.Helper()
	set, builder := source.New(source.Config{}), mesh.NewBuilder()
	for _, text := range []string{base, yaml} {
		r := api.Decode(name+".yaml", []byte(text))
		for _, f := range r.Faults {
			t.Fatalf("%s: %v", name, f)
		}
		builder.Apply(set.Upsert(r.Objects...))
	}
	var out []plan.Resource
	for _, p := range []struct {
		name string
		role compile.Role
	}{{"client", compile.Sidecar}, {"server", compile.Sidecar}, {"gateway", compile.Gateway}} {
		address := map[string]string{"client": clientAddress, "server": serverAddress, "gateway": gatewayAddr}[p.name]
		w := &mesh.Workload{
			Namespace: "default", ID: p.name, WorkloadName: p.name, Addresses: []netip.Addr{netip.MustParseAddr(address)},
			Labels: mesh.Labels{"app": p.name}, MTLS: true, ServiceAccount: p.name, CanonicalName: p.name, CanonicalRevision: "latest",
			Ports: map[string]uint16{"http": 8080},
		}
		builder.Apply([]mesh.Change{{Ref: w.Ref(), Object: w}})
		who := compile.Asker{Role: p.role, Namespace: "default", Workload: p.name, Labels: w.Labels}
		view := mesh.NewView(builder.Snapshot())
		ask := func(k plan.Kind, name string) plan.Resource {
			res, _ := compile.Compile(view, &who, k, name)
			if res != nil {
				out = append(out, res)
			}
			return res
		}
		for _, n := range compile.Names(view, &who, plan.KindCluster) {
			ask(plan.KindCluster, n)
			ask(plan.KindEndpoints, n)
		}
		for _, n := range compile.Names(view, &who, plan.KindListener) {
			l, ok := ask(plan.KindListener, n).(*plan.Listener)
			if !ok {
				continue
			}
			for _, c := range l.Chains {
				if c.HTTP != nil && c.HTTP.Route != "" {
					ask(plan.KindRoute, c.HTTP.Route)
				}
			}
		}
	}
	return out
}

// readUncovered reads lines "NAME: reason".
func readUncovered(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("uncovered.txt")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.SplitSeq(string(text), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, ok := strings.Cut(line, ": ")
		if !ok || reason == "" || out[name] != "" {
			t.Fatalf("uncovered.txt: %q: want NAME: reason, and each once", line)
		}
		out[name] = reason
	}
	return out
}
