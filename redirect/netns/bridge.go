package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/vishvananda/netlink"
)

const (
	// DefaultBridge is the name of a bridge whose BridgeConfig gives none.
	DefaultBridge = "lateen0"
	// Interface is the name that a workload's end of the cable has inside its namespace.
	Interface = "eth0"

	// maxBridgeName leaves room in an interface name (15 bytes) for "-" and the number of the workload.
	maxBridgeName = 9
	// maxAttached is the number of workloads that a bridge takes in its life: their numbers have five digits.
	maxAttached = 99999
)

// BridgeConfig describes a bridge.
type BridgeConfig struct {
	// Name of the interface, at most 9 bytes. Default "lateen0".
	Name string
	// Addresses of the bridge, one for IPv4, one for IPv6, or both. Each is the gateway of the workloads whose
	// addresses its prefix contains. At least one is needed.
	Addresses []netip.Prefix
}

// Bridge joins the namespaces of workloads. Safe for concurrent use.
type Bridge struct {
	name      string
	addresses []netip.Prefix
	home      *os.File // The namespace in which the bridge stands.
	attached  atomic.Int32
}

// NewBridge makes a bridge in the current network namespace and brings it up. It needs CAP_NET_ADMIN there. The
// bridge goes when Close is called or the namespace ends: a program that may be killed should therefore run in a
// namespace of its own (Command), not in the machine's.
func NewBridge(config BridgeConfig) (*Bridge, error) {
	b := &Bridge{name: config.Name, addresses: config.Addresses}
	if b.name == "" {
		b.name = DefaultBridge
	}
	if err := b.validate(); err != nil {
		return nil, fmt.Errorf("make the bridge %q: %w", b.name, err)
	}
	home, err := Current()
	if err != nil {
		return nil, err
	}
	b.home = home
	if err := Do(home, b.create); err != nil {
		_ = home.Close()
		return nil, fmt.Errorf("make the bridge %q: %w", b.name, err)
	}
	return b, nil
}

func (b *Bridge) validate() error {
	var faults []error
	if len(b.name) > maxBridgeName || strings.ContainsAny(b.name, "/ :%") {
		faults = append(faults, fmt.Errorf("the name must have at most %d bytes, without '/', ' ', ':', '%%'",
			maxBridgeName))
	}
	if len(b.addresses) == 0 {
		faults = append(faults, errors.New("it has no address: workloads would have no gateway"))
	}
	families := map[bool]bool{}
	for _, a := range b.addresses {
		switch {
		case !a.IsValid() || a.Addr().Is4In6():
			faults = append(faults, fmt.Errorf("the address %q is not valid", a))
		case families[a.Addr().Is4()]:
			faults = append(faults, fmt.Errorf("the address %s is a second one of its family", a))
		}
		families[a.Addr().Is4()] = true
	}
	return errors.Join(faults...)
}

// create makes the link and gives it its addresses. The link address is given, too: else the bridge takes the lowest of
// its ports', which changes as they come, and who knew the old one reaches it no more for some seconds. Multicast snooping is off: without a querier on the bridge it
// can only lose the neighbour solicitations of IPv6.
func (b *Bridge) create() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = b.name
	attrs.HardwareAddr = linkAddress(b.addresses[0].Addr())
	snooping := false
	link := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(link); err != nil {
		return explainLink(err, "bridge")
	}
	err := allowIPv6(b.addresses)
	if err == nil {
		err = equip(b.name, b.addresses)
	}
	if err != nil {
		_ = netlink.LinkDel(link)
	}
	return err
}

// linkAddress is a locally administered link address (IEEE 802c) made of the last four bytes of an IP address.
func linkAddress(a netip.Addr) net.HardwareAddr {
	bytes := a.AsSlice()
	return append(net.HardwareAddr{0x02, 0x00}, bytes[len(bytes)-4:]...)
}

// Close removes the bridge; workloads keep their namespaces but reach each other no more.
func (b *Bridge) Close() error {
	err := Do(b.home, func() error { return remove(b.name) })
	return errors.Join(err, b.home.Close())
}

// Attach joins the network namespace ns, which must be new, to the bridge: a cable from the bridge to an interface
// eth0 with these addresses, each inside the prefix of a bridge's address, and a default route for each family. It
// also does what Loopback does, and lets every user inside serve on any port.
//
// When it returns, packets flow. The cable goes when the namespace ends. On error nothing is left of it.
func (b *Bridge) Attach(ns *os.File, addresses ...netip.Addr) error {
	prefixes, gateways, err := b.plan(addresses)
	if err != nil {
		return fmt.Errorf("attach a namespace to the bridge %q: %w", b.name, err)
	}
	number := b.attached.Add(1)
	if number > maxAttached {
		return fmt.Errorf("attach a namespace to the bridge %q: it has had %d workloads: make a new one", b.name,
			maxAttached)
	}
	end := fmt.Sprintf("%s-%d", b.name, number)
	if err := Do(b.home, func() error { return b.cable(end, ns) }); err != nil {
		return fmt.Errorf("attach a namespace with %v to the bridge %q: %w", addresses, b.name, err)
	}
	err = Do(ns, func() error { return furnish(prefixes, gateways) })
	if err == nil {
		err = Do(b.home, func() error { return raise(end, b.name) })
	}
	if err == nil {
		err = Do(ns, func() error { return raise(Interface) })
	}
	if err != nil {
		_ = Do(b.home, func() error { return remove(end) }) // The other end goes with it.
		return fmt.Errorf("set up a namespace with %v: %w", addresses, err)
	}
	return nil
}

// plan finds the prefix and the gateway of each address.
func (b *Bridge) plan(addresses []netip.Addr) (prefixes []netip.Prefix, gateways []netip.Addr, err error) {
	if len(addresses) == 0 {
		return nil, nil, errors.New("no address is given")
	}
	var faults []error
next:
	for _, a := range addresses {
		for _, own := range b.addresses {
			if own.Addr() == a {
				faults = append(faults, fmt.Errorf("%s is the bridge's own address", a))
				continue next
			}
			if own.Contains(a) {
				prefixes = append(prefixes, netip.PrefixFrom(a, own.Bits()))
				gateways = append(gateways, own.Addr())
				continue next
			}
		}
		faults = append(faults, fmt.Errorf("%s is in none of the bridge's prefixes %v", a, b.addresses))
	}
	return prefixes, gateways, errors.Join(faults...)
}

// cable makes a pair of interfaces in one step: one end is born on the bridge, the other inside ns.
func (b *Bridge) cable(end string, ns *os.File) error {
	bridge, err := netlink.LinkByName(b.name)
	if err != nil {
		return fmt.Errorf("find the bridge: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = end
	attrs.MasterIndex = bridge.Attrs().Index
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: Interface, PeerNamespace: netlink.NsFd(ns.Fd())})
	runtime.KeepAlive(ns)
	if err != nil {
		return explainLink(err, "veth")
	}
	return nil
}
