package api

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

const (
	faultsFile = "testdata/faults.txtar"
	// minFaults is the least number of inputs that must be refused.
	minFaults = 60
)

// TestFaults compares all that is said about bad and doubtful inputs, with every place and word.
func TestFaults(t *testing.T) {
	archive, err := txtar.ParseFile(faultsFile)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := 0; i+1 < len(archive.Files); i += 2 {
		in, want := archive.Files[i], &archive.Files[i+1]
		t.Run(in.Name, func(t *testing.T) {
			got := said(in.Name, in.Data)
			if strings.Contains(got, "fault ") {
				refused++
			}
			if os.Getenv("UPDATE") != "" {
				want.Data = []byte(got)
			}
			if diff := cmp.Diff(string(want.Data), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if refused < minFaults {
		t.Errorf("only %d inputs are refused, want at least %d", refused, minFaults)
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(faultsFile, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func said(name string, data []byte) string {
	r := Decode(name, data)
	var b bytes.Buffer
	for _, f := range r.Faults {
		fmt.Fprintf(&b, "fault %s\n", f)
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "warning %s\n", w)
	}
	return b.String()
}
