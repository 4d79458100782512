package script

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/control"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy"
)

// wait bounds everything that a test waits for.
const wait = 20 * time.Second

// meshRig is a control plane and what a test runs under it.
type meshRig struct {
	t    *testing.T
	dir  string
	api  *http.Client
	logs *logBuffer
	stop context.CancelFunc
}

type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newMesh(t *testing.T) *meshRig {
	t.Helper()
	m := &meshRig{t: t, dir: t.TempDir(), logs: &logBuffer{}}
	sock := filepath.Join(m.dir, "api.sock")
	if err := os.Mkdir(filepath.Join(m.dir, "config"), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := control.New(control.Config{
		Dir: filepath.Join(m.dir, "config"), State: filepath.Join(m.dir, "state"), Listen: "127.0.0.1:0", API: sock,
		Logger: slog.New(slog.NewTextHandler(m.logs, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	m.api = &http.Client{Timeout: wait, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", sock)
		},
	}}
	t.Cleanup(func() {
		m.api.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("control plane: %v", err)
		}
		if t.Failed() {
			t.Log(m.logs)
		}
	})
	m.eventually("the control plane is ready", func() error {
		res, err := m.api.Get("http://lateend/ready")
		if err == nil {
			_ = res.Body.Close()
		}
		return err
	})
	return m
}

// eventually tries f until it succeeds, at most for the wait.
func (m *meshRig) eventually(what string, f func() error) {
	m.t.Helper()
	deadline := time.Now().Add(wait)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

func (m *meshRig) call(method, path, body string, out any) {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), method, "http://lateend"+path, strings.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	res, err := m.api.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	if res.StatusCode != 200 {
		m.t.Fatalf("%s %s: %s\n%s", method, path, res.Status, text)
	}
	if out != nil {
		if err := json.Unmarshal(text, out); err != nil {
			m.t.Fatalf("%s %s: %v\n%s", method, path, err, text)
		}
	}
}

func (m *meshRig) apply(yaml string) {
	m.t.Helper()
	m.call("POST", "/apply?name=test.yaml", yaml, nil)
}

// gateway runs a gateway that joins with a token.
func (m *meshRig) gateway(name string) *proxy.Proxy {
	m.t.Helper()
	var token struct {
		Token, Roots, TrustDomain, ControlName string
		Control                                []string
	}
	m.call("POST", "/tokens", fmt.Sprintf(`{"namespace":"default","serviceAccount":%q,"gateway":true}`, name), &token)
	p, err := proxy.New(proxy.Config{
		Role: proxy.RoleGateway, Name: name, Namespace: "default", ServiceAccount: name, Labels: map[string]string{"istio": "ingressgateway"},
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Workload: plan.Workload{Name: name, Namespace: "default"},
		TrustDomain: token.TrustDomain, Control: token.Control, ControlName: token.ControlName, Roots: []byte(token.Roots), Token: token.Token,
		Logger: slog.New(slog.NewTextHandler(m.logs, nil)), Loops: 1, DrainTime: time.Second,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	m.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Errorf("proxy: %v", err)
		}
	})
	select {
	case <-p.Ready():
	case err := <-done:
		m.t.Fatalf("proxy ended: %v", err)
	case <-time.After(wait):
		m.t.Fatal("the gateway is not ready")
	}
	return p
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func serve(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name+" "+r.URL.Path) }))
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

func TestGatewayFollowsTheFolder(t *testing.T) {
	m := newMesh(t)
	port := freePort(t)
	v1, v2 := serve(t, "v1"), serve(t, "v2")
	m.apply(fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop}
spec:
  hosts: [shop.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints:
  - {address: 127.0.0.1, ports: {http: %d}, labels: {version: v1}}
  - {address: 127.0.0.1, ports: {http: %d}, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop}
spec:
  host: shop.example
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: in}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: %d, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: ["*"]
  gateways: [in]
  http:
  - route: [{destination: {host: shop.example, subset: v1}}]
`, v1.Port(), v2.Port(), port))
	m.gateway("gw")
	get := func() (string, error) {
		res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/page", port)) //nolint:noctx // bounded by the server beside us
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode != 200 {
			err = fmt.Errorf("%s %s: %s", res.Status, res.Header.Get("X-Lateen-Reason"), body)
		}
		return string(body), err
	}
	want := func(body string) func() error {
		return func() error {
			got, err := get()
			if err == nil && got != body {
				err = fmt.Errorf("answer %q, want %q", got, body)
			}
			return err
		}
	}
	m.eventually("version 1 answers", want("v1 /page"))
	m.apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: ["*"]
  gateways: [in]
  http:
  - route: [{destination: {host: shop.example, subset: v2}}]
`)
	m.eventually("version 2 answers", want("v2 /page"))
}
