package compile_test

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/compile"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

const bookinfo = "../examples/bookinfo"

// workloads of the example: name, service account.
var bookinfoWorkloads = [][2]string{
	{"productpage-v1", "productpage"},
	{"details-v1", "details"},
	{"ratings-v1", "ratings"},
	{"reviews-v1", "reviews"},
	{"reviews-v2", "reviews"},
	{"reviews-v3", "reviews"},
}

// TestBookinfo applies each of the example's files, alone, to its services, and shows which answers it changes and into
// what. UPDATE=1 writes testdata/bookinfo.txt anew.
func TestBookinfo(t *testing.T) {
	files, err := filepath.Glob(bookinfo + "/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	var out bytes.Buffer
	for _, file := range files {
		if strings.HasSuffix(file, "platform/services.yaml") {
			continue
		}
		w, cache, scopes := newBookinfo(t)
		snap, touched := w.apply(t, strings.TrimPrefix(file, bookinfo+"/"), read(t, file))
		fmt.Fprintf(&out, "## %s\n\n", strings.TrimPrefix(file, bookinfo+"/"))
		keys := cache.Set(snap, touched)
		if len(keys) == 0 {
			t.Errorf("%s changes nothing", file)
		}
		slices.SortFunc(keys, func(x, y compile.Key) int {
			return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Name, y.Name), cmp.Compare(scopes[x.Scope], scopes[y.Scope]))
		})
		var last plan.Resource
		for _, k := range keys {
			res := cache.Get(k)
			fmt.Fprintf(&out, "%s %s, for %s\n", k.Kind, k.Name, scopes[k.Scope])
			switch {
			case k.Name == "":
				fmt.Fprintf(&out, "  %s\n", strings.Join(cache.Names(k.Scope, k.Kind), "\n  "))
			case res == nil:
				fmt.Fprintln(&out, "  none")
			case res == last:
				fmt.Fprintln(&out, "  the same")
			default:
				fmt.Fprintf(&out, "  %s\n", strings.ReplaceAll(strings.TrimSpace(res.String()), "\n", "\n  "))
			}
			last = res
		}
		out.WriteByte('\n')
	}
	const golden = "testdata/bookinfo.txt"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := gocmp.Diff(string(read(t, golden)), out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// newBookinfo is the example before any rule, and a cache that holds what its sidecars and its gateway use.
func newBookinfo(t *testing.T) (*world, *compile.Cache, map[string]string) {
	t.Helper()
	w, cache, scopes := newWorld(), compile.NewCache(), map[string]string{}
	w.apply(t, "services.yaml", read(t, bookinfo+"/platform/services.yaml"))
	var yaml bytes.Buffer
	for i, x := range bookinfoWorkloads {
		app, version, _ := strings.Cut(x[0], "-")
		fmt.Fprintf(&yaml, "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: %s, namespace: default}\n"+
			"spec: {address: 10.0.0.%d, serviceAccount: bookinfo-%s, labels: {app: %s, version: %s}}\n---\n", x[0], i+1, x[1], app, version)
	}
	snap, _ := w.apply(t, "workloads.yaml", yaml.Bytes())
	cache.Set(snap, nil)
	hold := func(name string, a compile.Asker, keys ...compile.Key) {
		scope := cache.ScopeOf(a)
		scopes[scope] = name
		for _, k := range keys {
			if k.Scope = scope; k.Name == "" {
				cache.Names(scope, k.Kind)
			} else {
				cache.Get(k)
			}
		}
	}
	for _, x := range bookinfoWorkloads {
		app, version, _ := strings.Cut(x[0], "-")
		keys := []compile.Key{{Kind: plan.KindListener, Name: plan.ListenerInbound}}
		if app == "productpage" || x[0] == "reviews-v2" {
			for _, to := range []string{"details", "reviews", "ratings"} {
				host := to + ".default.svc.cluster.local"
				keys = append(
					keys, compile.Key{Kind: plan.KindRoute, Name: to + ":9080"}, compile.Key{Kind: plan.KindListener, Name: host + ":9080"},
					compile.Key{Kind: plan.KindCluster, Name: "outbound|9080||" + host}, compile.Key{Kind: plan.KindEndpoints, Name: "outbound|9080||" + host},
					compile.Key{Kind: plan.KindCluster, Name: "outbound|9080|v1|" + host}, compile.Key{Kind: plan.KindEndpoints, Name: "outbound|9080|v1|" + host},
				)
			}
		}
		hold(x[0], compile.Asker{Role: compile.Sidecar, Namespace: "default", Workload: x[0], Labels: mesh.Labels{"app": app, "version": version}}, keys...)
	}
	hold(
		"the gateway", compile.Asker{Role: compile.Gateway, Namespace: "istio-system", Workload: "in", Labels: mesh.Labels{"istio": "ingressgateway"}},
		compile.Key{Kind: plan.KindListener}, compile.Key{Kind: plan.KindListener, Name: "gateway|8080"}, compile.Key{Kind: plan.KindRoute, Name: "gateway|8080"},
		compile.Key{Kind: plan.KindListener, Name: "gateway|80"}, compile.Key{Kind: plan.KindRoute, Name: "gateway|80"},
	)
	return w, cache, scopes
}
