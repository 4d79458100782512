package http1

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strings"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// framing says how the end of a message is found (RFC 9112 section 6.3).
type framing uint8

const (
	framingNone    framing = iota // the message ends with its head
	framingLength                 // Content-Length
	framingChunked                // Transfer-Encoding: chunked
	framingClose                  // the end of the connection; responses only
	framingTunnel                 // no message any more: raw bytes, each direction to its own end
)

// message is what a head says about its message, for the connection alone.
type message struct {
	framing framing
	expect  bool // the client waits for 100 Continue
	head    bool // HEAD
	connect bool // CONNECT

	// What the checks at the end of the head need to know.
	ownAuthority bool // the authority came from the target
	host         bool // Host was there
	length       bool // Content-Length was there
	coding       bool // Transfer-Encoding was there
	te           bool // TE: trailers was delivered
	upgrade      bool // Upgrade was there
	upgradeNamed bool // Connection names upgrade
	h2c          bool // Upgrade offers h2c
	trailers     bool // these are trailers
	last         bool // Connection says close

	named      [connectionOptsMax][]byte // other fields that Connection names
	namedCount int
}

// progress remembers how far an incomplete head has been looked at, so that one
// that trickles in is parsed again once per line, not once per byte.
type progress struct {
	seen  uint32 // no line ends before it
	limit uint32 // a line end must come before it
}

// stalled reports that p holds no more complete lines than it did before.
func (a *progress) stalled(p []byte) bool {
	if a.seen == 0 {
		return false
	}
	i := control(p, int(a.seen))
	if i < len(p) || i > int(a.limit) {
		return false
	}
	a.seen = uint32(i)
	return true
}

// line finds the end of the line that begins at from: the index of its CR, or
// -1 if it is incomplete. A line of more than limit bytes has the fault long.
// What comes first decides, so the outcome does not depend on how the bytes were split.
func (a *progress) line(p []byte, from, limit int, long Fault) (end int, f Fault) {
	i := control(p, from)
	switch {
	case i-from > limit:
		return 0, long
	case i == len(p) || p[i] == '\r' && i+1 == len(p):
		*a = progress{uint32(i), uint32(from + limit)}
		return -1, faultNone
	case p[i] == '\r' && p[i+1] == '\n':
		return i, faultNone
	case p[i] == '\r' || p[i] == '\n':
		return 0, FaultLineEnd
	}
	return 0, FaultControl
}

// control is the index of the first byte at or after i that is a control
// character other than HTAB, or len(p). It looks at eight bytes at once.
func control(p []byte, i int) int {
	const low, high, del = 0x0101010101010101, 0x8080808080808080, 0x7f7f7f7f7f7f7f7f
	for i+8 <= len(p) {
		x := binary.LittleEndian.Uint64(p[i:])
		y := x ^ del
		// Borrows may flag bytes above a true hit, never below it.
		hit := ((x - 0x20*low) &^ x & high) | ((y - low) &^ y & high)
		if hit == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(hit) >> 3
		if p[i] != '\t' {
			return i
		}
		i++
	}
	for ; i < len(p); i++ {
		if c := p[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return i
		}
	}
	return i
}

// emptyLines is the number of bytes of the empty lines at the front of p, which
// a server ignores before a request line (RFC 9112 section 2.2).
func emptyLines(p []byte) (n int) {
	for len(p) >= n+2 && p[n] == '\r' && p[n+1] == '\n' {
		n += 2
	}
	return n
}

// request parses the request head at the front of p into h and m, which must be
// zero, and returns its length; 0 if it is incomplete: h and m are then undefined.
func (k *Codec) request(p []byte, at *progress, h *stream.Head, m *message) (n int, f Fault) {
	if at.stalled(p) {
		return 0, faultNone
	}
	h.Reset()
	end, f := at.line(p, 0, min(k.cfg.StartLineMaxBytes, k.cfg.HeadMaxBytes-2), FaultStartLineLong)
	if f != faultNone || end < 0 {
		return 0, f
	}
	if f = m.requestLine(p[:end], h); f != faultNone {
		return 0, f
	}
	if n, f = k.fields(p, end+2, at, h, m); f != faultNone || n == 0 {
		return 0, f
	}
	if f = m.endRequest(h); f != faultNone {
		return 0, f
	}
	return n, faultNone
}

// response parses the response head at the front of p like request does. m must
// be zero but for head and connect, which say what the request was.
func (k *Codec) response(p []byte, at *progress, h *stream.Head, m *message) (n int, f Fault) {
	if at.stalled(p) {
		return 0, faultNone
	}
	h.Reset()
	end, f := at.line(p, 0, min(k.cfg.StartLineMaxBytes, k.cfg.HeadMaxBytes-2), FaultHeadLong)
	if f != faultNone || end < 0 {
		return 0, f
	}
	if f = statusLine(p[:end], h); f != faultNone {
		return 0, f
	}
	if n, f = k.fields(p, end+2, at, h, m); f != faultNone || n == 0 {
		return 0, f
	}
	if f = m.endResponse(h); f != faultNone {
		return 0, f
	}
	return n, faultNone
}

// trailers parses a trailer section, its last empty line included.
func (k *Codec) trailers(p []byte, at *progress, h *stream.Head) (n int, f Fault) {
	if at.stalled(p) {
		return 0, faultNone
	}
	h.Reset()
	m := message{trailers: true}
	return k.fields(p, 0, at, h, &m)
}

// statusLine parses a status line; the space before an empty reason may be missing, as it is in practice.
func statusLine(p []byte, h *stream.Head) Fault {
	if len(p) < len("HTTP/1.1 200") || !isVersion(p[:8]) || p[8] != ' ' ||
		!isDigit(p[9]) || !isDigit(p[10]) || !isDigit(p[11]) || len(p) > 12 && p[12] != ' ' {
		return FaultStatusLine
	}
	if p[5] != '1' || p[7] > '1' {
		return FaultVersion
	}
	h.HTTP10 = p[7] == '0'
	h.Status = int(p[9]-'0')*100 + int(p[10]-'0')*10 + int(p[11]-'0')
	if h.Status < 100 {
		return FaultStatusLine
	}
	return faultNone
}

// fields parses field lines from p[from:] up to and including the empty line, and returns where that ends.
func (k *Codec) fields(p []byte, from int, at *progress, h *stream.Head, m *message) (n int, f Fault) {
	for count := 0; ; count++ {
		// Room must be left for this line's end; the empty line's own is the last.
		limit := min(k.cfg.FieldLineMaxBytes, k.cfg.HeadMaxBytes-2-from)
		end, f := at.line(p, from, limit, FaultHeadLong)
		switch {
		case f != faultNone || end < 0:
			return 0, f
		case end == from:
			*at = progress{}
			m.removeNamed(h)
			return end + 2, faultNone
		case count == k.cfg.FieldsMax:
			return 0, FaultFieldsMany
		}
		if f = m.field(p[from:end+2], h); f != faultNone {
			return 0, f
		}
		from = end + 2
	}
}

// field takes one field line, its end included (RFC 9112 section 5).
func (m *message) field(line []byte, h *stream.Head) Fault {
	p := line[:len(line)-2]
	i := 0
	for i < len(p) && classes[p[i]]&tokenByte != 0 {
		i++
	}
	if i == 0 || i == len(p) || p[i] != ':' {
		if p[0] == ' ' || p[0] == '\t' {
			return FaultFold
		}
		return FaultFieldName
	}
	name, value := p[:i], trim(p[i+1:])
	if m.trailers {
		if !forbiddenTrailer(name) {
			h.Add(name, value)
		}
		return faultNone
	}
	kind, f := m.special(name, value, h)
	switch {
	case kind == fieldOwn:
	case kind == fieldPlain && len(value) == len(p)-i-2 && p[i+1] == ' ': // just as we would write it
		h.AddLine(line, i)
	default:
		h.Add(name, value)
	}
	return f
}

// fieldKind says what becomes of a field.
type fieldKind uint8

const (
	fieldPlain fieldKind = iota // it is delivered
	fieldHop                    // it is delivered, but does not go on as it is: it means something to this connection
	fieldOwn                    // it is not delivered
)

// ownIf is fieldOwn if so, else fieldPlain.
func ownIf(so bool) fieldKind {
	if so {
		return fieldOwn
	}
	return fieldPlain
}

// trim removes optional white space at both ends (RFC 9110 section 5.6.3).
func trim(p []byte) []byte {
	for len(p) > 0 && (p[0] == ' ' || p[0] == '\t') {
		p = p[1:]
	}
	for len(p) > 0 && (p[len(p)-1] == ' ' || p[len(p)-1] == '\t') {
		p = p[:len(p)-1]
	}
	return p
}

// special looks after the fields that mean something to the connection.
func (m *message) special(name, value []byte, h *stream.Head) (fieldKind, Fault) {
	switch len(name) {
	case len("te"):
		if stream.EqualFold(name, "te") {
			if !m.te && hasElement(value, "trailers") {
				h.Add(name, []byte("trailers"))
				m.te = true
			}
			return fieldOwn, faultNone
		}
	case len("host"):
		if stream.EqualFold(name, "host") {
			if h.Status == 0 {
				return fieldOwn, m.hostField(value, h)
			}
			return fieldHop, faultNone
		}
	case len("expect"):
		if !h.HTTP10 && stream.EqualFold(name, "expect") && stream.EqualFold(value, "100-continue") {
			m.expect = true
		}
	case len("upgrade"):
		if stream.EqualFold(name, "upgrade") {
			m.upgrade = true
			m.h2c = m.h2c || hasElement(value, "h2c")
			return fieldHop, faultNone
		}
	case len("connection"):
		if stream.EqualFold(name, "connection") {
			return fieldOwn, m.connection(value, h)
		}
		return ownIf(stream.EqualFold(name, "keep-alive")), faultNone
	case len("content-length"):
		if stream.EqualFold(name, "content-length") {
			return fieldOwn, m.contentLength(value, h)
		}
		return ownIf(stream.EqualFold(name, "http2-settings")), faultNone
	case len("proxy-connection"):
		return ownIf(stream.EqualFold(name, "proxy-connection")), faultNone
	case len("transfer-encoding"):
		if stream.EqualFold(name, "transfer-encoding") {
			if m.coding {
				return fieldOwn, FaultCoding
			}
			m.coding = true
			return fieldOwn, transferEncoding(value)
		}
	}
	return fieldPlain, faultNone
}

func (m *message) hostField(value []byte, h *stream.Head) Fault {
	if m.host {
		return FaultHostTwice
	}
	m.host = true
	// It is empty if the client's URI has no authority.
	if len(value) > 0 && !validHost(value, false) {
		return FaultHost
	}
	if !m.ownAuthority {
		h.SetAuthority(value)
	}
	return faultNone
}

// contentLength takes 1*DIGIT and nothing else, once (RFC 9112 section 6.3).
func (m *message) contentLength(value []byte, h *stream.Head) Fault {
	if m.length {
		return FaultLengthTwice
	}
	m.length = true
	if len(value) == 0 {
		return FaultLength
	}
	for _, c := range value {
		if !isDigit(c) {
			return FaultLength
		}
	}
	if len(value) > 18 { // 10^18 - 1 fits in an int64
		return FaultLengthLarge
	}
	h.ContentLength = 0
	for _, c := range value {
		h.ContentLength = h.ContentLength*10 + int64(c-'0')
	}
	return faultNone
}

// transferEncoding accepts chunked alone. Codings before it would be valid, but are not implemented; anything else
// leaves the end of the message unknown (RFC 9112 sections 6.1 and 6.3).
func transferEncoding(value []byte) Fault {
	if stream.EqualFold(value, "chunked") {
		return faultNone
	}
	f := FaultCoding
	for rest := value; rest != nil; {
		var coding []byte
		if coding, rest = nextElement(rest); stream.EqualFold(coding, "chunked") {
			if rest != nil {
				return FaultCoding
			}
			f = FaultCodingUnknown
		} else if !allOf(coding, tokenByte) {
			return FaultCoding
		}
	}
	return f
}

// connection takes a list of connection options (RFC 9110 section 7.6.1).
func (m *message) connection(value []byte, h *stream.Head) Fault {
	for rest := value; rest != nil; {
		var option []byte
		option, rest = nextElement(rest)
		switch {
		case stream.EqualFold(option, "close"):
			h.Close, m.last = true, true
		case stream.EqualFold(option, "upgrade"):
			m.upgradeNamed = true
		case stream.EqualFold(option, "keep-alive"), stream.EqualFold(option, "te"), protected(option):
		case allOf(option, tokenByte):
			if m.namedCount == len(m.named) {
				return FaultConnection
			}
			m.named[m.namedCount] = option
			m.namedCount++
		}
	}
	return faultNone
}

// removeNamed removes the fields that Connection named.
func (m *message) removeNamed(h *stream.Head) {
	for _, name := range m.named[:m.namedCount] {
		h.Del(strings.ToLower(string(name)))
	}
}

// nextElement is the first element of a list, without white space, and what follows its comma; nil if nothing does.
func nextElement(list []byte) (element, rest []byte) {
	if before, after, ok := bytes.Cut(list, []byte{','}); ok {
		return trim(before), after
	}
	return trim(list), nil
}

// hasElement reports whether a list has the element, which must be lower case.
func hasElement(list []byte, element string) bool {
	for list != nil {
		var e []byte
		if e, list = nextElement(list); stream.EqualFold(e, element) {
			return true
		}
	}
	return false
}

// endRequest makes the checks that need the whole head, and decides the framing.
func (m *message) endRequest(h *stream.Head) Fault {
	switch {
	case m.coding && h.HTTP10:
		return FaultCodingOld
	case m.coding && m.length:
		return FaultLengthAndCoding
	case !m.host && !h.HTTP10:
		return FaultHostMissing
	case m.connect && (m.coding || h.ContentLength > 0):
		return FaultContent
	case m.coding:
		m.framing = framingChunked
	case h.ContentLength > 0:
		m.framing = framingLength
	}
	if h.HTTP10 { // a proxy does not keep a connection with an HTTP/1.0 client (RFC 9112 section 9.3)
		h.Close = true
	}
	// A server may ignore an offer to switch, and does where content comes first. h2c would take the connection
	// out of our sight, and RFC 9113 has done away with it.
	h.Upgrade = m.upgrade && m.upgradeNamed && !m.h2c && !h.HTTP10 && !m.connect && m.framing == framingNone
	if m.upgrade && !h.Upgrade {
		h.Del("upgrade")
	}
	return faultNone
}

// endResponse is endRequest for responses.
func (m *message) endResponse(h *stream.Head) Fault {
	if m.coding && h.HTTP10 {
		return FaultCodingOld
	}
	if m.coding && m.length {
		return FaultLengthAndCoding
	}
	h.Close = h.Close || h.HTTP10
	if h.Status == 101 {
		if !m.upgrade || !m.upgradeNamed || h.HTTP10 {
			return FaultUpgrade
		}
		h.Upgrade = true
	} else if m.upgrade {
		h.Del("upgrade")
	}
	switch {
	case h.Status < 200 || h.Status == 204:
		if m.coding || h.ContentLength > 0 {
			return FaultContent
		}
		h.ContentLength = -1
		if h.Upgrade {
			m.framing = framingTunnel
		}
	case m.connect && h.Status < 300:
		h.ContentLength = -1
		m.framing = framingTunnel
	case m.head || h.Status == 304 || h.ContentLength == 0:
	case m.coding:
		m.framing = framingChunked
	case m.length:
		m.framing = framingLength
	default:
		m.framing = framingClose
		h.Close = true
	}
	return faultNone
}

// protected reports whether a field that Connection names is meant for every recipient, so that naming it
// cannot remove it (RFC 9110 section 7.6.1): what routes, frames, authenticates or says whence a request came.
func protected(name []byte) bool {
	for _, s := range [...]string{
		"authorization", "cache-control", "content-encoding", "content-length", "content-type", "cookie", "expect",
		"forwarded", "host", "set-cookie", "trailer", "transfer-encoding", "via",
	} {
		if stream.EqualFold(name, s) {
			return true
		}
	}
	const forwarded = "x-forwarded-"
	return len(name) > len(forwarded) && stream.EqualFold(name[:len(forwarded)], forwarded)
}

// forbiddenTrailer reports whether a field must not come as a trailer: what frames, routes, modifies the request,
// authenticates, controls the response or says how to read the content (RFC 9110 section 6.5.1).
func forbiddenTrailer(name []byte) bool {
	for _, s := range [...]string{
		"age", "authorization", "cache-control", "connection", "content-encoding", "content-length", "content-range",
		"content-type", "cookie", "date", "expect", "expires", "host", "keep-alive", "location", "max-forwards",
		"pragma", "proxy-authenticate", "proxy-authorization", "proxy-connection", "range", "retry-after", "set-cookie",
		"te", "trailer", "transfer-encoding", "upgrade", "vary", "www-authenticate",
	} {
		if stream.EqualFold(name, s) {
			return true
		}
	}
	return false
}
