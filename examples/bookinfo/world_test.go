package main

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// world is the network of a test: handlers by address. A request to an address
// that is not in it finds nobody there.
type world map[string]http.Handler

// RoundTrip lets the handler answer, unless the request's context ends first.
func (w world) RoundTrip(req *http.Request) (*http.Response, error) {
	handler, ok := w[req.URL.Host]
	if !ok {
		return nil, &url.Error{Op: req.Method, URL: req.URL.String(), Err: http.ErrServerClosed}
	}
	answer, done := httptest.NewRecorder(), make(chan struct{})
	go func() {
		defer close(done)
		handler.ServeHTTP(answer, req)
	}()
	select {
	case <-done:
		return answer.Result(), nil
	case <-req.Context().Done():
		<-done
		return nil, req.Context().Err()
	}
}

// start builds a service that sees this world.
func (w world) start(t *testing.T, cfg Config) http.Handler {
	t.Helper()
	if cfg.Pod == "" {
		cfg.Pod = cfg.Service + "-pod"
	}
	s, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.client.Transport = w
	return s.handler
}

// bookinfo is the whole sample with one version of reviews; ratings is delayed.
func bookinfo(t *testing.T, reviewsVersion string, delay time.Duration) world {
	t.Helper()
	w := world{}
	w["details:9080"] = w.start(t, Config{Service: details})
	w["reviews:9080"] = w.start(t, Config{Service: reviews, Version: reviewsVersion, Cluster: "east"})
	w["ratings:9080"] = delayed(delay, w.start(t, Config{Service: ratings}))
	w["productpage:9080"] = w.start(t, Config{Service: productpage})
	return w
}

// delayed is next behind a delay, which ends early when the caller leaves.
func delayed(delay time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(delay):
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})
}

// silent accepts requests and never answers.
var silent = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })

// says is a backend that always gives the same answer.
func says(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	})
}

// get asks h for path; headers come in pairs.
func get(h http.Handler, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, r)
	return answer
}

// post sends body to path.
func post(h http.Handler, path, contentType, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, r)
	return answer
}

// wantBody checks the status of an answer and what its body contains; a text
// that begins with ! must be absent.
func wantBody(t *testing.T, answer *httptest.ResponseRecorder, status int, texts ...string) {
	t.Helper()
	body := answer.Body.String()
	if answer.Code != status {
		t.Errorf("status %d, want %d; body:\n%s", answer.Code, status, body)
	}
	for _, text := range texts {
		if absent, not := strings.CutPrefix(text, "!"); not {
			if strings.Contains(body, absent) {
				t.Errorf("body has %q:\n%s", absent, body)
			}
		} else if !strings.Contains(body, text) {
			t.Errorf("body lacks %q:\n%s", text, body)
		}
	}
}
