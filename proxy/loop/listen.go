package loop

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// acceptsPerBatch bounds the connections that a listener takes at once, so that those which are open are not starved.
	acceptsPerBatch = 64
	// acceptRetry is how long a listener rests when descriptors or memory have run out.
	acceptRetry = 100 * time.Millisecond
)

// Listener accepts connections for a loop.
type Listener struct {
	loop   *Loop
	fd     int
	accept func(c *Conn)
	retry  Timer
	closed bool
	tired  bool // descriptors or memory have run out and that has been logged
}

// Listen has the loop accept connections from fd, a socket that listens
// already, and own it: Close closes it. accept is called for each connection
// and gives it a handler, or closes it.
func (l *Loop) Listen(fd int, accept func(c *Conn)) (*Listener, error) {
	if l.stopping {
		return nil, fmt.Errorf("listen: %w", ErrStopped)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("set listening socket non-blocking: %w", err)
	}
	// Accepted sockets inherit this. It fails for sockets that are not TCP, which have no such delay.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if l.cfg.Accelerated {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) // Inherited, too.
	}
	ln := &Listener{loop: l, fd: fd, accept: accept}
	ln.retry.Init(l, ln.resume)
	if err := l.attach(fd, ln, unix.EPOLLIN); err != nil {
		return nil, err
	}
	return ln, nil
}

// Close stops accepting and closes the socket. Connections accepted before stay.
func (ln *Listener) Close() {
	if ln.closed {
		return
	}
	ln.closed = true
	// The socket may live on in another process, and would then go on waking the loop.
	if !ln.retry.Stop() {
		_ = ln.loop.poll.del(ln.fd)
	}
	ln.loop.detach(ln.fd)
	_ = unix.Close(ln.fd)
}

func (ln *Listener) stop() { ln.Close() }

// ready accepts. What remains makes another event, because listeners are level-triggered.
func (ln *Listener) ready(uint32) {
	for range acceptsPerBatch {
		if ln.closed {
			return
		}
		fd, errno := accept(ln.fd, &ln.loop.from)
		switch errno {
		case 0:
			ln.take(fd)
		case unix.EAGAIN:
			ln.tired = false
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			ln.rest(errno)
			return
		case unix.EBADF, unix.EINVAL, unix.ENOTSOCK, unix.EFAULT:
			ln.loop.cfg.Logger.Error("listener closed: its socket does not listen (any more); was it shut down elsewhere?",
				"address", localAddr(ln.fd), "error", errno)
			ln.Close()
			return
		default: // a connection that ended before it was accepted, or an error of its network (accept(2))
		}
	}
}

// take makes a connection of an accepted socket and has it read at once: its first bytes have often come with it.
func (ln *Listener) take(fd int) {
	l := ln.loop
	c := l.newConn(fd, addrPort(&l.from))
	if err := l.attach(fd, c, connEvents); err != nil {
		l.cfg.Logger.Warn("connection dropped: the kernel cannot watch it", "peer", c.remote, "error", err)
		_ = unix.Close(fd)
		return
	}
	c.flags |= readable
	ln.accept(c)
	c.wantRead()
}

// rest stops accepting for a while, because trying again at once would fail again at once.
func (ln *Listener) rest(errno syscall.Errno) {
	if !ln.tired {
		ln.tired = true
		ln.loop.cfg.Logger.Warn("accepting connections is suspended: out of descriptors or memory; raise the limit of open files (ulimit -n)",
			"address", localAddr(ln.fd), "error", errno, "retry", acceptRetry)
	}
	_ = ln.loop.poll.del(ln.fd)
	ln.retry.Reset(acceptRetry)
}

// resume accepts again.
func (ln *Listener) resume() {
	if err := ln.loop.poll.add(ln.fd, ln.loop.slots[ln.fd].gen, unix.EPOLLIN); err != nil {
		ln.retry.Reset(acceptRetry)
	}
}
