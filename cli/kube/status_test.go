package kube

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lateen-mesh/lateen/cli/show"
	"github.com/lateen-mesh/lateen/deploy"
)

// TestStatus: the table is that of a mesh of one machine, with what the cluster knows besides.
func TestStatus(t *testing.T) {
	s := newStage(t)
	s.put(s.pod("shop", "silent-1"))
	s.pages["lateend-1:15014"]["/status"] = `{"version": "v1", "warnings": [{"object": "VirtualService shop/web", "message": "odd", "code": "IST0101"}]}`
	_ = unstructured.SetNestedSlice(s.custom["web"].Object, []any{map[string]any{"type": "Accepted", "status": "False", "message": "torn"}}, "status", "conditions")
	var out strings.Builder
	a := &app{out: &out}
	if err := a.showStatus(t.Context(), s.world(), "text"); err != nil {
		t.Fatal(err)
	}
	want := `NAME      NAMESPACE  ROLE     IDENTITY                    ORDERS            AGE  ACCELERATOR   MEMORY
silent-1  shop       sidecar                              no control plane    -  -            0.0 MiB
web-1     shop       sidecar  cluster.local/ns/shop/sa/web  synced             1m  -            9.5 MiB
silent-1.shop does not answer: ask pod shop/silent-1 for /status: connection refused
of these objects the last good version stays in force, because of:
  VirtualService shop/web: torn
Warning: VirtualService shop/web: odd [IST0101]
`
	if diff := cmp.Diff(strings.Fields(want), strings.Fields(out.String())); diff != "" {
		t.Errorf("%s\n%s", diff, out.String())
	}
	out.Reset()
	if err := a.showStatus(t.Context(), s.world(), "json"); err != nil {
		t.Fatal(err)
	}
	var list []show.Proxy
	if err := json.Unmarshal([]byte(out.String()), &list); err != nil || len(list) != 2 || list[1].Name != "web-1" || list[1].Version != "v1" || !list[1].Synced {
		t.Errorf("%v\n%s", err, out.String())
	}
	// What holds up a lateend that is not ready is told.
	get[*core.Pod](s, deploy.Namespace, "lateend-1").Status.Conditions = nil
	s.pages["lateend-1:15014"]["/status"] = `{"version": "v1", "faults": [{"object": "nodes", "message": "may not be read"}]}`
	out.Reset()
	if err := a.showStatus(t.Context(), s.world(), "text"); err != nil ||
		!strings.Contains(out.String(), "\nno lateend is ready; the proxies go on with their last orders\npod lateend-1 is not ready: nodes: may not be read\n") {
		t.Errorf("%v\n%s", err, out.String())
	}
	// Of another namespace there are none, and the control plane may be away.
	delete(s.pages, "lateend-1:15014")
	w := s.world()
	w.namespace = deploy.Namespace
	out.Reset()
	if err := a.showStatus(t.Context(), w, "text"); err != nil || !strings.Contains(out.String(), "the control plane is away") || strings.Contains(out.String(), "web-1") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// TestConfig: a proxy is found by its pod's name, with or without the namespace.
func TestConfig(t *testing.T) {
	s := newStage(t)
	for _, tt := range []struct{ namespace, name, fault string }{
		{"shop", "web-1", ""},
		{"default", "web-1.shop", ""},
		{"shop", "web-1.shop", ""},
		{"shop", "web", `no pod "web" with a proxy is in namespace "shop"; choose web-1`},
		{"default", "web-1", `no pod has a proxy in namespace "default"`},
		{"shop", "web.other", `no pod has a proxy in namespace "other"`},
	} {
		w := s.world()
		w.namespace = tt.namespace
		list, err := w.config(t.Context(), tt.name, "cluster")
		if tt.fault == "" && (err != nil || len(list) != 1 || list[0].Name != "web") || tt.fault != "" && (err == nil || !strings.Contains(err.Error(), tt.fault)) {
			t.Errorf("%s in %s: %v, %v", tt.name, tt.namespace, list, err)
		}
	}
}

func TestVersions(t *testing.T) {
	s := newStage(t)
	v := show.Versions{Client: "v1"}
	if err := s.world().versions(t.Context(), &v); err != nil {
		t.Fatal(err)
	}
	if want := "lateen v1\nlateend v1 (1)\nlateen-proxy v1 (1)\n"; v.Text() != want {
		t.Errorf("%q", v.Text())
	}
}

// TestPage: without a pod's name it is lateend's page.
func TestPage(t *testing.T) {
	s := newStage(t)
	w := s.world()
	w.namespace = "shop"
	for _, tt := range []struct {
		args []string
		pod  string
		port int
	}{{nil, "lateend-1", portControlAdmin}, {[]string{"web-1"}, "web-1", portProxyAdmin}} {
		if p, port, err := w.page(t.Context(), tt.args); err != nil || p.Name != tt.pod || port != tt.port {
			t.Errorf("%v: %v, %d, %v", tt.args, p, port, err)
		}
	}
	drop[*apps.Deployment](s, deploy.Namespace, "lateend")
	drop[*core.Pod](s, deploy.Namespace, "lateend-1")
	if _, _, err := s.world().page(t.Context(), nil); err == nil {
		t.Error("a lateend that is not there was found")
	}
}

// TestCompletion: shells learn of names by cobra's own command.
func TestCompletion(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	for line, want := range map[string]string{
		"__complete manifest generate --profile min": "minimal",
		"__complete proxy-config web-1 cl":           "clusters",
		"__complete check --p":                       "--pre",
	} {
		var out, errs strings.Builder
		code := Execute(t.Context(), strings.Fields(line), strings.NewReader(""), &out, &errs)
		words := strings.FieldsFunc(out.String(), func(r rune) bool { return r == '\n' || r == '\t' })
		if code != 0 || !slices.Contains(words, want) {
			t.Errorf("%s: exit code %d:\n%s%s", line, code, out.String(), errs.String())
		}
	}
}
