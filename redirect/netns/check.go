package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// absentProgram cannot exist: /proc/self holds no such name. Starting it makes the namespaces and then fails.
const absentProgram = "/proc/self/lateen-namespace-check"

// Check reports whether Command with this isolation will work here. The error says what stands in the way and what
// to do about it. It makes the namespaces for a moment and leaves nothing behind.
func Check(isolation Isolation) error {
	err := Command(context.Background(), isolation, absentProgram).Start()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // The namespaces were made, and then the program was not found.
	}
	if err == nil {
		panic("netns: " + absentProgram + " exists")
	}
	return explain(err, isolation, os.Geteuid() == 0, readSetting)
}

// explain says why namespaces were refused and what to do. read returns the setting of a file under /proc/sys, or ""
// if this kernel does not have it.
func explain(err error, isolation Isolation, root bool, read func(name string) string) error {
	return fmt.Errorf("make namespaces for a workload: %s: %w", advise(err, isolation, root, read), err)
}

func advise(err error, isolation Isolation, root bool, read func(name string) string) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EUSERS):
		if name := zeroLimit(read); name != "" {
			return fmt.Sprintf("the kernel's limit %s is 0: as root, sysctl -w %s=10000", name, name)
		}
		return "a limit on namespaces is reached: raise user.max_user_namespaces and user.max_net_namespaces " +
			"with sysctl -w, or end what holds namespaces (lsns lists it)"
	case errors.Is(err, syscall.EINVAL):
		return "the kernel lacks a kind of namespace, or the root directory is not a mount point (chroot): it needs " +
			"CONFIG_NET_NS, CONFIG_USER_NS and CONFIG_PID_NS"
	case !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES):
		return "the kernel refused"
	case !isolation.User && root:
		return "root lacks CAP_SYS_ADMIN here, as in most containers: run outside the container, or with --privileged"
	case !isolation.User:
		return "an ordinary user needs a user namespace first: run as root, or ask for one"
	case read("kernel.unprivileged_userns_clone") == "0":
		return "this system keeps user namespaces from ordinary users: as root, " +
			"sysctl -w kernel.unprivileged_userns_clone=1, or run as root"
	case read("kernel.apparmor_restrict_unprivileged_userns") == "1":
		return "AppArmor keeps the powers of a user namespace from programs without a profile: as root, " +
			"sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give the program a profile with " +
			"\"userns,\", or run as root"
	case read("user.max_user_namespaces") == "0":
		return "the kernel's limit user.max_user_namespaces is 0: as root, sysctl -w user.max_user_namespaces=10000"
	default:
		return "a container's seccomp filter or a security module forbids it: run outside the container, or with " +
			"--privileged"
	}
}

// zeroLimit is the setting by which the kernel makes no namespaces at all; empty: there is none.
func zeroLimit(read func(name string) string) string {
	for _, name := range []string{
		"user.max_user_namespaces", "user.max_net_namespaces", "user.max_mnt_namespaces", "user.max_pid_namespaces",
	} {
		if read(name) == "0" {
			return name
		}
	}
	return ""
}

// Denied tells of an error of Check whether it is this machine's verdict, which stands until somebody changes its
// settings. Any other may be over soon, or be a fault of ours.
func Denied(err error) bool { return denied(err, readSetting) }

func denied(err error, read func(name string) string) bool {
	for _, verdict := range []error{syscall.EPERM, syscall.EACCES, syscall.EINVAL} {
		if errors.Is(err, verdict) {
			return true
		}
	}
	return (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EUSERS)) && zeroLimit(read) != ""
}

// readSetting returns the value of a sysctl, or "" if it cannot be read.
func readSetting(name string) string {
	value, err := os.ReadFile(settingPath(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(value))
}

// settingPath returns the file of a sysctl. The part "net." is of the network namespace of the calling thread.
func settingPath(name string) string {
	return "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
}
