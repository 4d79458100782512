// Package netns is the plumbing that lets workloads run on one Linux machine without containers: each workload is
// a process in a network namespace of its own, joined to the others by a bridge.
//
// In come processes (Command prepares them) and addresses (Pool hands them out); out go namespaces that reach each
// other: Bridge.Attach gives one an eth0 with addresses and routes. Nothing is pinned under /run/netns: a namespace
// lives as long as its processes and the open files that refer to it, so a program that is killed leaves nothing
// behind, provided that the bridge too stands in a namespace of its own and not in the machine's.
//
// The package must not know what the addresses are for, nor the capture rules: that is package redirect. Everything
// works as root, and as an ordinary user inside one user namespace. All functions may be called concurrently.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ownNamespace names the network namespace of the calling thread. It is not /proc/self, which is the main thread's.
const ownNamespace = "/proc/thread-self/ns/net"

// Current opens the network namespace that the calling goroutine's thread is in. The caller closes the file: while
// it is open, the namespace lives.
func Current() (*os.File, error) {
	ns, err := os.Open(ownNamespace)
	if err != nil {
		return nil, fmt.Errorf("open the current network namespace (is /proc mounted?): %w", err)
	}
	return ns, nil
}

// New makes an empty network namespace, whose loopback interface is down. It needs CAP_SYS_ADMIN. The caller closes the
// file: while it is open, the namespace lives.
func New() (*os.File, error) {
	home, err := Current()
	if err != nil {
		return nil, err
	}
	defer func() { _ = home.Close() }()
	var ns *os.File
	err = Do(home, func() error { // Do takes the thread back home.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns, err = Current()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a network namespace (needs CAP_SYS_ADMIN): %w", err)
	}
	return ns, nil
}

// Of opens the network namespace of the process pid, a number of the caller's own PID namespace. It does not look
// into /proc/<pid>, which shows other numbers where /proc belongs to an outer PID namespace. It needs Linux 5.8 and
// CAP_SYS_ADMIN over the namespace. The caller closes the file: while it is open, the namespace lives.
func Of(pid int) (*os.File, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d, which may have ended: %w", pid, err)
	}
	defer func() { _ = unix.Close(process) }()
	var ns *os.File
	err = within(process, func() error {
		ns, err = Current()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find the network namespace of process %d: %w", pid, err)
	}
	return ns, nil
}

// Do runs fn inside the network namespace ns and returns what fn returns. Sockets that fn opens, and processes that
// it starts, belong to ns and stay there. The caller's goroutine does not move: fn runs on another one, with an OS
// thread to itself. When that thread cannot be brought back it ends with its goroutine and never runs other code.
func Do(ns *os.File, fn func() error) error {
	err := within(int(ns.Fd()), fn)
	runtime.KeepAlive(ns)
	return err
}

// within is Do for a descriptor: of a network namespace, or of a process (a pidfd, since Linux 5.8).
func within(fd int, fn func() error) error {
	// Goexit inside fn, as a test's Fatal does, leaves this.
	err := errors.New("run inside a network namespace: the function did not return")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, openErr := Current()
		if openErr != nil {
			runtime.UnlockOSThread()
			err = openErr
			return
		}
		defer func() { _ = home.Close() }()
		if setErr := unix.Setns(fd, unix.CLONE_NEWNET); setErr != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("enter a network namespace (needs CAP_SYS_ADMIN over it): %w", setErr)
			return
		}
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
		}()
		err = fn()
	}()
	<-done
	return err
}
