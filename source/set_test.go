package source

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

func decode(t testing.TB, file, text string) []*api.Object {
	t.Helper()
	r := api.Decode(file, []byte(text))
	for _, f := range r.Faults {
		t.Fatal(f)
	}
	return r.Objects
}

// TestBookinfo applies the example file by file: each is understood, and applying it again changes nothing.
func TestBookinfo(t *testing.T) {
	files, err := filepath.Glob("../examples/bookinfo/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	s := New(Config{})
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		objects := decode(t, file, string(text))
		if len(s.Upsert(objects...)) == 0 {
			t.Errorf("%s changes nothing", file)
		}
		if again := s.Upsert(decode(t, file, string(text))...); len(again) > 0 {
			t.Errorf("%s: applied again it changes %v", file, again)
		}
	}
	if found := s.Findings(); len(found) > 0 {
		t.Errorf("findings: %v", found)
	}
	b := mesh.NewBuilder()
	b.Apply(s.Replace(nil))
	if len(s.Objects()) > 0 {
		t.Error("objects stay behind")
	}
}

// TestCopy: what would become of an object is told, and nothing of the trial stays, of the Gateway API's kinds neither.
func TestCopy(t *testing.T) {
	s := New(Config{})
	s.Upsert(decode(t, "gateway.yaml", `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {gatewayClassName: lateen, listeners: [{name: http, port: 80, protocol: HTTP}]}
`)...)
	route := decode(t, "route.yaml", `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: nobody, port: 80}]}]}
`)[0]
	other := decode(t, "other.yaml", `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: other, namespace: shop}
spec: {host: nowhere}
`)
	s.Upsert(other...) // whose findings are not the route's
	for range 2 {
		if found := s.Copy(nil).Judge(route); len(found) != 1 || found[0].Code != CodeNotAttached {
			t.Errorf("findings %v", found)
		}
		if changes := s.Reattach(); len(changes) > 0 || len(s.Attached().Parents) > 0 {
			t.Errorf("of a trial stays %v", changes)
		}
	}
	s.Upsert(route)
	s.Delete(route.Ref, other[0].Ref)
	if found := s.Findings(); len(found) > 0 {
		t.Errorf("findings %v of an object that is gone", found)
	}
}
