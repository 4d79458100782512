package source

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

func decode(t testing.TB, file, text string) []*api.Object {
	t.Helper()
	r := api.Decode(file, []byte(text))
	for _, f := range r.Faults {
		t.Fatal(f)
	}
	return r.Objects
}

// TestBookinfo applies the example file by file: each is understood, and applying it again changes nothing.
func TestBookinfo(t *testing.T) {
	files, err := filepath.Glob("../examples/bookinfo/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	s := New(Config{})
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		objects := decode(t, file, string(text))
		if len(s.Upsert(objects...)) == 0 {
			t.Errorf("%s changes nothing", file)
		}
		if again := s.Upsert(decode(t, file, string(text))...); len(again) > 0 {
			t.Errorf("%s: applied again it changes %v", file, again)
		}
	}
	if found := s.Findings(); len(found) > 0 {
		t.Errorf("findings: %v", found)
	}
	b := mesh.NewBuilder()
	b.Apply(s.Replace(nil))
	if len(s.Objects()) > 0 {
		t.Error("objects stay behind")
	}
}
