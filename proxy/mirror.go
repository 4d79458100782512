package proxy

import (
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/proxy/table"
	"github.com/lateen-mesh/lateen/telemetry"
)

const (
	// mirrorsMax bounds the copies of requests that one worker has under way; beyond it none are made.
	mirrorsMax = 256
	// mirrorWait bounds the life of a copy whose rule has no timeout.
	mirrorWait = 15 * time.Second
)

// mirrored is a copy of a request whose answer nobody waits for. It is sent when
// the original is complete, so that it never holds the original up; a request
// whose body is longer than retryBytes is not copied.
type mirrored struct {
	w    *worker
	req  stream.Head
	body []byte
}

// mirror starts the copies that the rule orders, or has them wait for the end of the body. What has come of it before, while
// the request waited for its orders or for a delay, is x.body.
func (x *exchange) mirror() {
	if x.req.Upgrade || string(x.req.Method()) == "CONNECT" {
		return // a tunnel is a conversation: a copy of one side says nothing
	}
	if len(x.rule.Mirrors) == 0 || len(x.body) > retryBytes {
		return
	}
	x.copyBody = append(x.copyBody, x.body...)
	for i := range x.rule.Mirrors {
		m := &x.rule.Mirrors[i]
		if !x.w.chance(m.Percent) || x.w.mirrors >= mirrorsMax {
			continue
		}
		if x.ended {
			x.w.sendCopy(x, m.Choice)
			continue
		}
		x.copies = append(x.copies, m.Choice)
	}
}

// copyData keeps body bytes for the copies; a body that is too long is not mirrored.
func (x *exchange) copyData(p []byte, end bool) {
	if len(x.copyBody)+len(p) > retryBytes {
		x.copies, x.copyBody = x.copies[:0], nil
		return
	}
	x.copyBody = append(x.copyBody, p...)
	if end {
		x.mirrorBody()
	}
}

// mirrorBody starts the copies that waited for the end of the request's body.
func (x *exchange) mirrorBody() {
	for _, c := range x.copies {
		x.w.sendCopy(x, c)
	}
	x.copies, x.copyBody = x.copies[:0], nil
}

func (w *worker) sendCopy(x *exchange, c *table.Choice) {
	if c.Cluster == nil {
		return
	}
	t, why := w.target(c.Cluster, x.d.s.dst, pick{})
	if why != telemetry.None {
		return
	}
	t.http2, t.mux = x.wantsHTTP2Of(c.Cluster), true
	t.tell(x.d.s)
	m := &mirrored{w: w, body: append([]byte(nil), x.copyBody...)}
	m.req.CopyFrom(&x.req)
	w.scratch = appendShadow(w.scratch[:0], x.req.Authority())
	m.req.SetAuthority(w.scratch)
	if x.d.s.listener.Plan.Direction != plan.Inbound {
		m.req.SetString("x-envoy-attempt-count", "1")
	}
	a := w.takeAttempt()
	a.copied, a.t = m, t
	wait := x.rule.Plan.Timeout
	if wait == 0 {
		wait = mirrorWait
	}
	a.perTry.Reset(wait)
	w.mirrors++
	w.acquire(t, a)
}

// appendShadow appends the host that a copy bears: its service can tell by -shadow that it is one, as with Istio.
func appendShadow(dst, authority []byte) []byte {
	host, _ := splitHost(authority)
	dst = append(append(dst, host...), "-shadow"...)
	return append(dst, authority[len(host):]...)
}

// connected sends the copy.
func (m *mirrored) connected(a *attempt) {
	a.sendHead(&m.req, len(m.body) == 0)
	if len(m.body) > 0 && a.up != nil {
		a.up.SendData(m.body, true)
	}
}
