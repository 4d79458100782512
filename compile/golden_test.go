package compile_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/compile"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/source"
)

// world is a mesh made of YAML.
type world struct {
	set     *source.Set
	builder *mesh.Builder
}

func newWorld() *world {
	return &world{source.New(source.Config{}), mesh.NewBuilder()}
}

func (w *world) apply(t testing.TB, file string, text []byte) (*mesh.Snapshot, []mesh.Dep) {
	t.Helper()
	r := api.Decode(file, text)
	for _, f := range r.Faults {
		t.Fatal(f)
	}
	return w.builder.Apply(w.set.Upsert(r.Objects...))
}

// TestGoldens compiles what the file "ask" of each archive asks of the mesh that its YAML describes. A line
// "as role namespace/workload label=value @locality" says who asks from there on, "kind name" asks for a resource, and
// "names kind" for the list of names. UPDATE=1 writes the answers anew.
func TestGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld()
			var ask, want []byte
			kept := archive.Files[:0]
			for _, f := range archive.Files {
				switch {
				case filepath.Ext(f.Name) == ".yaml":
					w.apply(t, f.Name, f.Data)
				case f.Name == "ask":
					ask = f.Data
				default:
					want = f.Data
					continue
				}
				kept = append(kept, f)
			}
			got := answers(t, w.builder.Snapshot(), ask)
			if os.Getenv("UPDATE") != "" {
				archive.Files = append(kept, txtar.File{Name: "plan", Data: got})
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// answers runs the script of a golden. The cache has to answer as Compile does.
func answers(t *testing.T, snap *mesh.Snapshot, script []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	cache := compile.NewCache()
	cache.Set(snap, nil)
	var who compile.Asker
	for lines := bufio.NewScanner(bytes.NewReader(script)); lines.Scan(); {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "", "#":
			continue
		case "as":
			who = parseAsker(t, rest)
			fmt.Fprintf(&out, "%s\n\n", lines.Text())
			continue
		case "names":
			list := compile.Names(mesh.NewView(snap), &who, kindOf(t, rest))
			fmt.Fprintf(&out, "%s\n", lines.Text())
			for _, n := range list {
				fmt.Fprintf(&out, "  %s\n", n)
			}
			fmt.Fprintln(&out)
			if !slices.Equal(list, cache.Names(cache.ScopeOf(who), kindOf(t, rest))) {
				t.Errorf("%s: the cache answers otherwise", lines.Text())
			}
			continue
		}
		kind := kindOf(t, verb)
		res, _ := compile.Compile(mesh.NewView(snap), &who, kind, rest)
		if res == nil {
			fmt.Fprintf(&out, "%s %s: none\n\n", kind, rest)
		} else {
			fmt.Fprintf(&out, "%s\n", res)
			if res.ResourceName() != rest || res.ResourceKind() != kind {
				t.Errorf("%s: the answer is called %s %s", lines.Text(), res.ResourceKind(), res.ResourceName())
			}
		}
		if diff := cmp.Diff(res, cache.Get(compile.Key{Scope: cache.ScopeOf(who), Kind: kind, Name: rest}), values...); diff != "" {
			t.Errorf("%s (-compiled +cached):\n%s", lines.Text(), diff)
		}
	}
	return out.Bytes()
}

func kindOf(t *testing.T, name string) plan.Kind {
	t.Helper()
	i := slices.IndexFunc(plan.Kinds(), func(k plan.Kind) bool { return k.String() == name })
	if i < 0 {
		t.Fatalf("the script asks for a %q", name)
	}
	return plan.Kinds()[i]
}

func parseAsker(t *testing.T, text string) compile.Asker {
	t.Helper()
	fields := strings.Fields(text)
	roles := map[string]compile.Role{"sidecar": compile.Sidecar, "gateway": compile.Gateway, "grpc": compile.GRPC}
	role, ok := roles[fields[0]]
	if !ok || len(fields) < 2 {
		t.Fatalf("nobody asks as %q", text)
	}
	who := compile.Asker{Role: role, Labels: mesh.Labels{}}
	who.Namespace, who.Workload, _ = strings.Cut(fields[1], "/")
	for _, f := range fields[2:] {
		if locality, ok := strings.CutPrefix(f, "@"); ok {
			who.Locality = locality
			continue
		}
		k, v, _ := strings.Cut(f, "=")
		who.Labels[k] = v
	}
	return who
}
