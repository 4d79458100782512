package http2

import (
	"time"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

type exchangeFlags uint32

const (
	sentHead exchangeFlags = 1 << iota
	// endQueued: the end of our message was given to us; sentEnd: it was written.
	endQueued
	sentEnd
	gotHead
	// gotEnd: the end of the peer's message arrived; toldEnd: the Receiver has it.
	gotEnd
	toldEnd
	// closed: the stream has left the connection. What is kept for the Receiver may still be delivered.
	closed
	paused
	// resuming: Resume is at work further up the stack.
	resuming
	inRing
	// full: more is queued than SendBuffer; the Receiver is owed an OnDrain.
	full
	// deaf: the exchange is over for the Receiver, which is not called any more.
	deaf
	// isTunnel: the request's method is CONNECT, and no response has refused it; isUpgrade: with :protocol.
	isTunnel
	isUpgrade
	// isHead: the request's method is HEAD, so that the response has no body.
	isHead
	// released: the Sender is called no more.
	released
	// isShort: the request's declared body fits into the window that the client began with, so that it comes in any case.
	isShort
)

// interimMax bounds the 1xx responses to one request.
const interimMax = 100

// exchange is one stream of a connection: a stream.Sender, and the state of both directions.
type exchange struct {
	c        *core
	recv     stream.Receiver
	id       uint32
	flags    exchangeFlags
	interims uint8 // 1xx responses so far

	// window is what the peer may still send, owed what the Receiver took since the last WINDOW_UPDATE, both in bytes.
	window, owed int
	// left is the part of the incoming Content-Length that is to come; -1 if unknown.
	left int64
	// sendWindow is what we may send; negative after the peer made its initial window smaller.
	sendWindow int64

	// pending and trailers wait for the peer's window or for the Conn; kept and keptTrailers for the Receiver.
	pending, kept          queue
	held                   *stream.Head // of an upgrade, until it is known whether the server takes it
	trailers, keptTrailers *stream.Head

	next          *exchange     // in the ring
	opened, moved time.Duration // since the connection's start: the request's head; the last progress of pending
	protocol      string        // what an upgrade is to
}

var _ stream.Sender = (*exchange)(nil)

// over reports that the stream has left the connection or the connection is useless.
func (x *exchange) over() bool { return x.flags&closed != 0 || x.c.dead }

func (x *exchange) SendInterim(h *stream.Head) {
	c := x.c
	if x.over() || x.flags&sentHead != 0 || !c.server || h.Status < 100 || h.Status >= 200 || h.Status == 101 {
		return
	}
	c.startBlock().response(h, false)
	c.writeBlock(x.id, false)
}

func (x *exchange) SendHead(h *stream.Head, end bool) {
	if x.over() || x.flags&sentHead != 0 {
		return
	}
	x.flags |= sentHead
	if end {
		x.flags |= endQueued
	}
	x.c.role.writeHead(x, h, end)
}

func (x *exchange) SendData(p []byte, end bool) {
	c := x.c
	if x.over() || x.flags&(sentHead|endQueued) != sentHead || len(p) == 0 && !end {
		return
	}
	if end {
		x.flags |= endQueued
	}
	if x.held != nil && len(p) == 0 {
		return
	}
	if x.pending.n == 0 && (c.first == nil || len(p) == 0) {
		if p = x.sendNow(p, end); len(p) == 0 {
			if end {
				x.localEnd()
			}
			return
		}
	}
	x.settle()
	if x.pending.n == 0 {
		x.moved = c.now()
	}
	x.pending.push(c.cfg.Memory, p)
	c.waiting += len(p)
	if x.pending.n > c.cfg.SendBuffer {
		x.flags |= full
	}
	x.queue()
}

// sendNow writes what windows and Conn allow of p, straight from the caller's slice, and returns the rest.
func (x *exchange) sendNow(p []byte, end bool) []byte {
	c := x.c
	if len(p) == 0 {
		c.dataHeader(x, 0, 0, true)
		return nil
	}
	for len(p) > 0 && !c.conn.Full() {
		n := x.allowed(len(p))
		if n <= 0 {
			break
		}
		c.dataHeader(x, n, len(p), end && n == len(p))
		c.conn.Write(p[:n])
		p = p[n:]
	}
	return p
}

func (x *exchange) SendTrailers(h *stream.Head) {
	c := x.c
	switch {
	case x.over() || x.flags&(sentHead|endQueued) != sentHead:
	case x.flags&isTunnel != 0 || x.held != nil:
		x.SendData(nil, true)
	case x.pending.n > 0:
		x.flags |= endQueued
		x.trailers = c.cfg.Memory.takeHead()
		x.trailers.CopyFrom(h)
		x.settle()
	default:
		x.flags |= endQueued
		c.writeTrailers(x, h)
		x.localEnd()
	}
}

func (c *core) writeTrailers(x *exchange, h *stream.Head) {
	c.startBlock().fields(h, true)
	c.writeBlock(x.id, true)
}

func (x *exchange) Reset(why stream.Abort) {
	if x.flags&closed == 0 {
		if x.id != 0 && !x.c.dead {
			x.c.control(appendReset(x.c.out[:0], x.id, x.resetCode(why)))
		}
		x.remove()
	}
	x.flags |= deaf
	x.forget()
}

// resetCode is how a reason to give up is said to the peer (RFC 9113 sections 7, 8.1 and 8.5).
func (x *exchange) resetCode(why stream.Abort) ErrCode {
	switch {
	case !x.c.server:
		return ErrCodeCancel
	case x.flags&sentEnd != 0:
		return ErrCodeNo
	case why == stream.AbortRefused:
		return ErrCodeRefusedStream
	case why == stream.AbortLocal || why == stream.AbortTimeout:
		return ErrCodeCancel
	case x.flags&isTunnel != 0:
		return ErrCodeConnect
	}
	return ErrCodeInternal
}

func (x *exchange) Full() bool { return x.flags&full != 0 }

func (x *exchange) Pause() { x.flags |= paused }

func (x *exchange) Resume() {
	x.flags &^= paused
	if x.flags&resuming != 0 {
		return
	}
	c := x.c
	c.cfg.Memory.enter()
	x.flags |= resuming
	for x.kept.n > 0 && x.flags&(paused|deaf) == 0 {
		k := x.kept.pop()
		p := k.bytes()
		c.unkept(len(p))
		x.deliver(p, x.kept.n == 0 && x.flags&gotEnd != 0 && x.keptTrailers == nil)
		c.cfg.Memory.giveChunk(k)
	}
	if x.flags&gotEnd != 0 && x.flags&(paused|toldEnd|deaf) == 0 {
		x.flags |= toldEnd
		if h := x.keptTrailers; h != nil {
			x.keptTrailers = nil
			x.recv.OnTrailers(h)
			c.cfg.Memory.giveHead(h)
		} else {
			x.recv.OnData(nil, true)
		}
	}
	x.settle()
	x.flags &^= resuming
	x.credit()
	c.credit()
	c.cfg.Memory.leave()
}

// onTrailers takes trailers that were decoded into h, which is lent.
func (x *exchange) onTrailers(h *stream.Head) {
	x.flags |= gotEnd
	switch {
	case x.flags&deaf != 0:
	case x.flags&paused != 0 || x.kept.n > 0:
		x.keptTrailers = x.c.cfg.Memory.takeHead()
		x.keptTrailers.CopyFrom(h)
	default:
		x.flags |= toldEnd
		x.recv.OnTrailers(h)
	}
	x.remoteEnd()
}

// readTrailers reads a header block that came after the head.
func (x *exchange) readTrailers(flags frameFlags, block []byte) *Error {
	c := x.c
	h := c.cfg.Memory.takeHead()
	defer c.cfg.Memory.giveHead(h)
	r, err := c.readHead(kindTrailers, block, h)
	switch {
	case err != nil:
		return err
	case x.flags&gotEnd != 0:
		return c.streamFault(x, ErrCodeStreamClosed, "HEADERS after the end of the message")
	case x.flags&isTunnel != 0:
		return c.streamFault(x, ErrCodeProtocol, "HEADERS in a tunnel")
	case flags&flagEndStream == 0:
		return c.streamFault(x, ErrCodeProtocol, "trailers without END_STREAM")
	case r.tooLarge:
		c.control(appendReset(c.out[:0], x.id, ErrCodeEnhanceYourCalm))
		x.abort(stream.AbortTooLarge, &Error{Code: ErrCodeEnhanceYourCalm, Stream: x.id, Reason: "trailers are too large"})
		return nil
	case r.fault != "":
		return c.streamFault(x, ErrCodeProtocol, r.fault)
	case x.left > 0:
		return c.streamFault(x, ErrCodeProtocol, "DATA differs from Content-Length")
	}
	x.onTrailers(h)
	return nil
}

// streamFault resets a stream because of what the peer did (RFC 9113 section 5.4.2).
func (c *core) streamFault(x *exchange, code ErrCode, reason string) *Error {
	id := x.id
	c.control(appendReset(c.out[:0], id, code))
	x.abort(stream.AbortProtocol, &Error{Code: code, Stream: id, Reason: reason})
	if !c.server {
		return nil
	}
	return c.spend(guardReset, 1)
}

// localEnd: our message is written whole. A server that has answered before
// the request was whole asks for no more of it (RFC 9113 section 8.1), unless
// it is short: some clients (curl 7.88) lose the response in that case.
func (x *exchange) localEnd() {
	x.flags |= sentEnd
	x.settle()
	switch {
	case x.flags&gotEnd != 0:
		x.remove()
	case x.c.server && x.flags&(isTunnel|isShort|closed) == 0:
		x.c.control(appendReset(x.c.out[:0], x.id, ErrCodeNo))
		x.remove()
	}
}

// remoteEnd: the peer's message has arrived whole.
func (x *exchange) remoteEnd() {
	x.settle()
	if x.flags&sentEnd != 0 {
		x.remove()
	}
}

// settle ends the exchange for the Receiver when the response has ended; of a
// tunnel, both directions. A client then gives up what is left of its request.
func (x *exchange) settle() {
	want := toldEnd
	switch {
	case x.flags&isTunnel != 0:
		want |= endQueued
	case x.c.server:
		want = endQueued
	}
	if x.flags&want != want || x.flags&deaf != 0 {
		return
	}
	x.flags |= deaf
	x.forget()
	if x.flags&(endQueued|closed) == 0 && !x.c.dead {
		x.c.control(appendReset(x.c.out[:0], x.id, ErrCodeCancel))
		x.remove()
	}
}

// remove takes the stream out of its connection.
func (x *exchange) remove() {
	if x.flags&closed != 0 {
		return
	}
	c, m := x.c, x.c.cfg.Memory
	x.flags |= closed
	delete(c.streams, x.id)
	c.waiting -= x.pending.n
	x.pending.drop(m)
	m.giveHead(x.trailers)
	m.giveHead(x.held)
	x.trailers, x.held = nil, nil
	c.role.ended(x)
	x.recycle()
}

func (x *exchange) Release() {
	x.flags |= released
	x.recycle()
}

// recycle gives x to those to come once nobody has it any more.
func (x *exchange) recycle() {
	if x.flags&(closed|released|inRing) == closed|released {
		x.flags = x.flags&^released | deaf
		x.c.cfg.Memory.giveExchange(x)
	}
}

// forget drops what is kept for the Receiver.
func (x *exchange) forget() {
	x.c.unkept(x.kept.n)
	x.kept.drop(x.c.cfg.Memory)
	x.c.cfg.Memory.giveHead(x.keptTrailers)
	x.keptTrailers = nil
}

// abort ends the exchange because the peer or the connection gave it up. If a
// client has the whole response, the rest of it may still be delivered.
func (x *exchange) abort(why stream.Abort, err error) {
	if x.flags&closed != 0 {
		return
	}
	x.remove()
	if x.flags&deaf != 0 || !x.c.server && x.flags&(gotEnd|isTunnel) == gotEnd {
		return
	}
	x.flags |= deaf
	x.forget()
	if x.recv != nil {
		x.recv.OnAbort(why, err)
	}
}
