package http2

import (
	"cmp"
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

type headKind uint8

const (
	kindRequest headKind = iota
	kindResponse
	kindTrailers
	// kindLate is a block for a stream that is closed: only whether it would open one is asked.
	kindLate
)

// fieldOverhead is what each field counts beside its bytes (RFC 9113 section 6.5.2).
const fieldOverhead = 32

// headReader builds a stream.Head from decoded fields and judges them (RFC 9113 sections 8.2 and 8.3).
type headReader struct {
	h          *stream.Head
	kind       headKind
	upgrades   bool // extended CONNECT is allowed
	http1      bool // the message is one of HTTP/1.1
	bytesLeft  int
	fieldsLeft int

	// fault is why the message is malformed; empty if it is not.
	fault string
	// tooLarge reports that a limit on heads was passed.
	tooLarge bool
	// opens reports that a pseudo-field came first.
	opens bool

	regular                                   bool // a regular field was seen
	method, scheme, authority, path, protocol text
	status, host, length                      text
	cookie, lower                             []byte
	plain                                     plainText // of the strings that came in Huffman's code
}

// plainKeptMax is the most memory for plain that is kept for the next block, in bytes.
const plainKeptMax = 16 << 10

// text is a value that must not come twice.
type text struct {
	s   string
	set bool
}

// begin makes r ready for a block.
func (r *headReader) begin(kind headKind, h *stream.Head, cfg *Config) {
	if cap(r.plain) > plainKeptMax {
		r.plain = nil
	}
	*r = headReader{
		plain: r.plain[:0],
		h:     h, kind: kind, upgrades: cfg.ExtendedConnect, http1: cfg.HTTP1,
		bytesLeft: cfg.HeadBytesMax, fieldsLeft: cfg.HeadFieldsMax, cookie: r.cookie[:0], lower: r.lower[:0],
	}
}

// field takes one field over and reports whether more are wanted.
func (r *headReader) field(name, value string) bool {
	pseudo := strings.HasPrefix(name, ":")
	if r.kind == kindLate {
		r.opens = pseudo
		return false
	}
	r.bytesLeft -= len(name) + len(value) + fieldOverhead
	r.fieldsLeft--
	if r.bytesLeft < 0 || r.fieldsLeft < 0 {
		r.tooLarge = true
		return false
	}
	switch {
	case !validValue(value):
		r.fault = "a field value has a control character, or white space at its ends"
	case pseudo:
		r.fault = r.pseudoField(name, value)
	default:
		r.regular = true
		r.fault = r.regularField(name, value)
	}
	return r.fault == ""
}

func (r *headReader) pseudoField(name, value string) string {
	var t *text
	switch {
	case r.regular:
		return "a pseudo-field follows a regular one"
	case r.kind == kindTrailers:
		return "a pseudo-field in trailers"
	case r.kind == kindResponse:
		if name == ":status" {
			t = &r.status
		}
	default:
		switch name {
		case ":method":
			t = &r.method
		case ":scheme":
			t = &r.scheme
		case ":authority":
			t = &r.authority
		case ":path":
			t = &r.path
		case ":protocol":
			t = &r.protocol
		}
	}
	if t == nil {
		return "an unknown pseudo-field"
	}
	return t.once(value, "a pseudo-field twice")
}

func (t *text) once(value, complaint string) string {
	if t.set {
		return complaint
	}
	*t = text{value, true}
	return ""
}

func (r *headReader) regularField(name, value string) string {
	key := name
	if r.http1 {
		key = r.lowerCase(name)
	}
	switch key {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return "a connection-specific field"
	case "te":
		if !strings.EqualFold(value, "trailers") {
			return "a TE field other than trailers"
		}
	case "content-length":
		if r.kind == kindTrailers {
			return "a Content-Length field in trailers"
		}
		if complaint := r.length.once(value, "two Content-Length fields"); complaint != "" {
			return complaint
		}
		n, ok := parseLength(value)
		if !ok {
			return "a Content-Length that is no number"
		}
		r.h.ContentLength = n
	case "host":
		if r.kind == kindRequest {
			return r.host.once(value, "two Host fields")
		}
	case "cookie":
		if r.kind == kindRequest && !r.http1 {
			if len(r.cookie) > 0 {
				r.cookie = append(r.cookie, "; "...)
			}
			r.cookie = append(r.cookie, value...)
			return ""
		}
	default:
		if !nameChars.all(key) || key == "" {
			return "a field name that is no lower-case token"
		}
	}
	r.h.AddString(name, value)
	return ""
}

// lowerCase returns a name in lower case; it is valid until the next call.
func (r *headReader) lowerCase(name string) string {
	r.lower = append(r.lower[:0], name...)
	for i, c := range r.lower {
		if 'A' <= c && c <= 'Z' {
			r.lower[i] = c | 0x20
		}
	}
	return view(r.lower)
}

// finish judges the whole and fills in what the pseudo-fields said.
func (r *headReader) finish() {
	if r.fault != "" || r.tooLarge {
		return
	}
	switch r.kind {
	case kindRequest:
		r.fault = r.request()
	case kindResponse:
		r.fault = r.response()
	default:
	}
}

func (r *headReader) response() string {
	s := r.status.s
	if len(s) != 3 || s[0] < '1' || !digits.all(s) {
		return "a response without a valid :status"
	}
	r.h.Status = int(s[0]-'0')*100 + int(s[1]-'0')*10 + int(s[2]-'0')
	return ""
}

func (r *headReader) request() string {
	if r.host.set {
		if r.authority.set && !strings.EqualFold(r.authority.s, r.host.s) {
			return "Host differs from :authority"
		}
		r.authority = r.host
	}
	switch {
	case !validToken(r.method.s):
		return "a request without a valid :method"
	case !authorityChars.all(r.authority.s):
		return "an authority that is no host and port"
	}
	if r.method.s == "CONNECT" && !r.protocol.set {
		return r.tunnel()
	}
	if complaint := r.target(); complaint != "" {
		return complaint
	}
	if r.protocol.set {
		if !r.upgrades || r.method.s != "CONNECT" || !validToken(r.protocol.s) {
			return "a :protocol that was not offered, or without CONNECT"
		}
		r.method.s = "GET"
		r.h.Upgrade = true
		dropLength(r.h)
		r.h.AddString("upgrade", r.protocol.s)
	}
	r.h.SetMethodString(r.method.s)
	r.h.SetSchemeString(r.scheme.s)
	r.h.SetAuthorityString(r.authority.s)
	r.h.SetPathString(r.path.s)
	if len(r.cookie) > 0 {
		r.h.Set("cookie", r.cookie)
	}
	return ""
}

// tunnel is a request whose method is CONNECT (RFC 9113 section 8.5).
func (r *headReader) tunnel() string {
	if r.scheme.set || r.path.set || r.authority.s == "" {
		return "a CONNECT request with :scheme or :path, or without an authority"
	}
	dropLength(r.h)
	r.h.SetMethodString("CONNECT")
	r.h.SetAuthorityString(r.authority.s)
	return ""
}

// dropLength makes h the head of a tunnel, whose data has no declared length (RFC 9110 section 9.3.6).
func dropLength(h *stream.Head) {
	if h.ContentLength >= 0 {
		h.ContentLength = -1
		h.Del("content-length")
	}
}

// target judges :scheme, :path and the authority of every other request (RFC 9113 section 8.3.1).
func (r *headReader) target() string {
	path := r.path.s
	switch {
	case r.scheme.s == "" || !schemeChars.all(r.scheme.s):
		return "a request without a valid :scheme"
	case path == "" || !pathChars.all(path):
		return "a request without a valid :path"
	case path[0] != '/' && (path != "*" || r.method.s != "OPTIONS"):
		return "a :path that does not begin with a slash"
	case r.authority.s == "" && !r.http1 && (r.scheme.s == "http" || r.scheme.s == "https"):
		return "a request without an authority"
	}
	return ""
}

// parseLength reads a Content-Length, digits only (RFC 9110 section 8.6).
func parseLength(s string) (int64, bool) {
	if s == "" || !digits.all(s) {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// charset is a set of bytes.
type charset [256]bool

func newCharset(sets ...string) *charset {
	var c charset
	for _, s := range sets {
		for i := range len(s) {
			c[s[i]] = true
		}
	}
	return &c
}

func (c *charset) all(s string) bool {
	for i := range len(s) {
		if !c[s[i]] {
			return false
		}
	}
	return true
}

const (
	lowers = "abcdefghijklmnopqrstuvwxyz"
	uppers = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	tokens = "!#$%&'*+-.^_`|~0123456789"
)

// What the parts of a message may consist of: RFC 9110 section 5.6.2, RFC 3986 sections 3.1 to 3.4.
// A path may have any byte that is no control character, space or fragment's mark, as clients are lenient there.
var (
	digits         = newCharset("0123456789")
	nameChars      = newCharset(tokens, lowers)
	tokenChars     = newCharset(tokens, lowers, uppers)
	schemeChars    = newCharset(lowers, "0123456789+-.")
	authorityChars = newCharset(lowers, uppers, "0123456789-._~!$&'()*+,;=:[]%")
	pathChars      = newCharset(between(0x21, 0x22), between(0x24, 0x7e), between(0x80, 0xff))
)

// between returns the bytes from lo to hi.
func between(lo, hi int) string {
	var b []byte
	for c := lo; c <= hi; c++ {
		b = append(b, byte(c))
	}
	return string(b)
}

func validToken(s string) bool { return s != "" && tokenChars.all(s) }

// validValue reports whether s may be a field's value: no control characters
// but tabs inside, no white space at the ends (RFC 9113 section 8.2.1).
func validValue(s string) bool {
	if s == "" {
		return true
	}
	if a, z := s[0], s[len(s)-1]; a == ' ' || a == '\t' || z == ' ' || z == '\t' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// request appends a request's head; scheme stands in for one that the head has not.
func (e *encoder) request(h *stream.Head, scheme string) {
	tunnel := h.Upgrade || string(h.Method()) == "CONNECT"
	if h.Upgrade {
		e.field(":method", "CONNECT")
		protocol, _ := h.Get("upgrade")
		e.field(":protocol", view(protocol))
	} else {
		e.field(":method", view(h.Method()))
	}
	if h.Upgrade || !tunnel {
		e.field(":scheme", cmp.Or(view(h.Scheme()), scheme))
		e.field(":path", cmp.Or(view(h.Path()), "/"))
	}
	if len(h.Authority()) > 0 {
		e.field(":authority", view(h.Authority()))
	}
	e.fields(h, tunnel)
}

// response appends a response's head; upgrade: 101 becomes the 200 of RFC 8441.
func (e *encoder) response(h *stream.Head, upgrade bool) {
	status := h.Status
	accepted := upgrade && status == 101
	if accepted {
		status = 200
	}
	e.lower = strconv.AppendInt(e.lower[:0], int64(status), 10)
	e.field(":status", view(e.lower))
	e.fields(h, accepted || status < 200)
}

// fields appends the regular fields, names in lower case. bare: the message has no length.
func (e *encoder) fields(h *stream.Head, bare bool) {
	sized := false
	for i := range h.Len() {
		name, value := h.At(i)
		if !e.keepCase {
			name = e.lowerName(name)
		}
		if e.foreseen(view(name), view(value)) { // and so it may be sent
			continue
		}
		known := nameTable.at(view(name))
		if e.keepCase && hasUpper(name) {
			known = nameTable.at(view(e.lowerName(name))).inCase()
		}
		switch known.use {
		case useHop:
			continue
		case useTE:
			if !stream.EqualFold(value, "trailers") {
				continue
			}
		case useLength:
			if bare {
				continue
			}
			sized = true
		default:
		}
		e.known(known, view(name), view(value))
	}
	if !bare && !sized && h.ContentLength >= 0 {
		e.lower = strconv.AppendInt(e.lower[:0], h.ContentLength, 10)
		e.field("content-length", view(e.lower))
	}
}

// lowerName returns name in lower case, itself if it is so already.
func (e *encoder) lowerName(name []byte) []byte {
	if !hasUpper(name) {
		return name
	}
	e.lower = append(e.lower[:0], name...)
	for i, c := range e.lower {
		if 'A' <= c && c <= 'Z' {
			e.lower[i] = c | 0x20
		}
	}
	return e.lower
}

// upperBits are those that letters have, in each of 8 bytes; those of lower case have the next lower one, too.
const upperBits = 0x4040404040404040

// hasUpper reports that a letter of p may be in upper case; false is certain.
func hasUpper(p []byte) bool {
	if len(p) < 8 {
		for _, c := range p {
			if 'A' <= c && c <= 'Z' {
				return true
			}
		}
		return false
	}
	upper := upperOf(p[len(p)-8:])
	for ; len(p) > 8; p = p[8:] {
		upper |= upperOf(p)
	}
	return upper != 0
}

// upperOf sets bits for those of the first 8 bytes of p that are in 0x40 to 0x5f, or beyond ASCII.
func upperOf(p []byte) uint64 {
	w := binary.LittleEndian.Uint64(p)
	return w & upperBits &^ (w << 1)
}
