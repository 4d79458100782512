package loop

import (
	"context"
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/proxy/tls13"
)

const (
	// handshakesMax bounds the handshakes under way on a loop. Each is a goroutine of some 30 KB.
	handshakesMax = 4096
	// flightBytes is what one read of a handshake takes: most flights.
	flightBytes = 4 << 10
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
	c.startTLS(cfg, false, timeout, done)
}

// StartTLSClient is StartTLSServer for the other side. cfg must name the server
// or verify it by itself, and must not allow renegotiation.
func (c *Conn) StartTLSClient(cfg *tls.Config, timeout time.Duration, done func(error)) {
	c.startTLS(cfg, true, timeout, done)
}

// TLS describes the TLS connection, or the one that carries the connection; nil without TLS and before the handshake is
// done. It must not be changed: its certificates are shared with other connections. What they were verified by is not kept.
func (c *Conn) TLS() *tls.ConnectionState {
	switch t := c.transport.(type) {
	case *recordTransport:
		return t.state
	case *tlsTransport:
		return t.state
	case *carriage:
		return t.TLS()
	}
	return nil
}

func (c *Conn) startTLS(cfg *tls.Config, client bool, timeout time.Duration, done func(error)) {
	if c.state != alive {
		return
	}
	_, plaintext := c.transport.(plain)
	if !plaintext && c.carried() == nil || c.handshake != nil {
		panic("loop: TLS started twice on a connection")
	}
	if timeout <= 0 {
		timeout = handshakeTimeout
	}
	h := &handshake{c: c, client: client, done: done, flight: &flight{fd: int(c.fd)}}
	h.wire = &wire{local: c.LocalAddr(), remote: c.remote, flight: h.flight}
	if c.carried() != nil {
		h.err = ErrCarried
	} else if cfg.Renegotiation != tls.RenegotiateNever {
		h.err = errors.New("tls config allows renegotiation, which is not supported; use RenegotiateNever")
	}
	if !c.loop.cfg.StdlibTLS && !fips140.Enabled() {
		h.flight.secrets = &tls13.Secrets{}
		cfg = h.flight.secrets.Tap(cfg, !client)
	}
	if client {
		h.conn, h.tickets = tls.Client(h.wire, cfg), cfg.ClientSessionCache != nil && !cfg.SessionTicketsDisabled
	} else {
		h.conn = tls.Server(h.wire, cfg)
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
	c        *Conn
	client   bool
	tickets  bool // a client's configuration remembers sessions
	conn     *tls.Conn
	wire     *wire   // below conn
	flight   *flight // of wire
	done     func(error)
	deadline Timer
	held     output                  // plaintext written meanwhile
	err      error                   // why it cannot succeed
	cancel   context.CancelCauseFunc // nil until the goroutine runs
}

func (h *handshake) running() bool { return h.cancel != nil }

func (h *handshake) wake() { h.flight.wake() }

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
	h.end(nil, h.err)
	return true
}

// begin starts the goroutine, with what is already read.
func (h *handshake) begin() {
	c, f := h.c, h.flight
	if c.kept != nil {
		f.in = slices.Clone(c.kept.bytes())
		c.loop.chunks.give(c.kept)
		c.kept = nil
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	h.cancel = cancel
	f.cancelled = ctx.Done()
	f.event = make(chan struct{}, 1)
	c.loop.handshakes++
	c.loop.helpers.Go(func() {
		var t transport
		err := h.conn.HandshakeContext(ctx)
		if err == nil {
			t, err = h.transport()
		}
		f.clear()
		c.loop.Post(func() {
			c.loop.handshakes--
			cancel(nil)
			h.end(t, err)
		})
	})
}

// transport is what goes on after the handshake: our records if they can.
func (h *handshake) transport() (transport, error) {
	f, w := h.flight, h.wire
	state := h.c.loop.peers.summary(h.conn.ConnectionState())
	w.flight, w.in = nil, nil
	if f.secrets == nil || state.Version != tls.VersionTLS13 || !tls13.Supports(state.CipherSuite) {
		w.c, w.in = h.c, f.in
		return &tlsTransport{wire: w, conn: h.conn, state: state}, nil
	}
	cfg := tls13.Config{Suite: state.CipherSuite, Client: h.client, Secrets: f.secrets, Sent: f.sent}
	if h.tickets {
		cfg.Ticket = ticketTaker(h.conn, w)
	}
	session, err := tls13.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("go on with our own records: %w", err)
	}
	return &recordTransport{session: session, state: state, early: f.in}, nil
}

// ticketTaker returns a function that has conn, on w, read a record with tickets, for its session cache. What it has
// to say to the peer is dropped, because it does not know what we have written; it matters only to crypto/tls if
// it does not like the ticket.
func ticketTaker(conn *tls.Conn, w *wire) func(record []byte) {
	return func(record []byte) {
		var none [1]byte
		w.in = record
		_, _ = conn.Read(none[:]) // errLater
		w.in = nil
	}
}

// end takes the socket back and has the connection go on with t, or end.
func (h *handshake) end(t transport, err error) {
	c := h.c
	h.deadline.Stop()
	c.handshake = nil
	defer h.held.clear(&c.loop.chunks)
	c.loop.touch(c)
	if t != nil && (c.state != alive || h.err != nil) {
		t.forget(c)
	}
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
	c.transport = t
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

// flight is the handshake's side of a socket, for the handshake's goroutine,
// which it parks until the loop has an event. It reads ahead, but gives crypto/tls
// no byte of the next record before that asks for it: what is left at the end is ours.
type flight struct {
	fd     int
	in     []byte // read and not asked for yet
	buffer []byte // what in is read into
	header [tls13.HeaderBytes]byte
	have   int // of the header of the record that crypto/tls is reading
	left   int // of the rest of that record, once the header is there

	secrets *tls13.Secrets // nil if crypto/tls is to go on
	sent    []byte         // since the secrets are known

	event     chan struct{}   // of the socket; holds one
	cancelled <-chan struct{} // of the handshake
}

// clear forgets the secrets, of which a session has its own copy.
func (f *flight) clear() {
	if f.secrets != nil {
		f.secrets.Clear()
	}
}

// wake tells the handshake that the socket had an event.
func (f *flight) wake() {
	select {
	case f.event <- struct{}{}:
	default:
	}
}

// park waits for an event of the socket.
func (f *flight) park() error {
	select {
	case <-f.event:
		return nil
	case <-f.cancelled:
		return net.ErrClosed
	}
}

// read gives out what is there of the present record's header, or else of its rest.
func (f *flight) read(p []byte) (int, error) {
	if len(f.in) == 0 {
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	var n int
	if f.have < len(f.header) {
		n = copy(f.header[f.have:], f.in[:min(len(p), len(f.in))])
		if f.have += n; f.have == len(f.header) {
			f.left = int(f.header[3])<<8 | int(f.header[4])
		}
	} else {
		n = min(len(p), len(f.in), f.left)
		f.left -= n
	}
	if f.have == len(f.header) && f.left == 0 {
		f.have = 0
	}
	copy(p, f.in[:n])
	if f.in = f.in[n:]; len(f.in) == 0 {
		f.in = nil // what goes on after the handshake keeps no buffer for nothing
	}
	return n, nil
}

// fill reads from the socket.
func (f *flight) fill() error {
	if f.buffer == nil {
		f.buffer = make([]byte, flightBytes)
	}
	for {
		n, errno := recv(f.fd, f.buffer)
		switch {
		case errno == unix.EAGAIN:
			if err := f.park(); err != nil {
				return err
			}
		case errno != 0:
			return fmt.Errorf("read: %w", errno)
		case n == 0:
			return io.EOF
		default:
			f.in = f.buffer[:n]
			return nil
		}
	}
}

// write sends p, which crypto/tls makes of whole records.
func (f *flight) write(p []byte) (int, error) {
	if f.secrets != nil && f.secrets.Known() {
		f.sent = append(f.sent, p...)
	}
	sent := 0
	for sent < len(p) {
		n, errno := send(f.fd, p[sent:], 0)
		if errno == unix.EAGAIN {
			if err := f.park(); err != nil {
				return sent, err
			}
		} else if errno != 0 {
			return sent, fmt.Errorf("write: %w", errno)
		}
		sent += n
	}
	return sent, nil
}

// wire is the net.Conn below crypto/tls. During the handshake it is the socket, through a flight. Afterwards it is
// memory, for the loop.
type wire struct {
	local, remote netip.AddrPort
	flight        *flight // nil after the handshake
	in            []byte  // to be read first
	c             *Conn   // whose output is written to; nil drops it
	end           error   // io.EOF if nothing comes after in
}

// errLater says that there is nothing to read now. It is temporary, so that crypto/tls asks again.
var errLater net.Error = laterError{}

type laterError struct{}

func (laterError) Error() string   { return "nothing to read yet" }
func (laterError) Timeout() bool   { return true }
func (laterError) Temporary() bool { return true }

// Read is called by crypto/tls.
func (w *wire) Read(p []byte) (int, error) {
	if w.flight != nil {
		return w.flight.read(p)
	}
	if len(w.in) > 0 {
		n := copy(p, w.in)
		w.in = w.in[n:]
		return n, nil
	}
	w.in = nil // hold no memory while idle
	if w.end != nil {
		return 0, w.end
	}
	return 0, errLater
}

// Write is called by crypto/tls.
func (w *wire) Write(p []byte) (int, error) {
	if w.flight != nil {
		return w.flight.write(p)
	}
	if w.c != nil {
		w.c.buffer(p)
		w.c.loop.touch(w.c) // also for what crypto/tls sends by itself, such as the answer to a KeyUpdate
	}
	return len(p), nil
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
