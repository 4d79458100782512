package source

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/lateen-mesh/lateen/mesh"
)

// TestGoldens compares YAML with the picture that it makes and the findings about it. UPDATE=1 writes them anew.
func TestGoldens(t *testing.T) {
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
			s := New(Config{})
			var changes []mesh.Change
			kept := archive.Files[:0]
			want := map[string]string{}
			for _, f := range archive.Files {
				if filepath.Ext(f.Name) != ".yaml" {
					want[f.Name] = string(f.Data)
					continue
				}
				kept = append(kept, f)
				changes = append(changes, s.Upsert(decode(t, f.Name, string(f.Data))...)...)
			}
			var picture, findings bytes.Buffer
			for _, c := range changes {
				fmt.Fprintf(&picture, "%s\n", c.Ref)
				show(&picture, "  ", reflect.ValueOf(c.Object).Elem())
			}
			for _, f := range s.Findings() {
				fmt.Fprintln(&findings, f)
			}
			got := map[string]string{"picture": picture.String(), "findings": findings.String()}
			if os.Getenv("UPDATE") != "" {
				archive.Files = append(kept, txtar.File{Name: "picture", Data: picture.Bytes()}, txtar.File{Name: "findings", Data: findings.Bytes()})
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

// show prints a value's fields that are set, one a line, in the order of their declaration.
func show(b *bytes.Buffer, indent string, v reflect.Value) {
	if text, ok := plain(v); ok {
		fmt.Fprintf(b, "%s%s\n", indent, text)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Field(i)
			if f.IsZero() {
				continue
			}
			child(b, indent, v.Type().Field(i).Name+":", f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			child(b, indent, "-", v.Index(i))
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, c reflect.Value) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(c)) })
		for _, k := range keys {
			child(b, indent, fmt.Sprint(k)+":", v.MapIndex(k))
		}
	case reflect.Pointer:
		show(b, indent, v.Elem())
	}
}

func child(b *bytes.Buffer, indent, head string, v reflect.Value) {
	if text, ok := plain(v); ok {
		fmt.Fprintf(b, "%s%s %s\n", indent, head, text)
		return
	}
	fmt.Fprintf(b, "%s%s\n", indent, head)
	show(b, indent+"  ", v)
}

// plain is a value on one line, if it is a simple one.
func plain(v reflect.Value) (string, bool) {
	switch x := v.Interface().(type) {
	case mesh.Origin:
		return fmt.Sprintf("%s %s/%s %s:%d", x.Kind, x.Namespace, x.Name, x.File, x.Line), true
	case netip.Addr, netip.Prefix, time.Duration, mesh.Protocol:
		return fmt.Sprint(x), true
	case []byte:
		return fmt.Sprintf("%d bytes", len(x)), true
	case mesh.Labels, []string, []uint16, []netip.Prefix, []netip.Addr, map[string]uint16, map[string]string:
		return fmt.Sprint(x), true
	case mesh.StringMatch:
		return fmt.Sprintf("%d %q %t", x.Kind, x.Value, x.IgnoreCase), true
	}
	switch v.Kind() {
	case reflect.Struct, reflect.Slice, reflect.Map:
		return "", false
	case reflect.Pointer:
		return plain(v.Elem())
	}
	return fmt.Sprintf("%v", v.Interface()), true
}
