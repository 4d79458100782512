package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/dns"
	"github.com/lateen-mesh/lateen/proxy/table"
)

// nameWait is how long a DNS question waits for the control plane; where that is away, since when it is. Whoever asks gives up
// after 5 s as a rule, and asks for several names one after another (search domains).
const nameWait = 3 * time.Second

// openDNS opens the sidecar's name server, over IPv4 alone where the kernel has no IPv6 or it is turned off.
func (p *Proxy) openDNS(run func(string, func(context.Context) error)) error {
	s := dns.New(dns.Config{Lookup: p.lookup, Upstreams: p.nameServers(), Dial: p.dialer().DialContext, Zone: "cluster.local", BehindKnow: p.cfg.ClusterDNS, Logger: p.cfg.Logger})
	// Loopback addresses, not wildcards: an answer must leave from the address that the question was sent to.
	for _, ip := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		addr := netip.AddrPortFrom(ip, PortDNS)
		udp, err := net.ListenPacket("udp", addr.String())
		if ip.Is6() && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
			continue
		}
		if err != nil {
			return listenError(addr, err)
		}
		tcp, err := net.Listen("tcp", addr.String())
		if err != nil {
			_ = udp.Close()
			return listenError(addr, err)
		}
		run("DNS", func(ctx context.Context) error { return s.Run(ctx, udp, tcp) })
	}
	return nil
}

// nameServers lists the DNS servers behind the mesh.
func (p *Proxy) nameServers() []string {
	if len(p.cfg.Resolvers) > 0 {
		return p.cfg.Resolvers
	}
	return resolvConf("/etc/resolv.conf")
}

// dialer makes connections of the proxy's own, which its capture rules let pass.
func (p *Proxy) dialer() *net.Dialer {
	d := &net.Dialer{}
	if m := p.cfg.Mark; m != 0 {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(m)) }); cerr != nil {
				return cerr
			}
			return err
		}
	}
	return d
}

// resolvConf lists the name servers of a resolv.conf.
func resolvConf(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for scan := bufio.NewScanner(f); scan.Scan(); {
		if fields := strings.Fields(scan.Text()); len(fields) > 1 && fields[0] == "nameserver" {
			out = append(out, net.JoinHostPort(fields[1], "53"))
		}
	}
	return out
}

// lookup finds a name of the mesh, asking the control plane if need be. A name that it has not been able to tell
// about is treated as foreign, unless it can only be one of ours: that is an error.
func (p *Proxy) lookup(ctx context.Context, name string) ([]netip.Addr, bool, error) {
	n, err := p.await(ctx, name)
	switch {
	case err != nil:
		if strings.HasSuffix(name, ".cluster.local") {
			return nil, false, err
		}
		return nil, false, nil
	case n == nil:
		return nil, false, nil
	}
	return n.Addresses, true, nil
}

// away is how long there has been no connection to the control plane.
func (p *Proxy) away() time.Duration {
	switch lost := p.lostAt.Load(); {
	case p.connected.Load():
		return 0
	case lost == 0:
		return time.Since(p.started)
	default:
		return time.Since(time.Unix(0, lost))
	}
}

func (p *Proxy) await(ctx context.Context, name string) (*plan.Name, error) {
	n, state := p.table.Name(name)
	if state == table.Pending {
		wait := nameWait - p.away()
		if wait <= 0 {
			return nil, fmt.Errorf("the control plane is away and has not told of %q before", name)
		}
		answered := make(chan struct{})
		cancel := p.table.Await(plan.KindName, name, func() { close(answered) })
		select {
		case <-answered:
		case <-time.After(wait):
			cancel()
			return nil, fmt.Errorf("the control plane has not told of %q within %s", name, wait)
		case <-ctx.Done():
			cancel()
			return nil, ctx.Err()
		}
		n, state = p.table.Name(name)
	}
	if state != table.Ready {
		return nil, nil
	}
	return n, nil
}
