package proxy

import (
	"bytes"
	"fmt"
	"net/netip"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/authz"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/proxy/table"
	"github.com/lateen-mesh/lateen/telemetry"
	"github.com/lateen-mesh/lateen/telemetry/trace"
)

// The bounds of what an exchange keeps.
const (
	// retryBytes is how much of a request's body is kept so that the request can be sent again; a longer one is
	// sent once.
	retryBytes = 64 << 10
	// parkBytes is how much of a body may arrive before the upstream is there; reading is paused meanwhile, so
	// that it is only what one read had brought already.
	parkBytes = 512 << 10
)

// exchange is one request on its way through the proxy, and its response. It
// receives the request from the downstream codec; its attempts receive the
// response from the upstream's. Exchanges are reused: gen tells late callbacks
// that theirs is over.
type exchange struct {
	w    *worker
	d    *downstream
	down stream.Sender
	gen  uint64

	req   stream.Head // as it will be sent on
	query table.Request
	path  []byte // memory of the normalised path
	start time.Time

	rule    *table.Rule
	vhost   *table.VirtualHost
	choice  *table.Choice
	cluster *balance.Cluster
	current *attempt
	tried   []*balance.Endpoint
	hash    uint64
	hasHash bool
	holds   bool // a request of the cluster's limit is held

	body      []byte // kept for the upstream that is not there yet, or for another attempt
	trailers  stream.Head
	hasTrail  bool
	keeping   bool // body still holds the whole body so far
	ended     bool // the request is complete
	grpc      bool
	responded bool // the response's head has gone out
	over      bool
	tries     int // attempts beyond the first
	resends   int // attempts repeated because a pooled connection had closed

	timed         bool // the timeout is running
	timeout, wait loop.Timer
	waiting       func(x *exchange) // what wait continues with
	copies        []*table.Choice   // mirrors that wait for the body's end
	copyBody      []byte            // the body for them
	cancel        func()            // stops waiting for the plan

	span   trace.Context // the request's place in its trace, if traced
	traced bool

	rec record
}

// onDone is called by the codec when a request begins.
func (d *downstream) Accept(s stream.Sender) stream.Receiver {
	x := d.w.takeExchange()
	x.d, x.down, x.start = d, s, d.w.loop.Now()
	d.active++
	return x
}

func (w *worker) takeExchange() *exchange {
	if n := len(w.exchanges); n > 0 {
		x := w.exchanges[n-1]
		w.exchanges = w.exchanges[:n-1]
		return x
	}
	x := &exchange{w: w}
	x.timeout.Init(w.loop, x.onTimeout)
	x.wait.Init(w.loop, x.onWait)
	return x
}

// release gives the exchange back for the next request.
func (x *exchange) release() {
	x.timeout.Stop()
	x.wait.Stop()
	if x.cancel != nil {
		x.cancel()
	}
	if x.holds {
		x.cluster.ReleaseRequest()
	}
	d, w := x.d, x.w
	clear(x.tried)
	*x = exchange{
		w: w, gen: x.gen + 1, req: x.req, path: x.path[:0], tried: x.tried[:0], body: w.giveBody(x.body),
		trailers: x.trailers, timeout: x.timeout, wait: x.wait,
	}
	x.req.Reset()
	x.trailers.Reset()
	if len(w.exchanges) < freeMax {
		w.exchanges = append(w.exchanges, x)
	}
	d.exchangeOver()
}

// OnHead takes the request's head.
func (x *exchange) OnHead(h *stream.Head, end bool) {
	allowed := x.d.refresh()
	x.req.CopyFrom(h)
	x.ended = end
	x.rec.begin(x)
	ct, _ := h.Get("content-type")
	x.grpc = bytes.HasPrefix(ct, []byte("application/grpc"))
	if !end {
		x.down.Pause()
	}
	if !allowed {
		x.answer(telemetry.MTLSRequired, 403, "the connection is not permitted any more; open a new one")
		x.d.drain()
		return
	}
	if !x.readTarget() {
		x.answer(telemetry.DownstreamProtocolError, 400, "the path cannot be normalised")
		return
	}
	x.findRoute()
}

// readTarget splits the request's target into what routes and policies look at.
func (x *exchange) readTarget() bool {
	q := &x.query
	q.Head, q.Rand = &x.req, x.w.rnd.Uint32()
	q.TLS = x.d.s.secured
	path := x.req.Path()
	path, query, _ := bytes.Cut(path, []byte("?"))
	q.Query = query
	if len(path) > 0 && path[0] == '/' {
		clean, ok := table.NormalizePath(x.path[:0], path, x.d.http.PathNormalization)
		if !ok {
			return false
		}
		if len(clean) != len(path) || &clean[0] != &path[0] {
			x.path = clean
			x.setTarget(clean, query)
			path, query, _ = bytes.Cut(x.req.Path(), []byte("?"))
			q.Query = query
		}
	}
	q.Path = path
	host, port := splitHost(x.req.Authority())
	if port == 0 {
		port = x.d.s.dst.Port()
	}
	q.Host, q.Port = host, port
	return true
}

// setTarget replaces the request's path and query.
func (x *exchange) setTarget(path, query []byte) {
	if len(query) == 0 {
		x.req.SetPath(path)
		return
	}
	x.w.scratch = append(append(append(x.w.scratch[:0], path...), '?'), query...)
	x.req.SetPath(x.w.scratch)
}

// splitHost cuts an authority into host and port (0: none); an IPv6 literal keeps its brackets.
func splitHost(authority []byte) (host []byte, port uint16) {
	i := bytes.LastIndexByte(authority, ':')
	if i < 0 || bytes.IndexByte(authority[i:], ']') >= 0 {
		return authority, 0
	}
	n := 0
	for _, c := range authority[i+1:] {
		if c < '0' || c > '9' {
			return authority, 0
		}
		if n = n*10 + int(c-'0'); n > 65535 {
			return authority, 0
		}
	}
	return authority[:i], uint16(n)
}

// findRoute finds the rules for the request's host, asking the control plane for them where the listener's own do
// not cover it.
func (x *exchange) findRoute() {
	chain := x.d.s.chain
	if r := chain.Route; r != nil {
		if v, rule := r.Match(&x.query); v != nil || !x.d.http.ByHost {
			x.decide(v, rule)
			return
		}
	}
	if !x.d.http.ByHost {
		x.answer(telemetry.NoRoute, 404, "no route for this host")
		return
	}
	x.w.name = appendLower(x.w.name[:0], x.query.Host)
	x.w.name = appendPort(append(x.w.name, ':'), x.d.s.dst.Port())
	r, state := x.w.p.table.Route(string(x.w.name))
	switch state {
	case table.Ready:
		x.decide(r.Match(&x.query))
	case table.Absent:
		x.passThrough()
	default:
		gen := x.gen
		x.park(planWait, func(x *exchange) {
			x.answer(telemetry.ConfigMissing, 503, "no orders for this host: is the control plane reachable?")
		})
		x.cancel = x.w.p.table.Await(plan.KindRoute, string(x.w.name), func() {
			x.w.loop.Post(func() {
				if x.gen == gen && !x.over {
					x.cancel = nil
					x.wait.Stop()
					x.findRoute()
				}
			})
		})
	}
}

// passThrough sends a request for a host that the mesh does not know to where the client wanted to go.
func (x *exchange) passThrough() {
	x.choice = x.w.p.passthrough
	if tcp := x.d.s.chain.TCP; tcp != nil {
		x.choice = tcp.Choose(x.query.Rand) // the service that owns the address, or whatever is ordered for the rest
	}
	x.prepare()
	x.attempt()
}

// park waits; then goes on with f unless something else happens first.
func (x *exchange) park(d time.Duration, f func(*exchange)) {
	x.waiting = f
	x.wait.Reset(d)
}

func (x *exchange) onWait() {
	if f := x.waiting; f != nil && !x.over {
		x.waiting = nil
		f(x)
	}
}

// decide acts on the rule that matched.
func (x *exchange) decide(v *table.VirtualHost, rule *table.Rule) {
	x.vhost, x.rule = v, rule
	if !x.authorized() {
		return
	}
	if v != nil && v.Plan.RequireTLS && !x.d.s.secured || x.d.s.chain.Plan.TLS.RedirectHTTPS && !x.d.s.secured {
		x.redirectHTTPS()
		return
	}
	if rule == nil {
		x.answer(telemetry.NoRoute, 404, "no route matches this request")
		return
	}
	if rule.Plan.CORS != nil && x.cors() {
		return
	}
	switch {
	case rule.Plan.Redirect != nil:
		x.redirect()
		return
	case rule.Plan.Direct != nil:
		x.answer(telemetry.DirectResponse, rule.Plan.Direct.Code, rule.Plan.Direct.Body)
		return
	}
	x.choice = rule.Choices.Choose(x.query.Rand)
	x.hashRequest()
	x.prepare()
	x.mirror()
	x.fault()
}

// authorized judges the request and answers it if it is denied.
func (x *exchange) authorized() bool {
	a := x.d.s.chain.Authz
	if a == nil {
		return true
	}
	in := x.d.s.authzInput()
	in.Head, in.Path, in.Host = &x.req, x.query.Path, x.req.Authority()
	in.RemoteIP = x.remoteIP()
	v := a.Judge(&in)
	x.rec.policy = v.Policy
	if v.Allowed {
		return true
	}
	x.deny(v)
	return false
}

func (x *exchange) deny(v authz.Verdict) {
	x.rec.detail = policyText(v)
	x.answer(v.Reason, 403, "RBAC: access denied")
}

// fault injects what the rule orders, then goes on.
func (x *exchange) fault() {
	f := x.rule.Plan.Fault
	if f == nil {
		x.attempt()
		return
	}
	if f.Delay > 0 && x.w.chance(f.DelayPercent) {
		x.rec.flag(telemetry.FaultDelay)
		x.park(f.Delay, (*exchange).faultAbort)
		return
	}
	x.faultAbort()
}

func (x *exchange) faultAbort() {
	f := x.rule.Plan.Fault
	if (f.AbortStatus > 0 || f.AbortGRPC >= 0) && f.AbortPercent > 0 && x.w.chance(f.AbortPercent) {
		if f.AbortGRPC >= 0 && f.AbortStatus == 0 {
			x.answerGRPC(telemetry.FaultAbort, f.AbortGRPC, "fault filter abort")
			return
		}
		x.answer(telemetry.FaultAbort, f.AbortStatus, "fault filter abort")
		return
	}
	x.attempt()
}

// attempt sends the request to an endpoint of the chosen cluster.
func (x *exchange) attempt() {
	if x.over {
		return
	}
	if x.cluster == nil {
		if x.cluster = x.choice.Cluster; x.cluster == nil {
			x.answer(telemetry.NoCluster, 503, fmt.Sprintf("the destination %q does not exist", x.choice.Name))
			return
		}
	}
	if !x.holds {
		if !x.cluster.AcquireRequest() {
			x.answer(telemetry.PendingOverflow, 503, "upstream connect error or disconnect/reset before headers. reset reason: overflow")
			return
		}
		x.holds = true
	}
	if x.ended && !x.timed {
		x.startTimeout()
	}
	t, why := x.w.target(x.cluster, x.d.s.dst, pick{hash: x.hash, hasHash: x.hasHash, tried: x.tried})
	if why != telemetry.None {
		x.answer(why, max(why.Status(), 500), why.Doc())
		return
	}
	t.http2 = x.wantsHTTP2()
	a := x.w.takeAttempt()
	a.x, a.t, a.started = x, t, x.w.loop.Now()
	x.current = a
	x.rec.attempt(a)
	if r := x.retryPolicy(); r != nil && r.PerTryTimeout > 0 {
		a.perTry.Reset(r.PerTryTimeout)
	}
	x.w.acquire(t, a)
}

// wantsHTTP2 is whether the request goes out as HTTP/2 where the endpoint leaves the choice to us.
func (x *exchange) wantsHTTP2() bool { return x.wantsHTTP2Of(x.cluster) }

func (x *exchange) wantsHTTP2Of(cluster *balance.Cluster) bool {
	c := cluster.Plan()
	switch {
	case c.UseClientProtocol || c.Protocol == plan.ProtocolAuto:
		return x.d.h2 != nil
	default:
		return c.Protocol == plan.ProtocolHTTP2 || c.Protocol == plan.ProtocolGRPC
	}
}

func (x *exchange) startTimeout() {
	if x.rule != nil && x.rule.Plan.Timeout > 0 && !x.timed {
		x.timed = true
		x.timeout.Reset(x.rule.Plan.Timeout)
	}
}

func (x *exchange) onTimeout() {
	if x.over {
		return
	}
	x.dropAttempt(stream.AbortTimeout)
	if x.responded {
		x.rec.fail(telemetry.RequestTimeout)
		x.finishReset()
		return
	}
	x.answer(telemetry.RequestTimeout, 504, "upstream request timeout")
}

// connected is told by the attempt that its upstream is there: the head and what has arrived of the body go out.
func (x *exchange) connected(a *attempt) {
	a.sendHead(&x.req, x.ended && len(x.body) == 0 && !x.hasTrail)
	if len(x.body) > 0 {
		a.up.SendData(x.body, x.ended && !x.hasTrail)
	}
	if x.ended && x.hasTrail {
		a.up.SendTrailers(&x.trailers)
	}
	if x.over || x.current != a {
		return
	}
	if !x.keeps() {
		x.keeping = false
		x.body = x.w.giveBody(x.body)
	}
	if !x.ended && !a.up.Full() {
		x.down.Resume()
	}
}

// keeps reports whether the body is worth keeping: it can still be sent again.
func (x *exchange) keeps() bool {
	r := x.retryPolicy()
	return r != nil && r.Attempts > x.tries && !x.responded && len(x.body) <= retryBytes
}

func (x *exchange) retryPolicy() *plan.Retry {
	if x.rule == nil {
		return nil
	}
	return x.rule.Plan.Retry
}

// OnInterim does not happen to requests.
func (x *exchange) OnInterim(*stream.Head) {}

// OnData takes body bytes of the request.
func (x *exchange) OnData(p []byte, end bool) {
	x.rec.received += int64(len(p))
	x.ended = x.ended || end
	if x.over {
		return
	}
	if len(x.copies) > 0 {
		x.copyData(p, end)
	}
	a := x.current
	if a == nil || a.up == nil {
		x.keepBody(p)
		return
	}
	if x.keeping || len(x.body) == 0 && x.keeps() && a.sent == 0 {
		x.keeping = true
		if x.body = append(x.w.takeBody(x.body), p...); !x.keeps() {
			x.keeping = false
			x.body = x.w.giveBody(x.body)
		}
	}
	a.sent += int64(len(p))
	a.up.SendData(p, end)
	if end && !x.over {
		x.startTimeout()
	}
	if !end && !x.over && x.current == a && a.up.Full() {
		x.down.Pause()
	}
}

func (x *exchange) keepBody(p []byte) {
	if len(x.body)+len(p) > parkBytes {
		x.answer(telemetry.BodyTooLarge, 413, "the body arrived before its destination was known, and is too large to keep")
		return
	}
	x.keeping = true
	x.body = append(x.w.takeBody(x.body), p...)
}

// OnTrailers ends the request with trailers.
func (x *exchange) OnTrailers(h *stream.Head) {
	x.ended = true
	if x.over {
		return
	}
	x.trailers.CopyFrom(h)
	x.hasTrail = true
	x.mirrorBody()
	if a := x.current; a != nil && a.up != nil {
		a.up.SendTrailers(h)
	}
	if !x.over {
		x.startTimeout()
	}
}

// OnAbort: the client is gone.
func (x *exchange) OnAbort(why stream.Abort, _ error) {
	if x.over {
		return
	}
	switch why {
	case stream.AbortProtocol:
		x.rec.fail(telemetry.DownstreamProtocolError)
	default:
		x.rec.fail(telemetry.DownstreamClosed)
	}
	x.dropAttempt(stream.AbortLocal)
	x.finish()
}

// OnDrain: the client reads again.
func (x *exchange) OnDrain() {
	if a := x.current; a != nil && a.up != nil {
		a.up.Resume()
	}
}

// dropAttempt gives the running attempt up.
func (x *exchange) dropAttempt(why stream.Abort) {
	if a := x.current; a != nil {
		x.current = nil
		a.abandon(why)
	}
}

// finishReset ends an exchange whose response cannot be completed.
func (x *exchange) finishReset() {
	x.down.Reset(stream.AbortLocal)
	x.finish()
}

// finish records the exchange and gives it back. The codec calls it no more.
func (x *exchange) finish() {
	if x.over {
		return
	}
	x.over = true
	x.rec.end(x)
	x.release()
}

// remoteIP is the client's address as far as the proxies in front are believed.
func (x *exchange) remoteIP() netip.Addr {
	src := x.d.s.src.Addr()
	xff, ok := x.req.Get("x-forwarded-for")
	if !ok || x.d.http.TrustedHops == 0 {
		return src
	}
	return trustedAddr(xff, x.d.http.TrustedHops, src)
}
