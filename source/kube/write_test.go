package kube

import (
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/lateen-mesh/lateen/api"
)

// acceptance is the condition of ours in an object's status; nil if there is none.
func (s *apiServer) acceptance(kind, name string) object {
	status, _ := s.get(kind, name)["status"].(object)
	list, _ := status["conditions"].([]any)
	for _, c := range list {
		if m, _ := c.(object); m["type"] == conditionAccepted {
			return m
		}
	}
	return nil
}

// TestStatus: every object's status says whether it is in force and of which generation that is said; others' conditions
// stay, and nothing is written that is there already.
func TestStatus(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(ruleText("a", "7") + "status: {conditions: [{type: Reviewed, status: \"True\"}]}\n")
	s.apply("apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: f}\nspec: {}\n")
	r := follow(t, s)
	r.await("it is accepted", func() bool { return s.acceptance("DestinationRule", "default/a")["status"] == "True" })
	s.apply("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: j}\nspec: {}\n")
	for kind, want := range map[string][2]string{"EnvoyFilter/f": {"True", "has no effect"}, "RequestAuthentication/j": {"False", "not supported"}} {
		kind, name, _ := strings.Cut(kind, "/")
		r.await("what is not acted on says so: "+kind, func() bool {
			c := s.acceptance(kind, "default/"+name)
			message, _ := c["message"].(string)
			return c["status"] == want[0] && strings.Contains(message, want[1])
		})
	}
	// The host has no service, which the analysis finds.
	r.await("a finding", func() bool {
		status, _ := s.get("DestinationRule", "default/a")["status"].(object)
		list, _ := status["validationMessages"].([]any)
		return len(list) == 1
	})
	status := s.get("DestinationRule", "default/a")["status"].(object)
	if list := status["conditions"].([]any); len(list) != 2 || status["observedGeneration"] != 1.0 {
		t.Errorf("status %v", status)
	}
	since := s.acceptance("DestinationRule", "default/a")["lastTransitionTime"]

	o := s.get("DestinationRule", "default/a")
	o["spec"] = object{"host": "reviews", "trafficPolicy": object{"connectionPool": object{"tcp": object{"maxConnections": -1}}}}
	s.put(o)
	r.await("it is refused", func() bool {
		c := s.acceptance("DestinationRule", "default/a")
		message, _ := c["message"].(string)
		return c["status"] == "False" && c["observedGeneration"] == 2.0 && strings.Contains(message, "maxConnections")
	})
	if since == nil {
		t.Error("the condition does not say since when it is so")
	}
	written := 0
	for _, q := range s.asked() {
		if strings.HasPrefix(q, "PATCH") && strings.Contains(q, "destinationrules/a/status") {
			written++
		}
	}
	if written > 3 {
		t.Errorf("the status was written %d times for three news", written)
	}
}

// TestStatusOvertaken: an object that changes while its status is written, and whose change is read before the write is
// refused, gets its status nevertheless.
func TestStatusOvertaken(t *testing.T) {
	ref := api.Ref{Kind: api.KindDestinationRule, Namespace: "default", Name: "a"}
	state := func(version string) *standing {
		return &standing{resource: schema.GroupVersionResource{Group: networkGroup, Version: "v1", Resource: "destinationrules"}, version: version}
	}
	var w *statusWriter
	written := make(chan string, 1)
	first := true // one request at a time
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if first {
			first = false
			w.read(ref, &account{standing: state("2")})
			refusal(out, http.StatusConflict, "Conflict")
			return
		}
		written <- string(body)
		answer(out, http.StatusOK, object{"apiVersion": "networking.istio.io/v1", "kind": ref.Kind, "metadata": object{"name": "a", "namespace": "default"}})
	}))
	defer server.Close()
	clients, err := newClients(&Cluster{&rest.Config{Host: server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	w = newStatusWriter(clients, slog.New(slog.DiscardHandler))
	w.found(nil)
	w.read(ref, &account{standing: state("1")})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		w.run(ctx)
		close(ended)
	}()
	select {
	case body := <-written:
		if !strings.Contains(body, `"resourceVersion":"2"`) {
			t.Error(body)
		}
	case <-time.After(patience):
		t.Error("the status is never written")
	}
	stop()
	<-ended
}

// answers is what an API server says to each request.
type answers func(*http.Request) *http.Response

// RoundTrip implements http.RoundTripper.
func (f answers) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// TestStatusRefused: a status that the API server refuses is tried less and less often, and told once; one that could not be
// delivered is tried as often as before.
func TestStatusRefused(t *testing.T) {
	for _, tt := range []struct {
		code   int
		reason string
		tries  int // within an hour
	}{
		{http.StatusForbidden, "Forbidden", 17},
		{http.StatusUnprocessableEntity, "Invalid", 17},
		{http.StatusInternalServerError, "InternalError", 721},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries atomic.Int32
				clients, err := newClients(&Cluster{&rest.Config{Host: "http://api", Transport: answers(func(r *http.Request) *http.Response {
					tries.Add(1)
					out := httptest.NewRecorder()
					refusal(out, tt.code, tt.reason)
					return out.Result()
				})}})
				if err != nil {
					t.Fatal(err)
				}
				var told strings.Builder
				w := newStatusWriter(clients, slog.New(slog.NewTextHandler(&told, nil)))
				ref := api.Ref{Kind: api.KindDestinationRule, Namespace: "default", Name: "a"}
				read := func() {
					w.read(ref, &account{standing: &standing{resource: schema.GroupVersionResource{Group: networkGroup, Version: "v1", Resource: "destinationrules"}}})
				}
				w.found(nil)
				read()
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() {
					w.run(ctx)
					close(ended)
				}()
				<-time.After(time.Hour + time.Second/2)
				if got := int(tries.Load()); got != tt.tries {
					t.Errorf("it was tried %d times in an hour, want %d", got, tt.tries)
				}
				tries.Store(0)
				read()
				synctest.Wait()
				if got := tries.Load(); got != 1 {
					t.Errorf("when the object had changed it was tried %d times", got)
				}
				stop()
				<-ended
				if got := strings.Count(told.String(), "level=WARN"); got != 1 {
					t.Errorf("it was told %d times:\n%s", got, told.String())
				}
			})
		})
	}
}

// TestLease: one server of several leads, another when it ends, and one that cannot renew stops in time.
func TestLease(t *testing.T) {
	s := newServer(t)
	clients, err := newClients(s.cluster())
	if err != nil {
		t.Fatal(err)
	}
	type turn struct {
		name  string
		leads bool
	}
	turns := make(chan turn, 16)
	begin := func(name string) (stop func()) {
		e := newElector(clients, slog.New(slog.DiscardHandler), api.RootNamespace, name)
		e.duration, e.within, e.every = 5*time.Second, 2*time.Second, 20*time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.run(ctx, func(own context.Context) {
				turns <- turn{name, true}
				<-own.Done()
				turns <- turn{name, false}
			})
		}()
		return func() { cancel(); <-done }
	}
	next := func() turn {
		t.Helper()
		select {
		case x := <-turns:
			return x
		case <-time.After(patience):
			t.Fatal("nothing happens")
			return turn{}
		}
	}
	stopA := begin("a")
	if x := next(); x != (turn{"a", true}) {
		t.Fatal(x)
	}
	stopB := begin("b")
	defer stopB()
	stopA()
	got := []turn{next(), next()}
	if want := []turn{{"a", false}, {"b", true}}; !slices.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
	release := s.hold("coordination.k8s.io/leases")
	if x := next(); x != (turn{"b", false}) {
		t.Fatal(x)
	}
	release()
	if x := next(); x != (turn{"b", true}) {
		t.Fatal(x)
	}
	// Somebody who says nothing holds it until it has run out by our own clock.
	held := s.get("Lease", api.RootNamespace+"/"+leaseName)
	held["spec"].(object)["holderIdentity"] = "dead"
	s.put(held)
	if x := next(); x != (turn{"b", false}) {
		t.Fatal(x)
	}
	if x := next(); x != (turn{"b", true}) {
		t.Fatal(x)
	}
}

// TestWithoutLease: a server that loses the Lease, or never has it, goes on to tell what changes.
func TestWithoutLease(t *testing.T) {
	s := newServer(t)
	r := follow(t, s)
	r.read()
	r.await("it leads", func() bool { return s.get("Lease", api.RootNamespace+"/"+leaseName) != nil })
	held := s.get("Lease", api.RootNamespace+"/"+leaseName)
	held["spec"].(object)["holderIdentity"] = "another"
	s.put(held)
	release := s.hold("coordination.k8s.io/leases")
	defer release()
	s.apply(podText("reviews-1", "10.0.0.1", "True"))
	r.await("a pod is told", func() bool { return r.workload("reviews-1") != nil })
}

// TestRoots: every namespace but the cluster's own has the mesh's roots, and gets them back, each at the event: nothing
// here is found by looking again.
func TestRoots(t *testing.T) {
	s := newServer(t)
	for _, name := range []string{"shop", "kube-system"} {
		s.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + "}")
	}
	r := &rig{t: t, server: s}
	var err error
	var roots atomic.Value
	roots.Store("PEM\n")
	r.Store, err = Open(Config{Cluster: s.cluster(), Roots: func() []byte { return []byte(roots.Load().(string)) }})
	if err != nil {
		t.Fatal(err)
	}
	r.retry = time.Hour
	r.status.ration = flowcontrol.NewFakeNeverRateLimiter() // statuses that queue up do not keep the roots waiting
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	there := func(namespace string) bool {
		data, _ := s.get("ConfigMap", namespace+"/"+RootsName)["data"].(object)
		return data[RootsKey] == roots.Load()
	}
	r.await("the roots", func() bool { return there("shop") })
	s.remove("ConfigMap", "shop/"+RootsName)
	r.await("the roots again", func() bool { return there("shop") })
	s.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: new}")
	r.await("a new namespace", func() bool { return there("new") })
	roots.Store("OTHER\n")
	r.RootsChanged()
	r.await("other roots", func() bool { return there("shop") && there("new") })
	if there("kube-system") {
		t.Error("kube-system has them, too")
	}
}

// tokenOf is a token as a service account's looks, with a name for a signature.
func tokenOf(name, claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + "." + name
}

// TestAccount: only a token that is meant for the authority, of a service account, proves one, and what cannot be one is
// not shown to the API server.
func TestAccount(t *testing.T) {
	s := newServer(t)
	var asked atomic.Int32
	s.reviews = func(token string, audiences []string) map[string]any {
		asked.Add(1)
		user := object{"username": "system:serviceaccount:shop:web"}
		switch token[strings.LastIndexByte(token, '.')+1:] {
		case "good":
			return object{"authenticated": true, "audiences": audiences, "user": user}
		case "elsewhere":
			return object{"authenticated": true, "audiences": []string{"vault"}, "user": user}
		case "old": // as a server answers that knows nothing of audiences
			return object{"authenticated": true, "user": user}
		case "person":
			return object{"authenticated": true, "audiences": audiences, "user": object{"username": "admin"}}
		}
		return object{"error": "no such token"}
	}
	store, err := Open(Config{Cluster: s.cluster()})
	if err != nil {
		t.Fatal(err)
	}
	const one, list = `{"aud":"istio-ca"}`, `{"aud":["vault","istio-ca"],"exp":4e9}`
	for _, tt := range []struct {
		token, want string
		reviewed    bool
	}{
		{tokenOf("good", one), "shop/web", true},
		{tokenOf("good", list), "shop/web", true},
		{tokenOf("elsewhere", list), "meant for [vault]", true},
		{tokenOf("old", one), "meant for []", true},
		{tokenOf("person", one), "no service account", true},
		{tokenOf("bad", one), "no such token", true},
		{strings.Repeat("x", tokenMaxBytes+1), "more than", false},
		{"good", "a JWT of three parts", false},
		{tokenOf("good", one) + ".x", "a JWT of three parts", false},
		{"e30.!.good", "illegal base64", false},
		{tokenOf("good", "{"), "unexpected end", false},
		{tokenOf("good", `{"aud":1}`), "cannot unmarshal", false},
		{tokenOf("good", `{}`), "not meant for us", false},
		{tokenOf("good", `{"aud":null}`), "not meant for us", false},
		{tokenOf("good", `{"aud":["https://kubernetes.default.svc"]}`), "not meant for us", false},
		{tokenOf("good", `{"aud":"istio-ca","exp":1e9}`), "has expired", false},
	} {
		asked.Store(0)
		namespace, name, err := store.Account(t.Context(), "10.0.0.1", tt.token)
		got := namespace + "/" + name
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) || (asked.Load() > 0) != tt.reviewed {
			t.Errorf("%.40s: %s (%d reviews), want %s", tt.token, got, asked.Load(), tt.want)
		}
	}
}

// TestReviewsRationed: one caller has few tokens reviewed at a time, which no other waits for, and all are reviewed.
func TestReviewsRationed(t *testing.T) {
	s := newServer(t)
	begun, end := make(chan string, 100), make(chan struct{})
	s.reviews = func(token string, audiences []string) map[string]any {
		begun <- token[strings.LastIndexByte(token, '.')+1:]
		<-end
		return object{"authenticated": true, "audiences": audiences, "user": object{"username": "system:serviceaccount:shop:web"}}
	}
	store, err := Open(Config{Cluster: s.cluster()})
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	ask := func(from string) {
		group.Go(func() {
			if _, _, err := store.Account(t.Context(), from, tokenOf(from, `{"aud":"istio-ca"}`)); err != nil {
				t.Errorf("%s: %v", from, err)
			}
		})
	}
	for range 4 * reviewsFrom {
		ask("many")
	}
	for range reviewsFrom {
		<-begun
	}
	ask("one")
	if next := <-begun; next != "one" {
		t.Errorf("another one of %s is reviewed", next)
	}
	close(end)
	group.Wait()
	if n := store.reviews.Len(); n > 0 {
		t.Errorf("%d stay behind", n)
	}
}
