package netns

import (
	"strings"
	"testing"
)

// TestRunConfig: objects that come with a workload are applied when it starts, also by the first of a mesh, and a file
// that is refused keeps it from starting.
func TestRunConfig(t *testing.T) {
	m := newRig(t, root(t))
	file := m.write("with.yaml", virtualService("http: [{route: [{destination: {host: shop}}]}]"))
	m.start("client", "--config", file)
	if out, code := m.lateen("get", "virtualservice", "shop"); code != 0 || !strings.Contains(out, "shop") {
		t.Errorf("code %d: %s", code, out)
	}
	bad := m.write("bad.yaml", virtualService("http: [{rout: []}]"))
	if out, code := m.lateen("run", "--name", "second", "--config", bad, "--", "true"); code != 1 || !strings.Contains(out, "bad.yaml:") {
		t.Errorf("code %d: %s", code, out)
	}
}
