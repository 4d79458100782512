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

// attempt is one sending of a request to one endpoint; it receives the
// response. Attempts are reused, so after close nothing of one may be read.
type attempt struct {
	w      *worker
	perTry loop.Timer // of a copy: for all of it
	sending
}

// sending is what begins anew with each attempt.
type sending struct {
	x       *exchange // nil for copies that nobody waits for
	t       target
	up      stream.Sender
	conn    *upstream
	pool    *pool // while waiting for a connection
	copied  *mirrored
	started time.Time
	reused  bool // the connection has served before
	began   bool // counted as active at the endpoint
	lane    lane // on a connection that is shared
	headed  bool // the response's head has arrived
	done    bool
}

func (w *worker) takeAttempt() *attempt {
	a := w.attempts.take(w.loop.Now())
	if a == nil {
		a = &attempt{w: w}
		a.perTry.Init(w.loop, a.onPerTry)
	}
	a.sending = sending{started: w.loop.Now()}
	return a
}

// ready is told by the pool that there is a connection.
func (a *attempt) ready(u *upstream, reused bool) {
	a.pool, a.reused, a.conn = nil, reused, u
	if a.up = u.open(a); a.up == nil {
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
	if x := a.x; x != nil && x.d.s.listener.Plan.Direction != plan.Inbound {
		a.w.scratch = strconv.AppendInt(a.w.scratch[:0], int64(x.tries+x.resends+1), 10)
		h.SetLine("x-envoy-attempt-count", a.w.scratch)
	}
	if a.x != nil && h.Upgrade {
		a.askUpgrade(h)
	}
	a.up.SendHead(h, end)
}

// failed is told by the pool that there is no connection.
func (a *attempt) failed(why telemetry.Reason, err error) {
	a.pool = nil
	x, ep := a.x, a.t.ep
	overflow := why == telemetry.PendingOverflow || why == telemetry.ConnectionLimit
	if !overflow {
		a.report(0, true)
	}
	a.close()
	if x == nil {
		return
	}
	x.current = nil
	x.rec.upstreamError = err
	if overflow { // more requests would make it worse
		x.answer(why, why.Status(), why.Doc())
		return
	}
	if why == telemetry.ConnectRefused && x.refuse(why) {
		return
	}
	x.again(ep, onNoConnection, why)
}

// OnInterim passes a 1xx response on.
func (a *attempt) OnInterim(h *stream.Head) {
	if x := a.x; x != nil && !x.responded {
		x.down.SendInterim(h)
	}
}

// OnHead takes the response's head: it is sent on, or the request is sent again.
func (a *attempt) OnHead(h *stream.Head, end bool) {
	a.headed = true
	a.report(h.Status, false)
	x := a.x
	if x == nil {
		if end {
			a.close()
		}
		return
	}
	a.perTry.Stop()
	if x.req.Upgrade {
		if err := a.checkUpgrade(h); err != nil {
			x.current = nil
			a.abandon(stream.AbortProtocol)
			x.rec.upstreamError = err
			x.answer(telemetry.UpstreamProtocolError, 502, err.Error())
			return
		}
	}
	grpc := -1
	if v, ok := h.Get("grpc-status"); ok {
		grpc = atoi(v)
	}
	if x.mayRetry(h.Status, grpc, a.unanswered(h)) {
		x.current = nil
		ep := a.t.ep
		if end {
			a.close()
		} else {
			a.abandon(stream.AbortLocal)
		}
		x.retry(ep)
		return
	}
	if end {
		x.current = nil
		x.respond(a, h, true)
		a.close()
		x.finish()
		return
	}
	x.respond(a, h, false)
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
	if end && x.tunnel && !x.ended {
		x.upEnded = true // the other way goes on
		x.down.SendData(p, true)
		return
	}
	if end {
		x.current = nil
		a.close()
		x.down.SendData(p, true)
		x.finish()
		return
	}
	x.down.SendData(p, false)
	if x.current == a && x.down.Full() {
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
	x.current = nil
	a.close()
	x.down.SendTrailers(h)
	x.finish()
}

// OnAbort: the upstream ended the exchange before the response was complete.
func (a *attempt) OnAbort(why stream.Abort, err error) {
	if a.done {
		return
	}
	if !a.headed {
		a.report(0, true)
	}
	x, ep := a.x, a.t.ep
	reason := a.abortReason(why, err)
	untouched, ended := a.untouched(why), a.endedUnder(why, err)
	missed := untouched && (a.reused || a.conn.mux != nil) && !refusedStream(err)
	a.close()
	if x == nil || x.current != a {
		return
	}
	x.current = nil
	x.rec.upstreamError = err
	if x.responded {
		x.rec.fail(reason)
		x.finishReset()
		return
	}
	if missed && x.resends < resendsMax && x.canResend() {
		x.resends++
		if ep != nil {
			x.tried = append(x.tried, ep) // another one, if there is any
		}
		x.attempt()
		return
	}
	if untouched && x.refuse(reason) {
		return
	}
	cond := plan.OnReset | plan.On5xx | plan.OnGatewayError
	switch {
	case untouched:
		cond |= plan.OnRefusedStream | plan.OnResetBeforeRequest
	case ended && x.takeRepeat():
		cond |= plan.OnRefusedStream
	}
	x.again(ep, cond, reason)
}

// untouched reports whether it is certain that the server has done nothing of what was asked for: HTTP/2 says so; of HTTP/1
// one knows if the server had ended the connection before the request came to it.
func (a *attempt) untouched(why stream.Abort) bool {
	return why == stream.AbortRefused && (a.conn.h2 != nil || a.conn.c.Untaken())
}

// endedUnder reports whether the attempt's connection, and not its stream alone, ended before it was answered, and probably
// not because of it: one that has served before may have been closed just then, and one to a proxy does not end because of
// what is in a request.
func (a *attempt) endedUnder(why stream.Abort, err error) bool {
	switch {
	case a.headed || !a.reused && a.conn.silence == nil:
		return false
	case a.conn.h2 == nil:
		return why == stream.AbortRefused
	}
	return endOfConnection(why, err)
}

// unanswered reports whether a response says that the application's connection ended before it had answered, so that nobody
// knows what was done. A proxy of the mesh says so, and leaves it to that of the client to repeat the request.
func (a *attempt) unanswered(h *stream.Head) bool {
	if h.Status != telemetry.UpstreamClosed.Status() || !a.t.peer() {
		return false
	}
	why, _ := h.Get(reasonField)
	return string(why) == telemetry.UpstreamClosed.String()
}

// abortReason names the end of an attempt as Envoy would.
func (a *attempt) abortReason(why stream.Abort, err error) telemetry.Reason {
	h2 := a.conn != nil && a.conn.h2 != nil && a.conn.mux == nil
	switch {
	case why == stream.AbortRefused && a.conn != nil && a.conn.h2 != nil && !a.headed:
		return telemetry.UpstreamRefusedStream
	case why == stream.AbortProtocol || why == stream.AbortTooLarge:
		return telemetry.UpstreamProtocolError
	case why == stream.AbortTimeout:
		return telemetry.RequestTimeout
	case a.headed:
		return telemetry.UpstreamCut
	case !h2 || endOfConnection(why, err):
		return telemetry.UpstreamClosed
	}
	return telemetry.UpstreamReset
}

// OnDrain: the upstream reads again.
func (a *attempt) OnDrain() {
	if a.x != nil && !a.x.ended {
		a.x.down.Resume()
	}
}

// onPerTry ends an attempt that takes too long.
func (a *attempt) onPerTry() {
	x := a.x
	switch {
	case a.done:
		return
	case x == nil:
		a.abandon(stream.AbortTimeout)
		return
	case x.current != a:
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
	up, u, started := a.up, a.conn, a.started
	a.up = nil
	a.close()
	if up != nil {
		up.Reset(why)
		up.Release()
		u.gaveUp(why, started)
	}
}

// close ends the attempt's own business and gives it back.
func (a *attempt) close() {
	if a.done {
		return
	}
	if a.began {
		a.t.ep.End()
	}
	if a.copied != nil {
		a.w.mirrors--
	}
	a.perTry.Stop()
	if a.up != nil {
		a.up.Release()
		a.conn.answered()
	}
	l := a.lane
	a.sending = sending{done: true}
	a.w.attempts.give(a.w.loop.Now(), a)
	l.leave()
}
