package control_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/xds"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/control"
)

// patience bounds how long the test waits for the control plane and its answers.
const patience = 30 * time.Second

const reviewsYAML = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 9080, name: grpc, protocol: GRPC}]
  endpoints:
  - {address: 127.0.0.1, ports: {grpc: %d}, labels: {version: v1}}
  - {address: 127.0.0.1, ports: {grpc: %d}, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews.default.svc.cluster.local
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews.default.svc.cluster.local]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews.default.svc.cluster.local, subset: v2}}]
  - route: [{destination: {host: reviews.default.svc.cluster.local, subset: v1}}]
`

// reviews is a gRPC service that says which version it is.
type reviews struct {
	healthpb.UnimplementedHealthServer
	version string
}

func (r reviews) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	return &healthpb.HealthCheckResponse{}, grpc.SetHeader(ctx, metadata.Pairs("version", r.version))
}

func review(t *testing.T, version string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, reviews{version: version})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return l.Addr().(*net.TCPAddr).Port
}

// run runs a control plane with a configuration until the test ends and returns the path of its API.
func run(t *testing.T, yaml string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	api := filepath.Join(t.TempDir(), "api.sock")
	c, err := control.New(control.Config{Dir: dir, State: t.TempDir(), Listen: "127.0.0.1:0", API: api})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return api
}

// joined is the answer to a request for a join token.
type joined struct {
	Token   string   `json:"token"`
	Roots   string   `json:"roots"`
	Control []string `json:"control"`
}

// join asks the control plane for a token as soon as it answers.
func join(t *testing.T, api string) joined {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", api)
	}}}
	defer c.CloseIdleConnections()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); ; {
		r, err := c.Post("http://control/tokens", "application/json", strings.NewReader(`{"Namespace":"default","ServiceAccount":"client"}`))
		if err == nil {
			body, err := io.ReadAll(r.Body)
			_ = r.Body.Close()
			var j joined
			if err == nil {
				err = json.Unmarshal(body, &j)
			}
			if err != nil || r.StatusCode != http.StatusOK {
				t.Fatalf("join: %s %s %v", r.Status, body, err)
			}
			if len(j.Control) == 1 && j.Control[0] != "" {
				return j
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the control plane does not answer: %v", err)
		}
	}
}

// enrol turns a token into certificate files, as an agent would, and returns gRPC's configuration of TLS with them.
func enrol(t *testing.T, j joined) map[string]any {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(j.Roots)) {
		t.Fatal("the control plane hands out no roots")
	}
	c, err := grpc.NewClient(j.Control[0], grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: control.ServerName})))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	answer, err := securityapi.NewIstioCertificateServiceClient(c).CreateCertificate(
		metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+j.Token),
		&securityapi.IstioCertificateRequest{Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := map[string]any{}
	for name, text := range map[string]string{
		"certificate_file":    strings.Join(answer.CertChain, "\n"),
		"private_key_file":    string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})),
		"ca_certificate_file": j.Roots,
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		files[name] = path
	}
	return files
}

// TestGRPCWithoutProxy takes a gRPC client from a join token to a routed call, with no proxy anywhere.
func TestGRPCWithoutProxy(t *testing.T) {
	j := join(t, run(t, fmt.Sprintf(reviewsYAML, review(t, "v1"), review(t, "v2"))))
	bootstrap, err := json.Marshal(map[string]any{
		"xds_servers": []any{map[string]any{
			"server_uri": j.Control[0], "server_features": []string{"xds_v3"},
			"channel_creds": []any{map[string]any{"type": "tls", "config": enrol(t, j)}},
		}},
		"node": map[string]any{
			"id":       "sidecar~127.0.0.1~client.default~default.svc.cluster.local",
			"metadata": map[string]any{"GENERATOR": "grpc", "NAMESPACE": "default", "NAME": "client", "SERVICE_ACCOUNT": "client"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := xds.NewXDSResolverWithConfigForTesting(bytes.TrimSpace(bootstrap))
	if err != nil {
		t.Fatal(err)
	}
	c, err := grpc.NewClient("xds:///reviews.default.svc.cluster.local:9080", grpc.WithResolvers(b),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for user, want := range map[string]string{"jason": "v2", "nobody": "v1"} {
		var got metadata.MD
		_, err := healthpb.NewHealthClient(c).Check(metadata.AppendToOutgoingContext(ctx, "end-user", user), &healthpb.HealthCheckRequest{},
			grpc.WaitForReady(true), grpc.Header(&got))
		if v := got.Get("version"); err != nil || len(v) != 1 || v[0] != want {
			t.Errorf("call of %s: version %v, %v; want %s", user, v, err, want)
		}
	}
}
