package netns_test

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
)

// inode tells namespaces apart.
func inode(t *testing.T, ns *os.File) uint64 {
	t.Helper()
	info, err := ns.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func currentInode() (uint64, error) {
	ns, err := netns.Current()
	if err != nil {
		return 0, err
	}
	defer func() { _ = ns.Close() }()
	info, err := ns.Stat()
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

// TestDo runs many functions in several namespaces at once: each is where it should be, and no thread comes back to
// the pool from anywhere but home.
func TestDo(t *testing.T) {
	home, err := currentInode()
	if err != nil {
		t.Fatal(err)
	}
	namespaces := []*os.File{nstest.New(t), nstest.New(t), nstest.New(t)}
	var all sync.WaitGroup
	for i := range 60 {
		ns := namespaces[i%len(namespaces)]
		want := inode(t, ns)
		all.Go(func() {
			err := netns.Do(ns, func() error {
				runtime.Gosched()
				if got, err := currentInode(); err != nil || got != want {
					t.Errorf("in namespace %d (%v), want %d", got, err, want)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if got, err := currentInode(); err != nil || got != home {
				t.Errorf("after Do in namespace %d (%v), want home, %d", got, err, home)
			}
		})
	}
	all.Wait()
}

func TestDoReturns(t *testing.T) {
	ns := nstest.New(t)
	want := errors.New("mine")
	if err := netns.Do(ns, func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Do returns %v, want the function's error", err)
	}
	if err := netns.Do(ns, func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error for a function that does not return")
	}
	// Nested, as when a program in one namespace sets up another.
	inner := nstest.New(t)
	err := netns.Do(ns, func() error {
		if err := netns.Do(inner, func() error { return nil }); err != nil {
			return err
		}
		got, err := currentInode()
		if got != inode(t, ns) {
			t.Error("after a nested Do, not in the outer namespace")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	notNamespace, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = notNamespace.Close() }()
	if err := netns.Do(notNamespace, func() error { return nil }); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Do in what is no namespace: %v, want EINVAL", err)
	}
}

func TestOf(t *testing.T) {
	p := nstest.Start(t, "wait", netns.Isolation{})
	ns, err := netns.Of(p.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	home, err := currentInode()
	if err != nil {
		t.Fatal(err)
	}
	if inode(t, ns) == home {
		t.Error("a command's namespace is ours")
	}
	own, err := netns.Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	if inode(t, own) != home {
		t.Error("our namespace is not ours")
	}
	if err := p.In.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := netns.Of(p.Process.Pid); !errors.Is(err, syscall.ESRCH) || !strings.Contains(err.Error(), "ended") {
		t.Errorf("the namespace of a process that has ended: %v, want ESRCH", err)
	}
}

// TestCommand starts commands with each isolation and looks at what they see of themselves.
func TestCommand(t *testing.T) {
	outer := identityOf(t, nil)
	for _, isolation := range []netns.Isolation{{}, {User: true}, {PID: true}, {User: true, PID: true}} {
		inner := identityOf(t, &isolation)
		for kind, changed := range map[string]bool{
			"net": true, "mnt": true, "user": isolation.User, "pid": isolation.PID,
		} {
			if (inner[kind] != outer[kind]) != changed {
				t.Errorf("%+v: namespace %s is %s, the parent's is %s", isolation, kind, inner[kind], outer[kind])
			}
		}
		if (inner["process"] == "1") != isolation.PID {
			t.Errorf("%+v: the command is process %s", isolation, inner["process"])
		}
		if inner["uid"] != "0" {
			t.Errorf("%+v: the command has uid %s", isolation, inner["uid"])
		}
		if isolation.User && idCount(inner["ids"]) != idCount(outer["ids"]) {
			t.Errorf("%+v: the command has the ids %s, root outside has %s", isolation, inner["ids"], outer["ids"])
		}
	}
}

// identityOf returns what the role "identity" prints, or for nil what it would print here.
func identityOf(t *testing.T, isolation *netns.Isolation) map[string]string {
	t.Helper()
	if isolation == nil {
		found := map[string]string{}
		for _, kind := range []string{"user", "net", "mnt", "pid"} {
			name, err := os.Readlink("/proc/self/ns/" + kind)
			if err != nil {
				t.Fatal(err)
			}
			found[kind] = name
		}
		ids, err := os.ReadFile("/proc/self/uid_map")
		if err != nil {
			t.Fatal(err)
		}
		found["ids"] = strings.Join(strings.Fields(string(ids)), ",")
		return found
	}
	p := nstest.Start(t, "identity", *isolation)
	line, err := p.Out.ReadString('\n')
	words := strings.Fields(line)
	if err != nil || len(words) != 7 {
		t.Fatalf("%+v: the command prints %q (%v)", *isolation, line, err)
	}
	found := map[string]string{}
	for i, name := range []string{"process", "uid", "ids", "user", "net", "mnt", "pid"} {
		found[name] = words[i]
	}
	return found
}

// idCount cuts the size out of a map of one line.
func idCount(ids string) string { return ids[strings.LastIndexByte(ids, ',')+1:] }

func TestCommandNotFound(t *testing.T) {
	nstest.Need(t)
	err := netns.Command(t.Context(), netns.Isolation{}, "/no/such/program").Run()
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want that there is no such program", err)
	}
}
