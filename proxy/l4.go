package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/table"
	"github.com/lateen-mesh/lateen/telemetry"
)

const (
	// dialTries is how many endpoints are tried before a byte relay gives up.
	dialTries = 3
	// relayIdle closes a relay over which nothing travels, Istio's default.
	relayIdle = time.Hour
)

// tcpDial is the search for the server side of a byte relay. Nothing has been
// sent yet, so a failed endpoint is followed by another one.
type tcpDial struct {
	s       *session
	choice  *table.Choice
	tried   []*balance.Endpoint
	ep      *balance.Endpoint
	addr    netip.AddrPort
	dialing *dialing
	leave   func()       // stops waiting for the cluster's addresses
	to      *plan.Tunnel // through the server, an HTTP proxy; nil: to it
	asking  *tunnelling  // the HTTP proxy, once it was reached
	began   time.Time
	done    func(c *loop.Conn, why telemetry.Reason, err error)
}

// dialTCP opens the server side of a session's relay; done is called once, on the loop, perhaps at once.
func (s *session) dialTCP(done func(*loop.Conn, telemetry.Reason, error)) *tcpDial {
	d := &tcpDial{s: s, done: done, began: s.w.loop.Now()}
	if s.chain.TCP == nil {
		done(nil, telemetry.NoRoute, fmt.Errorf("listener %q relays no bytes on this port", s.listener.Plan.Name))
		return d
	}
	d.choice, d.to = s.chain.TCP.Choose(s.w.rnd.Uint32()), s.chain.Plan.TCP.Tunnel
	d.try()
	return d
}

func (d *tcpDial) try() {
	w := d.s.w
	if d.choice.Cluster == nil {
		d.done(nil, telemetry.NoCluster, fmt.Errorf("cluster %q does not exist", d.choice.Name))
		return
	}
	t, why := w.target(d.choice.Cluster, d.s.dst, pick{tried: d.tried})
	if why != telemetry.None {
		d.done(nil, why, fmt.Errorf("cluster %q: %s", d.choice.Name, why))
		return
	}
	if t.unresolved {
		var err error
		if d.leave, err = w.p.hosts.await(w, t.cluster, d.try); err != nil {
			d.done(nil, telemetry.PendingOverflow, fmt.Errorf("cluster %q: %w", d.choice.Name, err))
		}
		return
	}
	d.leave = nil
	t.tcp, t.from = true, d.s.src()
	t.tell(d.s)
	d.ep, d.addr = t.ep, t.addr
	if !t.cluster.AcquireConnection() {
		d.done(nil, telemetry.ConnectionLimit, fmt.Errorf("cluster %q has its limit of connections", d.choice.Name))
		return
	}
	d.dialing = w.dial(t, true, d.connected)
	d.dialing.late = d.late
}

// late goes elsewhere from an endpoint that does not answer, if there is another one.
func (d *tcpDial) late() {
	if len(d.tried)+1 < dialTries && d.choice.Cluster.Elsewhere(append(d.tried, d.ep), d.s.w.loop.Now()) {
		d.dialing.cancel()
		d.connected(nil, telemetry.ConnectTimeout, fmt.Errorf("connect to %s: %w", d.addr, loop.ErrTimeout))
	}
}

func (d *tcpDial) connected(c *loop.Conn, why telemetry.Reason, err error) {
	d.dialing = nil
	w := d.s.w
	if d.ep != nil && why != telemetry.NoIdentity {
		d.ep.Report(w.loop.Now(), balance.Outcome{LocalFailure: err != nil})
	}
	switch {
	case err != nil:
		d.failed(why, err)
	case d.to != nil:
		d.tunnel(c)
	default:
		d.done(c, telemetry.None, nil)
	}
}

// failed tries another endpoint, if there may be one.
func (d *tcpDial) failed(why telemetry.Reason, err error) {
	if d.ep == nil || len(d.tried)+1 >= dialTries {
		d.done(nil, why, err)
		return
	}
	d.tried = append(d.tried, d.ep)
	d.try()
}

func (d *tcpDial) cancel() {
	if d.leave != nil {
		d.leave()
		d.leave = nil
	}
	if d.dialing != nil {
		d.dialing.cancel()
		d.dialing = nil
	}
	if d.asking != nil {
		d.asking.cancel()
	}
}

// early is a server side that was asked before the client spoke: whoever speaks
// first shows what the protocol is.
type early struct {
	s    *session
	dial *tcpDial
	c    *loop.Conn // nil until connected
}

// askServer connects to the server although the client has said nothing, for
// protocols in which the server speaks first.
func (s *session) askServer() {
	if s.early != nil || s.chain.TCP == nil {
		return
	}
	if v := s.judge(); !v.Allowed {
		return // the client may still show an identity
	}
	e := &early{s: s}
	s.early = e
	dial := s.dialTCP(func(c *loop.Conn, why telemetry.Reason, err error) {
		if err != nil { // as if there was no proxy between them
			s.early = nil
			s.refuse(why, err)
			return
		}
		e.c = c
		c.SetHandler(e)
	})
	e.dial = dial
}

func (s *session) dropEarly() {
	e := s.early
	if e == nil {
		return
	}
	s.early = nil
	e.dial.cancel()
	if e.c != nil {
		e.c.Close()
	}
}

// wanted reports whether the session still waits for what the server says.
func (e *early) wanted() bool { return !e.s.ended && e.s.early == e }

// OnData: the server speaks first, so this is no HTTP and no TLS of ours, unless it is a server of HTTP/2: these do not
// wait for the client either, whose turn it remains. Where the client has begun what may become a ClientHello, it waits.
func (e *early) OnData(c *loop.Conn, p []byte) int {
	switch {
	case !e.wanted():
	case e.s.stage == stageBytes && e.s.unread > 0, servesHTTP2(p):
		c.PauseRead()
	case e.s.stage == stageBytes || e.s.stage == stageSniff:
		e.s.relay()
	}
	return 0
}

// OnEOF: the server has nothing to say, and takes the connection for over.
func (e *early) OnEOF(c *loop.Conn) {
	c.Close()
	if e.wanted() {
		e.s.early = nil
		e.s.end()
		e.s.w.connectionGone()
		e.s.c.Close()
	}
}

// OnClose forgets the connection.
func (e *early) OnClose(*loop.Conn, error) {
	e.dial.choice.Cluster.ReleaseConnection()
	if e.wanted() {
		e.s.early = nil
		e.s.refuse(telemetry.UpstreamReset, errors.New("the server reset the connection before either side spoke"))
	}
}

// OnDrain does nothing: nothing is written.
func (e *early) OnDrain(*loop.Conn) {}

// relay copies bytes between two connections in both directions, with
// half-close, until both sides have ended.
type relay struct {
	w        *worker
	s        *session
	down, up *loop.Conn
	dial     *tcpDial
	key      telemetry.TCPKey
	told     [2]int64 // bytes sent and received that have been counted
	ended    bool
	downEOF  bool
	upEOF    bool
	active   time.Time
	sent     int64 // to the client
	received int64 // from the client
	choice   *table.Choice
	ep       *balance.Endpoint
	addr     netip.AddrPort
}

type relayDown struct{ *relay }

type relayUp struct{ *relay }

// startRelay connects the session's client to its server and copies.
func (w *worker) startRelay(s *session) {
	r := &relay{w: w, s: s, down: s.c, active: w.loop.Now()}
	w.relays[r] = struct{}{}
	if e := s.early; e != nil {
		s.early = nil
		r.dial = e.dial
		if e.c != nil {
			s.end()
			r.connected(e.c, telemetry.None, nil)
			return
		}
		e.dial.done = r.connected
		s.end()
		s.c.SetHandler(relayDown{r})
		return
	}
	s.end()
	s.c.SetHandler(relayDown{r})
	d := s.dialTCP(r.connected)
	r.dial = d
}

func (r *relay) connected(c *loop.Conn, why telemetry.Reason, err error) {
	if r.ended {
		if c != nil {
			c.Close()
		}
		return
	}
	if err != nil {
		r.w.recordRefusal(r.s, why, err)
		r.giveUp()
		r.down.Abort()
		return
	}
	r.up = c
	if d := r.dial; d != nil {
		r.choice, r.ep, r.addr = d.choice, d.ep, d.addr
	}
	if r.ep != nil {
		r.ep.Begin()
	}
	r.w.openRelay(r)
	r.s.grant()
	r.down.SetHandler(relayDown{r})
	r.up.SetHandler(relayUp{r})
	r.down.ResumeRead()
	r.up.ResumeRead()
	if r.downEOF {
		r.up.CloseWrite()
	}
}

// giveUp ends a relay that never reached its server.
func (r *relay) giveUp() {
	r.ended = true
	delete(r.w.relays, r)
	r.w.connectionGone()
}

// OnData passes the client's bytes on; before the server is there they stay unread.
func (d relayDown) OnData(_ *loop.Conn, p []byte) int {
	r := d.relay
	if r.up == nil {
		r.down.PauseRead()
		return 0
	}
	r.received += int64(len(p))
	r.pass(r.down, r.up, p)
	return len(p)
}

// OnData passes the server's bytes on.
func (u relayUp) OnData(_ *loop.Conn, p []byte) int {
	r := u.relay
	r.sent += int64(len(p))
	r.pass(r.up, r.down, p)
	return len(p)
}

func (r *relay) pass(from, to *loop.Conn, p []byte) {
	r.active = r.w.loop.Now()
	to.Write(p)
	if to.Full() {
		from.PauseRead()
	}
}

// OnDrain: the client reads again.
func (d relayDown) OnDrain(*loop.Conn) {
	if d.up != nil {
		d.up.ResumeRead()
	}
}

// OnDrain: the server reads again.
func (u relayUp) OnDrain(*loop.Conn) { u.down.ResumeRead() }

// OnEOF: the client will send no more.
func (d relayDown) OnEOF(*loop.Conn) {
	r := d.relay
	r.downEOF = true
	if r.up == nil {
		return // told to the server once it is there
	}
	r.up.CloseWrite()
	r.closeIfDone()
}

// OnEOF: the server will send no more.
func (u relayUp) OnEOF(*loop.Conn) {
	u.upEOF = true
	u.down.CloseWrite()
	u.closeIfDone()
}

func (r *relay) closeIfDone() {
	if r.downEOF && r.upEOF {
		r.finish(telemetry.None, nil)
		r.down.Close()
		r.up.Close()
	}
}

// OnClose: the client is gone.
func (d relayDown) OnClose(_ *loop.Conn, err error) {
	r := d.relay
	if r.up == nil {
		if !r.ended {
			r.dial.cancel()
			r.giveUp()
			r.w.recordRefusal(r.s, telemetry.DownstreamClosed, errors.New("the client left before the server was reached"))
		}
		return
	}
	r.other(r.up, err, telemetry.DownstreamClosed)
}

// OnClose: the server is gone.
func (u relayUp) OnClose(_ *loop.Conn, err error) {
	u.cluster().ReleaseConnection()
	u.other(u.down, err, telemetry.UpstreamReset)
}

// other ends the side that is left in the way in which the first one ended.
func (r *relay) other(c *loop.Conn, err error, why telemetry.Reason) {
	if r.ended {
		return
	}
	if err != nil {
		r.finish(why, err)
		c.Abort()
		return
	}
	r.finish(telemetry.None, nil)
	c.Close()
}

func (r *relay) finish(why telemetry.Reason, err error) {
	if r.ended {
		return
	}
	r.ended = true
	if r.ep != nil {
		r.ep.End()
	}
	r.w.closeRelay(r, why, err)
}

// idleTimeout is the chain's, or Istio's default.
func (r *relay) idleTimeout() time.Duration {
	if t := r.s.chain.Plan.TCP; t != nil && t.IdleTimeout > 0 {
		return t.IdleTimeout
	}
	return relayIdle
}

// deny ends a relay that a change of the plan forbids.
func (r *relay) deny(why telemetry.Reason) {
	r.finish(why, errors.New("a change of policy forbids the connection"))
	r.down.Abort()
	r.up.Abort()
}

// cluster is the one that the bytes go to; nil if it is not known.
func (r *relay) cluster() *balance.Cluster {
	if r.choice == nil {
		return nil
	}
	return r.choice.Cluster
}

// flush counts the bytes that have not been counted yet.
func (r *relay) flush() {
	if r.sent == r.told[0] && r.received == r.told[1] {
		return
	}
	r.w.shard.Transferred(r.key, uint64(r.sent-r.told[0]), uint64(r.received-r.told[1]))
	r.told = [2]int64{r.sent, r.received}
}

// sweep closes the relay if nothing has travelled for too long, or if it is not permitted any more.
func (r *relay) sweep(now time.Time) {
	if r.up == nil {
		return // the search for the server has timeouts of its own
	}
	if serial := r.s.serial; !r.s.refresh() {
		r.deny(telemetry.MTLSRequired)
		return
	} else if serial != r.s.serial {
		if v := r.s.judge(); !v.Allowed {
			r.deny(v.Reason)
			return
		}
	}
	if now.Sub(r.active) < r.idleTimeout() {
		if !r.s.listener.Plan.Telemetry.NoMetrics {
			r.flush()
		}
		return
	}
	r.finish(telemetry.IdleTimeout, fmt.Errorf("nothing travelled for %s", r.idleTimeout()))
	r.down.Close()
	r.up.Close()
}
