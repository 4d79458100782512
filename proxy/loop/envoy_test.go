package loop

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// envoyBootstrap has Envoy end TLS on one port and begin it on another.
const envoyBootstrap = `
static_resources:
  listeners:
  - name: ends
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context: &common
            tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
            tls_certificates: [{certificate_chain: {filename: %[5]s}, private_key: {filename: %[6]s}}]
      filters:
      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: a, cluster: plain}
  - name: begins
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: b, cluster: secure}
  clusters:
  - name: plain
    load_assignment:
      cluster_name: plain
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[3]d}}}}]}]
  - name: secure
    load_assignment:
      cluster_name: secure
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[4]d}}}}]}]
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: lateen.test
        common_tls_context: *common
`

// envoy starts Envoy with two free ports: behind the first it ends TLS and goes on to plain, behind the second it begins TLS to secure.
func envoy(t *testing.T, serverTLS *tls.Config, plain, secure netip.AddrPort) (ends, begins netip.AddrPort) {
	t.Helper()
	path := os.Getenv("LATEEN_ENVOY")
	if path == "" {
		var err error
		if path, err = exec.LookPath("envoy"); err != nil {
			t.Skip("no Envoy here: name one in LATEEN_ENVOY, or put envoy on the PATH")
		}
	}
	cert, key := writePEM(t, serverTLS)
	for _, a := range []*netip.AddrPort{&ends, &begins} {
		var fd int
		fd, *a = listenFD(t, 1)
		closeFD(t, fd) // its port is free, most likely
	}
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	text := fmt.Sprintf(envoyBootstrap, ends.Port(), begins.Port(), plain.Port(), secure.Port(), cert, key)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "-c", file, "--concurrency", "1", "--use-dynamic-base-id", "-l", "info")
	_, until := watch(t, cmd)
	t.Cleanup(cancel)
	until("starting main dispatch loop")
	return ends, begins
}

// Envoy as the server and as the client, several times, so that sessions resume.
func TestEnvoy(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	l := start(t, Config{})
	plain := listen(t, l, func(*Conn) Handler { return echo{} })
	secured := listen(t, l, func(c *Conn) Handler {
		c.StartTLSServer(serverTLS, 0, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
		return echo{}
	})
	ends, begins := envoy(t, serverTLS, plain, secured)
	data := random(5 << 20)
	clientTLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 3 {
		state, say := client(t, l, ends, clientTLS)
		if state.DidResume != (i > 0) {
			t.Errorf("connection %d: resumed %v", i, state.DidResume)
		}
		if got := say("hello"); got != "hello" {
			t.Errorf("echo: %q", got)
		}
		s := newSender(data)
		l.Post(func() {
			l.Dial(ends, DialOptions{}, func(c *Conn, err error) {
				if err != nil {
					s.done <- err
					return
				}
				c.SetHandler(s)
				c.StartTLSClient(clientTLS, 0, func(err error) {
					if err == nil {
						s.pump(c)
					}
				})
			})
		})
		if err := await(t, "OnClose", s.done); err != nil {
			t.Error(err)
		}
		same(t, "echo through Envoy's server", s.received, data)

		got := make([]byte, len(data))
		c := dial(t, begins)
		wrote := make(chan error, 1)
		go func(c net.Conn) { _, err := c.Write(data); wrote <- err }(c)
		if _, err := io.ReadFull(c, got); err != nil {
			t.Error(err)
		}
		if err := await(t, "Write", wrote); err != nil {
			t.Error(err)
		}
		same(t, "echo through Envoy's client", got, data)
	}
}
