package kubeservers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/proxy"
	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/test/kubetest"
)

const (
	// patience bounds each wait, on a machine that does much else.
	patience = 3 * time.Minute
	// pause is between two looks at what tells of no event.
	pause = 100 * time.Millisecond
	// lifetime is that of workloads' certificates, and overlap that of old and new root.
	lifetime, overlap = 16 * time.Second, 40 * time.Second
	// entry is the gateway's port, behind is the workload's, and admin is where the API server is reached without TLS.
	entry, behind, admin = "127.0.0.1:18080", "127.0.0.1:18443", "127.0.0.1:18300"
	// often is how much time is between two requests, each with handshakes of its own: what is tested is not how much the
	// machine can bear.
	often = 50 * time.Millisecond
)

// rig is an API server, and what runs in its network.
type rig struct {
	*testing.T
	cluster *kubetest.Cluster
	network *os.File
	dir     string // of programs, state and sockets
	account string // kubeconfig of lateend's service account
}

// server is one lateend.
type server struct {
	name, listen, webhook, dir string
	cmd                        *exec.Cmd
}

func newRig(t *testing.T) *rig {
	r := &rig{T: t, cluster: kubetest.UpAPI(t)}
	var err error
	if r.network, err = os.Open(r.cluster.Network); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.network.Close() })
	if r.dir, err = os.MkdirTemp("", "servers-"); err != nil { //nolint:usetesting // a socket's path must be short
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(r.dir) })
	r.step("build", func() {
		build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", r.dir, "github.com/lateen-mesh/lateen/cmd/lateend", "github.com/lateen-mesh/lateen/cmd/lateen-proxy")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
	r.step("definitions and rights", r.rights)
	return r
}

func (r *rig) step(what string, do func()) {
	r.Helper()
	began := time.Now()
	do()
	r.Logf("%6.1fs %s", time.Since(began).Seconds(), what)
}

func (r *rig) do(args ...string) string {
	r.Helper()
	out, err := r.cluster.Kubectl(r.Context(), args...)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

func (r *rig) put(yaml string) {
	r.Helper()
	if err := r.cluster.Apply(r.Context(), yaml); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) await(what string, so func() bool) {
	r.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	look := time.NewTicker(pause)
	defer look.Stop()
	for !so() {
		select {
		case <-look.C:
		case <-limit.C:
			r.Fatalf("waited in vain: %s", what)
		}
	}
}

// rights gives lateend's service account what the chart gives it, and no more.
func (r *rig) rights() {
	r.put("{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}")
	objects, err := deploy.Render(deploy.Config{Set: []string{"hub=none"}})
	if err != nil {
		r.Fatal(err)
	}
	definitions, err := deploy.Definitions()
	if err != nil {
		r.Fatal(err)
	}
	file := filepath.Join(r.dir, "objects.yaml")
	if err := os.WriteFile(file, deploy.Manifest(definitions, objects), 0o600); err != nil {
		r.Fatal(err)
	}
	r.do("apply", "--server-side", "-f", file)
	token := r.do("create", "token", "lateend", "-n", "istio-system", "--duration=2h")
	r.account = filepath.Join(r.dir, "account.yaml")
	text, err := os.ReadFile(r.cluster.Kubeconfig)
	if err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(r.account, text, 0o600); err != nil {
		r.Fatal(err)
	}
	r.do("config", "--kubeconfig="+r.account, "set-credentials", "lateend", "--token="+token)
	r.do("config", "--kubeconfig="+r.account, "set-context", "--current", "--user=lateend")
}

// start starts a program in the cluster's network; it is killed when the test ends.
func (r *rig) start(log io.Writer, env []string, program string, args ...string) *exec.Cmd {
	r.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stderr = append(os.Environ(), env...), io.MultiWriter(r.Output(), log)
	if err := netns.Do(r.network, cmd.Start); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// serve starts a server: its number decides its addresses.
func (r *rig) serve(number int) *server {
	r.Helper()
	s := &server{name: fmt.Sprint("lateend-", number), listen: fmt.Sprint("127.0.0.1:", 18100+number), webhook: fmt.Sprint("127.0.0.1:", 18200+number)}
	s.dir = filepath.Join(r.dir, s.name)
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		r.Fatal(err)
	}
	config := filepath.Join(s.dir, "inject.yaml")
	if err := os.WriteFile(config, []byte("{proxyImage: p, initImage: i}\n"), 0o600); err != nil {
		r.Fatal(err)
	}
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = log.Close() })
	s.cmd = r.start(log, nil, filepath.Join(r.dir, "lateend"), "--kubeconfig="+r.account, "--listen="+s.listen, "--webhooks="+s.webhook,
		"--state="+filepath.Join(s.dir, "state"), "--api="+filepath.Join(s.dir, "api"), "--ca-secret=lateen-ca", "--inject="+config)
	return s
}

// call asks a server's own socket; the answer is empty while it does not serve.
func (r *rig) call(s *server, path, body string) string {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.dir, "api"))
	}}}
	q, err := http.NewRequestWithContext(r.Context(), http.MethodPost, "http://lateend"+path, strings.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	if body == "" {
		q.Method = http.MethodGet
	}
	res, err := client.Do(q)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return ""
	}
	return string(text)
}

func (r *rig) ready(s *server) {
	r.Helper()
	r.await(s.name+" is ready", func() bool { return r.call(s, "/ready", "") != "" })
}

// roots are those that a server gives out.
func (r *rig) roots(s *server) string {
	var way struct{ Roots string }
	text := r.call(s, "/tokens", `{"namespace":"elsewhere","serviceAccount":"x"}`)
	if err := json.Unmarshal([]byte(text), &way); err != nil {
		r.Fatalf("%s: %q: %v", s.name, text, err)
	}
	return way.Roots
}

func (r *rig) published(namespace string) string {
	out, err := r.cluster.Kubectl(r.Context(), "get", "configmap", "-n", namespace, "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`)
	if err != nil {
		return ""
	}
	return out + "\n"
}

func (r *rig) holder() string {
	return r.do("get", "lease", "-n", "istio-system", "lateend-leader", "-o", "jsonpath={.spec.holderIdentity}")
}

const edge = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: edge, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: backend, namespace: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: keys, namespace: shop}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: keys, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: keys}
subjects: [{kind: ServiceAccount, name: edge, namespace: shop}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {selector: {istio: edge}, servers: [{port: {number: 18080, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: backend, namespace: shop}
spec:
  hosts: [backend.test]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 18443}]
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: backend, namespace: shop}
spec:
  host: backend.test
  trafficPolicy:
    connectionPool: {http: {maxRequestsPerConnection: 1}}
    tls: {mode: ISTIO_MUTUAL, subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/backend"]}
`

// route sends all to the workload, with a header that it gives back.
func route(version string) string {
	return `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: shop}
spec:
  hosts: ["*"]
  gateways: [edge]
  http: [{headers: {request: {set: {x-version: "` + version + `"}}}, retries: {attempts: 0}, route: [{destination: {host: backend.test, port: {number: 80}}}]}]
`
}

// workloads starts a gateway, which asks the servers in this order, and a workload behind it, which asks them in the
// reverse one.
func (r *rig) workloads(order []*server) {
	r.Helper()
	roots := r.roots(order[0])
	config := proxy.Config{
		Role: proxy.RoleGateway, Name: "edge", Namespace: "shop", ServiceAccount: "edge", Labels: map[string]string{"istio": "edge"},
		TrustDomain: "cluster.local", ControlName: "lateend", Roots: []byte(roots), CertificateTTL: lifetime,
		Token: r.do("create", "token", "edge", "-n", "shop", "--audience=istio-ca"),
	}
	peer := peerConfig{
		Listen: behind, Roots: roots, TTL: lifetime, ID: identity.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "backend"},
		Token: r.do("create", "token", "backend", "-n", "shop", "--audience=istio-ca"),
	}
	for i := range order {
		config.Control = append(config.Control, order[i].listen)
		peer.Control = append(peer.Control, order[len(order)-1-i].listen)
	}
	text, err := json.Marshal(config)
	if err != nil {
		r.Fatal(err)
	}
	file := filepath.Join(r.dir, "edge.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		r.Fatal(err)
	}
	if text, err = json.Marshal(peer); err != nil {
		r.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		r.Fatal(err)
	}
	r.start(io.Discard, []string{peerVariable + "=" + string(text)}, self)
	r.start(io.Discard, nil, filepath.Join(r.dir, "lateen-proxy"), "--config="+file)
}

// load does one thing over and over until stop is called, and tells how often, and what failed.
type load struct {
	what   string
	done   atomic.Int64
	failed atomic.Int64
	first  atomic.Value // of what failed
	stop   func()
}

func (r *rig) load(what string, once func(context.Context) error) *load {
	l := &load{what: what}
	ctx, cancel := context.WithCancel(r.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		next := time.NewTicker(often)
		defer next.Stop()
		for ctx.Err() == nil {
			select {
			case <-next.C:
			case <-ctx.Done():
				return
			}
			if err := once(ctx); err == nil {
				l.done.Add(1)
			} else if ctx.Err() == nil {
				l.failed.Add(1)
				l.first.CompareAndSwap(nil, err.Error())
			}
		}
	}()
	l.stop = func() { cancel(); <-ended }
	r.Cleanup(l.stop)
	return l
}

// judge says how it went so far.
func (r *rig) judge(when string, all ...*load) {
	r.Helper()
	for _, l := range all {
		r.Logf("%s: %d %s, %d failed", when, l.done.Load(), l.what, l.failed.Load())
		if l.failed.Load() > 0 || l.done.Load() == 0 {
			r.Errorf("%s: %s: %v", when, l.what, l.first.Load())
		}
	}
}

// get makes one request through the gateway.
func get(ctx context.Context, client *http.Client) (string, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+entry+"/", nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(q)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s", res.Status, text)
	}
	return string(text), err
}

// register has the API server call the webhooks of servers for pods that say so.
func (r *rig) register(servers ...*server) {
	r.Helper()
	var hooks []string
	for _, s := range servers {
		hooks = append(hooks, `{name: `+s.name+`.lateen.dev, admissionReviewVersions: [v1], sideEffects: None, failurePolicy: Fail, timeoutSeconds: 30,
  clientConfig: {url: "https://`+strings.Replace(s.webhook, "127.0.0.1", "localhost", 1)+`/inject"}, namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}},
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]}`)
	}
	r.do("delete", "mutatingwebhookconfiguration", "lateen-sidecar-injector", "--ignore-not-found")
	r.put("{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingWebhookConfiguration, metadata: {name: lateen-sidecar-injector}, webhooks: [" +
		strings.Join(hooks, ",\n") + "]}")
}

const pod = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "shop", "labels": {"sidecar.istio.io/inject": "true"}},
"spec": {"containers": [{"name": "a", "image": "a"}]}}`

// admit has the API server admit a pod, without making it.
func (r *rig) admit(ctx context.Context, client *http.Client) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+admin+"/api/v1/namespaces/shop/pods?dryRun=All", strings.NewReader(pod))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	res, err := client.Do(q)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != http.StatusCreated || !strings.Contains(string(text), `"istio-proxy"`)) {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return err
}

// root is that of the checkout.
func root(r *rig) string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		r.Fatal(err)
	}
	return dir
}

// TestServers: three servers of one mesh share a root that one of them has made; one that is killed costs no request, and
// neither does the replacement of the root.
func TestServers(t *testing.T) {
	r := newRig(t)
	all := []*server{r.serve(0), r.serve(1), r.serve(2)} // at once, so that each may make the Secret
	r.step("three servers are ready", func() {
		for _, s := range all {
			r.ready(s)
		}
	})
	first := r.roots(all[0])
	for _, s := range all {
		if got := r.roots(s); got != first {
			t.Fatalf("%s has another root:\n%s\n%s", s.name, got, first)
		}
	}
	r.put("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")
	r.step("a new namespace has the roots", func() { r.await("the roots", func() bool { return r.published("shop") == first }) })
	r.put(edge)
	r.put(route("one"))

	r.leaderFirst(all)
	r.workloads(all)
	client := &http.Client{Transport: r.cluster.Transport(), Timeout: time.Minute}
	t.Cleanup(client.CloseIdleConnections)
	r.step("a request goes through", func() {
		told := ""
		r.await("a request", func() bool {
			text, err := get(t.Context(), client)
			if now := fmt.Sprint(text, err); now != told {
				told = now
				t.Log(now)
			}
			return err == nil && text == "one"
		})
	})
	requests := r.load("requests", func(ctx context.Context) error { _, err := get(ctx, client); return err })

	t.Run("killed", func(*testing.T) { r.killed(all, client, requests) })
	t.Run("rotated", func(*testing.T) { r.rotated(all[1:], first, client, requests) })
	t.Run("again", func(t *testing.T) {
		all[0] = r.serve(3)
		r.ready(all[0])
		if got := r.roots(all[0]); got != r.roots(all[1]) {
			t.Error("the server that comes anew has another root")
		}
	})
}

// leaderFirst puts the leader before the others, when there is one.
func (r *rig) leaderFirst(all []*server) {
	r.Helper()
	r.await("a leader", func() bool {
		holder := r.holder()
		for i, s := range all {
			text, err := os.ReadFile(filepath.Join(s.dir, "log"))
			if err == nil && holder != "" && strings.Contains(string(text), "as="+holder) {
				all[0], all[i] = all[i], all[0]
				return true
			}
		}
		return false
	})
}

// killed: the leader, which the gateway listens to, is killed.
func (r *rig) killed(all []*server, client *http.Client, requests *load) {
	led := r.holder()
	if err := all[0].cmd.Process.Signal(syscall.SIGKILL); err != nil {
		r.Fatal(err)
	}
	_ = all[0].cmd.Wait()
	r.put(route("two"))
	r.step("the gateway obeys another server", func() {
		r.await("the change", func() bool { text, err := get(r.Context(), client); return err == nil && text == "two" })
	})
	r.step("another server leads (15 s after the last renewal)", func() { r.await("a leader", func() bool { return r.holder() != led }) })
	r.put("{apiVersion: v1, kind: Namespace, metadata: {name: later}}")
	r.step("it writes the roots", func() { r.await("the roots", func() bool { return r.published("later") != "" }) })
	r.judge("killed", requests)
}

// rotated: the root is replaced while requests are made and pods admitted.
func (r *rig) rotated(live []*server, first string, client *http.Client, requests *load) {
	r.start(io.Discard, nil, filepath.Join(root(r), "bin/kubectl"), "--kubeconfig="+r.cluster.Kubeconfig, "proxy", "--port=18300")
	r.put(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: shop}}`) // or else its controller may be late
	r.register(live...)
	r.step("the API server believes the webhooks", func() {
		told := ""
		r.await("a pod is admitted", func() bool {
			err := r.admit(r.Context(), client)
			if now := fmt.Sprint(err); now != told {
				told = now
				r.Log(now)
			}
			return err == nil
		})
	})
	loads := []*load{requests}
	for range 3 {
		loads = append(loads, r.load("pods admitted", func(ctx context.Context) error { return r.admit(ctx, client) }))
	}
	began := time.Now()
	r.do("annotate", "secret", "lateen-ca", "-n", "istio-system", "lateen.dev/rotate="+overlap.String())
	r.step("both roots are trusted", func() {
		r.await("two roots", func() bool { return strings.Count(r.published("shop"), "BEGIN") == 2 })
	})
	r.step("the old root goes", func() {
		r.await("one root", func() bool { return strings.Count(r.published("shop"), "BEGIN") == 1 })
	})
	if took := time.Since(began); took < 2*overlap-time.Second { // when a half began is known to the second
		r.Errorf("the roots overlapped for %v only", took)
	}
	// Certificates are renewed once more by the new root alone.
	until := time.NewTimer(lifetime)
	defer until.Stop()
	<-until.C
	r.judge("rotated", loads...)
	last := r.published("shop")
	for _, s := range live {
		if got := r.roots(s); got != last || got == first {
			r.Errorf("%s has other roots than the ConfigMap, or the old ones", s.name)
		}
	}
}
