package ca

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/identity"
)

// Keys of the request's metadata that Istio's agents may set
// (security/pkg/server/ca/server.go).
const (
	metaSigner      = "CertSigner"
	metaImpersonate = "ImpersonatedIdentity"
)

// The bounds of what is logged at the will of callers that prove nothing: so many
// refusals at once, and one each refusalEvery after that.
const (
	refusalBurst = 10
	refusalEvery = time.Second
)

// ServiceConfig says what a Service works with.
type ServiceConfig struct {
	// Authority signs.
	Authority *Authority
	// Authenticators prove the callers.
	Authenticators Authenticators
	// Logger gets one line for each certificate issued, and for those refused
	// as long as they are few; dropped says how many before it were left out.
	// Nil discards them.
	Logger *slog.Logger
}

// Service is Istio's certificate service, istio.v1.auth.IstioCertificateService.
// Register it with securityapi.RegisterIstioCertificateServiceServer.
type Service struct {
	securityapi.UnimplementedIstioCertificateServiceServer

	authority      *Authority
	authenticators Authenticators
	log            *slog.Logger

	refusals *rate.Limiter // of lines in the log
	unlogged atomic.Uint64 // refusals since the last one

	asked, issued, unproven, unread, unsigned atomic.Uint64
}

// Counts is how often the service was asked, and what came of it.
type Counts struct {
	Asked    uint64 // for a certificate
	Issued   uint64
	Unproven uint64 // the caller did not prove who it is, or is somebody else
	Unread   uint64 // the request could not be read
	Unsigned uint64 // the authority could not sign
}

// Counts returns what was counted since the start.
func (s *Service) Counts() Counts {
	return Counts{s.asked.Load(), s.issued.Load(), s.unproven.Load(), s.unread.Load(), s.unsigned.Load()}
}

// count counts an answer by its code.
func (s *Service) count(code codes.Code) {
	s.asked.Add(1)
	switch code {
	case codes.OK:
		s.issued.Add(1)
	case codes.InvalidArgument:
		s.unread.Add(1)
	case codes.Internal:
		s.unsigned.Add(1)
	default:
		s.unproven.Add(1)
	}
}

// NewService returns the certificate service.
func NewService(c ServiceConfig) *Service {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{
		authority: c.Authority, authenticators: c.Authenticators, log: c.Logger,
		refusals: rate.NewLimiter(rate.Every(refusalEvery), refusalBurst),
	}
}

// CreateCertificate signs a certificate for the caller's ID and the key of its
// signing request. What else the request asks for does not count, except that a
// request that names another ID is refused. The answer is the chain: leaf
// first, roots last.
//
// The request is parsed before the caller is authenticated, so that a request
// that could not be signed anyway does not use up a join token.
func (s *Service) CreateCertificate(ctx context.Context, r *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	issued, id, kind, err := s.create(ctx, r)
	s.count(status.Code(err))
	if err != nil {
		s.logRefusal(ctx, err)
		return nil, err
	}
	s.log.Info("certificate issued", "id", id, "peer", remoteAddress(ctx), "proof", kind,
		"serial", fmt.Sprintf("%x", issued.Leaf.SerialNumber), "not_after", issued.Leaf.NotAfter)
	return &securityapi.IstioCertificateResponse{CertChain: issued.PEM()}, nil
}

// logRefusal logs a refusal, unless there were many just now.
func (s *Service) logRefusal(ctx context.Context, err error) {
	if !s.refusals.Allow() {
		s.unlogged.Add(1)
		return
	}
	line := s.log
	if n := s.unlogged.Swap(0); n > 0 {
		line = line.With("dropped", n)
	}
	line.Warn("certificate refused", "peer", remoteAddress(ctx), "code", status.Code(err), "reason", status.Convert(err).Message())
}

func (s *Service) create(ctx context.Context, r *securityapi.IstioCertificateRequest) (issued Issued, id identity.ID, kind string, err error) {
	req, err := parseRequest(r.GetCsr())
	if err != nil {
		return issued, id, "", status.Error(codes.InvalidArgument, err.Error())
	}
	ttl, err := lifetime(r.GetValidityDuration())
	if err != nil {
		return issued, id, "", status.Error(codes.InvalidArgument, err.Error())
	}
	id, kind, err = s.authenticators.Authenticate(ctx, req.spki)
	if err != nil {
		return issued, id, "", err
	}
	if err := s.authorize(id, kind, req, r); err != nil {
		return issued, id, "", err
	}
	issued, err = s.authority.Issue(id, req.key, ttl)
	if err != nil {
		s.log.Error("certificate not issued", "id", id, "cause", err)
		return issued, id, "", status.Errorf(codes.Internal, "the authority could not sign a certificate for %s; see the control plane's log", id)
	}
	return issued, id, kind, nil
}

// authorize refuses callers that ask for more than their own ID.
func (s *Service) authorize(id identity.ID, kind string, req *request, r *securityapi.IstioCertificateRequest) error {
	if id.TrustDomain != s.authority.trustDomain {
		return status.Errorf(codes.PermissionDenied, "the %s proves %s, but this authority issues certificates of trust domain %q only; ask the authority of %q",
			kind, id, s.authority.trustDomain, id.TrustDomain)
	}
	for _, name := range req.names {
		if name != id.String() {
			return status.Errorf(codes.PermissionDenied, "the signing request asks for %s, but the %s proves %s; run the proxy under the identity it was given, or give it a credential for the other",
				name, kind, id)
		}
	}
	fields := r.GetMetadata().GetFields()
	if name := fields[metaImpersonate].GetStringValue(); name != "" && name != id.String() {
		return status.Errorf(codes.PermissionDenied, "%s asks for a certificate of %s: nobody may ask for another's certificate here", id, name)
	}
	if name := fields[metaSigner].GetStringValue(); name != "" {
		return status.Errorf(codes.InvalidArgument, "the request asks for the signer %q, but this authority has one signer; remove the setting %s", name, metaSigner)
	}
	return nil
}

// lifetime converts the requested validity, in seconds; zero means the
// default.
func lifetime(seconds int64) (time.Duration, error) {
	if seconds < 0 || seconds > int64(ttlMax/time.Second) {
		return 0, fmt.Errorf("the requested lifetime of %d s is not between 0 and %d s (%d days)", seconds, int64(ttlMax/time.Second), int64(ttlMax/(24*time.Hour)))
	}
	return time.Duration(seconds) * time.Second, nil
}
