package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/http1"
	"github.com/lateen-mesh/lateen/proxy/http2"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
)

// The bounds of what a worker keeps for later.
const (
	// idlePerPool is how many unused HTTP/1 connections one pool keeps.
	idlePerPool = 1024
	// waitersPerPool is how many requests wait for a connection of one pool.
	waitersPerPool = 8192
	// upstreamIdle is how long an unused connection is kept, Istio's default.
	upstreamIdle = time.Hour
	// recentPools is how many pools a worker finds at once.
	recentPools = 64
	// freeMax is how many exchanges and attempts are kept for reuse.
	freeMax = 1024
)

var errNoStream = errors.New("the connection takes no more requests")

// poolKey is what connections must have in common to be interchangeable. The
// plan of the cluster is part of it: connections made under older orders are
// not used any more.
type poolKey struct {
	plan  *plan.Cluster
	addr  netip.AddrPort
	http2 bool
	mtls  bool
	// client is for whom the connection is, where the endpoint was told: nobody else may use it.
	client *session
	sni    string // the server's name where the request says it
	// first: addr is not looked at, since connections are to outlive a change of the address.
	first bool
	// parked: those in it wait for addresses.
	parked bool
}

// pool is a worker's connections to one endpoint.
type pool struct {
	w       *worker
	key     poolKey
	t       target
	idle    []*upstream // HTTP/1 connections without a request, the last used one last
	multi   []*upstream // HTTP/2 connections
	leaving []*upstream // ... that take no more requests, but have some under way
	waiters []*attempt
	dialing int
	open    int // connections that serve or will, those being made included
	used    time.Time
	mux     muxing
}

// upstream is one pooled connection.
type upstream struct {
	pool     *pool
	c        *loop.Conn
	h1       *http1.ClientConn
	h2       *http2.ClientConn
	mux      *muxed        // of an HTTP/2 connection that carries requests of HTTP/1.1; else nil
	silence  *silence      // of an HTTP/2 connection to a proxy of the mesh; else nil
	since    time.Duration // when it was made, as the loop counts
	used     time.Duration
	local    netip.AddrPort // asked for at first use
	requests uint32
	counted  bool // against the cluster's limit of connections
	retired  bool // takes no more requests
	left     bool // not among pool.open any more
}

// acquire finds or makes a connection for an attempt, which is told by ready or failed, perhaps at once.
func (w *worker) acquire(t target, a *attempt) {
	if t.unresolved {
		w.park(t, a)
		return
	}
	if a.x != nil {
		t.tell(a.x.d.s)
		t.askFor(&a.x.req)
	} else {
		t.askFor(&a.copied.req)
	}
	key := poolKey{plan: t.cluster.Plan(), addr: t.addr, http2: t.http2, mtls: t.ep != nil && t.ep.Plan().MTLS, client: t.client, sni: t.sni}
	if key.plan.Discovery == plan.DiscoverDNSFirst {
		key.addr, key.first = netip.AddrPort{}, true
	}
	p := w.pool(&key)
	p.t = t // the endpoint may have gone and come back, or have another address
	p.used = w.loop.Now()
	a.t.mux = t.mux && t.shareable()
	for _, u := range p.multi {
		if u.takes(a) && p.enter(u, a) {
			u.hand(a)
			return
		}
	}
	if n := len(p.idle); n > 0 {
		u := p.idle[n-1]
		p.idle = p.idle[:n-1]
		u.hand(a)
		return
	}
	if len(p.waiters) >= waitersPerPool || !t.cluster.AcquirePending() {
		a.failed(telemetry.PendingOverflow, errors.New("too many requests wait for a connection"))
		return
	}
	a.pool = p
	p.waiters = append(p.waiters, a)
	if !a.t.mux {
		p.mux.plain++
	}
	p.dial()
}

// pool is the pool of a key, made where there is none. Those of the last requests are found without hashing the key.
func (w *worker) pool(key *poolKey) *pool {
	recent := &w.recent[(key.addr.Addr().As16()[15]+uint8(key.addr.Port()))%recentPools]
	if p := *recent; p != nil && p.key == *key {
		return p
	}
	p := w.pools[*key]
	if p == nil {
		p = &pool{w: w, key: *key}
		w.pools[*key] = p
	}
	*recent = p
	return p
}

// dial opens as many connections as the waiting requests need: one each for HTTP/1, one at a time for HTTP/2; where they
// may share, see lacks. When the cluster has its limit of connections they wait for one that comes free; only a pool
// that has none may go beyond the limit by one, because else nothing would ever serve those who wait (as in Envoy).
func (p *pool) dial() {
	for {
		t := p.t
		var lacking bool
		if t.mux, lacking = p.lacks(); !lacking {
			return
		}
		counted := t.cluster.AcquireConnection()
		if !counted && p.open > 0 {
			return
		}
		p.dialing++
		p.open++
		if t.mux {
			p.mux.dialing++
		}
		d := p.w.dial(t, counted, func(c *loop.Conn, why telemetry.Reason, err error) { p.connected(c, t.mux, counted, why, err) })
		d.late = p.late
	}
}

// late sends those elsewhere who wait for an endpoint that does not answer, and can go. The connection is made
// nevertheless, for others, if it can be.
func (p *pool) late() {
	var leaving []*attempt
	for _, a := range p.waiters {
		if a.x != nil && a.x.mayLeave() {
			leaving = append(leaving, a)
		}
	}
	for _, a := range leaving {
		p.forget(a)
		a.failed(telemetry.ConnectTimeout, fmt.Errorf("connect to %s: %w", p.t.addr, loop.ErrTimeout))
	}
}

// connected takes a connection, or the news that there is none. mux: it was to be shared.
func (p *pool) connected(c *loop.Conn, mux, counted bool, why telemetry.Reason, err error) {
	p.dialing--
	if mux {
		p.mux.dialing--
	}
	if err != nil {
		p.open--
		p.fail(mux, why, err)
		return
	}
	now := p.w.loop.Elapsed()
	u := &upstream{pool: p, counted: counted, c: c, since: now, used: now}
	if mux {
		p.mux.learn(c)
	}
	switch {
	case mux && p.mux.mode == muxTaken:
		u.share()
	case p.speaksHTTP2(c):
		u.h2 = http2.NewClientConn(c, p.w.h2Client(p.t), h2Client{u})
		p.multi = append(p.multi, u)
		c.SetHandler(h2Client{u})
		u.heed()
	default:
		u.h1 = p.w.h1.NewClientConn(c, h1Client{u})
		c.SetHandler(h1Client{u})
	}
	p.serve(u)
}

// speaksHTTP2 heeds what the server has chosen to speak, if that says it.
func (p *pool) speaksHTTP2(c *loop.Conn) bool {
	if state := c.TLS(); state != nil {
		switch state.NegotiatedProtocol {
		case alpnHTTP2, "h2":
			return true
		case alpnHTTP11, alpnHTTP10, "http/1.1", "http/1.0":
			return false
		}
	}
	return p.key.http2
}

// fail tells the requests that waited for this connection: the first one, or for HTTP/2 all, or as many as were to
// share it.
func (p *pool) fail(mux bool, why telemetry.Reason, err error) {
	most := 1
	switch {
	case p.key.http2:
		most = len(p.waiters)
	case mux && p.mux.mode != muxRefused:
		most = muxStreams
	}
	var failed []*attempt
	for i := 0; i < len(p.waiters) && len(failed) < most; {
		if a := p.waiters[i]; a.t.mux == mux || p.mux.mode == muxRefused {
			p.takeWaiter(i)
			failed = append(failed, a)
		} else {
			i++
		}
	}
	for _, a := range failed {
		a.failed(why, err)
	}
	p.dial()
}

// takeWaiter takes a request off the list of those that wait.
func (p *pool) takeWaiter(i int) *attempt {
	a := p.waiters[i]
	p.waiters = slices.Delete(p.waiters, i, i+1)
	if !a.t.mux {
		p.mux.plain--
	}
	p.t.cluster.ReleasePending()
	return a
}

// serve gives a connection to those who wait for one, and keeps it otherwise.
func (p *pool) serve(u *upstream) {
	for {
		i := slices.IndexFunc(p.waiters, u.takes)
		if i < 0 || !p.enter(u, p.waiters[i]) {
			break
		}
		u.hand(p.takeWaiter(i))
	}
	if u.h1 != nil && u.free() {
		p.keep(u)
	}
	if len(p.waiters) > 0 {
		p.dial()
	}
}

func (p *pool) keep(u *upstream) {
	if len(p.idle) >= idlePerPool {
		u.retire()
		u.c.Close()
		return
	}
	p.idle = append(p.idle, u)
}

// forget takes an attempt off the list of those that wait.
func (p *pool) forget(a *attempt) {
	if i := slices.Index(p.waiters, a); i >= 0 {
		p.takeWaiter(i)
	}
}

// localAddr is the connection's address on our side.
func (u *upstream) localAddr() netip.AddrPort {
	if !u.local.IsValid() {
		u.local = u.c.LocalAddr()
	}
	return u.local
}

// free reports whether another request can be opened now.
func (u *upstream) free() bool {
	if u.retired || u.silence != nil && u.silence.doubted {
		return false
	}
	if u.h2 != nil {
		return u.h2.Available() > 0
	}
	return u.h1.Idle()
}

// takes reports whether the attempt's request can be opened on the connection now.
func (u *upstream) takes(a *attempt) bool { return u.free() && (u.mux == nil || a.t.mux) }

// hand opens an attempt's request on the connection.
func (u *upstream) hand(a *attempt) {
	reused := u.requests > 0
	u.requests++
	u.used = u.pool.w.loop.Elapsed()
	if u.pool.key.first {
		a.t.addr = u.c.RemoteAddr() // perhaps an older one than that of the endpoint
		if a.x != nil {
			a.x.rec.target = a.t
		}
	}
	a.ready(u, reused)
	if limit := u.pool.key.plan.Limits.RequestsPerConnection; limit > 0 && u.requests >= limit {
		u.retire()
	}
}

// open starts an exchange; nil if the connection takes none.
func (u *upstream) open(r stream.Receiver) stream.Sender {
	if u.h2 != nil {
		if s, ok := u.h2.Open(r); ok {
			return s
		}
		return nil
	}
	if !u.h1.Idle() {
		return nil
	}
	u.c.Mark() // see attempt.untouched
	return u.h1.Open(r)
}

// retire takes the connection out of use once its requests are done.
func (u *upstream) retire() {
	if u.retired {
		return
	}
	u.retired = true
	p := u.pool
	if i := slices.Index(p.idle, u); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	if i := slices.Index(p.multi, u); i >= 0 {
		p.multi = slices.Delete(p.multi, i, i+1)
		p.leaving = append(p.leaving, u)
		u.h2.Drain()
	}
}

// leave is retire for a connection that serves nobody any more, or will not when it is done: another one may be made.
func (u *upstream) leave() {
	u.retire()
	if !u.left {
		u.left = true
		u.pool.open--
		u.pool.dial()
	}
}

// gone is the end of the connection.
func (u *upstream) gone() {
	p := u.pool
	if u.counted {
		u.counted = false
		p.t.cluster.ReleaseConnection()
	}
	u.leave()
	if i := slices.Index(p.leaving, u); i >= 0 {
		p.leaving = slices.Delete(p.leaving, i, i+1)
	}
	p.dial()
}

// OnIdle: an HTTP/1 exchange is over and the connection can be used again.
func (u *upstream) OnIdle(*http1.ClientConn) {
	if u.retired {
		u.c.Close()
		return
	}
	u.used = u.pool.w.loop.Elapsed()
	u.pool.serve(u)
}

// OnRoom: an HTTP/2 connection takes more requests.
func (u *upstream) OnRoom(*http2.ClientConn) { u.pool.serve(u) }

// OnDraining: the server will take no more requests on this connection.
func (u *upstream) OnDraining(*http2.ClientConn) { u.leave() }

// h1Client and h2Client are the loop's handlers of a pooled connection.
type (
	h1Client struct{ *upstream }
	h2Client struct{ *upstream }
)

func (h h1Client) OnData(_ *loop.Conn, p []byte) int { return h.h1.OnData(p) }
func (h h1Client) OnEOF(*loop.Conn)                  { h.h1.OnEOF() }
func (h h1Client) OnDrain(*loop.Conn)                { h.h1.OnDrain() }
func (h h1Client) OnClose(_ *loop.Conn, err error)   { h.gone(); h.h1.OnClose(err) }

// OnDead: the connection takes no more requests; what was open on it is told next.
func (h h1Client) OnDead(*http1.ClientConn) { h.leave() }

func (h h2Client) OnData(_ *loop.Conn, p []byte) int { h.heard(); return h.h2.OnData(p) }
func (h h2Client) OnEOF(*loop.Conn)                  { h.h2.OnEOF() }
func (h h2Client) OnDrain(*loop.Conn)                { h.h2.OnDrain() }
func (h h2Client) OnClose(_ *loop.Conn, err error)   { h.gone(); h.h2.OnClose(err) }

// OnDead: the connection takes no more requests; what was open on it is told next.
func (h h2Client) OnDead(*http2.ClientConn) { h.leave() }

// sweepPools closes connections that have been unused, or open, for too long, and forgets empty pools.
func (w *worker) sweepPools(now time.Time) {
	clear(w.recent[:])
	elapsed := w.loop.Elapsed()
	for key, p := range w.pools {
		idle := key.plan.IdleTimeout
		if idle == 0 {
			idle = upstreamIdle
		}
		if p.outdated() {
			idle = 0
		}
		for _, u := range slices.Clone(p.idle) {
			if elapsed-u.used >= idle || old(u, elapsed) {
				u.retire()
				u.c.Close()
			}
		}
		for _, u := range slices.Clone(p.multi) {
			if u.h2.Active() == 0 && elapsed-u.used >= idle {
				u.retire()
				u.c.Close()
			} else if old(u, elapsed) || u.outlived() {
				u.retire()
			} else {
				u.h2.Tick()
				u.listen(now)
			}
		}
		for _, u := range slices.Clone(p.leaving) {
			u.h2.Tick()
			u.listen(now)
		}
		if len(p.waiters)+p.open+len(p.multi)+len(p.leaving) == 0 && now.Sub(p.used) > time.Minute {
			delete(w.pools, key)
		}
	}
}

// outdated reports whether nobody will ask for the pool's connections any more: the orders have changed, the endpoint
// has left or the client has.
func (p *pool) outdated() bool {
	now := p.w.p.table.Cluster(p.key.plan.Name)
	return now == nil || now.Plan() != p.key.plan ||
		p.t.ep != nil && p.t.ep.Gone() && !p.key.first ||
		p.key.client != nil && p.key.client.left
}

func old(u *upstream, now time.Duration) bool {
	limit := u.pool.key.plan.Limits.ConnectionDuration
	return limit > 0 && now-u.since > limit
}
