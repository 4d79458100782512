package attach_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source"
	"github.com/lateen-mesh/lateen/source/attach"
)

// TestStatus compares the objects of each archive with what the status of each says. UPDATE=1 writes it anew.
func TestStatus(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			set := source.New(source.Config{Parameters: func(_, name string) bool { return name == "known" }})
			var want string
			kept := archive.Files[:0]
			for _, f := range archive.Files {
				if filepath.Ext(f.Name) != ".yaml" {
					want = string(f.Data)
					continue
				}
				kept = append(kept, f)
				r := api.Decode(f.Name, f.Data)
				for _, fault := range r.Faults {
					t.Fatal(fault)
				}
				set.Upsert(r.Objects...)
			}
			got := statuses(t, set)
			if os.Getenv("UPDATE") != "" {
				archive.Files = append(kept, txtar.File{Name: "status", Data: []byte(got)})
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func statuses(t *testing.T, set *source.Set) string {
	t.Helper()
	kind := gateway.IPAddressType
	all := set.Attached().Status(func(g *attach.Gateway) *attach.Deployed {
		switch g.Object.Name {
		case "waiting":
			return &attach.Deployed{Waiting: "the Service has no address yet"}
		case "starting":
			return &attach.Deployed{Addresses: []gateway.GatewayStatusAddress{{Type: &kind, Value: "10.0.0.1"}}, Waiting: "no pod is ready"}
		}
		return &attach.Deployed{Addresses: []gateway.GatewayStatusAddress{{Type: &kind, Value: "10.0.0.1"}}, Ready: true}
	})
	var out strings.Builder
	for _, o := range set.Objects() {
		st, ok := all[o.Ref]
		if !ok {
			continue
		}
		text, err := yaml.Marshal(st)
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(o.Ref.String() + "\n")
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, "lastTransitionTime: null") && !strings.Contains(line, `message: ""`) {
				out.WriteString("  " + line)
			}
		}
	}
	return out.String()
}
