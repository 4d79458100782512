package loop

import (
	"crypto/tls"
	"errors"
	"io"
	"net/netip"
)

// Carrier carries the bytes of a Conn that has no socket of its own: a stream of
// another connection of the same loop. Whoever implements it calls Feed, FeedEOF,
// FeedReset and Drained of that Conn; of its methods, only Resume may do so before
// it returns.
type Carrier interface {
	// Write sends p in order, without keeping it and without blocking.
	Write(p []byte)
	// CloseWrite says that nothing more will be written, behind what was.
	CloseWrite()
	// Full reports that more waits than should; Drained follows.
	Full() bool
	// Pause stops Feed and FeedEOF until Resume.
	Pause()
	// Resume ends Pause.
	Resume()
	// Abort gives up both directions. Nothing is called afterwards.
	Abort()
	// TLS describes the TLS connection that carries all of this; nil if there is none.
	TLS() *tls.ConnectionState
}

// Carry makes a connection whose bytes carrier carries, from remote to local. It is used as those with a socket are,
// but has no OriginalDst, and TLS cannot be started on it. It owns no buffer unless its handler leaves bytes unread.
func (l *Loop) Carry(carrier Carrier, remote, local netip.AddrPort) *Conn {
	l.open++
	return &Conn{loop: l, transport: &carriage{carrier, local}, fd: -1, remote: remote}
}

// carriage hands bytes to the Carrier, which has its own buffers.
type carriage struct {
	Carrier
	local netip.AddrPort
}

func (*carriage) read(*Conn, []byte) (int, bool, error) { return 0, false, nil }

func (t *carriage) write(_ *Conn, p []byte) error {
	t.Write(p)
	return nil
}

func (*carriage) flush(*Conn) {}

func (t *carriage) closeWrite(*Conn) error {
	t.CloseWrite()
	return nil
}

func (*carriage) forget(*Conn) {}

// carried is what c has instead of a socket; nil if it has one.
func (c *Conn) carried() *carriage {
	t, _ := c.transport.(*carriage)
	return t
}

// Feed delivers what the carrier's peer has sent. Its handler may change p. What the handler does not consume is
// copied and kept.
func (c *Conn) Feed(p []byte) {
	switch {
	case c.state != alive || len(p) == 0:
	case c.kept == nil && c.listening():
		c.flags &^= offer
		c.deliver(p)
		c.wantRead()
	case c.listening():
		c.join(p)
		c.wantRead()
	case c.kept == nil:
		c.keep(p)
	case c.kept.w+len(p) > c.loop.cfg.KeepBytesMax:
		c.fail(ErrTooLong, closing)
	default:
		before := c.kept
		c.kept = c.loop.chunks.take(before.w + len(p))
		c.kept.w = copy(c.kept.b, before.bytes())
		c.kept.w += copy(c.kept.b[c.kept.w:], p)
		c.loop.chunks.give(before)
	}
}

// join delivers what is kept with p behind it.
func (c *Conn) join(p []byte) {
	l := c.loop
	scratch := l.joined
	l.joined = nil // a handler may feed another connection
	scratch = append(append(scratch[:0], c.kept.bytes()...), p...)
	l.chunks.give(c.kept)
	c.kept = nil
	c.flags &^= offer
	c.deliver(scratch)
	l.joined = scratch
}

// FeedEOF says that the carrier's peer will send no more.
func (c *Conn) FeedEOF() {
	c.end = io.EOF
	if c.state == lingering {
		c.release()
		return
	}
	c.wantRead()
}

// FeedReset says that the carrier is gone, because of err.
func (c *Conn) FeedReset(err error) {
	switch c.state {
	case alive:
		c.fail(err, dying)
	case closing:
		c.state = dying
		c.loop.touch(c)
	case lingering:
		c.release()
	case dying, closed:
	}
}

// Drained says that the carrier is not Full any more.
func (c *Conn) Drained() {
	if c.state == alive && c.flags&full != 0 {
		c.loop.touch(c)
	}
}

// settleCarried is settle for a connection without a socket.
func (c *Conn) settleCarried() {
	switch c.state {
	case alive:
		if c.flags&full != 0 && !c.carried().Full() {
			c.flags &^= full
			if c.handler != nil {
				c.handler.OnDrain(c)
			}
		}
	case closing:
		if errors.Is(c.end, io.EOF) || c.loop.stopping {
			c.release()
			return
		}
		// The peer may not have read all yet: what it still sends is dropped until it ends, too.
		c.state = lingering
		c.limit()
		c.forget()
		if c.flags&held != 0 {
			c.flags &^= held
			c.carried().Resume()
		}
	case dying:
		c.release()
	case lingering, closed: // touched before it came to that
	}
}

// releaseCarried ends the connection; the carrier is told unless both directions have ended in order.
func (c *Conn) releaseCarried() {
	orderly := c.state != dying && errors.Is(c.end, io.EOF)
	if c.state != lingering {
		c.state = dying
		c.forget()
	}
	c.state = closed
	c.loop.open--
	if !orderly {
		c.carried().Abort()
	}
}
