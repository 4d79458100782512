package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// watched are paths of the machine that the components of a cluster would use or change if they could.
var watched = []string{
	"/run/containerd", "/run/netns", "/run/kubernetes", "/run/cni", "/run/xtables.lock", "/var/lib/kubelet",
	"/var/lib/containerd", "/var/lib/cni", "/var/lib/etcd", "/var/log/pods", "/var/log/containers", "/etc/cni",
	"/etc/kubernetes", "/opt/cni", "/opt/lateen", "/opt/containerd",
}

// kernel are settings that the kubelet and kube-proxy are known to change.
var kernel = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
	"kernel/keys/root_maxbytes", "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/netfilter/nf_conntrack_max",
	"net/ipv4/conf/all/route_localnet",
}

// settings are all that a cluster is to leave as it was.
func settings(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, root := range watched {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			found[path] = "exists"
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if _, err := os.Lstat(root); err != nil {
			delete(found, root)
		}
	}
	for _, name := range kernel {
		text, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		found[name] = string(text)
	}
	return found
}

// traces are the processes of a running cluster and the namespaces that they are in and this test is not.
type traces struct {
	processes  []int
	namespaces []string
}

func (r *rig) traces() traces {
	r.t.Helper()
	var all traces
	own := map[string]bool{}
	for _, ns := range namespacesOf(os.Getpid()) {
		own[ns] = true
	}
	for _, pid := range processes(r.t) {
		if !descends(pid, r.cmd.Process.Pid) {
			continue
		}
		all.processes = append(all.processes, pid)
		for _, ns := range namespacesOf(pid) {
			if !own[ns] && !slices.Contains(all.namespaces, ns) && r.hold(pid, ns) {
				all.namespaces = append(all.namespaces, ns)
			}
		}
	}
	// The keeper, three nodes with three components each, four of the control plane.
	if len(all.processes) < 17 || len(all.namespaces) < 4*5 {
		r.t.Errorf("only %d processes in %d namespaces", len(all.processes), len(all.namespaces))
	}
	return all
}

// hold keeps a namespace until the test ends, so that no other that is made meanwhile, by another cluster, has its number.
// It is false if the process has ended.
func (r *rig) hold(pid int, ns string) bool {
	kind, _, _ := strings.Cut(ns, ":")
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		return false
	}
	r.t.Cleanup(func() { _ = file.Close() })
	return true
}

// testNothing looks for what a cluster that is down has left.
func (r *rig) testNothing(seen traces, before map[string]string) {
	t := r.t
	for _, pid := range processes(t) {
		for _, ns := range namespacesOf(pid) {
			if slices.Contains(seen.namespaces, ns) {
				t.Errorf("process %d is still in %s", pid, ns)
			}
		}
	}
	for _, pid := range seen.processes {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err == nil && strings.Contains(string(text), "lateen-"+r.at.name) {
			t.Errorf("process %d is still there", pid)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), r.at.folder) {
		t.Errorf("something is mounted:\n%s", mounts)
	}
	r.at.gone(t)
	if diff := cmp.Diff(before, settings(t)); diff != "" {
		t.Errorf("the machine differs (-before +after):\n%s", diff)
	}
}

func processes(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// descends says whether a process is a child of another, or a child's child.
func descends(pid, from int) bool {
	for pid > 1 {
		if pid = parent(pid); pid == from {
			return true
		}
	}
	return false
}

// parent is 0 for a process that has ended.
func parent(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may contain anything (proc_pid_stat(5)).
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	of, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return of
}

func namespacesOf(pid int) []string {
	var all []string
	for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc", "cgroup"} {
		// A process that has ended meanwhile is in none.
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			all = append(all, ns)
		}
	}
	return all
}
