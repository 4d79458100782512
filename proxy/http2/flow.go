package http2

import "encoding/binary"

// This file is flow control (RFC 9113 sections 5.2 and 6.9), in both directions.

// onData takes a DATA frame: first the windows, then the stream's state, then the body.
func (c *core) onData(h frameHeader, p []byte) *Error {
	if h.stream == 0 {
		return fault(ErrCodeProtocol, "DATA on stream 0")
	}
	if c.idle(h.stream) {
		return fault(ErrCodeProtocol, "DATA on a stream that was never open")
	}
	if h.length > c.recvWindow {
		return fault(ErrCodeFlowControl, "DATA beyond the connection's window")
	}
	c.recvWindow -= h.length
	body, err := stripPadding(h.flags, p)
	if err != nil {
		return err
	}
	end := h.flags&flagEndStream != 0
	if len(body) > 0 {
		c.guards.earn(guardControl, controlEarns)
		c.guards.earn(guardEmpty, 1)
	} else if !end {
		if err := c.spend(guardEmpty, 1); err != nil {
			return err
		}
	}
	x := c.streams[h.stream]
	if x == nil {
		c.owed += h.length
		return nil
	}
	return x.onData(h.length, body, end)
}

// onData takes the body of a DATA frame; size is the frame's length, which is what windows count.
func (x *exchange) onData(size int, p []byte, end bool) *Error {
	c := x.c
	if complaint, code := x.judgeData(size, p, end); complaint != "" {
		c.owed += size
		return c.streamFault(x, code, complaint)
	}
	x.window -= size
	x.owed += size - len(p)
	c.owed += size - len(p)
	if end {
		x.flags |= gotEnd
	}
	switch {
	case x.flags&deaf != 0:
		c.owed += len(p)
	case x.flags&paused != 0 || x.kept.n > 0:
		x.keep(p)
	case len(p) > 0 || end:
		c.owed += len(p)
		x.deliver(p, end)
	}
	x.credit()
	if end {
		x.remoteEnd()
	}
	return nil
}

// judgeData says what is wrong with a DATA frame on this stream.
func (x *exchange) judgeData(size int, p []byte, end bool) (string, ErrCode) {
	switch {
	case x.flags&gotEnd != 0:
		return "DATA after the end of the message", ErrCodeStreamClosed
	case x.flags&gotHead == 0:
		return "DATA before the head", ErrCodeProtocol
	case size > x.window:
		return "DATA beyond the stream's window", ErrCodeFlowControl
	}
	if x.left >= 0 {
		x.left -= int64(len(p))
		if x.left < 0 || end && x.left > 0 {
			return "DATA differs from Content-Length", ErrCodeProtocol
		}
	}
	return "", 0
}

// keep stores body bytes for a paused Receiver. Their part of the stream's
// window is withheld until they are delivered; the connection's is given back
// at once, so that one slow Receiver does not stop the others, up to a limit.
func (x *exchange) keep(p []byte) {
	c := x.c
	x.kept.push(c.cfg.Memory, p)
	c.kept += len(p)
	if c.kept > keptFactor*c.cfg.ConnWindow {
		c.withheld += len(p)
	} else {
		c.owed += len(p)
	}
}

// unkept says that n kept bytes have gone.
func (c *core) unkept(n int) {
	c.kept -= n
	n = min(n, c.withheld)
	c.withheld -= n
	c.owed += n
}

// deliver gives body bytes to the Receiver.
func (x *exchange) deliver(p []byte, end bool) {
	if end {
		x.flags |= toldEnd
	}
	x.recv.OnData(p, end)
	x.owed += len(p)
}

// credit renews the stream's window, unless the Receiver is paused or no more will come.
func (x *exchange) credit() {
	c := x.c
	if x.owed*creditPart < c.cfg.StreamWindow || x.flags&(gotEnd|closed|paused) != 0 {
		return
	}
	c.control(appendWindowUpdate(c.out[:0], x.id, x.owed))
	x.window += x.owed
	x.owed = 0
}

// credit renews the connection's window.
func (c *core) credit() {
	if c.owed*creditPart < c.cfg.ConnWindow || c.dead {
		return
	}
	c.control(appendWindowUpdate(c.out[:0], 0, c.owed))
	c.recvWindow += c.owed
	c.owed = 0
}

// onSettingsAck makes a stream window of ours that is smaller than the initial one count.
func (c *core) onSettingsAck() {
	if c.acked {
		return
	}
	c.acked = true
	d := c.cfg.StreamWindow - c.recvInitial
	c.recvInitial += d
	for _, x := range c.streams {
		x.window += d
	}
}

// shiftWindows obeys a change of SETTINGS_INITIAL_WINDOW_SIZE; windows may become negative (RFC 9113 section 6.9.2).
func (c *core) shiftWindows(d int64) *Error {
	for _, x := range c.streams {
		x.sendWindow += d
		if x.sendWindow > maxWindow {
			return fault(ErrCodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE makes a window too large")
		}
		x.queue()
	}
	return nil
}

func (c *core) onWindowUpdate(h frameHeader, p []byte) *Error {
	switch {
	case h.length != 4:
		return fault(ErrCodeFrameSize, "WINDOW_UPDATE of a wrong size")
	case h.stream != 0 && c.idle(h.stream):
		return fault(ErrCodeProtocol, "WINDOW_UPDATE on a stream that was never open")
	}
	if err := c.spend(guardWindow, 1); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(p) & maxWindow)
	if h.stream == 0 {
		switch c.sendWindow += n; {
		case n == 0:
			return fault(ErrCodeProtocol, "WINDOW_UPDATE of nothing")
		case c.sendWindow > maxWindow:
			return fault(ErrCodeFlowControl, "WINDOW_UPDATE makes the window too large")
		}
		return nil
	}
	x := c.streams[h.stream]
	if x == nil {
		return nil
	}
	switch x.sendWindow += n; {
	case n == 0:
		return c.streamFault(x, ErrCodeProtocol, "WINDOW_UPDATE of nothing")
	case x.sendWindow > maxWindow:
		return c.streamFault(x, ErrCodeFlowControl, "WINDOW_UPDATE makes the window too large")
	}
	x.queue()
	return nil
}

// queue puts x at the end of the ring if it has data and window for it.
func (x *exchange) queue() {
	if x.flags&(inRing|closed) != 0 || x.pending.n == 0 || x.sendWindow <= 0 {
		return
	}
	c := x.c
	x.flags |= inRing
	if c.last == nil {
		c.first = x
	} else {
		c.last.next = x
	}
	c.last = x
}

// flush sends what streams have queued, one frame of each in turn, until
// nothing is left, the connection's window is used up or the Conn is Full.
func (c *core) flush() {
	if c.flushing {
		return
	}
	c.flushing = true
	for c.first != nil && !c.dead && c.sendWindow > 0 && !c.conn.Full() {
		x := c.first
		c.first, x.next = x.next, nil
		if c.first == nil {
			c.last = nil
		}
		x.flags &^= inRing
		if x.flags&closed == 0 && x.sendWindow > 0 {
			x.takeTurn()
		} else {
			x.recycle()
		}
	}
	c.flushing = false
}

// takeTurn sends one frame of what x has queued.
func (x *exchange) takeTurn() {
	c := x.c
	n := x.allowed(x.pending.n)
	end := n == x.pending.n && x.flags&endQueued != 0 && x.trailers == nil
	c.dataHeader(x, n, x.pending.n, end)
	x.pending.writeTo(c.cfg.Memory, c.conn, n)
	c.waiting -= n
	x.moved = c.now()
	if x.pending.n > 0 {
		x.queue()
	} else if x.trailers != nil {
		h := x.trailers
		x.trailers = nil
		c.writeTrailers(x, h)
		c.cfg.Memory.giveHead(h)
		end = true
	}
	if x.flags&full != 0 && x.pending.n <= c.cfg.SendBuffer/creditPart {
		x.flags &^= full
		if x.flags&deaf == 0 {
			x.recv.OnDrain()
		}
	}
	if end {
		x.localEnd()
	}
}

// allowed is how much of n bytes fits into the windows and one frame.
func (x *exchange) allowed(n int) int {
	return int(min(int64(n), x.sendWindow, x.c.sendWindow, int64(min(x.c.peer.maxFrameSize, dataFrameMax))))
}

// dataHeader writes the header of a DATA frame with n of the available bytes and accounts for it.
func (c *core) dataHeader(x *exchange, n, available int, end bool) {
	h := frameHeader{length: n, typ: frameData, stream: x.id}
	if end {
		h.flags = flagEndStream
	}
	c.conn.Write(h.append(c.out[:0]))
	x.sendWindow -= int64(n)
	c.sendWindow -= int64(n)
	if n >= tinyData || n == available {
		c.guards.earn(guardWindow, windowEarns)
		c.guards.earn(guardControl, controlEarns)
	}
}
