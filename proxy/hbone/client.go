package hbone

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/lateen-mesh/lateen/proxy/http2"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
)

const (
	// clientStreams is how many tunnels are opened on one connection before another one is made; peers may allow less.
	clientStreams = 200
	// connsPerPeer bounds the connections to one peer; more tunnels wait.
	connsPerPeer = 128
	// waitersPerPeer bounds the tunnels that wait for a connection to one peer.
	waitersPerPeer = 8192
	// triesPerTunnel is how often a tunnel is asked for if its connection ends before the answer. Nothing of the
	// tunnel's bytes has been sent by then.
	triesPerTunnel = 3
	// closeWait is how long a connection that is to end may wait for the peer's part.
	closeWait = 5 * time.Second
	// pingEvery is how often the peer is asked for a sign of life while there are tunnels.
	pingEvery = 10 * time.Second
)

var (
	errOverflow  = errors.New("too many tunnels wait for a connection")
	errTimeout   = errors.New("no answer in time")
	errSilent    = errors.New("the peer does not answer PING")
	errCancelled = errors.New("the connection is not wanted any more")
)

// Peer is what tunnels must have in common to share connections.
type Peer struct {
	// Addr is where the peer takes tunnels.
	Addr netip.AddrPort
	// Identities are the SPIFFE IDs of which it must prove one, joined by commas; empty: any of the mesh.
	Identities string
	// Network is the name of the network that Addr belongs to.
	Network string
}

// ClientConfig is what a Client is made of.
type ClientConfig struct {
	Loop *loop.Loop
	// HTTP2 has the clock and the memory of the loop.
	HTTP2 http2.Config
	// Dial makes an encrypted connection to a peer. It calls done once, and not before it returns.
	Dial func(p Peer, timeout time.Duration, done func(*loop.Conn, telemetry.Reason, error))
	// Credential returns what connections prove us by. When it has changed, a new connection is made for the next
	// tunnel, the old ones serve until it is there, and end with their last tunnel.
	Credential func() any
	// Baggage describes our workload to peers (W3C baggage with OpenTelemetry's names, as ztunnel sends); empty: nothing.
	Baggage []byte
}

// Client opens tunnels, many on each of few connections.
type Client struct {
	cfg   ClientConfig
	peers map[Peer]*pool
	head  stream.Head
}

// NewClient returns a client without connections.
func NewClient(cfg ClientConfig) *Client {
	cfg.HTTP2 = settings(cfg.HTTP2)
	cfg.HTTP2.MaxStreams = clientStreams
	return &Client{cfg: cfg, peers: map[Peer]*pool{}}
}

// Request is a tunnel that is wanted.
type Request struct {
	// Dst is where it is to lead, at the peer.
	Dst netip.AddrPort
	// Client is whom it is for, and Host what that wanted to reach; the peer is told, if known.
	Client netip.AddrPort
	Host   string
	// Timeout bounds the time until the tunnel stands.
	Timeout time.Duration
}

// Opening is a tunnel that is being asked for.
type Opening struct {
	pool  *pool
	req   Request
	done  func(*loop.Conn, telemetry.Reason, error) // nil when called or cancelled
	timer loop.Timer
	why   telemetry.Reason // what timer stands for
	err   error
	asked *outbound // its stream; nil while it waits for a connection
	tries int
}

// Open asks for a tunnel. done is called once, and not before Open returns, with the connection, which it gives a
// handler or closes, or with why there is none; not at all after Cancel.
func (c *Client) Open(to Peer, r Request, done func(*loop.Conn, telemetry.Reason, error)) *Opening {
	p := c.peers[to]
	if p == nil {
		p = &pool{client: c, peer: to}
		c.peers[to] = p
	}
	o := &Opening{pool: p, req: r, done: done, why: telemetry.ConnectTimeout}
	o.err = fmt.Errorf("tunnel to %s by %s: %w (%s)", r.Dst, to.Addr, errTimeout, r.Timeout)
	o.timer.Init(c.cfg.Loop, func() { o.fail(o.why, o.err) })
	if len(p.waiters) >= waitersPerPeer {
		o.why, o.err = telemetry.PendingOverflow, errOverflow
		o.timer.Reset(0)
		return o
	}
	o.timer.Reset(r.Timeout)
	p.waiters = append(p.waiters, o)
	p.serve()
	return o
}

// Cancel gives up; done will not be called.
func (o *Opening) Cancel() {
	o.done = nil
	o.leave()
}

// leave ends what is under way.
func (o *Opening) leave() {
	o.timer.Stop()
	if t := o.asked; t != nil {
		o.asked, t.opening = nil, nil
		t.send.Reset(stream.AbortLocal)
		return
	}
	if i := slices.Index(o.pool.waiters, o); i >= 0 {
		o.pool.waiters = slices.Delete(o.pool.waiters, i, i+1)
	}
}

func (o *Opening) fail(why telemetry.Reason, err error) {
	o.leave()
	if done := o.done; done != nil {
		o.done = nil
		done(nil, why, err)
	}
}

// Sweep closes connections that have been without tunnels for as long as idle, and those whose peer is silent. It is
// to be called every second or so.
func (c *Client) Sweep(now time.Time, idle time.Duration) {
	for key, p := range c.peers {
		for _, u := range slices.Clone(p.conns) {
			u.sweep(now, idle)
		}
		if len(p.conns)+len(p.waiters) == 0 && !p.dialing {
			delete(c.peers, key)
		}
	}
}

// Connections is the number of connections, of tunnels on them, and of the connections that are stale: that prove us
// by credentials which have been replaced.
func (c *Client) Connections() (conns, tunnels, stale int) {
	for _, p := range c.peers {
		for _, u := range p.conns {
			conns++
			tunnels += u.h2.Active()
			if u.stale() {
				stale++
			}
		}
	}
	return conns, tunnels, stale
}

// pool is the connections to one peer, and the tunnels that wait for one.
type pool struct {
	client  *Client
	peer    Peer
	conns   []*conn
	waiters []*Opening
	dialing bool
}

// serve gives those who wait a place on a connection, and makes one if that is needed.
func (p *pool) serve() {
	stale := false
	for len(p.waiters) > 0 {
		u := p.pick()
		if u == nil {
			break
		}
		o := p.waiters[0]
		p.waiters = slices.Delete(p.waiters, 0, 1)
		stale = stale || u.stale()
		u.open(o)
	}
	if stale || len(p.waiters) > 0 && p.exhausted() {
		p.dial()
	}
}

// pick is a connection with room: the first one, so that later ones fall idle, but not one with old credentials if
// there is another.
func (p *pool) pick() *conn {
	var old *conn
	for _, u := range p.conns {
		switch {
		case u.retired || u.h2.Available() == 0:
		case !u.stale():
			return u
		case old == nil:
			old = u
		}
	}
	return old
}

// exhausted reports that no connection will have more room soon: how many streams the peer of a new one allows is not
// known at first.
func (p *pool) exhausted() bool {
	if len(p.conns) >= connsPerPeer {
		return false
	}
	for _, u := range p.conns {
		if _, known := u.h2.Upgrades(); !u.retired && !known {
			return false
		}
	}
	return true
}

func (p *pool) dial() {
	if p.dialing {
		return
	}
	p.dialing = true
	cred := p.client.cfg.Credential()
	timeout := time.Duration(0)
	for _, o := range p.waiters {
		timeout = max(timeout, o.req.Timeout)
	}
	p.client.cfg.Dial(p.peer, timeout, func(c *loop.Conn, why telemetry.Reason, err error) {
		p.dialing = false
		if err != nil {
			p.refuse(why, err)
			return
		}
		p.add(c, cred)
	})
}

// add takes a new connection into use, and older ones with other credentials out.
func (p *pool) add(c *loop.Conn, cred any) {
	now := p.client.cfg.Loop.Now()
	u := &conn{pool: p, c: c, local: c.LocalAddr(), cred: cred, used: now, pinged: now}
	if state := c.TLS(); state != nil && state.NegotiatedProtocol != ALPN {
		c.Abort()
		p.refuse(telemetry.UpstreamProtocolError, fmt.Errorf("%s takes no HTTP/2 (ALPN %q): is it a proxy of the mesh?", p.peer.Addr, state.NegotiatedProtocol))
		return
	}
	u.h2 = http2.NewClientConn(c, p.client.cfg.HTTP2, u)
	c.SetHandler(u)
	p.conns = append(p.conns, u)
	for _, old := range slices.Clone(p.conns) {
		if old.cred != cred && old.stale() {
			old.retire()
		}
	}
	p.serve()
}

// refuse tells all that wait that there is no connection, unless one may yet have room for them.
func (p *pool) refuse(why telemetry.Reason, err error) {
	if slices.ContainsFunc(p.conns, func(u *conn) bool { return !u.retired }) {
		return
	}
	waiting := p.waiters
	p.waiters = nil
	for _, o := range waiting {
		o.fail(why, fmt.Errorf("tunnel to %s by %s: %w", o.req.Dst, p.peer.Addr, err))
	}
}

// conn is one connection to a peer: a loop.Handler and an http2.ClientOwner.
type conn struct {
	pool    *pool
	c       *loop.Conn
	local   netip.AddrPort // our address
	h2      *http2.ClientConn
	cred    any
	used    time.Time
	pinged  time.Time
	retired bool // opens no more tunnels
}

// stale reports that we prove ourselves otherwise by now.
func (u *conn) stale() bool { return u.cred != u.pool.client.cfg.Credential() }

// retire takes the connection out of use; it closes after its last tunnel.
func (u *conn) retire() {
	if !u.retired {
		u.retired = true
		u.h2.Drain()
	}
}

// open asks for a tunnel.
func (u *conn) open(o *Opening) {
	t := &outbound{opening: o, on: u}
	t.over = u.c
	send, ok := u.h2.Open(t)
	if !ok {
		o.again(errCancelled)
		return
	}
	t.send, o.asked = send, t
	o.tries++
	u.used = u.pool.client.cfg.Loop.Now()
	send.SendHead(u.pool.client.request(&o.req), false)
}

// request makes the head of a CONNECT request, as ztunnel does.
func (c *Client) request(r *Request) *stream.Head {
	h := &c.head
	h.Reset()
	h.SetMethodString("CONNECT")
	h.SetAuthorityString(r.Dst.String())
	if len(c.cfg.Baggage) > 0 {
		h.Add([]byte("baggage"), c.cfg.Baggage)
	}
	forwarded := ""
	if r.Client.IsValid() {
		forwarded = `for="` + r.Client.String() + `"`
	}
	if r.Host != "" {
		if forwarded != "" {
			forwarded += ";"
		}
		forwarded += "host=" + r.Host
	}
	if forwarded != "" {
		h.AddString("forwarded", forwarded)
	}
	return h
}

// again asks once more on another connection, or gives up.
func (o *Opening) again(err error) {
	p := o.pool
	if o.done == nil || o.tries >= triesPerTunnel || len(p.waiters) >= waitersPerPeer {
		o.fail(telemetry.TunnelRefused, fmt.Errorf("tunnel to %s by %s: %w", o.req.Dst, p.peer.Addr, err))
		return
	}
	p.waiters = append(p.waiters, o)
	p.client.cfg.Loop.After(0, p.serve) // not from within the connection that ends
}

// sweep looks after the connection.
func (u *conn) sweep(now time.Time, idle time.Duration) {
	active := u.h2.Active()
	if active > 0 {
		u.used = now
	}
	switch {
	case active == 0 && (u.stale() || now.Sub(u.used) >= idle):
		u.retire()
	case active > 0 && now.Sub(u.pinged) >= pingEvery:
		u.pinged = now
		if !u.h2.Ping() {
			u.h2.OnClose(errSilent)
			u.c.Abort()
		}
	}
}

// OnRoom: more tunnels may be opened.
func (u *conn) OnRoom(*http2.ClientConn) { u.pool.serve() }

// OnDraining: the peer takes no more tunnels here.
func (u *conn) OnDraining(*http2.ClientConn) { u.leave() }

// OnDead: nor does anybody.
func (u *conn) OnDead(*http2.ClientConn) { u.leave() }

// leave is retire for a connection that has ended by itself.
func (u *conn) leave() {
	u.retired = true
	if len(u.pool.waiters) > 0 {
		u.pool.client.cfg.Loop.After(0, u.pool.serve)
	}
}

// OnData, OnEOF, OnDrain and OnClose are those of loop.Handler.
func (u *conn) OnData(_ *loop.Conn, p []byte) int { return u.h2.OnData(p) }

// OnEOF is the end of what the peer sends.
func (u *conn) OnEOF(*loop.Conn) { u.h2.OnEOF() }

// OnDrain goes on writing.
func (u *conn) OnDrain(*loop.Conn) { u.h2.OnDrain() }

// OnClose is the end of the connection.
func (u *conn) OnClose(_ *loop.Conn, err error) {
	p := u.pool
	if i := slices.Index(p.conns, u); i >= 0 {
		p.conns = slices.Delete(p.conns, i, i+1)
	}
	u.retired = true
	u.h2.OnClose(err)
	p.serve()
}

// outbound is a tunnel that we have asked for.
type outbound struct {
	tunnel
	opening *Opening // until the answer
	on      *conn
}

// TLS is nil: what protects the tunnel says nothing of the connection inside of it.
func (t *outbound) TLS() *tls.ConnectionState { return nil }

// OnHead takes the answer.
func (t *outbound) OnHead(h *stream.Head, end bool) {
	o := t.opening
	if o == nil {
		return
	}
	if h.Status < 200 || h.Status > 299 {
		if !end {
			t.send.Reset(stream.AbortLocal)
		}
		t.opening, o.asked = nil, nil
		o.fail(telemetry.TunnelRefused, fmt.Errorf("%s answers %d to a tunnel to %s", o.pool.peer.Addr, h.Status, o.req.Dst))
		return
	}
	t.opening, o.asked = nil, nil
	o.timer.Stop()
	t.conn = t.over.Loop().Carry(t, o.req.Dst, t.on.local)
	done := o.done
	o.done = nil
	done(t.conn, telemetry.None, nil)
	if end {
		t.OnData(nil, true)
	}
}

// OnAbort: before the answer, another connection may do better.
func (t *outbound) OnAbort(why stream.Abort, err error) {
	o := t.opening
	if o == nil {
		t.tunnel.OnAbort(why, err)
		return
	}
	t.opening, o.asked = nil, nil
	o.again(err)
}
