// Package limits has a program respect what its cgroup allows it.
//
// In: the limits of memory of the process's cgroup and those above it, of version 1 or 2. Out: the runtime's own limit,
// at which it collects garbage rather than have the kernel end the process. CPU quotas need nothing: the runtime sets
// GOMAXPROCS by them. The package must not know what the program does. Memory is called once, at the start.
package limits

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

const (
	// sharePercent of what the cgroup allows is for what the runtime manages; the rest is for the program's text, for
	// what the kernel holds for it, and for what is allocated until a collection ends.
	sharePercent = 90
	// unlimited is the least figure by which version 1 says that there is no limit: the largest one is rounded to pages.
	unlimited = 1 << 60
)

// Memory sets the runtime's memory limit (GOMEMLIMIT) to 90 % of what the process's cgroup allows, in bytes, and returns
// it; 0: there is no limit, or the environment has set GOMEMLIMIT, which stands.
func Memory() (int64, error) {
	if debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return 0, nil
	}
	allowed, err := allowed("/")
	if err != nil || allowed == 0 {
		return 0, err
	}
	limit := allowed / 100 * sharePercent
	debug.SetMemoryLimit(limit)
	return limit, nil
}

// allowed is the least limit of this process's cgroup and those above it, in bytes; 0: none. Files are read below root.
func allowed(root string) (int64, error) {
	own, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // a kernel without cgroups
	}
	if err != nil {
		return 0, fmt.Errorf("read the process's cgroups: %w", err)
	}
	mounts, err := os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return 0, fmt.Errorf("read where cgroups are mounted: %w", err)
	}
	least := int64(0)
	for _, h := range hierarchies(own, mounts) {
		for at := h.at; ; at = path.Dir(at) {
			limit, err := read(filepath.Join(root, h.mount, at, h.file))
			if err != nil {
				return 0, err
			}
			if limit > 0 && (least == 0 || limit < least) {
				least = limit
			}
			if at == "/" {
				break
			}
		}
	}
	return least, nil
}

// hierarchy is where the limits of memory are told: in this file of each folder from at, below mount, upwards.
type hierarchy struct{ mount, at, file string }

// hierarchies reads proc_pid_cgroup(5) and proc_pid_mountinfo(5).
func hierarchies(own, mounts []byte) []hierarchy {
	var out []hierarchy
	for s := bufio.NewScanner(bytes.NewReader(mounts)); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 5 || len(tail) < 3 {
			continue
		}
		h, controller := hierarchy{mount: head[4], at: "/", file: "memory.max"}, ""
		switch {
		case tail[0] == "cgroup" && slices.Contains(strings.Split(tail[2], ","), "memory"):
			h.file, controller = "memory.limit_in_bytes", "memory"
		case tail[0] != "cgroup2":
			continue
		}
		// A container sees a part of the tree: what is mounted is what stands at the mount's root.
		if below, ok := strings.CutPrefix(cgroup(own, controller), strings.TrimSuffix(head[3], "/")); ok {
			h.at = path.Clean("/" + below)
		}
		out = append(out, h)
	}
	return out
}

// cgroup is the path of the process's cgroup in the hierarchy of a controller; version 2 has no name.
func cgroup(own []byte, controller string) string {
	for line := range strings.Lines(string(own)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && slices.Contains(strings.Split(parts[1], ","), controller) {
			return parts[2]
		}
	}
	return "/"
}

// read reads a limit; 0: there is none, as in the root of version 2.
func read(name string) (int64, error) {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the cgroup's limit of memory: %w", err)
	}
	word := strings.TrimSpace(string(text))
	if word == "max" {
		return 0, nil
	}
	limit, err := strconv.ParseInt(word, 10, 64)
	if err != nil || limit < 0 {
		return 0, fmt.Errorf("read the cgroup's limit of memory: %s holds %q", name, word)
	}
	if limit >= unlimited {
		return 0, nil
	}
	return limit, nil
}
