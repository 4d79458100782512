// Package http1 speaks HTTP/1.1 (RFC 9112) on connections that an event loop
// drives: ServerConn answers requests, ClientConn sends them.
//
// In: the bytes that arrive on a connection, and what the relay wants sent. Out:
// stream.Receiver calls, and bytes for the connection. A head is delivered free
// of what belongs to one connection only (RFC 9110 section 7.6.1), and framing is
// taken from the head's fields in one place, so that what one side of the proxy
// understood is what the other side says: a message that could be read in two
// ways is refused. The package must not know sockets, routes, pools or timers.
//
// The end of the response is the end of an exchange (of a tunnel: both ends).
// Until then OnAbort and OnDrain may be called, also after the end of the
// incoming message; from then on nothing is called, what is left of a request
// body is thrown away, and the Sender, which is the connection itself, must be
// dropped. A peer that shuts its sending side down before the exchange is over
// is taken to have gone: only tunnels are half-closed.
//
// Everything belongs to one loop. Nothing may be called concurrently.
package http1

import "github.com/lateen-mesh/lateen/proxy/stream"

// The limits that a Config's zero values stand for.
const (
	// HeadMaxBytes bounds a message's head, and its trailers, line ends included (Envoy: 60 KiB).
	HeadMaxBytes = 64 << 10
	// StartLineMaxBytes bounds a request line or a status line without its line end.
	StartLineMaxBytes = 60 << 10
	// FieldLineMaxBytes bounds one field line without its line end.
	FieldLineMaxBytes = 60 << 10
	// FieldsMax bounds the field lines of a head, or of trailers (Envoy: 100).
	FieldsMax = 100
	// DiscardMaxBytes bounds what is read and thrown away of a request body that its response did not wait for.
	DiscardMaxBytes = 256 << 10
)

// The limits that nobody has asked to change.
const (
	methodMaxBytes        = 64        // of a method's name
	emptyLinesMax         = 8         // before a request line
	connectionOptsMax     = 8         // fields that Connection names, those known to us not counted
	chunkLineMaxBytes     = 1 << 10   // a chunk's size and extensions, without the line end
	interimMax            = 32        // 1xx responses to one request
	holdMaxBytes          = 64 << 10  // tunnel bytes held back until the upstream agrees to the tunnel
	lingerMaxBytes        = 256 << 10 // thrown away after our last word, until the peer closes
	scratchHeadsMax       = 8         // heads kept for reuse
	scratchOutputMaxBytes = 64 << 10  // memory kept for the next head to be written
)

// Conn is what the codec needs of a connection; *loop.Conn has it.
//
// Write copies. Finish is Close for a peer that sends no more. Close, Finish and Abort lead to OnClose later, never from within the
// call. Bytes that OnData left unread are offered again after ResumeRead, also
// if nothing new has arrived, and before OnEOF.
type Conn interface {
	Write(p []byte)
	Full() bool
	Close()
	Finish()
	CloseWrite()
	Abort()
	PauseRead()
	ResumeRead()
}

// Config holds the limits of a Codec. The zero value stands for the defaults above.
type Config struct {
	// HeadMaxBytes bounds a head or trailers, in bytes; 0 means the constant HeadMaxBytes.
	// The loop must be able to keep as many bytes of a partial message.
	HeadMaxBytes int
	// StartLineMaxBytes bounds a request or status line, in bytes; 0 means the constant StartLineMaxBytes.
	StartLineMaxBytes int
	// FieldLineMaxBytes bounds a field line, in bytes; 0 means the constant FieldLineMaxBytes.
	FieldLineMaxBytes int
	// FieldsMax bounds the number of field lines; 0 means the constant FieldsMax.
	FieldsMax int
	// DiscardMaxBytes bounds what is thrown away of an unwanted request body, in bytes; 0 means the constant DiscardMaxBytes.
	DiscardMaxBytes int64
}

// Codec is what the connections of one loop share: the limits, and memory in
// which heads are parsed and written. None of that memory is in use between two
// callbacks, so that an idle connection owns none.
type Codec struct {
	cfg   Config
	heads []*stream.Head
	out   []byte
}

// New makes the codec of one loop.
func New(cfg Config) *Codec {
	if cfg.HeadMaxBytes == 0 {
		cfg.HeadMaxBytes = HeadMaxBytes
	}
	if cfg.StartLineMaxBytes == 0 {
		cfg.StartLineMaxBytes = StartLineMaxBytes
	}
	if cfg.FieldLineMaxBytes == 0 {
		cfg.FieldLineMaxBytes = FieldLineMaxBytes
	}
	if cfg.FieldsMax == 0 {
		cfg.FieldsMax = FieldsMax
	}
	if cfg.DiscardMaxBytes == 0 {
		cfg.DiscardMaxBytes = DiscardMaxBytes
	}
	return &Codec{cfg: cfg}
}

// takeHead lends an empty head; callbacks may nest, so there can be several.
func (k *Codec) takeHead() *stream.Head {
	n := len(k.heads)
	if n == 0 {
		return &stream.Head{ContentLength: -1}
	}
	h := k.heads[n-1]
	k.heads = k.heads[:n-1]
	h.Reset()
	return h
}

func (k *Codec) giveHead(h *stream.Head) {
	if len(k.heads) < scratchHeadsMax {
		k.heads = append(k.heads, h)
	}
}

// keepOutput keeps the memory of what has just been written for the next time.
func (k *Codec) keepOutput(out []byte) {
	if cap(out) <= scratchOutputMaxBytes {
		k.out = out[:0]
	}
}
