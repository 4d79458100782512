package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	admission "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/lateen-mesh/lateen/source/kube"
)

// unreachable is a cluster of which nothing can be read.
func unreachable(t *testing.T) *kube.Store {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	text := "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: \"http://127.0.0.1:1\"}}]}"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	at, err := kube.Reach(file, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := kube.Open(kube.Config{Cluster: at})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestValidate: what is wrong is refused in the words of `lateen apply`, what is doubtful is warned of, and nothing but
// writing is judged.
func TestValidate(t *testing.T) {
	b := newBench(t, Config{})
	b.cluster = unreachable(t)
	object := func(kind, spec string) string {
		return `{"apiVersion":"networking.istio.io/v1","kind":"` + kind + `","metadata":{"name":"a","namespace":"shop","managedFields":[{"manager":"x"}]},"spec":` + spec + `,"status":{}}`
	}
	faulty := object("VirtualService", `{"hosts":["a"],"http":[{"timeout":"never","route":[{"destination":{"host":"a"}}]}]}`)
	for _, tt := range []struct {
		name, object string
		operation    admission.Operation
		message      string
		warning      string
	}{
		{"good", object("Gateway", `{"selector":{"a":"b"},"servers":[{"hosts":["*"],"port":{"number":80,"name":"http","protocol":"HTTP"}}]}`), admission.Create, "", ""},
		{"faulty", faulty, admission.Create, `spec.http[0].timeout: "never" is not a duration`, ""},
		{"changed to faulty", faulty, admission.Update, `spec.http[0].timeout: "never" is not a duration`, ""},
		{"deleted", faulty, admission.Delete, "", ""},
		{"faulty, but going", strings.Replace(faulty, `"name":"a"`, `"name":"a","deletionTimestamp":"2026-01-02T03:04:05Z"`, 1), admission.Update, "", ""},
		{"two faults", object("Gateway", `{"servers":[{"hosts":[],"port":{"number":0,"name":"http","protocol":"X"}}]}`), admission.Create, "\n", ""},
		{"doubtful", object("VirtualService", `{"hosts":["a"],"http":[{"mirror":{"host":"b"},"mirrorPercent":1,"route":[{"destination":{"host":"a"}}]}]}`), admission.Create, "", "spec.http[0].mirrorPercent: is deprecated; write mirrorPercentage instead"},
		{"another implementation's", `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"TLSRoute","metadata":{"name":"a","namespace":"shop"}}`, admission.Create, "", ""},
		{"no object", `7`, admission.Create, "must be an object", ""},
	} {
		got := b.validate(nil, &admission.AdmissionRequest{Operation: tt.operation, Object: runtime.RawExtension{Raw: []byte(tt.object)}})
		if got.Allowed != (tt.message == "") || tt.message != "" && !strings.Contains(got.Result.Message, tt.message) {
			t.Errorf("%s: %+v, want the message %q", tt.name, got, tt.message)
		}
		if warnings := strings.Join(got.Warnings, "\n"); warnings != tt.warning {
			t.Errorf("%s: warnings %q, want %q", tt.name, warnings, tt.warning)
		}
	}
}
