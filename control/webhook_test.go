package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/inject"
)

// podReview asks for a pod.
const podReview = `{"request":{"uid":"u","operation":"CREATE","kind":{"kind":"Pod"},"object":{"spec":{"containers":[{"name":"a"}]}}}}`

// webhooks serves them until the test ends, or end is called; client believes WebhookRoots.
func webhooks(t *testing.T) (url string, client func(h2 bool) *http.Client, end func()) {
	t.Helper()
	b := newBench(t, Config{
		Inject: &inject.Config{ProxyImage: "p", InitImage: "i"}, Webhooks: "127.0.0.1:0", Names: []string{"lateend.sys.svc"},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.serveWebhooks(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	deadline := time.Now().Add(10 * time.Second)
	for b.webhooks.Load() == nil {
		if time.Now().After(deadline) {
			t.Fatal("the webhooks are not served")
		}
		<-time.After(time.Millisecond)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b.WebhookRoots()) {
		t.Fatal("no roots")
	}
	return "https://" + *b.webhooks.Load() + inject.Path + "/cluster/c1", func(h2 bool) *http.Client {
		return &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "lateend.sys.svc"}, ForceAttemptHTTP2: h2, DisableKeepAlives: true,
			ExpectContinueTimeout: time.Minute,
		}}
	}, end
}

// injected fails the test unless a review was answered with a patch.
func injected(t *testing.T, answer *http.Response, err error, major int) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	if err != nil || answer.StatusCode != http.StatusOK || !strings.Contains(string(text), `"patchType":"JSONPatch"`) || answer.ProtoMajor != major {
		t.Errorf("%s %s %s (%v)", answer.Proto, answer.Status, text, err)
	}
}

// TestWebhooks: who believes WebhookRoots and calls the service's name gets pods injected.
func TestWebhooks(t *testing.T) {
	url, client, _ := webhooks(t)
	for major, h2 := range map[int]bool{1: false, 2: true} {
		answer, err := client(h2).Post(url, "application/json", strings.NewReader(podReview))
		injected(t, answer, err, major)
	}
}

// TestWebhooksEnd: what is being judged when the server is to end is judged.
func TestWebhooksEnd(t *testing.T) {
	for major, h2 := range map[int]bool{1: false, 2: true} {
		answer, err := endWhileRead(t, h2)
		for err == nil && answer.StatusCode == http.StatusRequestTimeout { // the body came too late, on a machine that is busy
			_ = answer.Body.Close()
			answer, err = endWhileRead(t, h2)
		}
		injected(t, answer, err, major)
	}
}

// endWhileRead ends the webhooks while a review is read, whose answer it returns.
func endWhileRead(t *testing.T, h2 bool) (*http.Response, error) {
	t.Helper()
	url, client, end := webhooks(t)
	defer end()
	body, rest := io.Pipe()
	reading := make(chan struct{})
	trace := &httptrace.ClientTrace{Got100Continue: sync.OnceFunc(func() { close(reading) })}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Expect", "100-continue") // is said when somebody reads the body
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-reading
		go end()
		for { // until it ends
			c, err := net.Dial("tcp", r.URL.Host)
			if err != nil {
				break
			}
			_ = c.Close()
		}
		_, err := io.WriteString(rest, podReview)
		_ = rest.CloseWithError(err)
	}()
	answer, err := client(h2).Do(r)
	<-ended
	return answer, err
}

// TestWebhookConfig: a fault in the configuration of injection is told before anything is served.
func TestWebhookConfig(t *testing.T) {
	dir := t.TempDir()
	_, err := New(Config{Dir: dir, State: dir, Listen: "127.0.0.1:0", API: dir + "/api", Inject: &inject.Config{}})
	if err == nil || !strings.Contains(err.Error(), "proxyImage") {
		t.Error(err)
	}
}

// TestFaultTold: a fault of our own in a review is logged, and the connection ends.
func TestFaultTold(t *testing.T) {
	var text bytes.Buffer
	h := tellFaults(slog.New(slog.NewTextHandler(&text, nil)), http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("broken") }))
	func() {
		defer func() {
			if cause := recover(); cause != http.ErrAbortHandler { //nolint:errorlint // a panic's value
				t.Errorf("recovered %v", cause)
			}
		}()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/validate", http.NoBody))
	}()
	if got := text.String(); !strings.Contains(got, "cause=broken") || !strings.Contains(got, "path=/validate") {
		t.Errorf("logged: %s", got)
	}
}
