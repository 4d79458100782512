package loop

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// recordBytesMax is the longest TLS record with its header (RFC 8446 section 5.2, RFC 5246 section 6.2.3): what
	// crypto/tls may hold back of one read and give out with the next.
	recordBytesMax = 5 + 16<<10 + 2048
	// handshakesMax bounds the handshakes under way on a loop. Each is a goroutine of some 30 KB.
	handshakesMax = 4096
	// handshakeTimeout is for those who do not say.
	handshakeTimeout = 10 * time.Second
)

// StartTLSServer has c go on as a TLS server. What is kept, and what the
// running OnData leaves, begins with the ClientHello. The handshake runs on a
// goroutine, with the socket and the callbacks of cfg, which should heed the
// context of what they are given: c is not released while one runs. The
// handshake must be done within timeout (0: 10 seconds). done is called on the
// loop with nil, or with why the handshake failed; c is then closed with the
// same error. done is not called if c ends otherwise before. Meanwhile nothing
// is read for the handler, and what is written waits. TLS cannot be started twice.
func (c *Conn) StartTLSServer(cfg *tls.Config, timeout time.Duration, done func(error)) {
	c.startTLS(cfg, tls.Server, timeout, done)
}

// StartTLSClient is StartTLSServer for the other side. cfg must name the server
// or verify it by itself, and must not allow renegotiation.
func (c *Conn) StartTLSClient(cfg *tls.Config, timeout time.Duration, done func(error)) {
	c.startTLS(cfg, tls.Client, timeout, done)
}

// TLS describes the TLS connection; nil without TLS and before the handshake is done. It must not be changed.
func (c *Conn) TLS() *tls.ConnectionState {
	t, ok := c.transport.(*tlsTransport)
	if !ok {
		return nil
	}
	if t.state == nil {
		s := t.conn.ConnectionState()
		t.state = &s
	}
	return t.state
}

func (c *Conn) startTLS(cfg *tls.Config, side func(net.Conn, *tls.Config) *tls.Conn, timeout time.Duration, done func(error)) {
	if c.state != alive {
		return
	}
	if _, plaintext := c.transport.(plain); !plaintext || c.handshake != nil {
		panic("loop: TLS started twice on a connection")
	}
	if timeout <= 0 {
		timeout = handshakeTimeout
	}
	h := &handshake{c: c, done: done}
	h.transport = &tlsTransport{wire: wire{fd: c.fd, local: c.LocalAddr(), remote: c.remote}}
	h.transport.conn = side(&h.transport.wire, cfg)
	if cfg.Renegotiation != tls.RenegotiateNever {
		h.err = errors.New("tls config allows renegotiation, which is not supported; use RenegotiateNever")
	}
	h.deadline.Init(c.loop, h.expire)
	h.deadline.Reset(timeout)
	c.handshake = h
	c.loop.touch(c)
}

// handshake is a TLS handshake that waits for earlier output to be sent, and
// then runs on a goroutine that has the socket to itself: the loop neither
// reads, writes nor closes it until the goroutine has posted its end.
type handshake struct {
	c         *Conn
	transport *tlsTransport
	done      func(error)
	deadline  Timer
	held      output                  // plaintext written meanwhile
	err       error                   // why it cannot succeed
	cancel    context.CancelCauseFunc // nil until the goroutine runs
}

func (h *handshake) running() bool { return h.cancel != nil }

func (h *handshake) wake() { h.transport.wire.wake() }

// expire ends a handshake that takes too long.
func (h *handshake) expire() {
	h.err = ErrTimeout
	h.c.loop.touch(h.c)
}

// settleHandshake takes the handshake of c a step further. It reports whether the rest of c may be settled.
func (c *Conn) settleHandshake() bool {
	h, l := c.handshake, c.loop
	if h.running() {
		if c.state != alive || h.err != nil {
			h.cancel(h.err)
		}
		return false
	}
	if c.state == alive && h.err == nil {
		c.flush()
	}
	if c.state == alive && h.err == nil {
		if c.out.n > 0 {
			return true
		}
		if l.handshakes < handshakesMax {
			h.begin()
			return false
		}
		h.err = ErrBusy
	}
	h.end(h.err)
	return true
}

// begin starts the goroutine, with what is already read.
func (h *handshake) begin() {
	c := h.c
	w := &h.transport.wire
	if c.kept != nil {
		w.in = slices.Clone(c.kept.bytes())
		c.loop.chunks.give(c.kept)
		c.kept = nil
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	h.cancel = cancel
	w.cancelled = ctx.Done()
	w.event = make(chan struct{}, 1)
	c.loop.handshakes++
	c.loop.helpers.Go(func() {
		err := h.transport.conn.HandshakeContext(ctx)
		c.loop.Post(func() {
			c.loop.handshakes--
			cancel(nil)
			h.end(err)
		})
	})
}

// end takes the socket back and has the connection go on with TLS, or end.
func (h *handshake) end(err error) {
	c := h.c
	h.deadline.Stop()
	c.handshake = nil
	defer h.held.clear(&c.loop.chunks)
	c.loop.touch(c)
	if c.state != alive {
		return
	}
	if h.err != nil {
		err = h.err
	}
	if err != nil {
		err = fmt.Errorf("tls handshake with %s: %w", c.remote, err)
		h.done(err)
		c.fail(err, closing)
		return
	}
	h.transport.wire.adopt(c)
	c.transport = h.transport
	c.flags |= readable | drain // whatever events the goroutine had
	c.flags &^= blocked
	for k := h.held.head; k != nil; k = k.next {
		if err := c.transport.write(c, k.bytes()); err != nil {
			c.fail(fmt.Errorf("write: %w", err), closing)
			return
		}
	}
	if c.flags&shut != 0 {
		c.closeTransport()
	}
	h.done(nil)
	c.wantRead()
}

// tlsTransport is crypto/tls, after its handshake, over memory. It relies on
// this: a Read of crypto/tls that gets a temporary net.Error from below keeps
// the bytes of the incomplete record, and of an incomplete post-handshake
// message, and goes on with them at the next Read (crypto/tls, readRecordOrCCS
// and readHandshake).
type tlsTransport struct {
	wire  wire
	conn  *tls.Conn
	state *tls.ConnectionState // made when asked for
}

// read takes one read's worth of records from the socket and decrypts all that
// are complete. They fit in p, so crypto/tls holds back less than one record.
func (t *tlsTransport) read(c *Conn, p []byte) (n int, more bool, err error) {
	l := c.loop
	if len(t.wire.in) > 0 { // from before the handshake
		more = true
	} else {
		if l.cipher == nil {
			l.cipher = make([]byte, l.cfg.ReadBytes)
		}
		var got int
		got, more, err = c.receive(l.cipher)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, false, err
		}
		t.wire.in, t.wire.end = l.cipher[:got], err
	}
	for n < len(p) {
		got, err := t.conn.Read(p[n:])
		n += got
		if errors.Is(err, errLater) {
			return n, more, nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, true, nil
}

func (t *tlsTransport) write(_ *Conn, p []byte) error {
	_, err := t.conn.Write(p)
	return err
}

func (t *tlsTransport) closeWrite(*Conn) error { return t.conn.CloseWrite() }

// wire is the net.Conn below crypto/tls. During the handshake it is the socket,
// for the handshake's goroutine, which it parks until the loop has an event.
// Afterwards it is memory, for the loop.
type wire struct {
	fd            int
	local, remote netip.AddrPort
	in            []byte // to be read first

	event     chan struct{}   // of the socket; holds one
	cancelled <-chan struct{} // of the handshake

	c   *Conn // whose output is written to; nil during the handshake
	end error // io.EOF if nothing comes after in
}

// errLater says that there is nothing to read now. It is temporary, so that crypto/tls asks again.
var errLater net.Error = laterError{}

type laterError struct{}

func (laterError) Error() string   { return "nothing to read yet" }
func (laterError) Timeout() bool   { return true }
func (laterError) Temporary() bool { return true }

// adopt ends the handshake: from now on wire is memory, and the loop's.
func (w *wire) adopt(c *Conn) {
	w.c = c
	w.event, w.cancelled = nil, nil
}

// wake tells the handshake that the socket had an event.
func (w *wire) wake() {
	select {
	case w.event <- struct{}{}:
	default:
	}
}

// park waits for an event of the socket.
func (w *wire) park() error {
	select {
	case <-w.event:
		return nil
	case <-w.cancelled:
		return net.ErrClosed
	}
}

// Read is called by crypto/tls.
func (w *wire) Read(p []byte) (int, error) {
	if len(w.in) > 0 {
		n := copy(p, w.in)
		w.in = w.in[n:]
		return n, nil
	}
	w.in = nil // hold no memory while idle
	if w.c != nil {
		if w.end != nil {
			return 0, w.end
		}
		return 0, errLater
	}
	for {
		n, errno := recv(w.fd, p)
		switch {
		case errno == unix.EAGAIN:
			if err := w.park(); err != nil {
				return 0, err
			}
		case errno != 0:
			return 0, fmt.Errorf("read: %w", errno)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write is called by crypto/tls.
func (w *wire) Write(p []byte) (int, error) {
	if w.c != nil {
		w.c.buffer(p)
		w.c.loop.touch(w.c) // also for what crypto/tls sends by itself, such as the answer to a KeyUpdate
		return len(p), nil
	}
	sent := 0
	for sent < len(p) {
		n, errno := send(w.fd, p[sent:])
		if errno == unix.EAGAIN {
			if err := w.park(); err != nil {
				return sent, err
			}
		} else if errno != 0 {
			return sent, fmt.Errorf("write: %w", errno)
		}
		sent += n
	}
	return sent, nil
}

// Close is called by crypto/tls when the handshake is cancelled, which ends park by itself. The socket is the loop's.
func (*wire) Close() error { return nil }

// LocalAddr is for the callbacks of tls.Config, which may see the connection.
func (w *wire) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(w.local) }

// RemoteAddr is for the callbacks of tls.Config, and for crypto/tls to name a session by.
func (w *wire) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(w.remote) }

// SetDeadline does nothing: the loop has its own timers, and writing to memory does not block.
func (*wire) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (*wire) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (*wire) SetWriteDeadline(time.Time) error { return nil }
