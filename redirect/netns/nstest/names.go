package nstest

import (
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// nameBytes is the longest question that ServeName reads.
const nameBytes = 512

// ServeName is a name server that knows one name, which ends in a dot, and its IPv4 address. It returns when the socket
// is closed.
func ServeName(socket net.PacketConn, name string, address netip.Addr) {
	buffer := make([]byte, nameBytes)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buffer[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.Additionals = true, nil
		switch q := m.Questions[0]; {
		case !strings.EqualFold(q.Name.String(), name):
			m.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: address.As4()},
			}}
		}
		if out, err := m.Pack(); err == nil {
			_, _ = socket.WriteTo(out, from)
		}
	}
}
