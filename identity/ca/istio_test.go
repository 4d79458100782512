package ca_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
)

// TestIstioAgent: a client that knows cert-manager's istio-csr, or istiod, gets its certificate here in the same way: RSA of
// 2048 bits, the token of its service account at each call, the name of its cluster beside it, a lifetime in seconds.
func TestIstioAgent(t *testing.T) {
	c := newClock()
	a := newAuthority(t, c)
	serving, err := a.ServerCertificate([]string{"istiod.istio-system.svc"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	judge := func(_ context.Context, token string) (identity.ID, error) {
		if token != "of alice" {
			return identity.ID{}, errors.New("nobody's")
		}
		return alice, nil
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(serving.TLS())))
	service := ca.NewService(ca.ServiceConfig{
		Authority: a, Authenticators: ca.Authenticators{ca.Bearer{Name: "service account token", Judge: judge}, ca.MeshCertificate{Authority: a}},
	})
	securityapi.RegisterIstioCertificateServiceServer(g, service)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	defer func() { g.Stop(); <-done }()

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.Bundle().PEM("td"))
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: pool, ServerName: "istiod.istio-system.svc", Time: c.Now,
	})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	key := rsaKey(t, 2048)
	ask := func(token string) (*securityapi.IstioCertificateResponse, error) {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token, "ClusterID", "Kubernetes")
		return securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityapi.IstioCertificateRequest{
			Csr: csr(t, key, alice.String()), ValidityDuration: 3600,
		})
	}
	for range 2 { // the second is a renewal
		answer, err := ask("of alice")
		if err != nil {
			t.Fatal(err)
		}
		leaf := leafOf(t, a, answer, c.Now())
		if id, err := identity.FromCertificate(leaf); err != nil || id != alice || leaf.NotAfter.Sub(c.Now()) > time.Hour {
			t.Errorf("%v until %v, %v", id, leaf.NotAfter, err)
		}
	}
	if _, err := ask("of nobody"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("another token: %v", err)
	}
	if got, want := service.Counts(), (ca.Counts{Asked: 3, Issued: 2, Unproven: 1}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}
