package loop

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// connectTimeout is for those who do not say.
const connectTimeout = 10 * time.Second

// DialOptions say how to connect. The zero value is ready for use. TCP_NODELAY is always set.
type DialOptions struct {
	// Timeout bounds the time to connect; default 10 seconds.
	Timeout time.Duration
	// Source is the address to connect from; the kernel chooses what is left out. Port 0 means any.
	Source netip.AddrPort
	// Mark is the socket's SO_MARK, which rules for packets can tell it by; 0 means none. It needs CAP_NET_ADMIN.
	Mark uint32
	// KeepAlive has the kernel probe the connection while it is idle.
	KeepAlive KeepAlive
}

// KeepAlive is TCP keep-alive (RFC 9293 section 3.8.4). A zero field leaves the system's default.
type KeepAlive struct {
	// Enabled switches probing on.
	Enabled bool
	// Idle is the time without traffic until the first probe, in whole seconds.
	Idle time.Duration
	// Interval is the time between probes, in whole seconds.
	Interval time.Duration
	// Probes is how many unanswered probes end the connection.
	Probes int
}

// Dialing is a connection that is being made.
type Dialing struct {
	loop     *Loop
	conn     *Conn
	addr     netip.AddrPort
	done     func(c *Conn, err error) // nil when called or cancelled
	deadline Timer
	err      error // what deadline stands for
}

// Dial connects to addr. done is called on the loop, never from within Dial,
// with the connection, which it gives a handler or closes, or with an error;
// not at all if the loop is about to stop and has closed everything else.
func (l *Loop) Dial(addr netip.AddrPort, o DialOptions, done func(c *Conn, err error)) *Dialing {
	d := &Dialing{loop: l, addr: addr, done: done}
	d.deadline.Init(l, d.expire)
	if err := d.start(o); err != nil {
		d.err = err
		d.deadline.Reset(0)
		return d
	}
	d.err = ErrTimeout
	if o.Timeout <= 0 {
		o.Timeout = connectTimeout
	}
	d.deadline.Reset(o.Timeout)
	return d
}

// Cancel gives up; done will not be called. It does nothing once done has been called.
func (d *Dialing) Cancel() {
	d.done = nil
	d.deadline.Stop()
	d.drop()
}

// start opens the socket and begins to connect. d.conn is set if it owns a socket.
func (d *Dialing) start(o DialOptions) error {
	if d.loop.stopping {
		return ErrStopped
	}
	to, family, err := sockaddr(d.addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	err = o.apply(fd)
	if err == nil && d.loop.cfg.Accelerated {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	}
	if err == nil {
		if err = unix.Connect(fd, to); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
	}
	if err == nil {
		err = d.loop.attach(fd, d, connEvents)
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	d.conn = d.loop.newConn(fd, netip.AddrPortFrom(d.addr.Addr().Unmap(), d.addr.Port()))
	return nil
}

func (o *DialOptions) apply(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	if o.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark)); err != nil {
			return fmt.Errorf("set SO_MARK %#x (it needs CAP_NET_ADMIN): %w", o.Mark, err)
		}
	}
	if err := o.KeepAlive.apply(fd); err != nil {
		return fmt.Errorf("set keep-alive: %w", err)
	}
	if !o.Source.Addr().IsValid() {
		return nil
	}
	from, _, err := sockaddr(o.Source)
	if err != nil {
		return err
	}
	if o.Source.Port() == 0 {
		// Let connect choose the port, which then need only be free towards this destination.
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("set IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
	}
	if err := unix.Bind(fd, from); err != nil {
		return fmt.Errorf("bind to %s: %w", o.Source, err)
	}
	return nil
}

func (k *KeepAlive) apply(fd int) error {
	if !k.Enabled {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); err != nil {
		return err
	}
	for _, v := range []struct{ option, value int }{
		{unix.TCP_KEEPIDLE, int(k.Idle / time.Second)},
		{unix.TCP_KEEPINTVL, int(k.Interval / time.Second)},
		{unix.TCP_KEEPCNT, k.Probes},
	} {
		if v.value == 0 {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, v.option, v.value); err != nil {
			return err
		}
	}
	return nil
}

// ready takes the socket's first event, which tells how connecting ended.
func (d *Dialing) ready(events uint32) {
	if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
		return
	}
	c := d.conn
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		if err := pendingError(int(c.fd)); err != nil {
			d.finish(err)
			return
		}
	}
	if c.LocalAddr() == c.remote {
		// Both ends chose the same port and the kernel joined the socket to itself (RFC 9293 section 3.5, simultaneous
		// open): nobody listens there.
		d.finish(unix.ECONNREFUSED)
		return
	}
	d.loop.slots[c.fd].src = c
	done := d.done
	d.done, d.conn = nil, nil
	d.deadline.Stop()
	done(c, nil)
	c.ready(events)
}

// expire is called when the time is up, or at once for what failed at once.
func (d *Dialing) expire() { d.finish(d.err) }

func (d *Dialing) stop() { d.finish(ErrStopped) }

// finish reports a failure.
func (d *Dialing) finish(err error) {
	d.deadline.Stop()
	d.drop()
	if done := d.done; done != nil {
		d.done = nil
		done(nil, fmt.Errorf("connect to %s: %w", d.addr, err))
	}
}

// drop closes the socket, if there is one still.
func (d *Dialing) drop() {
	if c := d.conn; c != nil {
		d.conn = nil
		d.loop.detach(int(c.fd))
		c.state = closed
		closeSocket(int(c.fd))
	}
}
