package proxy

import (
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/http1"
	"github.com/lateen-mesh/lateen/proxy/http2"
	"github.com/lateen-mesh/lateen/proxy/loop"
)

const (
	// downstreamIdle closes a client's connection without requests, Istio's default.
	downstreamIdle = time.Hour
	// headWait is how long a request's head may take to arrive whole.
	headWait = 60 * time.Second
	// lingerWait is how long a connection whose last word has been said waits for its peer to close.
	lingerWait = 2 * time.Second
	// drainQuiet is how long a connection must have been without requests before a drain closes it: in one that is
	// in use the next request may be under way already, and is answered. Where there is time (Config.DrainLeast), all but
	// drainLast of that is waited for.
	drainLast  = time.Second
	drainQuiet = 200 * time.Millisecond
)

// downstream is a client's connection that speaks HTTP.
type downstream struct {
	w      *worker
	s      *session
	c      *loop.Conn
	http   *plan.HTTP
	h1     *http1.ServerConn
	h2     *http2.ServerConn
	rec    *connRecord
	route  string        // the name of the last route that was looked up by host
	used   time.Duration // as the loop counts
	active int32         // exchanges
	mux    bool          // what h2 carries are requests of HTTP/1.1
	linger bool
}

// serve speaks HTTP on a session's connection.
func (w *worker) serve(s *session, g guess) {
	d := &downstream{w: w, s: s, c: s.c, http: s.chain.Plan.HTTP, used: w.loop.Elapsed(), rec: newConnRecord(s)}
	w.downstreams[d] = struct{}{}
	s.end()
	if g == guessHTTP2 {
		cfg := w.h2Server()
		if d.mux = s.mux; d.mux {
			cfg = w.h2Mux()
		}
		d.h2 = http2.NewServerConn(s.c, d, cfg, d)
		s.c.SetHandler(h2Server{d})
	} else {
		d.h1 = w.h1.NewServerConn(s.c, d, d)
		s.c.SetHandler(h1Server{d})
	}
	s.c.ResumeRead()
}

// refresh brings the connection up to the plan in force; see session.refresh.
func (d *downstream) refresh() bool {
	ok := d.s.refresh()
	if h := d.s.chain.Plan.HTTP; h != nil {
		d.http = h
	}
	return ok
}

// routeName is the name of the route for a host; requests of one connection mostly ask for the same one.
func (d *downstream) routeName(host []byte) string {
	w := d.w
	w.name = appendLower(w.name[:0], host)
	w.name = appendPort(append(w.name, ':'), d.s.dst.Port())
	if d.route != string(w.name) {
		d.route = string(w.name)
	}
	return d.route
}

// exchangeOver is told when an exchange has ended.
func (d *downstream) exchangeOver() {
	d.active--
	d.used = d.w.loop.Elapsed()
}

// drain lets the client finish what is open and take its next requests elsewhere. An idle HTTP/1 connection is left
// to sweep, and a new connection is served once: a client that finds it closed, or closing, before its first request
// takes that for a failure.
func (d *downstream) drain() {
	switch {
	case d.h2 != nil:
		d.h2.Drain()
	case !d.h1.Idle():
		d.h1.Drain()
	}
}

// OnIdle: the client's turn.
func (d *downstream) OnIdle(*http1.ServerConn) { d.used = d.w.loop.Elapsed() }

// AppendRefusal says when the codec refused, why and in whose name, as answers of our own do (finishLocal).
func (d *downstream) AppendRefusal(out []byte, f http1.Fault) []byte {
	line := func(name, value string) {
		out = append(append(append(append(out, name...), ": "...), value...), "\r\n"...)
	}
	line("date", string(d.w.date.line(d.w.loop.Now())))
	line(reasonField, invalidReason(f.Status()).String())
	if d.http.ServerName != "" {
		line("server", d.http.ServerName)
	}
	return out
}

// OnRefused: the codec has answered what was no request.
func (d *downstream) OnRefused(_ *http1.ServerConn, f http1.Fault) { d.w.recordBadRequest(d, f) }

// OnFault notes what the client did wrong on an HTTP/2 connection.
func (d *downstream) OnFault(_ *http2.ServerConn, err *http2.Error) { d.w.recordFault(d, err) }

// OnLinger: all has been said.
func (d *downstream) OnLinger(*http1.ServerConn) {
	d.linger = true
	d.used = d.w.loop.Elapsed()
}

// sweep closes the connection if it has been idle for too long.
func (d *downstream) sweep(now time.Duration) {
	if d.h2 != nil {
		d.h2.Tick()
	}
	idle := d.http.IdleTimeout
	if idle == 0 {
		idle = downstreamIdle
	}
	switch {
	case d.linger:
		idle = lingerWait
	case d.active > 0:
		return
	case d.h1 != nil && !d.h1.Idle():
		idle = headWait
	case d.h1 != nil && d.w.draining:
		idle = d.w.quiet
	case d.h2 != nil && d.w.draining && now-d.used >= drainQuiet:
		d.h2.Drain()
	case d.h2 != nil && now-d.used >= idle:
		d.h2.Drain() // a request may be under way
		idle += lingerWait
	}
	if now-d.used >= idle {
		d.c.Close()
	}
}

func (d *downstream) gone() {
	delete(d.w.downstreams, d)
	d.s.left = true
	d.w.connectionGone()
}

// h1Server and h2Server are the loop's handlers of a client's connection.
type (
	h1Server struct{ *downstream }
	h2Server struct{ *downstream }
)

func (h h1Server) OnData(_ *loop.Conn, p []byte) int {
	if h.h1.Idle() {
		h.used = h.w.loop.Elapsed() // headWait is counted from the first byte
	}
	return h.h1.OnData(p)
}
func (h h1Server) OnEOF(*loop.Conn)                { h.h1.OnEOF() }
func (h h1Server) OnDrain(*loop.Conn)              { h.h1.OnDrain() }
func (h h1Server) OnClose(_ *loop.Conn, err error) { h.h1.OnClose(err); h.gone() }

func (h h2Server) OnData(_ *loop.Conn, p []byte) int { return h.h2.OnData(p) }
func (h h2Server) OnEOF(*loop.Conn)                  { h.h2.OnEOF() }
func (h h2Server) OnDrain(*loop.Conn)                { h.h2.OnDrain() }
func (h h2Server) OnClose(_ *loop.Conn, err error)   { h.h2.OnClose(err); h.gone() }
