package load

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What is used of HTTP/2 (RFC 9113): the frame types, flags and settings.
const (
	frameData         = 0
	frameHeaders      = 1
	frameReset        = 3
	frameSettings     = 4
	framePing         = 6
	frameGoAway       = 7
	frameWindowUpdate = 8

	flagEndStream  = 1
	flagAck        = 1
	flagEndHeaders = 4
	flagPadded     = 8

	settingHeaderTable   = 1
	settingInitialWindow = 4

	frameHead     = 9
	frameSizeMax  = 16 << 10
	windowDefault = 65535
	// windowOurs is what the other side may send on a stream, and windowMore what it may send on the connection
	// beyond the default. Half a window is given back at once.
	windowOurs = 1 << 20
	windowMore = 16 << 20
	// tableNeeded is how much of the other side's header table the blocks here use.
	tableNeeded = 512
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// http2 is one end of a connection: frames, windows and streams, and nothing of what the fields say.
type http2 struct {
	conn    *conn
	ends    ends
	prefix  int // bytes of the client's preface that are still to come
	partial []byte
	settled bool // the other side's settings have come
	// tableless says that the other side keeps no table of header fields.
	tableless bool
	window    int64 // what we may send on the connection
	initial   int64 // and on a new stream
	received  int64 // bytes to give back on the connection
	streams   map[uint32]*stream2
	waiting   []*stream2 // for the connection's window
	spare     []*stream2
	message   []byte // what is sent, over and over
}

// ends is told what happens.
type ends interface {
	settled()
	// headers says that a block of fields has come, data that bytes of a body have; end: the last ones.
	headers(id uint32, end bool)
	data(s *stream2, n int, end bool)
	reset(id uint32, code uint32)
}

// stream2 is one stream.
type stream2 struct {
	id       uint32
	window   int64
	pending  int // bytes of messages to send
	offset   int // in the message
	last     bool
	waits    bool
	trailers []byte // a frame that follows what is pending
	received int64  // bytes to give back
	got      int    // bytes of the body
	headed   bool
	user     *call
}

func (h *http2) start(c *conn, client bool) {
	h.conn, h.window, h.initial, h.streams = c, windowDefault, windowDefault, map[uint32]*stream2{}
	if client {
		c.queue([]byte(preface))
	} else {
		h.prefix = len(preface)
	}
	settings := binary.BigEndian.AppendUint16(nil, settingInitialWindow)
	settings = binary.BigEndian.AppendUint32(settings, windowOurs)
	h.frame(frameSettings, 0, 0, settings)
	h.frame(frameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, windowMore))
}

func appendHead(b []byte, n int, kind, flags byte, id uint32) []byte {
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	return binary.BigEndian.AppendUint32(b, id)
}

func (h *http2) frame(kind, flags byte, id uint32, payload []byte) {
	h.conn.out = append(appendHead(h.conn.out, len(payload), kind, flags, id), payload...)
}

// open makes the state of a stream.
func (h *http2) open(id uint32) *stream2 {
	var s *stream2
	if n := len(h.spare); n > 0 {
		s = h.spare[n-1]
		h.spare = h.spare[:n-1]
	} else {
		s = &stream2{}
	}
	*s = stream2{id: id, window: h.initial}
	h.streams[id] = s
	return s
}

func (h *http2) forget(s *stream2) {
	delete(h.streams, s.id)
	if !s.waits {
		h.spare = append(h.spare, s)
	}
}

// read takes frames.
func (h *http2) read(p []byte) error {
	if h.prefix > 0 {
		n := min(h.prefix, len(p))
		h.prefix -= n
		p = p[n:]
	}
	if len(h.partial) > 0 {
		h.partial = append(h.partial, p...)
		p = h.partial
	}
	for len(p) >= frameHead {
		n := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
		if n > frameSizeMax {
			return fmt.Errorf("a frame of %d bytes", n)
		}
		if len(p) < frameHead+n {
			break
		}
		if err := h.handle(p[3], p[4], binary.BigEndian.Uint32(p[5:])&^(1<<31), p[frameHead:frameHead+n]); err != nil {
			return err
		}
		p = p[frameHead+n:]
	}
	h.partial = append(h.partial[:0], p...)
	return nil
}

var errPadding = errors.New("a padded frame, which nobody here sends")

func (h *http2) handle(kind, flags byte, id uint32, p []byte) error {
	if flags&flagPadded != 0 && kind <= frameHeaders {
		return errPadding
	}
	if len(p) < least(kind) {
		return fmt.Errorf("a frame of type %d with %d bytes", kind, len(p))
	}
	switch kind {
	case frameHeaders:
		h.ends.headers(id, flags&flagEndStream != 0)
	case frameData:
		h.taken(id, int64(len(p)))
		if s := h.streams[id]; s != nil {
			s.got += len(p)
			h.ends.data(s, len(p), flags&flagEndStream != 0)
		}
	case frameReset:
		h.ends.reset(id, binary.BigEndian.Uint32(p))
	case frameGoAway:
		return fmt.Errorf("GOAWAY with code %d: %q", binary.BigEndian.Uint32(p[4:]), p[8:])
	case framePing:
		if flags&flagAck == 0 {
			h.frame(framePing, flagAck, 0, p)
		}
	case frameSettings:
		if flags&flagAck == 0 {
			return h.settings(p)
		}
	case frameWindowUpdate:
		n := int64(binary.BigEndian.Uint32(p))
		if id == 0 {
			h.window += n
			h.retry()
		} else if s := h.streams[id]; s != nil {
			s.window += n
			h.send(s)
		}
	}
	return nil
}

// least is how many bytes a frame of a type must have.
func least(kind byte) int {
	switch kind {
	case frameReset, frameWindowUpdate:
		return 4
	case frameGoAway:
		return 8
	}
	return 0
}

func (h *http2) settings(p []byte) error {
	for ; len(p) >= 6; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch binary.BigEndian.Uint16(p) {
		case settingInitialWindow:
			for _, s := range h.streams {
				s.window += int64(v) - h.initial
			}
			h.initial = int64(v)
			for _, s := range h.streams {
				h.send(s)
			}
		case settingHeaderTable:
			h.tableless = v < tableNeeded
		}
	}
	h.frame(frameSettings, flagAck, 0, nil)
	if !h.settled {
		h.settled = true
		h.ends.settled()
	}
	return nil
}

// taken gives back what has come, half a window at a time.
func (h *http2) taken(id uint32, n int64) {
	if h.received += n; h.received > windowMore/2 {
		h.frame(frameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, uint32(h.received)))
		h.received = 0
	}
	s := h.streams[id]
	if s == nil {
		return
	}
	if s.received += n; s.received > windowOurs/2 {
		h.frame(frameWindowUpdate, 0, id, binary.BigEndian.AppendUint32(nil, uint32(s.received)))
		s.received = 0
	}
}

// send sends what is pending on a stream as far as the windows allow.
func (h *http2) send(s *stream2) {
	for s.pending > 0 {
		n := int(min(int64(min(s.pending, frameSizeMax, len(h.message)-s.offset)), s.window, h.window))
		if n <= 0 {
			if h.window <= 0 && !s.waits {
				s.waits = true
				h.waiting = append(h.waiting, s)
			}
			return
		}
		s.pending -= n
		s.window -= int64(n)
		h.window -= int64(n)
		flags := byte(0)
		if s.last && s.pending == 0 && s.trailers == nil {
			flags = flagEndStream
		}
		h.frame(frameData, flags, s.id, h.message[s.offset:s.offset+n])
		s.offset = (s.offset + n) % len(h.message)
	}
	if s.last && s.trailers != nil {
		h.frame(frameHeaders, flagEndHeaders|flagEndStream, s.id, s.trailers)
		h.forget(s)
	}
}

// retry goes on with the streams that waited for the connection's window.
func (h *http2) retry() {
	list := h.waiting
	h.waiting = nil
	for _, s := range list {
		s.waits = false
		if h.streams[s.id] == s {
			h.send(s)
		}
	}
}

// Message is a message of so many bytes with its prefix.
func Message(size int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(size)), Body(size)...)
}

// field appends a field in HPACK (RFC 7541, section 6.2.1): with indexing, the name in full.
func field(b []byte, name, value string) []byte {
	b = append(b, 0x40, byte(len(name)))
	b = append(b, name...)
	b = append(b, byte(len(value)))
	return append(b, value...)
}

// literal appends a field that leaves no trace in the table (section 6.2.2).
func literal(b []byte, name, value string) []byte {
	n := len(b)
	b = field(b, name, value)
	b[n] = 0
	return b
}

// indexed appends fields of the dynamic table: the n newest ones, the oldest of these first.
func indexed(b []byte, n int) []byte {
	for i := n; i > 0; i-- {
		b = append(b, 0x80|byte(61+i))
	}
	return b
}
