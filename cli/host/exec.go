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
		unix.CAP_SYS_RAWIO, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_MKNOD, unix.CAP_DAC_READ_SEARCH, unix.CAP_SYS_BOOT,
		unix.CAP_SYS_TIME, unix.CAP_SYS_CHROOT, unix.CAP_SYSLOG, unix.CAP_SETFCAP, unix.CAP_CHECKPOINT_RESTORE,
	}
}

// Exec becomes the command of a workload, without the capabilities that would let it step around its proxy, and
// without a view of the directory hide, in which the meshes' keys and sockets are. It returns only when that fails.
func Exec(hide string, command []string) error {
	if len(command) == 0 {
		return errors.New("no command is given")
	}
	runtime.LockOSThread() // The bounding set and the view are the thread's.
	if err := conceal(hide); err != nil {
		return fmt.Errorf("hide %s from the command: %w", hide, err)
	}
	for _, c := range withheld() {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("give up capability %d: %w", c, err)
		}
	}
	err := syscall.Exec(command[0], command, os.Environ())
	return fmt.Errorf("run %s: %w", command[0], err)
}

// conceal puts an empty directory over another one, for this thread and what it becomes. The command runs as the user
// who owns the mesh, so no file mode would keep it out.
func conceal(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount("lateen", dir, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0,size=4k")
}
