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

// exchange is one request on its way through the proxy, and its response. It
// receives the request from the downstream codec; its attempts receive the
// response from the upstream's. Exchanges are reused: gen tells late callbacks
// that theirs is over, and from its end to its next use an exchange is over.
type exchange struct {
	w             *worker
	gen           uint64
	timeout, wait loop.Timer
	rec           record

	// Memory that is kept from one request to the next.
	req, trailers stream.Head // req as it will be sent on
	path          []byte      // of the normalised path
	tried         []*balance.Endpoint

	progress
}

// progress is what begins anew with each request.
type progress struct {
	d     *downstream
	down  stream.Sender
	query table.Request
	start time.Time

	rule    *table.Rule
	vhost   *table.VirtualHost
	choice  *table.Choice
	cluster *balance.Cluster
	current *attempt
	hash    uint64
	hasHash bool

	body      []byte // all of it so far, for the upstream that is not there yet or for another attempt, unless dropped
	dropped   bool   // part of the body is gone: the request cannot be sent again
	ended     bool   // the request is complete
	hasTrail  bool
	grpc      bool
	responded bool // the response's head has gone out
	tunnel    bool // ... and both ways are now bytes, each with its own end
	upEnded   bool // the upstream's way of the tunnel has ended
	over      bool

	identified bool // it is said whence the request came

	holds      bool // a request of the cluster's limit is held
	holdsRetry bool // ... and a retry
	tries      int  // attempts beyond the first
	resends    int  // attempts repeated because a pooled connection had closed before the request came
	repeated   bool // ... and one because it closed then, so that nobody knows what was done

	orders   orders            // of the request itself
	timed    bool              // the timeout has been looked at
	key      string            // Sec-WebSocket-Key: the client's, or ours where the client's HTTP has none
	waiting  func(x *exchange) // what wait continues with
	copies   []*table.Choice   // mirrors that wait for the body's end
	copyBody []byte            // the body for them
	cancel   func()            // stops waiting for the plan
	span     trace.Context     // the request's place in its trace, if traced
	traced   bool
}

// keptHeadBytes is the largest head whose memory is kept for the next request.
const keptHeadBytes = 8 << 10

// Accept is called by the codec when a request begins.
func (d *downstream) Accept(s stream.Sender) stream.Receiver {
	if d.w.draining {
		d.drain() // says so with this response, or before it
	}
	x := d.w.takeExchange()
	x.d, x.down, x.start = d, s, d.w.loop.Now()
	d.active++
	return x
}

func (w *worker) takeExchange() *exchange {
	x := w.exchanges.take(w.loop.Now())
	if x == nil {
		x = &exchange{w: w}
		x.timeout.Init(w.loop, x.onTimeout)
		x.wait.Init(w.loop, x.onWait)
	}
	x.over = false
	return x
}

// release gives the exchange back for another request.
func (x *exchange) release() {
	x.timeout.Stop()
	x.wait.Stop()
	if x.cancel != nil {
		x.cancel()
	}
	if x.holdsRetry {
		x.cluster.ReleaseRetry()
	}
	if x.holds {
		x.cluster.ReleaseRequest()
	}
	x.w.bodies.give(x.body)
	x.req.Recycle(keptHeadBytes)
	if x.hasTrail {
		x.trailers.Recycle(keptHeadBytes)
	}
	clear(x.tried)
	x.tried = x.tried[:0]
	d := x.d
	x.down.Release()
	x.gen++
	x.progress = progress{over: true}
	x.w.exchanges.give(x.w.loop.Now(), x)
	d.exchangeOver()
}

// OnHead takes the request's head.
func (x *exchange) OnHead(h *stream.Head, end bool) {
	allowed := x.d.refresh()
	x.req.Swap(h)
	x.ended = end
	x.rec.begin(x)
	ct, _ := x.req.Get("content-type")
	x.grpc = isGRPC(ct)
	x.hold()
	if !allowed {
		x.d.drain()
		x.answer(telemetry.MTLSRequired, 403, "the connection is not permitted any more; open a new one")
		return
	}
	if x.req.HTTP10 && !x.d.http.HTTP10 {
		x.answer(telemetry.VersionUnsupported, 426, "")
		return
	}
	if !x.readTarget() {
		x.answer(telemetry.DownstreamProtocolError, 400, "the path cannot be normalised")
		return
	}
	x.findRoute()
}

// isGRPC tells gRPC from other content types, gRPC-Web among them (gRPC over HTTP/2, "Requests").
func isGRPC(contentType []byte) bool {
	rest, ok := bytes.CutPrefix(contentType, []byte("application/grpc"))
	return ok && (len(rest) == 0 || rest[0] == '+' || rest[0] == ';')
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
		x.decide(nil, nil)
		return
	}
	name := x.d.routeName(x.query.Host)
	r, state := x.w.p.table.Route(name)
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
		x.cancel = x.w.p.table.Await(plan.KindRoute, name, func() {
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
	if !x.authorized() {
		return
	}
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
	if !x.req.Upgrade && string(x.req.Method()) == "CONNECT" {
		rule = nil // no rule leads a tunnel: it would be one to wherever the client names (RFC 9110 section 9.3.6)
	}
	x.vhost, x.rule = v, rule
	if !x.authorized() {
		return
	}
	if !x.cameSecured() && (v != nil && v.Plan.RequireTLS || x.d.s.chain.Plan.TLS.RedirectHTTPS) {
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
	x.fault()
}

// cameSecured reports whether the client used TLS, with us or, as they say, with the believed proxies in front of us.
func (x *exchange) cameSecured() bool {
	if x.d.s.secured || x.d.http.TrustedHops == 0 {
		return x.d.s.secured
	}
	proto, _ := x.req.Get("x-forwarded-proto")
	return string(proto) == "https"
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
	if v.Allowed {
		return true
	}
	x.deny(v)
	return false
}

func (x *exchange) deny(v authz.Verdict) {
	x.rec.policy = v.Policy
	x.rec.detail = policyText(v)
	x.answer(v.Reason, 403, "RBAC: access denied")
}

// fault injects what the rule orders, then goes on. What is aborted is not mirrored either, as with Envoy.
func (x *exchange) fault() {
	f := x.rule.Plan.Fault
	if f == nil {
		x.mirror()
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
		const text = "fault filter abort"
		switch {
		case f.AbortStatus > 0:
			x.answer(telemetry.FaultAbort, f.AbortStatus, text)
		case x.grpc:
			x.answerGRPC(telemetry.FaultAbort, f.AbortGRPC, text)
		default: // a status of gRPC means nothing to others, and is 200 to them, as with Envoy
			x.answer(telemetry.FaultAbort, 200, text)
		}
		return
	}
	x.mirror()
	x.attempt()
}

// attempt sends the request to an endpoint of the chosen cluster.
func (x *exchange) attempt() {
	if x.over {
		return
	}
	if x.cluster == nil {
		if x.cluster = x.choice.Cluster; x.cluster == nil {
			status := 503
			if x.choice.Name == plan.ClusterInvalid {
				status = 500
			}
			x.answer(telemetry.NoCluster, status, fmt.Sprintf("the destination %q does not exist", x.choice.Name))
			return
		}
	}
	if !x.holds {
		if !x.cluster.AcquireRequest() {
			x.answer(telemetry.PendingOverflow, 503, telemetry.PendingOverflow.Doc())
			return
		}
		x.holds = true
	}
	if x.ended {
		x.startTimeout()
	}
	x.hold()
	t, why := x.w.target(x.cluster, x.d.s.dst, pick{hash: x.hash, hasHash: x.hasHash, tried: x.tried})
	if why != telemetry.None {
		x.answer(why, max(why.Status(), 500), why.Doc())
		return
	}
	t.http2, t.mux = x.wantsHTTP2(), x.mayShare()
	a := x.w.takeAttempt()
	a.x, a.t = x, t
	x.current = a
	x.rec.attempt(a)
	x.w.acquire(t, a)
}

// wantsHTTP2 is whether the request goes out as HTTP/2 where the endpoint leaves the choice to us.
func (x *exchange) wantsHTTP2() bool { return x.wantsHTTP2Of(x.cluster) }

func (x *exchange) wantsHTTP2Of(cluster *balance.Cluster) bool {
	c := cluster.Plan()
	switch {
	case c.UseClientProtocol || c.Protocol == plan.ProtocolAuto:
		// An upgrade goes over HTTP/1.1, which every server has for it (extended CONNECT, RFC 8441, has few).
		return x.d.h2 != nil && !x.d.mux && !x.req.Upgrade
	default:
		return c.Protocol == plan.ProtocolHTTP2 || c.Protocol == plan.ProtocolGRPC
	}
}

// mayShare reports whether the request, as one of HTTP/1.1, may share a connection with others.
func (x *exchange) mayShare() bool { return !x.req.Upgrade && string(x.req.Method()) != "CONNECT" }

// startTimeout bounds the rest of the exchange, once the request is complete and on its way to a cluster: by the rule's
// timeout, by what the request orders in its place, or by the client's own for gRPC if that is shorter (Istio: maxGrpcTimeout is the rule's timeout). A delay that
// is injected comes before and is not part of it.
func (x *exchange) startTimeout() {
	if x.timed || x.tunnel || x.cluster == nil {
		return
	}
	x.timed = true
	x.rec.completed = x.w.loop.Now()
	var d time.Duration
	if x.rule != nil {
		d = x.rule.Plan.Timeout
	}
	if x.orders.timed {
		d = x.orders.timeout
	}
	if x.grpc {
		if v, ok := x.req.Get("grpc-timeout"); ok {
			if own, ok := grpcTimeout(v); ok && (d == 0 || own < d) {
				d = max(own, 1)
			}
		}
	}
	if d > 0 {
		x.timeout.Reset(d)
	}
}

// grpcTimeout reads a grpc-timeout: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
func grpcTimeout(p []byte) (time.Duration, bool) {
	if len(p) < 2 || len(p) > 9 {
		return 0, false
	}
	n := 0
	for _, c := range p[:len(p)-1] {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	switch p[len(p)-1] {
	case 'H':
		return time.Duration(min(n, 1<<20)) * time.Hour, true
	case 'M':
		return time.Duration(n) * time.Minute, true
	case 'S':
		return time.Duration(n) * time.Second, true
	case 'm':
		return time.Duration(n) * time.Millisecond, true
	case 'u':
		return time.Duration(n) * time.Microsecond, true
	case 'n':
		return time.Duration(n), true
	}
	return 0, false
}

func (x *exchange) onTimeout() {
	if x.over {
		return
	}
	if a := x.current; a != nil && !x.responded {
		a.report(504, false)
	}
	x.dropAttempt(stream.AbortTimeout)
	if x.responded {
		x.rec.fail(telemetry.RequestTimeout)
		x.finishReset()
		return
	}
	x.answer(telemetry.RequestTimeout, 504, "upstream request timeout")
}

// OnInterim does not happen to requests.
func (x *exchange) OnInterim(*stream.Head) {}

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

// refuse has the proxy of a client in the mesh ask another endpoint, where the application here takes no connections, or has
// ended those that it had: as a rule it is about to end, and not everybody knows yet. Of the request nothing was done, which
// HTTP/2 can say (RFC 9113 section 8.7), and proxies send it again then, whatever its method (Istio's default retries:
// refused-stream).
func (x *exchange) refuse(why telemetry.Reason) bool {
	if x.d.h2 == nil || !x.d.s.meshed || x.d.s.listener.Plan.Direction != plan.Inbound || x.responded || x.over {
		return false
	}
	x.rec.fail(why)
	x.rec.status = why.Status()
	x.down.Reset(stream.AbortRefused)
	x.finish()
	return true
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
	x.w.scratch = appendJoined(x.w.scratch[:0], &x.req, "x-forwarded-for")
	return clientAddr(x.d.http, x.w.scratch, x.d.s.src().Addr())
}
