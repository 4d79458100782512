package api

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
)

// TestBookinfo decodes every file of the example, and each object again from its own encoding.
func TestBookinfo(t *testing.T) {
	files, err := filepath.Glob("../examples/bookinfo/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got := Decode(file, data)
		if len(got.Objects) == 0 || len(got.Faults)+len(got.Warnings) > 0 {
			t.Errorf("%s: %d objects, faults %v, warnings %v", file, len(got.Objects), got.Faults, got.Warnings)
		}
		for _, o := range got.Objects {
			roundTrip(t, o)
		}
	}
}

func roundTrip(t *testing.T, o *Object) {
	t.Helper()
	text, err := Encode(o)
	if err != nil {
		t.Fatal(err)
	}
	again := Decode("again.yaml", text)
	if len(again.Faults) > 0 || len(again.Objects) != 1 {
		t.Fatalf("decode what was encoded: %v\n%s", again.Faults, text)
	}
	if diff := cmp.Diff(o.Spec, again.Objects[0].Spec, protocmp.Transform()); diff != "" {
		t.Errorf("%s changed (-before +after):\n%s", o.Ref, diff)
	}
	second, err := Encode(again.Objects[0])
	if err != nil || string(second) != string(text) {
		t.Errorf("%s: the second encoding differs (%v):\n%s\nfirst:\n%s", o.Ref, err, second, text)
	}
}
