package kube

import (
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

const registrationText = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: NAME}
webhooks:
- {name: a, clientConfig: {service: {name: lateend}}}
- {name: b, clientConfig: {service: {name: lateend}, caBundle: b2xk}, timeoutSeconds: 5}
`

// bundles are those of a registration's webhooks.
func (s *apiServer) bundles(name string) (out []any) {
	list, _ := s.get("MutatingWebhookConfiguration", "/"+name)["webhooks"].([]any)
	for _, h := range list {
		out = append(out, h.(object)["clientConfig"].(object)["caBundle"])
	}
	return out
}

// TestVouch: our webhook's registration has the mesh's roots whenever it is there, and nobody else's has.
func TestVouch(t *testing.T) {
	s := newServer(t)
	var roots atomic.Value
	roots.Store("PEM")
	store, err := Open(Config{Cluster: s.cluster(), Webhook: "ours", Roots: func() []byte { return []byte(roots.Load().(string)) }})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, server: s, Store: store}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	has := func(name, text string) bool {
		want := base64.StdEncoding.EncodeToString([]byte(text + "\n"))
		list := s.bundles(name)
		return len(list) == 2 && list[0] == want && list[1] == want
	}
	register := func(name string) { s.apply(strings.Replace(registrationText, "NAME", name, 1)) }
	register("theirs")
	register("ours")
	r.await("the roots", func() bool { return has("ours", "PEM") })
	if list := s.get("MutatingWebhookConfiguration", "/ours")["webhooks"].([]any); list[1].(object)["timeoutSeconds"] != 5.0 {
		t.Errorf("more was changed: %v", list)
	}
	s.remove("MutatingWebhookConfiguration", "/ours")
	roots.Store("OTHER")
	register("ours")
	r.await("other roots in a new one", func() bool { return has("ours", "OTHER") })
	register("ours")
	r.await("the roots again", func() bool { return has("ours", "OTHER") })
	if list := s.bundles("theirs"); list[0] != nil || list[1] != "b2xk" {
		t.Errorf("somebody else's has %v", list)
	}
}

// direct carries requests to a handler without a network, so that time can be made up.
type direct struct{ http.Handler }

// RoundTrip implements http.RoundTripper.
func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, end := context.WithCancel(r.Context())
	from, to := io.Pipe()
	w := &carried{Writer: to, header: http.Header{}, status: make(chan int, 1)}
	r = r.Clone(ctx)
	if r.Body == nil {
		r.Body = http.NoBody
	}
	go func() {
		d.ServeHTTP(w, r)
		_ = to.Close()
	}()
	select {
	case status := <-w.status:
		return &http.Response{StatusCode: status, Header: w.header, Body: carriedBody{from, end}, Request: r}, nil
	case <-ctx.Done():
		end()
		return nil, ctx.Err()
	}
}

// carried is the answer to such a request.
type carried struct {
	io.Writer
	header http.Header
	status chan int
	wrote  bool
}

func (c *carried) Header() http.Header { return c.header }

func (c *carried) WriteHeader(status int) {
	c.wrote = true
	c.status <- status
}

func (c *carried) Write(p []byte) (int, error) {
	if !c.wrote {
		c.WriteHeader(http.StatusOK)
	}
	return c.Writer.Write(p)
}

type carriedBody struct {
	*io.PipeReader
	end context.CancelFunc
}

func (b carriedBody) Close() error {
	b.end()
	return b.PipeReader.Close()
}

// TestVouchPace: as long as a registration cannot be made to count it is looked at after 1, 2, 4, 8 and then every 10 s,
// however often something else has it looked at.
func TestVouchPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &apiServer{t: t, version: 1, objects: map[string]map[string]object{}, streams: map[chan change]string{}, held: map[string]chan struct{}{}}
		s.apply(strings.Replace(registrationText, "NAME", "ours", 1))
		api := &Cluster{&rest.Config{Host: "http://api", Transport: direct{http.HandlerFunc(s.serve)}}}
		store, err := Open(Config{Cluster: api, Roots: func() []byte { return []byte("PEM") }})
		if err != nil {
			t.Fatal(err)
		}
		store.retry = 24 * time.Hour
		var looks atomic.Int64
		at := registration{
			schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
			"ours",
			func(context.Context, []any) bool { looks.Add(1); return true },
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			store.vouch(ctx, at)
		}()
		within := func(d time.Duration) int64 {
			synctest.Wait()
			before := looks.Load()
			<-time.After(d)
			synctest.Wait()
			return looks.Load() - before
		}
		if got := within(time.Minute); got != 8 {
			t.Errorf("looked at %d times within a minute, want 8", got)
		}
		for range 50 {
			store.bell.ring()
			synctest.Wait()
		}
		if got := within(10 * time.Minute); got != 60 {
			t.Errorf("looked at %d times within 10 minutes, want 60", got)
		}
		stop()
		<-ended
	})
}
