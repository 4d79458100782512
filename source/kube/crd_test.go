package kube

import (
	"slices"
	"strings"
	"testing"
)

func (s *apiServer) defineOne(c custom) {
	s.put(definitionText(c, c.versions))
}

// definitionText is the definition of a kind that is served in some versions, unless conditions say that it is not.
func definitionText(c custom, versions []string, conditions ...any) object {
	var list []any
	for _, name := range versions {
		list = append(list, object{"name": name, "served": true})
	}
	return object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": object{"name": c.definition()},
		"spec": object{"versions": list}, "status": object{"conditions": conditions},
	}
}

// servesIn reports whether a kind is defined, and served in a version.
func (s *apiServer) servesIn(c custom, version string) bool {
	d := s.get("CustomResourceDefinition", "/"+c.definition())
	if d == nil {
		return false
	}
	status, _ := d["status"].(object)
	conditions, _ := status["conditions"].([]any)
	spec, _ := d["spec"].(object)
	versions, _ := spec["versions"].([]any)
	return slices.ContainsFunc(versions, func(v any) bool { return v.(object)["name"] == version }) &&
		!slices.ContainsFunc(conditions, func(c any) bool { return c.(object)["type"] == "Established" && c.(object)["status"] == "False" })
}

// TestDefinitionsAmidATurn: definitions that come after a turn has looked for them are not lost, and nothing is in force
// before the objects of what they define were read.
func TestDefinitionsAmidATurn(t *testing.T) {
	s, err := Open(Config{Cluster: newServer(t).cluster()})
	if err != nil {
		t.Fatal(err)
	}
	var started []string
	start := func(f *feed) { started = append(started, f.name) }
	turn := func() { s.turn(start) }
	for _, f := range s.feeds {
		if f != s.crds {
			if err := f.Replace(nil, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	turn()
	// Now they come, where follow has looked already.
	if err := s.crds.Replace([]any{&entry{key{Name: customs[0].definition()}, true}}, ""); err != nil {
		t.Fatal(err)
	}
	if s.complete() {
		t.Error("all is taken for read before the kinds that are defined are watched")
	}
	turn()
	if !slices.Equal(started, []string{customs[0].definition()}) || s.inForce {
		t.Errorf("watched is %v, in force: %t", started, s.inForce)
	}
	// One that comes when all is in force waits for the next turn.
	for _, f := range s.feeds {
		if f.name == customs[0].definition() {
			if err := f.Replace(nil, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	turn()
	if !s.inForce {
		t.Error("not in force when all was read")
	}
}

// TestUnserved: a kind that is served in no version that is read holds nothing up, which is told, and is read when it is
// served. One that should be served and is not yet is waited for.
func TestUnserved(t *testing.T) {
	rules, policies := customs[1], customs[10]
	condition := func(kind, status string) any { return object{"type": kind, "status": status, "message": "a conflict"} }
	for _, tt := range []struct {
		name       string
		of         custom
		definition object
		fault      string
		waits      bool
	}{
		{"another version", rules, definitionText(rules, []string{"v9"}), "its definition has [v9]", false},
		{"no version", rules, definitionText(rules, nil), "its definition has []", false},
		{"names of another", rules, definitionText(rules, rules.versions, condition("NamesAccepted", "False"), condition("Established", "False")), "a conflict", false},
		{"policies' names of another", policies, definitionText(policies, policies.versions, condition("NamesAccepted", "False"), condition("Established", "False")), "a conflict", false},
		{"policies in another version", policies, definitionText(policies, []string{"v9"}), "its definition has [v9]", true},
		{"a moment old", rules, definitionText(rules, rules.versions, condition("NamesAccepted", "True"), condition("Established", "False")), "not served yet", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t)
			s.defineOne(rules)
			s.put(tt.definition)
			s.apply(ruleText("a", "7"))
			r := follow(t, s)
			r.await("the fault", func() bool {
				faults := r.Status().Faults
				return len(faults) == 1 && faults[0].Object == tt.of.definition() && strings.Contains(faults[0].Message, tt.fault)
			})
			if !tt.waits {
				r.read()
			}
			r.mu.Lock()
			calls := r.calls
			r.mu.Unlock()
			if tt.waits && calls > 0 {
				t.Error("something was told although rules may be there")
			}
			s.defineOne(tt.of)
			r.await("the rule", func() bool { return r.limit("a") == 7 && len(r.Status().Faults) == 0 })
		})
	}
}
