package proxy

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
)

// The waits between attempts, Envoy's defaults.
const (
	backoffBase   = 25 * time.Millisecond
	backoffFactor = 10 // the longest wait in base intervals
)

// resendsMax is how often a request is sent again, without being asked for by a policy, because the pooled connection that it
// was sent on had been closed before it came.
const resendsMax = 2

// attemptsMax bounds the attempts beyond the first that a request may order.
const attemptsMax = 25

// onNoConnection are the conditions of which one is met where no connection can be made.
const onNoConnection = plan.OnConnectFailure | plan.OnReset | plan.OnResetBeforeRequest | plan.On5xx | plan.OnGatewayError

// orders is what a request orders of its proxy, in place of what its route says (Envoy, "Router", HTTP headers).
type orders struct {
	timeout time.Duration // 0: none
	timed   bool          // there is one
	retry   *plan.Retry   // nil: as the route says
}

// orderPrefixes begin the names of all fields with orders.
var orderPrefixes = [...]string{"x-envoy-upstream-rq-", "x-envoy-ret", "x-envoy-max-"}

// takeOrders reads the orders of a request, and takes them out of it: they are for the first proxy. Mostly there are none.
func (x *exchange) takeOrders(h *stream.Head) {
	for i := range h.Len() {
		name, _ := h.At(i)
		for _, prefix := range orderPrefixes {
			if len(name) > len(prefix) && stream.EqualFold(name[:len(prefix)], prefix) {
				x.readOrders(h)
				return
			}
		}
	}
}

func (x *exchange) readOrders(h *stream.Head) {
	take := func(name string) (string, bool) {
		value, has := h.Get(name)
		text := string(value)
		if has {
			h.Del(name)
		}
		return text, has
	}
	number := func(name string) (int, bool) {
		text, has := take(name)
		n, err := strconv.ParseUint(text, 10, 31)
		return int(n), has && err == nil
	}
	if ms, ok := number("x-envoy-upstream-rq-timeout-ms"); ok {
		x.orders.timeout, x.orders.timed = time.Duration(ms)*time.Millisecond, true
	}
	r := plan.Retry{Attempts: 1} // Envoy's default where the route has none
	if own := x.rule.Plan.Retry; own != nil && own.Attempts > 0 {
		r = *own
	}
	perTry, hasTry := number("x-envoy-upstream-rq-per-try-timeout-ms")
	if hasTry {
		r.PerTryTimeout = time.Duration(perTry) * time.Millisecond
	}
	on, hasOn := take("x-envoy-retry-on")
	grpc, hasGRPC := take("x-envoy-retry-grpc-on")
	for name := range strings.SplitSeq(on+","+grpc, ",") {
		if i := slices.Index(plan.RetryOnNames, strings.TrimSpace(name)); i >= 0 {
			r.On |= 1 << i
		}
	}
	codes, hasCodes := take("x-envoy-retriable-status-codes")
	for text := range strings.SplitSeq(codes, ",") {
		if code, err := strconv.Atoi(strings.TrimSpace(text)); err == nil {
			r.StatusCodes = append(slices.Clip(r.StatusCodes), code)
		}
	}
	most, hasMost := number("x-envoy-max-retries")
	if hasMost {
		r.Attempts = min(most, attemptsMax)
	}
	if hasTry || r.On != 0 && (hasOn || hasGRPC || hasCodes || hasMost) {
		x.orders.retry = &r
	}
}

// retryPolicy is the request's, or that of its route; nil: there is none.
func (x *exchange) retryPolicy() *plan.Retry {
	switch {
	case x.orders.retry != nil:
		return x.orders.retry
	case x.rule != nil:
		return x.rule.Plan.Retry
	}
	return nil
}

// mayRetry reports whether a response is one to be asked for again. unanswered: it stands for none; see attempt.unanswered.
func (x *exchange) mayRetry(status, grpc int, unanswered bool) bool {
	r := x.retryPolicy()
	if r == nil || !x.canResend() {
		return false
	}
	on := r.On
	hit := on&plan.On5xx != 0 && status >= 500 ||
		on&plan.OnGatewayError != 0 && status >= 502 && status <= 504 ||
		on&plan.OnRetriable4xx != 0 && status == 409 ||
		on&plan.OnStatusCodes != 0 && slices.Contains(r.StatusCodes, status) ||
		grpc > 0 && on&grpcCondition(grpc) != 0 ||
		unanswered && on&plan.OnRefusedStream != 0 && x.takeRepeat()
	return hit && x.takeRetry()
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

// mayLeave reports whether the request may go to another endpoint than the one that it waits for a connection with, and
// there is one.
func (x *exchange) mayLeave() bool {
	r := x.retryPolicy()
	return r != nil && r.On&onNoConnection != 0 && x.tries < r.Attempts && x.canResend() && x.cluster.Elsewhere(x.tried, x.w.loop.Now())
}

// canResend reports whether the request as a whole can be sent another time.
func (x *exchange) canResend() bool { return !x.responded && !x.over && !x.dropped }

// idempotent reports whether the request may be repeated unasked (RFC 9110 section 9.2.2).
func (x *exchange) idempotent() bool {
	switch string(x.req.Method()) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// takeRepeat reports whether the request may be sent again although it may have been done: once, if its method is idempotent,
// since nobody is to repeat a repetition (RFC 9110 section 9.2.2). That of another proxy of the mesh is left to that, whose
// policy is the client's.
func (x *exchange) takeRepeat() bool {
	if x.repeated || x.d.s.meshed || !x.idempotent() {
		return false
	}
	x.repeated = true
	return true
}

// takeRetry counts one more attempt, if policy and cluster permit. The exchange holds one retry of its cluster's
// limit from its first one to its end.
func (x *exchange) takeRetry() bool {
	r := x.retryPolicy()
	if x.tries >= r.Attempts {
		if r.Attempts > 0 {
			x.rec.flag(telemetry.RetriesExhausted)
		}
		return false
	}
	if !x.holdsRetry && !x.cluster.AcquireRetry() {
		x.rec.flag(telemetry.PendingOverflow)
		return false
	}
	x.holdsRetry = true
	x.tries++
	return true
}

// startPerTry bounds the attempt under way, once the request is complete and there is a connection for it: neither a slow
// client nor a slow handshake makes it fail (as with Envoy).
func (x *exchange) startPerTry() {
	r, a := x.retryPolicy(), x.current
	if r != nil && r.PerTryTimeout > 0 && a != nil && a.up != nil && !a.headed {
		a.perTry.Reset(r.PerTryTimeout)
	}
}

// again sends the request another time if one of the conditions allows it, and answers it otherwise.
func (x *exchange) again(ep *balance.Endpoint, happened plan.RetryOn, why telemetry.Reason) {
	r := x.retryPolicy()
	if r != nil && r.On&happened != 0 && x.canResend() && x.takeRetry() {
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
	if base <= 0 {
		base = backoffBase
	}
	x.hold()
	spread := min(base*time.Duration(1<<min(x.tries, 10)-1), base*backoffFactor)
	x.park(time.Duration(x.w.rnd.Int64N(int64(spread))), (*exchange).attempt)
}
