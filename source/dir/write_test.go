package dir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source"
)

// tree is everything below a folder: texts by path, "/" for a folder.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			out[strings.TrimPrefix(p, dir)+"/"] = ""
			return err
		}
		text, err := os.ReadFile(p)
		out[strings.TrimPrefix(p, dir)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestAllOrNothing applies and deletes several objects of which one cannot be written: nothing is left of the others.
func TestAllOrNothing(t *testing.T) {
	changed := strings.Replace(service("b"), "80", "81", 1)
	inShop := strings.Replace(service("n"), "name: n", "name: n\n  namespace: shop", 1)
	long := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " + strings.Repeat("v.", 125) + "v}\n" +
		"spec: {hosts: [x], http: [{directResponse: {status: 418}}]}\n"
	for _, tt := range []struct {
		name, docs string
		prepare    func(dir string) error
	}{
		{"a file name that is too long", service("a") + "---\n" + changed + "---\n" + inShop + "---\n" + long, nil},
		{"a folder in the place of a file", service("a") + "---\n" + changed + "---\n" + service("c"), func(dir string) error {
			return os.MkdirAll(filepath.Join(dir, "default", "service-c.yaml", "x"), 0o755)
		}},
		{"a file in the place of a folder", service("a") + "---\n" + changed + "---\n" + inShop, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "shop"), nil, 0o600)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, service("b"), dir, "default", "service-b.yaml")
			if tt.prepare != nil {
				if err := tt.prepare(dir); err != nil {
					t.Fatal(err)
				}
			}
			b := open(t, dir, "")
			before := tree(t, dir)
			_, faults, _ := b.Apply([]byte(tt.docs), "stdin", false)
			if len(faults) != 1 || !strings.HasPrefix(faults[0].Message, "nothing was changed, because") {
				t.Errorf("faults %v", faults)
			}
			if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
				t.Errorf("the folder differs:\n%s", diff)
			}
			if s := b.Status(); s.Objects != 1 || len(s.Faults) > 0 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// TestUndo takes a change, a new file and a removal back, after a step that fails.
func TestUndo(t *testing.T) {
	dir := t.TempDir()
	put(t, "one", dir, "one.yaml")
	put(t, "two", dir, "two.yaml")
	before := tree(t, dir)
	var x exchange
	err := errors.Join(x.stage(filepath.Join(dir, "one.yaml"), []byte("uno"), modePublic), x.stageRemoval(filepath.Join(dir, "two.yaml")),
		x.stage(filepath.Join(dir, "new", "three.yaml"), []byte("tre"), modePublic))
	if err != nil {
		t.Fatal(err)
	}
	x.steps = append(x.steps, step{name: filepath.Join(dir, "four.yaml"), new: filepath.Join(dir, "not there")})
	if err := x.place(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("place: %v", err)
	}
	x.clean()
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("the folder differs:\n%s", diff)
	}
}

// TestFindingsOfAChange: whoever applies hears of what is odd about the objects, at their place in what was sent, and
// of what the change brings elsewhere, but not again of the rest.
func TestFindingsOfAChange(t *testing.T) {
	b := open(t, t.TempDir(), "")
	route := func(name, host string) string {
		return "# a comment\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " + name + "}\n" +
			"spec:\n  hosts: [x." + name + "]\n  http:\n  - route:\n    - destination: {host: " + host + "}\n"
	}
	told := func(list []source.Finding) string {
		var out []string
		for _, f := range list {
			out = append(out, strings.TrimPrefix(f.File, b.dir)+" "+f.Object+" "+f.Code)
			if f.Line == 0 {
				t.Errorf("%s has no line", f)
			}
		}
		return strings.Join(out, ", ")
	}
	const odd, other = "VirtualService default/odd IST0101", "VirtualService default/other IST0101"
	for range 2 { // also of what is unchanged
		_, faults, findings := b.Apply([]byte(service("there")+"---\n"+route("odd", "nobody")), "mine.yaml", false)
		if got := told(findings); got != "mine.yaml "+odd || len(faults) > 0 || findings[0].Line <= 9 {
			t.Errorf("applied with %q %v", findings, faults)
		}
	}
	if _, _, findings := b.Apply([]byte(route("other", "there")), "mine.yaml", false); len(findings) > 0 {
		t.Errorf("another's oddity is told again: %v", findings)
	}
	for _, dry := range []bool{true, false} {
		_, _, findings := b.Delete([]api.Ref{{Kind: api.KindService, Namespace: "default", Name: "there"}}, dry)
		if got := told(findings); got != "/default/virtualservice-other.yaml "+other {
			t.Errorf("deleted (dry %t) with %q", dry, got)
		}
	}
}

// TestAdmit refuses a new object; one that is there may be changed.
func TestAdmit(t *testing.T) {
	dir := t.TempDir()
	put(t, service("a"), dir, "a.yaml")
	b := open(t, dir, "")
	b.config.Admit = func(o *api.Object) error { return errors.New("no room for " + o.Name) }
	b.apply(t, strings.Replace(service("a"), "80", "81", 1), false)
	_, faults, _ := b.Apply([]byte(service("b")), "stdin", true)
	if len(faults) != 1 || faults[0].Message != "no room for b" || faults[0].File != "stdin" || faults[0].Line != 1 {
		t.Errorf("faults %v", faults)
	}
}
