package agent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/agent"
	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/identity/channel"
)

const lifetime = 24 * time.Hour

var alice = identity.ID{TrustDomain: "td", Namespace: "n", ServiceAccount: "alice"}

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// call is a call that reached, or should have reached, the control plane.
type call struct {
	at    time.Time
	token string
	cert  *x509.Certificate
}

// plane is a control plane in the test's own process. It makes the calls that a
// channel would make, on the holder's certificate.
type plane struct {
	authority *ca.Authority
	tokens    *ca.Tokens
	holder    *identity.Holder

	mu      sync.Mutex
	service *ca.Service
	handed  string
	down    bool
	calls   []call
	// spoil, if set, sees each answer and puts another in its place.
	spoil func(answer []byte, err error) ([]byte, error)
}

func newPlane(t *testing.T, dir string) *plane {
	t.Helper()
	a, err := ca.New(ca.Config{TrustDomain: "td", Dir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{authority: a, tokens: ca.NewTokens(a), holder: identity.NewHolder(a.Bundle())}
	p.service = ca.NewService(ca.ServiceConfig{Authority: a, Authenticators: ca.Authenticators{ca.MeshCertificate{Authority: a}, p.tokens}})
	return p
}

func (p *plane) Invoke(ctx context.Context, method string, request []byte, md channel.Metadata) ([]byte, error) {
	if method != "/istio.v1.auth.IstioCertificateService/CreateCertificate" {
		return nil, &channel.Error{Code: channel.Unimplemented, Message: method}
	}
	var r securityapi.IstioCertificateRequest
	if err := proto.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	this := call{at: time.Now(), token: strings.TrimPrefix(md["authorization"], "Bearer ")}
	from := &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 7}}
	if held := p.holder.Current().Certificate; held != nil {
		this.cert = held.Leaf
		from.AuthInfo = credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{held.Leaf}}}
	}
	p.mu.Lock()
	service, down := p.service, p.down
	if down {
		p.calls = append(p.calls, this)
	}
	p.mu.Unlock()
	if down {
		return lost(nil, nil)
	}
	ctx = metadata.NewIncomingContext(peer.NewContext(ctx, from), metadata.New(md))
	answer, err := service.CreateCertificate(ctx, &r)
	var encoded []byte
	if err != nil {
		err = &channel.Error{Code: channel.Code(status.Code(err)), Message: status.Convert(err).Message()}
	} else if encoded, err = proto.Marshal(answer); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, this)
	if p.spoil != nil {
		return p.spoil(encoded, err)
	}
	return encoded, err
}

func (p *plane) spoilWith(f func(answer []byte, err error) ([]byte, error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spoil = f
}

func (p *plane) made() []call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]call(nil), p.calls...)
}

// handToken issues a token and puts it where the agent finds it.
func (p *plane) handToken(t *testing.T) string {
	t.Helper()
	token, err := p.tokens.Issue("n", "alice", 0)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handed = token.Text
	return token.Text
}

func (p *plane) readToken(context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.handed, nil
}

// goAway makes the control plane unreachable, or reachable again.
func (p *plane) goAway(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
}

// lost is what remains of an answer when the connection breaks.
func lost([]byte, error) ([]byte, error) {
	return nil, &channel.Error{Code: channel.Unavailable, Message: "nobody there"}
}

// fixture is an agent that runs until the test ends.
type fixture struct {
	*plane
	agent *agent.Agent
	log   *logBuffer
	stop  func()
}

// start runs an agent of alice's.
func start(t *testing.T, p *plane) *fixture {
	t.Helper()
	f := &fixture{plane: p, log: &logBuffer{}}
	a, err := agent.New(agent.Config{
		Channel: p, ID: alice, Holder: p.holder, TTL: lifetime,
		Token:  p.readToken,
		Logger: slog.New(slog.NewTextHandler(f.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.agent = a
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	return f
}

func (f *fixture) leaf() *x509.Certificate {
	if held := f.holder.Current().Certificate; held != nil {
		return held.Leaf
	}
	return nil
}

func (f *fixture) ready() bool {
	select {
	case <-f.agent.Ready():
		return true
	default:
		return false
	}
}

func TestJoinsAndRenewsAtHalfLife(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		token := p.handToken(t)
		f := start(t, p)
		defer f.stop()
		<-f.agent.Ready()
		first := f.holder.Current()
		if first.ID != alice || f.agent.Err() != nil {
			t.Fatalf("joined as %v, %v", first.ID, f.agent.Err())
		}
		for range 5 {
			<-f.holder.Current().Replaced()
		}
		synctest.Wait()
		calls := f.made()
		if len(calls) != 6 || calls[0].token != token || calls[0].cert != nil {
			t.Fatalf("%d calls, the first with %+v", len(calls), calls[0])
		}
		different := false
		for i, c := range calls[1:] {
			pause := c.at.Sub(calls[i].at)
			if pause < lifetime*49/100 || pause > lifetime*51/100 {
				t.Errorf("renewed after %v", pause)
			}
			different = different || pause != lifetime/2
			if c.token != "" || c.cert == nil {
				t.Errorf("renewal %d showed token %q, certificate %v", i, c.token, c.cert != nil)
			}
		}
		if !different {
			t.Error("the pauses do not vary")
		}
		if f.leaf().Equal(first.Certificate.Leaf) {
			t.Error("the certificate was not renewed")
		}
		if log := f.log.String(); strings.Contains(log, token) || strings.Contains(log, "PRIVATE") || !strings.Contains(log, "certificate obtained") {
			t.Errorf("the log:\n%s", log)
		}
	})
}

func TestRenewalMakesANewKey(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		p.handToken(t)
		f := start(t, p)
		defer f.stop()
		<-f.agent.Ready()
		before := f.holder.Current()
		<-before.Replaced()
		if bytes.Equal(before.Certificate.Leaf.RawSubjectPublicKeyInfo, f.leaf().RawSubjectPublicKeyInfo) {
			t.Error("the key was kept")
		}
	})
}

// The control plane goes away for hours: the certificate in use stays, the agent
// keeps trying, and says so.
func TestControlPlaneAway(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		p.handToken(t)
		f := start(t, p)
		defer f.stop()
		<-f.agent.Ready()
		held := f.leaf()
		p.goAway(true)
		before := len(f.made())
		<-time.After(lifetime * 9 / 10) // some 9.6 hours of trying
		synctest.Wait()
		if !f.leaf().Equal(held) {
			t.Error("the certificate was lost")
		}
		if err := f.agent.Err(); channel.CodeOf(err) != channel.Unavailable {
			t.Errorf("Err is %v", err)
		}
		if n := len(f.made()) - before; n < 550 || n > 1300 {
			t.Errorf("%d attempts in 9.6 hours", n)
		}
		if log := f.log.String(); !strings.Contains(log, "the present one serves on") || !strings.Contains(log, "nobody there") || strings.Contains(log, "level=ERROR") {
			t.Errorf("the log: %.500s", log)
		}
		p.goAway(false)
		<-f.holder.Current().Replaced()
		synctest.Wait()
		if f.agent.Err() != nil {
			t.Errorf("Err after recovery is %v", f.agent.Err())
		}
		if last := f.made()[len(f.made())-1]; last.token != "" {
			t.Error("a token was used where the certificate would do")
		}
	})
}

// The control plane comes some minutes after the workload: it is asked within
// seconds, by many such workloads not all at once.
func TestControlPlaneLate(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		p.handToken(t)
		p.goAway(true)
		f := start(t, p)
		defer f.stop()
		<-time.After(5 * time.Minute)
		synctest.Wait()
		if n := len(f.made()); n < 60 || n > 150 {
			t.Errorf("%d attempts in five minutes", n)
		}
		p.goAway(false)
		<-time.After(5 * time.Second)
		synctest.Wait()
		if !f.ready() {
			t.Error("no certificate 5 s after the control plane came")
		}
	})
}

// It stays away too long: the certificate expires, and the way back in is a
// token.
func TestCertificateExpires(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		p.handToken(t)
		f := start(t, p)
		defer f.stop()
		<-f.agent.Ready()
		p.goAway(true)
		<-time.After(lifetime + time.Hour)
		if log := f.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "has expired") {
			t.Error("the log does not tell that the certificate expired")
		}
		token := p.handToken(t)
		p.goAway(false)
		<-f.holder.Current().Replaced()
		synctest.Wait()
		calls := f.made()
		if last := calls[len(calls)-1]; last.token != token || f.agent.Err() != nil {
			t.Errorf("came back with token %q, %v", last.token, f.agent.Err())
		}
	})
}

// The first answer gets lost after the control plane has used the token up.
func TestAnswerLost(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		p.handToken(t)
		p.spoil = lost
		f := start(t, p)
		defer f.stop()
		synctest.Wait()
		if f.ready() || len(f.made()) != 1 || !strings.Contains(f.log.String(), "cannot join the mesh yet") {
			t.Errorf("ready %t after %d calls\n%s", f.ready(), len(f.made()), f.log)
		}
		p.spoilWith(nil)
		<-f.agent.Ready()
	})
}

func TestTokenStolen(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		token := p.handToken(t)
		if _, err := p.tokens.Redeem(token, []byte("the thief's key"), "10.6.6.6:6"); err != nil {
			t.Fatal(err)
		}
		f := start(t, p)
		defer f.stop()
		synctest.Wait()
		if err := f.agent.Err(); f.ready() || channel.CodeOf(err) != channel.Unauthenticated || !strings.Contains(err.Error(), "it was stolen") {
			t.Errorf("ready %t, %v", f.ready(), err)
		}
		p.handToken(t) // The operator acts; the agent asks for the token anew.
		<-f.agent.Ready()
	})
}

// A control plane that has forgotten us, restored from a backup say, does not
// take the certificate: the token is tried beside it.
func TestCertificateNotAccepted(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		token := p.handToken(t)
		f := start(t, p)
		defer f.stop()
		<-f.agent.Ready()
		p.spoilWith(func([]byte, error) ([]byte, error) {
			return nil, &channel.Error{Code: channel.Unauthenticated, Message: "who are you"}
		})
		for len(f.made()) < 3 {
			<-time.After(time.Minute)
		}
		calls := f.made()
		if calls[1].token != "" || calls[2].token != token {
			t.Errorf("tokens %q, then %q", calls[1].token, calls[2].token)
		}
	})
}

func TestHeldCertificateIsUsed(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		cert, err := p.authority.Certificate(alice, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.holder.Set(cert, p.authority.Bundle()); err != nil {
			t.Fatal(err)
		}
		f := start(t, p)
		defer f.stop()
		<-f.agent.Ready()
		<-time.After(11 * time.Hour)
		if len(f.made()) != 0 {
			t.Error("a certificate was asked for too early")
		}
		<-p.holder.Current().Replaced()
	})
}

func TestTokenCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		a, err := agent.New(agent.Config{Channel: p, ID: alice, Holder: p.holder, Token: func(context.Context) (string, error) { return "", errors.New("no such file") }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Run returned %v", err)
		}
		if err := a.Err(); err == nil || !strings.Contains(err.Error(), "read token: no such file") || len(p.made()) != 0 {
			t.Errorf("%v, %d calls", err, len(p.made()))
		}
	})
}

func TestNewRefusals(t *testing.T) {
	p := newPlane(t, t.TempDir())
	good := agent.Config{Channel: p, ID: alice, Holder: p.holder}
	if _, err := agent.New(good); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*agent.Config){
		"no channel":                  func(c *agent.Config) { c.Channel = nil },
		"trust domain is empty":       func(c *agent.Config) { c.ID = identity.ID{} },
		"no holder":                   func(c *agent.Config) { c.Holder = nil },
		"control plane's root certif": func(c *agent.Config) { c.Holder = identity.NewHolder(nil) },
		"too short":                   func(c *agent.Config) { c.TTL = 3 * time.Second },
	} {
		c := good
		spoil(&c)
		if _, err := agent.New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
