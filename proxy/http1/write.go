package http1

import (
	"strconv"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// outgoing writes a message's body.
type outgoing struct {
	framing framing
	left    int64 // bytes to come, with framingLength
}

// write writes body bytes. A body that is not as long as its head said is not
// written wrong: FaultSendLength, and the connection is of no more use.
func (b *outgoing) write(k *Codec, conn Conn, p []byte, end bool) Fault {
	switch b.framing {
	case framingNone: // the response to HEAD, 204, 304: a body is dropped
	case framingLength:
		b.left -= int64(len(p))
		if b.left < 0 || end && b.left > 0 {
			return FaultSendLength
		}
		if len(p) > 0 {
			conn.Write(p)
		}
	case framingChunked:
		if len(p) > 0 {
			conn.Write(appendChunkSize(k.out[:0], len(p)))
			conn.Write(p)
		}
		conn.Write(chunkEnd(len(p) > 0, end))
	default:
		if len(p) > 0 {
			conn.Write(p)
		}
	}
	return faultNone
}

var chunkEnds = []byte("\r\n0\r\n\r\n")

// chunkEnd is what follows a chunk's data, if there was any, and the last chunk, if it was the last.
func chunkEnd(data, end bool) []byte {
	switch {
	case data && end:
		return chunkEnds
	case data:
		return chunkEnds[:2]
	case end:
		return chunkEnds[2:]
	}
	return nil
}

// writeTrailers ends a chunked body with trailers; with any other framing there is no place for them.
func (b *outgoing) writeTrailers(k *Codec, conn Conn, h *stream.Head) Fault {
	if b.framing != framingChunked {
		return b.write(k, conn, nil, true)
	}
	out := append(k.out[:0], "0\r\n"...)
	for i := range h.Len() {
		name, value := h.At(i)
		if forbiddenTrailer(name) {
			continue
		}
		var f Fault
		if out, f = appendField(out, name, value); f != faultNone {
			return f
		}
	}
	out = append(out, "\r\n"...)
	conn.Write(out)
	k.keepOutput(out)
	return faultNone
}

// writeRequest writes a request head, and decides the framing of the body. upgrade: the head asks for a tunnel.
func (b *outgoing) writeRequest(k *Codec, conn Conn, h *stream.Head, end bool) Fault {
	method, path := h.Method(), h.Path()
	connect := string(method) == "CONNECT"
	switch {
	case connect:
		path = h.Authority()
	case len(path) == 0:
		path = []byte("/")
	}
	// Without an authority, which an HTTP/1.0 client need not name, Host is empty (RFC 9112 section 3.2).
	if !allOf(method, tokenByte) || !allOf(path, targetByte) || !connect && path[0] != '/' && !isAsterisk(method, path) ||
		!validHost(h.Authority(), connect) && (connect || len(h.Authority()) > 0) {
		return FaultSendStart
	}
	out := append(k.out[:0], method...)
	out = append(out, ' ')
	out = append(out, path...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, h.Authority()...)
	out = append(out, "\r\n"...)
	*b = outgoing{}
	length := h.ContentLength
	switch {
	case connect || h.Upgrade:
		b.framing, length = framingTunnel, -1
	case length > 0 && end:
		return FaultSendLength
	case !end && (length < 0 || expectsTrailers(h)):
		b.framing, length = framingChunked, -1
	case length > 0:
		b.framing, b.left = framingLength, length
	case length < 0 && anticipatesContent(method):
		length = 0
	}
	out, f := appendFields(out, h, h.Upgrade && !connect, false, true)
	if f != faultNone {
		return f
	}
	out = append(appendFraming(out, b.framing, length), "\r\n"...)
	conn.Write(out)
	k.keepOutput(out)
	return faultNone
}

// expectsTrailers reports whether trailers are to follow a body: they are announced, or the body is gRPC's, whose status
// is one. Such a body is sent in chunks also where its length is known, which over HTTP/2 goes together with trailers:
// only chunks have a place for them (RFC 9112 section 7.1.2). Trailers that nobody announced are dropped beside a length,
// as they may be (RFC 9110 section 6.5.1).
func expectsTrailers(h *stream.Head) bool {
	if _, announced := h.Get("trailer"); announced {
		return true
	}
	const grpc = "application/grpc" // and not gRPC-Web, which has its trailers in the body
	kind, _ := h.Get("content-type")
	return len(kind) >= len(grpc) && stream.EqualFold(kind[:len(grpc)], grpc) &&
		(len(kind) == len(grpc) || kind[len(grpc)] == '+' || kind[len(grpc)] == ';')
}

func isAsterisk(method, path []byte) bool { return string(method) == "OPTIONS" && string(path) == "*" }

// anticipatesContent reports whether the absence of content should be said in so many words (RFC 9110 section 8.6).
func anticipatesContent(method []byte) bool {
	switch string(method) {
	case "POST", "PUT", "PATCH":
		return true
	}
	return false
}

// reply says to what a response answers.
type reply struct {
	head   bool // HEAD
	http10 bool // the client speaks HTTP/1.0
	tunnel bool // the response makes the connection a tunnel
	close  bool // the connection closes after the response
}

// writeResponse writes a response head, and decides the framing of the body.
func (b *outgoing) writeResponse(k *Codec, conn Conn, h *stream.Head, to reply, end bool) Fault {
	if h.Status < 100 || h.Status > 999 {
		return FaultSendStart
	}
	out := append(k.out[:0], "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(h.Status), 10)
	out = append(out, ' ')
	out = append(out, reasonPhrase(h.Status)...)
	out = append(out, "\r\n"...)
	*b = outgoing{}
	length := h.ContentLength
	switch {
	case to.tunnel:
		b.framing, length = framingTunnel, -1
	case h.Status < 200 || h.Status == 204:
		length = -1
	case to.head || h.Status == 304: // Content-Length is that of the response to GET
	case end && length > 0:
		return FaultSendLength
	case end:
		length = 0
	case length >= 0 && (to.http10 || !expectsTrailers(h)):
		b.framing, b.left = framingLength, length
	case to.http10:
		b.framing = framingClose
	default:
		b.framing, length = framingChunked, -1
	}
	out, f := appendFields(out, h, h.Status == 101, to.close, false)
	if f != faultNone {
		return f
	}
	out = append(appendFraming(out, b.framing, length), "\r\n"...)
	conn.Write(out)
	k.keepOutput(out)
	return faultNone
}

// writeRefusal answers what is no request (RFC 9112 section 3): a short text, after which the connection closes.
func writeRefusal(k *Codec, conn Conn, owner ServerOwner, f Fault) {
	out := append(k.out[:0], "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(f.Status()), 10)
	out = append(out, ' ')
	out = append(out, reasonPhrase(f.Status())...)
	out = append(out, "\r\nContent-Type: text/plain\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(len(f.Error())+1), 10)
	out = append(out, "\r\nConnection: close\r\n"...)
	out = append(owner.AppendRefusal(out, f), "\r\n"...)
	out = append(out, f.Error()...)
	out = append(out, '\n')
	conn.Write(out)
	k.keepOutput(out)
}

func appendFraming(out []byte, b framing, length int64) []byte {
	if b == framingChunked {
		return append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	if length >= 0 {
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, length, 10)
		out = append(out, "\r\n"...)
	}
	return out
}

// appendFields appends the fields as they are but those that belong to the
// connection, which it writes itself.
func appendFields(out []byte, h *stream.Head, upgrade, closing, request bool) ([]byte, Fault) {
	te := false
	for i := 0; i < h.Len(); i++ {
		if lines, n := h.Lines(i); n > 0 {
			out = append(out, lines...)
			i += n - 1
			continue
		}
		name, value := h.At(i)
		switch hop(name) {
		case hopNever:
			continue
		case hopHost:
			if request {
				continue
			}
		case hopUpgrade:
			if !upgrade {
				continue
			}
		case hopTE:
			if te || !stream.EqualFold(value, "trailers") {
				continue
			}
			te = true
		default:
		}
		var f Fault
		if out, f = appendField(out, name, value); f != faultNone {
			return out, f
		}
	}
	if !te && !upgrade && !closing {
		return out, faultNone
	}
	out = append(out, "Connection: "...)
	for _, option := range [...]struct {
		on   bool
		text string
	}{{upgrade, "Upgrade, "}, {te, "TE, "}, {closing, "close, "}} {
		if option.on {
			out = append(out, option.text...)
		}
	}
	return append(out[:len(out)-len(", ")], "\r\n"...), faultNone
}

// appendField appends a field line. A name or value that would not be read back as what it is, is refused: nothing
// that a peer sent over HTTP/2 or that a rule made can break out of its line.
func appendField(out, name, value []byte) ([]byte, Fault) {
	if !allOf(name, tokenByte) || control(value, 0) != len(value) {
		return out, FaultSendField
	}
	out = append(out, name...)
	out = append(out, ": "...)
	out = append(out, value...)
	return append(out, "\r\n"...), faultNone
}

// hopKind is how a field that belongs to the connection is treated when a head is written.
type hopKind uint8

const (
	hopNot     hopKind = iota // it does not belong to the connection
	hopNever                  // never written from the fields
	hopHost                   // written from Authority in requests
	hopUpgrade                // written if the head asks for or grants an upgrade
	hopTE                     // only as TE: trailers
)

func hop(name []byte) hopKind {
	never := ""
	switch len(name) {
	case len("te"):
		if stream.EqualFold(name, "te") {
			return hopTE
		}
	case len("host"):
		if stream.EqualFold(name, "host") {
			return hopHost
		}
	case len("upgrade"):
		if stream.EqualFold(name, "upgrade") {
			return hopUpgrade
		}
	case len("connection"):
		if stream.EqualFold(name, "connection") {
			return hopNever
		}
		never = "keep-alive"
	case len("content-length"):
		if stream.EqualFold(name, "content-length") {
			return hopNever
		}
		never = "http2-settings"
	case len("proxy-connection"):
		never = "proxy-connection"
	case len("transfer-encoding"):
		never = "transfer-encoding"
	}
	if never != "" && stream.EqualFold(name, never) {
		return hopNever
	}
	return hopNot
}
