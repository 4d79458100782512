package world

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlssocket "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lateen-mesh/lateen/identity"
)

// certificateTTL outlives every world.
const certificateTTL = 24 * time.Hour

// secrets are what proves a workload, as PEM. As a server they play the agent that stands beside Envoy.
type secrets struct {
	secretservice.UnimplementedSecretDiscoveryServiceServer
	chain, key, roots []byte
}

// secrets makes a certificate for an identity.
func (w *World) secrets(id identity.ID) (*secrets, error) {
	cert, err := w.authority.Certificate(id, certificateTTL)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, err
	}
	s := &secrets{key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), roots: w.authority.Bundle().PEM(TrustDomain)}
	for _, c := range cert.Certificate {
		s.chain = append(s.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	return s, nil
}

// serve serves the secrets as SDS on a Unix socket, until end.
func (s *secrets) serve(ctx context.Context, path string) (end func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	g := grpc.NewServer()
	secretservice.RegisterSecretDiscoveryServiceServer(g, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l) // ends by Stop only
	}()
	return func() {
		g.Stop()
		<-done
	}, nil
}

// StreamSecrets answers each question once; what follows are acknowledgements.
func (s *secrets) StreamSecrets(stream secretservice.SecretDiscoveryService_StreamSecretsServer) error {
	var had []string
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if slices.Equal(had, r.ResourceNames) {
			continue
		}
		had = r.ResourceNames
		out := &discovery.DiscoveryResponse{VersionInfo: "1", Nonce: "1", TypeUrl: r.TypeUrl}
		for _, name := range r.ResourceNames {
			body, err := proto.Marshal(s.named(name))
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

func (s *secrets) named(name string) *tlssocket.Secret {
	inline := func(b []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
	}
	if name == "ROOTCA" {
		return &tlssocket.Secret{Name: name, Type: &tlssocket.Secret_ValidationContext{
			ValidationContext: &tlssocket.CertificateValidationContext{TrustedCa: inline(s.roots)},
		}}
	}
	return &tlssocket.Secret{Name: name, Type: &tlssocket.Secret_TlsCertificate{
		TlsCertificate: &tlssocket.TlsCertificate{CertificateChain: inline(s.chain), PrivateKey: inline(s.key)},
	}}
}

// addrPort is the first address of the control plane.
func addrPort(control []string) (netip.AddrPort, error) {
	if len(control) == 0 {
		return netip.AddrPort{}, errors.New("the control plane has named no address")
	}
	return netip.ParseAddrPort(control[0])
}
