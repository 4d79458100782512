package loop

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below never block, so they go to the kernel without telling the
// scheduler (RawSyscall), which is a large part of the price of a short call.

// recv reads from the socket fd. n is 0 with errno 0 at the end of the stream. Of the calls that read it is the cheapest:
// read goes through the file system's layer first.
func recv(fd int, p []byte) (n int, errno syscall.Errno) {
	for {
		r, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(r), 0
	}
}

// send writes p to fd without raising SIGPIPE. flags are more of MSG_.
func send(fd int, p []byte, flags int) (n int, errno syscall.Errno) {
	for {
		r, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			unix.MSG_NOSIGNAL|uintptr(flags), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(r), 0
	}
}

// sendmsg writes the ranges of m to fd without raising SIGPIPE. flags are more of MSG_.
func sendmsg(fd int, m *unix.Msghdr, flags int) (n int, errno syscall.Errno) {
	for {
		r, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(m)), unix.MSG_NOSIGNAL|uintptr(flags))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(r), 0
	}
}

// accept takes a connection from the listening socket fd, non-blocking, with its peer's address in from.
func accept(fd int, from *unix.RawSockaddrAny) (nfd int, errno syscall.Errno) {
	size := uint32(unix.SizeofSockaddrAny)
	r, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(from)),
		uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(r), 0
}

// shutdown has the kernel send FIN. It fails if the connection is gone.
func shutdown(fd int) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

// closeSocket gives the descriptor of a connection back. It does not block, because no time to linger is set.
func closeSocket(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// pendingError takes the error that the kernel holds for fd; nil if none.
func pendingError(fd int) error {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if v != 0 {
		return syscall.Errno(v)
	}
	return nil
}

// localAddr asks the kernel for fd's own address; invalid for sockets that are not TCP over IP.
func localAddr(fd int) netip.AddrPort {
	var from unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return addrPort(&from)
}

// originalDst asks the kernel's connection tracking what the peer of fd dialled.
// Linux: include/uapi/linux/netfilter_ipv4.h and netfilter_ipv6/ip6_tables.h.
func originalDst(fd int, v4 bool) (netip.AddrPort, error) {
	level, option := unix.SOL_IPV6, unix.SO_ORIGINAL_DST // IP6T_SO_ORIGINAL_DST has the same number
	if v4 {
		level = unix.SOL_IP
	}
	var from unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrInet6)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return netip.AddrPort{}, errno
	}
	return addrPort(&from), nil
}

// addrPort reads a kernel address; IPv4-mapped addresses come out as IPv4. It is invalid if the family is not IP.
func addrPort(a *unix.RawSockaddrAny) netip.AddrPort {
	switch a.Addr.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), hostOrder(v4.Port))
	case unix.AF_INET6:
		v6 := (*unix.RawSockaddrInet6)(unsafe.Pointer(a))
		ip := netip.AddrFrom16(v6.Addr).Unmap()
		if v6.Scope_id != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(v6.Scope_id), 10))
		}
		return netip.AddrPortFrom(ip, hostOrder(v6.Port))
	default:
		return netip.AddrPort{}
	}
}

// hostOrder turns a port as the kernel stores it into a number.
func hostOrder(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

// sockaddr is the reverse of addrPort. A zone may be an interface's number or its name.
func sockaddr(a netip.AddrPort) (unix.Sockaddr, int, error) {
	ip := a.Addr().Unmap()
	switch {
	case ip.Is4():
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}, unix.AF_INET, nil
	case ip.Is6():
		zone, err := zoneID(ip.Zone())
		if err != nil {
			return nil, 0, err
		}
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: ip.As16(), ZoneId: zone}, unix.AF_INET6, nil
	default:
		return nil, 0, fmt.Errorf("address %q is not an IP address with a port", a)
	}
}

func zoneID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("look up zone %q: %w", zone, err)
	}
	return uint32(i.Index), nil
}
