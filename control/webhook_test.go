package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/inject"
)

// TestWebhooks: who believes WebhookRoots and calls the service's name gets pods injected.
func TestWebhooks(t *testing.T) {
	b := newBench(t, Config{
		Inject: &inject.Config{ProxyImage: "p", InitImage: "i"}, Webhooks: "127.0.0.1:0", Names: []string{"lateend.sys.svc"},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.serveWebhooks(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	deadline := time.Now().Add(10 * time.Second)
	for b.webhooks.Load() == nil {
		if time.Now().After(deadline) {
			t.Fatal("the webhooks are not served")
		}
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b.WebhookRoots()) {
		t.Fatal("no roots")
	}
	for _, h2 := range []bool{false, true} {
		client := http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "lateend.sys.svc"}, ForceAttemptHTTP2: h2, DisableKeepAlives: true,
		}}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+*b.webhooks.Load()+inject.Path+"/cluster/c1", strings.NewReader(
			`{"request":{"uid":"u","operation":"CREATE","kind":{"kind":"Pod"},"object":{"spec":{"containers":[{"name":"a"}]}}}}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusOK || !strings.Contains(string(text), `"patchType":"JSONPatch"`) || (answer.ProtoMajor == 2) != h2 {
			t.Errorf("%s %s %s (%v)", answer.Proto, answer.Status, text, err)
		}
	}
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
