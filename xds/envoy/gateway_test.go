package envoy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/xds/envoy"
)

// gatewayPlan opens a plaintext port and a TLS port (with a redirecting one beside it) before one service in the mesh,
// which speaks mTLS.
func gatewayPlan(plain, secure, redirect uint16, at netip.AddrPort, secret *plan.Secret) []plan.Resource {
	const cluster = "outbound|9080||" + reviewsHost
	open := func(port uint16, tls plan.ServerTLS, route string) *plan.Listener {
		c := plan.Chain{
			Name: "default/web/" + strconv.Itoa(int(port)), Protocol: plan.ProtocolHTTP, TLS: tls,
			HTTP: &plan.HTTP{
				Route: route, ServerName: "istio-envoy", ForwardClientCert: plan.ClientCertSanitizeSet, AppendForwardedFor: true,
				PathNormalization: plan.PathMergeSlashes,
			},
		}
		if tls.Secret != "" {
			c.Match.SNI = []string{"shop.example.com"}
		}
		return &plan.Listener{
			Name: "gateway|" + strconv.Itoa(int(port)), Direction: plan.Gateway, Bind: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port),
			Chains: []plan.Chain{c},
		}
	}
	rules := func(name string) *plan.Route {
		return &plan.Route{Name: name, Hosts: []plan.VirtualHost{{
			Name: "shop.example.com:443", Domains: []string{"shop.example.com", "shop.example.com:443"},
			Rules: []plan.Rule{{Name: "all", Clusters: []plan.WeightedCluster{{Cluster: cluster}}}},
		}}}
	}
	plainRoute, secureRoute := "gateway|"+strconv.Itoa(int(plain)), "gateway|"+strconv.Itoa(int(secure))+"|default/web/0"
	return []plan.Resource{
		&plan.Cluster{
			Name: cluster, Protocol: plan.ProtocolHTTP, Balance: plan.Balance{Algorithm: plan.RoundRobin},
			TLS: plan.ClientTLS{
				Mode: plan.ClientTLSAuto, SNI: "outbound_.9080_._." + reviewsHost, Identities: []string{"spiffe://cluster.local/ns/default/sa/reviews"},
			},
		},
		&plan.Endpoints{Name: cluster, Endpoints: []plan.Endpoint{{Address: at, MTLS: true}}},
		open(plain, plan.ServerTLS{}, plainRoute),
		open(secure, plan.ServerTLS{Mode: plan.TLSMutual, Secret: secret.Name, MinVersion: tls.VersionTLS12}, secureRoute),
		open(redirect, plan.ServerTLS{RedirectHTTPS: true}, "gateway|"+strconv.Itoa(int(redirect))),
		rules(plainRoute), rules(secureRoute), secret,
	}
}

// peerService is an HTTP service in mTLS that answers with what its peer showed: identity, server name and protocols.
func peerService(t *testing.T, mesh *ca.Authority) netip.AddrPort {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(mesh.Bundle().PEM("cluster.local")) {
		t.Fatal("the authority has no roots")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var offered atomic.Pointer[[]string]
	config := &tls.Config{
		Certificates: []tls.Certificate{certificate(t, mesh, "reviews")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
		NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			offered.Store(&h.SupportedProtos)
			return nil, nil
		},
	}
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprint(w, r.TLS.PeerCertificates[0].URIs[0], " ", r.TLS.ServerName, " ", *offered.Load(), " ", r.URL.Path)
		}),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(tls.NewListener(l, config))
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// gatewaySecret is the credential of a gateway, which demands a certificate of the same authority.
func gatewaySecret(t *testing.T, mesh *ca.Authority) *plan.Secret {
	t.Helper()
	cert := certificate(t, mesh, "shop")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return &plan.Secret{
		Name: "kubernetes://default/shop", Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), Roots: mesh.Bundle().PEM("cluster.local"),
	}
}

// TestGateway runs a real Envoy as a gateway, and reaches a service in mTLS through its ports.
func TestGateway(t *testing.T) {
	binary(t)
	mesh := authority(t)
	plain, secure, redirect := freePort(t), freePort(t), freePort(t)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, mesh.Bundle().PEM("cluster.local"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := envoy.Options{AgentSocket: serveSecrets(t, mesh, "gateway"), SystemRoots: roots}
	orders := append(gatewayPlan(plain, secure, redirect, peerService(t, mesh), gatewaySecret(t, mesh)), oddClusters()...)
	s, control := serve(t, paint(t, envoy.Gateway, o, nil, orders...))
	ask := start(t, "router~127.0.0.1~gateway.default~default.svc.cluster.local", "DELTA_GRPC", control)
	until(t, "the listeners", func() bool {
		return counters(ask, "listener_manager.total_listeners_active")["listener_manager.total_listeners_active"] == 3
	})
	at := func(port uint16, config *tls.Config) *http.Client {
		return &http.Client{Timeout: patience, Transport: &http.Transport{
			TLSClientConfig: config, DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
			},
		}}
	}
	want := identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "gateway"}.String() +
		" outbound_.9080_._." + reviewsHost + " [istio-http/1.1 istio http/1.1] /a/b"
	exchange{"GET", "http://shop.example.com/a//b", "", 200, want}.check(t, at(plain, nil))
	exchange{"GET", "http://other.example.com/a", "", 404, ""}.check(t, at(plain, nil))
	exchange{"GET", "http://shop.example.com/x", "", 301, "https://shop.example.com/x"}.check(t, at(redirect, nil))
	known := &tls.Config{InsecureSkipVerify: true, ServerName: "shop.example.com", Certificates: []tls.Certificate{certificate(t, mesh, "customer")}}
	exchange{"GET", "https://shop.example.com/a/b", "", 200, want}.check(t, at(secure, known))
	unknown := known.Clone()
	unknown.Certificates = nil
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://shop.example.com/a", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := at(secure, unknown).Do(r); err == nil {
		_ = got.Body.Close()
		t.Errorf("without a certificate the answer is %d, want none", got.StatusCode)
	}
	accepted(t, ask)
	if refused, _ := refusals(s); len(refused) > 0 {
		t.Errorf("Envoy refused %v", refused)
	}
	if got := counters(ask, "update_rejected"); len(got) == 0 {
		t.Error("Envoy has no counters of what it refused: this test looks at the wrong names")
	}
}
