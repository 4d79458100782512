package proxy

import (
	"net/netip"
	"strconv"
	"strings"
)

// AppendValue appends what a command operator in a configured header value stands for.
func (x *exchange) AppendValue(dst []byte, operator string) ([]byte, bool) {
	name, arg, _ := strings.Cut(strings.TrimSuffix(operator, ")"), "(")
	s := x.d.s
	switch name {
	case "DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS":
		return s.src().AppendTo(dst), true
	case "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT":
		return s.src().Addr().AppendTo(dst), true
	case "DOWNSTREAM_LOCAL_ADDRESS":
		return s.dst.AppendTo(dst), true
	case "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":
		return s.dst.Addr().AppendTo(dst), true
	case "DOWNSTREAM_LOCAL_PORT":
		return strconv.AppendUint(dst, uint64(s.dst.Port()), 10), true
	case "DOWNSTREAM_PEER_URI_SAN":
		if s.meshed {
			dst = append(dst, s.peer.String()...)
		}
		return dst, true
	case "PROTOCOL":
		return append(dst, x.d.protocol()...), true
	case "REQUESTED_SERVER_NAME":
		return append(dst, s.sni...), true
	case "RESPONSE_CODE":
		return strconv.AppendInt(dst, int64(x.rec.status), 10), true
	case "RESPONSE_FLAGS":
		return x.rec.flags.Append(dst), true
	case "UPSTREAM_HOST", "UPSTREAM_REMOTE_ADDRESS":
		if x.rec.target.addr != (netip.AddrPort{}) {
			dst = x.rec.target.addr.AppendTo(dst)
		}
		return dst, true
	case "UPSTREAM_CLUSTER":
		if x.cluster != nil {
			dst = append(dst, x.cluster.Plan().Name...)
		}
		return dst, true
	case "HOSTNAME":
		return append(dst, x.w.p.cfg.Name...), true
	case "REQ":
		first, second, _ := strings.Cut(arg, "?")
		for _, n := range [...]string{first, second} {
			if v, ok := x.field(strings.ToLower(n)); ok {
				return append(dst, v...), true
			}
		}
		return dst, true // as Envoy in a header; it is the access log that says -
	}
	return dst, false
}

// field finds a field or pseudo-field of the request.
func (x *exchange) field(name string) ([]byte, bool) {
	switch name {
	case "":
		return nil, false
	case ":authority", "host":
		return x.req.Authority(), true
	case ":method":
		return x.req.Method(), true
	case ":path":
		return x.req.Path(), true
	}
	return x.req.Get(name)
}
