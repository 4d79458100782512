package inject

import (
	"encoding/json"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// annotated injects a pod with one annotation, or several, and returns the patch as JSON.
func annotated(t *testing.T, notes map[string]string) (patch string, warnings []string, err error) {
	t.Helper()
	pod, err := json.Marshal(core.Pod{ObjectMeta: meta.ObjectMeta{Annotations: notes}, Spec: core.PodSpec{Containers: []core.Container{{Name: "app"}}}})
	if err != nil {
		t.Fatal(err)
	}
	result, err := injector(t, nil).Inject(Request{Pod: pod})
	text, failed := json.Marshal(result.Patch)
	if failed != nil {
		t.Fatal(failed)
	}
	return string(text), result.Warnings, err
}

// TestScrapePort: an application whose metrics the proxy cannot find keeps its annotations, and the pod starts.
func TestScrapePort(t *testing.T) {
	for port, merged := range map[string]bool{"9090": true, "": true, "metrics": false, "8080,9090": false, "0": false, "70000": false} {
		patch, warnings, err := annotated(t, map[string]string{annotationScrape: "true", annotationScrapePort: port})
		if err != nil {
			t.Errorf("port %q: %v", port, err)
		}
		told := len(warnings) == 1 && strings.Contains(warnings[0], "is not the number of a port")
		if told == merged || strings.Contains(patch, "ISTIO_PROMETHEUS_ANNOTATIONS") != merged || strings.Contains(patch, "/stats/prometheus") != merged {
			t.Errorf("port %q: merged or not? want %v; warnings %q, patch %s", port, merged, warnings, patch)
		}
	}
}

// TestProxyFaults: what the proxy could not start with is refused, rather than found in a loop of crashes.
func TestProxyFaults(t *testing.T) {
	const discovery = prefixSidecar + "discoveryAddress"
	for _, tt := range []struct{ key, value, want string }{
		{annotationConfig, `proxyMetadata: {SECRET_TTL: 24}`, `annotation proxy.istio.io/config: proxyMetadata.SECRET_TTL: must be a text`},
		{annotationConfig, `proxyMetadata: {SECRET_TTL: "24"}`, `annotation proxy.istio.io/config: proxyMetadata.SECRET_TTL: "24" is not a lifetime`},
		{annotationConfig, `proxyMetadata: {SECRET_TTL: -1h}`, `proxyMetadata.SECRET_TTL: "-1h" is not a lifetime`},
		{annotationConfig, `proxyMetadata: {SECRET_TTL: 1h30m, CA_ADDR: "csr.certs.svc:443"}`, ""},
		{annotationConfig, `proxyMetadata: {CA_ADDR: csr.certs.svc}`, `proxyMetadata.CA_ADDR: "csr.certs.svc" is not an address with a port`},
		{annotationConfig, `proxyMetadata: {CA_ADDR: ":443"}`, `proxyMetadata.CA_ADDR: ":443" is not an address with a port`},
		{annotationConfig, `discoveryAddress: lateend.mesh.svc`, `annotation proxy.istio.io/config: discoveryAddress: "lateend.mesh.svc" is not`},
		{annotationConfig, `discoveryAddress: lateend.mesh.svc:15012`, ""},
		{discovery, "lateend.mesh.svc", `discoveryAddress: "lateend.mesh.svc" is not an address with a port`},
		{discovery, "", ""},
	} {
		_, warnings, err := annotated(t, map[string]string{tt.key: tt.value})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) || len(warnings) > 0 {
			t.Errorf("%s: %v, warnings %q; want %q", tt.value, err, warnings, tt.want)
		}
	}
}

// TestProxyIdentity: a container with the user or the group by which the rules know the proxy is told of.
func TestProxyIdentity(t *testing.T) {
	as := func(user, group int64) *core.SecurityContext {
		return &core.SecurityContext{RunAsUser: &user, RunAsGroup: &group}
	}
	for _, tt := range []struct {
		name string
		pod  *core.PodSecurityContext
		app  *core.SecurityContext
		want []string
	}{
		{"neither", nil, as(1000, 1000), nil},
		{"the user", nil, as(proxyUser, 1000), []string{"container app runs as user 1337"}},
		{"the group", nil, as(1000, proxyUser), []string{"container app runs as group 1337"}},
		{"both", nil, as(proxyUser, proxyUser), []string{"container app runs as user 1337", "container app runs as group 1337"}},
		{"the pod's group", &core.PodSecurityContext{RunAsGroup: new(int64(proxyUser))}, nil, []string{"container app runs as group 1337"}},
		{"not the pod's group", &core.PodSecurityContext{RunAsGroup: new(int64(proxyUser))}, as(1000, 1000), nil},
	} {
		pod, err := json.Marshal(core.Pod{Spec: core.PodSpec{SecurityContext: tt.pod, Containers: []core.Container{{Name: "app", SecurityContext: tt.app}}}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := injector(t, nil).Inject(Request{Pod: pod})
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Warnings) != len(tt.want) {
			t.Errorf("%s: warnings %q, want %q", tt.name, got.Warnings, tt.want)
			continue
		}
		for i, w := range tt.want {
			if !strings.HasPrefix(got.Warnings[i], w) {
				t.Errorf("%s: warning %q, want %q", tt.name, got.Warnings[i], w)
			}
		}
	}
}
