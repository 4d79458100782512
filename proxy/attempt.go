package proxy

import (
	"strconv"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
)

// The waits between attempts, Envoy's defaults.
const (
	backoffBase   = 25 * time.Millisecond
	backoffFactor = 10 // the longest wait in base intervals
)

// resendsMax is how often a request is repeated because the pooled connection it was sent on had been closed.
const resendsMax = 2

// attempt is one sending of a request to one endpoint; it receives the
// response. x is nil for copies that nobody waits for.
type attempt struct {
	w       *worker
	x       *exchange
	t       target
	up      stream.Sender
	conn    *upstream
	pool    *pool // while waiting for a connection
	copied  *mirrored
	started time.Time
	sent    int64 // body bytes
	reused  bool
	began   bool // counted as active at the endpoint
	headed  bool // the response's head has arrived
	done    bool
	perTry  loop.Timer
}

func (w *worker) takeAttempt() *attempt {
	if n := len(w.attempts); n > 0 {
		a := w.attempts[n-1]
		w.attempts = w.attempts[:n-1]
		return a
	}
	a := &attempt{w: w}
	a.perTry.Init(w.loop, a.onPerTry)
	return a
}

func (w *worker) giveAttempt(a *attempt) {
	a.perTry.Stop()
	*a = attempt{w: w, perTry: a.perTry}
	if len(w.attempts) < freeMax {
		w.attempts = append(w.attempts, a)
	}
}

// ready is told by the pool that there is a connection.
func (a *attempt) ready(u *upstream, reused bool) {
	a.pool, a.reused = nil, reused
	a.conn = u
	if a.up = u.open(a); a.up == nil {
		a.conn = nil
		a.failed(telemetry.UpstreamReset, errNoStream)
		return
	}
	if a.t.ep != nil {
		a.t.ep.Begin()
		a.began = true
	}
	if a.x != nil {
		a.x.connected(a)
		return
	}
	a.copied.connected(a)
}

// sendHead sends the request's head with what belongs to this attempt.
func (a *attempt) sendHead(h *stream.Head, end bool) {
	if x := a.x; x != nil && x.rule != nil {
		a.w.scratch = strconv.AppendInt(a.w.scratch[:0], int64(x.tries+1), 10)
		h.Set("x-envoy-attempt-count", a.w.scratch)
	}
	a.up.SendHead(h, end)
}

// failed is told by the pool that there is no connection.
func (a *attempt) failed(why telemetry.Reason, err error) {
	a.pool = nil
	a.report(0, true)
	x := a.x
	a.close()
	if x == nil {
		return
	}
	x.current = nil
	x.rec.upstreamError = err
	cond := plan.OnConnectFailure
	if why == telemetry.PendingOverflow {
		cond = 0
	}
	x.again(a.t.ep, cond|plan.OnReset|plan.OnResetBeforeRequest|plan.On5xx|plan.OnGatewayError, why)
}

// OnInterim passes a 1xx response on.
func (a *attempt) OnInterim(h *stream.Head) {
	if a.x != nil && !a.x.responded {
		a.x.down.SendInterim(h)
	}
}

// OnHead takes the response's head: it is sent on, or the request is sent again.
func (a *attempt) OnHead(h *stream.Head, end bool) {
	a.headed = true
	a.perTry.Stop()
	a.report(h.Status, false)
	x := a.x
	if x == nil {
		if end {
			a.close()
		}
		return
	}
	status := h.Status
	grpc := -1
	if v, ok := h.Get("grpc-status"); ok && end {
		grpc = atoi(v)
	}
	if x.mayRetry(a, status, grpc) {
		x.current = nil
		ep := a.t.ep
		a.abandonUnless(end)
		x.retry(ep)
		return
	}
	x.respond(a, h, end)
	if end && !a.done {
		a.complete()
	}
}

// OnData passes body bytes of the response on.
func (a *attempt) OnData(p []byte, end bool) {
	x := a.x
	if x == nil {
		if end {
			a.close()
		}
		return
	}
	x.rec.sent += int64(len(p))
	if end {
		a.finishBefore(func() { x.down.SendData(p, true) })
		return
	}
	x.down.SendData(p, false)
	if !x.over && x.down.Full() {
		a.up.Pause()
	}
}

// OnTrailers ends the response.
func (a *attempt) OnTrailers(h *stream.Head) {
	x := a.x
	if x == nil {
		a.close()
		return
	}
	if v, ok := h.Get("grpc-status"); ok {
		x.rec.grpcStatus = atoi(v)
	}
	a.finishBefore(func() { x.down.SendTrailers(h) })
}

// finishBefore closes the attempt, sends the response's last piece and ends the exchange.
func (a *attempt) finishBefore(send func()) {
	x := a.x
	x.current = nil
	a.close()
	send()
	x.finish()
}

// complete ends an exchange whose whole response has been sent on.
func (a *attempt) complete() {
	x := a.x
	x.current = nil
	a.close()
	x.finish()
}

// OnAbort: the upstream ended the exchange before the response was complete.
func (a *attempt) OnAbort(why stream.Abort, err error) {
	a.up = nil
	x := a.x
	if !a.headed {
		a.report(0, true)
	}
	headed, reused, ep := a.headed, a.reused, a.t.ep
	a.close()
	if x == nil || x.current != a && x.current != nil {
		return
	}
	x.current = nil
	x.rec.upstreamError = err
	reason := abortReason(why, headed)
	if x.responded {
		x.rec.fail(reason)
		x.finishReset()
		return
	}
	if why == stream.AbortRefused && reused && x.resends < resendsMax && x.safeToResend() {
		x.resends++
		x.attempt()
		return
	}
	cond := plan.OnReset | plan.On5xx | plan.OnGatewayError
	if why == stream.AbortRefused {
		cond |= plan.OnRefusedStream
	}
	if !headed && why != stream.AbortProtocol {
		cond |= plan.OnResetBeforeRequest & conditionIf(why == stream.AbortRefused)
	}
	x.again(ep, cond, reason)
}

func conditionIf(ok bool) plan.RetryOn {
	if ok {
		return ^plan.RetryOn(0)
	}
	return 0
}

func abortReason(why stream.Abort, headed bool) telemetry.Reason {
	switch why {
	case stream.AbortProtocol, stream.AbortTooLarge:
		return telemetry.UpstreamProtocolError
	case stream.AbortTimeout:
		return telemetry.RequestTimeout
	}
	if headed {
		return telemetry.UpstreamCut
	}
	return telemetry.UpstreamReset
}

// OnDrain: the upstream reads again.
func (a *attempt) OnDrain() {
	if a.x != nil && !a.x.ended {
		a.x.down.Resume()
	}
}

func (a *attempt) onPerTry() {
	x := a.x
	if a.done || x == nil || x.current != a {
		return
	}
	x.current = nil
	ep := a.t.ep
	a.report(504, false)
	a.abandon(stream.AbortTimeout)
	x.again(ep, plan.On5xx|plan.OnGatewayError|plan.OnReset, telemetry.PerTryTimeout)
}

// report tells outlier detection how it went.
func (a *attempt) report(status int, local bool) {
	if a.t.ep != nil {
		a.t.ep.Report(a.w.loop.Now(), balance.Outcome{Status: status, LocalFailure: local})
	}
}

// abandon ends the attempt with the upstream told.
func (a *attempt) abandon(why stream.Abort) {
	if a.done {
		return
	}
	if a.pool != nil {
		a.pool.forget(a)
	}
	up := a.up
	a.close()
	if up != nil {
		up.Reset(why)
	}
}

func (a *attempt) abandonUnless(ended bool) {
	if ended {
		a.close()
		return
	}
	a.abandon(stream.AbortLocal)
}

// close ends the attempt's own business.
func (a *attempt) close() {
	if a.done {
		return
	}
	a.done = true
	if a.began {
		a.t.ep.End()
	}
	a.w.giveLater(a)
}

// mayRetry reports whether a response is one to be asked for again.
func (x *exchange) mayRetry(a *attempt, status, grpc int) bool {
	r := x.retryPolicy()
	if r == nil || !x.canResend() {
		return false
	}
	on := r.On
	hit := on&plan.On5xx != 0 && status >= 500 ||
		on&plan.OnGatewayError != 0 && status >= 502 && status <= 504 ||
		on&plan.OnRetriable4xx != 0 && status == 409 ||
		on&plan.OnStatusCodes != 0 && x.rule.RetriesStatus(status) ||
		grpc > 0 && on&grpcCondition(grpc) != 0
	if !hit {
		return false
	}
	return x.takeRetry(a.t.ep)
}

func grpcCondition(code int) plan.RetryOn {
	switch code {
	case 1:
		return plan.OnGRPCCancelled
	case 4:
		return plan.OnGRPCDeadlineExceeded
	case 8:
		return plan.OnGRPCResourceExhausted
	case 13:
		return plan.OnGRPCInternal
	case 14:
		return plan.OnGRPCUnavailable
	}
	return 0
}

// canResend reports whether the request as a whole can be sent another time.
func (x *exchange) canResend() bool {
	return !x.responded && !x.over && (x.keeping || x.rec.received == 0) && len(x.body) <= retryBytes
}

// safeToResend reports whether a request on a connection that turned out to be closed may be repeated unasked
// (RFC 9110 section 9.2.2).
func (x *exchange) safeToResend() bool {
	if !x.canResend() {
		return false
	}
	switch string(x.req.Method()) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// takeRetry counts one more attempt, if policy and cluster permit.
func (x *exchange) takeRetry(*balance.Endpoint) bool {
	r := x.retryPolicy()
	if r == nil || x.tries >= r.Attempts {
		if r != nil && r.Attempts > 0 {
			x.rec.flag(telemetry.RetriesExhausted)
		}
		return false
	}
	if !x.cluster.AcquireRetry() {
		x.rec.flag(telemetry.PendingOverflow)
		return false
	}
	x.tries++
	return true
}

// again sends the request another time if one of the conditions allows it, and answers it otherwise.
func (x *exchange) again(ep *balance.Endpoint, happened plan.RetryOn, why telemetry.Reason) {
	r := x.retryPolicy()
	if r != nil && r.On&happened != 0 && x.canResend() && x.takeRetry(ep) {
		x.retry(ep)
		return
	}
	x.answer(why, max(why.Status(), 500), why.Doc())
}

// retry waits a little and starts the next attempt.
func (x *exchange) retry(ep *balance.Endpoint) {
	r := x.retryPolicy()
	if ep != nil && r.AvoidPrevious {
		x.tried = append(x.tried, ep)
	}
	base := r.Backoff
	if base == 0 {
		base = backoffBase
	}
	spread := min(base*time.Duration(1<<min(x.tries, 10)-1), base*backoffFactor)
	x.park(time.Duration(x.w.rnd.Int64N(int64(spread))), func(x *exchange) {
		x.cluster.ReleaseRetry()
		x.attempt()
	})
}
