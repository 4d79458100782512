package control

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/compile"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/xds/envoy"
	"github.com/lateen-mesh/lateen/xds/server"
)

// bench is a control plane that does not run; its API is called by itself.
type bench struct {
	*Control
	t *testing.T
}

func newBench(t *testing.T, cfg Config) *bench {
	t.Helper()
	base := t.TempDir()
	for at, name := range map[*string]string{&cfg.Dir: "config", &cfg.State: "state", &cfg.API: "api.sock"} {
		if *at == "" {
			*at = filepath.Join(base, name)
		}
	}
	cfg.Listen = "127.0.0.1:0"
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.registry.close()
		c.locks.release()
	})
	return &bench{c, t}
}

// call calls the API and returns the status and the body of the answer.
func (b *bench) call(method, path, body string) (int, string) {
	w := httptest.NewRecorder()
	b.mux().ServeHTTP(w, httptest.NewRequestWithContext(b.t.Context(), method, path, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

// write puts a text into the folder by hand; an empty one takes the file away.
func (b *bench) write(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.cfg.Dir, name)
	err := os.Remove(path)
	if text != "" {
		err = os.WriteFile(path, []byte(text), 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.folder.Reload()
}

func (b *bench) addressOf(ref mesh.Ref) string {
	w, _ := b.cache.Snapshot().Object(ref).(*mesh.Workload)
	if w == nil {
		return ""
	}
	return w.Addresses[0].String()
}

const entryText = `apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1, namespace: default}
spec: {address: 192.0.2.7}
`

// TestSameName has an entry and a registered workload of one name: what the user wrote stands, in whatever order they
// come, and neither takes the other with it when it goes.
func TestSameName(t *testing.T) {
	const written, registered = "192.0.2.7", "10.77.0.2"
	b := newBench(t, Config{})
	ref := instance("a").Ref()
	expect := func(what, address string) {
		t.Helper()
		if got := b.addressOf(ref); got != address {
			t.Errorf("%s: the workload is at %q, want %q", what, got, address)
		}
	}
	if err := b.registry.join(instance("a")); err != nil {
		t.Fatal(err)
	}
	expect("joined", registered)
	code, text := b.call("POST", "/apply?name=mine.yaml", "# about\n"+entryText)
	if code != http.StatusUnprocessableEntity || !strings.Contains(text, "lateen stop reviews-v1 -n default") || !strings.Contains(text, `"file": "mine.yaml"`) {
		t.Errorf("an entry for a registered workload is applied: %d %s", code, text)
	}
	expect("refused", registered)
	b.write("hand.yaml", entryText)
	expect("written by hand", written)
	if _, text := b.call("GET", "/status", ""); !strings.Contains(text, codeShadowed) || !strings.Contains(text, "hand.yaml") {
		t.Errorf("the status does not say so: %s", text)
	}
	if _, text := b.call("GET", "/objects?kind=WorkloadEntry", ""); strings.Count(text, `"name": "reviews-v1"`) != 1 {
		t.Errorf("it is listed twice: %s", text)
	}
	if code, text := b.call("POST", "/apply?name=mine.yaml", strings.Replace(entryText, "192.0.2.7", "192.0.2.8", 1)); code != http.StatusOK {
		t.Errorf("the entry that is there cannot be changed: %d %s", code, text)
	}
	expect("changed", "192.0.2.8")
	b.registry.setHealth(ref, mesh.Draining)
	expect("draining", "192.0.2.8")
	b.write("hand.yaml", "")
	expect("entry gone", registered)
	b.write("hand.yaml", entryText)
	b.registry.leave(ref)
	expect("workload gone", written)
	if err := b.registry.join(instance("a")); err == nil || !strings.Contains(err.Error(), "lateen delete workloadentry reviews-v1 -n default") {
		t.Errorf("a workload registers under the name of an entry: %v", err)
	}
	code, text = b.call("POST", "/tokens", `{"namespace":"default","serviceAccount":"a","name":"reviews-v1"}`)
	if code != http.StatusConflict || !strings.Contains(text, "choose another name") {
		t.Errorf("a token is made for the name of an entry: %d %s", code, text)
	}
	if code, text := b.call("POST", "/tokens", `{"namespace":"default","serviceAccount":"a","name":"reviews-v1","gateway":true}`); code != http.StatusOK {
		t.Errorf("a gateway, which does not register, gets no token: %d %s", code, text)
	}
	expect("refused again", written)
}

// TestSameNameAfterRestart writes the entry while no control plane runs.
func TestSameNameAfterRestart(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), State: t.TempDir()}
	b := newBench(t, cfg)
	if err := b.registry.join(instance("a")); err != nil {
		t.Fatal(err)
	}
	b.locks.release()
	b.locks = nil
	if err := os.WriteFile(filepath.Join(cfg.Dir, "hand.yaml"), []byte(entryText), 0o600); err != nil {
		t.Fatal(err)
	}
	b = newBench(t, cfg)
	b.registry.leave(instance("a").Ref())
	if got := b.addressOf(instance("a").Ref()); got != "192.0.2.7" {
		t.Errorf("the workload is at %q", got)
	}
}

// TestSecondControlPlane starts another one on the same state, and on the same socket: it is refused and the first is
// not disturbed.
func TestSecondControlPlane(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Dir: dir, State: filepath.Join(dir, "state"), API: filepath.Join(dir, "api.sock"), Listen: "127.0.0.1:0"}
	first := newBench(t, cfg)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- first.Run(ctx) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ready := false; !ready; {
		_, err := os.Stat(cfg.API)
		select {
		case err := <-done:
			t.Fatalf("the first one ended: %v", err)
		case <-tick.C:
			ready = err == nil
		}
	}
	other := cfg
	other.State = filepath.Join(dir, "other")
	for want, cfg := range map[string]Config{"--state": cfg, "--api": other} {
		_, err := New(cfg)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d;", os.Getpid())) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("a second control plane on the first one's %s: %v", want, err)
		}
	}
	if _, err := os.Stat(cfg.API); err != nil {
		t.Errorf("the first one's socket: %v", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	newBench(t, cfg) // the first has let go
}

// TestHolder: the number of a process means nothing in another namespace.
func TestHolder(t *testing.T) {
	for text, want := range map[string]string{
		"12 " + namespace() + "\n": "process 12",
		"12 pid:[1]\n":             "process 12 of the namespace pid:[1]",
	} {
		if got := holderOf(strings.NewReader(text)); got != want {
			t.Errorf("%q is held by %q, want %q", text, got, want)
		}
	}
}

// TestMissingFolder starts on a folder of configuration that is not there.
func TestMissingFolder(t *testing.T) {
	base := t.TempDir()
	cfg := Config{Dir: filepath.Join(base, "config"), State: filepath.Join(base, "state"), API: filepath.Join(base, "api.sock"), Listen: "127.0.0.1:0"}
	for range 2 { // the locks are given back
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "mount that first") {
			t.Errorf("it starts: %v", err)
		}
	}
}

// TestFindingsAreServed shows what is odd about the configuration: in the status all of it, after a change what
// concerns it.
func TestFindingsAreServed(t *testing.T) {
	const rule = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: odd, namespace: default}
spec: {host: nobody}
`
	b := newBench(t, Config{})
	type answer struct{ Warnings []faultJSON }
	ask := func(method, path, body string) answer {
		t.Helper()
		var a answer
		code, text := b.call(method, path, body)
		if err := json.Unmarshal([]byte(text), &a); err != nil || code != http.StatusOK {
			t.Fatalf("%s: %d %s (%v)", path, code, text, err)
		}
		return a
	}
	applied := ask("POST", "/apply?name=mine.yaml", "# about\n"+rule)
	if w := applied.Warnings; len(w) != 1 || w[0].File != "mine.yaml" || w[0].Line != 5 || w[0].Code != "IST0174" {
		t.Errorf("applied with %+v", w)
	}
	if w := ask("POST", "/apply?name=mine.yaml", entryText).Warnings; len(w) != 0 {
		t.Errorf("another's oddity is told again: %+v", w)
	}
	status := ask("GET", "/status", "")
	if w := status.Warnings; len(w) != 1 || !strings.HasPrefix(w[0].File, b.cfg.Dir) || w[0].Code != "IST0174" {
		t.Errorf("the status has %+v", w)
	}
}

// TestChangesUnderTheLock holds the xDS server's lock: the compiled answers must not move on meanwhile.
func TestChangesUnderTheLock(t *testing.T) {
	b := newBench(t, Config{})
	before := b.cache.Snapshot().Version
	done := make(chan error, 1)
	b.xds.Release([]server.Key{{}}, func(server.Key) { // called under the lock
		go func() { done <- b.registry.join(instance("a")) }()
		select {
		case err := <-done:
			t.Errorf("the change did not wait (%v)", err)
		case <-time.After(50 * time.Millisecond): // it had its chance
		}
		if now := b.cache.Snapshot().Version; now != before {
			t.Errorf("the answers moved on from snapshot %d to %d", before, now)
		}
	})
	if err := <-done; err != nil || b.cache.Snapshot().Version == before {
		t.Errorf("the change is not made: %v", err)
	}
}

// TestEnvoyRegistryOnly turns passing on to unknown destinations off, and on again, for an Envoy.
func TestEnvoyRegistryOnly(t *testing.T) {
	b := newBench(t, Config{})
	scope := b.cache.ScopeOf(compile.Asker{Role: compile.Sidecar, Namespace: "default", Workload: "reviews-v1"})
	key := server.Key{Scope: scope, Type: envoy.TypeURL(plan.KindListener), Name: "virtualOutbound"}
	passes := func() bool {
		t.Helper()
		r, ok := b.source.Resource(key)
		if !ok {
			t.Fatal("there is no virtualOutbound")
		}
		return strings.Contains(string(r.Body), plan.ClusterPassthrough)
	}
	if !passes() {
		t.Error("unknown destinations are refused by default")
	}
	b.write("mesh.yaml", `{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {mesh: "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"}}`)
	if passes() {
		t.Error("unknown destinations are passed on")
	}
	open, _ := mesh.NewBuilder().Apply(nil)
	if changed := b.source.changed(open, nil); !slices.Contains(changed, key) {
		t.Errorf("who holds the listener is not told: %v", changed)
	}
	if !passes() {
		t.Error("unknown destinations are still refused")
	}
	if changed := b.source.changed(open, nil); len(changed) > 0 {
		t.Errorf("told without a change: %v", changed)
	}
}

// TestReport: the log tells each fault once, as long as it is there.
func TestReport(t *testing.T) {
	var log strings.Builder
	b := newBench(t, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	one, two := api.Fault{Object: "one", Message: "torn"}, api.Fault{Object: "two", Message: "torn"}
	for _, list := range [][]api.Fault{{one}, {one, two}, {two}, {one, two}} {
		b.report(list)
	}
	if first, second := strings.Count(log.String(), "one: torn"), strings.Count(log.String(), "two: torn"); first != 2 || second != 1 {
		t.Errorf("told %d and %d times, want 2 and 1:\n%s", first, second, log.String())
	}
}
