package limits

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
)

// lines of proc_pid_mountinfo(5), with the root of what is mounted.
func mounted2(root string) string {
	return "35 24 0:30 " + root + " /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
}

func mounted1(root string) string {
	return "24 1 0:5 / /proc rw - proc proc rw\n35 24 0:30 " + root + " /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
}

func TestAllowed(t *testing.T) {
	const max1 = "9223372036854771712"
	for name, test := range map[string]struct {
		own, mounts string
		files       map[string]string // below /sys/fs/cgroup
		want        int64
		fault       string
	}{
		"no cgroups":                {},
		"version 2, in a container": {"0::/\n", mounted2("/"), map[string]string{"memory.max": "134217728\n"}, 128 << 20, ""},
		"version 2, none":           {"0::/a\n", mounted2("/"), map[string]string{"a/memory.max": "max\n"}, 0, ""},
		"version 2, of one above": {
			"0::/pod/own\n", mounted2("/"), map[string]string{"pod/own/memory.max": "max", "pod/memory.max": "1000"}, 1000, "",
		},
		"version 2, the least": {
			"0::/pod/own\n", mounted2("/"), map[string]string{"pod/own/memory.max": "500", "pod/memory.max": "1000"}, 500, "",
		},
		"version 1": {"4:memory:/a\n0::/\n", mounted1("/"), map[string]string{"memory/a/memory.limit_in_bytes": "700", "memory/memory.limit_in_bytes": max1}, 700, ""},
		"version 1, none": {
			"4:cpu,memory:/a\n", mounted1("/"), map[string]string{"memory/a/memory.limit_in_bytes": max1}, 0, "",
		},
		"version 1, in a container": {
			"4:memory:/docker/1\n", mounted1("/docker/1"), map[string]string{"memory/memory.limit_in_bytes": "800"}, 800, "",
		},
		"version 1, mounted from elsewhere": {
			"4:memory:/other\n", mounted1("/docker/1"), map[string]string{"memory/memory.limit_in_bytes": "900"}, 900, "",
		},
		"no number": {"0::/\n", mounted2("/"), map[string]string{"memory.max": "much"}, 0, `holds "much"`},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			files := map[string]string{}
			if test.own != "" {
				files["proc/self/cgroup"], files["proc/self/mountinfo"] = test.own, test.mounts
			}
			for name, text := range test.files {
				files["sys/fs/cgroup/"+name] = text
			}
			for name, text := range files {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := allowed(root)
			if got != test.want || (err == nil) != (test.fault == "") || err != nil && !strings.Contains(err.Error(), test.fault) {
				t.Errorf("%d (%v), want %d and %q", got, err, test.want, test.fault)
			}
		})
	}
}

const (
	// child tells the test's own program to join the cgroup in this folder and to say what Memory does there.
	child     = "LATEEN_TEST_CGROUP"
	childSize = 512 << 20
)

func TestMain(m *testing.M) {
	folder := os.Getenv(child)
	if folder == "" {
		os.Exit(m.Run())
	}
	err := os.WriteFile(filepath.Join(folder, "cgroup.procs"), []byte("0"), 0o600)
	limit := int64(0)
	if err == nil {
		limit, err = Memory()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, _ = fmt.Fprint(os.Stdout, limit, " ", debug.SetMemoryLimit(-1))
	os.Exit(0)
}

// TestMemory runs a process in a real cgroup.
func TestMemory(t *testing.T) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hierarchies(own, mounts) {
		folder := filepath.Join(h.mount, h.at, "lateen-test-"+strconv.Itoa(os.Getpid()))
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Logf("no cgroup can be made: %v", err)
			continue
		}
		t.Cleanup(func() {
			if err := os.Remove(folder); err != nil {
				t.Error(err)
			}
		})
		if err := os.WriteFile(filepath.Join(folder, h.file), []byte(strconv.Itoa(childSize)), 0o600); err != nil {
			t.Logf("memory cannot be limited: %v", err)
			continue
		}
		for _, test := range []struct {
			env  string
			want int64
		}{{"", childSize / 100 * sharePercent}, {"GOMEMLIMIT=100MiB", 100 << 20}} {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), child+"="+folder)
			set := test.want
			if test.env != "" {
				cmd.Env = append(cmd.Env, test.env)
				set = 0
			}
			out, err := cmd.CombinedOutput()
			if want := fmt.Sprint(set, " ", test.want); err != nil || string(out) != want {
				t.Errorf("%s: %q (%v), want %q", test.env, out, err, want)
			}
		}
		return
	}
	t.Skip("no cgroup whose memory can be limited; as root, or where a cgroup is delegated, it can")
}
