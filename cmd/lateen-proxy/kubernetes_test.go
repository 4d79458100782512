package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy"
	"github.com/lateen-mesh/lateen/proxy/probe"
)

// newPod is a pod with files and an environment, which may be changed before it is read.
func newPod(t *testing.T) (pod, map[string]string) {
	t.Helper()
	root := t.TempDir()
	for path, text := range map[string]string{rootFile: "pem", labelsFile: "app=\"reviews\"\nversion=\"v\\\"1\"\n", tokenFile: "t"} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{
		"POD_NAME": "reviews-1", "POD_NAMESPACE": "books", "SERVICE_ACCOUNT": "sa", "INSTANCE_IP": "10.0.0.1", "INSTANCE_IPS": "10.0.0.1,fd00::1",
		"TRUST_DOMAIN": "td", "PROXY_CONFIG": `{"discoveryAddress":"lateend.sys.svc:15012","concurrency":2,"terminationDrainDuration":"7s","more":1}`,
		"ISTIO_META_WORKLOAD_NAME": "reviews", "ISTIO_META_CLUSTER_ID": "c1", "SECRET_TTL": "1h", "CA_ADDR": "csr.certs.svc:443",
		"ISTIO_META_POD_PORTS":         `[{"name":"http","containerPort":9080,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"},{"containerPort":81}]`,
		"ISTIO_KUBE_APP_PROBERS":       `{"/app-health/a/livez":{"tcpSocket":{"port":80}}}`,
		"ISTIO_PROMETHEUS_ANNOTATIONS": `{"scrape":"true","port":"9090"}`,
	}
	return pod{env: func(k string) string { return env[k] }, root: root, log: slog.New(slog.DiscardHandler)}, env
}

// TestPod: everything that injection puts into a pod is understood.
func TestPod(t *testing.T) {
	p, _ := newPod(t)
	got, err := p.config(proxy.RoleSidecar)
	if err != nil {
		t.Fatal(err)
	}
	want := proxy.Config{
		Role: proxy.RoleSidecar, Name: "reviews-1", Namespace: "books", ServiceAccount: "sa", Labels: map[string]string{"app": "reviews", "version": `v"1`},
		Addresses:   []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		Workload:    plan.Workload{Name: "reviews", Namespace: "books", App: "reviews", Version: `v"1`, CanonicalName: "reviews", CanonicalRevision: `v"1`, Cluster: "c1"},
		ClusterDNS:  true,
		Ports:       map[string]uint16{"http": 9080, "81": 81},
		TrustDomain: "td", Control: []string{"lateend.sys.svc:15012"}, ControlName: "lateend.sys.svc", Roots: []byte("pem"),
		RootsFile: filepath.Join(p.root, rootFile), Authority: []string{"csr.certs.svc:443"}, AuthorityName: "csr.certs.svc",
		TokenFile: filepath.Join(p.root, tokenFile), NamesFile: filepath.Join(p.root, namesFile), Loops: 2, DrainTime: 7 * time.Second, DrainLeast: drainLeast, CertificateTTL: time.Hour,
		App: probe.Config{
			Probes: map[string]probe.Probe{"/app-health/a/livez": {TCPSocket: &probe.TCPSocket{Port: 80}}},
			Scrape: probe.Scrape{Scrape: "true", Port: "9090"},
		},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
}

// TestPodEnd: a gateway serves to the end what is open; nobody waits longer than the pod says.
func TestPodEnd(t *testing.T) {
	for _, tt := range []struct {
		role, said  string
		least, most time.Duration
	}{
		{proxy.RoleSidecar, "", drainLeast, drainSidecar},
		{proxy.RoleGateway, "", drainLeast, drainGateway},
		{proxy.RoleGateway, "1m", drainLeast, time.Minute},
		{proxy.RoleGateway, "2s", 2 * time.Second, 2 * time.Second},
	} {
		p, env := newPod(t)
		env["PROXY_CONFIG"] = `{"discoveryAddress":"lateend.sys.svc:15012","terminationDrainDuration":"` + tt.said + `"}`
		if cfg, err := p.config(tt.role); err != nil || cfg.DrainLeast != tt.least || cfg.DrainTime != tt.most {
			t.Errorf("%s %q: %v to %v, %v", tt.role, tt.said, cfg.DrainLeast, cfg.DrainTime, err)
		}
	}
}

// TestPodFaults: what is missing or wrong is told by the name of the variable, or of the file.
func TestPodFaults(t *testing.T) {
	for key, want := range map[string]string{
		"INSTANCE_IPS": "INSTANCE_IPS", "PROXY_CONFIG": "PROXY_CONFIG", "ISTIO_META_POD_PORTS": "ISTIO_META_POD_PORTS",
		"ISTIO_KUBE_APP_PROBERS": "application's probes", "SECRET_TTL": "SECRET_TTL", "CA_ADDR": "CA_ADDR",
	} {
		p, env := newPod(t)
		env[key] = "[x"
		if _, err := p.config(proxy.RoleGateway); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", key, err)
		}
	}
	for path, want := range map[string]string{rootFile: "istio-ca-root-cert", labelsFile: "labels"} {
		p, _ := newPod(t)
		if err := os.Remove(filepath.Join(p.root, path)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.config(proxy.RoleGateway); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := validRole("waypoint"); err == nil {
		t.Error("a role that we do not have")
	}
}

// TestPodMetrics: that the application's metrics cannot be found is told, and costs nothing else.
func TestPodMetrics(t *testing.T) {
	for _, text := range []string{"[x", `{"scrape":"true","port":"metrics"}`, `{"scrape":"true","port":"8080,9090"}`} {
		p, env := newPod(t)
		var log strings.Builder
		p.log = slog.New(slog.NewTextHandler(&log, nil))
		env["ISTIO_PROMETHEUS_ANNOTATIONS"] = text
		got, err := p.config(proxy.RoleSidecar)
		if err != nil || got.App.Scrape != (probe.Scrape{}) || !strings.Contains(log.String(), "application's metrics") {
			t.Errorf("%s: %v, %+v, log %q", text, err, got.App.Scrape, log.String())
		}
	}
}

// TestWait: the application's start is held up until the proxy is ready.
func TestWait(t *testing.T) {
	calls := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls++; calls < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	if err := wait(t.Context(), s.URL); err != nil || calls != 3 {
		t.Error(calls, err)
	}
	calls = -1 << 20
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := wait(ctx, s.URL); err == nil || !strings.Contains(err.Error(), "not ready") {
		t.Error(err)
	}
	if err := beside(t.Context(), "what", ""); err == nil {
		t.Error("no fault")
	}
}
