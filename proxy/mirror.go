package proxy

import (
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/proxy/table"
	"github.com/lateen-mesh/lateen/telemetry"
)

// mirrorsMax bounds the copies of requests that one worker has under way; beyond it none are made.
const mirrorsMax = 256

// mirrored is a copy of a request whose answer nobody waits for. Only the head
// and what had arrived of the body by then can be copied without holding up the
// original, so requests are copied when they are complete or their body is
// small; others are copied without their body being kept for long: a copy is
// made of the first retryBytes at most, and not at all of a longer one.
type mirrored struct {
	w    *worker
	req  stream.Head
	body []byte
}

// mirror starts the copies that the rule orders. Bodies that are still on their way are not mirrored.
func (x *exchange) mirror() {
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

// mirrorBody starts the copies that waited for the end of the request's body.
func (x *exchange) mirrorBody() {
	for _, c := range x.copies {
		x.w.sendCopy(x, c)
	}
	x.copies = x.copies[:0]
}

func (w *worker) sendCopy(x *exchange, c *table.Choice) {
	if c.Cluster == nil {
		return
	}
	t, why := w.target(c.Cluster, x.d.s.dst, pick{})
	if why != telemetry.None {
		return
	}
	t.http2 = x.wantsHTTP2Of(c.Cluster)
	m := &mirrored{w: w, body: append([]byte(nil), x.copyBody...)}
	m.req.CopyFrom(&x.req)
	a := w.takeAttempt()
	a.copied, a.t, a.started = m, t, w.loop.Now()
	w.mirrors++
	w.acquire(t, a)
}

// connected sends the copy.
func (m *mirrored) connected(a *attempt) {
	a.sendHead(&m.req, len(m.body) == 0)
	if len(m.body) > 0 && a.up != nil {
		a.up.SendData(m.body, true)
	}
}
