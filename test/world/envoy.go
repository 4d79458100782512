package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/proxy"
)

// envoyInCache is where tools/setup puts Envoy, below the user's cache folder.
const envoyInCache = "lateen/envoy-1.40.0/envoy/_bin/envoy"

// EnvoyBinary finds a real Envoy: what LATEEN_ENVOY names, else what tools/setup installed, else envoy on the PATH.
func EnvoyBinary() (string, error) {
	if path := os.Getenv("LATEEN_ENVOY"); path != "" {
		return path, nil
	}
	if dir, err := os.UserCacheDir(); err == nil {
		path := filepath.Join(dir, envoyInCache)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("envoy")
	if err != nil {
		return "", errors.New("no Envoy here: run tools/setup, or name one in LATEEN_ENVOY, or put envoy on the PATH")
	}
	return path, nil
}

// bootstrap is Envoy's own configuration: who it is, and where its orders come from. Its one listener answers a worker's
// word to who asks whether it has caught up. The marks keep its connections from
// being captured, as SO_MARK (36 of SOL_SOCKET, 1) of 1337.
const bootstrap = `{
"node": {"id": %q, "cluster": %q, "metadata": %s},
"admin": {"address": {"pipe": {"path": %q}}},
"cluster_manager": {"upstream_bind_config": {"socket_options": [%s]}},
"dynamic_resources": {
  "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]},
  "lds_config": {"ads": {}, "resource_api_version": "V3"}, "cds_config": {"ads": {}, "resource_api_version": "V3"}},
"static_resources": {"listeners": [{
  "name": "probe", "address": {"pipe": {"path": %q}},
  "filter_chains": [{"filters": [{"name": "envoy.filters.network.direct_response", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config",
    "response": {"inline_string": "done"}}}]}]}],
"clusters": [{
  "name": "xds-grpc", "type": "STATIC", "connect_timeout": "5s",
  "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "explicit_http_config": {"http2_protocol_options": {}}}},
  "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": %q,
    "common_tls_context": {"alpn_protocols": ["h2"],
      "tls_certificates": [{"certificate_chain": {"filename": "cert.pem"}, "private_key": {"filename": "key.pem"}}],
      "validation_context": {"trusted_ca": {"filename": "roots.pem"},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": %q}}]}}}},
  "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [
    {"endpoint": {"address": {"socket_address": {"address": %q, "port_value": %d}}}}]}]}}]}}`

const markOption = `{"level": 1, "name": 36, "int_value": 1337, "state": "STATE_PREBIND", "description": "not captured"}`

// prepareEnvoy makes what Envoy needs: a certificate, the agent that serves it, and the bootstrap.
func (p *Proxy) prepareEnvoy(ctx context.Context, token host.Token) error {
	binary, err := EnvoyBinary()
	if err != nil {
		return err
	}
	id := identity.ID{TrustDomain: TrustDomain, Namespace: p.load.Namespace, ServiceAccount: p.load.ServiceAccount}
	secrets, err := p.w.secrets(id)
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{"cert.pem": secrets.chain, "key.pem": secrets.key, "roots.pem": secrets.roots} {
		if err := os.WriteFile(filepath.Join(p.dir, name), text, 0o600); err != nil {
			return err
		}
	}
	if p.after, err = secrets.serve(ctx, filepath.Join(p.dir, "var/run/secrets/workload-spiffe-uds/socket")); err != nil {
		return err
	}
	config, err := p.bootstrap(token)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(p.dir, "envoy.json"), []byte(config), 0o600); err != nil {
		return err
	}
	p.cmd = exec.Command(binary, "-c", "envoy.json", "--concurrency", strconv.Itoa(p.load.Threads), "--disable-hot-restart",
		"-l", "warning", "--file-flush-interval-msec", "100")
	return nil
}

func (p *Proxy) bootstrap(token host.Token) (string, error) {
	kind, ports, ips, first := "sidecar", map[string]string{}, []string{}, ""
	if p.load.Role == proxy.RoleGateway {
		kind = "router"
	}
	for name, port := range p.load.Ports {
		ports[name] = strconv.Itoa(int(port))
	}
	for _, a := range p.load.Addresses {
		ips = append(ips, a.String())
	}
	if len(ips) > 0 {
		first = ips[0]
	}
	metadata, err := json.Marshal(map[string]any{
		"NAME": p.load.Name, "NAMESPACE": p.load.Namespace, "SERVICE_ACCOUNT": p.load.ServiceAccount, "LABELS": p.load.Labels,
		"WORKLOAD_NAME": p.load.Name, "INSTANCE_IPS": ips, "PORTS": ports,
	})
	if err != nil {
		return "", err
	}
	at, err := addrPort(token.Control)
	if err != nil {
		return "", err
	}
	mark := ""
	if p.load.Place != nil {
		mark = markOption
	}
	id := fmt.Sprintf("%s~%s~%s.%s~%s.svc.cluster.local", kind, first, p.load.Name, p.load.Namespace, p.load.Namespace)
	return fmt.Sprintf(bootstrap, id, p.load.Name+"."+p.load.Namespace, metadata, p.admin, mark, p.probe(), token.ControlName, token.ControlName,
		at.Addr().String(), at.Port()), nil
}

// probe is the path of the Unix socket on which Envoy's workers answer.
func (p *Proxy) probe() string { return p.admin + "-probe" }

// caughtUp is nil once a worker obeys what Envoy's main thread has accepted. The main thread hands each order to the
// workers as a task of its own, and a worker does its tasks before it serves a connection that came after them. With
// several workers one of them answers for all.
func (p *Proxy) caughtUp(ctx context.Context) error {
	c, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "unix", p.probe())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err = io.ReadAll(c)
	return err
}

// warm is nil if Envoy has nothing that it still prepares, has refused nothing, and its workers know all of it.
func (p *Proxy) warm(ctx context.Context) error {
	text, err := p.Admin(ctx, "/stats?filter=warming|listener_create_failure|update_rejected")
	if err != nil {
		return err
	}
	for line := range strings.SplitSeq(text, "\n") {
		if name, value, ok := strings.Cut(line, ": "); ok && value != "0" {
			return fmt.Errorf("%s of Envoy is %s", name, value)
		}
	}
	return p.caughtUp(ctx)
}
