package load

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	eventsMax   = 512
	scratchSize = 256 << 10
	// outMax bounds what waits to be written on one connection.
	outMax  = 8 << 20
	backlog = 4096
)

// loop owns descriptors and tells their owners what happens on them. It belongs to one goroutine.
type loop struct {
	epoll   int
	files   []*conn // by descriptor; listeners too
	events  [eventsMax]unix.EpollEvent
	scratch []byte
	opened  []byte  // scratch for what was decrypted
	closed  []*conn // during the present events
	spare   []*conn
	err     error // what ended the loop
	serial  int32 // of the newest connection
}

// owner is what a connection is used for. All calls come from the loop.
type owner interface {
	// opened says that the connection is established.
	opened(c *conn)
	// read brings bytes, which are valid during the call.
	read(c *conn, p []byte)
	// closed says that the other side has closed (io.EOF) or that the connection failed; it is closed already.
	closed(c *conn, err error)
}

// conn is one connection, or one listener if accept is set.
type conn struct {
	loop    *loop
	fd      int
	serial  int32 // tells an event for this connection from one for an earlier one with the same descriptor
	owner   owner
	accept  func() owner
	out     []byte // what could not be written yet
	dialing bool
	armed   bool // for writability
	more    func(c *conn)
	secure  *secure // nil: plaintext
}

var errOut = errors.New("the other side does not read")

func newLoop() (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll descriptor: %w", err)
	}
	// Sleep as long as asked for, not 50 µs longer.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("set the timer slack: %w", err)
	}
	return &loop{epoll: fd, scratch: make([]byte, scratchSize)}, nil
}

// fail ends the loop with the first error.
func (l *loop) fail(err error) {
	if l.err == nil {
		l.err = err
	}
}

// add registers a descriptor.
func (l *loop) add(fd int, events uint32) (*conn, error) {
	if fd >= len(l.files) {
		l.files = append(l.files, make([]*conn, fd+64-len(l.files))...)
	}
	var c *conn
	if n := len(l.spare); n > 0 {
		c = l.spare[n-1]
		l.spare = l.spare[:n-1]
		*c = conn{out: c.out[:0]}
	} else {
		c = &conn{}
	}
	l.serial++
	c.loop, c.fd, c.serial = l, fd, l.serial
	l.files[fd] = c
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: c.serial}); err != nil {
		return nil, fmt.Errorf("watch a descriptor: %w", err)
	}
	return c, nil
}

// dial connects; the owner is told when that is done.
func (l *loop) dial(to netip.AddrPort, o owner) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket: %w", err)
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = unix.Close(fd)
		return fmt.Errorf("connect to %s: %w", to, err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	c, err := l.add(fd, unix.EPOLLIN|unix.EPOLLOUT)
	if err != nil {
		return err
	}
	c.owner, c.dialing, c.armed = o, true, true
	return nil
}

// listen opens a port, of 127.0.0.1 any that is free if none is named, and returns its address; accept makes the owner
// of each connection.
func (l *loop) listen(at netip.AddrPort, accept func() owner) (netip.AddrPort, error) {
	var none netip.AddrPort
	if !at.IsValid() {
		at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return none, fmt.Errorf("make a socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		return none, fmt.Errorf("bind to %s: %w", at, err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return none, fmt.Errorf("listen: %w", err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return none, fmt.Errorf("read the bound address: %w", err)
	}
	c, err := l.add(fd, unix.EPOLLIN)
	if err != nil {
		return none, err
	}
	c.accept = accept
	return netip.AddrPortFrom(at.Addr(), uint16(bound.(*unix.SockaddrInet4).Port)), nil
}

// wait handles what is ready, waiting for it at most so long; negative: for ever.
func (l *loop) wait(limit time.Duration) {
	var ts unsafe.Pointer
	if limit >= 0 {
		spec := unix.NsecToTimespec(int64(limit))
		ts = unsafe.Pointer(&spec)
	}
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.epoll), uintptr(unsafe.Pointer(&l.events[0])), eventsMax,
		uintptr(ts), 0, 0)
	if errno != 0 {
		if errno != unix.EINTR {
			l.fail(os.NewSyscallError("epoll_pwait2", errno))
		}
		return
	}
	for i := range l.events[:n] {
		if c := l.files[l.events[i].Fd]; c != nil && c.serial == l.events[i].Pad {
			c.ready(l.events[i].Events)
		}
	}
	l.spare = append(l.spare, l.closed...)
	l.closed = l.closed[:0]
}

// ready handles one event.
func (c *conn) ready(events uint32) {
	switch {
	case c.accept != nil:
		c.acceptAll()
		return
	case c.dialing && events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0:
		if code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
			c.end(fmt.Errorf("connect: %w", errors.Join(err, syscall.Errno(code))))
			return
		}
		c.dialing = false
		c.arm(false)
		c.owner.opened(c)
		if c.fd >= 0 {
			c.flush()
		}
		return
	}
	if events&unix.EPOLLOUT != 0 {
		c.flush()
		if c.fd >= 0 && len(c.out) == 0 && c.more != nil {
			c.more(c)
		}
	}
	if c.fd >= 0 && events&^unix.EPOLLOUT != 0 {
		c.receive()
	}
}

func (c *conn) acceptAll() {
	for {
		fd, _, err := unix.Accept4(c.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EINTR) {
				c.loop.fail(fmt.Errorf("accept: %w", err))
			}
			return
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			c.loop.fail(fmt.Errorf("set TCP_NODELAY: %w", err))
			return
		}
		in, err := c.loop.add(fd, unix.EPOLLIN)
		if err != nil {
			c.loop.fail(err)
			return
		}
		in.owner = c.accept()
		in.owner.opened(in)
		in.flush()
	}
}

// receive reads once and hands over what came.
func (c *conn) receive() {
	buf := c.loop.scratch
	n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
	case errno != 0:
		c.end(os.NewSyscallError("read", errno))
	case n == 0:
		c.end(io.EOF)
	default:
		c.owner.read(c, buf[:n])
		if c.fd >= 0 {
			c.flush()
		}
	}
}

// write sends bytes now, as far as the kernel takes them, and the rest later; encrypted if the connection is.
func (c *conn) write(p []byte) {
	if c.secure == nil {
		c.sendOut(p)
	} else if _, err := c.secure.session.Write(p); err != nil && c.fd >= 0 {
		c.end(err)
	}
}

// sendOut sends bytes as they are.
func (c *conn) sendOut(p []byte) {
	if len(c.out) == 0 && !c.dialing {
		p = p[c.send(p):]
	}
	if len(p) > 0 && c.fd >= 0 {
		c.queue(p)
		c.arm(true)
	}
}

// queue sends bytes when the present event has been handled.
func (c *conn) queue(p []byte) {
	c.out = append(c.out, p...)
	if len(c.out) > outMax {
		c.loop.fail(errOut)
	}
}

// flush sends what is queued.
func (c *conn) flush() {
	if len(c.out) == 0 || c.dialing {
		return
	}
	n := c.send(c.out)
	if c.fd < 0 {
		return
	}
	if n == len(c.out) {
		c.out = c.out[:0]
	} else {
		c.out = slices.Delete(c.out, 0, n)
	}
	c.arm(len(c.out) > 0)
}

// send writes once and returns how much the kernel took.
func (c *conn) send(p []byte) int {
	n, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return 0
	case errno != 0:
		c.end(os.NewSyscallError("write", errno))
		return 0
	}
	return int(n)
}

// arm watches for writability too, or no longer.
func (c *conn) arm(on bool) {
	if c.armed == on {
		return
	}
	c.armed = on
	events := uint32(unix.EPOLLIN)
	if on {
		events |= unix.EPOLLOUT
	}
	if err := unix.EpollCtl(c.loop.epoll, unix.EPOLL_CTL_MOD, c.fd, &unix.EpollEvent{Events: events, Fd: int32(c.fd), Pad: c.serial}); err != nil {
		c.loop.fail(fmt.Errorf("watch a descriptor: %w", err))
	}
}

// close closes without telling the owner.
func (c *conn) close() {
	if c.fd < 0 {
		return
	}
	c.loop.files[c.fd] = nil
	_ = unix.Close(c.fd)
	c.fd = -1
	c.loop.closed = append(c.loop.closed, c)
}

// end closes and tells the owner why.
func (c *conn) end(err error) {
	if c.fd < 0 {
		return
	}
	o := c.owner
	c.close()
	o.closed(c, err)
}
