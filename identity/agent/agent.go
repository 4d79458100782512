// Package agent obtains a workload's certificate from the control plane and
// renews it in time.
//
// In come an ID, a token with which the workload proves it for the first time,
// and the pinned roots of the control plane; out come certificates and trust
// bundles, put into an identity.Holder. The package must not know what the
// certificate is used for. Private keys are made in memory, never leave it, and
// are never logged. It links neither gRPC nor the protobuf runtime: the one call
// it makes is encoded by hand.
//
// An Agent's Run is called once; its other methods by any goroutine.
package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/channel"
)

// method is the one call of Istio's certificate service.
const method = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

// When to renew, as in Istio (SECRET_GRACE_PERIOD_RATIO and …_JITTER), and when
// to try again.
const (
	renewRatio  = 0.5
	renewJitter = 0.01
	renewMin    = time.Second // however short-lived a certificate is

	retryFirst = 500 * time.Millisecond
	retryMax   = time.Minute
	// retryIdle is the longest pause of a workload without a valid certificate: it can do nothing but wait, and a whole
	// mesh may.
	retryIdle = 5 * time.Second
	// retryLeft: of so many parts of what a certificate has left to live a pause takes one at most.
	retryLeft = 4

	// wallCheck is how often the wall clock is looked at while waiting for
	// a renewal, which comes too late otherwise after the machine slept.
	wallCheck = time.Minute

	// rootsLook is how often Config.Roots is looked at.
	rootsLook = 20 * time.Second
)

// The lifetime asked for: that of Istio's workloads, and the least that leaves
// time for renewals.
const (
	ttlDefault = 24 * time.Hour
	ttlMin     = 4 * time.Second
)

// Caller makes a unary gRPC call. A *channel.Channel is one; a control plane in
// the same process brings another.
type Caller interface {
	Invoke(ctx context.Context, method string, request []byte, md channel.Metadata) ([]byte, error)
}

// Config says for whom the agent works.
type Config struct {
	// Channel leads to the control plane. Over it the present certificate
	// must be shown, when there is one: a *channel.Channel on the same Holder
	// does that.
	Channel Caller
	// ID is the workload's name.
	ID identity.ID
	// Token returns the bearer token that proves ID: a join token, or the
	// present contents of a token file. It is asked while there is no valid
	// certificate to prove it with, or the control plane does not accept
	// that. Nil if there is no token.
	Token func(context.Context) (string, error)
	// Holder is where certificates go. Its bundle must hold the pinned roots
	// of ID's trust domain from the start.
	Holder *identity.Holder
	// Logger gets a line for each certificate and for each failure; nil
	// discards them.
	Logger *slog.Logger
	// Roots, unless nil, returns PEM of roots that are given otherwise, such as in a file that others keep up to date. They
	// are trusted beside those that come with certificates, and looked at now and then.
	Roots func() ([]byte, error)
	// TokenOnly shows the token at each renewal, for an authority that takes no certificate as a proof.
	TokenOnly bool
	// Cluster is the name of the workload's cluster, which Istio's agents tell the authority; empty: it is not told.
	Cluster string
	// TTL is the lifetime to ask for; 24 hours if zero, 4 seconds at least.
	// The control plane may give less.
	TTL time.Duration
}

// Agent keeps a Holder supplied with a valid certificate.
type Agent struct {
	channel Caller
	id      identity.ID
	token   func(context.Context) (string, error)
	holder  *identity.Holder
	log     *slog.Logger
	ttl     time.Duration
	roots   func() ([]byte, error)
	cluster string
	always  bool // the token is shown

	ready     chan struct{}
	makeReady func() // closes ready, once
	failure   atomic.Pointer[error]

	// The fields below belong to Run.

	// pending is the key of a request that has not succeeded yet. It is kept
	// for the next attempt, because a join token whose answer got lost may
	// be used again with the same key only.
	pending *ecdsa.PrivateKey
	// unproven is set when the control plane did not accept our proof.
	unproven bool
	// answered are the roots of the last answer, given those of Config.Roots, as they were read.
	answered, given []*x509.Certificate
	givenText       []byte
	givenFault      string // in the log
}

// New returns an agent. Nothing happens before Run.
func New(c Config) (*Agent, error) {
	var faults []error
	if c.Channel == nil {
		faults = append(faults, errors.New("no channel to the control plane given"))
	}
	if err := c.ID.Validate(); err != nil {
		faults = append(faults, fmt.Errorf("workload %q: %w", c.ID, err))
	}
	if c.Holder == nil {
		faults = append(faults, errors.New("no holder given"))
	} else if len(c.Holder.Current().Bundle.Roots(c.ID.TrustDomain)) == 0 {
		faults = append(faults, fmt.Errorf("no root of trust domain %q is pinned, so the control plane cannot be recognised; give the proxy the control plane's root certificate", c.ID.TrustDomain))
	}
	if c.TTL != 0 && c.TTL < ttlMin {
		faults = append(faults, fmt.Errorf("lifetime %v is less than %v, too short to be renewed in time", c.TTL, ttlMin))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("make identity agent: %w", errors.Join(faults...))
	}
	if c.TTL == 0 {
		c.TTL = ttlDefault
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	ready := make(chan struct{})
	return &Agent{
		channel:   c.Channel,
		id:        c.ID,
		token:     c.Token,
		holder:    c.Holder,
		log:       c.Logger,
		ttl:       c.TTL,
		roots:     c.Roots,
		cluster:   c.Cluster,
		always:    c.TokenOnly,
		ready:     ready,
		makeReady: sync.OnceFunc(func() { close(ready) }),
	}, nil
}

// Ready is closed when the holder has its first certificate.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Err returns why the last attempt to obtain a certificate did not succeed, nil
// if it did or there was none yet. It says nothing about the certificate held,
// which may be valid for hours.
func (a *Agent) Err() error {
	if e := a.failure.Load(); e != nil {
		return *e
	}
	return nil
}

// Run obtains a certificate and renews it at half of its life, until the
// context ends; it returns the context's error. What does not succeed is tried
// again, after pauses that grow to a minute, or to a quarter of the time that the
// old certificate still serves, and to 5 s where there is none.
func (a *Agent) Run(ctx context.Context) error {
	next := time.Now()
	if cert := a.valid(); cert != nil {
		a.makeReady()
		next = renewAt(cert, next)
	}
	failures := 0
	for {
		if err := a.wait(ctx, next); err != nil {
			return err
		}
		cert, err := a.obtain(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			a.failure.Store(&err)
			pause := retryPause(failures, retryMost(a.valid(), time.Now()))
			failures++
			a.logFailure(err, pause)
			next = time.Now().Add(pause)
		default:
			a.failure.Store(nil)
			failures = 0
			next = renewAt(cert, time.Now())
			a.makeReady()
			a.log.Info("certificate obtained", "id", a.id, "serial", fmt.Sprintf("%x", cert.SerialNumber),
				"not_after", cert.NotAfter, "renew_at", next)
		}
	}
}

// wait waits for a moment or the end of the context, and looks at the given roots meanwhile.
func (a *Agent) wait(ctx context.Context, until time.Time) error {
	if a.roots == nil {
		return waitUntil(ctx, until)
	}
	for {
		a.look()
		soon := time.Now().Add(rootsLook)
		if !soon.Before(until) {
			return waitUntil(ctx, until)
		}
		if err := waitUntil(ctx, soon); err != nil {
			return err
		}
	}
}

// look takes over the given roots if they are others than before.
func (a *Agent) look() {
	text, err := a.roots()
	if err == nil && bytes.Equal(text, a.givenText) {
		return
	}
	var roots []*x509.Certificate
	if err == nil {
		roots, err = identity.ParseCertificates(text)
	}
	var next *identity.Bundle
	if err == nil {
		next, err = a.holder.Current().Bundle.With(a.id.TrustDomain, slices.Concat(a.answered, roots)...)
	}
	if err != nil {
		if err.Error() != a.givenFault {
			a.givenFault = err.Error()
			a.log.Warn("the given roots cannot be read; those from before stay trusted", "id", a.id, "cause", err)
		}
		return
	}
	a.given, a.givenText, a.givenFault = roots, text, ""
	a.holder.SetBundle(next)
}

// valid returns the held certificate if it is ours and may be shown now.
func (a *Agent) valid() *x509.Certificate {
	held := a.holder.Current()
	if held.Certificate == nil || held.ID != a.id || !time.Now().Before(held.Certificate.Leaf.NotAfter) {
		return nil
	}
	return held.Certificate.Leaf
}

// obtain asks for a certificate once and puts it into the holder.
func (a *Agent) obtain(ctx context.Context) (*x509.Certificate, error) {
	if a.pending == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make key: %w", err)
		}
		a.pending = key
	}
	csr, err := signingRequest(a.id, a.pending)
	if err != nil {
		return nil, err
	}
	md, err := a.proof(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := a.channel.Invoke(ctx, method, encodeRequest(csr, a.ttl), md)
	a.unproven = channel.CodeOf(err) == channel.Unauthenticated
	if err != nil {
		return nil, fmt.Errorf("ask control plane for a certificate of %s: %w", a.id, err)
	}
	cert, bundle, roots, err := a.accept(answer)
	if err != nil {
		return nil, fmt.Errorf("certificate from control plane refused: %w", err)
	}
	if err := a.holder.Set(cert, bundle); err != nil {
		return nil, err
	}
	a.pending, a.answered = nil, roots
	return cert.Leaf, nil
}

// proof returns the metadata that proves our ID, without a token if our certificate does.
func (a *Agent) proof(ctx context.Context) (channel.Metadata, error) {
	md := channel.Metadata{}
	if a.cluster != "" {
		md["clusterid"] = a.cluster
	}
	if a.token == nil || !a.always && !a.unproven && a.valid() != nil {
		return md, nil
	}
	token, err := a.token(ctx)
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	md["authorization"] = "Bearer " + token
	return md, nil
}

// accept checks an answer against what is pinned and returns what to hold. The
// certificate must carry our key and our ID; the roots trusted now must vouch
// for it, and so must those that come with it, which replace them but for the given ones.
func (a *Agent) accept(answer []byte) (tls.Certificate, *identity.Bundle, []*x509.Certificate, error) {
	chain, roots, err := decodeResponse(answer)
	if err != nil {
		return tls.Certificate{}, nil, nil, err
	}
	leaf := chain[0]
	if !a.pending.PublicKey.Equal(leaf.PublicKey) {
		return tls.Certificate{}, nil, nil, errors.New("it is not for the key that was asked for")
	}
	pinned := a.holder.Current().Bundle
	next, err := pinned.With(a.id.TrustDomain, slices.Concat(roots, a.given)...)
	if err != nil {
		return tls.Certificate{}, nil, nil, err
	}
	if next.Version() == pinned.Version() {
		next = pinned
	}
	now := time.Now()
	for _, bundle := range []*identity.Bundle{pinned, next} {
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			id, err := bundle.Verify(chain, usage, now)
			if err != nil {
				return tls.Certificate{}, nil, nil, err
			}
			if id != a.id {
				return tls.Certificate{}, nil, nil, fmt.Errorf("%w: it is for %s, asked was for %s", identity.ErrWrongID, id, a.id)
			}
		}
	}
	cert := tls.Certificate{PrivateKey: a.pending, Leaf: leaf}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, next, roots, nil
}

// logFailure says what did not succeed and what that means.
func (a *Agent) logFailure(err error, pause time.Duration) {
	held := a.holder.Current().Certificate
	switch {
	case a.valid() != nil:
		a.log.Warn("certificate not renewed; the present one serves on", "id", a.id, "cause", err, "retry_in", pause, "not_after", held.Leaf.NotAfter)
	case held != nil:
		a.log.Error("certificate has expired and was not renewed; peers refuse this workload", "id", a.id, "cause", err, "retry_in", pause, "not_after", held.Leaf.NotAfter)
	default:
		a.log.Warn("certificate not obtained; this workload cannot join the mesh yet", "id", a.id, "cause", err, "retry_in", pause)
	}
}

// signingRequest makes a PEM certificate signing request.
func signingRequest(id identity.ID, key *ecdsa.PrivateKey) (string, error) {
	uri, err := url.Parse(id.String())
	if err != nil {
		return "", fmt.Errorf("make signing request for %s: %w", id, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		return "", fmt.Errorf("make signing request for %s: %w", id, err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// renewAt returns when to renew a certificate got at the given time: at half of
// what is left of its life, by the wall clock, with some jitter so that
// workloads started together do not stay together.
func renewAt(cert *x509.Certificate, got time.Time) time.Time {
	ratio := renewRatio + renewJitter*(2*mathrand.Float64()-1)
	left := time.Duration(float64(cert.NotAfter.Sub(got)) * ratio)
	return got.Round(0).Add(max(left, renewMin))
}

// retryMost returns the longest pause of a workload with this certificate, which may be none. It is so short that some more
// tries come before the certificate expires.
func retryMost(cert *x509.Certificate, now time.Time) time.Duration {
	if cert == nil {
		return retryIdle
	}
	return min(max(cert.NotAfter.Sub(now)/retryLeft, retryFirst), retryMax)
}

// retryPause returns how long to wait after a failure that came after so many
// others: a random time between half and all of a span that doubles, up to most.
func retryPause(failures int, most time.Duration) time.Duration {
	span := most
	if failures < 16 {
		span = min(retryFirst<<failures, most)
	}
	return span/2 + mathrand.N(span/2)
}

// waitUntil waits for a moment or the end of the context. A moment without a
// monotonic reading is waited for by the wall clock.
func waitUntil(ctx context.Context, at time.Time) error {
	for {
		left := time.Until(at)
		if left <= 0 {
			return ctx.Err()
		}
		timer := time.NewTimer(min(left, wallCheck))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}
