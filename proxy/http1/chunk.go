package http1

import "github.com/lateen-mesh/lateen/proxy/stream"

// chunkState is where in a chunked body the next byte belongs (RFC 9112 section 7.1).
type chunkState uint8

const (
	chunkSize     chunkState = iota // in the line with the size and the extensions
	chunkData                       // in the data
	chunkDataEnd                    // in the CR LF after the data
	chunkTrailers                   // in the trailer section
)

// incoming reads a message's body from the bytes that follow its head.
type incoming struct {
	framing framing
	chunk   chunkState
	left    int64    // bytes to come of the body or of the chunk
	at      progress // in the trailer section
}

// piece is what incoming has found at the front of the input.
type piece struct {
	n        int    // bytes consumed; 0: more input is needed
	data     []byte // body bytes, part of the input
	end      bool   // the body ends here
	trailers *stream.Head
}

// step takes one piece from the front of p. A piece with trailers owes them to k.giveHead.
func (b *incoming) step(k *Codec, p []byte) (piece, Fault) {
	switch b.framing {
	case framingLength:
		n := int(min(b.left, int64(len(p))))
		b.left -= int64(n)
		return piece{n: n, data: p[:n], end: b.left == 0}, faultNone
	case framingChunked:
		return b.chunked(k, p)
	default: // to the end of the connection
		return piece{n: len(p), data: p}, faultNone
	}
}

func (b *incoming) chunked(k *Codec, p []byte) (piece, Fault) {
	switch b.chunk {
	case chunkSize:
		n, size, f := chunkLine(p)
		if f != faultNone || n == 0 {
			return piece{}, f
		}
		b.left, b.chunk = size, chunkData
		if size == 0 {
			b.chunk = chunkTrailers
		}
		return piece{n: n}, faultNone
	case chunkData:
		n := int(min(b.left, int64(len(p))))
		if b.left -= int64(n); b.left == 0 {
			b.chunk = chunkDataEnd
		}
		return piece{n: n, data: p[:n]}, faultNone
	case chunkDataEnd:
		if len(p) > 0 && p[0] != '\r' || len(p) > 1 && p[1] != '\n' {
			return piece{}, FaultChunk
		}
		if len(p) < 2 {
			return piece{}, faultNone
		}
		b.chunk = chunkSize
		return piece{n: 2}, faultNone
	default:
		return b.trailers(k, p)
	}
}

func (b *incoming) trailers(k *Codec, p []byte) (piece, Fault) {
	if len(p) >= 2 && p[0] == '\r' && p[1] == '\n' {
		return piece{n: 2, end: true}, faultNone
	}
	h := k.takeHead()
	n, f := k.trailers(p, &b.at, h)
	if n == 0 || f != faultNone || h.Len() == 0 {
		k.giveHead(h)
		return piece{n: n, end: n > 0}, f
	}
	return piece{n: n, end: true, trailers: h}, faultNone
}

// chunkLine parses a chunk's size, ignores its extensions, and returns the
// length of the line; 0 if it is incomplete. White space is allowed only before
// the semicolon of an extension (RFC 9112 section 7.1.1).
func chunkLine(p []byte) (n int, size int64, f Fault) {
	var at progress
	end, f := at.line(p, 0, chunkLineMaxBytes, FaultChunk)
	if f != faultNone || end < 0 {
		return 0, 0, f
	}
	i := 0
	for ; i < end && classes[p[i]]&hexByte != 0; i++ {
		if size > 1<<58 {
			return 0, 0, FaultLengthLarge
		}
		size = size<<4 | int64(hexValue(p[i]))
	}
	if i == 0 {
		return 0, 0, FaultChunk
	}
	if i < end {
		if ext := trim(p[i:end]); len(ext) == 0 || ext[0] != ';' {
			return 0, 0, FaultChunk
		}
	}
	return end + 2, size, faultNone
}

func hexValue(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

// appendChunkSize appends a chunk's size line.
func appendChunkSize(dst []byte, size int) []byte {
	var digits [16]byte
	i := len(digits)
	for {
		i--
		digits[i] = "0123456789abcdef"[size&15]
		if size >>= 4; size == 0 {
			break
		}
	}
	return append(append(dst, digits[i:]...), '\r', '\n')
}
