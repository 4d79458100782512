// Package http2 is the proxy's HTTP/2 (RFC 9113): a server's and a client's
// side of a connection, as machines that an event loop drives.
//
// In: the bytes that arrive (OnData and its siblings, shaped as the loop's
// Handler) and the messages to send (stream.Sender). Out: the messages that
// arrive (stream.Receiver) and the bytes to send (Conn). It must not know
// sockets, TLS, routes, pools or timers: time comes from Config.Now, periodic
// work from the owner's calls of Tick and Ping. Nothing here starts a
// goroutine or blocks. Everything of one connection, its exchanges and the
// Memory that it shares with others belong to one loop; nothing may be called
// from two goroutines at once.
//
// gRPC needs nothing special: trailers, Trailers-Only responses (a head with
// end set) and streaming in both directions are plain parts of an exchange.
//
// As in package http1, the end of the response is the end of an exchange (of a
// tunnel: both ends). Until then OnAbort and OnDrain may be called, also after
// the end of the incoming message, since that is how a client cancels; from
// then on nothing is called, and what is left of a request is given up.
// Resume delivers what was kept before it returns. A client's SendHead may call
// OnAbort before it returns: an upgrade that the server does not take.
//
// An upgrade (RFC 8441) is shown in the neutral form of HTTP/1.1: a GET with
// Head.Upgrade and an "upgrade" field, answered by Status 101; on the wire it
// is CONNECT with :protocol, answered by 200. A plain CONNECT is a tunnel: its
// head has an authority and nothing else, and the end of the data is the
// half-close of TCP.
package http2

import (
	"fmt"
	"time"
)

// Conn is what is needed of the loop's connection, which has more.
type Conn interface {
	// Write appends p to the output without keeping p and without blocking.
	Write(p []byte)
	// Full reports that the output is above its high-water mark; OnDrain follows.
	Full() bool
	// Close flushes what it can in bounded time and closes. OnClose follows, never from within.
	Close()
	// Abort closes at once, with what is unsent lost.
	Abort()
}

// Preface is what a client sends first (RFC 9113 section 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// DetectPreface reports whether p begins with the client's preface, or might
// once more of it has arrived.
func DetectPreface(p []byte) (match, more bool) {
	n := min(len(p), len(Preface))
	if string(p[:n]) != Preface[:n] {
		return false, false
	}
	return n == len(Preface), n < len(Preface)
}

// The defaults of Config.
const (
	defaultStreamWindow  = 256 << 10
	defaultConnWindow    = 1 << 20
	defaultMaxStreams    = 1000
	defaultHeadBytesMax  = 64 << 10
	defaultHeadFieldsMax = 128
	defaultSendBuffer    = 64 << 10
	defaultStallTimeout  = 5 * time.Minute
)

// Config is the tuning of a connection. Its zero value is the default.
type Config struct {
	// Now tells the time; the loop's cached clock is meant. nil: time.Now.
	Now func() time.Time
	// Memory is shared by the connections of one loop. nil: the connection has its own.
	Memory *Memory
	// StreamWindow is how many bytes of one exchange a peer may send ahead of the Receiver. 0: 256 KiB.
	StreamWindow int
	// ConnWindow is the same for all exchanges of a connection together, at least 65535. 0: 1 MiB.
	// While Receivers are paused at most four times as much is kept in all.
	ConnWindow int
	// MaxStreams is how many exchanges may be open at once. A client also obeys its peer's limit. 0: 1000.
	MaxStreams int
	// HeadBytesMax bounds a head or trailers, counted as SETTINGS_MAX_HEADER_LIST_SIZE does. 0: 64 KiB.
	HeadBytesMax int
	// HeadFieldsMax bounds the number of fields of a head or trailers, pseudo-fields and cookie crumbs included. 0: 128.
	HeadFieldsMax int
	// FrameBytes is the longest payload of a frame that the peer may send, at least 16 KiB, which is the default. The loop
	// must be able to keep that and 9 bytes more.
	FrameBytes int
	// SendBuffer is how many bytes of one exchange may wait for the peer's window before Sender.Full. 0: 64 KiB.
	SendBuffer int
	// StallTimeout is how long an exchange that is no tunnel may wait for the peer's window without
	// progress before Tick resets it. 0: 5 minutes.
	StallTimeout time.Duration
	// ExtendedConnect makes a server offer upgrades (RFC 8441).
	ExtendedConnect bool
	// Scheme is sent by a client for a head that has none, which HTTP/1 heads have not. Empty: "http".
	Scheme string
	// HTTP1 says that both ends have agreed to carry messages of HTTP/1.1 as they are: names keep their case, cookies
	// their fields, and a request may come without an authority, as one of HTTP/1.0 does.
	HTTP1 bool
}

func (c Config) withDefaults() Config {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Memory == nil {
		c.Memory = new(Memory)
	}
	setDefault(&c.StreamWindow, defaultStreamWindow)
	setDefault(&c.ConnWindow, defaultConnWindow)
	setDefault(&c.MaxStreams, defaultMaxStreams)
	setDefault(&c.HeadBytesMax, defaultHeadBytesMax)
	setDefault(&c.HeadFieldsMax, defaultHeadFieldsMax)
	setDefault(&c.FrameBytes, maxFrameSize)
	setDefault(&c.SendBuffer, defaultSendBuffer)
	c.ConnWindow = max(c.ConnWindow, initialWindow)
	if c.StallTimeout == 0 {
		c.StallTimeout = defaultStallTimeout
	}
	if c.Scheme == "" {
		c.Scheme = "http"
	}
	return c
}

func setDefault(v *int, def int) {
	if *v == 0 {
		*v = def
	}
}

// ErrCode is an error code of RFC 9113 section 7.
type ErrCode uint32

// The error codes of RFC 9113 section 7.
const (
	ErrCodeNo                 ErrCode = 0x0
	ErrCodeProtocol           ErrCode = 0x1
	ErrCodeInternal           ErrCode = 0x2
	ErrCodeFlowControl        ErrCode = 0x3
	ErrCodeSettingsTimeout    ErrCode = 0x4
	ErrCodeStreamClosed       ErrCode = 0x5
	ErrCodeFrameSize          ErrCode = 0x6
	ErrCodeRefusedStream      ErrCode = 0x7
	ErrCodeCancel             ErrCode = 0x8
	ErrCodeCompression        ErrCode = 0x9
	ErrCodeConnect            ErrCode = 0xa
	ErrCodeEnhanceYourCalm    ErrCode = 0xb
	ErrCodeInadequateSecurity ErrCode = 0xc
	ErrCodeHTTP11Required     ErrCode = 0xd
)

var errCodeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String returns the code's name as RFC 9113 writes it.
func (e ErrCode) String() string {
	if int(e) < len(errCodeNames) {
		return errCodeNames[e]
	}
	return fmt.Sprintf("code %#x", uint32(e))
}

// Error is the error of a stream or a connection: what Receiver.OnAbort and
// Owner are told. It is a type because its code decides what is said to the
// other side of the proxy.
type Error struct {
	// Code is what was sent to the peer or came from it.
	Code ErrCode
	// Stream is the stream's identifier; 0 means the connection.
	Stream uint32
	// Remote reports that the peer said so; otherwise we did.
	Remote bool
	// Reason is ours, or the debug data of the peer's GOAWAY.
	Reason string
}

// Error says who gave up what, and why.
func (e *Error) Error() string {
	what, who := "connection", "sent"
	if e.Stream != 0 {
		what = fmt.Sprintf("stream %d", e.Stream)
	}
	if e.Remote {
		who = "received"
	}
	if e.Reason == "" {
		return fmt.Sprintf("http2 %s: %s %s", what, who, e.Code)
	}
	return fmt.Sprintf("http2 %s: %s %s: %s", what, who, e.Code, e.Reason)
}

// fault is an Error of the connection that the peer has caused.
func fault(code ErrCode, reason string) *Error { return &Error{Code: code, Reason: reason} }
