package loop

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// eventsPerPoll is how many events one epoll_pwait call takes; more wait in the kernel.
const eventsPerPoll = 256

// poller is an epoll instance that the Go runtime's own poller watches. The
// loop's goroutine parks on it as any goroutine parks on a socket, so an idle
// loop holds no thread: a thread blocked in its own epoll_wait costs twice the
// CPU at low load, because the scheduler has to take its processor away and
// give it back each time.
type poller struct {
	fd     int
	file   *os.File // owns fd and its registration with the runtime's poller
	raw    syscall.RawConn
	check  func(fd uintptr) bool // collect, bound once so that waiting allocates nothing
	events [eventsPerPoll]unix.EpollEvent

	n     int           // events collected by the last call of check
	calls int           // calls of check since wait began
	errno syscall.Errno // what the last call of check met
	armed time.Time     // deadline that file has now; zero if none
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll instance: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set epoll instance non-blocking: %w", err)
	}
	p := &poller{fd: fd, file: os.NewFile(uintptr(fd), "epoll")}
	p.check = p.collect
	// NewFile does not say whether the runtime took the descriptor; a deadline can only be set if it did.
	err = p.file.SetReadDeadline(time.Time{})
	if err == nil {
		p.raw, err = p.file.SyscallConn()
	}
	if err != nil {
		_ = p.file.Close()
		return nil, fmt.Errorf("register epoll instance with the runtime's poller: %w", err)
	}
	return p, nil
}

// close gives the epoll instance back. No other method may be called afterwards.
func (p *poller) close() { _ = p.file.Close() }

// add registers fd. gen comes back with each event, so that an event for a
// descriptor that has since been closed and reused is told apart.
func (p *poller) add(fd int, gen, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd), Pad: int32(gen)}
	if _, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), unix.EPOLL_CTL_ADD, uintptr(fd),
		uintptr(unsafe.Pointer(&ev)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// del unregisters fd.
func (p *poller) del(fd int) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil)
}

// wait returns the events that are ready. If there are none and park is set, it
// parks the goroutine until there are some or until the deadline (zero: none);
// it may also return nothing early. parked tells whether other goroutines had
// their turn meanwhile. The events are valid until the next call.
func (p *poller) wait(park bool, deadline, now time.Time) (events []unix.EpollEvent, parked bool, err error) {
	p.calls, p.n, p.errno = 0, 0, 0
	if !park || !deadline.IsZero() && !deadline.After(now) {
		p.collect(0)
	} else {
		if err := p.arm(deadline, now); err != nil {
			return nil, false, fmt.Errorf("set the deadline for events: %w", err)
		}
		err := p.raw.Read(p.check)
		expired := errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !expired {
			return nil, false, fmt.Errorf("wait for events: %w", err)
		}
		parked = p.calls > 1 || expired && p.calls > 0
		if p.calls == 0 {
			p.collect(0) // the deadline had passed by now, so that Read did nothing
		}
	}
	if p.errno != 0 {
		return nil, parked, fmt.Errorf("wait for events: %w", p.errno)
	}
	return p.events[:p.n], parked, nil
}

// arm sets the deadline of the next park. An armed deadline that is earlier
// than necessary stays: waking once for nothing is cheaper than moving the
// runtime's timer each time an idle timeout is pushed back.
func (p *poller) arm(deadline, now time.Time) error {
	pending := p.armed.After(now)
	if pending && (deadline.IsZero() || !deadline.Before(p.armed)) {
		return nil
	}
	if p.armed.IsZero() && deadline.IsZero() {
		return nil
	}
	p.armed = deadline
	return p.file.SetReadDeadline(deadline)
}

// collect takes what is ready without blocking. It reports whether there is something to return to the caller of wait.
func (p *poller) collect(uintptr) bool {
	p.calls++
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd),
		uintptr(unsafe.Pointer(&p.events[0])), eventsPerPoll, 0, 0, 0)
	switch errno {
	case 0:
		p.n, p.errno = int(n), 0
	case unix.EINTR:
		p.n, p.errno = 0, 0
		return true // have wait return nothing rather than park with events unseen
	default:
		p.n, p.errno = 0, errno
	}
	return p.n > 0 || errno != 0
}
