package cni

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

// TestChainGolden compares testdata/*.txtar: a list as a network plugin writes it (in), and with ours (out) or why not
// (error). UPDATE=1 writes the latter. Once there the plugin changes nothing, and taken out it leaves nothing.
func TestChainGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no goldens: ", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			in := archive.Files[0].Data
			got := txtar.File{Name: "out"}
			if got.Data, err = chain(in); err != nil {
				got.Name, got.Data = "error", []byte(err.Error()+"\n")
			} else {
				again, err := chain(got.Data)
				if diff := cmp.Diff(string(got.Data), string(again)); err != nil || diff != "" {
					t.Errorf("a second time: %v\n%s", err, diff)
				}
				without, err := unchain(again)
				was, _ := unchain(in)
				if diff := cmp.Diff(string(was), string(without)); err != nil || diff != "" {
					t.Errorf("taken out: %v\n%s", err, diff)
				}
			}
			want := txtar.Format(archive)
			archive.Files = append(archive.Files[:1:1], got)
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(path, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), string(txtar.Format(archive))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestUnchainFirst: also where another installer has put ours in front, or alone.
func TestUnchainFirst(t *testing.T) {
	for in, want := range map[string]string{
		`{"plugins": [{"type": "lateen-cni"}, {"type": "b"}]}`: `{"plugins": [{"type": "b"}]}`,
		`{"plugins": [ {"type": "lateen-cni"} ]}`:              `{"plugins": [  ]}`,
		`{"plugins": []}`: `{"plugins": []}`,
	} {
		if got, err := unchain([]byte(in)); err != nil || string(got) != want {
			t.Errorf("%s: %s %v, want %s", in, got, err, want)
		}
	}
}

// FuzzChain: what comes out is the list that came in with one plugin more at most, and nothing else.
func FuzzChain(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}],"x":[1,2]}`))
	f.Add([]byte("{\"plugins\": [\n {\"type\": \"a\"} ,\n {\"type\": \"lateen-cni\", \"old\": 1}, {}]\n}\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := chain(in)
		if err != nil {
			return
		}
		again, err := chain(out)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("a second time: %v\n%s\n%s", err, out, again)
		}
		before, after := fields(t, in), fields(t, out)
		for _, m := range []map[string]any{before, after} {
			for key := range m {
				if strings.EqualFold(key, "plugins") {
					m[key] = others(m[key])
				}
			}
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Fatalf("(-before +after)\n%s", diff)
		}
	})
}

func fields(t *testing.T, text []byte) (m map[string]any) {
	t.Helper()
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return m
}

// others are the plugins that are not ours.
func others(plugins any) (out []any) {
	for _, p := range plugins.([]any) {
		text, _ := json.Marshal(p)
		var plugin struct{ Type string }
		if json.Unmarshal(text, &plugin) == nil && plugin.Type != Name {
			out = append(out, p)
		}
	}
	return out
}
