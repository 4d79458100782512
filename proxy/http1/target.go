package http1

import (
	"bytes"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// Classes of bytes.
const (
	tokenByte  = 1 << iota // tchar, RFC 9110 section 5.6.2
	targetByte             // visible ASCII without "#": what a request target may hold
	hostByte               // unreserved and sub-delims, RFC 3986 section 2
	hexByte                // HEXDIG
)

var classes = classTable()

func classTable() (t [256]uint8) {
	for c := byte('!'); c <= '~'; c++ {
		if c != '#' {
			t[c] |= targetByte
		}
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'f', 'A' <= c && c <= 'F':
			t[c] |= tokenByte | hostByte | hexByte
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			t[c] |= tokenByte | hostByte
		}
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] |= tokenByte
	}
	for _, c := range []byte("-._~!$&'()*+,;=") {
		t[c] |= hostByte
	}
	return t
}

// allOf reports whether p is not empty and each of its bytes is of the class.
func allOf(p []byte, class uint8) bool {
	for _, c := range p {
		if classes[c]&class == 0 {
			return false
		}
	}
	return len(p) > 0
}

// requestLine parses a request line without its line end into h (RFC 9112 section 3).
func (m *message) requestLine(p []byte, h *stream.Head) Fault {
	sp := bytes.IndexByte(p, ' ')
	if sp < 0 || !allOf(p[:sp], tokenByte) {
		return FaultRequestLine
	}
	method, rest := p[:sp], p[sp+1:]
	sp = bytes.IndexByte(rest, ' ')
	if sp < 0 {
		return FaultRequestLine
	}
	target, version := rest[:sp], rest[sp+1:]
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		h.HTTP10 = true
	default:
		if isVersion(version) {
			return FaultVersion
		}
		return FaultRequestLine
	}
	if len(method) > methodMaxBytes {
		return FaultMethodLong
	}
	h.SetMethod(method)
	m.head = string(method) == "HEAD"
	m.connect = string(method) == "CONNECT"
	if !allOf(target, targetByte) {
		return FaultTarget
	}
	return m.target(target, string(method) == "OPTIONS", h)
}

func isVersion(p []byte) bool {
	return len(p) == len("HTTP/x.y") && string(p[:5]) == "HTTP/" && isDigit(p[5]) && p[6] == '.' && isDigit(p[7])
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// target tells the four forms apart (RFC 9112 section 3.2).
func (m *message) target(p []byte, options bool, h *stream.Head) Fault {
	switch {
	case m.connect:
		if !validHost(p, true) {
			return FaultTarget
		}
		h.SetAuthority(p)
		m.ownAuthority = true
	case p[0] == '/':
		h.SetPath(p)
	case string(p) == "*":
		if !options {
			return FaultTarget
		}
		h.SetPath(p)
	case len(p) > 7 && stream.EqualFold(p[:7], "http://"):
		return m.absolute("http", p[7:], options, h)
	case len(p) > 8 && stream.EqualFold(p[:8], "https://"):
		return m.absolute("https", p[8:], options, h)
	default:
		return FaultTarget
	}
	return faultNone
}

// absolute takes what follows the scheme of an absolute-form target. Its authority replaces Host (section 3.2.2).
func (m *message) absolute(scheme string, p []byte, options bool, h *stream.Head) Fault {
	host, path := p, []byte(nil)
	if i := bytes.IndexAny(p, "/?"); i >= 0 {
		host, path = p[:i], p[i:]
	}
	if !validHost(host, false) {
		return FaultTarget
	}
	h.SetSchemeString(scheme)
	h.SetAuthority(host)
	m.ownAuthority = true
	switch {
	case len(path) == 0 && options:
		h.SetPathString("*")
	case len(path) == 0:
		h.SetPathString("/")
	case path[0] == '?':
		h.SetPathString("/" + string(path))
	default:
		h.SetPath(path)
	}
	return faultNone
}

// validHost reports whether p is a host that is not empty, without user
// information, with an optional port (RFC 3986 section 3.2); needPort asks for a port from 1 to 65535.
func validHost(p []byte, needPort bool) bool {
	host, port, colon := p, []byte(nil), false
	if len(p) > 0 && p[0] == '[' {
		end := bytes.IndexByte(p, ']')
		if end < 0 || !validIPv6(p[1:end]) {
			return false
		}
		if rest := p[end+1:]; len(rest) > 0 {
			if rest[0] != ':' {
				return false
			}
			port, colon = rest[1:], true
		}
	} else {
		if before, after, ok := bytes.Cut(p, []byte{':'}); ok {
			host, port, colon = before, after, true
		}
		if !validName(host) {
			return false
		}
	}
	n, ok := portNumber(port)
	return ok && (!needPort || colon && n > 0)
}

// portNumber is the value of *DIGIT, which may be empty.
func portNumber(p []byte) (n int, ok bool) {
	for _, c := range p {
		if !isDigit(c) {
			return 0, false
		}
		if n = n*10 + int(c-'0'); n > 65535 {
			return 0, false
		}
	}
	return n, true
}

// validName is reg-name (RFC 3986 section 3.2.2), not empty.
func validName(p []byte) bool {
	for i := 0; i < len(p); i++ {
		switch {
		case classes[p[i]]&hostByte != 0:
		case p[i] == '%' && i+2 < len(p) && allOf(p[i+1:i+3], hexByte):
			i += 2
		default:
			return false
		}
	}
	return len(p) > 0
}

// validIPv6 is IPv6address (RFC 3986 section 3.2.2): no zone, no IPvFuture.
func validIPv6(p []byte) bool {
	groups, gap := 0, false
	if bytes.HasPrefix(p, []byte("::")) {
		gap, p = true, p[2:]
	}
	for len(p) > 0 {
		n := 0
		for n < len(p) && classes[p[n]]&hexByte != 0 {
			n++
		}
		if n < len(p) && p[n] == '.' {
			return validIPv4(p) && (groups == 6 && !gap || groups < 6 && gap)
		}
		if n == 0 || n > 4 {
			return false
		}
		groups++
		if p = p[n:]; len(p) == 0 {
			break
		}
		if p[0] != ':' || len(p) == 1 {
			return false
		}
		if p = p[1:]; p[0] == ':' {
			if gap {
				return false
			}
			gap, p = true, p[1:]
		}
	}
	return groups == 8 && !gap || groups < 8 && gap
}

// validIPv4 is IPv4address: four numbers up to 255 without leading zeros.
func validIPv4(p []byte) bool {
	for part := range 4 {
		n := 0
		for n < len(p) && isDigit(p[n]) {
			n++
		}
		v, ok := portNumber(p[:n])
		if n == 0 || n > 3 || !ok || v > 255 || n > 1 && p[0] == '0' {
			return false
		}
		if p = p[n:]; part < 3 {
			if len(p) == 0 || p[0] != '.' {
				return false
			}
			p = p[1:]
		}
	}
	return len(p) == 0
}
