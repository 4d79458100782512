package deploy

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	admission "k8s.io/api/admissionregistration/v1"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/deploy/translate"
	"github.com/lateen-mesh/lateen/inject"
)

// full sets what a profile does not.
const full = `
hub: lateen.test
tag: v1
imagePullPolicy: Always
imagePullSecrets: [registry]
meshConfig: {accessLogFile: /dev/stdout, trustDomain: example.org}
network: n1
lateend:
  autoscaling: {enabled: true}
  nodeSelector: {kubernetes.io/os: linux}
  tolerations: [{key: only, operator: Exists}]
  affinity: {podAntiAffinity: {}}
  podAnnotations: {who: me}
cni: {enabled: true, lists: /host/lists, programs: /host/plugins}
istiodService: false
injection: {enableNamespacesByDefault: true, config: {classicSidecars: true, proxyImage: "other:1"}}
secretNamespaces: [shop]
gateways:
  ingress: {enabled: true, replicas: 2, service: {type: NodePort, annotations: {a: b}, ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]}}
  egress: {enabled: true}
`

func values(t *testing.T, text string) []map[string]any {
	t.Helper()
	v, err := ReadValues([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return []map[string]any{v}
}

func rendered(t *testing.T, c Config) []Object {
	t.Helper()
	out, err := Render(c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// find returns the only object of a kind and name as a type.
func find[T any](t *testing.T, list []Object, kind, name string) (out T) {
	t.Helper()
	i := slices.IndexFunc(list, func(o Object) bool { return o.Kind == kind && o.Name == name })
	if i < 0 {
		t.Fatalf("there is no %s %s among %v", kind, name, list)
	}
	if err := yaml.UnmarshalStrict([]byte(list[i].YAML), &out); err != nil {
		t.Fatalf("%s: %v", list[i], err)
	}
	return out
}

// TestGolden shows what is installed, whole. UPDATE=1 writes it anew.
func TestGolden(t *testing.T) {
	for name, c := range map[string]Config{
		"default":  {},
		"minimal":  {Profile: "minimal"},
		"full":     {Profile: "minimal", Values: values(t, full)},
		"revision": {Set: []string{"secretNamespaces={*}", "lateend.replicas=2"}, Revision: "canary"},
	} {
		got := Manifest(rendered(t, c))
		file := filepath.Join("testdata", name+".yaml")
		if os.Getenv("UPDATE") == "1" {
			if err := os.WriteFile(file, got, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestProfiles: every profile is installed as it is.
func TestProfiles(t *testing.T) {
	if got := Profiles(); !slices.Equal(got, []string{"ambient-ready", "default", "minimal"}) {
		t.Errorf("profiles %v", got)
	}
	for _, name := range Profiles() {
		for _, o := range rendered(t, Config{Profile: name}) {
			if o.APIVersion == "" || o.Name == "" || rank(o.Kind) == len(kinds) {
				t.Errorf("%s: %+v has no place in the order", name, o)
			}
		}
	}
}

// TestRefused: what the chart does not know, or cannot do, is said by name.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    Config
		want []string
	}{
		{"profile", Config{Profile: "demo"}, []string{`no profile "demo"`, "ambient-ready, default, minimal"}},
		{"unknown", Config{Set: []string{"lateend.replica=2", "istiod=1"}}, []string{"/lateend", "'replica' not allowed", "'istiod' not allowed"}},
		{"type", Config{Set: []string{"lateend.replicas=many"}}, []string{"/lateend/replicas", "want integer"}},
		{"range", Config{Set: []string{"lateend.replicas=0"}}, []string{"/lateend/replicas", "minimum"}},
		{"choice", Config{Set: []string{"imagePullPolicy=Sometimes"}}, []string{"/imagePullPolicy", "'IfNotPresent'"}},
		{"revision", Config{Revision: "1.2"}, []string{"/revision"}},
		{"injection", Config{Set: []string{"injection.config.template=x"}}, []string{"/injection/config", "'template' not allowed"}},
		{"set", Config{Set: []string{"a"}}, []string{`set "a"`, "name.name=value"}},
		{"meshConfig of a revision", Config{Revision: "canary", Set: []string{"meshConfig.accessLogFile=x"}}, []string{"meshConfig is that of the revision default"}},
		{"autoscaling", Config{Set: []string{"lateend.autoscaling.enabled=true", "lateend.autoscaling.max=1"}}, []string{"min is more than max"}},
	} {
		_, err := Render(tt.c)
		for _, want := range tt.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v does not say %s", tt.name, err, want)
			}
		}
	}
	if _, err := ReadValues([]byte("a: 1\na: 2\n")); err == nil {
		t.Error("a key may come twice")
	}
}

// TestCNI: a profile with the plugin gives no pod a capability, whatever the revision; nodes have one plugin.
func TestCNI(t *testing.T) {
	for _, revision := range []string{"", "canary"} {
		list := rendered(t, Config{Profile: "ambient-ready", Revision: revision})
		name, plugins := "lateen-injection", 1
		if revision != "" {
			name, plugins = name+"-"+revision, 0
		}
		m := find[core.ConfigMap](t, list, "ConfigMap", name)
		if cfg, err := inject.ReadConfig([]byte(m.Data["config.yaml"])); err != nil || !cfg.CNI {
			t.Errorf("%q: %+v, %v", revision, cfg, err)
		}
		got := slices.DeleteFunc(slices.Clone(list), func(o Object) bool { return o.Kind != "DaemonSet" })
		if len(got) != plugins {
			t.Errorf("%q: %v", revision, got)
		}
	}
}

// TestNamespace: nobody installs where the mesh's configuration would not be read.
func TestNamespace(t *testing.T) {
	if Namespace != api.RootNamespace {
		t.Errorf("%s is not the root namespace %s", Namespace, api.RootNamespace)
	}
}

// TestWebhook: the chart registers exactly what package inject would.
func TestWebhook(t *testing.T) {
	for _, tt := range []struct {
		c Config
		r inject.Registered
	}{
		{Config{}, inject.Registered{}},
		{Config{Set: []string{"injection.enableNamespacesByDefault=true"}}, inject.Registered{ByDefault: true}},
		{Config{Revision: "canary", Set: []string{"injection.enableNamespacesByDefault=true"}}, inject.Registered{Revision: "canary", ByDefault: true}},
	} {
		tt.r.Namespace, tt.r.Service = Namespace, "lateend"
		if tt.r.Revision != "" {
			tt.r.Service += "-" + tt.r.Revision
		}
		want := tt.r.Object()
		got := find[admission.MutatingWebhookConfiguration](t, rendered(t, tt.c), want.Kind, want.Name)
		for key, value := range want.Labels {
			if got.Labels[key] != value {
				t.Errorf("label %s is %q, want %q", key, got.Labels[key], value)
			}
		}
		if diff := cmp.Diff(want.Webhooks, got.Webhooks); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.c, diff)
		}
	}
}

// TestInjection: lateend can read the configuration of injection, and what the values say of it goes first.
func TestInjection(t *testing.T) {
	for name, c := range map[string]Config{"lateen-injection": {Values: values(t, full)}, "lateen-injection-canary": {Revision: "canary"}} {
		m := find[core.ConfigMap](t, rendered(t, c), "ConfigMap", name)
		cfg, err := inject.ReadConfig([]byte(m.Data["config.yaml"]))
		if err == nil {
			err = cfg.Validate()
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.Revision == "" && (cfg.ProxyImage != "other:1" || cfg.InitImage != "lateen.test/lateen-cni:v1" || !cfg.Classic) {
			t.Errorf("%+v", cfg)
		}
		if c.Revision != "" && (cfg.Revision != "canary" || cfg.DiscoveryAddress != "lateend-canary.istio-system.svc:15012") {
			t.Errorf("%+v", cfg)
		}
	}
}

// TestHelm: Helm, which reads the chart from its folder, makes the same objects.
func TestHelm(t *testing.T) {
	c := Config{Values: values(t, full)}
	folder, err := loader.LoadDir("chart")
	if err != nil {
		t.Fatal(err)
	}
	given, err := Values(c)
	if err != nil {
		t.Fatal(err)
	}
	want, err := render(folder, given)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, rendered(t, c), cmpopts.IgnoreUnexported(Object{})); diff != "" {
		t.Errorf("(-folder +ours):\n%s", diff)
	}
	definitions, err := Definitions()
	if err != nil {
		t.Fatal(err)
	}
	if crds := folder.CRDObjects(); len(crds) != 3 || len(definitions) != 21 {
		t.Errorf("%d files of %d definitions", len(crds), len(definitions))
	}
}

// istioDefinitions is the file of those that are Istio's.
const istioDefinitions = definitionsFolder + "/istio.yaml"

// TestDefinitions: the chart has the definitions of the version of Istio's API that we build with. UPDATE=1 takes them.
func TestDefinitions(t *testing.T) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api").Output()
	if err != nil {
		t.Fatalf("find Istio's module: %v", err)
	}
	want, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "kubernetes", "customresourcedefinitions.gen.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(istioDefinitions)
	if err != nil {
		t.Fatal(err)
	}
	begin := bytes.Index(text, []byte("# DO NOT EDIT"))
	if begin < 0 {
		t.Fatal("the notice is not followed by the definitions")
	}
	if os.Getenv("UPDATE") == "1" {
		text = append(text[:begin:begin], want...)
		if err := os.WriteFile(istioDefinitions, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(text[begin:], want) {
		t.Error("they differ; run UPDATE=1 go test ./deploy")
	}
	if !bytes.Contains(text[:begin], []byte("Apache License")) {
		t.Error("the notice of their licence is missing")
	}
}

// TestGatewayDefinitions: the chart has the definitions of the Gateway API that are read, of the version that we build
// with. Helm installs them where there are none; others may have installed another version, which stays. UPDATE=1 takes
// them.
func TestGatewayDefinitions(t *testing.T) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatalf("find the Gateway API's module: %v", err)
	}
	const file = "chart/crds/gateway.yaml"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	notice, _, found := bytes.Cut(text, []byte("---\n"))
	if !found || !bytes.Contains(notice, []byte("Apache License")) {
		t.Fatal("the notice of their licence is missing")
	}
	want := bytes.Clone(notice)
	for _, kinds := range []string{"gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"} {
		one, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "config", "crd", "standard", "gateway.networking.k8s.io_"+kinds+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		want = append(append(want, "---\n"...), one...)
	}
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(file, want, 0o600); err != nil {
			t.Fatal(err)
		}
		text = want
	}
	if !bytes.Equal(text, want) {
		t.Error("they differ; run UPDATE=1 go test ./deploy")
	}
}

// TestInjectionValues: the schema of injection.config has all that injection is configured with, but what the chart says.
func TestInjectionValues(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("chart", "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	type schema struct {
		Properties map[string]schema `json:"properties"`
	}
	var all schema
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	got := slices.Sorted(maps.Keys(all.Properties["injection"].Properties["config"].Properties))
	chart := []string{"revision", "trustDomain", "clusterID", "network", "imagePullPolicy", "imagePullSecrets", "cni"} // _names.tpl
	var want []string
	for f := range reflect.TypeFor[inject.Config]().Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); !slices.Contains(chart, name) {
			want = append(want, name)
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("injection.config (-fields of inject.Config +schema)\n%s", diff)
	}
}

// TestTranslated: what an IstioOperator becomes can be installed.
func TestTranslated(t *testing.T) {
	got, err := translate.IstioOperator("f", "kind: IstioOperator\nspec: {components: {pilot: {k8s: {replicaCount: 3}}, ingressGateways: [{name: edge, enabled: true, label: {istio: edge}}]}}\n")
	if err != nil {
		t.Fatal(err)
	}
	text := string(Manifest(rendered(t, Config{Profile: got.Profile, Values: []map[string]any{got.Values}})))
	if !strings.Contains(text, "istio: edge") || !strings.Contains(text, "replicas: 3") {
		t.Error(text)
	}
}
