package netns

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExplain(t *testing.T) {
	user := Isolation{User: true}
	for _, test := range []struct {
		name      string
		err       syscall.Errno
		isolation Isolation
		root      bool
		settings  map[string]string
		want      string
	}{
		{
			"Debian of old", syscall.EPERM, user, false,
			map[string]string{"kernel.unprivileged_userns_clone": "0"},
			"sysctl -w kernel.unprivileged_userns_clone=1",
		},
		{
			"Ubuntu", syscall.EPERM, user, false,
			map[string]string{
				"kernel.unprivileged_userns_clone":             "1",
				"kernel.apparmor_restrict_unprivileged_userns": "1",
			},
			"sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
		},
		{
			"Ubuntu, from Go", syscall.EACCES, user, false,
			map[string]string{"kernel.apparmor_restrict_unprivileged_userns": "1"},
			"AppArmor",
		},
		{
			"no user namespaces", syscall.EPERM, user, false,
			map[string]string{"user.max_user_namespaces": "0"},
			"sysctl -w user.max_user_namespaces=10000",
		},
		{
			"RHEL 7", syscall.ENOSPC, user, false,
			map[string]string{"user.max_user_namespaces": "0"},
			"sysctl -w user.max_user_namespaces=10000",
		},
		{
			"no network namespaces", syscall.ENOSPC, user, false,
			map[string]string{"user.max_user_namespaces": "9", "user.max_net_namespaces": "0"},
			"sysctl -w user.max_net_namespaces=10000",
		},
		{"many", syscall.ENOSPC, user, true, map[string]string{"user.max_user_namespaces": "9"}, "lsns"},
		{"deep", syscall.EUSERS, user, true, nil, "a limit on namespaces is reached"},
		{"kernel", syscall.EINVAL, user, false, nil, "CONFIG_USER_NS"},
		{"container", syscall.EPERM, user, false, nil, "seccomp"},
		{"root in a container", syscall.EPERM, Isolation{}, true, nil, "CAP_SYS_ADMIN"},
		{"ordinary user", syscall.EPERM, Isolation{}, false, nil, "run as root, or ask for one"},
		{"other", syscall.ENOMEM, user, false, nil, "the kernel refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := explain(test.err, test.isolation, test.root, func(name string) string { return test.settings[name] })
			if !strings.Contains(err.Error(), test.want) || !errors.Is(err, test.err) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestDenied: only what this machine does not give counts as its verdict.
func TestDenied(t *testing.T) {
	for _, test := range []struct {
		err   error
		limit string
		want  bool
	}{
		{syscall.EPERM, "9", true},
		{syscall.EACCES, "9", true},
		{syscall.EINVAL, "9", true},
		{syscall.ENOSPC, "0", true},
		{syscall.ENOSPC, "9", false},
		{syscall.EUSERS, "", false},
		{syscall.EAGAIN, "0", false},
		{syscall.ENOMEM, "9", false},
		{syscall.ETXTBSY, "9", false},
		{nil, "0", false},
	} {
		err := test.err
		if err != nil {
			err = explain(err, Isolation{}, true, readSetting)
		}
		if got := denied(err, func(string) string { return test.limit }); got != test.want {
			t.Errorf("%v, limit %q: %t", test.err, test.limit, got)
		}
	}
	if Denied(nil) {
		t.Error("no error is a verdict")
	}
}

func TestReadSetting(t *testing.T) {
	if got := readSetting("kernel.ostype"); got != "Linux" {
		t.Errorf("kernel.ostype is %q", got)
	}
	if got := readSetting("kernel.no_such_setting"); got != "" {
		t.Errorf("a setting that is not there is %q", got)
	}
}

func TestSameIDs(t *testing.T) {
	for _, test := range []struct {
		idMap string
		want  []syscall.SysProcIDMap
		fails bool
	}{
		{"         0          0 4294967295\n", []syscall.SysProcIDMap{{Size: 4294967295}}, false},
		{"0 1001 1\n1 100000 65536\n", []syscall.SysProcIDMap{{Size: 1}, {ContainerID: 1, HostID: 1, Size: 65536}}, false},
		{"", nil, true},
		{"0 0\n", nil, true},
		{strings.Repeat("0 0 1\n", maxIDMapLines+1), nil, true},
	} {
		got, err := sameIDs(test.idMap)
		if (err != nil) != test.fails {
			t.Errorf("%.20q: %v", test.idMap, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" && !test.fails {
			t.Errorf("%.20q (-want +got)\n%s", test.idMap, diff)
		}
	}
}
