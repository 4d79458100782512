package world

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

// Network is a bridge in a namespace of its own, to which places are joined. Two networks do not see each other, so that
// both may have the same addresses. It needs what redirect/netns needs: nstest.Main gives it to tests.
type Network struct {
	home    *Place
	gateway netip.Addr
	bridge  *netns.Bridge
	places  []*Place
}

// Place is a network namespace. A nil Place is the process's own.
type Place struct{ ns *os.File }

// NewNetwork makes a network. The prefix is the bridge's: its address is that of the control plane.
func NewNetwork(prefix netip.Prefix) (*Network, error) {
	home, err := newPlace()
	if err != nil {
		return nil, err
	}
	n := &Network{home: home, gateway: prefix.Addr()}
	err = home.Do(func() error {
		if err := netns.Loopback(); err != nil {
			return err
		}
		n.bridge, err = netns.NewBridge(netns.BridgeConfig{Addresses: []netip.Prefix{prefix}})
		return err
	})
	if err != nil {
		return nil, errors.Join(err, home.ns.Close())
	}
	return n, nil
}

// newPlace makes an empty namespace.
func newPlace() (*Place, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	return &Place{ns: ns}, nil
}

// Join makes a place with these addresses in the network.
func (n *Network) Join(addresses ...netip.Addr) (*Place, error) {
	p, err := newPlace()
	if err != nil {
		return nil, err
	}
	if err := n.bridge.Attach(p.ns, addresses...); err != nil {
		return nil, errors.Join(err, p.ns.Close())
	}
	n.places = append(n.places, p)
	return p, nil
}

// Close lets go of the network and its places.
func (n *Network) Close() error {
	err := n.bridge.Close()
	for _, p := range append(n.places, n.home) {
		err = errors.Join(err, p.ns.Close())
	}
	return err
}

// Do runs fn in the place: sockets that it opens and processes that it starts belong there.
func (p *Place) Do(fn func() error) error {
	if p == nil {
		return fn()
	}
	return netns.Do(p.ns, fn)
}

// Dial connects from the place, from an address of it if from is valid. The address is IP:port: names are not resolved.
func (p *Place) Dial(ctx context.Context, from netip.Addr, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	var c net.Conn
	err := p.Do(func() (err error) {
		c, err = d.DialContext(ctx, "tcp", address)
		return err
	})
	return c, err
}

// Listen opens a TCP port in the place.
func (p *Place) Listen(ctx context.Context, address string) (net.Listener, error) {
	var l net.Listener
	err := p.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		return err
	})
	return l, err
}
