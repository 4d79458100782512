package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/test/cluster/cgroup"
)

// maxConfigBytes bounds the line that holds the Config.
const maxConfigBytes = 1 << 20

// Prepare turns this process, the first of new process, mount, network, IPC and host name namespaces, into the machine
// that the first line of in describes, and executes this program with args. It returns only if that cannot be done.
func Prepare(in io.Reader, args []string) error {
	cfg, err := readConfig(in)
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(cfg.Name)); err != nil {
		return fmt.Errorf("name the machine: %w", err)
	}
	if err := connect(cfg); err != nil {
		return err
	}
	// What is unshared here is this thread's alone, until it becomes the whole process by exec.
	runtime.LockOSThread()
	if err := enterGroup(cfg.Group); err != nil {
		return err
	}
	if err := mountRoot(cfg); err != nil {
		return err
	}
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	if err := syscall.Exec("/proc/self/exe", args, env); err != nil {
		return fmt.Errorf("execute the machine's first process: %w", err)
	}
	return nil
}

// readConfig reads byte by byte, because what follows the line is for Run.
func readConfig(in io.Reader) (Config, error) {
	var cfg Config
	var line []byte
	for one := make([]byte, 1); ; {
		if len(line) == maxConfigBytes {
			return cfg, fmt.Errorf("read machine: more than %d bytes", maxConfigBytes)
		}
		if _, err := io.ReadFull(in, one); err != nil {
			return cfg, fmt.Errorf("read machine: %w", err)
		}
		if one[0] == '\n' {
			break
		}
		line = append(line, one[0])
	}
	if err := json.Unmarshal(line, &cfg); err != nil {
		return cfg, fmt.Errorf("read machine: %w", err)
	}
	return cfg, nil
}

// connect gives the interfaces their addresses and the machine its routes.
func connect(cfg Config) error {
	for _, file := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(file, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("let the machine forward: %w", err)
		}
	}
	for _, name := range []string{"lo", "eth0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", name, err)
		}
		if name == "eth0" {
			if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(cfg.Address)}); err != nil {
				return fmt.Errorf("give %s its address: %w", name, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	routes := append([]Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: cfg.Gateway}}, cfg.Routes...)
	for _, route := range routes {
		if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(route.To), Gw: route.Via.AsSlice()}); err != nil {
			return fmt.Errorf("route to %s: %w", route.To, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// enterGroup makes the machine's group the root of all that this process and its children see. The machine's daemons are
// in a group below, since in v2 one with groups below it has no processes of its own.
func enterGroup(group string) error {
	daemons := group + "/daemons"
	if err := cgroup.Make(daemons); err != nil {
		return err
	}
	if err := cgroup.Enter(group); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare control groups: %w", err)
	}
	if err := cgroup.Enter(daemons); err != nil {
		return err
	}
	return cgroup.Delegate(group)
}
