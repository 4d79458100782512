package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/deploy"
)

func TestExecute(t *testing.T) {
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte("tag: from-file\nclusterName: file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	operator := filepath.Join(filepath.Dir(file), "operator.yaml")
	if err := os.WriteFile(operator, []byte("kind: IstioOperator\nspec:\n  profile: minimal\n  tag: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args      string
		code      int
		out, errs string
	}{
		{"manifest generate", 0, "name: istio-ingressgateway", ""},
		{"manifest generate", 0, "kind: CustomResourceDefinition", ""},
		{"manifest generate -f " + file + " -f -", 0, "image: ghcr.io/lateen-mesh/lateend:from-input", ""},
		{"manifest generate -f - -f " + file, 0, "image: ghcr.io/lateen-mesh/lateend:from-file", ""},
		{"manifest generate -f " + file + " --set tag=from-flag", 0, "image: ghcr.io/lateen-mesh/lateend:from-flag", ""},
		{"manifest generate --revision canary", 0, "name: lateend-canary", ""},
		{"manifest generate -f " + operator, 0, "name: lateend", "Warning: " + operator + ":4: spec.tag has no meaning"},
		{"manifest generate -f /no/such", 1, "", "no such file"},
		{"manifest generate --set a=b", 1, "", "'a' not allowed"},
		{"manifest generate --profile x", 1, "", "no profile"},
		{"manifest generate x", 2, "", "lateen manifest generate --help"},
		{"manifest generate --x", 2, "", "unknown flag"},
		{"manifest", 0, "generate", ""},
		{"profile list", 0, "ambient-ready\ndefault\nminimal\n", ""},
		{"profile dump", 0, "ingress: {enabled: true}", ""},
		{"profile dump minimal", 0, "{}", ""},
		{"profile dump x", 1, "", "no profile"},
		{"nonsense", 2, "", "unknown command"},
	} {
		var out, errs strings.Builder
		code := Execute(t.Context(), strings.Fields(tt.args), strings.NewReader("tag: from-input"), &out, &errs)
		if code != tt.code || !strings.Contains(out.String(), tt.out) || !strings.Contains(errs.String(), tt.errs) || (tt.errs == "") != (errs.Len() == 0) {
			t.Errorf("%s: exit code %d, want %d; errors %q", tt.args, code, tt.code, errs.String())
		}
	}
}

// TestSame: what is written is what the chart makes, definitions first.
func TestSame(t *testing.T) {
	definitions, err := deploy.Definitions()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := deploy.Render(deploy.Config{Profile: "minimal"})
	if err != nil {
		t.Fatal(err)
	}
	for flag, want := range map[string]string{"": string(deploy.Manifest(definitions, objects)), "--skip-crds": string(deploy.Manifest(objects))} {
		var out strings.Builder
		args := append([]string{"manifest", "generate", "--profile", "minimal"}, strings.Fields(flag)...)
		if code := Execute(t.Context(), args, strings.NewReader(""), &out, t.Output()); code != 0 || out.String() != want {
			t.Errorf("%s: exit code %d, %d bytes, want %d", flag, code, out.Len(), len(want))
		}
	}
}
