package proxy

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
)

// reasonField tells in a response of our own why the proxy answered.
const reasonField = "x-lateen-reason"

// answer ends the exchange with a response of the proxy's own. A gRPC request
// gets it as a gRPC status (gRPC over HTTP/2, "Responses").
func (x *exchange) answer(why telemetry.Reason, status int, text string) {
	x.answerWith(why, status, text, nil)
}

// answerWith is answer with more fields.
func (x *exchange) answerWith(why telemetry.Reason, status int, text string, add func(*stream.Head)) {
	if x.over || x.responded {
		return
	}
	x.dropAttempt(stream.AbortLocal)
	x.identify()
	x.responded = true
	x.rec.fail(why)
	x.rec.local = true
	if x.grpc && status >= 400 {
		x.sendGRPC(why, telemetry.GRPCFromHTTP(status).Code(), text)
		return
	}
	h := x.w.responseHead(status)
	if add != nil {
		add(h)
	}
	h.AddString(reasonField, why.String())
	body := []byte(text)
	if status < 200 || status == 204 || status == 304 {
		body = nil
	} else {
		h.ContentLength = int64(len(body))
		if len(body) > 0 {
			h.AddString("content-type", "text/plain")
		}
	}
	x.finishLocal(h, body)
}

// finishLocal dates, edits and sends a response of our own.
func (x *exchange) finishLocal(h *stream.Head, body []byte) {
	h.Add([]byte("date"), x.w.date.line(x.w.loop.Now()))
	x.editResponse(h)
	x.rec.status = h.Status
	end := len(body) == 0 || string(x.req.Method()) == "HEAD"
	x.down.SendHead(h, end)
	if !end {
		x.rec.sent += int64(len(body))
		x.down.SendData(body, true)
	}
	x.finish()
}

// answerGRPC ends the exchange of a gRPC request with a status.
func (x *exchange) answerGRPC(why telemetry.Reason, code int, text string) {
	if x.over || x.responded {
		return
	}
	x.dropAttempt(stream.AbortLocal)
	x.identify()
	x.responded = true
	x.rec.fail(why)
	x.rec.local = true
	x.sendGRPC(why, code, text)
}

func (x *exchange) sendGRPC(why telemetry.Reason, code int, text string) {
	h := x.w.responseHead(200)
	h.AddString("content-type", "application/grpc")
	h.AddString("grpc-status", strconv.Itoa(code))
	if text != "" {
		h.AddString("grpc-message", percentEncode(text))
	}
	h.AddString(reasonField, why.String())
	x.rec.grpcStatus = code
	x.finishLocal(h, nil)
}

// percentEncode makes a text fit for grpc-message.
func percentEncode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// redirect answers with the rule's redirect.
func (x *exchange) redirect() {
	location := x.rule.Location(nil, &x.query)
	x.answerWith(telemetry.Redirect, x.rule.Plan.Redirect.Code, "", func(h *stream.Head) { h.Add([]byte("location"), location) })
}

// redirectHTTPS sends the client to the same place over TLS. As with Envoy (require_tls) the authority stays as the
// client wrote it, port included: whoever serves plaintext on a port of his own redirects by a rule, which can name one.
func (x *exchange) redirectHTTPS() {
	location := "https://" + string(x.req.Authority()) + string(x.req.Path())
	x.answerWith(telemetry.Redirect, 301, "", func(h *stream.Head) { h.AddString("location", location) })
}

// respond sends the upstream's response head on.
func (x *exchange) respond(a *attempt, h *stream.Head, end bool) {
	x.responded = true
	connect := string(x.req.Method()) == "CONNECT" && h.Status >= 200 && h.Status < 300
	if x.tunnel = connect || x.req.Upgrade && h.Status == 101; x.tunnel {
		x.timeout.Stop()
	}
	x.dropped = true
	x.w.bodies.give(x.body)
	x.body = nil
	x.rec.upstream(x, a, h, end)
	if !a.t.peer() {
		h.Del(reasonField) // only a proxy of the mesh may say why
	}
	if !x.rec.completed.IsZero() { // as Envoy: of an answer to half a request it says nothing
		x.w.scratch = strconv.AppendInt(x.w.scratch[:0], x.rec.responded.Sub(x.rec.completed).Milliseconds(), 10)
		h.SetLine("x-envoy-upstream-service-time", x.w.scratch)
	}
	if _, dated := h.Get("date"); !dated { // RFC 9110 section 6.6.1
		h.Add([]byte("date"), x.w.date.line(x.w.loop.Now()))
	}
	x.editResponse(h)
	x.down.SendHead(h, end)
	if x.current == a && x.down.Full() {
		a.up.Pause()
	}
}

// editResponse makes the changes that configuration orders to a response's head.
func (x *exchange) editResponse(h *stream.Head) {
	http := x.d.http
	if x.rule != nil && x.rule.Response != nil {
		x.rule.Response.Apply(h, x)
	}
	if x.choice != nil && x.choice.Response != nil {
		x.choice.Response.Apply(h, x)
	}
	if x.rule != nil {
		if x.rule.Plan.CORS != nil {
			x.corsResponse(h)
		}
	}
	if http.ServerName != "" {
		h.Set("server", []byte(http.ServerName))
	}
	x.hashCookie(h)
	x.peerResponse(h)
}

// cors answers a preflight request (Fetch standard, section 3.2.2) and reports whether it did.
func (x *exchange) cors() bool {
	c := x.rule.Plan.CORS
	origin, has := x.req.Get("origin")
	if !has || string(x.req.Method()) != "OPTIONS" {
		return false
	}
	if _, preflight := x.req.Get("access-control-request-method"); !preflight {
		return false
	}
	if !x.rule.AllowsOrigin(origin) {
		if c.ForwardUnmatched {
			return false
		}
		x.answer(telemetry.DirectResponse, 200, "")
		return true
	}
	x.answerWith(telemetry.DirectResponse, 200, "", func(h *stream.Head) {
		// Everything (*) is said by repeating the question: to a request with credentials a * means nothing else.
		join := func(name string, values []string, asked string) {
			text := strings.Join(values, ",")
			if question, has := x.req.Get(asked); has && text == "*" {
				text = string(question)
			}
			if text != "" {
				h.AddString(name, text)
			}
		}
		join("access-control-allow-methods", c.AllowMethods, "access-control-request-method")
		join("access-control-allow-headers", c.AllowHeaders, "access-control-request-headers")
		if c.MaxAge > 0 {
			h.AddString("access-control-max-age", strconv.Itoa(int(c.MaxAge.Seconds())))
		}
	})
	return true
}

// corsResponse adds what a browser must see to let a page read the response.
func (x *exchange) corsResponse(h *stream.Head) {
	c := x.rule.Plan.CORS
	origin, has := x.req.Get("origin")
	if !has || !x.rule.AllowsOrigin(origin) {
		return
	}
	h.Set("access-control-allow-origin", origin)
	if c.AllowCredentials {
		h.Set("access-control-allow-credentials", []byte("true"))
	}
	if len(c.ExposeHeaders) > 0 {
		h.Set("access-control-expose-headers", []byte(strings.Join(c.ExposeHeaders, ",")))
	}
}

// responseHead is the worker's head for responses of our own.
func (w *worker) responseHead(status int) *stream.Head {
	w.own.Reset()
	w.own.Status = status
	return &w.own
}

// date is the value of the field Date (RFC 9110 section 6.6.1), which is made once a second.
type date struct {
	second int64
	text   []byte
}

func (d *date) line(now time.Time) []byte {
	if s := now.Unix(); s != d.second || d.text == nil {
		d.second, d.text = s, now.UTC().AppendFormat(d.text[:0], http.TimeFormat)
	}
	return d.text
}
