package kube

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
)

const twoContexts = `
apiVersion: v1
kind: Config
current-context: one
clusters:
- {name: one, cluster: {server: "https://one.test:6443"}}
- {name: two, cluster: {server: "https://two.test:6443"}}
contexts:
- {name: one, context: {cluster: one, user: me}}
- {name: two, context: {cluster: two, user: me, namespace: shop}}
users:
- {name: me, user: {token: t}}
`

// TestCluster: flags, the variable KUBECONFIG and the file count as for kubectl.
func TestCluster(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(twoContexts), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", t.TempDir())
	for _, tt := range []struct {
		name, env string
		args      []string
		host      string // empty: an error
		namespace string
	}{
		{"the variable", file, nil, "https://one.test:6443", "default"},
		{"a flag goes before the variable", "/no/such", []string{"--kubeconfig", file}, "https://one.test:6443", "default"},
		{"another context and its namespace", file, []string{"--context=two"}, "https://two.test:6443", "shop"},
		{"another namespace", file, []string{"--context=two", "-n", "x"}, "https://two.test:6443", "x"},
		{"another server", file, []string{"--server=https://three.test"}, "https://three.test", "default"},
		{"no such context", file, []string{"--context=three"}, "", ""},
		{"no file", "/no/such", nil, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tt.env)
			cmd := &cobra.Command{}
			c := newCluster(cmd)
			if err := cmd.ParseFlags(tt.args); err != nil {
				t.Fatal(err)
			}
			cfg, err := c.config()
			if tt.host == "" {
				if err == nil {
					t.Errorf("%s is meant", cfg.Host)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			namespace, err := c.namespace()
			if _, _, failed := c.clients(); err != nil || failed != nil || cfg.Host != tt.host || namespace != tt.namespace {
				t.Errorf("%s, namespace %s: %v, %v", cfg.Host, namespace, err, failed)
			}
		})
	}
}
