package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/lateen-mesh/lateen/identity"
)

// ErrNoCredential is what an Authenticator returns when the call carries no
// credential of its kind.
var ErrNoCredential = errors.New("no such credential")

// An Authenticator proves who makes a gRPC call.
type Authenticator interface {
	// Kind names the credential, for logs and messages: "client
	// certificate".
	Kind() string
	// Authenticate returns the proven ID, ErrNoCredential if the call
	// carries no credential of this kind, or why the credential is refused.
	// key is the DER SubjectPublicKeyInfo that the caller asks a certificate
	// for and has proven to hold, nil when it asks for none.
	Authenticate(ctx context.Context, key []byte) (identity.ID, error)
}

// Authenticators are asked in order; the first that proves an ID decides.
type Authenticators []Authenticator

// Authenticate returns the caller's ID and the kind of credential that proved
// it. key is as for [Authenticator]. The error is a gRPC status Unauthenticated
// that names each credential refused, or what to bring.
func (as Authenticators) Authenticate(ctx context.Context, key []byte) (identity.ID, string, error) {
	var refused, kinds []string
	for _, a := range as {
		id, err := a.Authenticate(ctx, key)
		switch {
		case err == nil:
			return id, a.Kind(), nil
		case errors.Is(err, ErrNoCredential):
			kinds = append(kinds, a.Kind())
		default:
			refused = append(refused, fmt.Sprintf("%s: %v", a.Kind(), err))
		}
	}
	if len(refused) > 0 {
		return identity.ID{}, "", status.Error(codes.Unauthenticated, strings.Join(refused, "; "))
	}
	return identity.ID{}, "", status.Errorf(codes.Unauthenticated,
		"the call carries no credential; bring one of: %s (a join token is made with `lateen token create`)", strings.Join(kinds, ", "))
}

// MeshCertificate proves callers by the client certificate of their TLS
// connection, which the authority itself must have issued.
type MeshCertificate struct {
	// Authority is the issuer.
	Authority *Authority
}

// Kind implements Authenticator.
func (MeshCertificate) Kind() string { return "client certificate" }

// Authenticate implements Authenticator. It verifies the certificate itself, at
// each call, and does not rely on the handshake having done so.
func (m MeshCertificate) Authenticate(ctx context.Context, _ []byte) (identity.ID, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return identity.ID{}, ErrNoCredential
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return identity.ID{}, ErrNoCredential
	}
	id, err := m.Authority.Bundle().Verify(info.State.PeerCertificates, x509.ExtKeyUsageClientAuth, m.Authority.clock())
	if errors.Is(err, identity.ErrExpired) {
		return identity.ID{}, fmt.Errorf("%w; it cannot be renewed any more: give the proxy a new token made with `lateen token create`", err)
	}
	return id, err
}

// Bearer proves callers by a bearer token that somebody else judges.
type Bearer struct {
	// Name is the credential's, for logs and messages.
	Name string
	// Judge returns whose token it is, or why it is refused.
	Judge func(ctx context.Context, token string) (identity.ID, error)
}

// Kind implements Authenticator.
func (b Bearer) Kind() string { return b.Name }

// Authenticate implements Authenticator. Join tokens are left to Tokens.
func (b Bearer) Authenticate(ctx context.Context, key []byte) (identity.ID, error) {
	token, err := bearer(ctx)
	if err != nil {
		return identity.ID{}, err
	}
	if strings.HasPrefix(token, tokenPrefix) {
		return identity.ID{}, ErrNoCredential
	}
	if key == nil {
		return identity.ID{}, fmt.Errorf("a %s is good for obtaining a certificate, and for nothing else", b.Name)
	}
	return b.Judge(ctx, token)
}

// bearer returns the bearer token of a call's metadata.
func bearer(ctx context.Context) (string, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) == 0 {
		return "", ErrNoCredential
	}
	if len(values) > 1 {
		return "", fmt.Errorf("the call carries %d authorization headers, send one", len(values))
	}
	kind, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(kind, "bearer") || token == "" {
		return "", ErrNoCredential
	}
	return token, nil
}
