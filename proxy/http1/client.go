package http1

import (
	"io"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// ClientOwner is the pool that keeps client connections. It is told, on the
// connection's loop, what becomes of each.
type ClientOwner interface {
	// OnIdle: an exchange is over, and Open may be called for the next, also from within.
	OnIdle(c *ClientConn)
	// OnDead: the connection is closed or about to be; Open must not be called any more. Called once.
	OnDead(c *ClientConn)
}

// clientState is what the next incoming byte of a client connection belongs to.
type clientState uint8

const (
	clientIdle   clientState = iota // nothing: there was no request
	clientHead                      // a response head
	clientBody                      // the body of the final response
	clientTunnel                    // the tunnel
	clientEOF                       // nothing: the server has ended its side of the tunnel
	clientDead
)

// ClientConn sends requests to one server, one after another. It is the
// stream.Sender of each of its exchanges, and the loop's handler but for the
// connection argument. ContentLength says how a request is framed; -1 stands for
// chunks. Close of a head to be sent is not looked at: it is about the peer's
// other connection.
type ClientConn struct {
	codec *Codec
	conn  Conn
	owner ClientOwner
	recv  stream.Receiver // of the exchange under way, or nil

	in   incoming
	out  outgoing
	at   progress // in the response head
	hold []byte   // sent into a tunnel that does not stand yet

	state    clientState
	outAt    outState
	paused   pauses
	interims uint8 // 1xx responses to the request

	head, connect, upgrade bool // of the request
	closing                bool // the response said, or implied, that the connection closes
	answered               bool // part of the response has arrived
	why                    stream.Abort
	fault                  Fault // with why
}

// NewClientConn makes the client side of a connection, whose handler the result then is.
func (k *Codec) NewClientConn(conn Conn, owner ClientOwner) *ClientConn {
	return &ClientConn{codec: k, conn: conn, owner: owner}
}

// Idle reports that Open may be called.
func (c *ClientConn) Idle() bool { return c.state == clientIdle }

// Open begins an exchange whose response r is told of. It must not be called unless the connection is idle.
func (c *ClientConn) Open(r stream.Receiver) stream.Sender {
	if c.state != clientIdle {
		panic("http1: Open of a connection that is not idle")
	}
	c.recv, c.state, c.outAt = r, clientHead, outHead
	c.answered, c.interims = false, 0
	return c
}

// OnData takes what has arrived and returns how much of it was consumed.
func (c *ClientConn) OnData(p []byte) int {
	n := 0
	for n < len(p) {
		var took int
		switch c.state {
		case clientHead:
			took = c.readHead(p[n:])
		case clientBody:
			took = c.readBody(p[n:])
		case clientTunnel:
			took = len(p) - n
			c.recv.OnData(p[n:], false)
		case clientIdle:
			c.close()
			return len(p)
		default:
			return len(p)
		}
		if took == 0 {
			break
		}
		n += took
	}
	return n
}

// readHead takes a response head, interim or final.
func (c *ClientConn) readHead(p []byte) int {
	if c.outAt == outHead {
		c.abort(stream.AbortRefused, FaultUnsolicited)
		return len(p)
	}
	c.answered = true
	h := c.codec.takeHead()
	m := message{head: c.head, connect: c.connect}
	n, f := c.codec.response(p, &c.at, h, &m)
	switch {
	case f != faultNone:
	case n == 0:
	case h.Status < 200 && h.Status != 101:
		if c.interims++; c.interims > interimMax {
			f = FaultInterims
			break
		}
		c.recv.OnInterim(h)
	case h.Status == 101 && !c.upgrade:
		f = FaultUpgrade
	default:
		c.final(h, &m, len(p) > n)
	}
	c.codec.giveHead(h)
	if f != faultNone {
		c.abort(stream.AbortProtocol, f)
		return len(p)
	}
	return n
}

// final takes the head of the final response. more: bytes follow it.
func (c *ClientConn) final(h *stream.Head, m *message, more bool) {
	c.closing = h.Close
	if m.framing == framingTunnel {
		c.tunnel(h)
		return
	}
	if c.connect || c.upgrade { // the request was all there was to send
		c.outAt, c.hold = outEnded, nil
	}
	if m.framing == framingNone {
		r := c.end(more)
		r.OnHead(h, true)
		c.settle()
		return
	}
	c.in = incoming{framing: m.framing, left: h.ContentLength}
	c.state = clientBody
	c.recv.OnHead(h, false)
}

// tunnel begins the tunnel, with what was held back for it.
func (c *ClientConn) tunnel(h *stream.Head) {
	c.state = clientTunnel
	if len(c.hold) > 0 {
		c.conn.Write(c.hold)
	}
	c.hold = nil
	if c.outAt == outEnded {
		c.conn.CloseWrite()
	}
	c.recv.OnHead(h, false)
	if c.recv != nil {
		c.recv.OnDrain() // Full was true until now
	}
}

// readBody delivers the response's body.
func (c *ClientConn) readBody(p []byte) int {
	n := 0
	for c.state == clientBody {
		x, f := c.in.step(c.codec, p[n:])
		if f != faultNone {
			c.abort(stream.AbortProtocol, f)
			return len(p)
		}
		if x.n == 0 {
			break
		}
		n += x.n
		if !x.end {
			if len(x.data) > 0 {
				c.recv.OnData(x.data, false)
			}
			continue
		}
		r := c.end(n < len(p))
		if x.trailers != nil {
			r.OnTrailers(x.trailers)
			c.codec.giveHead(x.trailers)
		} else {
			r.OnData(x.data, true)
		}
		c.settle()
	}
	return n
}

// end ends the exchange before its last callback, so that nothing the relay does
// there touches the connection. more: bytes follow that nobody asked for.
func (c *ClientConn) end(more bool) stream.Receiver {
	r := c.recv
	c.recv = nil
	c.state = clientEOF
	c.closing = c.closing || more || c.outAt != outEnded
	c.paused.remove(c.conn, pauseRelay)
	return r
}

// settle makes the connection ready for the next exchange, or closes it, after the last callback.
func (c *ClientConn) settle() {
	if c.closing {
		c.close()
		return
	}
	c.state = clientIdle
	c.owner.OnIdle(c)
}

func (c *ClientConn) close() {
	c.conn.Close()
	c.dead()
}

func (c *ClientConn) dead() {
	if c.state != clientDead {
		c.state, c.hold = clientDead, nil
		c.owner.OnDead(c)
	}
}

// abort closes the connection in the middle of an exchange. The owner hears of it first, so that it does not hand
// the connection out again when the relay retries.
func (c *ClientConn) abort(why stream.Abort, err error) {
	r := c.recv
	c.recv = nil
	c.close()
	if r != nil {
		r.OnAbort(why, err)
	}
}

// fail gives the exchange up because the relay asked for what cannot be sent. The Receiver hears of it in OnClose.
func (c *ClientConn) fail(f Fault) {
	c.why, c.fault = stream.AbortLocal, f
	c.conn.Abort()
	c.dead()
}

// refused reports that the server has not begun to answer.
func (c *ClientConn) refused() bool { return c.state == clientHead && !c.answered }

// OnEOF takes the end of what the server sends.
func (c *ClientConn) OnEOF() {
	switch {
	case c.state == clientTunnel:
		r := c.recv
		if c.state = clientEOF; c.outAt == outEnded {
			c.recv = nil
			c.close()
		}
		r.OnData(nil, true)
	case c.state == clientBody && c.in.framing == framingClose:
		r := c.end(false)
		r.OnData(nil, true)
		c.settle()
	case c.refused():
		c.abort(stream.AbortRefused, io.ErrUnexpectedEOF)
	case c.state != clientDead:
		c.abort(stream.AbortClosed, io.ErrUnexpectedEOF)
	}
}

// OnClose is the last call: the connection is closed. err is nil after a Close of our own.
func (c *ClientConn) OnClose(err error) {
	r := c.recv
	c.recv = nil
	why, cause := closeReason(c.why, c.fault, err)
	if why == stream.AbortReset && c.refused() {
		why = stream.AbortRefused
	}
	c.dead()
	if r != nil {
		r.OnAbort(why, cause)
	}
}

// OnDrain says that there is room for output again.
func (c *ClientConn) OnDrain() {
	if c.recv != nil {
		c.recv.OnDrain()
	}
}

// sending reports that the exchange is under way and its request is at s.
func (c *ClientConn) sending(s outState) bool {
	return c.recv != nil && c.state != clientDead && c.outAt == s
}

// SendInterim does nothing: a request has no interim heads.
func (c *ClientConn) SendInterim(*stream.Head) {}

// Release does nothing: the connection is the Sender of all its exchanges.
func (c *ClientConn) Release() {}

// SendHead writes the request's head. A request to upgrade and CONNECT have no content: what follows the head
// belongs to the tunnel.
func (c *ClientConn) SendHead(h *stream.Head, end bool) {
	if !c.sending(outHead) {
		return
	}
	if f := c.out.writeRequest(c.codec, c.conn, h, end); f != faultNone {
		c.fail(f)
		return
	}
	method := h.Method()
	c.head = string(method) == "HEAD"
	c.connect = string(method) == "CONNECT"
	c.upgrade = h.Upgrade && !c.connect
	c.outAt = outBody
	if end {
		c.ended()
	}
}

// SendData writes bytes of the request's body or of the tunnel. Before the
// server has agreed to the tunnel they are held back, up to a limit: a server
// that refuses would read them as the next request.
func (c *ClientConn) SendData(p []byte, end bool) {
	switch {
	case !c.sending(outBody):
		return
	case c.holding() && len(c.hold)+len(p) > holdMaxBytes:
		c.fail(FaultSendHold)
		return
	case c.holding():
		c.hold = append(c.hold, p...)
	default:
		if f := c.out.write(c.codec, c.conn, p, end); f != faultNone {
			c.fail(f)
			return
		}
	}
	if end {
		c.ended()
	}
}

// holding reports that the tunnel that was asked for does not stand yet.
func (c *ClientConn) holding() bool {
	return c.out.framing == framingTunnel && c.outAt != outHead && c.state == clientHead
}

// SendTrailers ends the request with trailers; they are dropped where the framing has no place for them.
func (c *ClientConn) SendTrailers(h *stream.Head) {
	if !c.sending(outBody) {
		return
	}
	if f := c.out.writeTrailers(c.codec, c.conn, h); f != faultNone {
		c.fail(f)
		return
	}
	c.ended()
}

// ended follows the end of what the relay sends.
func (c *ClientConn) ended() {
	c.outAt = outEnded
	switch {
	case c.out.framing != framingTunnel:
	case c.state == clientTunnel:
		c.conn.CloseWrite()
	case c.state == clientEOF: // the server has ended its side before
		c.recv = nil
		c.close()
	}
}

// Reset gives the exchange up and closes the connection in such a way that the server notices at once.
func (c *ClientConn) Reset(stream.Abort) {
	if c.recv == nil {
		return
	}
	c.recv = nil
	if c.state != clientDead {
		c.conn.Abort()
		c.dead()
	}
}

// Full reports that more is waiting to be written than is good, or that the tunnel does not stand yet.
func (c *ClientConn) Full() bool { return c.recv != nil && c.holding() || c.conn.Full() }

// Pause stops reading the connection.
func (c *ClientConn) Pause() {
	if c.recv != nil && c.state != clientDead {
		c.paused.add(c.conn, pauseRelay)
	}
}

// Resume undoes Pause.
func (c *ClientConn) Resume() {
	if c.recv != nil && c.state != clientDead {
		c.paused.remove(c.conn, pauseRelay)
	}
}
