package lateen_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// attics are folder names that say nothing about what is inside.
var attics = []string{
	"base", "common", "core", "helper", "helpers", "lib", "manager", "misc",
	"model", "models", "pkg", "shared", "types", "util", "utils",
}

// longFile is the number of lines beyond which a file holds more than one thing.
const longFile = 1000

var nakedTODO = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b(?:$|[^(]|\([^#])`)

// TestTidy holds the rules of the house that no linter knows.
func TestTidy(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range layers {
		if !strings.Contains(string(readme), "`"+name+"/`") {
			t.Errorf("README.md: the map does not mention `%s/`", name)
		}
	}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() && slices.Contains(attics, d.Name()):
			t.Errorf("%s: name the folder after what it does", path)
		case strings.HasSuffix(path, ".go") && path != "tidy_test.go":
			tidyFile(t, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func tidyFile(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) > longFile {
		t.Errorf("%s: %d lines; a file over %d holds more than one thing", path, len(lines), longFile)
	}
	for i, line := range lines {
		if nakedTODO.MatchString(line) {
			t.Errorf("%s:%d: a TODO names its issue: TODO(#123): …", path, i+1)
		}
		if strings.Contains(line, "func init()") {
			t.Errorf("%s:%d: work at start belongs to New or Run, not to init", path, i+1)
		}
	}
}

// TestDependencies holds docs/dependencies.md to what go.mod requires directly.
func TestDependencies(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join("docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		line = strings.TrimSpace(strings.TrimPrefix(line, "require "))
		name, version, ok := strings.Cut(line, " ")
		if !ok || !strings.HasPrefix(version, "v") || strings.Contains(version, "// indirect") {
			continue
		}
		if !strings.Contains(string(doc), "| `"+name+"` |") {
			t.Errorf("docs/dependencies.md does not say why %s is needed", name)
		}
	}
}
