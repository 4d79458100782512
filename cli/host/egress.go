package host

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/lateen-mesh/lateen/redirect"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

const (
	// relayPort is where, on the bridge, the workloads' connections to the outside arrive.
	relayPort = 15001
	// resolverPort is where their proxies ask for names that are not the mesh's.
	resolverPort = 53
)

// What the sockets are for that the host sends outside.
const (
	opOutside      = "outside"
	outsideRelay   = "relay"   // TCP listener of connections that were redirected.
	outsideQueries = "queries" // UDP socket for DNS.
	outsideStreams = "streams" // TCP listener for DNS.
)

// openOutside lets the workloads reach what the machine reaches: connections that leave the bridge are redirected to
// sockets here, which the process outside serves. The machine's own network, rules and settings stay as they are, so
// that nothing has to be undone, and root and an ordinary user take the same way.
func (h *host) openOutside() error {
	if err := redirect.Apply(outwardRules(bridgeAddresses())); err != nil {
		return err
	}
	sockets := Workload{}
	var files []*os.File
	defer func() { closeAll(files) }()
	add := func(name string, socket interface{ File() (*os.File, error) }, err error) error {
		if err != nil {
			return fmt.Errorf("open a socket for the outside: %w", err)
		}
		f, err := socket.File()
		if err != nil {
			return fmt.Errorf("open a socket for the outside: %w", err)
		}
		sockets.Sockets, files = append(sockets.Sockets, name), append(files, f)
		return nil
	}
	for _, a := range bridgeAddresses() {
		network := "tcp6"
		if a.Addr().Is4() {
			network = "tcp4"
		}
		l, err := net.ListenTCP(network, &net.TCPAddr{Port: relayPort})
		if err := add(outsideRelay, l, err); err != nil {
			return err
		}
		_ = l.Close()
	}
	resolver := netip.AddrPortFrom(bridgeAddresses()[0].Addr(), resolverPort)
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(resolver))
	if err := add(outsideQueries, udp, err); err != nil {
		return err
	}
	_ = udp.Close()
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(resolver))
	if err := add(outsideStreams, tcp, err); err != nil {
		return err
	}
	_ = tcp.Close()
	return writeRequest(h.outside, request{Op: opOutside, Workload: sockets}, files)
}

// outwardRules redirect each TCP connection that comes over the bridge and is not for the mesh.
func outwardRules(own []netip.Prefix) redirect.Ruleset {
	var rules []redirect.Rule
	for _, p := range own {
		rules = append(rules, redirect.Rule{To: p.Masked(), Why: "the mesh's own addresses"})
	}
	rules = append(rules, redirect.Rule{
		In: netns.DefaultBridge, Protocol: "tcp", Action: redirect.Redirect, Port: relayPort, Why: "the outside",
	})
	return redirect.Ruleset{Chains: []redirect.Chain{{Name: "outward", Hook: redirect.HookPrerouting, Rules: rules}}}
}

// watchOutside tells when the process outside has ended before the host.
func (h *host) watchOutside() {
	if _, err := h.outside.Read(make([]byte, 1)); err != nil && !h.isEnding() {
		h.log.Error("the process that reaches the outside has ended: workloads reach only the mesh until it is started anew")
	}
}
