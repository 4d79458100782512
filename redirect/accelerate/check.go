package accelerate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ownCgroup is the directory of the control group (version 2) of this process.
func ownCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find the control groups: %w", err)
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find this process's control group: %w", err)
	}
	return cgroupOf(string(mounts), string(groups))
}

// cgroupOf finds the directory in what proc(5) tells of mounts and of a process's control groups.
func cgroupOf(mounts, groups string) (string, error) {
	root := ""
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			root = f[1]
			break
		}
	}
	if root == "" {
		return "", errors.New("control groups of version 2 are not mounted here; mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	for line := range strings.Lines(groups) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(root, path), nil
		}
	}
	return "", errors.New("this process is in no control group of version 2")
}

// refusal adds to what the kernel said what is probably wrong.
func refusal(doing string, err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%s: %w; it needs root outside user namespaces (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
