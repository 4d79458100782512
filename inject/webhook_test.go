package inject

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	admission "k8s.io/api/admission/v1"
)

func reviewOf(kind, operation, namespace, pod string) string {
	return fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","kind":{"version":"v1","kind":%q},
		"operation":%q,"namespace":%q,"object":%s}}`, kind, operation, namespace, pod)
}

func post(t *testing.T, in *Injector, path, contentType, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	NewWebhook(in, nil).ServeHTTP(w, r)
	return w
}

const plainPod = `{"metadata":{"generateName":"a-"},"spec":{"containers":[{"name":"a","image":"a"}]}}`

// TestWebhook: a review is answered with its UID, and a patch where a pod is to be injected.
func TestWebhook(t *testing.T) {
	in := injector(t, nil)
	noisy := strings.Replace(plainPod, `"metadata":{`, `"metadata":{"annotations":{"sidecar.istio.io/`+strings.Repeat("x", 300)+`":""},`, 1)
	wrong := strings.Replace(plainPod, `"metadata":{`, `"metadata":{"annotations":{"sidecar.istio.io/proxyCPU":"many"},`, 1)
	for _, tt := range []struct {
		name, review  string
		allowed       bool
		patch         string // in the patch; empty: there is none
		message, warn string
	}{
		{"a pod", reviewOf("Pod", "CREATE", "shop", plainPod), true, "namespaces/shop/pods/a", "", ""},
		{"an ignored namespace", reviewOf("Pod", "CREATE", "kube-system", plainPod), true, "", "", ""},
		{"not a pod", reviewOf("Deployment", "CREATE", "shop", "{}"), true, "", "", ""},
		{"an update", reviewOf("Pod", "UPDATE", "shop", plainPod), true, "", "", ""},
		{"no pod in it", reviewOf("Pod", "CREATE", "shop", `"x"`), false, "", "read the pod", ""},
		{"a bad annotation", reviewOf("Pod", "CREATE", "shop", wrong), false, "", `Pod shop/a cannot be injected: annotation sidecar.istio.io/proxyCPU: "many"`, ""},
		{"a warning", reviewOf("Pod", "CREATE", "shop", noisy), true, "istio-proxy", "", "xxx…"},
	} {
		w := post(t, in, Path, "application/json; charset=utf-8", tt.review)
		var review admission.AdmissionReview
		if err := json.Unmarshal(w.Body.Bytes(), &review); err != nil || w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", tt.name, w.Code, w.Body)
			continue
		}
		r := review.Response
		if review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" || r.UID != "u1" || r.Allowed != tt.allowed {
			t.Errorf("%s: %s", tt.name, w.Body)
		}
		if (tt.patch == "") != (r.Patch == nil) || !bytes.Contains(r.Patch, []byte(tt.patch)) || r.Patch != nil && *r.PatchType != admission.PatchTypeJSONPatch {
			t.Errorf("%s: patch %s", tt.name, r.Patch)
		}
		if tt.message != "" && (r.Result == nil || !strings.Contains(r.Result.Message, tt.message)) {
			t.Errorf("%s: %+v, want %q", tt.name, r.Result, tt.message)
		}
		if warnings := strings.Join(r.Warnings, ""); !strings.HasSuffix(warnings, tt.warn) || len(warnings) > warningMax {
			t.Errorf("%s: warnings %q", tt.name, r.Warnings)
		}
	}
}

// TestWebhookPath: what Istio's injection URLs carry goes before the configuration.
func TestWebhookPath(t *testing.T) {
	in := injector(t, func(c *Config) { c.Cluster = "own" })
	for path, want := range map[string]string{
		"/inject": `ISTIO_META_CLUSTER_ID","value":"own"`, "/inject/cluster/c2/net/n2": `ISTIO_META_CLUSTER_ID","value":"c2"`,
		"/inject/net/n2": `ISTIO_META_NETWORK","value":"n2"`, "/inject/odd": `"own"`, "/inject/other/thing/cluster/c3": `"c3"`,
	} {
		var review admission.AdmissionReview
		if err := json.Unmarshal(post(t, in, path, "application/json", reviewOf("Pod", "CREATE", "a", plainPod)).Body.Bytes(), &review); err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(review.Response.Patch, []byte(want)) {
			t.Errorf("%s: no %s in %s", path, want, review.Response.Patch)
		}
	}
}

// TestWebhookRefuses what is no review.
func TestWebhookRefuses(t *testing.T) {
	in := injector(t, nil)
	for _, tt := range []struct {
		path, contentType, body string
		want                    int
	}{
		{"/injector", "application/json", "{}", 404},
		{Path, "text/plain", "{}", 415},
		{Path, "", "{}", 415},
		{Path, "application/json", "{", 400},
		{Path, "application/json", "{}", 400},
		{Path, "application/json", `{"request":null}`, 400},
		{Path, "application/json", `"` + strings.Repeat("x", bodyMax) + `"`, 413},
	} {
		if got := post(t, in, tt.path, tt.contentType, tt.body); got.Code != tt.want {
			t.Errorf("%s %s %.20s: %d %s, want %d", tt.path, tt.contentType, tt.body, got.Code, got.Body, tt.want)
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, Path, nil)
	w := httptest.NewRecorder()
	NewWebhook(in, nil).ServeHTTP(w, r)
	if w.Code != 405 {
		t.Error(w.Code)
	}
}

// FuzzReview: whatever is sent, an answer is a review, and a patch that is in it can be applied to the pod.
func FuzzReview(f *testing.F) {
	f.Add([]byte(reviewOf("Pod", "CREATE", "a", plainPod)))
	f.Add([]byte(reviewOf("Pod", "CREATE", "a", `{"metadata":{"labels":{},"annotations":{"proxy.istio.io/config":"concurrency: 1","inject.istio.io/templates":"gateway"}},
		"spec":{"containers":[{"name":"istio-proxy","image":"auto","env":[{"name":"a"}]},{"name":"b","livenessProbe":{"httpGet":{"port":"x"}}}],"volumes":null}}`)))
	f.Add([]byte(`{"request":{"operation":"CREATE","kind":{"kind":"Pod"},"object":{"spec":{"initContainers":[{"name":"istio-proxy"}]}}}}`))
	in, err := New(testConfig())
	if err != nil {
		f.Fatal(err)
	}
	h := NewWebhook(in, nil)
	f.Fuzz(func(t *testing.T, body []byte) {
		answer, err := h.reviews.review(httptest.NewRequestWithContext(t.Context(), http.MethodPost, Path, nil), body)
		if err != nil {
			return
		}
		var before, after admission.AdmissionReview
		if json.Unmarshal(body, &before) != nil || json.Unmarshal(answer, &after) != nil || after.Response == nil {
			t.Fatalf("no review: %s", answer)
		}
		if after.Response.Patch == nil {
			return
		}
		var pod any
		var ops []map[string]any
		if err := json.Unmarshal(before.Request.Object.Raw, &pod); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(after.Response.Patch, &ops); err != nil {
			t.Fatal(err)
		}
		for _, op := range ops {
			pod = applyJSON(t, pod, strings.Split(op["path"].(string), "/")[1:], op)
		}
	})
}

// FuzzDocuments: what comes out can be read again, and injecting it again changes nothing.
func FuzzDocuments(f *testing.F) {
	f.Add([]byte("kind: Pod\nspec:\n  containers: [{name: a}]\n"))
	f.Add([]byte("---\n# c\n---\nkind: List\nitems:\n- &a\n  kind: Pod\n  spec: {containers: []}\n- *a\n"))
	in, err := New(testConfig())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		once, _, err := in.Documents(text)
		if err != nil {
			return
		}
		twice, _, err := in.Documents(once)
		if err != nil {
			t.Fatalf("%v in\n%s", err, once)
		}
		if !bytes.Equal(once, twice) {
			t.Fatalf("once\n%s\ntwice\n%s", once, twice)
		}
	})
}

// TestSlowReviews: one address that sends slowly keeps no other out, and nothing of it stays when it goes.
func TestSlowReviews(t *testing.T) {
	h := NewReviews(func(*http.Request, *admission.AdmissionRequest) *admission.AdmissionResponse { return Allowed() })
	ask := func(ctx context.Context, from string, body io.Reader) int {
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, Path, body)
		r.Header.Set("Content-Type", "application/json")
		r.RemoteAddr = from
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	slow, end := io.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for range 2 * reviewsMax {
		group.Go(func() { ask(ctx, "10.0.0.1:1", slow) })
	}
	for range 3 {
		if code := ask(t.Context(), "10.0.0.2:1", strings.NewReader(reviewOf("Pod", "CREATE", "shop", plainPod))); code != http.StatusOK {
			t.Errorf("answered with %d", code)
		}
	}
	stop() // who waits goes
	_ = end.CloseWithError(io.ErrUnexpectedEOF)
	group.Wait()
	if len(h.lines)+len(h.room) > 0 {
		t.Errorf("%d addresses and %d requests stay behind", len(h.lines), len(h.room))
	}
}
