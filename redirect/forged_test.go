package redirect

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

// The flags of a segment that the tests forge (RFC 9293 section 3.1).
const (
	tcpFIN = 0x01
	tcpRST = 0x04
	tcpPSH = 0x08
	tcpACK = 0x10
)

// TestForgedSegments: who can send packets of its own making cannot prepare a connection that goes past the rules. The
// kernel's connection tracking takes an ACK that belongs to nothing for a part of an open connection and does not ask
// the rules again when a SYN follows: what they say of the ACK has to be what they say of a connection.
func TestForgedSegments(t *testing.T) {
	a, b := pair(t)
	a.apply(t, Config{ExcludeInboundPorts: []uint16{22}})
	a.serve(t, "inbound", ":15006")
	a.serve(t, "app", ":8080")
	a.serve(t, "app", ":22")
	rows := []struct {
		name    string
		flags   byte
		tracked bool
	}{
		{"nothing", 0, false},
		{"FIN", tcpFIN | tcpACK, false},
		{"SYN and ACK", tcpSYN | tcpACK, false},
		{"RST", tcpRST, false},
		{"SYN and FIN", tcpSYN | tcpFIN, false},
		{"ACK", tcpACK, true},
		{"PSH and ACK", tcpPSH | tcpACK, true},
	}
	free := uint16(5000) // a local port for each, as closed connections hold theirs for a while
	for _, target := range []struct{ from, to netip.Addr }{{b.v4, a.v4}, {b.v6, a.v6}} {
		for _, row := range rows {
			for _, port := range []uint16{8080, 22} {
				free++
				from, to := netip.AddrPortFrom(target.from, free), netip.AddrPortFrom(target.to, port)
				b.forge(t, from, to, row.flags)
				if row.tracked {
					a.awaitTracked(t, from, to)
				}
				want := "inbound"
				if port == 22 {
					want = "app"
				}
				want = fmt.Sprintf("%s %s from %s", want, to, from.Addr())
				if got := b.call(t, caller{from: from.String()}, to.String()); got != want {
					t.Errorf("after a forged segment with %s a call from %s is answered %q, want %q", row.name, from, got, want)
				}
			}
		}
	}
}

// TestForgedSegmentsAtStart has segments come in all the while that the first rules are set: none is tracked before the
// rules are in force.
func TestForgedSegmentsAtStart(t *testing.T) {
	a, b := pair(t)
	a.serve(t, "inbound", ":15006")
	a.serve(t, "app", ":8080")
	to := netip.AddrPortFrom(a.v4, 8080)
	var segments [][]byte
	for port := range uint16(64) {
		segments = append(segments, forged(netip.AddrPortFrom(b.v4, 5000+port), to, tcpACK))
	}
	send := b.forger(t, a.v4)
	stop, sent := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			for _, s := range segments {
				if err := send(s); err != nil {
					sent <- err
					return
				}
			}
			select {
			case <-stop:
				sent <- nil
				return
			default:
			}
		}
	}()
	a.apply(t, Config{})
	close(stop)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	for port := range uint16(64) {
		from := netip.AddrPortFrom(b.v4, 5000+port)
		want := fmt.Sprintf("inbound %s from %s", to, from.Addr())
		if got := b.call(t, caller{from: from.String()}, to.String()); got != want {
			t.Errorf("a call from %s is answered %q, want %q", from, got, want)
		}
	}
}

// forge sends a segment that belongs to no connection.
func (w workload) forge(t *testing.T, from, to netip.AddrPort, flags byte) {
	t.Helper()
	if err := w.forger(t, to.Addr())(forged(from, to, flags)); err != nil {
		t.Fatal(err)
	}
}

// forger opens a socket that sends segments to an address as they are given.
func (w workload) forger(t *testing.T, to netip.Addr) (send func([]byte) error) {
	t.Helper()
	var domain int
	var address unix.Sockaddr
	if to.Is4() {
		domain, address = unix.AF_INET, &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		domain, address = unix.AF_INET6, &unix.SockaddrInet6{Addr: to.As16()}
	}
	var fd int
	err := netns.Do(w.ns, func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func(segment []byte) error { return unix.Sendto(fd, segment, 0, address) }
}

// forged is a segment with an MD5 signature (RFC 2385) that the receiver has not asked for, and so drops without the RST
// that would end what connection tracking has made of it.
func forged(from, to netip.AddrPort, flags byte) []byte {
	const (
		headerBytes, signatureBytes = 20, 18
		bytes                       = headerBytes + signatureBytes + 2 // a multiple of four
		kindSignature, kindNothing  = 19, 1
	)
	s := make([]byte, bytes)
	binary.BigEndian.PutUint16(s[0:], from.Port())
	binary.BigEndian.PutUint16(s[2:], to.Port())
	binary.BigEndian.PutUint32(s[4:], 1) // the sequence number, and what is acknowledged
	binary.BigEndian.PutUint32(s[8:], 1)
	s[12], s[13] = bytes/4<<4, flags
	binary.BigEndian.PutUint16(s[14:], 1<<15) // the window
	s[headerBytes], s[headerBytes+1] = kindSignature, signatureBytes
	s[bytes-2], s[bytes-1] = kindNothing, kindNothing
	binary.BigEndian.PutUint16(s[16:], checksum(from.Addr(), to.Addr(), s))
	return s
}

// checksum is TCP's, over the addresses as well (RFC 9293 section 3.1). The segment's own is zero.
func checksum(from, to netip.Addr, segment []byte) uint16 {
	sum := uint32(unix.IPPROTO_TCP + len(segment))
	for pair := range slices.Chunk(slices.Concat(from.AsSlice(), to.AsSlice(), segment), 2) {
		sum += uint32(binary.BigEndian.Uint16(pair))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// awaitTracked waits until the namespace's connection tracking knows the connection.
func (w workload) awaitTracked(t *testing.T, from, to netip.AddrPort) {
	t.Helper()
	family := netlink.InetFamily(unix.AF_INET)
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	tick, deadline := time.NewTicker(time.Millisecond), time.After(patience)
	defer tick.Stop()
	for {
		var flows []*netlink.ConntrackFlow
		err := netns.Do(w.ns, func() (err error) {
			flows, err = netlink.ConntrackTableList(netlink.ConntrackTable, family)
			return err
		})
		if err != nil {
			t.Skip("needs to list tracked connections (CONFIG_NF_CT_NETLINK): ", err)
		}
		if slices.ContainsFunc(flows, func(f *netlink.ConntrackFlow) bool {
			return f.Forward.SrcPort == from.Port() && f.Forward.DstPort == to.Port()
		}) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("a segment from %s to %s is not tracked", from, to)
		}
	}
}
