package lateen_test

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/lateen-mesh/lateen"

// layers is the map of the tree in the order in which the data flows. A folder
// may import, of this module, only what stands on its right; an entry with a
// slash is that package alone. Change it in a commit of its own, and say why.
var layers = map[string]string{
	"fair":      "",
	"api":       "",
	"mesh":      "",
	"plan":      "",
	"redirect":  "",
	"inject":    "fair api redirect",
	"cni":       "redirect",
	"telemetry": "",
	"identity":  "telemetry",
	"source":    "fair api mesh",
	"compile":   "mesh plan",
	"xds":       "plan identity telemetry",
	"proxy":     "fair plan xds/native xds/client identity telemetry",
	"control":   "fair api inject source mesh compile plan xds identity telemetry",
	"deploy":    "",
	"cli":       "api inject source mesh plan identity redirect telemetry deploy",
	"cmd":       "control inject cni source/kube cli plan proxy redirect identity deploy/operate",
	"examples":  "",
	"test":      "api source mesh compile plan xds identity redirect telemetry proxy control cli deploy",
}

// budgets names what a folder must never link, however indirectly.
var budgets = map[string][]string{
	"mesh":             {"k8s.io/", "google.golang.org/", "istio.io/", "net/http"},
	"plan":             {"k8s.io/", "google.golang.org/", "istio.io/", "net/http"},
	"compile":          {"k8s.io/", "google.golang.org/", "istio.io/", "github.com/envoyproxy/", "net/http"},
	"redirect":         {"k8s.io/", "google.golang.org/", "istio.io/", "net/http"},
	"proxy":            {"k8s.io/", "istio.io/", "github.com/envoyproxy/", "google.golang.org/grpc"},
	"cmd/lateen":       {"helm.sh/", "k8s.io/client-go"},
	"cmd/lateend":      {"helm.sh/"},
	"cmd/lateen-proxy": {"k8s.io/", "istio.io/", "github.com/envoyproxy/", "google.golang.org/grpc"},
	"cmd/lateen-cni":   {"k8s.io/", "google.golang.org/", "istio.io/", "net/http", "crypto/tls"},
}

type listed struct {
	ImportPath    string
	Imports, Deps []string
	Module        *struct{ Main bool }
}

func TestLayers(t *testing.T) {
	// Touch every folder, so that the test cache notices an edit anywhere: it cannot see what the go command reads.
	if err := filepath.WalkDir(".", func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range list(t) {
		from := inside(p.ImportPath)
		if from == "" {
			continue
		}
		top, _, _ := strings.Cut(from, "/")
		seen[top] = true
		allowed, ok := layers[top]
		if !ok {
			t.Errorf("%s: top-level folder %q is not in layers; say where in the flow it stands", p.ImportPath, top)
			continue
		}
		for _, imp := range p.Imports {
			if to := inside(imp); to != "" && !permitted(top, to, strings.Fields(allowed)) {
				t.Errorf("%s imports %s: %s may import only [%s]", p.ImportPath, imp, top, allowed)
			}
		}
		for folder, bad := range budgets {
			if from != folder && !strings.HasPrefix(from, folder+"/") {
				continue
			}
			for _, dep := range p.Deps {
				if slices.ContainsFunc(bad, func(b string) bool { return strings.HasPrefix(dep, b) }) {
					t.Errorf("%s links %s, which %s must not reach", p.ImportPath, dep, folder)
				}
			}
		}
	}
	for name := range layers {
		if !seen[name] {
			t.Errorf("layers names %q, which has no Go package", name)
		}
	}
}

func permitted(top, to string, allowed []string) bool {
	if to == top || strings.HasPrefix(to, top+"/") {
		return true
	}
	return slices.ContainsFunc(allowed, func(a string) bool { return to == a || strings.HasPrefix(to, a+"/") })
}

func list(t *testing.T) []listed {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Imports,Deps,Module", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Module != nil && p.Module.Main {
			all = append(all, p)
		}
	}
}

// inside is the path of a package below the module's root, or "".
func inside(path string) string {
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	return rest
}
