package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// signalBase is added to a signal's number to make the exit code of a process that it killed, as shells do.
const signalBase = 128

// reaper waits for all children of process 1 of a PID namespace: those that it started, and orphans that the kernel
// gave it. Package os/exec must not wait for any of them.
type reaper struct {
	mu       sync.Mutex
	children map[int]*child
}

// child is a process that was started through the reaper.
type child struct {
	pid    int
	reaper *reaper
	ended  chan struct{}      // Closed when it has ended.
	status syscall.WaitStatus // Valid then.
	gone   bool               // Guarded by reaper.mu: the pid may be somebody else's.
}

// newReaper starts to reap. It never stops: it ends with the process, which is process 1.
func newReaper() *reaper {
	r := &reaper{children: map[int]*child{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			r.reap()
		}
	}()
	return r
}

// reap collects everybody who has ended.
func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c := r.children[pid]; c != nil {
			delete(r.children, pid)
			c.status, c.gone = status, true
			close(c.ended)
		}
	}
}

// start starts a command, whose files must be *os.File: nobody copies for them.
func (r *reaper) start(cmd *exec.Cmd) (*child, error) {
	r.mu.Lock() // The child is known before it can be reaped.
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	c := &child{pid: cmd.Process.Pid, reaper: r, ended: make(chan struct{})}
	_ = cmd.Process.Release()
	r.children[c.pid] = c
	return c, nil
}

// signal signals a child unless it has ended.
func (c *child) signal(s syscall.Signal) {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if !c.gone {
		_ = syscall.Kill(c.pid, s)
	}
}

// killAfter kills the child if it has not ended by then.
func (c *child) killAfter(d time.Duration) {
	time.AfterFunc(d, func() { c.signal(syscall.SIGKILL) })
}

// code is the exit code of a child that has ended, as a shell would tell it.
func (c *child) code() int {
	if c.status.Signaled() {
		return signalBase + int(c.status.Signal())
	}
	return c.status.ExitStatus()
}
