package identity_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Every proxy carries these packages, so what they link is counted in MiB: the
// standard library, one another, and the wire format of protobuf without its
// runtime.
func TestDataPlaneLinksLittle(t *testing.T) {
	allowed := map[string]bool{
		"github.com/lateen-mesh/lateen/identity":         true,
		"github.com/lateen-mesh/lateen/identity/channel": true,
		"google.golang.org/protobuf/encoding/protowire":  true,
	}
	for _, dir := range []string{".", "channel", "agent"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
				continue
			}
			path := filepath.Join(dir, e.Name())
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range file.Imports {
				name, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(name, ".") && !allowed[name] {
					t.Errorf("%s imports %s, which every proxy would carry", path, name)
				}
			}
		}
	}
}
