package http1

import (
	"io"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// ServerOwner is told what happens on a server connection besides requests, on
// the connection's loop. It may call the connection's methods from within.
type ServerOwner interface {
	// OnIdle: an exchange is over and it is the client's turn. Accept tells of the next request; part of it may have
	// arrived already. A connection begins so without the call.
	OnIdle(c *ServerConn)
	// AppendRefusal appends the field lines, line ends included, that a refusal for f bears besides the codec's own. It
	// must not call the connection.
	AppendRefusal(out []byte, f Fault) []byte
	// OnRefused: f was answered in place of a request, for the access log. OnLinger follows.
	OnRefused(c *ServerConn, f Fault)
	// OnLinger: our last word has been said, and the connection only waits for the peer to close, so that what it
	// still sends does not destroy what it has not read yet (RFC 9112 section 9.6). The owner closes it soon.
	OnLinger(c *ServerConn)
}

// serverState is what the next incoming byte of a server connection belongs to.
type serverState uint8

const (
	serverHead    serverState = iota // a request head; no exchange is under way
	serverBody                       // the body of the request
	serverWait                       // the next request: it is left unread until the response is out
	serverTunnel                     // the tunnel
	serverDiscard                    // the body of a request whose response is out
	serverLinger                     // nothing
	serverClosed
)

// outState is what has been sent of the outgoing message.
type outState uint8

const (
	outHead  outState = iota // nothing but interim responses
	outBody                  // the head
	outEnded                 // all
)

// Why a connection is not read; it is read if there is no reason.
const (
	pauseRelay = 1 << iota // the relay's Pause
	pauseBusy              // the next request must wait
	pauseFull              // more is waiting to be written than is good
)

// pauses is the set of reasons.
type pauses uint8

func (s *pauses) add(conn Conn, why pauses) {
	if *s == 0 {
		conn.PauseRead()
	}
	*s |= why
}

func (s *pauses) remove(conn Conn, why pauses) {
	if *s == 0 {
		return
	}
	if *s &^= why; *s == 0 {
		conn.ResumeRead()
	}
}

// ServerConn answers the requests of one client, one after another. It is the
// stream.Sender of each of its exchanges, and the loop's handler but for the
// connection argument. ContentLength says how a response is framed; -1 stands for
// chunks, or the end of the connection for an HTTP/1.0 client. Close of a head to
// be sent is not looked at: it is about the peer's other connection.
type ServerConn struct {
	codec  *Codec
	conn   Conn
	server stream.Server
	owner  ServerOwner
	recv   stream.Receiver // of the exchange under way, or nil

	in  incoming
	out outgoing
	at  progress // in the request head

	state   serverState
	outAt   outState
	paused  pauses
	empties uint8 // empty lines before the request

	discarded uint32 // bytes thrown away in serverLinger

	head, connect, upgrade, http10 bool // of the request
	expect                         bool // the client waits for 100 Continue before it sends the body
	closing                        bool // the connection closes after the response
	last                           bool // the client has said that it sends nothing after the request
	draining                       bool // Drain was called
	partial                        bool // part of a request head has arrived
	untold                         bool // the owner has to be told that the exchange is over
	inData                         bool // OnData is running: it looks after what follows an exchange
	why                            stream.Abort
	fault                          Fault // with why
}

// NewServerConn makes the server side of a connection, whose handler the result then is.
func (k *Codec) NewServerConn(conn Conn, server stream.Server, owner ServerOwner) *ServerConn {
	return &ServerConn{codec: k, conn: conn, server: server, owner: owner}
}

// Idle reports that no exchange is under way and nothing of a request has arrived.
func (c *ServerConn) Idle() bool { return c.state == serverHead && !c.partial }

// Drain announces with the next response that the connection closes after it; one that is idle closes now.
// A tunnel goes on to its own end.
func (c *ServerConn) Drain() {
	c.draining = true
	switch {
	case !c.Idle():
	case c.inData:
		c.closing = true
	default:
		c.close()
	}
}

// OnData takes what has arrived and returns how much of it was consumed.
func (c *ServerConn) OnData(p []byte) int {
	c.inData = true
	n := 0
	for n < len(p) && c.state != serverClosed {
		took := c.take(p[n:])
		if took == 0 {
			break
		}
		n += took
	}
	c.inData = false
	switch {
	case c.state == serverClosed:
		return len(p)
	case c.state == serverHead && c.closing:
		c.leave()
	default:
		c.tell()
	}
	return n
}

// take consumes some of p; 0 if more is needed, or if it must wait.
func (c *ServerConn) take(p []byte) int {
	switch c.state {
	case serverHead:
		return c.readHead(p)
	case serverBody, serverDiscard:
		return c.readBody(p)
	case serverTunnel:
		c.recv.OnData(p, false)
		return len(p)
	case serverWait:
		c.paused.add(c.conn, pauseBusy)
		return 0
	default:
		if c.discarded += uint32(len(p)); c.discarded > lingerMaxBytes {
			c.close()
		}
		return len(p)
	}
}

// tell tells the owner once after each exchange that it is over.
func (c *ServerConn) tell() {
	if c.untold && (c.state == serverHead || c.state == serverDiscard) {
		c.untold = false
		c.owner.OnIdle(c)
	}
}

// readHead takes empty lines, or a request head, which begins an exchange.
func (c *ServerConn) readHead(p []byte) int {
	if c.closing { // what the client has sent after its last request
		c.linger()
		return len(p)
	}
	if c.conn.Full() {
		c.paused.add(c.conn, pauseFull)
		return 0
	}
	if n := emptyLines(p); n > 0 {
		c.at, c.partial = progress{}, false
		if lines := int(c.empties) + n/2; lines > emptyLinesMax {
			c.refuse(FaultEmptyLines)
		} else {
			c.empties = uint8(lines)
		}
		return n
	}
	h := c.codec.takeHead()
	var m message
	n, f := c.codec.request(p, &c.at, h, &m)
	c.partial = n == 0
	switch {
	case f != faultNone:
		c.refuse(f)
		n = len(p)
	case n > 0:
		c.begin(h, &m)
	}
	c.codec.giveHead(h)
	return n
}

// begin starts an exchange.
func (c *ServerConn) begin(h *stream.Head, m *message) {
	c.empties = 0
	c.in = incoming{framing: m.framing, left: h.ContentLength}
	c.head, c.connect, c.upgrade, c.http10, c.expect = m.head, m.connect, h.Upgrade, h.HTTP10, m.expect
	c.closing, c.untold = h.Close, true
	c.last = m.last && !m.connect && !h.Upgrade
	c.outAt = outHead
	c.state = serverBody
	if m.framing == framingNone {
		c.state = serverWait
	}
	c.recv = c.server.Accept(c)
	// A request for a tunnel does not end here: the tunnel's bytes belong to it.
	c.recv.OnHead(h, m.framing == framingNone && !m.connect && !h.Upgrade)
}

// readBody delivers the request's body, or throws it away.
func (c *ServerConn) readBody(p []byte) int {
	n := 0
	for c.state == serverBody || c.state == serverDiscard {
		x, f := c.in.step(c.codec, p[n:])
		if f != faultNone {
			c.badBody(f)
			return len(p)
		}
		if x.n == 0 {
			break
		}
		n += x.n
		c.deliver(x)
	}
	return n
}

// deliver hands a piece of the body on.
func (c *ServerConn) deliver(x piece) {
	switch {
	case c.state == serverDiscard:
		if x.end {
			c.next()
		}
	case x.trailers != nil:
		c.state = serverWait
		c.recv.OnTrailers(x.trailers)
	case x.end:
		c.state = serverWait
		c.recv.OnData(x.data, true)
	case len(x.data) > 0:
		c.expect = false
		c.recv.OnData(x.data, false)
	}
	if x.trailers != nil {
		c.codec.giveHead(x.trailers)
	}
}

// badBody ends the exchange, or what is left of it, because the request's body is malformed.
func (c *ServerConn) badBody(f Fault) {
	r := c.recv
	c.recv = nil
	switch {
	case r != nil && c.outAt == outHead:
		writeRefusal(c.codec, c.conn, c.owner, f)
		c.linger()
	case r != nil:
		c.cut()
	default: // the response is out
		c.linger()
	}
	if r != nil {
		r.OnAbort(stream.AbortProtocol, f)
	}
}

// refuse answers what is no request.
func (c *ServerConn) refuse(f Fault) {
	writeRefusal(c.codec, c.conn, c.owner, f)
	c.state = serverLinger // so that the owner finds it so
	c.owner.OnRefused(c, f)
	if c.state == serverLinger {
		c.linger()
	}
}

// finish follows the end of the response.
func (c *ServerConn) finish() {
	c.recv, c.outAt = nil, outEnded
	c.closing = c.closing || c.draining
	switch {
	case c.state != serverBody:
		c.next()
	case c.closing:
		c.linger()
	default:
		c.state = serverDiscard
		c.paused.remove(c.conn, pauseRelay)
		if !c.inData {
			c.tell()
		}
	}
}

// next makes the connection ready for the next request, or closes it.
func (c *ServerConn) next() {
	waiting := c.paused&pauseBusy != 0
	c.state, c.partial = serverHead, waiting
	c.paused.remove(c.conn, pauseBusy|pauseRelay)
	if waiting || c.inData { // OnData comes, or goes on
		return
	}
	if c.closing {
		c.leave()
		return
	}
	c.tell()
}

// leave closes after a whole exchange. Only a client that has promised to send no more cannot lose the response to a
// reset that answers what it still sends (RFC 9112 sections 9.3 and 9.6).
func (c *ServerConn) leave() {
	if !c.last {
		c.close()
		return
	}
	c.state = serverClosed
	c.conn.Finish()
}

// linger says that nothing more will be sent, and throws away what arrives, a bounded amount, until the peer closes.
func (c *ServerConn) linger() {
	c.state, c.discarded = serverLinger, 0
	c.conn.CloseWrite()
	c.paused.remove(c.conn, pauseBusy|pauseRelay|pauseFull)
	c.owner.OnLinger(c)
}

func (c *ServerConn) close() {
	c.state = serverClosed
	c.conn.Close()
}

// cut closes in the middle of a message, in such a way that the peer cannot take it for a whole one.
func (c *ServerConn) cut() {
	c.state = serverClosed
	if c.outAt == outBody && (c.out.framing == framingClose || c.out.framing == framingTunnel) {
		c.conn.Abort()
		return
	}
	c.conn.Close()
}

// fail gives the exchange up because the relay asked for what cannot be sent. The Receiver hears of it in OnClose.
func (c *ServerConn) fail(f Fault) {
	c.why, c.fault = stream.AbortLocal, f
	c.state = serverClosed
	c.conn.Abort()
}

// OnEOF takes the end of what the client sends.
func (c *ServerConn) OnEOF() {
	if c.state == serverTunnel {
		r := c.recv
		ended := c.outAt == outEnded
		if c.state = serverWait; ended {
			c.recv = nil
			c.close()
		}
		r.OnData(nil, true)
		return
	}
	r := c.recv
	c.recv = nil
	c.cut()
	if r != nil {
		r.OnAbort(stream.AbortClosed, io.ErrUnexpectedEOF)
	}
}

// OnClose is the last call: the connection is closed. err is nil after a Close of our own.
func (c *ServerConn) OnClose(err error) {
	r := c.recv
	c.recv, c.state = nil, serverClosed
	if r != nil {
		r.OnAbort(closeReason(c.why, c.fault, err))
	}
}

// closeReason says why a closed connection cut an exchange short. why and own are what was noted before.
func closeReason(why stream.Abort, own Fault, err error) (stream.Abort, error) {
	switch {
	case why != stream.AbortNone:
		return why, own
	case err != nil:
		return stream.AbortReset, err
	}
	return stream.AbortLocal, nil
}

// OnDrain says that there is room for output again.
func (c *ServerConn) OnDrain() {
	if c.recv != nil {
		c.recv.OnDrain()
	}
	c.paused.remove(c.conn, pauseFull)
}

// sending reports that the exchange is under way and its response is at s.
func (c *ServerConn) sending(s outState) bool {
	return c.recv != nil && c.state != serverClosed && c.outAt == s
}

// Release does nothing: the connection is the Sender of all its exchanges.
func (c *ServerConn) Release() {}

// SendInterim writes a 1xx response other than 101. An HTTP/1.0 client is sent none (RFC 9110 section 15.2).
func (c *ServerConn) SendInterim(h *stream.Head) {
	if !c.sending(outHead) || c.http10 {
		return
	}
	if h.Status < 100 || h.Status > 199 || h.Status == 101 {
		c.fail(FaultSendStart)
		return
	}
	if h.Status == 100 {
		c.expect = false
	}
	var none outgoing
	if f := none.writeResponse(c.codec, c.conn, h, reply{}, true); f != faultNone {
		c.fail(f)
	}
}

// SendHead writes the response's head. After 101 to a request to upgrade, or 2xx to CONNECT, the connection is a tunnel.
func (c *ServerConn) SendHead(h *stream.Head, end bool) {
	if !c.sending(outHead) {
		return
	}
	to := reply{head: c.head, http10: c.http10}
	to.tunnel = c.upgrade && h.Status == 101 || c.connect && h.Status >= 200 && h.Status < 300
	if h.Status < 200 && !to.tunnel {
		c.fail(FaultSendStart)
		return
	}
	if c.state == serverBody && (c.expect || c.in.framing == framingChunked || c.in.left > c.codec.cfg.DiscardMaxBytes) {
		// A client that still waits may send the body or not: what it sends next could be either. And where more of the
		// body may be left at the end of the response than is thrown away, the head is the last chance to say that the
		// connection closes: a client that has sent all of it, to the kernel, would use the connection again.
		c.closing = true
	}
	// What a client sent into a tunnel that was refused must not be read as a request.
	c.closing = c.closing || c.draining || c.connect
	to.close = c.closing && !to.tunnel
	f := c.out.writeResponse(c.codec, c.conn, h, to, end)
	if f != faultNone {
		c.fail(f)
		return
	}
	c.outAt = outBody
	if c.out.framing == framingClose {
		c.closing = true
	}
	if to.tunnel {
		c.state = serverTunnel
		c.paused.remove(c.conn, pauseBusy)
	}
	if end {
		c.ended()
	}
}

// SendData writes bytes of the response's body or of the tunnel.
func (c *ServerConn) SendData(p []byte, end bool) {
	if !c.sending(outBody) {
		return
	}
	if f := c.out.write(c.codec, c.conn, p, end); f != faultNone {
		c.fail(f)
		return
	}
	if end {
		c.ended()
	}
}

// SendTrailers ends the response with trailers; they are dropped where the framing has no place for them.
func (c *ServerConn) SendTrailers(h *stream.Head) {
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
func (c *ServerConn) ended() {
	c.outAt = outEnded
	switch {
	case c.out.framing != framingTunnel:
		c.finish()
	case c.state == serverTunnel:
		c.conn.CloseWrite()
	default: // the client has ended its side before
		c.recv = nil
		c.close()
	}
}

// Reset gives the exchange up and closes the connection.
func (c *ServerConn) Reset(stream.Abort) {
	if c.recv == nil {
		return
	}
	c.recv = nil
	if c.state != serverClosed {
		c.cut()
	}
}

// Full reports that more is waiting to be written than is good.
func (c *ServerConn) Full() bool { return c.conn.Full() }

// Pause stops reading the connection.
func (c *ServerConn) Pause() {
	if c.recv != nil && c.state != serverClosed {
		c.paused.add(c.conn, pauseRelay)
	}
}

// Resume undoes Pause.
func (c *ServerConn) Resume() {
	if c.recv != nil && c.state != serverClosed {
		c.paused.remove(c.conn, pauseRelay)
	}
}
