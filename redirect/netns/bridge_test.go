package netns_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
)

func newBridge(t *testing.T, home *os.File, config netns.BridgeConfig) *netns.Bridge {
	t.Helper()
	var bridge *netns.Bridge
	err := netns.Do(home, func() (err error) {
		bridge, err = netns.NewBridge(config)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bridge
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// links counts the interfaces of a namespace.
func links(t *testing.T, ns *os.File) int {
	t.Helper()
	var count int
	err := netns.Do(ns, func() error {
		list, err := netlink.LinkList()
		count = len(list)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// watch waits until a namespace has so many interfaces. Begun before what it waits for, it misses nothing.
func watch(t *testing.T, ns *os.File) (until func(count int)) {
	t.Helper()
	updates, done := make(chan netlink.LinkUpdate, 100), make(chan struct{})
	if err := netns.Do(ns, func() error { return netlink.LinkSubscribe(updates, done) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(done)
		for range updates { // Until the subscription has ended.
		}
	})
	return func(count int) {
		t.Helper()
		deadline := time.After(patience)
		for links(t, ns) != count {
			select {
			case <-updates:
			case <-deadline:
				t.Fatalf("%d links, want %d", links(t, ns), count)
			}
		}
	}
}

// TestAttach has workloads talk to each other and to the bridge, over both families and without delay.
func TestAttach(t *testing.T) {
	home := nstest.New(t)
	bridge := newBridge(t, home, netns.BridgeConfig{Addresses: prefixes("10.8.0.1/16", "fd08::1/64")})
	a, b := nstest.New(t), nstest.New(t)
	for ns, host := range map[*os.File]string{a: "2", b: "3"} {
		if err := bridge.Attach(ns, netip.MustParseAddr("10.8.0."+host), netip.MustParseAddr("fd08::"+host)); err != nil {
			t.Fatal(err)
		}
	}
	if got := links(t, home); got != 4 { // Its loopback, the bridge and two cables.
		t.Errorf("%d links at home, want 4", got)
	}
	for _, call := range []struct {
		from, to *os.File
		address  string
	}{
		{a, b, "10.8.0.3:80"},
		{b, a, "[fd08::2]:80"},
		{a, home, "10.8.0.1:80"},
		{b, home, "[fd08::1]:80"},
		{home, b, "10.8.0.3:81"},
		{a, a, "10.8.0.2:81"},
		{a, a, "[::6]:81"},
		{b, b, "127.0.0.6:81"},
	} {
		if err := connect(call.from, call.to, call.address); err != nil {
			t.Error(err)
		}
	}
	err := netns.Do(a, func() error {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		var gateways []string
		for _, r := range routes {
			if r.Gw != nil {
				gateways = append(gateways, r.Gw.String())
			}
		}
		if got := strings.Join(gateways, " "); got != "10.8.0.1 fd08::1" {
			t.Errorf("the default routes go by %s", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := bridge.Close(); err != nil {
		t.Error(err)
	}
}

// connect listens in one namespace and connects from another.
func connect(from, to *os.File, address string) error {
	var l net.Listener
	err := netns.Do(to, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	return netns.Do(from, func() error {
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// TestAttachUnprivileged has a process without capabilities serve on a low port.
func TestAttachUnprivileged(t *testing.T) {
	bridge := newBridge(t, nstest.New(t), netns.BridgeConfig{Addresses: prefixes("10.8.0.1/16")})
	p := nstest.Start(t, "unprivileged", netns.Isolation{})
	attach(t, bridge, p.Process.Pid, "10.8.0.2")
	if _, err := p.In.Write([]byte("attached\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := p.Out.ReadString('\n'); err != nil || line != "serving\n" {
		t.Errorf("the process says %q (%v)", line, err)
	}
}

func TestAttachRefuses(t *testing.T) {
	home := nstest.New(t)
	bridge := newBridge(t, home, netns.BridgeConfig{Addresses: prefixes("10.8.0.1/16", "::2/64")})
	before := links(t, home)
	used := nstest.New(t)
	if err := bridge.Attach(used, netip.MustParseAddr("10.8.0.2")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		ns        *os.File
		addresses []string
		want      string
	}{
		{"no address", nstest.New(t), nil, "no address"},
		{"foreign address", nstest.New(t), []string{"192.0.2.1", "10.8.0.1"}, "192.0.2.1 is in none of the bridge's"},
		{"the bridge's", nstest.New(t), []string{"10.8.0.1"}, "the bridge's own"},
		{"attached already", used, []string{"10.8.0.3"}, "file exists"},
		{"address that the kernel refuses", nstest.New(t), []string{"::1"}, "give ::1/64 to eth0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var addresses []netip.Addr
			for _, a := range test.addresses {
				addresses = append(addresses, netip.MustParseAddr(a))
			}
			if err := bridge.Attach(test.ns, addresses...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if got := links(t, home); got != before+1 {
				t.Errorf("%d links at home, want %d", got, before+1)
			}
		})
	}
	if err := bridge.Close(); err != nil {
		t.Error(err)
	}
	if err := bridge.Attach(nstest.New(t), netip.MustParseAddr("10.8.0.3")); err == nil {
		t.Error("attached to a bridge that is closed")
	}
}

func TestNewBridgeRefuses(t *testing.T) {
	home := nstest.New(t)
	newBridge(t, home, netns.BridgeConfig{Addresses: prefixes("10.8.0.1/16")})
	before := links(t, home)
	for _, test := range []struct {
		config netns.BridgeConfig
		want   string
	}{
		{netns.BridgeConfig{}, "no address"},
		{netns.BridgeConfig{Addresses: prefixes("10.8.0.1/16", "10.9.0.1/16")}, "second one of its family"},
		{netns.BridgeConfig{Addresses: []netip.Prefix{{}}}, "not valid"},
		{netns.BridgeConfig{Name: "ten-bytes!", Addresses: prefixes("10.8.0.1/16")}, "at most 9 bytes"},
		{netns.BridgeConfig{Name: "a/b", Addresses: prefixes("10.8.0.1/16")}, "at most 9 bytes"},
		{netns.BridgeConfig{Addresses: prefixes("10.8.0.1/16")}, "the name is taken"},
		{netns.BridgeConfig{Name: "other", Addresses: prefixes("::1/128")}, "give ::1/128 to other"},
	} {
		err := netns.Do(home, func() error {
			_, err := netns.NewBridge(test.config)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.config, err, test.want)
		}
		if got := links(t, home); got != before {
			t.Errorf("%+v: %d links are left, want %d", test.config, got, before)
		}
	}
}

func TestLoopbackRepeats(t *testing.T) {
	err := netns.Do(nstest.New(t), func() error {
		for range 2 {
			if err := netns.Loopback(); err != nil {
				return err
			}
		}
		l, err := net.Listen("tcp", "[::6]:0")
		if err != nil {
			return err
		}
		return l.Close()
	})
	if err != nil {
		t.Error(err)
	}
}

// TestKilledWorkload: the cable goes with the namespace, and the namespace with its process.
func TestKilledWorkload(t *testing.T) {
	home := nstest.New(t)
	bridge := newBridge(t, home, netns.BridgeConfig{Addresses: prefixes("10.8.0.1/16")})
	until := watch(t, home)
	before := links(t, home)
	for i := range 3 {
		p := nstest.Start(t, "wait", netns.Isolation{})
		attach(t, bridge, p.Process.Pid, fmt.Sprint("10.8.0.", 2+i))
		until(before + 1)
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		until(before)
	}
}

// attach attaches a process and keeps no file that would keep its namespace.
func attach(t *testing.T, bridge *netns.Bridge, pid int, address string) {
	t.Helper()
	ns, err := netns.Of(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	if err := bridge.Attach(ns, netip.MustParseAddr(address)); err != nil {
		t.Fatal(err)
	}
}

// TestKilledProgram kills a program that runs workloads on a bridge in its own namespace. Nothing is left: not the
// workloads, and not its namespace, which held the bridge and the cables. That one is seen to go by a cable of its
// own into the test's namespace.
func TestKilledProgram(t *testing.T) {
	for _, isolation := range []netns.Isolation{{}, {PID: true}, {User: true}} {
		t.Run(fmt.Sprintf("%+v", isolation), func(t *testing.T) {
			home := nstest.New(t)
			outer := newBridge(t, home, netns.BridgeConfig{Addresses: prefixes("10.8.0.1/16")})
			until := watch(t, home)
			before := links(t, home)
			p := nstest.Start(t, "program", isolation)
			attach(t, outer, p.Process.Pid, "10.8.0.2")
			workloads := workloadsOf(t, p, isolation)
			if got := links(t, home); got != before+1 {
				t.Errorf("%d links at home, want %d", got, before+1)
			}
			if err := p.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			for _, workload := range workloads {
				awaitEnd(t, workload)
			}
			until(before)
		})
	}
}

// workloadsOf reads the pids that the role "program" prints and opens the processes.
func workloadsOf(t *testing.T, p *nstest.Process, isolation netns.Isolation) (pidfds []int) {
	t.Helper()
	for range 2 {
		line, err := p.Out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		if isolation.PID {
			pid = outerPID(t, p.Process.Pid, pid)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		pidfds = append(pidfds, fd)
	}
	return pidfds
}

// outerPID finds the child of parent that has the number pid in its own PID namespace.
func outerPID(t *testing.T, parent, pid int) int {
	t.Helper()
	statuses, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range statuses {
		outer, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", outer))
		if err != nil {
			continue // It has ended.
		}
		fields := map[string]string{}
		for scanner := bufio.NewScanner(bytes.NewReader(status)); scanner.Scan(); {
			key, value, _ := strings.Cut(scanner.Text(), ":")
			fields[key] = strings.TrimSpace(value)
		}
		if fields["PPid"] == strconv.Itoa(parent) && strings.HasSuffix(fields["NSpid"], "\t"+strconv.Itoa(pid)) {
			return outer
		}
	}
	t.Fatalf("process %d has no child that is process %d inside", parent, pid)
	return 0
}

// awaitEnd waits until a process has ended; it need not be our child.
func awaitEnd(t *testing.T, pidfd int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if n != 1 || err != nil {
			t.Errorf("a workload outlives its program: %v", err)
		}
		return
	}
}

// TestBridgeKeepsItsLinkAddress: a bridge that is given none takes the lowest of its ports', and neighbours that know
// another one lose what they send.
func TestBridgeKeepsItsLinkAddress(t *testing.T) {
	home := nstest.New(t)
	bridge := newBridge(t, home, netns.BridgeConfig{Addresses: prefixes("10.8.0.1/16")})
	address := func() (out string) {
		t.Helper()
		if err := netns.Do(home, func() error {
			link, err := netlink.LinkByName(netns.DefaultBridge)
			if err == nil {
				out = link.Attrs().HardwareAddr.String()
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := address()
	for i := range 8 { // Link addresses of ports are random: all would have to be above ours.
		if err := bridge.Attach(nstest.New(t), netip.AddrFrom4([4]byte{10, 8, 0, byte(2 + i)})); err != nil {
			t.Fatal(err)
		}
		if now := address(); now != before {
			t.Fatalf("after %d workloads %s, before %s", i+1, now, before)
		}
	}
}
