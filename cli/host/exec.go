package host

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// withheld are the capabilities by which a command could step around its proxy: change the rules, mark its sockets as
// the proxy's, leave the namespaces, or get into the proxy.
func withheld() []uintptr {
	return []uintptr{
		unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_SYS_MODULE,
		unix.CAP_SYS_RAWIO, unix.CAP_BPF, unix.CAP_PERFMON,
	}
}

// Exec becomes the command of a workload, without the capabilities that would let it step around its proxy. It
// returns only when that fails.
func Exec(command []string) error {
	if len(command) == 0 {
		return errors.New("no command is given")
	}
	runtime.LockOSThread() // The bounding set is the thread's.
	for _, c := range withheld() {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("give up capability %d: %w", c, err)
		}
	}
	err := syscall.Exec(command[0], command, os.Environ())
	return fmt.Errorf("run %s: %w", command[0], err)
}
