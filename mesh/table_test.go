package mesh

import (
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTable edits a table and a map alike, in batches, and finds every earlier table as it was.
func TestTable(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var now table[int, int]
	model := map[int]int{}
	type version struct {
		table table[int, int]
		model map[int]int
	}
	var versions []version
	for range 200 {
		var own owned[int, int]
		for range random.IntN(60) {
			k, v := random.IntN(500), random.Int()
			if random.IntN(3) == 0 {
				now = now.without(k, &own)
				delete(model, k)
			} else {
				now = now.with(k, v, &own)
				model[k] = v
			}
		}
		versions = append(versions, version{now, maps.Clone(model)})
	}
	for i, v := range versions {
		if v.table.len != len(v.model) {
			t.Fatalf("version %d has %d entries, want %d", i, v.table.len, len(v.model))
		}
		got := map[int]int{}
		for k := range 500 {
			if x, ok := v.table.get(k); ok {
				got[k] = x
			}
		}
		if diff := cmp.Diff(v.model, got); diff != "" {
			t.Fatalf("version %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestEmptyTable(t *testing.T) {
	var none table[string, int]
	if _, ok := none.get("x"); ok {
		t.Error("an empty table has an entry")
	}
	var own owned[string, int]
	if got := none.without("x", &own); got.len != 0 || own.root {
		t.Error("removing what is not there changes something")
	}
}
