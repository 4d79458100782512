package kube

import (
	"strings"
	"testing"
)

// TestOperatorDump: the operator's objects are written as they are wanted, its namespace first; what its chart does not know
// is refused.
func TestOperatorDump(t *testing.T) {
	for _, tt := range []struct {
		args  []string
		input string
		code  int
		want  []string
	}{
		{[]string{"--set", "tag=v2"}, "", 0, []string{"---\napiVersion: v1\nkind: Namespace\n", "lateen-operator:v2", "kind: ClusterRole\n"}},
		{[]string{"-f", "-", "--set", "tag=v3"}, "hub: lateen.test\ntag: v2\n", 0, []string{"lateen.test/lateen-operator:v3"}},
		{[]string{"--set", "lateend.replicas=2"}, "", 1, []string{"'lateend' not allowed"}},
		{[]string{"-f", "-"}, "a: 1\na: 2\n", 1, []string{"-: read values"}},
		{[]string{"more"}, "", 2, []string{"lateen operator dump --help"}},
	} {
		var out, errs strings.Builder
		code := Execute(t.Context(), append([]string{"operator", "dump"}, tt.args...), strings.NewReader(tt.input), &out, &errs)
		if code != tt.code || (code == 0) != (errs.Len() == 0) {
			t.Errorf("%v: exit code %d, %s", tt.args, code, errs.String())
		}
		for _, want := range tt.want {
			if !strings.Contains(out.String()+errs.String(), want) {
				t.Errorf("%v: there is no %q in\n%s%s", tt.args, want, out.String(), errs.String())
			}
		}
	}
}
