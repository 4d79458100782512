package control

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/compile"
	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/mesh"
)

func TestGrants(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grants.json")
	g, err := newGrants(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []struct {
		account, name string
		gateway       bool
		labels        map[string]string
	}{
		{"web", "web-1", false, map[string]string{"app": "web"}},
		{"edge", "edge-1", true, nil},
		{"any", "", false, nil},
		{"anyedge", "", true, nil},
	} {
		if err := g.allow("default", a.account, a.name, a.gateway, a.labels); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name, account string
		role          compile.Role
		labels        mesh.Labels
		refused       string // empty: admitted
	}{
		{"web-1", "web", compile.Sidecar, mesh.Labels{"app": "web"}, ""},
		{"web-1", "web", compile.Sidecar, mesh.Labels{"app": "bank"}, "other labels"},
		{"web-1", "web", compile.Gateway, mesh.Labels{"app": "web"}, "another role"},
		{"web-1", "any", compile.Sidecar, mesh.Labels{"app": "web"}, "belongs to service account web"},
		{"web-2", "web", compile.Sidecar, nil, ""},
		{"web-2", "web", compile.Gateway, nil, "may not be a gateway"},
		{"edge-1", "edge", compile.Gateway, nil, ""},
		{"edge-1", "edge", compile.Sidecar, nil, "another role"},
		{"x", "any", compile.Sidecar, mesh.Labels{"app": "x"}, ""},
		{"x", "any", compile.Gateway, nil, "may not be a gateway"},
		{"x", "anyedge", compile.Gateway, nil, ""},
		{"x", "stranger", compile.Sidecar, nil, "no token was ever made"},
		{"web-1", "any", compile.GRPC, nil, ""},
	}
	again, err := newGrants(path) // what was written down is what was said
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []*grants{g, again} {
		for _, tt := range tests {
			n := &node{name: tt.name, asker: compile.Asker{Role: tt.role, Labels: tt.labels}}
			err := g.check(n, identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: tt.account})
			switch {
			case tt.refused == "" && err != nil:
				t.Errorf("%s as %s of %s: %v", tt.name, tt.role, tt.account, err)
			case tt.refused != "" && (err == nil || !strings.Contains(err.Error(), tt.refused)):
				t.Errorf("%s as %s of %s: %v, want %q", tt.name, tt.role, tt.account, err, tt.refused)
			}
		}
	}
}
