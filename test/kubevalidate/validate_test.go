package kubevalidate

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/test/kubetest"
)

// patience bounds each wait.
const patience = 3 * time.Minute

// rig is an API server with Istio's definitions.
type rig struct {
	t *testing.T
	*kubetest.Cluster
	began time.Time
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t, kubetest.UpAPI(t), time.Now()}
	definitions, err := deploy.Definitions()
	if err != nil {
		t.Fatal(err)
	}
	r.kubectl("apply", "--server-side", "-f", r.file("definitions.yaml", deploy.Manifest(definitions)))
	r.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=2m")
	r.kubectl("create", "namespace", deploy.Namespace)
	r.step("definitions")
	return r
}

// step prints how long what has just ended took.
func (r *rig) step(what string) {
	r.t.Logf("%s: %s", what, time.Since(r.began).Round(time.Millisecond))
	r.began = time.Now()
}

func (r *rig) file(name string, text []byte) string {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *rig) kubectl(args ...string) string {
	r.t.Helper()
	out, err := r.Kubectl(r.t.Context(), args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// apply has kubectl apply an object and returns all that it says.
func (r *rig) apply(text string, more ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), filepath.Join("../..", "bin/kubectl"), append([]string{"apply", "-f", "-"}, more...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+r.Kubeconfig)
	cmd.Stdin = strings.NewReader(text)
	out, _ := cmd.CombinedOutput() // the exit code says no more than the text
	return string(out)
}

// await waits until something is so.
func (r *rig) await(what string, so func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !so(); {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain: %s", what)
		}
		<-time.After(200 * time.Millisecond)
	}
	r.step(what)
}

// serve runs lateend beside the API server, where its webhook is called by an address instead of a Service.
func (r *rig) serve() (stop func()) {
	r.t.Helper()
	folder := r.t.TempDir()
	program := filepath.Join(folder, "lateend")
	build := exec.CommandContext(r.t.Context(), "go", "build", "-trimpath", "-ldflags=-s", "-o", program, "../../cmd/lateend")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		r.t.Fatalf("%v\n%s", err, out)
	}
	r.step("lateend is built")
	log, err := os.Create(filepath.Join(folder, "log"))
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.t.Context())
	cmd := r.Command(ctx, program, "--kubeconfig="+r.Kubeconfig, "--state="+folder+"/state", "--api="+folder+"/api.sock",
		"--listen=127.0.0.1:15012", "--webhooks=127.0.0.1:15017", "--inject="+r.file("injection.yaml", []byte("{proxyImage: p, initImage: i}")))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	stop = func() { cancel(); <-ended }
	r.t.Cleanup(func() {
		stop()
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && r.t.Failed() {
			r.t.Logf("lateend:\n%s", text)
		}
	})
	return stop
}

// register applies the chart's registration of the webhook.
func (r *rig) register() {
	r.t.Helper()
	objects, err := deploy.Render(deploy.Config{Profile: "minimal"})
	if err != nil {
		r.t.Fatal(err)
	}
	i := slices.IndexFunc(objects, func(o deploy.Object) bool { return o.Kind == "ValidatingWebhookConfiguration" })
	var o map[string]any
	if err := yaml.Unmarshal([]byte(objects[i].YAML), &o); err != nil {
		r.t.Fatal(err)
	}
	for _, h := range o["webhooks"].([]any) {
		h.(map[string]any)["clientConfig"] = map[string]any{"url": "https://localhost:15017/validate"}
	}
	text, err := yaml.Marshal(o)
	if err != nil {
		r.t.Fatal(err)
	}
	if said := r.apply(string(text), "--server-side"); strings.Contains(said, "rror") {
		r.t.Fatal(said)
	}
}

const rule = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: NAME, namespace: default}
spec: {host: HOST}
`

func ruleOf(name, host string) string {
	return strings.NewReplacer("NAME", name, "HOST", host).Replace(rule)
}

// routeOf is a route with a pattern that is none, which the API server's schema lets pass.
func routeOf(name, parent string) string {
	return `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ` + name + `, namespace: default}
spec: {parentRefs: [` + parent + `], rules: [{matches: [{path: {type: RegularExpression, value: "/(a"}}]}]}
`
}

const (
	parentService = `{group: "", kind: Service, name: web}`
	parentTheirs  = `{name: theirs}`
)

// TestValidate: the webhook is asked once it answers, refuses and warns in the words of `lateen apply`, fails closed when it
// is away, but for what others read as well, and goes out of the way by one command.
func TestValidate(t *testing.T) {
	r := newRig(t)
	r.register()
	if said := r.apply(ruleOf("early", "x y")); !strings.Contains(said, "created") {
		t.Errorf("before lateend has ever answered: %s", said)
	}
	stop := r.serve()
	denied := func() bool {
		return strings.Contains(r.apply(ruleOf("faulty", "x y"), "--dry-run=server"), "denied the request")
	}
	r.await("the webhook is in force", denied)
	said := r.apply(ruleOf("faulty", "x y"))
	_, faults := judged(ruleOf("faulty", "x y"))
	if len(faults) == 0 || !strings.Contains(said, faults[0].Told()) {
		t.Errorf("kubectl says\n%s\nwant %v", said, faults)
	}
	// What there is among other objects is known a moment after: faults need not wait for that.
	r.await("the mesh has been read", func() bool {
		return strings.Contains(r.apply(ruleOf("lonely", "nowhere"), "--dry-run=server"), "Warning:")
	})
	if said := r.apply(ruleOf("lonely", "nowhere")); !strings.Contains(said, "Warning: spec.host: no service has the host nowhere.default.svc.cluster.local") ||
		!strings.Contains(said, "created") {
		t.Errorf("a doubtful object: %s", said)
	}
	r.register() // the chart is applied anew
	if said := r.apply(ruleOf("faulty", "x y")); !strings.Contains(said, "denied the request") {
		t.Errorf("after another apply of the chart: %s", said)
	}
	if said := r.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n"); !strings.Contains(said, "created") {
		t.Errorf("somebody else's object: %s", said)
	}
	if said := r.apply(routeOf("faulty", parentService)); !strings.Contains(said, "denied the request") {
		t.Errorf("a route within the mesh, with a fault: %s", said)
	}
	if said := r.apply(routeOf("theirs", parentTheirs)); !strings.Contains(said, "created") {
		t.Errorf("a route of somebody else's Gateway: %s", said)
	}
	r.step("objects are judged")
	stop()
	if said := r.apply(routeOf("unjudged", parentService)); !strings.Contains(said, "created") {
		t.Errorf("a route without lateend: %s", said)
	}
	if said := r.apply(ruleOf("late", "late")); !strings.Contains(said, "failed calling webhook") {
		t.Errorf("without lateend: %s", said)
	}
	r.kubectl("delete", "destinationrule", "lonely")
	r.kubectl("delete", "validatingwebhookconfiguration", "lateen-validator")
	r.await("the way out", func() bool { return !strings.Contains(r.apply(ruleOf("late", "late")), "failed calling webhook") })
}

func judged(text string) (*api.Object, []api.Fault) {
	result := api.Decode("x.yaml", []byte(text))
	if len(result.Objects) == 1 {
		return result.Objects[0], nil
	}
	return nil, result.Faults
}

// TestSchemas: the API server, without any webhook, says of each object in api/testdata/rules.txt what is written there, by
// every rule (CEL) that its schemas have; package api's own test holds the decoder to the same.
func TestSchemas(t *testing.T) {
	r := newRig(t)
	text, err := os.ReadFile("../../api/testdata/rules.txt")
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	rules := map[string]bool{} // by kind and message
	definitions, err := deploy.Definitions()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range definitions {
		var o definition
		if err := yaml.Unmarshal([]byte(d.YAML), &o); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(o.Spec.Group, ".istio.io") {
			continue // rules.txt has Istio's rules; the Gateway API's are held to by api's own tests alone
		}
		kind := o.Spec.Names.Kind
		versions[kind] = o.Spec.Group + "/" + o.Spec.Versions[0].Name
		if kind != api.KindRequestAuthentication { // refused as a whole
			o.Spec.Versions[0].Schema.OpenAPIV3Schema.walk(kind, rules)
		}
	}
	var all strings.Builder
	lines := slices.DeleteFunc(strings.Split(strings.TrimRight(string(text), "\n"), "\n"), func(line string) bool { return strings.HasPrefix(line, "#") })
	for i, line := range lines {
		kind, rest, _ := strings.Cut(line, " | ")
		spec, _, _ := strings.Cut(rest, " | ")
		fmt.Fprintf(&all, "---\napiVersion: %s\nkind: %s\nmetadata: {name: r%d, namespace: default}\nspec: %s\n", versions[kind], kind, i, spec)
	}
	said := map[string]string{} // by the object's name
	named, current := regexp.MustCompile(`["/](r\d+)[" ]`), ""
	for line := range strings.Lines(r.apply(all.String(), "--dry-run=server")) {
		if m := named.FindStringSubmatch(line); m != nil {
			current = m[1]
		}
		said[current] += line
	}
	for i, line := range lines {
		kind, rest, _ := strings.Cut(line, " | ")
		_, want, _ := strings.Cut(rest, " | ")
		got := said[fmt.Sprintf("r%d", i)]
		if !strings.Contains(got, want) || strings.Contains(got, "created") != (want == "") {
			t.Errorf("%s\nthe API server says %s", line, got)
		}
		delete(rules, kind+" "+want)
	}
	r.step("objects are judged")
	for rule := range rules {
		t.Errorf("no object breaks the rule %s", rule)
	}
}

// definition is what is read of a CustomResourceDefinition.
type definition struct {
	Spec struct {
		Group    string
		Names    struct{ Kind string }
		Versions []struct {
			Name   string
			Schema struct{ OpenAPIV3Schema schema }
		}
	}
}

type schema struct {
	Properties           map[string]schema
	Items                *schema
	AdditionalProperties json.RawMessage
	Rules                []struct{ Message string } `json:"x-kubernetes-validations"`
}

// walk collects the rules of a schema and what is below it.
func (s schema) walk(kind string, into map[string]bool) {
	for _, r := range s.Rules {
		into[kind+" "+r.Message] = true
	}
	for _, p := range s.Properties {
		p.walk(kind, into)
	}
	if s.Items != nil {
		s.Items.walk(kind, into)
	}
	var more schema
	if json.Unmarshal(s.AdditionalProperties, &more) == nil {
		more.walk(kind, into)
	}
}
