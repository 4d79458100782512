package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKubeInject(t *testing.T) {
	dir := t.TempDir()
	pod := "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: a}]}\n"
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file, config := write("pod.yaml", pod), write("config.yaml", "{proxyImage: p:1, initImage: i:1}")
	for _, tt := range []struct {
		name      string
		args      []string
		code      int
		out, errs string
	}{
		{"a file", []string{"-f", file, "--config", config}, 0, "image: p:1", ""},
		{"standard input, explained", []string{"-f", "-", "--config", config, "--explain", "--proxy-image", "p:2"}, 0, "image: p:2", "Pod default/a: injected: policy enabled"},
		{"two", []string{"-f", "-", "-f", file, "--proxy-image", "p", "--init-image", "i"}, 0, "\n---\n", ""},
		{"no images", []string{"-f", "-"}, 1, "", "--proxy-image and --init-image"},
		{"no file", []string{"--config", config}, 2, "", "-f FILE"},
		{"no such file", []string{"-f", "/no/such", "--config", config}, 1, "", "no such file"},
		{"bad configuration", []string{"-f", "-", "--config", file}, 1, "", "pod.yaml"},
		{"bad flag", []string{"--what"}, 2, "", "what"},
	} {
		var out, errs strings.Builder
		if code := kubeInject(tt.args, strings.NewReader(pod), &out, &errs); code != tt.code {
			t.Errorf("%s: exit code %d, want %d: %s", tt.name, code, tt.code, &errs)
		}
		if !strings.Contains(out.String(), tt.out) || (tt.out == "") != (out.Len() == 0) || !strings.Contains(errs.String(), tt.errs) || (tt.errs == "") != (errs.Len() == 0) {
			t.Errorf("%s: out %q, errors %q", tt.name, out.String(), errs.String())
		}
	}
}
