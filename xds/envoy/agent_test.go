package envoy_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlssocket "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
)

// agent serves a workload's certificate and the mesh's roots as SDS on a Unix socket, as Envoy wants them.
type agent struct {
	secretservice.UnimplementedSecretDiscoveryServiceServer
	secrets map[string]*tlssocket.Secret
}

func (a *agent) StreamSecrets(stream secretservice.SecretDiscoveryService_StreamSecretsServer) error {
	var had []string
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if slices.Equal(had, r.ResourceNames) {
			continue // an acknowledgement
		}
		had = r.ResourceNames
		out := &discovery.DiscoveryResponse{VersionInfo: "1", Nonce: "1", TypeUrl: r.TypeUrl}
		for _, name := range r.ResourceNames {
			body, err := proto.Marshal(a.secrets[name])
			if err != nil {
				return err
			}
			out.Resources = append(out.Resources, &anypb.Any{TypeUrl: r.TypeUrl, Value: body})
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

// authority is a mesh's authority for a test.
func authority(t *testing.T) *ca.Authority {
	t.Helper()
	a, err := ca.New(ca.Config{TrustDomain: "cluster.local", Dir: filepath.Join(t.TempDir(), "ca")})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func certificate(t *testing.T, a *ca.Authority, account string) tls.Certificate {
	t.Helper()
	c, err := a.Certificate(identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: account}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serveSecrets runs the agent of a workload until the test ends and returns the path of its socket.
func serveSecrets(t *testing.T, a *ca.Authority, account string) string {
	t.Helper()
	cert := certificate(t, a, account)
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	inline := func(b []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
	}
	served := &agent{secrets: map[string]*tlssocket.Secret{
		"default": {Name: "default", Type: &tlssocket.Secret_TlsCertificate{TlsCertificate: &tlssocket.TlsCertificate{
			CertificateChain: inline(chain), PrivateKey: inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})),
		}}},
		"ROOTCA": {Name: "ROOTCA", Type: &tlssocket.Secret_ValidationContext{ValidationContext: &tlssocket.CertificateValidationContext{
			TrustedCa: inline(a.Bundle().PEM("cluster.local")),
		}}},
	}}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "sds"))
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	secretservice.RegisterSecretDiscoveryServiceServer(s, served)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return l.Addr().String()
}
