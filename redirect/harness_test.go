package redirect

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// soOriginalDestination is SO_ORIGINAL_DST of linux/netfilter_ipv4.h and IP6T_SO_ORIGINAL_DST of
// linux/netfilter_ipv6/ip6_tables.h.
const soOriginalDestination = 80

func TestMain(m *testing.M) { nstest.Main(m, nil) }

// workload is a namespace on the bridge, with one address of each family.
type workload struct {
	ns     *os.File
	v4, v6 netip.Addr
}

// pair makes two workloads on one bridge.
func pair(t *testing.T) (client, server workload) {
	t.Helper()
	nstest.Need(t)
	home := nstest.New(t)
	var bridge *netns.Bridge
	err := netns.Do(home, func() (err error) {
		bridge, err = netns.NewBridge(netns.BridgeConfig{Addresses: []netip.Prefix{
			netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("fd77::1/64"),
		}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bridge.Close(); err != nil {
			t.Error(err)
		}
	})
	join := func(v4, v6 string) workload {
		w := workload{nstest.New(t), netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
		if err := bridge.Attach(w.ns, w.v4, w.v6); err != nil {
			t.Fatal(err)
		}
		return w
	}
	return join("10.77.0.2", "fd77::2"), join("10.77.0.3", "fd77::3")
}

// apply puts the rules for a Config into a workload's namespace.
func (w workload) apply(t *testing.T, c Config) {
	t.Helper()
	rules, err := Rules(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Do(w.ns, func() error { return Apply(rules) }); err != nil {
		t.Fatal(err)
	}
}

// serve answers each TCP connection to an address inside the namespace with one line: the name, the address that
// the client asked for, and the client's address without its port. Then it echoes until the client hangs up.
func (w workload) serve(t *testing.T, name, address string) {
	t.Helper()
	var l net.Listener
	err := netns.Do(w.ns, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(patience))
				asked, err := originalDestination(conn.(*net.TCPConn))
				if err != nil {
					asked = plain(conn.LocalAddr())
				}
				if _, err := fmt.Fprintf(conn, "%s %s from %s\n", name, asked, plain(conn.RemoteAddr()).Addr()); err == nil {
					_, _ = io.Copy(conn, conn)
				}
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
}

// answer replies to each UDP packet at an address inside the namespace with the name and the packet.
func (w workload) answer(t *testing.T, name string, addresses ...string) {
	t.Helper()
	for _, address := range addresses {
		var c net.PacketConn
		err := netns.Do(w.ns, func() (err error) {
			c, err = net.ListenPacket("udp", address)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			packet := make([]byte, 512)
			for {
				n, from, err := c.ReadFrom(packet)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(append([]byte(name+" "), packet[:n]...), from)
			}
		}()
		t.Cleanup(func() { _ = c.Close(); <-done })
	}
}

// caller is how a connection is made.
type caller struct {
	mark uint32
	uid  int    // Of the socket's owner; 0 is the test's own.
	gid  int    // The same for the group.
	from string // Local address, or "".
}

// dial connects from inside the namespace.
func (w workload) dial(c caller, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := netns.Do(w.ns, func() error {
		local, err := c.local(network)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		dialer := net.Dialer{LocalAddr: local, Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			return errors.Join(raw.Control(func(fd uintptr) {
				if c.mark != 0 {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(c.mark))
				}
			}), err)
		}}
		// The kernel takes a socket's owner from the thread that makes it: Do has locked us to ours. The dialer
		// makes the socket on the caller's goroutine because the address is a literal of one family.
		if c.gid != 0 {
			defer setThreadID(unix.SYS_SETFSGID, c.gid)()
		}
		if c.uid != 0 {
			defer setThreadID(unix.SYS_SETFSUID, c.uid)()
		}
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patience))
	}
	return conn, err
}

func (c caller) local(network string) (net.Addr, error) {
	if c.from == "" {
		return nil, nil
	}
	if network == "udp" {
		return net.ResolveUDPAddr(network, c.from)
	}
	return net.ResolveTCPAddr(network, c.from)
}

// setThreadID changes the file system uid or gid of this thread and returns what changes it back.
func setThreadID(call uintptr, id int) (restore func()) {
	before, _, _ := unix.RawSyscall(call, uintptr(id), 0, 0)
	return func() { _, _, _ = unix.RawSyscall(call, before, 0, 0) }
}

// call connects and returns the line with which a serve answers, or the error.
func (w workload) call(t *testing.T, c caller, address string) string {
	t.Helper()
	conn, err := w.dial(c, "tcp", address)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = conn.Close() }()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// ask sends a packet from a connected socket, which takes answers from that address only, and returns the answer.
func (w workload) ask(t *testing.T, c caller, address, question string) string {
	t.Helper()
	conn, err := w.dial(c, "udp", address)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte(question)); err != nil {
		return err.Error()
	}
	packet := make([]byte, 512)
	n, err := conn.Read(packet)
	if err != nil {
		return err.Error()
	}
	return string(packet[:n])
}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

func plain(a net.Addr) netip.AddrPort {
	p := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// originalDestination asks the kernel where a redirected connection wanted to go.
func originalDestination(conn *net.TCPConn) (netip.AddrPort, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var asked netip.AddrPort
	var optErr error
	err = raw.Control(func(fd uintptr) {
		if plain(conn.LocalAddr()).Addr().Is4() {
			var a *unix.IPv6Mreq // As large as a sockaddr_in, and some.
			a, optErr = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, soOriginalDestination)
			if optErr == nil {
				asked = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.Multiaddr[4:8])),
					uint16(a.Multiaddr[2])<<8|uint16(a.Multiaddr[3]))
			}
			return
		}
		var a *unix.IPv6MTUInfo // Begins with a sockaddr_in6.
		a, optErr = unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, soOriginalDestination)
		if optErr == nil {
			asked = netip.AddrPortFrom(netip.AddrFrom16(a.Addr.Addr), a.Addr.Port<<8|a.Addr.Port>>8)
		}
	})
	return asked, errors.Join(err, optErr)
}
