package proxy

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// proxySignature begins a PROXY protocol header of version 2 (HAProxy's specification, section 2.2).
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// The version and command, and the families, of such a header.
const (
	proxyLocal = 0x20 // nothing is known of the client
	proxyProxy = 0x21
	proxyTCP4  = 0x11
	proxyTCP6  = 0x21
)

// appendProxyHeader appends the PROXY protocol header that tells a server who its client is and where that wanted to
// go. Addresses of two families are both told as IPv6.
func appendProxyHeader(out []byte, version int, client, server netip.AddrPort) []byte {
	from, to := client.Addr().Unmap(), server.Addr().Unmap()
	known := from.IsValid() && to.IsValid()
	four := from.Is4() && to.Is4()
	if version == 1 {
		switch {
		case !known:
			return append(out, "PROXY UNKNOWN\r\n"...)
		case four:
			out = append(out, "PROXY TCP4 "...)
		default:
			out = append(out, "PROXY TCP6 "...)
			from, to = netip.AddrFrom16(from.As16()), netip.AddrFrom16(to.As16())
		}
		out = append(from.WithZone("").AppendTo(out), ' ')
		out = append(to.WithZone("").AppendTo(out), ' ')
		out = append(strconv.AppendUint(out, uint64(client.Port()), 10), ' ')
		return append(strconv.AppendUint(out, uint64(server.Port()), 10), "\r\n"...)
	}
	out = append(out, proxySignature...)
	switch {
	case !known:
		return append(out, proxyLocal, 0, 0, 0)
	case four:
		out = append(out, proxyProxy, proxyTCP4, 0, 12)
		out = append(append(out, from.AsSlice()...), to.AsSlice()...)
	default:
		out = append(out, proxyProxy, proxyTCP6, 0, 36)
		a, b := from.As16(), to.As16()
		out = append(append(out, a[:]...), b[:]...)
	}
	out = binary.BigEndian.AppendUint16(out, client.Port())
	return binary.BigEndian.AppendUint16(out, server.Port())
}
