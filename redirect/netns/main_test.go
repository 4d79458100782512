package netns_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
)

// patience is how long a test waits for what must happen. The kernel ends namespaces one after the other, those of the
// whole machine.
const patience = time.Minute

func TestMain(m *testing.M) {
	nstest.Main(m, map[string]func() error{
		"wait": wait, "hold": hold, "program": program, "identity": identity, "unprivileged": unprivileged,
	})
}

// wait is a workload: it lives until its standard input ends.
func wait() error {
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// hold is a workload that takes no notice of anything: it would outlive its program if it were let.
func hold() error {
	<-time.After(2 * patience)
	return nil
}

// program runs two workloads on a bridge in its own namespace, prints their pids and waits for a line.
func program() error {
	bridge, err := netns.NewBridge(netns.BridgeConfig{Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}})
	if err != nil {
		return err
	}
	for _, address := range []string{"10.9.0.2", "10.9.0.3"} {
		p, err := nstest.Spawn(context.Background(), "hold", netns.Isolation{})
		if err != nil {
			return err
		}
		ns, err := netns.Of(p.Process.Pid)
		if err != nil {
			return err
		}
		if err := bridge.Attach(ns, netip.MustParseAddr(address)); err != nil {
			return err
		}
		if err := ns.Close(); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(os.Stdout, p.Process.Pid); err != nil {
			return err
		}
	}
	_, err = bufio.NewReader(os.Stdin).ReadString('\n')
	return err
}

// identity prints who the process is and where: pid, uid, the uids it has, its namespaces.
func identity() error {
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return err
	}
	words := []string{fmt.Sprint(os.Getpid()), fmt.Sprint(os.Getuid()), strings.Join(strings.Fields(string(ids)), ",")}
	for _, kind := range []string{"user", "net", "mnt", "pid"} {
		name, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return err
		}
		words = append(words, name)
	}
	_, err = fmt.Fprintln(os.Stdout, strings.Join(words, " "))
	return err
}

// unprivileged waits for a line, gives up its capabilities and serves on port 80.
func unprivileged() error {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	runtime.LockOSThread() // Capabilities are a thread's.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "10.8.0.2:80")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, "serving"); err != nil {
		return err
	}
	return l.Close()
}
