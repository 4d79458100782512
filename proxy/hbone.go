package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/hbone"
	"github.com/lateen-mesh/lateen/proxy/hello"
	"github.com/lateen-mesh/lateen/proxy/http2"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/telemetry"
)

const (
	// tunnelIdle closes a connection for tunnels that has none (Istio: hboneIdleTimeout).
	tunnelIdle = time.Hour
	// tunnelKeepalive is how long such a connection is silent until TCP probes it, and the time between probes, as ztunnel's.
	tunnelKeepalive = 180 * time.Second
	// tunnelProbes is how many unanswered probes end it.
	tunnelProbes = 9
)

// tunnelPeer is a proxy that has connected to open tunnels to this workload.
type tunnelPeer struct {
	w        *worker
	c        *loop.Conn
	local    netip.AddrPort // where it has connected to
	server   *hbone.Server  // nil until the peer has proved itself
	wait     loop.Timer     // for the ClientHello
	hello    hello.Info
	peer     identity.ID
	peerText string
	shaking  bool
}

// acceptTunnels takes a connection to the port for tunnels.
func (w *worker) acceptTunnels(c *loop.Conn) {
	t := &tunnelPeer{w: w, c: c, local: c.LocalAddr()}
	w.peersIn[t] = struct{}{}
	t.wait.Init(w.loop, func() {
		t.refuse(telemetry.MTLSRequired, fmt.Errorf("no ClientHello within %s", handshakeWait))
	})
	t.wait.Reset(handshakeWait)
	c.SetHandler(t)
}

// refuse closes the connection and tells why.
func (t *tunnelPeer) refuse(why telemetry.Reason, err error) {
	t.log(why, t.local, err)
	t.c.Abort()
}

func (t *tunnelPeer) log(why telemetry.Reason, to netip.AddrPort, err error) {
	t.w.p.logs.loops.Info("tunnel refused", "reason", why, "from", t.c.RemoteAddr(), "peer", t.peerText, "to", to, "cause", err, "hint", why.Hint())
}

// OnData waits for the ClientHello: without one there is nothing to talk about.
func (t *tunnelPeer) OnData(_ *loop.Conn, p []byte) int {
	err := hello.Parse(p, &t.hello)
	switch {
	case t.shaking || errors.Is(err, hello.ErrMore):
		return 0
	case err != nil:
		t.refuse(telemetry.MTLSRequired, errors.New("plaintext where mutual TLS is due"))
		return len(p)
	}
	t.wait.Stop()
	t.shaking = true
	t.c.StartTLSServer(t.w.p.tunnelServerTLS(), handshakeWait, t.onHandshake)
	return 0
}

func (t *tunnelPeer) onHandshake(err error) {
	if err != nil { // the loop closes the connection, so that the client learns of the alert
		t.log(tlsReason(err), t.local, err)
		return
	}
	state := t.c.TLS()
	if state.NegotiatedProtocol != hbone.ALPN {
		t.refuse(telemetry.DownstreamProtocolError, fmt.Errorf("the client does not offer HTTP/2 (ALPN %q)", state.NegotiatedProtocol))
		return
	}
	id, err := identity.PeerID(*state)
	if err != nil {
		t.refuse(telemetry.TLSFailure, fmt.Errorf("read the identity of the peer: %w", err))
		return
	}
	t.peer, t.peerText = id, strings.TrimPrefix(id.String(), "spiffe://")
	t.server = hbone.NewServer(t.c, http2.Config{Now: t.w.loop.Now, Memory: &t.w.mem}, t)
	if t.w.draining {
		t.server.Drain()
	}
}

// OnEOF: the client gives up.
func (t *tunnelPeer) OnEOF(c *loop.Conn) { c.Close() }

// OnDrain does nothing: nothing is written before there is a server.
func (t *tunnelPeer) OnDrain(*loop.Conn) {}

// OnClose is the end of a connection that never became a server's.
func (t *tunnelPeer) OnClose(*loop.Conn, error) { t.forget() }

// OnEnd is the end of the server's.
func (t *tunnelPeer) OnEnd(*hbone.Server, error) { t.forget() }

func (t *tunnelPeer) forget() {
	t.wait.Stop()
	delete(t.w.peersIn, t)
}

// OnFault tells what the peer did wrong.
func (t *tunnelPeer) OnFault(_ *hbone.Server, err error) {
	t.log(telemetry.DownstreamProtocolError, t.local, err)
}

// OnTunnel treats a tunnel as a captured connection to the same address: only to the workload's own addresses, for this
// is no relay to others.
func (t *tunnelPeer) OnTunnel(in *hbone.Inbound) {
	dst := in.Dst()
	if !t.w.p.ownAddr(dst.Addr(), t.local.Addr()) || ownPort(dst.Port()) {
		t.log(telemetry.UnknownDestination, dst, errors.New("not an address of this workload"))
		in.Refuse(400)
		return
	}
	src := t.c.RemoteAddr()
	if said := in.Client(); said.Addr() == src.Addr() {
		src = said // of its own address the peer knows the port better
	}
	s := t.w.newSession(in.Accept(src), dst)
	s.tunnel = in
	s.proof = &proof{secured: true, meshed: true, peer: t.peer, peerText: t.peerText}
	s.findListener(plan.ListenerInbound)
}

// ownAddr reports whether an address is the workload's: among those that it was told at the start, or the one by which
// the peer has reached it.
func (p *Proxy) ownAddr(a, reached netip.Addr) bool {
	return a == reached || slices.Contains(p.cfg.Addresses, a)
}

func (t *tunnelPeer) drain() {
	if t.server != nil {
		t.server.Drain()
	}
}

func (t *tunnelPeer) sweep(now time.Time) {
	if t.server != nil {
		t.server.Sweep(now, tunnelIdle)
	}
}

// tunnelStatus is how a peer is told why it gets no tunnel.
func tunnelStatus(why telemetry.Reason) int {
	switch status := why.Status(); {
	case why == telemetry.ConnectTimeout:
		return 504
	case status >= 400:
		return status
	}
	return 503
}

// newTunnels makes the worker's client of tunnels.
func (w *worker) newTunnels() *hbone.Client {
	return hbone.NewClient(hbone.ClientConfig{
		Loop: w.loop, HTTP2: http2.Config{Now: w.loop.Now, Memory: &w.mem}, Dial: w.dialTunnels,
		Credential: func() any { return w.p.holder.Current().Certificate }, Baggage: w.p.self.baggage,
	})
}

// openTunnel asks the proxy of a target's endpoint for a tunnel to it. A server that could not prove what the cluster
// demands is not asked; the tunnels of clusters that demand the same share connections.
func (w *worker) openTunnel(t target, timeout time.Duration, done func(*loop.Conn, telemetry.Reason, error)) *hbone.Opening {
	ep, ids := t.ep.Plan(), t.cluster.Plan().TLS.Identities
	peer := hbone.Peer{Addr: netip.AddrPortFrom(t.addr.Addr(), PortTunnel), Network: ep.Network, Identities: strings.Join(ids, ",")}
	if ep.Identity != "" && (len(ids) == 0 || slices.Contains(ids, ep.Identity)) {
		peer.Identities = ep.Identity
	}
	return w.tunnels.Open(peer, hbone.Request{Dst: t.addr, Client: t.from, Host: t.cluster.Plan().Service.Host, Timeout: timeout}, done)
}

// dialTunnels makes a connection for tunnels, proven on both sides.
func (w *worker) dialTunnels(p hbone.Peer, timeout time.Duration, done func(*loop.Conn, telemetry.Reason, error)) {
	o := loop.DialOptions{Timeout: timeout, Mark: w.p.cfg.Mark, KeepAlive: loop.KeepAlive{
		Enabled: true, Idle: tunnelKeepalive, Interval: tunnelKeepalive, Probes: tunnelProbes,
	}}
	w.loop.Dial(p.Addr, o, func(c *loop.Conn, err error) {
		if err != nil {
			done(nil, connectReason(err), fmt.Errorf("connect to %s: %w", p.Addr, err))
			return
		}
		d := &tunnelDialing{done: done}
		c.SetHandler(d)
		c.StartTLSClient(identity.ForConnection(w.p.tunnelClientTLS(p.Identities)), handshakeWait, func(err error) {
			if err != nil {
				d.finish(nil, tlsReason(err), fmt.Errorf("handshake with %s: %w", p.Addr, err))
				return
			}
			d.finish(c, telemetry.None, nil)
		})
	})
}

// tunnelDialing is a connection for tunnels whose handshake is under way.
type tunnelDialing struct {
	done func(*loop.Conn, telemetry.Reason, error)
}

func (d *tunnelDialing) finish(c *loop.Conn, why telemetry.Reason, err error) {
	if done := d.done; done != nil {
		d.done = nil
		done(c, why, err)
	}
}

// OnData keeps what arrives before the connection has an owner.
func (d *tunnelDialing) OnData(*loop.Conn, []byte) int { return 0 }

// OnEOF is told to the owner again.
func (d *tunnelDialing) OnEOF(*loop.Conn) {}

// OnDrain does nothing.
func (d *tunnelDialing) OnDrain(*loop.Conn) {}

// OnClose: closed during the handshake.
func (d *tunnelDialing) OnClose(_ *loop.Conn, err error) {
	d.finish(nil, telemetry.TLSFailure, fmt.Errorf("closed during the handshake: %w", errOr(err)))
}
