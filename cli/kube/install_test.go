package kube

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/deploy/apply"
)

// TestProgress: where the output is no terminal each step has plain lines, and what is waited for is told once.
func TestProgress(t *testing.T) {
	var out strings.Builder
	p := newProgress(&out)
	p.tell(apply.Step{Component: "lateend"})
	p.tell(apply.Step{Component: "lateend", Text: "0 of 1 pods are ready"})
	p.tell(apply.Step{Component: "definitions", Warning: true, Text: "another's"})
	p.tell(apply.Step{Component: "lateend", Text: "created, ready", Done: true, Took: 1500 * time.Millisecond})
	p.tell(apply.Step{Component: "gateway", Done: true, Err: errors.New("no")})
	p.end()
	if diff := cmp.Diff("  lateend: 0 of 1 pods are ready\n‼ another's\n√ lateend: created, ready (1.5 s)\n× gateway\n", out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestInstallation: what the flags want is written down without the revision, which is the name.
func TestInstallation(t *testing.T) {
	a := &app{in: strings.NewReader("kind: IstioOperator\nspec: {profile: minimal, revision: canary}"), err: t.Output()}
	w := wanted{files: []string{"-"}}
	w.config.Set = []string{"tag=v2", "lateend.replicas=2"}
	got, err := w.installation(a, false)
	if err != nil {
		t.Fatal(err)
	}
	want := apply.Spec{Profile: "minimal", Values: map[string]any{"tag": "v2", "lateend": map[string]any{"replicas": int64(2)}}}
	if diff := cmp.Diff(want, got.Spec); diff != "" || got.Name != "canary" {
		t.Errorf("%s (-want +got):\n%s", got.Name, diff)
	}
}

// TestForgotten: values that are given no more are named, those that are given otherwise are not.
func TestForgotten(t *testing.T) {
	old := map[string]any{"tag": "v1", "hub": "h", "lateend": map[string]any{"replicas": 1, "affinity": map[string]any{"a": 1}}}
	now := map[string]any{"tag": "v2", "lateend": map[string]any{"replicas": 2}}
	if diff := cmp.Diff([]string{"hub", "lateend.affinity.a"}, forgotten("", old, now)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestBesides: a second revision has the values of the default one, but neither its MeshConfig nor its gateways.
func TestBesides(t *testing.T) {
	got := besides(map[string]any{
		"tag": "v1", "meshConfig": map[string]any{"trustDomain": "d", "accessLogFile": "x"},
		"gateways": map[string]any{"ingress": map[string]any{"enabled": true, "replicas": 2}},
	})
	off := map[string]any{"enabled": false}
	want := map[string]any{
		"tag": "v1", "meshConfig": map[string]any{"trustDomain": "d"},
		"gateways": map[string]any{"ingress": map[string]any{"enabled": false, "replicas": 2}, "egress": off},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestDiffFiles: two manifests differ by their objects' fields, not by order or layout.
func TestDiffFiles(t *testing.T) {
	folder := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	before := write("a", "---\nkind: A\nmetadata: {name: x}\nspec: {size: 1}\n---\nkind: B\nmetadata: {name: \"y\", namespace: ns}\n---\nkind: C\nmetadata: {name: z}\n")
	same := write("b", "kind: C\nmetadata:\n  name: z\n---\nmetadata: {namespace: ns, name: \"y\"}\nkind: B\n---\nkind: A\nmetadata: {name: x}\nspec: {size: 1}\n")
	other := write("c", "kind: A\nmetadata: {name: x}\nspec: {size: 2}\n---\nkind: B\nmetadata: {name: \"y\", namespace: ns}\n---\nkind: D\nmetadata: {name: new}\n")
	for _, tt := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{before, same}, 0, nil},
		{[]string{before, other}, 1, []string{"--- A x\n+++ A x\n", "-  size: 1\n+  size: 2\n", "--- C z\n+++ /dev/null\n", "--- /dev/null\n+++ D new\n"}},
		{[]string{before}, 2, nil},
		{[]string{before, folder + "/none"}, 2, nil},
	} {
		var out, errs strings.Builder
		code := Execute(t.Context(), append([]string{"manifest", "diff"}, tt.args...), strings.NewReader(""), &out, &errs)
		if code != tt.code || (code == 2) != (errs.Len() > 0) || (tt.want == nil) != (out.Len() == 0) {
			t.Errorf("%v: exit code %d, %q", tt.args, code, errs.String())
		}
		for _, want := range tt.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%v: %s has no %q", tt.args, out.String(), want)
			}
		}
	}
}

// TestAsk: nobody who could answer is no yes.
func TestAsk(t *testing.T) {
	a := &app{in: strings.NewReader("y\n"), out: t.Output()}
	if err := a.confirm(); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("%v", err)
	}
}
