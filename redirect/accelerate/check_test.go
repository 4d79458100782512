package accelerate

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCgroupOf(t *testing.T) {
	const hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
	for _, test := range []struct{ name, mounts, groups, want, fault string }{
		{"unified", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "0::/user.slice/a.scope\n", "/sys/fs/cgroup/user.slice/a.scope", ""},
		{"hybrid", hybrid, "9:cpu:/x\n0::/\n", "/sys/fs/cgroup/unified", ""},
		{"version 1 only", "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", "0::/\n", "", "not mounted"},
		{"in none", hybrid, "9:cpu:/x\n", "", "no control group"},
		{"nothing", "", "", "", "not mounted"},
	} {
		got, err := cgroupOf(test.mounts, test.groups)
		if got != test.want || (err == nil) != (test.fault == "") || err != nil && !strings.Contains(err.Error(), test.fault) {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
	}
}

func TestRefusal(t *testing.T) {
	if err := refusal("load", unix.EPERM); !strings.Contains(err.Error(), "needs root") {
		t.Error(err)
	}
	if err := refusal("load", unix.EINVAL); strings.Contains(err.Error(), "needs root") {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no mark":           {Ports: []uint16{1}},
		"no port":           {Mark: 1},
		"mark outside mask": {Ports: []uint16{1}, Mark: 0x539, Mask: 0xff},
		"too many ports":    {Mark: 1, Ports: make([]uint16, maxPorts+1)},
	} {
		if a, err := New(c); err == nil {
			t.Errorf("%s is taken", name)
			_ = a.Close()
		}
	}
	if _, err := New(Config{Ports: []uint16{1}, Mark: 1, Cgroup: t.TempDir()}); err == nil {
		t.Error("a folder is taken for a control group")
	}
}
