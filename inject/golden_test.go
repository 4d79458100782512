package inject

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	kubeyaml "sigs.k8s.io/yaml"
)

// images are what every test's Config needs.
func testConfig() Config {
	return Config{ProxyImage: "lateen/proxy:1", InitImage: "lateen/cni:1"}
}

// TestGolden injects the documents of testdata and compares them, and what is said about them, with what is written
// there; UPDATE=1 writes it. Injecting the result changes nothing any more.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no goldens", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			section := func(name string) []byte {
				if i := slices.IndexFunc(archive.Files, func(f txtar.File) bool { return f.Name == name }); i >= 0 {
					return archive.Files[i].Data
				}
				return nil
			}
			cfg, err := ReadConfig(section("config"))
			if err != nil {
				t.Fatal(err)
			}
			cfg.ProxyImage, cfg.InitImage = firstOf(cfg.ProxyImage, "lateen/proxy:1"), firstOf(cfg.InitImage, "lateen/cni:1")
			in, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			var out, explain strings.Builder
			if err := in.InjectAll(strings.NewReader(string(section("in"))), &out, &explain); err != nil {
				fmt.Fprintf(&explain, "Error: %v\n", err)
			}
			if os.Getenv("UPDATE") != "" {
				archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == "explain" || f.Name == "out" })
				archive.Files = append(archive.Files, txtar.File{Name: "explain", Data: []byte(explain.String())}, txtar.File{Name: "out", Data: []byte(out.String())})
				if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(section("explain")), explain.String()); diff != "" {
				t.Error("explain (-want +got):\n" + diff)
			}
			if diff := cmp.Diff(string(section("out")), out.String()); diff != "" {
				t.Error("out (-want +got):\n" + diff)
			}
			again, _, err := in.Documents([]byte(out.String()))
			if diff := cmp.Diff(out.String(), string(again)); diff != "" || err != nil {
				t.Errorf("injected again (-once +twice): %v\n%s", err, diff)
			}
			samePatch(t, in, section("in"), []byte(out.String()))
		})
	}
}

// samePatch checks that the API server, which applies the patch to JSON, makes of a Pod what Documents makes of it.
func samePatch(t *testing.T, in *Injector, before, after []byte) {
	t.Helper()
	value := func(text []byte) (pod any, raw []byte) {
		raw, err := kubeyaml.YAMLToJSON(text)
		if err != nil || json.Unmarshal(raw, &pod) != nil {
			return nil, nil // several documents
		}
		return pod, raw
	}
	pod, raw := value(before)
	if m, ok := pod.(map[string]any); !ok || m["kind"] != "Pod" || len(after) == 0 {
		return
	}
	result, err := in.Inject(Request{Pod: raw})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(result.Patch)
	if err != nil {
		t.Fatal(err)
	}
	var ops []map[string]any
	if err := json.Unmarshal(text, &ops); err != nil {
		t.Fatal(err)
	}
	for _, op := range ops {
		path := strings.Split(op["path"].(string), "/")[1:]
		pod = applyJSON(t, pod, path, op)
	}
	want, _ := value(after)
	if diff := cmp.Diff(want, pod); diff != "" {
		t.Error("the patch makes another pod than Documents (-documents +patch):\n" + diff)
	}
}

// applyJSON is RFC 6902, as far as our patches go.
func applyJSON(t *testing.T, v any, path []string, op map[string]any) any {
	t.Helper()
	key := strings.ReplaceAll(strings.ReplaceAll(path[0], "~1", "/"), "~0", "~")
	switch v := v.(type) {
	case map[string]any:
		_, have := v[key]
		switch {
		case len(path) > 1:
			v[key] = applyJSON(t, v[key], path[1:], op)
		case op["op"] == "remove" && have:
			delete(v, key)
		case op["op"] == "add" || op["op"] == "replace" && have:
			v[key] = op["value"]
		default:
			t.Fatalf("%v: no such field", op)
		}
		return v
	case []any:
		i, err := strconv.Atoi(key)
		if err != nil || i > len(v) || i == len(v) && (len(path) > 1 || op["op"] != "add") {
			t.Fatalf("%v: no such item", op)
		}
		switch {
		case len(path) > 1:
			v[i] = applyJSON(t, v[i], path[1:], op)
		case op["op"] == "remove":
			v = slices.Delete(v, i, i+1)
		case op["op"] == "add":
			v = slices.Insert(v, i, op["value"])
		default:
			v[i] = op["value"]
		}
		return v
	}
	t.Fatalf("%v: no such place", op)
	return nil
}
