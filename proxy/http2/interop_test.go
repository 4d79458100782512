package http2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"
)

// newBackend is the standard library's HTTP/2 server without TLS.
func newBackend(t *testing.T, h http.Handler) string {
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// newBrowser is the standard library's HTTP/2 client without TLS.
func newBrowser(t *testing.T) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), ExpectContinueTimeout: time.Minute}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// newSandwich is the standard library on both sides of our server and client.
func newSandwich(t *testing.T, h http.HandlerFunc, cfg Config) (*relay, *http.Client, string) {
	r := newRelay(t, newBackend(t, h), cfg)
	return r, newBrowser(t), "http://" + r.addr
}

// answer is a response that was read to its end.
type answer struct {
	status          int
	proto, body     string
	header, trailer http.Header
}

func ask(t testing.TB, c *http.Client, req *http.Request, err error) answer {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req.WithContext(t.Context()))
	if err != nil {
		t.Error(err)
		return answer{}
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Error(err)
	}
	return answer{resp.StatusCode, resp.Proto, string(body), resp.Header, resp.Trailer}
}

func TestInteropRequests(t *testing.T) {
	_, c, url := newSandwich(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Seen", fmt.Sprintf("%s %s %s %s %d %v", r.Method, r.Host, r.URL.RequestURI(), r.Proto, r.ContentLength, r.Header["X-Many"]))
		switch r.URL.Path {
		case "/empty":
			w.WriteHeader(204)
		case "/fresh":
			w.WriteHeader(304)
		case "/sized":
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "sized")
		default:
			_, _ = w.Write(body)
		}
	}, Config{})
	tests := []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/a?b=c%20d", "", 200, ""},
		{"POST", "/echo", "hello", 200, "hello"},
		{"HEAD", "/sized", "", 200, ""},
		{"GET", "/sized", "", 200, "sized"},
		{"DELETE", "/empty", "", 204, ""},
		{"GET", "/fresh", "", 304, ""},
		{"OPTIONS", "/", "", 200, ""},
		{"WEIRD-Method", "/", "x", 200, "x"},
	}
	for range 3 { // the tables of HPACK fill
		for _, tt := range tests {
			req, err := http.NewRequest(tt.method, url+tt.path, strings.NewReader(tt.body))
			req.Host = "service.test"
			req.Header["X-Many"] = []string{"1", "2"}
			req.Header.Set("Cookie", "a=1; b=2")
			got := ask(t, c, req, err)
			seen := fmt.Sprintf("%s service.test %s HTTP/2.0 %d [1 2]", tt.method, tt.path, len(tt.body))
			if got.status != tt.status || got.body != tt.want || got.header.Get("Seen") != seen || got.proto != "HTTP/2.0" {
				t.Errorf("%s %s: %+v", tt.method, tt.path, got)
			}
		}
	}
}

func TestInteropTrailers(t *testing.T) {
	_, c, url := newSandwich(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		_, _ = w.Write(body)
		w.Header().Set("X-Sum", r.Trailer.Get("X-Sum"))
		w.Header().Set(http.TrailerPrefix+"X-Late", "yes")
	}, Config{})
	req, err := http.NewRequest("POST", url, io.NopCloser(strings.NewReader("body")))
	req.Trailer = http.Header{"X-Sum": {"4"}}
	got := ask(t, c, req, err)
	if got.body != "body" || got.trailer.Get("X-Sum") != "4" || got.trailer.Get("X-Late") != "yes" {
		t.Errorf("%+v", got)
	}
}

func TestInteropInterim(t *testing.T) {
	_, c, url := newSandwich(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hints" {
			w.Header().Set("Link", "</a.css>")
			w.WriteHeader(103)
		}
		_, _ = io.Copy(w, r.Body) // sends 100 if it is expected
	}, Config{})
	for path, want := range map[string]string{"/hints": "103 </a.css>", "/expect": "100 "} {
		interim := make(chan string, 9)
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			interim <- fmt.Sprint(code, " ", h.Get("Link"))
			return nil
		}})
		req, err := http.NewRequestWithContext(ctx, "POST", url+path, strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		if path == "/expect" {
			req.Header.Set("Expect", "100-continue")
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || string(body) != "hello" || len(interim) != 1 || <-interim != want {
			t.Errorf("%s: %q, %v", path, body, err)
		}
	}
}

// TestInteropBig moves bodies each way on several streams at once, through large windows and small ones.
func TestInteropBig(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg  Config
		size int
	}{
		"large windows": {Config{}, 4 << 20},
		"small windows": {Config{StreamWindow: 20_000, ConnWindow: 70_000, SendBuffer: 5_000}, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			r, c, url := newSandwich(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }, tt.cfg)
			want := pattern(tt.size)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					req, err := http.NewRequest("POST", url, bytes.NewReader(want))
					if got := ask(t, c, req, err); got.body != string(want) {
						t.Errorf("%d bytes came back, or others", len(got.body))
					}
				})
			}
			wg.Wait()
			r.loop.Lock()
			defer r.loop.Unlock()
			if r.up.waiting != 0 || r.up.kept != 0 || r.up.Active() != 0 {
				t.Errorf("%d wait, %d kept, %d open", r.up.waiting, r.up.kept, r.up.Active())
			}
		})
	}
}

// TestInteropParallel sends many requests at once, some of which are cancelled.
func TestInteropParallel(t *testing.T) {
	_, c, url := newSandwich(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		_, _ = io.Copy(w, r.Body)
	}, Config{})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%5 == 0 {
				req, _ := http.NewRequestWithContext(ctx, "GET", url+"/hang", nil)
				resp, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				cancel()
				if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				_ = resp.Body.Close()
				return
			}
			want := strings.Repeat("x", i*1000)
			req, err := http.NewRequest("POST", url, strings.NewReader(want))
			if got := ask(t, c, req, err); got.body != want {
				t.Errorf("%d bytes, want %d", len(got.body), len(want))
			}
		})
	}
	wg.Wait()
}

// TestInteropAborted: a handler that gives up in the middle of the response is an error at the client, not an end.
func TestInteropAborted(t *testing.T) {
	_, c, url := newSandwich(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}, Config{})
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err := io.ReadAll(resp.Body); err == nil || string(body) != "half" {
		t.Errorf("%q, %v", body, err)
	}
}

// TestInteropEarly: a response that does not wait for the request's body arrives whole.
func TestInteropEarly(t *testing.T) {
	_, c, url := newSandwich(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(403)
		_, _ = io.WriteString(w, "no")
	}, Config{})
	for range 20 {
		pr, pw := io.Pipe()
		req, err := http.NewRequest("POST", url, pr)
		if got := ask(t, c, req, err); got.status != 403 || got.body != "no" {
			t.Errorf("%+v", got)
		}
		_ = pw.Close()
	}
}

// TestInteropDrain drains connections again and again under load: no request fails.
func TestInteropDrain(t *testing.T) {
	r, c, url := newSandwich(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }, Config{})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				req, err := http.NewRequest("POST", url, strings.NewReader("hello"))
				if got := ask(t, c, req, err); got.body != "hello" {
					t.Errorf("%+v", got)
				}
			}
		})
	}
	for range 10 {
		req, err := http.NewRequest("GET", url, nil)
		ask(t, c, req, err)
		r.loop.Lock()
		for s := range r.servers {
			s.Drain()
		}
		clear(r.servers)
		r.up.Drain()
		r.loop.Unlock()
	}
	close(stop)
	wg.Wait()
}
