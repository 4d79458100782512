package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/authz"
	"github.com/lateen-mesh/lateen/proxy/hbone"
	"github.com/lateen-mesh/lateen/proxy/hello"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/table"
	"github.com/lateen-mesh/lateen/telemetry"
)

// The waits of a connection whose treatment is not yet known.
const (
	// planWait is how long a connection waits for its orders before it is refused.
	planWait = 5 * time.Second
	// quietWait is how long a client may be silent on a port of unknown protocol before the server is asked too.
	quietWait = 25 * time.Millisecond
	// helloWait is the same where the client may be a proxy of the mesh that is about to shake hands: if the server was
	// heard first, the greeting would go out in the place of the handshake. A ClientHello that is lost once comes within it.
	helloWait = 300 * time.Millisecond
	// lineWait is how long a first line may stay incomplete before it is taken for something else than HTTP.
	lineWait = time.Second
	// handshakeWait bounds a TLS handshake, as Istio's gateways do.
	handshakeWait = 15 * time.Second
)

// The application protocols of the mesh's own TLS (Istio's names).
const (
	alpnHTTP10 = "istio-http/1.0"
	alpnHTTP11 = "istio-http/1.1"
	alpnHTTP2  = "istio-h2"
	alpnTCP    = "istio"
	alpnPeer   = "istio-peer-exchange"
)

// alpnMux is the protocol of our own for requests of HTTP/1.1 as streams of HTTP/2 (docs/decisions/007-mux.md). Others
// do not know it and choose among what is offered beside it.
const alpnMux = "lateen-h2"

// session is a connection that was accepted, until its protocol is known and it
// is handed to HTTP or to a relay; afterwards it is what these know about it.
type session struct {
	w        *worker
	c        *loop.Conn
	dst      netip.AddrPort // where the client wanted to go
	name     string         // the listener's, as it is asked for
	listener *table.Listener
	chain    *table.Chain
	serial   uint64         // of the plan that listener and chain are from
	started  time.Duration  // as the loop counts
	tunnel   *hbone.Inbound // what carries the connection; nil: a socket
	*proof
	*detection // nil once the session has ended

	stage stage
	ended bool
	left  bool // HTTP was spoken, and the connection is closed
}

// proof is what a client said or proved by TLS. It is not changed once it is a session's.
type proof struct {
	secured    bool        // the connection is encrypted by us
	meshed     bool        // with the mesh's identities
	peer       identity.ID // of a meshed peer
	peerText   string      // the peer's ID without scheme, "" if not meshed
	sni        string
	insideHTTP bool // a proxy of the mesh says by ALPN that HTTP is inside
	insideTCP  bool // ... or that it is not
	mux        bool // ... or that requests of HTTP/1.1 are inside, as streams of HTTP/2
}

// nothingProven is the proof of all who have shown nothing.
var nothingProven = &proof{}

// detection is what is needed until it is known how a connection is treated. It is used again then, by another one.
type detection struct {
	s      *session
	timer  loop.Timer
	cancel func() // stops waiting for the plan
	early  *early // the server side, asked before the client spoke
	hello  hello.Info
	unread int // bytes that have arrived so far
}

func (d *detection) onTimer() { d.s.onTimer() }

// stage is how far the treatment of a connection is decided.
type stage uint8

const (
	stageListener stage = iota // waiting for orders
	stageBytes                 // waiting for the client's first bytes, to see whether they are TLS
	stageTLS                   // shaking hands
	stageSniff                 // waiting for the bytes inside, to see whether they are HTTP
	stageDone                  // handed over
)

func (w *worker) newSession(c *loop.Conn, dst netip.AddrPort) *session {
	s := &session{w: w, c: c, dst: dst, started: w.loop.Elapsed(), proof: nothingProven, detection: w.detections.take(w.loop.Now())}
	if s.detection == nil {
		s.detection = &detection{}
		s.timer.Init(w.loop, s.detection.onTimer)
	}
	s.detection.s = s
	w.sessions[s] = struct{}{}
	c.SetHandler(s)
	return s
}

// src is the client's address.
func (s *session) src() netip.AddrPort { return s.c.RemoteAddr() }

// findListener obeys the listener of that name, now or when it has arrived.
func (s *session) findListener(name string) {
	s.name, s.serial = name, s.w.p.table.Serial()
	l, state := s.w.p.table.Listener(name)
	switch state {
	case table.Ready:
		s.obey(l)
	case table.Absent:
		if !s.outbound() {
			// What the workload accepts, and from whom, is not known: nothing is.
			s.refuse(telemetry.NoListener, fmt.Errorf("there is no listener %q", name))
			return
		}
		s.obey(s.w.p.unknown)
	default:
		s.c.PauseRead()
		s.timer.Reset(planWait)
		s.cancel = s.w.p.table.Await(plan.KindListener, name, func() {
			s.w.loop.Post(func() {
				if s.ended || s.stage != stageListener || s.cancel == nil {
					return
				}
				s.cancel = nil
				s.timer.Stop()
				s.c.ResumeRead()
				s.findListener(name)
			})
		})
	}
}

// outbound reports whether the connection is one that the workload has opened.
func (s *session) outbound() bool {
	return s.name != plan.ListenerInbound && !strings.HasPrefix(s.name, plan.ListenerGateway)
}

// obey begins the treatment that a listener orders.
func (s *session) obey(l *table.Listener) {
	s.listener = l
	s.stage = stageBytes
	if l.NeedsSNI() && s.tunnel == nil {
		s.timer.Reset(handshakeWait)
		return // the chain is chosen when the ClientHello is there
	}
	if !s.choose(nil) {
		return
	}
	switch mode := s.chain.Plan.TLS.Mode; {
	case mode == plan.TLSNone, mode == plan.TLSPassthrough, s.tunnel != nil && s.secureEnough(&s.chain.Plan.TLS):
		s.inside()
	case s.tunnel != nil:
		s.refuse(telemetry.TLSFailure, fmt.Errorf("chain %q wants %s inside of the tunnel, which is not supported", s.chain.Plan.Name, mode))
	case mode == plan.TLSPermissive:
		s.timer.Reset(helloWait)
	default:
		s.timer.Reset(handshakeWait) // a handshake begins with the client's first bytes, when they are TLS
	}
}

// choose picks the chain; sni is nil while it is not known.
func (s *session) choose(sni []byte) bool {
	s.chain = s.listener.Match(&table.ConnMatch{Port: s.dst.Port(), Dest: s.dst.Addr(), Source: s.src().Addr(), SNI: sni})
	if s.chain == nil {
		s.refuse(telemetry.NoRoute, fmt.Errorf("no chain of listener %q fits %s (server name %q)", s.listener.Plan.Name, s.dst, sni))
		return false
	}
	return true
}

// refresh brings a connection that is in use up to the plan in force. It reports false if the plan does not
// permit the connection any more.
func (s *session) refresh() bool {
	serial := s.w.p.table.Serial()
	if serial == s.serial {
		return true
	}
	s.serial = serial
	l, state := s.w.p.table.Listener(s.name)
	if state == table.Absent && !s.outbound() {
		return false
	}
	if state != table.Ready || l == s.listener {
		return true
	}
	c := l.Match(&table.ConnMatch{Port: s.dst.Port(), Dest: s.dst.Addr(), Source: s.src().Addr(), SNI: []byte(s.sni)})
	if c == nil || !s.secureEnough(&c.Plan.TLS) {
		return false
	}
	s.listener, s.chain = l, c
	return true
}

// secureEnough reports whether the connection could have been made under the given orders.
func (s *session) secureEnough(t *plan.ServerTLS) bool {
	switch t.Mode {
	case plan.TLSStrict, plan.TLSMesh:
		return s.meshed
	case plan.TLSSimple, plan.TLSMutual, plan.TLSOptional:
		return s.secured || t.RedirectHTTPS
	}
	return true
}

// OnData looks at the client's first bytes; it consumes none.
func (s *session) OnData(_ *loop.Conn, p []byte) int {
	switch s.stage {
	case stageBytes:
		s.onFirst(p)
	case stageSniff:
		s.unread = len(p)
		s.onInside(p)
	}
	return 0
}

// onFirst decides whether the client speaks TLS, and whose.
func (s *session) onFirst(p []byte) {
	err := hello.Parse(p, &s.hello)
	if errors.Is(err, hello.ErrMore) {
		if s.unread == 0 {
			s.timer.Reset(handshakeWait)
		}
		s.unread = len(p)
		return
	}
	s.unread = len(p)
	s.timer.Stop()
	isTLS := err == nil
	if s.chain == nil {
		sni := s.hello.ServerName
		if sni == nil {
			sni = []byte{}
		}
		if !s.choose(sni) {
			return
		}
	}
	if len(s.hello.ServerName) > 0 {
		s.proof = &proof{sni: string(s.hello.ServerName)}
	}
	switch s.chain.Plan.TLS.Mode {
	case plan.TLSPermissive:
		if isTLS && s.ours() {
			s.handshake()
			return
		}
		if isTLS {
			s.relay() // an application's own TLS
			return
		}
		s.inside()
	case plan.TLSPassthrough:
		s.relay()
	case plan.TLSNone:
		s.inside()
	default:
		if !isTLS {
			s.plaintextOnTLS(p)
			return
		}
		s.handshake()
	}
}

// plaintextOnTLS meets a client that speaks no TLS on a port that demands it.
func (s *session) plaintextOnTLS(p []byte) {
	if s.chain.Plan.TLS.RedirectHTTPS && sniff(p) == guessHTTP1 {
		s.serveHTTP(guessHTTP1)
		return
	}
	s.refuse(telemetry.MTLSRequired, fmt.Errorf("%s sent plaintext where the listener demands TLS", s.src()))
}

// ours reports whether a ClientHello comes from a proxy of a mesh.
func (s *session) ours() bool {
	for _, p := range [...]string{alpnHTTP11, alpnTCP, alpnHTTP2, alpnPeer, alpnHTTP10} {
		if s.hello.Offers(p) {
			return true
		}
	}
	return false
}

// handshake ends the client's TLS as the chain orders.
func (s *session) handshake() {
	cfg, err := s.w.p.serverTLS(s.chain)
	if err != nil {
		s.refuse(telemetry.TLSFailure, err)
		return
	}
	s.stage = stageTLS
	s.timer.Stop()
	s.dropEarly()
	s.c.StartTLSServer(cfg, handshakeWait, s.onHandshake)
}

func (s *session) onHandshake(err error) {
	if s.ended {
		return
	}
	if err != nil { // the loop closes the connection, so that the client learns of the alert
		s.w.recordRefusal(s, tlsReason(err), err)
		s.end()
		return
	}
	s.hello = hello.Info{}
	state := s.c.TLS()
	shown := &proof{secured: true, sni: state.ServerName}
	s.proof = shown
	switch s.chain.Plan.TLS.Mode {
	case plan.TLSStrict, plan.TLSPermissive, plan.TLSMesh:
		id, err := peerOfTLS(state)
		if err != nil {
			s.refuse(telemetry.TLSFailure, fmt.Errorf("read the identity of %s: %w", s.src(), err))
			return
		}
		shown.meshed, shown.peer, shown.peerText = true, id, strings.TrimPrefix(id.String(), "spiffe://")
	}
	shown.mux = state.NegotiatedProtocol == alpnMux
	switch state.NegotiatedProtocol {
	case alpnMux, alpnHTTP10, alpnHTTP11, alpnHTTP2, "h2", "http/1.1":
		shown.insideHTTP = true
	case alpnTCP, alpnPeer:
		shown.insideTCP = true
	}
	s.inside()
}

// peerOfTLS is who has shaken hands.
func peerOfTLS(state *tls.ConnectionState) (identity.ID, error) {
	if len(state.PeerCertificates) == 0 {
		return identity.ID{}, errors.New("the peer showed no certificate")
	}
	return identity.FromCertificate(state.PeerCertificates[0])
}

// inside decides what to speak once encryption is out of the way.
func (s *session) inside() {
	p := s.chain.Plan
	if !takesHTTP(p) || s.insideTCP && !p.Protocol.IsHTTP() {
		s.relay()
		return
	}
	s.grant() // what it is, and whether it is permitted, its first bytes show
	s.stage, s.unread = stageSniff, 0
	if !p.Protocol.IsHTTP() && !s.insideHTTP {
		s.timer.Reset(quietWait) // it may be for the server to speak first
	}
	s.c.SetHandler(s) // unread bytes are offered again
}

// takesHTTP reports whether what a chain's clients send may be served as HTTP.
func takesHTTP(c *plan.Chain) bool {
	return c.HTTP != nil && c.Protocol != plan.ProtocolTCP && c.Protocol != plan.ProtocolTLS
}

// onInside decides whether the first bytes are HTTP.
func (s *session) onInside(p []byte) {
	must := s.must()
	switch g := sniff(p); {
	case g == guessHTTP1, g == guessHTTP2:
		s.serveHTTP(g)
	case g == guessMore && must:
		s.timer.Reset(headWait)
	case g == guessMore:
		s.timer.Reset(lineWait)
	case must && s.chain.TCP != nil && !s.secured && hello.Parse(p, &s.hello) == nil:
		s.relay() // HTTPS on a port declared as HTTP: pass it on
	case must:
		s.serveHTTP(guessHTTP1) // whose parser refuses it properly
	default:
		s.relay()
	}
}

// grant tells the peer that asked for a tunnel that it has it.
func (s *session) grant() {
	if s.tunnel != nil {
		s.tunnel.Grant()
	}
}

// must reports that what is inside is HTTP, and nothing else is served.
func (s *session) must() bool { return s.chain.Plan.Protocol.IsHTTP() || s.insideHTTP }

// onTimer ends a wait.
func (s *session) onTimer() {
	switch s.stage {
	case stageListener:
		s.refuse(telemetry.ConfigMissing, fmt.Errorf("no orders for %s within %s: is the control plane reachable?", s.dst, planWait))
	case stageBytes:
		if s.chain == nil || s.chain.Plan.TLS.Mode != plan.TLSPermissive || s.unread > 0 {
			s.refuse(telemetry.MTLSRequired, fmt.Errorf("%s sent no ClientHello within %s", s.src(), handshakeWait))
			return
		}
		if !s.chain.Plan.Protocol.IsHTTP() {
			s.askServer()
		}
	case stageSniff:
		switch {
		case s.must():
			s.refuse(telemetry.DownstreamProtocolError, fmt.Errorf("%s sent no request line within %s", s.src(), headWait))
		case s.early != nil || s.unread > 0:
			s.relay()
		default:
			s.askServer()
		}
	}
}

// sweep ends a connection on which neither side says anything.
func (s *session) sweep(now time.Duration) {
	if now-s.started >= downstreamIdle {
		s.refuse(telemetry.IdleTimeout, fmt.Errorf("%s said nothing for %s", s.src(), downstreamIdle))
	}
}

// serveHTTP hands the connection to the codec.
func (s *session) serveHTTP(g guess) {
	s.stage = stageDone
	s.timer.Stop()
	s.dropEarly()
	s.w.serve(s, g)
}

// relay hands the connection to the byte relay.
func (s *session) relay() {
	s.stage = stageDone
	s.timer.Stop()
	if s.chain.TCP == nil {
		s.refuse(telemetry.NoListener, fmt.Errorf("chain %q takes nothing but HTTP", s.chain.Plan.Name))
		return
	}
	if v := s.judge(); !v.Allowed {
		s.refuse(v.Reason, fmt.Errorf("connection of %q denied by %s", s.peerText, policyText(v)))
		return
	}
	s.w.startRelay(s)
}

// judge asks the chain's authorization about the connection as such.
func (s *session) judge() authz.Verdict {
	if s.chain.Authz == nil {
		return authz.Verdict{Allowed: true}
	}
	in := s.authzInput()
	return s.chain.Authz.Judge(&in)
}

// authzInput is what authorization can know of the connection.
func (s *session) authzInput() authz.Input {
	in := authz.Input{
		Principal: s.peerText, SourceIP: s.src().Addr(), RemoteIP: s.src().Addr(),
		DestIP: s.dst.Addr(), DestPort: s.dst.Port(), SNI: s.sni,
	}
	if s.meshed {
		in.Namespace, in.ServiceAccount, in.TrustDomain = s.peer.Namespace, s.peer.ServiceAccount, s.peer.TrustDomain
	}
	return in
}

func policyText(v authz.Verdict) string {
	if v.Policy == nil {
		return "no allow policy that matches"
	}
	return v.Policy.Name
}

// refuse closes the connection and tells why.
func (s *session) refuse(why telemetry.Reason, err error) {
	s.w.recordRefusal(s, why, err)
	s.end()
	s.w.connectionGone()
	s.c.Abort()
}

// end forgets the session's own business; the connection lives on with whoever took it over.
func (s *session) end() {
	if s.ended {
		return
	}
	s.ended = true
	s.timer.Stop()
	if s.cancel != nil {
		s.cancel()
		s.cancel = nil
	}
	s.dropEarly()
	delete(s.w.sessions, s)
	d := s.detection
	s.detection = nil
	d.s, d.hello, d.unread = nil, hello.Info{}, 0
	s.w.detections.give(s.w.loop.Now(), d)
}

// OnEOF: a client that says no more is relayed, since the server may have something to say to it.
func (s *session) OnEOF(*loop.Conn) {
	if s.stage == stageSniff && !s.must() {
		s.relay()
		return
	}
	s.end()
	s.w.connectionGone()
	s.c.Close()
}

// OnClose ends the session.
func (s *session) OnClose(_ *loop.Conn, _ error) {
	s.end()
	s.w.connectionGone()
}

// OnDrain does nothing: a session writes nothing.
func (s *session) OnDrain(*loop.Conn) {}
