package keep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"
)

// bridgeName is the interface of the control plane on the network of the nodes.
const bridgeName = "machines"

// maxForwarded bounds the connections from the outer machine.
const maxForwarded = 1024

// makeNetwork makes, in this network namespace, the network between the control plane and the nodes. No way leads out.
func (k *Keeper) makeNetwork() error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("set the loopback interface up: %w", err)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make bridge: %w", err)
	}
	own := netip.PrefixFrom(k.cfg.Layout.ControlPlane(), k.cfg.Layout.Machines().Bits())
	if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: ipNet(own)}); err != nil {
		return fmt.Errorf("give bridge its address: %w", err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("set bridge up: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("let the control plane forward: %w", err)
	}
	return nil
}

// plug gives the network namespace of a process the interface eth0 on the bridge, and leads its pods' addresses there.
func (k *Keeper) plug(n, pid int) error {
	name := k.cfg.Layout.NodeName(n)
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	if err := k.unplug(n); err != nil {
		return err
	}
	err = netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: bridge.Attrs().Index, Flags: net.FlagUp},
		PeerName:  "eth0", PeerNamespace: netlink.NsPid(pid),
	})
	if err != nil {
		return fmt.Errorf("connect %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("connect %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("connect %s: %w", name, err)
	}
	return route(k.cfg.Layout.Pods(n), k.cfg.Layout.Node(n))
}

// unplug removes the interface of a node that has ended, which the kernel would do somewhat later.
func (k *Keeper) unplug(n int) error {
	link, err := netlink.LinkByName(k.cfg.Layout.NodeName(n))
	if err == nil {
		err = netlink.LinkDel(link)
	}
	var missing netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &missing) {
		return fmt.Errorf("disconnect %s: %w", k.cfg.Layout.NodeName(n), err)
	}
	return nil
}

func route(to netip.Prefix, via netip.Addr) error {
	if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %s via %s: %w", to, via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// router leads the addresses of LoadBalancers to nodes.
type router struct{ k *Keeper }

// Alive says whether a node runs; Kubernetes notices much later that one does not.
func (r router) Alive(node string) bool {
	_, ok := r.k.running(node)
	return ok
}

// Route leads an address to a node.
func (r router) Route(address netip.Addr, node string) error {
	n, ok := r.k.running(node)
	if !ok {
		return fmt.Errorf("route %s to %s: the node is not up", address, node)
	}
	return route(netip.PrefixFrom(address, address.BitLen()), r.k.cfg.Layout.Node(n))
}

// Unroute takes an address back.
func (r router) Unroute(address netip.Addr) error {
	err := netlink.RouteDel(&netlink.Route{Dst: ipNet(netip.PrefixFrom(address, address.BitLen()))})
	if err != nil {
		return fmt.Errorf("remove route of %s: %w", address, err)
	}
	return nil
}

// forward carries connections from the outer machine's loopback interface to the API server.
func (k *Keeper) forward(ctx context.Context) error {
	to := net.JoinHostPort("127.0.0.1", strconv.Itoa(k.cfg.Layout.Port()))
	var dialer net.Dialer
	return Forward(ctx, k.cfg.API, func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", to) })
}

// Forward accepts connections until ctx ends and carries each to one that dial makes.
func Forward(ctx context.Context, listener net.Listener, dial func(context.Context) (net.Conn, error)) error {
	var all sync.WaitGroup
	defer all.Wait()
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	slots := make(chan struct{}, maxForwarded)
	for {
		from, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			defer from.Close()
			to, err := dial(ctx)
			if err != nil {
				return // the closed connection says so
			}
			defer to.Close()
			defer context.AfterFunc(ctx, func() { from.Close(); to.Close() })()
			var both sync.WaitGroup
			both.Go(func() { carry(to, from) })
			carry(from, to)
			both.Wait()
		})
	}
}

// carry copies one direction and passes its end on.
func carry(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		return
	}
	to.Close()
}
