package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/test/cluster/cgroup"
)

// TestComponentFails holds that an error says which component it was, and its last words.
func TestComponentFails(t *testing.T) {
	folder := programs(t)
	fake := t.TempDir()
	for name, as := range map[string]string{"coredns": "coredns", "pause": "pause", "toolbox": "kubeall"} {
		if err := os.Symlink(filepath.Join(folder, name), filepath.Join(fake, as)); err != nil {
			t.Fatal(err)
		}
	}
	at := place{name: fmt.Sprintf("f%d", os.Getpid()), folder: t.TempDir()}
	out, err := exec.CommandContext(t.Context(), filepath.Join(folder, "cluster"), "up", "--name="+at.name,
		"--folder="+at.folder, "--programs="+fake, "--nodes=1").CombinedOutput()
	if err == nil {
		t.Fatal("a cluster is up whose etcd is none")
	}
	for _, want := range []string{" has ended: exit status 1", "usage: toolbox", "all logs: " + at.own()} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the error lacks %q:\n%s", want, out)
		}
	}
	if _, err := os.Stat(filepath.Join(at.own(), logsName, "etcd.log")); err != nil {
		t.Errorf("the logs are gone: %v", err)
	}
	if err := at.down(t.Context()); err != nil {
		t.Error(err)
	}
	at.gone(t)
}

// TestKilled kills each of the two processes that hold a cluster, with no chance to clean up.
func TestKilled(t *testing.T) {
	folder := programs(t)
	for _, victim := range []string{"run", "keep"} {
		t.Run(victim, func(t *testing.T) {
			at := place{name: fmt.Sprintf("k%d", os.Getpid()), folder: t.TempDir()}
			cmd := exec.Command(filepath.Join(folder, "cluster"), "run", "--attached", "--name="+at.name, "--folder="+at.folder, "--nodes=1")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// Its node and its control plane are there then, but nobody has been told about it.
			if !bufio.NewScanner(out).Scan() {
				t.Fatal("it ended by itself: ", cmd.Wait())
			}
			pid := cmd.Process.Pid
			if victim == "keep" {
				pid = child(t, pid)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("it ended well")
			}
			if victim == "run" {
				if _, err := at.find(); !errors.Is(err, errDown) {
					t.Errorf("it is not known to be down: %v", err)
				}
			}
			if err := at.down(t.Context()); err != nil {
				t.Error(err)
			}
			at.gone(t)
		})
	}
}

// gone looks for what is left of a cluster; its groups can only be removed when their processes have ended.
func (p *place) gone(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(p.own()); err == nil {
		t.Errorf("folder %s is left", p.own())
	}
	all, err := cgroup.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if _, err := os.Stat(filepath.Join(h.Path, "lateen-"+p.name)); err == nil {
			t.Errorf("a group is left in %s", h.Path)
		}
	}
}

// child is the only child of a process.
func child(t *testing.T, of int) int {
	t.Helper()
	for _, pid := range processes(t) {
		if parent(pid) == of {
			return pid
		}
	}
	t.Fatal("it has no child")
	return 0
}

// TestClaim holds that a name is one cluster's at a time, whoever removes the folder meanwhile.
func TestClaim(t *testing.T) {
	at := place{name: "a", folder: filepath.Join(t.TempDir(), "all")}
	first, err := at.claim()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := at.claim(); !errors.Is(err, errUp) {
		t.Errorf("claimed twice: %v", err)
	}
	if _, err := at.find(); err == nil || errors.Is(err, errDown) {
		t.Errorf("a cluster that is coming up is found as %v", err)
	}
	second := make(chan error, 1)
	go func() {
		deadline := time.Now().Add(patience)
		for {
			claimed, err := at.claim()
			if err == nil {
				at.release(claimed)
			}
			if err == nil || time.Now().After(deadline) {
				second <- err
				return
			}
		}
	}()
	at.release(first)
	if err := <-second; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(at.folder); err == nil {
		t.Error("the folder is left")
	}
	if _, err := at.find(); !errors.Is(err, errDown) {
		t.Errorf("a cluster that is down is found as %v", err)
	}
}
