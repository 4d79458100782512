package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		in   string
		want []Hierarchy
	}{
		"v1 and v2 beside it": {
			`22 1 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 22 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw
32 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct
`,
			[]Hierarchy{{"/sys/fs/cgroup/unified", true}, {"/sys/fs/cgroup/cpu,cpuacct", false}},
		},
		"v2": {
			"30 22 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n",
			[]Hierarchy{{"/sys/fs/cgroup", true}},
		},
		"elsewhere": {"30 22 0:26 / /mnt/cgroup rw - cgroup2 cgroup2 rw\n", nil},
		"cut":       {"30 22 0:26\n\n - \n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(strings.NewReader(test.in))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRemoveWaits(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("control groups need root")
	}
	all, err := Hierarchies()
	if err != nil {
		t.Skip(err)
	}
	top := fmt.Sprintf("lateen-test-%d", os.Getpid())
	group := top + "/node1"
	if err := Make(group); err != nil {
		t.Skip("this machine's control groups cannot be changed: ", err)
	}
	cmd := exec.CommandContext(t.Context(), "cat") // which waits for its standard input
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if err := os.WriteFile(filepath.Join(h.Path, group, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if Remove(short, top) == nil {
		t.Error("a group is removed from under its process")
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	long, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range 2 { // the second time nothing is there
		if err := Remove(long, top); err != nil {
			t.Error(err)
		}
	}
	for _, h := range all {
		if _, err := os.Stat(filepath.Join(h.Path, top)); err == nil {
			t.Errorf("%s is left in %s", top, h.Path)
		}
	}
}
