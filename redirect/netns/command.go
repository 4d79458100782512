package netns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

const (
	userMapPath   = "/proc/self/uid_map"
	groupMapPath  = "/proc/self/gid_map"
	maxIDMapLines = 340 // user_namespaces(7): the kernel takes no more lines.
)

// Isolation says which namespaces a command gets besides those for the network and for mounts.
type Isolation struct {
	// User gives the command a user namespace, in which it may do to its network what root may. An ordinary user
	// needs it, once: what runs inside needs no further one. The user becomes uid and gid 0 inside, and no other id
	// exists there. For root every id that root has itself stays as it is.
	User bool
	// PID gives the command a PID namespace, in which it is process 1: when it ends, the kernel kills all its
	// descendants. /proc still shows the outer numbers until the command mounts a new one.
	PID bool
}

// Command returns a command that will run path in a new network namespace and a new mount namespace, whose mounts
// do not propagate outwards. Other fields may be set before Start, such as SysProcAttr.Credential.
//
// The command dies with its parent (SIGKILL), so that a killed program leaves no namespaces behind. The kernel takes
// "parent" to be the thread that called Start: call it from ordinary goroutines, also inside Do, but not from one
// that ends while locked to its thread.
func Command(ctx context.Context, isolation Isolation, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	attr := &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWNET,
		Unshareflags: syscall.CLONE_NEWNS, // By unshare, after which package syscall makes the mounts private.
		Pdeathsig:    syscall.SIGKILL,
	}
	if isolation.PID {
		attr.Cloneflags |= syscall.CLONE_NEWPID
	}
	if isolation.User {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		if err := mapIDs(attr); err != nil {
			cmd.Err = fmt.Errorf("prepare a user namespace: %w", err)
		}
	}
	cmd.SysProcAttr = attr
	return cmd
}

// mapIDs fills in the id maps: for an ordinary user the one that needs no privilege, for root all that root has.
func mapIDs(attr *syscall.SysProcAttr) error {
	if uid := os.Geteuid(); uid != 0 {
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		return nil
	}
	users, err := os.ReadFile(userMapPath)
	if err != nil {
		return err
	}
	groups, err := os.ReadFile(groupMapPath)
	if err != nil {
		return err
	}
	if attr.UidMappings, err = sameIDs(string(users)); err != nil {
		return fmt.Errorf("read %s: %w", userMapPath, err)
	}
	if attr.GidMappings, err = sameIDs(string(groups)); err != nil {
		return fmt.Errorf("read %s: %w", groupMapPath, err)
	}
	// Where setgroups is denied already (we are a lone user's root), asking for it would be refused.
	attr.GidMappingsEnableSetgroups = len(attr.GidMappings) > 1 || attr.GidMappings[0].Size > 1
	return nil
}

// sameIDs maps each id of the current user namespace, whose map is given as user_namespaces(7) prints it, to itself.
func sameIDs(idMap string) ([]syscall.SysProcIDMap, error) {
	var ids []syscall.SysProcIDMap
	for line := range strings.Lines(idMap) {
		var inside, outside, size int
		if _, err := fmt.Sscan(line, &inside, &outside, &size); err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		if len(ids) == maxIDMapLines {
			return nil, fmt.Errorf("more than %d lines", maxIDMapLines)
		}
		ids = append(ids, syscall.SysProcIDMap{ContainerID: inside, HostID: inside, Size: size})
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("no ids are mapped")
	}
	return ids, nil
}
