package api

import (
	"os"
	"strings"
	"testing"
)

// TestRules: what the schemas of Istio's kinds refuse, we refuse as well. test/kubevalidate asks an API server whether
// these are its answers, and whether they are all.
func TestRules(t *testing.T) {
	text, err := os.ReadFile("testdata/rules.txt")
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), " | ", 3)
		k := kinds()[parts[0]]
		r := Decode("x.yaml", []byte("apiVersion: "+k.group+"/"+k.versions[0]+"\nkind: "+parts[0]+"\nmetadata: {name: a}\nspec: "+parts[1]+"\n"))
		if (len(r.Faults) > 0) != (parts[2] != "") {
			t.Errorf("%s: %v", line, r.Faults)
		}
		refused += len(r.Faults)
	}
	if refused == 0 {
		t.Error("nothing is refused")
	}
}
