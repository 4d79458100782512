// Package cgroup gives the nodes of a test cluster control groups of their own, in every hierarchy that the machine has:
// cgroup v1, v2, or both beside each other.
//
// In comes a path below the hierarchies' roots, such as "lateen-a/node1". The package must not know what runs in a group.
// Different groups may be used concurrently.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// MountPoint is where hierarchies are, by convention of all distributions.
const MountPoint = "/sys/fs/cgroup"

// interval is between two looks at whether a group's processes have ended, of which v1 does not tell.
const interval = 10 * time.Millisecond

// used are the controllers of v2 that a kubelet wants.
var used = []string{"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}

// Hierarchy is one tree of groups.
type Hierarchy struct {
	// Path is where it is mounted.
	Path string
	// Unified says that it is v2.
	Unified bool
}

// IsRoot says that there is only this one, as on a machine that has v2 alone.
func (h Hierarchy) IsRoot() bool { return h.Path == MountPoint }

// Hierarchies lists those of this machine.
func Hierarchies() ([]Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list control groups: %w", err)
	}
	defer f.Close()
	all, err := parse(f)
	if err != nil {
		return nil, fmt.Errorf("list control groups: %w", err)
	}
	if len(all) == 0 {
		return nil, errors.New("no control groups below " + MountPoint + ": mount cgroup2 there")
	}
	return all, nil
}

// parse reads the lines of proc_pid_mountinfo(5): the mount point is the fifth field, the type the first after a dash.
func parse(r io.Reader) ([]Hierarchy, error) {
	var all []Hierarchy
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		mount, super, ok := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(mount), strings.Fields(super)
		if !ok || len(fields) < 5 || len(kind) == 0 {
			continue
		}
		path := fields[4]
		if path != MountPoint && !strings.HasPrefix(path, MountPoint+"/") {
			continue
		}
		if kind[0] == "cgroup" || kind[0] == "cgroup2" {
			all = append(all, Hierarchy{Path: path, Unified: kind[0] == "cgroup2"})
		}
	}
	return all, lines.Err()
}

// Make makes a group and those above it.
func Make(group string) error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		path := h.Path
		for part := range strings.SplitSeq(group, "/") {
			parent := path
			path = filepath.Join(path, part)
			if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make control group: %w", err)
			}
			if err := inherit(parent, path); err != nil {
				return err
			}
		}
	}
	return nil
}

// inherit gives a group of v1's cpuset the processors of its parent, without which no process can enter it.
func inherit(parent, path string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(value)) == "" {
			return nil
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(path, file), value, 0)
		}
		if err != nil {
			return fmt.Errorf("give control group its processors: %w", err)
		}
	}
	return nil
}

// Enter moves this process into a group, which Make has made.
func Enter(group string) error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		file := filepath.Join(h.Path, group, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			return fmt.Errorf("enter control group: %w", err)
		}
	}
	return nil
}

// Delegate lets the groups below this one have the controllers that Kubernetes uses, as v1 always does. In v2 each group on
// the way has to pass them on, the root too, which it does on most machines already: there, this is the one thing that
// Remove does not undo. No process may be in the group itself.
func Delegate(group string) error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if !h.Unified {
			continue
		}
		path := h.Path
		for part := range strings.SplitSeq("./"+group, "/") {
			path = filepath.Join(path, part)
			if err := delegate(path); err != nil {
				return err
			}
		}
	}
	return nil
}

func delegate(path string) error {
	has, err := words(path, "cgroup.controllers")
	if err != nil {
		return err
	}
	gives, err := words(path, "cgroup.subtree_control")
	if err != nil {
		return err
	}
	for _, controller := range used {
		if !slices.Contains(has, controller) || slices.Contains(gives, controller) {
			continue
		}
		if err := os.WriteFile(filepath.Join(path, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return fmt.Errorf("delegate controller %s of %s: %w", controller, path, err)
		}
	}
	return nil
}

func words(path, file string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(path, file))
	if err != nil {
		return nil, fmt.Errorf("read control group: %w", err)
	}
	return strings.Fields(string(text)), nil
}

// Remove removes a group and those below it, once the processes in them have ended. A group that is not there is no error.
func Remove(ctx context.Context, group string) error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		path := filepath.Join(h.Path, group)
		for {
			err := removeTree(path)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("remove control group: %w", err)
			case <-time.After(interval):
			}
		}
	}
	return nil
}

// removeTree removes the innermost groups first; the files in a group go with it.
func removeTree(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(path, entry.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(path)
}
