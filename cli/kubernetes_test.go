package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/cli/host"
)

// TestInCluster: whether a mesh of this machine or one in a cluster is meant is decided by flags first, then by what runs.
func TestInCluster(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, args, env string
		home, running   bool
		want            bool
	}{
		{name: "nothing at all", args: "status"},
		{name: "a kubeconfig is named", args: "status --kubeconfig " + file, running: true, want: true},
		{name: "a context is named", args: "proxy-config x --context y", running: true, want: true},
		{name: "a mesh is named", args: "status --mesh x", env: file},
		{name: "a mesh runs", args: "status", env: file, running: true},
		{name: "none runs, and there is a kubeconfig", args: "status", env: file, want: true},
		{name: "none runs, and there is one at home", args: "version", home: true, want: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			t.Setenv("KUBECONFIG", tt.env)
			if tt.home {
				home := t.TempDir()
				t.Setenv("HOME", home)
				if err := os.MkdirAll(filepath.Join(home, ".kube"), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(home, ".kube/config"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tt.running {
				b.serve()
			}
			cmd, args, err := b.app.root().Find(strings.Fields(tt.args))
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.ParseFlags(args); err != nil {
				t.Fatal(err)
			}
			if got := b.app.inCluster(cmd); got != tt.want {
				t.Errorf("in a cluster: %t", got)
			}
		})
	}
	if _, err := host.Beside(kubernetesProgram); err == nil {
		t.Skip("lateen-kube stands beside the test: nothing can be missed")
	}
	b := newBench(t)
	if code, _, errs := b.run("", "status", "--kubeconfig", file); code != 1 || !strings.Contains(errs, kubernetesProgram) {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

// TestVersion: of this program alone, or of the mesh that runs.
func TestVersion(t *testing.T) {
	b := newBench(t)
	if code, out, errs := b.run("", "version"); code != 0 || !strings.HasPrefix(out, "lateen ") || strings.Count(out, "\n") != 1 {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
}
