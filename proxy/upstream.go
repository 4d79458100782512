package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/proxy/hbone"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
)

const (
	// connectTimeout is MeshConfig's default.
	connectTimeout = 10 * time.Second
	// connectSlow is how long an endpoint may take to accept a connection before requests that can go elsewhere do. The
	// packet that asks is sent a second time after 1 s, so that one that is lost does not matter.
	connectSlow = 1500 * time.Millisecond
)

// target is one place to connect to, and how.
type target struct {
	cluster *balance.Cluster
	ep      *balance.Endpoint // nil for an original destination
	addr    netip.AddrPort
	http2   bool // what to speak there, where the cluster leaves it open
	mux     bool // a request of HTTP/1.1 that may share a connection with others, if the endpoint takes that
	tcp     bool // bytes, not HTTP
	source  netip.Addr
	from    netip.AddrPort // the client's address, for peers that are told by a tunnel's head; invalid: unknown
	client  *session       // for whom; nil unless the endpoint is to be told by the PROXY protocol
	sni     string         // the server's name where the plan leaves it to the request; empty: the plan's
	// unresolved: the cluster is known by host names that have not been looked up; there is no address yet.
	unresolved bool
}

// peer reports whether a proxy of the mesh is at the other end, proven by mutual TLS.
func (t *target) peer() bool {
	switch t.cluster.Plan().TLS.Mode {
	case plan.ClientTLSMesh:
		return true
	case plan.ClientTLSAuto:
		return t.ep != nil && t.ep.Plan().MTLS
	}
	return false
}

// tunnelled reports whether the connection is to be carried by a tunnel.
func (t *target) tunnelled() bool {
	return t.ep != nil && t.ep.Plan().Tunnel == plan.TunnelHBONE && t.peer()
}

// shareable reports whether requests of HTTP/1.1 to the target are offered to share connections: where a proxy of the
// mesh is at the other end, and nothing is ordered that speaks of connections with one request each.
func (t *target) shareable() bool {
	p := t.cluster.Plan()
	return !t.http2 && !t.tcp && t.client == nil && t.peer() && !t.tunnelled() && len(p.TLS.ALPN) == 0 && p.Limits.RequestsPerConnection != 1
}

// pick is what influences the choice of an endpoint.
type pick struct {
	hash    uint64
	hasHash bool
	tried   []*balance.Endpoint
}

// target chooses where a connection of a cluster goes; dst is the connection's original destination.
func (w *worker) target(c *balance.Cluster, dst netip.AddrPort, p pick) (target, telemetry.Reason) {
	t := target{cluster: c}
	switch d := c.Plan().Discovery; {
	case d == plan.DiscoverNothing:
		return t, telemetry.UnknownDestination
	case d == plan.DiscoverOriginalDst || c.Plan().Balance.Algorithm == plan.OriginalDestination:
		if !dst.IsValid() {
			return t, telemetry.NoHealthyEndpoint
		}
		t.addr = dst
	default:
		var cause error
		if byHost(c.Plan()) {
			var found bool
			if found, cause = w.p.hosts.look(c, w.loop.Now()); !found {
				t.unresolved = true
				return t, telemetry.None
			}
		}
		ep, ok := c.Pick(balance.Pick{Hash: p.hash, HasHash: p.hasHash, Tried: p.tried, Rand: w.rnd.Uint32(), Now: w.loop.Now()})
		switch {
		case !ok && cause != nil:
			return t, telemetry.DNSFailure
		case !ok:
			return t, telemetry.NoHealthyEndpoint
		}
		t.ep, t.addr = ep, ep.Plan().Address
	}
	if s := c.Plan().BindSource; s != "" {
		t.source = bindSource(s, t.addr)
	}
	return t, telemetry.None
}

// tell has the endpoint be told, if that is ordered, for whom the connection is.
func (t *target) tell(s *session) {
	if t.cluster.Plan().ProxyProtocol != 0 {
		t.client = s
	}
}

// bindSource is the source address by which an application knows that a connection comes from its own proxy.
func bindSource(s string, to netip.AddrPort) netip.Addr {
	if to.Addr().Is6() && !to.Addr().Is4In6() {
		return netip.IPv6Unspecified().Next().Next().Next().Next().Next().Next() // ::6
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// dialing is a connection being made, through its TLS handshake.
type dialing struct {
	w       *worker
	t       target
	counted bool // against the cluster's limit of connections
	net     *loop.Dialing
	tunnel  *hbone.Opening // instead of net
	c       *loop.Conn
	done    func(*loop.Conn, telemetry.Reason, error)
	over    bool
	slow    loop.Timer
	late    func() // told if nobody answers for long; may cancel; nil: need not be told
}

// dial connects to a target and shakes hands as its cluster says. done is called once, on the loop and not from
// within, unless cancelled. counted: one of the cluster's connections is held for it; it belongs to the dialing until
// done is told of a connection, and is given back otherwise.
func (w *worker) dial(t target, counted bool, done func(*loop.Conn, telemetry.Reason, error)) *dialing {
	d := &dialing{w: w, t: t, counted: counted, done: done}
	timeout := t.cluster.Plan().ConnectTimeout
	if timeout == 0 {
		timeout = connectTimeout
	}
	if t.tunnelled() {
		d.tunnel = w.openTunnel(t, timeout, d.carried)
		return d
	}
	o := loop.DialOptions{Timeout: timeout, Mark: w.p.cfg.Mark}
	if t.source.IsValid() {
		o.Source = netip.AddrPortFrom(t.source, 0)
	}
	if k := t.cluster.Plan().TCPKeepalive; k != (plan.Keepalive{}) {
		o.KeepAlive = loop.KeepAlive{Enabled: true, Idle: k.Time, Interval: k.Interval, Probes: int(k.Probes)}
	}
	d.net = w.loop.Dial(t.addr, o, d.connected)
	if t.ep != nil {
		d.slow.Init(w.loop, d.onSlow)
		d.slow.Reset(connectSlow)
	}
	return d
}

// onSlow leaves the endpoint alone that has not answered for so long.
func (d *dialing) onSlow() {
	d.t.ep.Lost(d.w.loop.Now())
	if d.late != nil {
		d.late()
	}
}

// answered tells the balancer whether anybody answers at the endpoint's address.
func (d *dialing) answered(err error) {
	if d.t.ep == nil {
		return
	}
	d.slow.Stop()
	switch {
	case err == nil:
		d.t.ep.Found()
	case unanswered(err):
		d.t.ep.Lost(d.w.loop.Now())
	}
}

func (d *dialing) connected(c *loop.Conn, err error) {
	d.net = nil
	d.answered(err)
	if err != nil {
		d.release()
		d.finish(nil, connectReason(err), fmt.Errorf("connect to %s: %w", d.t.addr, err))
		return
	}
	d.c = c
	c.SetHandler(d)
	d.preface()
	cfg, err := d.w.p.clientTLS(d.t)
	if err != nil {
		d.fail(telemetry.TLSFailure, err)
		return
	}
	if cfg == nil {
		d.finish(c, telemetry.None, nil)
		return
	}
	c.StartTLSClient(cfg, handshakeWait, func(err error) {
		if d.over {
			return
		}
		if err != nil {
			d.fail(tlsReason(err), fmt.Errorf("handshake with %s: %w", d.t.addr, err))
			return
		}
		d.finish(c, telemetry.None, nil)
	})
}

// carried takes the tunnel, which needs no handshake of its own.
func (d *dialing) carried(c *loop.Conn, why telemetry.Reason, err error) {
	d.tunnel = nil
	d.answered(err)
	if err != nil {
		d.release()
		d.finish(nil, why, err)
		return
	}
	d.c = c
	c.SetHandler(d)
	d.preface()
	d.finish(c, telemetry.None, nil)
}

// preface tells the endpoint, where that is ordered, for whom the connection is.
func (d *dialing) preface() {
	if s := d.t.client; s != nil {
		d.c.Write(appendProxyHeader(nil, d.t.cluster.Plan().ProxyProtocol, s.src(), s.dst))
	}
}

// fail tells that the connection is of no use, and closes it. Its place in the limit is free before, for another try.
func (d *dialing) fail(why telemetry.Reason, err error) {
	c := d.c
	d.c = nil
	d.release()
	d.finish(nil, why, err)
	c.Abort()
}

func (d *dialing) finish(c *loop.Conn, why telemetry.Reason, err error) {
	if d.over {
		return
	}
	d.over = true
	d.done(c, why, err)
}

// release gives the place in the cluster's limit back.
func (d *dialing) release() {
	if d.counted {
		d.counted = false
		d.t.cluster.ReleaseConnection()
	}
}

// cancel gives the connection up.
func (d *dialing) cancel() {
	if d.over {
		return
	}
	d.over = true
	if d.net != nil {
		d.slow.Stop()
		d.net.Cancel()
		d.release()
	}
	if d.tunnel != nil {
		d.tunnel.Cancel()
		d.release()
	}
	if d.c != nil {
		d.c.Abort()
	}
}

// OnData keeps what arrives before the connection has an owner.
func (d *dialing) OnData(*loop.Conn, []byte) int { return 0 }

// OnEOF is told to the owner again.
func (d *dialing) OnEOF(*loop.Conn) {}

// OnDrain does nothing.
func (d *dialing) OnDrain(*loop.Conn) {}

// OnClose: closed during the handshake.
func (d *dialing) OnClose(_ *loop.Conn, err error) {
	d.release()
	d.c = nil
	d.finish(nil, telemetry.TLSFailure, fmt.Errorf("closed during the handshake: %w", errOr(err)))
}

// meshALPN are the protocols that a mesh client offers, Istio's names.
var (
	meshHTTP1 = []string{alpnHTTP11, alpnTCP, "http/1.1"}
	meshMux   = []string{alpnMux, alpnHTTP11, alpnTCP, "http/1.1"}
	meshHTTP2 = []string{alpnHTTP2, alpnTCP, "h2"}
	meshTCP   = []string{alpnTCP}
	plainH1   = []string{"http/1.1"}
	plainH2   = []string{"h2"}
)

// clientTLS is how to encrypt a connection to a target; nil: not at all.
func (p *Proxy) clientTLS(t target) (*tls.Config, error) {
	mode := t.cluster.Plan().TLS.Mode
	if mode == plan.ClientTLSAuto {
		if t.ep == nil || !t.ep.Plan().MTLS {
			return nil, nil
		}
		mode = plan.ClientTLSMesh
	}
	if mode == plan.ClientTLSNone {
		return nil, nil
	}
	mesh := mode == plan.ClientTLSMesh
	alpn := t.cluster.Plan().TLS.ALPN
	if len(alpn) == 0 {
		alpn = t.alpn(mesh)
	}
	if mesh {
		cfg, err := p.meshClient(t, alpn)
		if err != nil {
			return nil, err
		}
		return identity.ForConnection(cfg), nil
	}
	cfg, err := p.ordinaryClient(t.cluster.Plan(), alpn)
	if err != nil || cfg.ServerName != "" {
		return cfg, err
	}
	return t.serverName(cfg), nil
}

// alpn lists the protocols to offer by what is to be spoken.
func (t *target) alpn(mesh bool) []string {
	switch {
	case mesh && t.tcp:
		return meshTCP
	case mesh && t.http2:
		return meshHTTP2
	case mesh && t.mux:
		return meshMux
	case mesh:
		return meshHTTP1
	case t.tcp:
		return nil
	case t.http2:
		return plainH2
	}
	return plainH1
}

// askFor has the server named by the host of a request if the plan names none, as for a host with a wildcard (Envoy:
// auto_sni and auto_san_validation).
func (t *target) askFor(h *stream.Head) {
	tls := &t.cluster.Plan().TLS
	if tls.SNI != "" || tls.Mode != plan.ClientTLSSimple && tls.Mode != plan.ClientTLSMutual {
		return
	}
	host, _ := splitHost(h.Authority())
	t.sni = strings.ToLower(strings.Trim(string(host), "[]"))
}

// serverName completes a configuration that names no server: by the request's host, which the certificate must bear
// unless the plan lists its names. Of byte streams no name is known, so that any certificate of the roots will do.
func (t target) serverName(cfg *tls.Config) *tls.Config {
	orders := &t.cluster.Plan().TLS
	cfg = cfg.Clone()
	cfg.ServerName = t.sni
	if orders.InsecureSkipVerify || len(orders.Identities) > 0 || t.sni != "" && cfg.VerifyConnection == nil {
		return cfg
	}
	roots, before := cfg.RootCAs, cfg.VerifyConnection
	cfg.InsecureSkipVerify = true // VerifyConnection below verifies the chain and the name.
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		leaf := state.PeerCertificates[0]
		if before != nil {
			if err := before(state); err != nil || t.sni == "" {
				return err
			}
			return leaf.VerifyHostname(t.sni)
		}
		o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
		for _, c := range state.PeerCertificates[1:] {
			o.Intermediates.AddCert(c)
		}
		_, err := leaf.Verify(o)
		return err
	}
	return cfg
}
