package kubegateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/test/kubemesh"
)

const (
	bodyMaxBytes = 1 << 20
	examples     = "../../examples/gateway-api/"
)

// answer is what test/kubegateway/peer tells of a request; see there.
type answer struct {
	Status           int
	Pod, Host, Path  string
	Header, Response http.Header
	Failure          string
}

// version is that of the server that answered; empty if none did.
func (a answer) version() string {
	v, _, _ := strings.Cut(a.Pod, "-")
	return v
}

// rig is the mesh, and a client outside of it.
type rig struct {
	*kubemesh.Mesh
	client *http.Client
}

// TestTraffic has requests go through Gateways that are deployed automatically, and between pods by routes of Services.
func TestTraffic(t *testing.T) {
	m := kubemesh.Up(t, kubemesh.Config{Nodes: 1, Set: []string{"secretNamespaces={*}"}, Programs: []string{"test/kubegateway/peer"}})
	r := &rig{Mesh: m}
	r.Step("start the world", func() {
		text, err := os.ReadFile("testdata/world.yaml")
		if err != nil {
			t.Fatal(err)
		}
		r.Do("apply", "-f", examples+"policy.yaml")
		r.Put(string(text))
		r.Ready("shop", "deploy/v1", "deploy/v2")
		r.Do("wait", "-n", "shop", "pod/client", "--for=condition=Ready", "--timeout=5m")
		r.Do("wait", "-n", "buyer", "pod/client", "--for=condition=Ready", "--timeout=5m")
	})
	for _, part := range []struct {
		name string
		run  func(*rig)
	}{
		{"deployed", (*rig).deployed},
		{"rights", (*rig).rights},
		{"examples", (*rig).examples},
		{"routes", (*rig).routes},
		{"running", (*rig).running},
		{"certificates", (*rig).certificates},
		{"mesh", (*rig).between},
		{"refused", (*rig).refused},
		{"removed", (*rig).removed},
	} {
		t.Run(part.name, func(t *testing.T) {
			at := &rig{Mesh: m.For(t)}
			at.client = at.Client()
			at.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			part.run(at)
		})
	}
}

// get asks a server by way of an address, with fields of the header as "Name: value".
func get(client *http.Client, address, host, path string, fields ...string) (answer, error) {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, address+path, http.NoBody)
	if err != nil {
		return answer{}, err
	}
	request.Host = host
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{}, err
	}
	return read(response)
}

// read takes an answer from a response, to its end.
func read(response *http.Response) (answer, error) {
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, bodyMaxBytes))
	if err != nil {
		return answer{}, err
	}
	var a answer
	if response.StatusCode == http.StatusOK {
		if err := json.Unmarshal(text, &a); err != nil {
			return answer{}, fmt.Errorf("an answer of somebody else: %q", text)
		}
	}
	a.Status, a.Response = response.StatusCode, response.Header
	return a, nil
}

// ask has the client of a namespace ask a URL, and returns its answers.
func (r *rig) ask(namespace, target string, times int, fields ...string) []answer {
	r.Helper()
	query := url.Values{"url": {target}, "times": {fmt.Sprint(times)}, "field": fields}
	response, err := r.client.Get("http://" + r.Do("get", "pod", "-n", namespace, "client", "-o", "jsonpath={.status.podIP}") + ":8080/ask?" + query.Encode())
	if err != nil {
		r.Broken(err)
	}
	defer response.Body.Close()
	var all []answer
	if err := json.NewDecoder(response.Body).Decode(&all); err != nil {
		r.Broken(err)
	}
	return all
}

// field is what an object has at a place.
func (r *rig) field(namespace, object, path string) string {
	r.Helper()
	return r.Do("get", "-n", namespace, object, "-o", "jsonpath="+path)
}

// awaitField waits until an object has something at a place.
func (r *rig) awaitField(namespace, object, path, want string) {
	r.Helper()
	r.Await(object+" tells "+want, func() string {
		have, err := r.Kubectl(r.Context(), "get", "-n", namespace, object, "-o", "jsonpath="+path)
		if err != nil {
			return err.Error()
		}
		if have != want {
			return fmt.Sprintf("%q", have)
		}
		return ""
	})
}

// load sends requests steadily until it ends, and counts what becomes of them.
type load struct {
	what string
	stop context.CancelFunc
	done sync.WaitGroup

	mu              sync.Mutex
	total, failures int
	first           string
	versions        map[string]int
}

const (
	// workers send a load's requests, each one after another, this often.
	workers = 2
	every   = 25 * time.Millisecond
	// some is how many requests must have come through before a step counts as survived.
	some = 40
)

// begin starts a load; send sends one request.
func (r *rig) begin(what string, send func() (answer, error)) *load {
	ctx, stop := context.WithCancel(r.Context())
	l := &load{what: what, stop: stop, versions: map[string]int{}}
	for range workers {
		l.done.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					l.count(send())
				case <-ctx.Done():
					return
				}
			}
		})
	}
	r.Cleanup(l.end)
	return l
}

func (l *load) count(a answer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total++
	if err == nil && a.Status == http.StatusOK {
		l.versions[a.version()]++
		return
	}
	l.failures++
	if l.first == "" {
		l.first = fmt.Sprintf("%s: status %d %s, %v", time.Now().Format(time.StampMilli), a.Status, a.Response.Get("X-Lateen-Reason"), err)
	}
}

// survives does something, waits until some more requests were answered, and fails the test if one was not.
func (l *load) survives(r *rig, step string, do func()) {
	r.Helper()
	l.more(r)
	r.Step(step, do)
	l.more(r)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failures > 0 {
		r.Errorf("%s: %d of %d requests of %s failed, the first at %s", step, l.failures, l.total, l.what, l.first)
	}
	r.Logf("        %d requests, %d failed: %s", l.total, l.failures, l.what)
	l.total, l.failures, l.first = 0, 0, ""
}

// more waits for some more answers and returns how many each version gave.
func (l *load) more(r *rig) map[string]int {
	r.Helper()
	l.mu.Lock()
	enough := l.total + some
	l.versions = map[string]int{}
	l.mu.Unlock()
	var versions map[string]int
	r.Await("requests are answered", func() string {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.total < enough {
			return fmt.Sprintf("%d of %d", l.total, enough)
		}
		versions, l.versions = l.versions, map[string]int{}
		return ""
	})
	return versions
}

// end ends the load; no request is under way any more when it returns.
func (l *load) end() {
	l.stop()
	l.done.Wait()
}
