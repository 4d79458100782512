package proxy

import (
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/telemetry"
)

// The waits between attempts, Envoy's defaults.
const (
	backoffBase   = 25 * time.Millisecond
	backoffFactor = 10 // the longest wait in base intervals
)

// resendsMax is how often a request is repeated because the pooled connection it was sent on had been closed.
const resendsMax = 2

func (x *exchange) retryPolicy() *plan.Retry {
	if x.rule == nil {
		return nil
	}
	return x.rule.Plan.Retry
}

// mayRetry reports whether a response is one to be asked for again.
func (x *exchange) mayRetry(status, grpc int) bool {
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
