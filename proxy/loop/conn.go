package loop

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Handler is what a connection's user does with it. All calls come on the loop.
// A handler may call any method of any connection of the same loop, Close
// included; none calls back before it returns.
type Handler interface {
	// OnData gets all that is unread, and returns how many bytes of it were
	// consumed. The rest is kept and offered again, with more behind it, when more
	// has come, or after ResumeRead or SetHandler. p is valid during the call; its
	// contents may be changed. Consuming nothing of KeepBytesMax bytes or more,
	// unless reading is paused, closes the connection with ErrTooLong.
	OnData(c *Conn, p []byte) int
	// OnEOF tells that the peer will send no more: its FIN or, with TLS, its
	// close_notify. What was kept stays unread. The connection stays writable until
	// it is closed.
	OnEOF(c *Conn)
	// OnClose is the last call. err is nil after Close or Abort, else why the
	// connection ended.
	OnClose(c *Conn, err error)
	// OnDrain tells that the connection is no longer Full.
	OnDrain(c *Conn)
}

// transport is what stands between a handler's bytes and the socket's: nothing
// (plain), our TLS records (recordTransport), or crypto/tls (tlsTransport); or,
// where there is no socket, a Carrier (carriage).
type transport interface {
	// read puts what the peer has sent into p, which has room for one read's worth,
	// without blocking. more tells that calling again makes sense without an event.
	// n bytes are valid also if err is not nil; io.EOF is the orderly end.
	read(c *Conn, p []byte) (n int, more bool, err error)
	// write sends p, or appends it to the output.
	write(c *Conn, p []byte) error
	// flush completes what write has appended, so that the output can be sent.
	flush(c *Conn)
	// closeWrite appends what says that nothing follows.
	closeWrite(c *Conn) error
	// forget gives back what is held for c, which is over.
	forget(c *Conn)
}

// plain is the transport of bytes as they are.
type plain struct{}

// directBytes is the length from which bytes are given to the kernel at once
// instead of being copied first: they are worth a system call of their own.
const directBytes = 16 << 10

func (plain) read(c *Conn, p []byte) (int, bool, error) {
	return c.receive(p[:c.loop.cfg.ReadBytes])
}

func (plain) write(c *Conn, p []byte) error {
	if len(p) >= directBytes {
		p = p[c.send(p):]
	}
	c.buffer(p)
	return nil
}

func (plain) flush(*Conn) {}

func (plain) closeWrite(*Conn) error { return nil }

func (plain) forget(*Conn) {}

type flags uint16

const (
	readable flags = 1 << iota // the kernel may have bytes, or the end, for us
	drain                      // a read that fills less than its buffer has not necessarily read all
	paused                     // by PauseRead
	offer                      // what is kept is to be offered without waiting for more
	queued                     // in Loop.ready
	dirty                      // in Loop.dirty
	full                       // output rose over HighWater and has not yet fallen to LowWater
	blocked                    // the kernel takes no more output until it says so
	broken                     // the kernel takes no more output ever; Conn.cause says why
	shut                       // CloseWrite was called
	shutDone                   // and is done
	ended                      // OnEOF was called
	held                       // the carrier is paused
	last                       // the peer has said that it sends no more
)

type state uint8

const (
	alive     state = iota
	closing         // by Close, or by a failure that the peer should learn of: output is being sent
	lingering       // OnClose was called, FIN sent; waiting for the peer's, so that no RST destroys what it has yet to read
	dying           // to be reset at the end of the batch
	closed
)

// connEvents are asked for once, edge-triggered, so that pausing and resuming cost no system call. EPOLLPRI tells of
// urgent data, at whose mark a read stops short.
const connEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET

// Conn is a connection of a loop: a socket, or something else that carries bytes (see Carry). Its methods may be called on the loop only.
// After Close or Abort they do nothing.
type Conn struct {
	loop      *Loop
	handler   Handler
	transport transport
	handshake *handshake // under way or about to be; nil otherwise
	out       output     // for the kernel
	kept      *chunk     // read and not consumed
	deadline  *Timer     // of closing
	end       error      // what reading ended with: io.EOF or a failure
	cause     error      // for OnClose
	remote    netip.AddrPort
	fd        int32 // -1 with a carrier
	flags     flags
	state     state
}

// newConn makes a connection of the socket fd, which is still to be attached.
func (l *Loop) newConn(fd int, remote netip.AddrPort) *Conn {
	return &Conn{loop: l, transport: plain{}, fd: int32(fd), remote: remote}
}

// Loop is the loop that c belongs to.
func (c *Conn) Loop() *Loop { return c.loop }

// SetHandler makes h the handler of c from the next call on. What is kept is
// offered to it, and the end of reading told to it, even if another handler knew
// of them. Nothing is read while there is no handler.
func (c *Conn) SetHandler(h Handler) {
	c.handler = h
	c.flags |= offer
	c.flags &^= ended
	c.wantRead()
}

// Write sends p in order, after a handshake if one is under way. It copies what
// the kernel does not take at once, and never blocks; see Full. After CloseWrite
// or a failure p is dropped.
func (c *Conn) Write(p []byte) {
	if c.state != alive || c.flags&(shut|broken) != 0 || len(p) == 0 {
		return
	}
	l := c.loop
	if c.handshake != nil {
		c.handshake.held.add(&l.chunks, p)
	} else if err := c.transport.write(c, p); err != nil {
		c.fail(fmt.Errorf("write: %w", err), closing)
		return
	}
	if n := c.Buffered(); n > l.cfg.HighWater {
		c.flags |= full
		if n > outputBytesMax {
			c.fail(ErrOverflow, dying)
		}
	} else if t := c.carried(); t != nil && t.Full() {
		c.flags |= full
	}
	l.touch(c)
}

// buffer appends p to the output.
func (c *Conn) buffer(p []byte) {
	if c.flags&broken == 0 {
		c.out.add(&c.loop.chunks, p)
	}
}

// Buffered is how many bytes wait for the kernel, with TLS encrypted ones, or for the end of the handshake.
func (c *Conn) Buffered() int {
	if c.handshake != nil {
		return int(c.out.n + c.handshake.held.n)
	}
	return int(c.out.n)
}

// Full reports that the waiting output rose over HighWater and has not yet
// fallen to LowWater. When it does, OnDrain is called. Who has more to write
// should wait for that: usually by pausing the connection that it comes from.
func (c *Conn) Full() bool { return c.flags&full != 0 }

// CloseWrite says that nothing more will be written. When the output has been
// sent the peer gets a FIN, preceded by close_notify with TLS. Reading goes on.
func (c *Conn) CloseWrite() {
	if c.state != alive || c.flags&shut != 0 {
		return
	}
	c.flags |= shut
	if c.handshake == nil {
		c.closeTransport()
	}
	c.loop.touch(c)
}

// closeTransport has the transport say that nothing follows. Its failure means that the peer is told otherwise already.
func (c *Conn) closeTransport() { _ = c.transport.closeWrite(c) }

// Close sends the output, as far as the peer takes it within CloseTimeout, and
// closes. OnClose is called with nil, at the end of the batch at the earliest.
func (c *Conn) Close() { c.fail(nil, closing) }

// Finish is Close for a peer that has promised to send nothing more: it is not waited for, unless something of it is there
// or the transport has yet to say goodbye. What a peer sent in spite of that would have its kernel drop our last bytes.
func (c *Conn) Finish() {
	if _, ok := c.transport.(plain); ok && c.handshake == nil && c.kept == nil {
		c.flags |= last
	}
	c.Close()
}

// Abort drops the output and resets the connection (RST). OnClose is called with nil at the end of the batch.
func (c *Conn) Abort() {
	c.fail(nil, dying)
	if c.state == closing {
		c.state = dying
		c.loop.touch(c)
	}
}

// PauseRead stops OnData and OnEOF until ResumeRead. The peer is held back when the kernel's buffer is full.
func (c *Conn) PauseRead() {
	c.flags |= paused
	if t := c.carried(); t != nil && c.state == alive && c.flags&held == 0 {
		c.flags |= held
		t.Pause()
	}
}

// ResumeRead ends PauseRead. What is kept is offered first.
func (c *Conn) ResumeRead() {
	if c.flags&paused != 0 {
		c.flags &^= paused
		c.flags |= offer
		c.wantRead()
	}
}

// LocalAddr asks the kernel for our address; invalid if the socket is not TCP over IP or is closed.
func (c *Conn) LocalAddr() netip.AddrPort {
	switch t := c.carried(); {
	case t != nil:
		return t.local
	case c.state == closed:
		return netip.AddrPort{}
	}
	return localAddr(int(c.fd))
}

// Unheard reports whether the other end's kernel has not acknowledged what was sent, although it was sent again. Of one that
// acknowledges, the program may be slow, but the machine is there. Of a connection with a carrier it is not known: false.
func (c *Conn) Unheard() bool {
	if c.state == closed || c.carried() != nil {
		return false
	}
	info, err := unix.GetsockoptTCPInfo(int(c.fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.Retransmits > 0
}

// RemoteAddr is the peer's address; invalid if the socket is not TCP over IP.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// OriginalDst is what the peer dialled before a REDIRECT rule of this network
// namespace sent it here. It fails if the connection was not redirected.
func (c *Conn) OriginalDst() (netip.AddrPort, error) {
	a, err := netip.AddrPort{}, net.ErrClosed
	if c.state != closed && c.carried() == nil {
		a, err = originalDst(int(c.fd), c.remote.Addr().Is4())
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask for the original destination of the connection from %s: %w", c.remote, err)
	}
	return a, nil
}

// listening reports whether the handler may be told what the peer sends.
func (c *Conn) listening() bool {
	return c.state == alive && c.handler != nil && c.handshake == nil && c.flags&paused == 0
}

// wantRead has c served if there may be something to tell.
func (c *Conn) wantRead() {
	if c.listening() && (c.flags&(readable|held) != 0 || c.end != nil || c.flags&offer != 0 && c.kept != nil) {
		c.loop.enqueue(c)
	}
}

// ready takes an event of the socket.
func (c *Conn) ready(events uint32) {
	if c.handshake != nil && c.handshake.running() {
		c.handshake.wake()
		return
	}
	if events&^unix.EPOLLOUT != 0 {
		c.flags |= readable
		if events&^(unix.EPOLLIN|unix.EPOLLOUT) != 0 {
			c.flags |= drain
		}
		if c.state == closing || c.state == lingering {
			c.loop.enqueue(c)
		}
		c.wantRead()
	}
	if events&unix.EPOLLERR != 0 && (!c.listening() || c.end != nil) {
		// No read is going to find out that the peer has reset the connection.
		if err := pendingError(int(c.fd)); err != nil {
			c.fail(err, dying)
		}
	}
	if c.flags&blocked != 0 && events&^(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLPRI) != 0 {
		c.flags &^= blocked
		c.loop.touch(c)
	}
}

// receive reads from the socket. more tells that calling again makes sense without an event.
func (c *Conn) receive(p []byte) (n int, more bool, err error) {
	n, errno := recv(int(c.fd), p)
	c.loop.budget -= n
	switch {
	case errno == unix.EAGAIN:
		c.flags &^= drain
		return 0, false, nil
	case errno != 0:
		return 0, false, fmt.Errorf("read: %w", errno)
	case n == 0:
		return 0, false, io.EOF
	default:
		return n, n == len(p) || c.flags&drain != 0 || c.loop.cfg.Accelerated, nil
	}
}

// serve lets c read once and its handler have what is there.
func (c *Conn) serve() {
	if c.state == closing || c.state == lingering {
		c.discard()
		return
	}
	if !c.listening() {
		return
	}
	scratch := c.loop.plain
	k := c.unkeep(scratch)
	n := 0
	if c.flags&readable != 0 && c.end == nil && k < c.loop.cfg.KeepBytesMax {
		var more bool
		n, more, c.end = c.transport.read(c, scratch[k:])
		if !more {
			c.flags &^= readable
		}
	}
	fresh := n > 0 || c.flags&offer != 0
	c.flags &^= offer
	if p := scratch[:k+n]; fresh && len(p) > 0 {
		c.deliver(p)
	} else {
		c.keep(p)
	}
	if c.flags&held != 0 && c.listening() {
		c.flags &^= held
		c.carried().Resume()
	}
	c.conclude()
}

// deliver gives p to the handler and keeps what it leaves.
func (c *Conn) deliver(p []byte) {
	for len(p) > 0 {
		h := c.handler
		n := h.OnData(c, p)
		if n < 0 || n > len(p) {
			panic(fmt.Sprintf("loop: %T.OnData consumed %d of %d bytes", h, n, len(p)))
		}
		p = p[n:]
		if len(p) < c.loop.cfg.KeepBytesMax || !c.listening() || c.flags&offer != 0 {
			break
		}
		if n == 0 {
			c.fail(ErrTooLong, closing)
		}
	}
	if c.state == alive {
		c.keep(p)
	}
}

// conclude tells the end, if reading has come to it, or has c served again.
func (c *Conn) conclude() {
	switch {
	case !c.listening():
	case c.flags&offer != 0 && c.kept != nil:
		c.wantRead()
	case c.flags&broken != 0 && (c.end != nil || c.flags&readable == 0):
		c.fail(c.cause, dying) // all that the peer had sent before it went away has been delivered
	case c.end == nil:
		c.wantRead()
	case !errors.Is(c.end, io.EOF):
		c.failRead()
	case c.flags&ended == 0:
		c.flags |= ended
		c.handler.OnEOF(c)
	}
}

// failRead ends c after a failure of reading. If it is not the socket's but the transport's, which refused what came,
// the peer is sent what the transport has to say about it.
func (c *Conn) failRead() {
	how := closing
	if _, ok := errors.AsType[syscall.Errno](c.end); ok {
		how = dying
	}
	c.fail(c.end, how)
}

// keep copies p until it can be offered again.
func (c *Conn) keep(p []byte) {
	if len(p) > 0 {
		c.kept = c.loop.chunks.take(len(p))
		c.kept.w = copy(c.kept.b, p)
	}
}

// unkeep moves what is kept to the front of p.
func (c *Conn) unkeep(p []byte) int {
	if c.kept == nil {
		return 0
	}
	n := copy(p, c.kept.bytes())
	c.loop.chunks.give(c.kept)
	c.kept = nil
	return n
}
