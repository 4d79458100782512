package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	admission "k8s.io/api/admission/v1"

	"github.com/lateen-mesh/lateen/inject"
)

// TestInjectionAnew: what the configuration of injection says later counts for pods that come then; one with a fault, or of
// another revision, does not, and is told once.
func TestInjectionAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		now, fault := inject.Config{ProxyImage: "p:1", InitImage: "i"}, error(nil)
		first := now
		var mu sync.Mutex // of now, fault and text
		c := &Control{log: slog.New(slog.NewTextHandler(&text, nil)), cfg: Config{
			Inject: &first, InjectAnew: func() (inject.Config, error) {
				mu.Lock()
				defer mu.Unlock()
				return now, fault
			},
		}}
		write := func(f func()) {
			mu.Lock()
			f()
			text.Reset()
			mu.Unlock()
			<-time.After(3 * injectionEvery)
			synctest.Wait()
		}
		in, err := inject.New(now)
		if err != nil {
			t.Fatal(err)
		}
		hook := inject.NewWebhook(in, nil)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			c.followInjection(ctx, hook)
			close(ended)
		}()
		image := func(want string) {
			t.Helper()
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPost, inject.Path, strings.NewReader(
				`{"request":{"uid":"u","operation":"CREATE","kind":{"kind":"Pod"},"object":{"spec":{"containers":[{"name":"a"}]}}}}`))
			r.Header.Set("Content-Type", "application/json")
			hook.ServeHTTP(w, r)
			patch := injectedPatch(t, w.Body.Bytes())
			if !strings.Contains(patch, `"image":"`+want+`"`) {
				t.Errorf("not injected with %s: %s", want, patch)
			}
		}
		write(func() { now.ProxyImage = "p:2" })
		image("p:2")
		for _, spoil := range []func(){
			func() { now.ProxyImage = "" },
			func() { now.ProxyImage, now.Revision = "p:3", "canary" },
			func() { now.Revision, fault = "", errors.New("no such file") },
		} {
			write(spoil)
			image("p:2")
			if n := strings.Count(text.String(), "level=WARN"); n != 1 {
				t.Errorf("told %d times:\n%s", n, &text)
			}
		}
		write(func() { fault = nil })
		image("p:3")
		stop()
		<-ended
	})
}

// injectedPatch is the patch in an answer to a review.
func injectedPatch(t *testing.T, answer []byte) string {
	t.Helper()
	var review admission.AdmissionReview
	if err := json.Unmarshal(answer, &review); err != nil || review.Response == nil {
		t.Fatalf("%v: %s", err, answer)
	}
	return string(review.Response.Patch)
}
