package kube

import (
	"slices"
	"testing"
)

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
