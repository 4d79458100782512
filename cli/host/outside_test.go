package host_test

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
)

// pageBytes is the size of the far host's pages: more than what fits into buffers on the way.
const pageBytes = 1 << 20

// machine is a machine of the test's own, on a network with a far host that serves pages on port 8080 and is its name
// server, which knows the name far.test.
type machine struct {
	near, far *os.File // Their network namespaces.
	resolv    string   // Its resolv.conf.
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a network beside the machine's")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("needs setpriv: ", err)
	}
	m := &machine{near: newNetwork(t), far: newNetwork(t), resolv: filepath.Join(t.TempDir(), "resolv.conf")}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Chmod(filepath.Dir(m.resolv), 0o755))
	check(os.WriteFile(m.resolv, []byte("nameserver 192.0.2.1\nnameserver 192.0.2.2\n"), 0o644)) // Nobody serves at the first.
	check(netns.Do(m.near, func() error {
		if err := netns.Loopback(); err != nil {
			return err
		}
		bridge, err := netns.NewBridge(netns.BridgeConfig{
			Name: "street", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")},
		})
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = bridge.Close() })
		return bridge.Attach(m.far, netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2"))
	}))
	check(netns.Do(m.far, func() error { return m.serve(t) }))
	return m
}

// newNetwork makes a network namespace.
func newNetwork(t *testing.T) *os.File {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// serve is the far host: each page begins with who asks for it.
func (m *machine) serve(t *testing.T) error {
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _, _ := net.SplitHostPort(r.RemoteAddr)
		page := fmt.Appendf(nil, "%-40s", caller+" at "+r.Host)
		_, _ = w.Write(append(page, make([]byte, pageBytes-len(page))...))
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	names, err := net.ListenPacket("udp", ":53")
	if err != nil {
		return err
	}
	go nstest.ServeName(names, "far.test.", netip.MustParseAddr("192.0.2.2"))
	t.Cleanup(func() { _ = names.Close() })
	return nil
}

// command has a command run with the machine's resolv.conf and as a user. It must be started in the namespace near.
func (m *machine) command(cmd *exec.Cmd, uid int) *exec.Cmd {
	id := strconv.Itoa(uid)
	cmd.Args = slices.Concat([]string{"sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec setpriv --reuid=` + id +
		" --regid=" + id + ` --clear-groups "$@"`, m.resolv}, cmd.Args)
	cmd.Path = "/bin/sh"
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// TestOutside: a workload reaches what the machine reaches, as the machine would, by name and by address, and what is
// not there fails. When the process that does it is killed the mesh goes on, and says so.
func TestOutside(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		w.machine = newMachine(t)
		load := workload("one", "")
		load.Role = host.RoleGateway // The double of a proxy would carry nothing.
		load.Env = append(load.Env, os.Environ()...)
		load.Env = append(load.Env, "LATEEN_TEST_JOURNAL="+w.journal)
		load.Command = []string{
			w.program("lateen"), "fetch", "http://192.0.2.2:8080/", "http://[2001:db8::2]:8080/",
			"http://far.test:8080/", "http://192.0.2.2:81/", "http://nobody.test/",
		}
		w.linger = patience
		c := w.start("run", load)
		c.events(host.EventDone)
		got := slices.DeleteFunc(w.lines(), func(line string) bool { return !strings.HasPrefix(line, "http") })
		page := func(url, caller, name string) string {
			return fmt.Sprintf("%s: %-40s, %d bytes, <nil>", url, caller+" at "+name, pageBytes)
		}
		want := []string{
			page("http://192.0.2.2:8080/", "192.0.2.1", "192.0.2.2:8080"),
			page("http://[2001:db8::2]:8080/", "2001:db8::1", "[2001:db8::2]:8080"),
			page("http://far.test:8080/", "192.0.2.1", "far.test:8080"),
			"http://192.0.2.2:81/: no answer", "http://nobody.test/: no answer",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if err := syscall.Kill(w.process("lateen", "host-outside"), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await(t, "a word about the end of the process outside", func() bool {
			return strings.Contains(host.LastLines(w.dir.Log("host")), "workloads reach only the mesh")
		})
		before := len(w.lines())
		load.Command = load.Command[:4] // Not the names: who asks for them waits for some time.
		w.start("run", load).events(host.EventDone)
		after := slices.DeleteFunc(w.lines()[before:], func(line string) bool { return !strings.HasPrefix(line, "http") })
		for i, line := range after {
			if line != load.Command[2+i]+": no answer" {
				t.Errorf("without the process outside: %s", line)
			}
		}
		if len(after) != 2 {
			t.Errorf("%d answers without the process outside, want 2", len(after))
		}
		if out, err := w.command("clean", string(w.dir)).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		w.nothingLeft(false)
	})
}
