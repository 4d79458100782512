package inject

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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

// TestSlowReviews: addresses that send slowly, as many as there are places and more, keep no other out, and nothing of
// them stays when they go.
func TestSlowReviews(t *testing.T) {
	h := NewReviews(func(*http.Request, *admission.AdmissionRequest) *admission.AdmissionResponse { return Allowed() })
	s := httptest.NewServer(h)
	defer s.Close()
	from := func(address string) *net.Dialer {
		return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	}
	var slow []net.Conn
	defer func() {
		for _, c := range slow {
			_ = c.Close()
		}
	}()
	for address := range 8 {
		for range reviewsFrom {
			c, err := from(fmt.Sprintf("127.0.1.%d", 1+address)).DialContext(t.Context(), "tcp", s.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			slow = append(slow, c)
			_, _ = io.WriteString(c, "POST /inject HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n")
		}
		for _, c := range slow[len(slow)-reviewsFrom:] { // it is read, or given up already
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	client := http.Client{Transport: &http.Transport{DialContext: from("127.0.0.1").DialContext, DisableKeepAlives: true}, Timeout: time.Minute}
	for range 3 {
		answer, err := client.Post(s.URL+Path, "application/json", strings.NewReader(reviewOf("Pod", "CREATE", "shop", plainPod)))
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("answered with %s", answer.Status)
		}
	}
	for _, c := range slow {
		_ = c.Close()
	}
	s.Close() // waits for all
	if h.line.Len()+h.reading.Len()+len(h.judging) > 0 {
		t.Errorf("%d, %d and %d requests stay behind", h.line.Len(), h.reading.Len(), len(h.judging))
	}
}

// single is a listener with one connection.
type single struct {
	net.Listener
	conn chan net.Conn
	end  func()
}

// Accept returns the connection, and waits for the end after that.
func (l single) Accept() (net.Conn, error) {
	c, ok := <-l.conn
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close ends the waiting.
func (l single) Close() error {
	l.end()
	return nil
}

// TestLateBody: a body has its time and no more.
func TestLateBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewReviews(func(*http.Request, *admission.AdmissionRequest) *admission.AdmissionResponse { return Allowed() })
		s := &http.Server{Handler: h, ReadTimeout: time.Minute}
		near, far := net.Pipe()
		conn := make(chan net.Conn, 1)
		conn <- far
		l := single{conn: conn, end: sync.OnceFunc(func() { close(conn) })}
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(l) }()
		began := time.Now()
		if _, err := io.WriteString(near, "POST /inject HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(near), nil)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(answer.Body)
		if answer.StatusCode != http.StatusRequestTimeout || !strings.Contains(string(text), "did not come within "+bodyTimeout.String()) || time.Since(began) != bodyTimeout {
			t.Errorf("%s %s after %s", answer.Status, text, time.Since(began))
		}
		_ = near.Close()
		_ = s.Close()
		if err := <-ended; err == nil {
			t.Error("served on")
		}
		if h.line.Len()+h.reading.Len()+len(h.judging) > 0 {
			t.Error("it stays behind")
		}
	})
}
