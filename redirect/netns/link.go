package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	loopback = "lo"
	// firstPort, when 0, lets a workload without privileges serve on port 80.
	firstPort = "net.ipv4.ip_unprivileged_port_start"
	// noIPv6 is 1 where the machine's settings keep IPv6 off, also in new namespaces.
	noIPv6 = "net.ipv6.conf.all.disable_ipv6"
	// inboundSource is the IPv6 address from which a proxy calls its own workload, as in Istio. Its IPv4 twin
	// 127.0.0.6 is loopback already; this one has to be given to the loopback interface.
	inboundSource = "::6/128"
	// awaitTimeout is long: the kernel does such work under a lock that all namespaces of the machine share.
	awaitTimeout  = 30 * time.Second
	awaitInterval = time.Millisecond
)

// Loopback brings the loopback interface of the current namespace up and gives it ::6, from which a proxy calls its
// own workload over IPv6 so that the capture rules know the call. Where IPv6 is off there is no ::6 and no error. It
// needs CAP_NET_ADMIN, and may be repeated.
func Loopback() error {
	var addresses []netip.Prefix
	if readSetting(noIPv6) == "0" {
		addresses = append(addresses, netip.MustParsePrefix(inboundSource))
	}
	return equip(loopback, addresses)
}

// furnish sets up the current namespace, in which eth0 exists.
func furnish(prefixes []netip.Prefix, gateways []netip.Addr) error {
	if err := setSetting(firstPort, "0"); err != nil {
		return err
	}
	if err := allowIPv6(prefixes); err != nil {
		return err
	}
	if err := Loopback(); err != nil {
		return err
	}
	if err := equip(Interface, prefixes); err != nil {
		return err
	}
	link, err := netlink.LinkByName(Interface)
	if err != nil {
		return fmt.Errorf("find %s: %w", Interface, err)
	}
	for _, gateway := range gateways {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("add the default route by %s: %w", gateway, err)
		}
	}
	return nil
}

// equip gives addresses to an interface of the current namespace, brings it up, and waits until the addresses are
// in use. Duplicate address detection, which would hold IPv6 addresses back for a second, is left out.
func equip(name string, addresses []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, a := range addresses {
		address := &netlink.Addr{IPNet: &net.IPNet{
			IP:   a.Addr().AsSlice(),
			Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen()),
		}}
		if a.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, address); err != nil {
			return fmt.Errorf("give %s to %s: %w", a, name, err)
		}
	}
	if err := up(link); err != nil {
		return err
	}
	return awaitLocal(addresses)
}

// awaitLocal waits until packets to the addresses are for us. The kernel adds an IPv6 address at once, but its route
// later.
func awaitLocal(addresses []netip.Prefix) error {
	for _, a := range addresses {
		err := await(a.Addr().String()+" to be local", func() bool {
			routes, err := netlink.RouteGet(a.Addr().AsSlice())
			return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func up(link netlink.Link) error {
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s (needs CAP_NET_ADMIN): %w", link.Attrs().Name, err)
	}
	return nil
}

// raise brings interfaces of the current namespace up and waits until they carry packets. When both ends of a cable
// are up, the kernel brings its queues and its place on the bridge to life later, in its own time.
func raise(names ...string) error {
	for _, name := range names {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := up(link); err != nil {
			return err
		}
		err = await(name+" to carry packets", func() bool {
			link, err := netlink.LinkByIndex(link.Attrs().Index)
			return err == nil && link.Attrs().OperState == netlink.OperUp
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// await waits until ready says so. There is no one event to wait for: what we wait for is the kernel's own deferred
// work. Whoever does not wait loses a packet, which TCP and neighbour discovery resend after a second.
func await(what string, ready func() bool) error {
	tick, deadline := time.NewTicker(awaitInterval), time.NewTimer(awaitTimeout)
	defer tick.Stop()
	defer deadline.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("wait for %s: not within %s", what, awaitTimeout)
		}
	}
	return nil
}

// allowIPv6 turns IPv6 on in the current namespace if one of the addresses needs it.
func allowIPv6(addresses []netip.Prefix) error {
	if !slices.ContainsFunc(addresses, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		return nil
	}
	if err := setSetting(noIPv6, "0"); err != nil {
		return fmt.Errorf("turn on IPv6 (boot without ipv6.disable=1, or give IPv4 addresses only): %w", err)
	}
	return nil
}

// remove deletes an interface of the current namespace.
func remove(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// explainLink says why the kernel refused to make a link of a kind.
func explainLink(err error, kind string) error {
	advice := "the kernel refused"
	switch {
	case errors.Is(err, syscall.EPERM):
		advice = "it needs CAP_NET_ADMIN: run as root, or inside a user namespace"
	case errors.Is(err, syscall.EOPNOTSUPP):
		advice = fmt.Sprintf("the kernel has no %s: as root, modprobe %s", kind, kind)
	case errors.Is(err, syscall.EEXIST):
		advice = "the name is taken by another program or by one that was killed here: ip link del removes it"
	}
	return fmt.Errorf("make a link of kind %s: %s: %w", kind, advice, err)
}

// setSetting gives a sysctl a value, unless it has it: /proc/sys may be read-only.
func setSetting(name, value string) error {
	if readSetting(name) == value {
		return nil
	}
	if err := os.WriteFile(settingPath(name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", name, value, err)
	}
	return nil
}
