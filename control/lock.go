package control

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// locks are held for a control plane's life, by the kernel, so that they end with it however it ends.
type locks []*os.File

// holderMax bounds what is read of a lock file, which says who holds it.
const holderMax = 100

// takeLocks makes sure that nobody else writes in the state folder or serves the API's socket.
func takeLocks(cfg *Config) (locks, error) {
	var held locks
	for _, l := range []struct{ path, what, flag string }{
		{filepath.Join(cfg.State, "lock"), "the state folder " + cfg.State, "--state"},
		{cfg.API + ".lock", "the socket " + cfg.API, "--api"},
	} {
		f, err := takeLock(l.path)
		if busy, ok := errors.AsType[*busyError](err); ok {
			held.release()
			return nil, fmt.Errorf("%s belongs to another control plane, %s; end that one, or name another with %s", l.what, busy.holder, l.flag)
		}
		if err != nil {
			held.release()
			return nil, fmt.Errorf("lock %s: %w", l.what, err)
		}
		held = append(held, f)
	}
	return held, nil
}

// release gives the locks back. The files stay: who removed one could take away that of the next holder.
func (l locks) release() {
	for _, f := range l {
		_ = f.Close()
	}
}

// busyError says who holds a lock.
type busyError struct{ holder string }

func (e *busyError) Error() string { return "held by " + e.holder }

// namespace is the one in which this process has its number (pid_namespaces(7)), as lsns(8) lists it.
func namespace() string {
	name, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "pid:[?]" // /proc is not there
	}
	return name
}

// holderOf reads a lock file: "process 12", and where it has that number if that is not here.
func holderOf(f io.Reader) string {
	text, _ := io.ReadAll(io.LimitReader(f, holderMax))
	pid, in, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if in == namespace() {
		return "process " + pid
	}
	return "process " + pid + " of the namespace " + in
}

// takeLock locks a file (flock(2)) and writes into it who this process is.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = &busyError{holderOf(f)}
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+" "+namespace()+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
