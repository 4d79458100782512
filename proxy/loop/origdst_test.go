package loop

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOriginalDst asks for the original destination in a network namespace of its own, in which a rule redirects.
func TestOriginalDst(t *testing.T) {
	if unix.Geteuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	for _, tt := range []struct {
		name, bind, dst string
	}{
		{"IPv4", "127.0.0.1", "127.0.0.9:7777"},
		{"IPv6", "::1", "[::1]:7777"},
		{"IPv4 at an IPv6 socket", "::ffff:127.0.0.1", "127.0.0.9:7777"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dst := netip.MustParseAddrPort(tt.dst)
			server, client, port := inNamespace(t, tt.bind, dst)
			l := start(t, Config{})
			type answer struct {
				dst, local netip.AddrPort
				err        error
			}
			got := make(chan answer, 1)
			on(t, l, func() {
				_, err := l.Listen(server, func(c *Conn) {
					a, err := c.OriginalDst()
					got <- answer{a, c.LocalAddr(), err}
					c.Close()
				})
				if err != nil {
					t.Error(err)
				}
			})
			a := await(t, "accept", got)
			if a.err != nil || a.dst != dst {
				t.Errorf("OriginalDst: %v, %v, want %v", a.dst, a.err, dst)
			}
			if a.local.Port() != port {
				t.Errorf("LocalAddr: %v, want port %d", a.local, port)
			}
			if n, err := unix.Read(client, make([]byte, 1)); n != 0 || err != nil {
				t.Errorf("client read %d, %v, want the end", n, err)
			}
			closeFD(t, client)
		})
	}
}

// inNamespace makes, in a network namespace that ends with its sockets, a listening socket at address bind and a client
// that has dialled dst and was redirected to it.
func inNamespace(t *testing.T, bind string, dst netip.AddrPort) (server, client int, port uint16) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread, which has left our namespace, ends with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := raiseLoopback(); err != nil {
				return err
			}
			a := netip.MustParseAddr(bind)
			var err error
			if server, err = bound(a); err != nil {
				return err
			}
			port = localAddr(server).Port()
			if err := redirect(dst, port); err != nil {
				return err
			}
			to, family, err := sockaddr(dst)
			if err != nil {
				return err
			}
			if client, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			return unix.Connect(client, to)
		}()
	}()
	if err := <-done; err != nil {
		t.Skip("no network namespace with redirection here:", err)
	}
	return server, client, port
}

// bound makes a listening socket; an IPv4-mapped address makes an IPv6 socket.
func bound(a netip.Addr) (int, error) {
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: a.As16()}
	family := unix.AF_INET6
	if a.Is4() {
		sa, family = &unix.SockaddrInet4{Addr: a.As4()}, unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return -1, err
	}
	return fd, unix.Listen(fd, 16)
}

func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// redirect sends what is dialled at dst's port to port: a table, a NAT chain and a rule of nf_tables, told to the kernel
// directly because the package that speaks to it for the product is not ours to know.
// Linux: include/uapi/linux/netfilter/nf_tables.h.
func redirect(dst netip.AddrPort, port uint16) error {
	family := byte(unix.NFPROTO_IPV4)
	if dst.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	const natPriority = 0xffffff9c // -100, before the route is chosen
	name := func(s string) []byte { return append([]byte(s), 0) }
	number := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	expression := func(kind string, data ...[]byte) []byte {
		return attr(unix.NFTA_LIST_ELEM, attr(unix.NFTA_EXPR_NAME, name(kind)), attr(unix.NFTA_EXPR_DATA, data...))
	}
	value := func(port uint16) []byte { return attr(unix.NFTA_DATA_VALUE, binary.BigEndian.AppendUint16(nil, port)) }

	batch := message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.NFNL_SUBSYS_NFTABLES)
	nft := func(kind uint16, attrs ...[]byte) {
		batch = append(batch, message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, family, 0, attrs...)...)
	}
	nft(unix.NFT_MSG_NEWTABLE, attr(unix.NFTA_TABLE_NAME, name("test")))
	nft(unix.NFT_MSG_NEWCHAIN,
		attr(unix.NFTA_CHAIN_TABLE, name("test")), attr(unix.NFTA_CHAIN_NAME, name("output")), attr(unix.NFTA_CHAIN_TYPE, name("nat")),
		attr(unix.NFTA_CHAIN_HOOK, attr(unix.NFTA_HOOK_HOOKNUM, number(unix.NF_INET_LOCAL_OUT)), attr(unix.NFTA_HOOK_PRIORITY, number(natPriority))))
	nft(unix.NFT_MSG_NEWRULE,
		attr(unix.NFTA_RULE_TABLE, name("test")), attr(unix.NFTA_RULE_CHAIN, name("output")),
		attr(unix.NFTA_RULE_EXPRESSIONS,
			expression("payload", attr(unix.NFTA_PAYLOAD_DREG, number(unix.NFT_REG_1)),
				attr(unix.NFTA_PAYLOAD_BASE, number(unix.NFT_PAYLOAD_TRANSPORT_HEADER)),
				attr(unix.NFTA_PAYLOAD_OFFSET, number(2)), attr(unix.NFTA_PAYLOAD_LEN, number(2))),
			expression("cmp", attr(unix.NFTA_CMP_SREG, number(unix.NFT_REG_1)), attr(unix.NFTA_CMP_OP, number(unix.NFT_CMP_EQ)),
				attr(unix.NFTA_CMP_DATA, value(dst.Port()))),
			expression("immediate", attr(unix.NFTA_IMMEDIATE_DREG, number(unix.NFT_REG_1)), attr(unix.NFTA_IMMEDIATE_DATA, value(port))),
			expression("redir", attr(unix.NFTA_REDIR_REG_PROTO_MIN, number(unix.NFT_REG_1)))))
	batch = append(batch, message(unix.NFNL_MSG_BATCH_END, 0, unix.NFNL_SUBSYS_NFTABLES)...)
	return netfilter(batch)
}

// attr is a netlink attribute that holds data, or other attributes.
func attr(kind uint16, data ...[]byte) []byte {
	p := make([]byte, 4)
	for _, d := range data {
		p = append(p, d...)
	}
	binary.NativeEndian.PutUint16(p, uint16(len(p)))
	binary.NativeEndian.PutUint16(p[2:], kind)
	return append(p, make([]byte, -len(p)&3)...)
}

// message is a netlink message to netfilter.
func message(kind uint16, family byte, resource uint16, attrs ...[]byte) []byte {
	p := make([]byte, unix.SizeofNlMsghdr, 1024)
	p = append(p, family, unix.NFNETLINK_V0)
	p = binary.BigEndian.AppendUint16(p, resource)
	for _, a := range attrs {
		p = append(p, a...)
	}
	binary.NativeEndian.PutUint32(p, uint32(len(p)))
	binary.NativeEndian.PutUint16(p[4:], kind)
	flags := uint16(unix.NLM_F_REQUEST)
	if len(attrs) > 0 {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_ACK
	}
	binary.NativeEndian.PutUint16(p[6:], flags)
	return p
}

// netfilter sends a batch and waits for the acknowledgement of its three messages.
func netfilter(batch []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	p := make([]byte, 8192)
	for acks := 0; acks < 3; {
		n, err := unix.Read(fd, p)
		if err != nil {
			return err
		}
		for m := p[:n]; len(m) >= unix.SizeofNlMsghdr+4; acks++ {
			if errno := -int32(binary.NativeEndian.Uint32(m[unix.SizeofNlMsghdr:])); errno != 0 {
				return syscall.Errno(errno)
			}
			m = m[(binary.NativeEndian.Uint32(m)+3)&^3:]
		}
	}
	return nil
}
