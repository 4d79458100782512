package loop

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mark begins what Untaken speaks of.
func (c *Conn) Mark() { c.out.given = 0 }

// Untaken reports, of a connection that the peer has ended, whether it is certain that its program has acted on nothing of
// what was written after Mark. It is where the kernel was given nothing of it, and where the peer ended its side before
// anything of it came: the segment with its FIN acknowledges all that had come, what comes later is answered with RST (RFC
// 9293 section 3.6.1), for which Linux has EPIPE, and who reads it nevertheless can give no answer any more. Of a peer that
// resets the connection without FIN nothing is certain: it does so if it has not read all, and also if it has and wants to
// leave nothing behind (SO_LINGER).
func (c *Conn) Untaken() bool {
	switch {
	case c.carried() != nil || c.state == closed:
		return false
	case c.out.given == 0:
		return true
	case c.flags&broken != 0:
		if !errors.Is(c.cause, unix.EPIPE) {
			return false
		}
	case !errors.Is(c.end, io.EOF):
		return false
	}
	unacknowledged, err := unix.IoctlGetInt(int(c.fd), unix.SIOCOUTQ)
	return err == nil && unacknowledged >= int(c.out.given)
}

// breakOff notes that the kernel takes no more output. What the peer sent before it went away is still delivered.
func (c *Conn) breakOff(errno syscall.Errno) {
	c.out.clear(&c.loop.chunks)
	c.flags |= broken
	if c.state != alive {
		c.state = dying
		c.loop.touch(c)
		return
	}
	c.cause = fmt.Errorf("write: %w", errno)
	if !c.listening() {
		c.fail(c.cause, dying)
		return
	}
	c.flags |= readable | drain
	c.loop.enqueue(c)
}

// fail ends c, with err for OnClose, as how says: closing, or dying. Only the first call counts.
func (c *Conn) fail(err error, how state) {
	if c.state != alive {
		return
	}
	c.cause = err
	c.state = how
	if how == closing && c.flags&(shut|broken) == 0 && c.handshake == nil {
		c.closeTransport()
	}
	c.loop.touch(c)
	if how == closing && c.flags&(last|readable) != last {
		c.loop.enqueue(c)
	}
}

// settle sends the output and does what was asked for since the last batch.
func (c *Conn) settle() {
	if c.handshake != nil && !c.settleHandshake() {
		return
	}
	if c.carried() != nil {
		c.settleCarried()
		return
	}
	switch c.state {
	case alive:
		c.transport.flush(c)
		c.flush()
		c.settleAlive()
	case closing:
		c.transport.flush(c)
		c.flush()
		c.settleClosing()
	case dying:
		c.release()
	case lingering, closed: // touched before it came to that
	}
}

// settleAlive tells the handler and the peer what follows from the output being gone, or low.
func (c *Conn) settleAlive() {
	if c.out.n == 0 && c.flags&(shut|shutDone|broken) == shut {
		c.flags |= shutDone
		_ = shutdown(int(c.fd)) // fails only if the peer is gone, which reading tells
	}
	if c.flags&full != 0 && c.Buffered() <= c.loop.cfg.LowWater {
		c.flags &^= full
		if c.handler != nil && c.state == alive && c.flags&broken == 0 {
			c.handler.OnDrain(c)
		}
	}
}

// settleClosing ends c if its output is gone, and otherwise sees to it that it ends.
func (c *Conn) settleClosing() {
	l := c.loop
	switch {
	case c.state != closing: // flush found the peer gone
	case c.out.n > 0 && !l.stopping:
		c.limit()
	case errors.Is(c.end, io.EOF) || l.stopping || c.flags&(last|readable) == last:
		c.release()
	default:
		c.linger()
	}
}

// limit bounds the time that c may take from now until it is released.
func (c *Conn) limit() {
	if c.deadline == nil {
		c.deadline = c.loop.After(c.loop.cfg.CloseTimeout, c.release)
	}
}

// linger sends FIN and goes on reading, for nobody, until the peer's FIN.
// Closing at once would have the kernel answer what the peer still sends with
// RST, which destroys our last bytes if the peer has not read them yet (RFC 9112 section 9.6).
func (c *Conn) linger() {
	if c.flags&shutDone == 0 {
		if shutdown(int(c.fd)) != 0 {
			c.release()
			return
		}
	}
	c.state = lingering
	c.limit()
	c.forget()
	c.loop.enqueue(c)
}

// discard reads for nobody, also while output is still being sent: the peer may not read before it has sent all.
func (c *Conn) discard() {
	if c.handshake != nil || c.carried() != nil {
		return // it has the socket to itself, or there is none
	}
	c.flags |= drain // until there is nothing, because the event for it may have come already
	_, more, err := c.receive(c.loop.plain[:c.loop.cfg.ReadBytes])
	switch {
	case more:
		c.loop.enqueue(c)
	case err == nil:
	case c.state == lingering:
		c.release()
	case errors.Is(err, io.EOF):
		c.end = err
	default:
		c.state = dying
		c.loop.touch(c)
	}
}

// forget gives back all but the descriptor and calls OnClose.
func (c *Conn) forget() {
	s := &c.loop.chunks
	c.out.clear(s)
	c.transport.forget(c)
	if c.kept != nil {
		s.give(c.kept)
		c.kept = nil
	}
	if h := c.handler; h != nil {
		c.handler = nil
		h.OnClose(c, c.cause)
	}
}

// release closes the descriptor, after OnClose if that was not called yet.
func (c *Conn) release() {
	if c.deadline != nil {
		c.deadline.Stop()
	}
	if c.carried() != nil {
		c.releaseCarried()
		return
	}
	if c.state == dying || c.out.n > 0 {
		// Linger for no time: close then sends RST, lest the peer take what it has for the whole.
		_ = unix.SetsockoptLinger(int(c.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	if c.state != lingering {
		c.state = dying
		c.forget()
	}
	c.state = closed
	c.loop.detach(int(c.fd))
	closeSocket(int(c.fd))
}

// stop ends c with the loop: what the kernel takes at once is sent.
func (c *Conn) stop() {
	c.fail(ErrStopped, closing)
	if c.state == lingering {
		c.release()
		return
	}
	c.loop.touch(c)
}
