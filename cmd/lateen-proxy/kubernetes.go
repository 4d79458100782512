package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy"
	"github.com/lateen-mesh/lateen/proxy/probe"
)

// What a pod has where, as package inject puts it there; the paths are Istio's.
const (
	tokenFile  = "/var/run/secrets/tokens/istio-token" //nolint:gosec // a path
	rootFile   = "/var/run/secrets/istio/root-cert.pem"
	labelsFile = "/etc/istio/pod/labels"
	namesFile  = "/var/lib/istio/data/names.json"
)

// How the proxy of a pod ends, where the pod says nothing else (terminationDrainDuration).
const (
	// drainLeast is how long connections still come to a pod that is ending: until every kube-proxy, and every balancer in
	// front of a gateway, knows. A native sidecar does not wait for it: it is told before its end (`lateen-proxy drain`).
	drainLeast = 5 * time.Second
	// drainSidecar bounds it for sidecars, as in Istio; drainGateway for gateways, which serve what is open to its end, but
	// within the 30 s that Kubernetes gives a pod.
	drainSidecar = 5 * time.Second
	drainGateway = 25 * time.Second
)

// podFileMax bounds a file of the pod.
const podFileMax = 1 << 20

// pod is where the configuration of a proxy in Kubernetes comes from.
type pod struct {
	env  func(string) string
	root string       // of the file system, for tests
	log  *slog.Logger // hears of what the proxy can do without
}

// proxyConfig is what we obey of Istio's ProxyConfig (PROXY_CONFIG). Unknown fields are somebody else's.
type proxyConfig struct {
	DiscoveryAddress         string `json:"discoveryAddress"`
	Concurrency              int    `json:"concurrency"`
	TerminationDrainDuration string `json:"terminationDrainDuration"`
}

// config makes the configuration of the proxy of a pod, in a role.
func (p pod) config(role string) (proxy.Config, error) {
	cfg := proxy.Config{
		Role: role, Name: p.env("POD_NAME"), Namespace: p.env("POD_NAMESPACE"), ServiceAccount: p.env("SERVICE_ACCOUNT"),
		TrustDomain: p.env("TRUST_DOMAIN"), TokenFile: filepath.Join(p.root, tokenFile), NamesFile: filepath.Join(p.root, namesFile),
		Ports: map[string]uint16{}, ClusterDNS: true,
	}
	var faults []error
	for _, read := range []func(*proxy.Config) error{p.addresses, p.labels, p.roots, p.control, p.ports, p.application, p.lifetime} {
		faults = append(faults, read(&cfg))
	}
	cfg.Workload = p.workload(cfg)
	return cfg, errors.Join(faults...)
}

func (p pod) addresses(cfg *proxy.Config) error {
	for text := range strings.SplitSeq(cmp.Or(p.env("INSTANCE_IPS"), p.env("INSTANCE_IP")), ",") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("INSTANCE_IPS: %w", err)
		}
		cfg.Addresses = append(cfg.Addresses, a)
	}
	return nil
}

// read reads a file of the pod.
func (p pod) read(path string) ([]byte, error) {
	f, err := os.Open(filepath.Join(p.root, path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err == nil && info.Size() > podFileMax {
		err = fmt.Errorf("%s has more than %d MiB", path, podFileMax>>20)
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(p.root, path))
}

// labels reads the file that the kubelet writes of the pod's labels: a line key="value" for each, with Go's quotes.
func (p pod) labels(cfg *proxy.Config) error {
	text, err := p.read(labelsFile)
	if err != nil {
		return fmt.Errorf("read the pod's labels: %w", err)
	}
	cfg.Labels = map[string]string{}
	for s := bufio.NewScanner(strings.NewReader(string(text))); s.Scan(); {
		key, quoted, ok := strings.Cut(s.Text(), "=")
		value, err := strconv.Unquote(quoted)
		if !ok || err != nil {
			return fmt.Errorf("read the pod's labels: line %q is not key=\"value\"", s.Text())
		}
		cfg.Labels[key] = value
	}
	return nil
}

func (p pod) roots(cfg *proxy.Config) (err error) {
	if cfg.Roots, err = p.read(rootFile); err != nil {
		return fmt.Errorf("read the mesh's root certificates, which the control plane puts into the ConfigMap istio-ca-root-cert: %w", err)
	}
	cfg.RootsFile = filepath.Join(p.root, rootFile)
	return nil
}

func (p pod) control(cfg *proxy.Config) error {
	var c proxyConfig
	if text := p.env("PROXY_CONFIG"); text != "" {
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			return fmt.Errorf("PROXY_CONFIG: %w", err)
		}
	}
	host, _, err := net.SplitHostPort(c.DiscoveryAddress)
	if err != nil {
		return fmt.Errorf("PROXY_CONFIG: discoveryAddress: %w", err)
	}
	cfg.Control, cfg.ControlName = []string{c.DiscoveryAddress}, host
	// Istio's name of another certificate authority than the control plane.
	if address := p.env("CA_ADDR"); address != "" && address != c.DiscoveryAddress {
		if cfg.AuthorityName, _, err = net.SplitHostPort(address); err != nil {
			return fmt.Errorf("CA_ADDR: %w", err)
		}
		cfg.Authority = []string{address}
	}
	cfg.Loops = max(0, c.Concurrency)
	cfg.DrainTime = drainSidecar
	if cfg.Role == proxy.RoleGateway {
		cfg.DrainTime = drainGateway
	}
	if c.TerminationDrainDuration != "" {
		if cfg.DrainTime, err = time.ParseDuration(c.TerminationDrainDuration); err != nil {
			return fmt.Errorf("PROXY_CONFIG: terminationDrainDuration: %w", err)
		}
	}
	cfg.DrainLeast = min(cfg.DrainTime, drainLeast)
	return nil
}

// ports reads the containers' ports; those without a name are called by their number.
func (p pod) ports(cfg *proxy.Config) error {
	text := p.env("ISTIO_META_POD_PORTS")
	if text == "" {
		return nil
	}
	var list []struct {
		Name          string `json:"name"`
		ContainerPort uint16 `json:"containerPort"`
		Protocol      string `json:"protocol"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return fmt.Errorf("ISTIO_META_POD_PORTS: %w", err)
	}
	for _, port := range list {
		if port.Protocol == "" || port.Protocol == "TCP" {
			cfg.Ports[cmp.Or(port.Name, strconv.Itoa(int(port.ContainerPort)))] = port.ContainerPort
		}
	}
	return nil
}

// application reads what is asked of the application. A pod is not to be without its proxy for want of metrics.
func (p pod) application(cfg *proxy.Config) (err error) {
	if cfg.App.Probes, err = probe.ReadProbes(p.env("ISTIO_KUBE_APP_PROBERS")); err != nil {
		return err
	}
	if cfg.App.Scrape, err = probe.ReadScrape(p.env("ISTIO_PROMETHEUS_ANNOTATIONS")); err != nil {
		p.log.Warn("the application's metrics are not handed out with the proxy's; correct the pod's annotations prometheus.io/...", "cause", err)
		cfg.App.Scrape = probe.Scrape{}
	}
	return nil
}

// lifetime is that of certificates (Istio's SECRET_TTL).
func (p pod) lifetime(cfg *proxy.Config) (err error) {
	if text := p.env("SECRET_TTL"); text != "" {
		if cfg.CertificateTTL, err = time.ParseDuration(text); err != nil {
			return fmt.Errorf("SECRET_TTL: %w", err)
		}
	}
	return nil
}

// workload is what telemetry calls the pod.
func (p pod) workload(cfg proxy.Config) plan.Workload {
	l := cfg.Labels
	name := cmp.Or(p.env("ISTIO_META_WORKLOAD_NAME"), cfg.Name)
	return plan.Workload{
		Name: name, Namespace: cfg.Namespace, App: l["app"], Version: l["version"], Cluster: p.env("ISTIO_META_CLUSTER_ID"),
		CanonicalName:     cmp.Or(l["service.istio.io/canonical-name"], l["app.kubernetes.io/name"], l["app"], name),
		CanonicalRevision: cmp.Or(l["service.istio.io/canonical-revision"], l["app.kubernetes.io/version"], l["version"], "latest"),
	}
}

// roles that a proxy can have in a pod.
func validRole(role string) error {
	if !slices.Contains([]string{proxy.RoleSidecar, proxy.RoleGateway}, role) {
		return fmt.Errorf("--kubernetes %q: want %s or %s", role, proxy.RoleSidecar, proxy.RoleGateway)
	}
	return nil
}
