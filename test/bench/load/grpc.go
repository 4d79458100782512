package load

import (
	"errors"
	"fmt"
)

const (
	// perStream is how many messages a stream of the kind Stream carries: more than a default window of bytes.
	perStream = 100
	// requestSize is that of the message of a GRPC call.
	requestSize = 64
)

var errTable = errors.New("the proxy keeps no table of header fields, which the requests here need")

// http2Client keeps a number of calls under way on one connection.
type http2Client struct {
	http2
	run    *run
	nextID uint32
	calls  []*call
	first  bool // no fields were sent yet
	full   []byte
	short  []byte
}

// call is a place for one stream at a time.
type call struct {
	client *http2Client
	timing timing
	stream *stream2
	left   int // messages, of a Stream
}

func newHTTP2Client(r *run) *http2Client {
	h := &http2Client{run: r, nextID: 1, first: true}
	h.ends = h
	h.message = Message(requestSize)
	if r.job.Kind == Stream {
		h.message = Message(r.job.Size)
	}
	static := []byte{0x83, 0x86} // :method POST, :scheme http
	fields := [][2]string{
		{":path", "/bench.Bench/Call"},
		{":authority", Host},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
		{"user-agent", "bench"},
	}
	if r.job.Kind == HTTP2 {
		static = []byte{0x82, 0x86} // :method GET
		fields = [][2]string{{":path", "/bench"}, {":authority", Host}, {"accept", "*/*"}, {"user-agent", "bench"}}
	}
	h.full = append(h.full, static...)
	for _, f := range fields {
		h.full = field(h.full, f[0], f[1])
	}
	h.short = indexed(append(h.short, static...), len(fields))
	for range r.job.Streams {
		c := &call{client: h}
		h.calls = append(h.calls, c)
		r.active[&c.timing] = struct{}{}
	}
	return h
}

func (h *http2Client) opened(c *conn) { h.start(c, true) }

func (h *http2Client) settled() {
	if h.tableless {
		h.run.fail(errTable)
		return
	}
	for _, c := range h.calls {
		h.run.next(c)
	}
}

func (h *http2Client) read(_ *conn, p []byte) {
	if err := h.http2.read(p); err != nil {
		h.run.fail(err)
	}
}

func (h *http2Client) closed(_ *conn, err error) {
	h.run.fail(fmt.Errorf("a connection ended: %w", err))
}

// begin starts a call, or sends one more message of a stream.
func (c *call) begin() {
	h := c.client
	h.run.mark(&c.timing)
	if c.stream == nil {
		block := h.short
		if h.first {
			block, h.first = h.full, false
		}
		c.stream = h.open(h.nextID)
		c.stream.user = c
		h.nextID += 2
		if h.run.job.Kind == HTTP2 {
			h.frame(frameHeaders, flagEndHeaders|flagEndStream, c.stream.id, block)
			return
		}
		h.frame(frameHeaders, flagEndHeaders, c.stream.id, block)
		c.left = perStream
		c.stream.last = h.run.job.Kind == GRPC
	}
	c.stream.pending = len(h.message)
	if c.left--; c.left == 0 {
		c.stream.last = true
	}
	h.send(c.stream)
}

func (h *http2Client) headers(id uint32, end bool) {
	s := h.streams[id]
	switch {
	case s == nil:
		h.run.fail(fmt.Errorf("fields for stream %d, which is not open", id))
	case !s.headed && end:
		h.run.fail(fmt.Errorf("stream %d was answered without a body", id))
	case !s.headed:
		s.headed = true
	case end:
		h.ended(s)
	}
}

func (h *http2Client) data(s *stream2, _ int, end bool) {
	c := s.user
	switch {
	case h.run.job.Kind == HTTP2 && end:
		h.ended(s)
		return
	case end:
		h.run.fail(fmt.Errorf("stream %d ended without trailers", s.id))
		return
	case h.run.job.Kind != Stream:
		return
	}
	if s.got > len(h.message) {
		h.run.fail(fmt.Errorf("an echo of %d bytes, want %d", s.got, len(h.message)))
	}
	if s.got == len(h.message) && c.left > 0 {
		s.got = 0
		h.run.done(&c.timing)
		h.run.next(c)
	}
}

// ended is called when the trailers have come.
func (h *http2Client) ended(s *stream2) {
	c := s.user
	want := len(h.message) // the last echo
	switch h.run.job.Kind {
	case GRPC:
		want = h.run.job.Size + len(h.message) - requestSize
	case HTTP2:
		want = h.run.job.Size
	}
	if s.got != want || c.timing.at == 0 {
		h.run.fail(fmt.Errorf("stream %d ended after %d bytes, want %d", s.id, s.got, want))
		return
	}
	c.stream = nil
	h.forget(s)
	h.run.done(&c.timing)
	h.run.next(c)
}

func (h *http2Client) reset(id, code uint32) {
	if h.streams[id] != nil {
		h.run.fail(fmt.Errorf("stream %d was reset with code %d", id, code))
	}
}

// http2Server answers calls.
type http2Server struct {
	http2
	echoes bool // answers each message at once with itself
	warm   bool // the fields were sent before
}

// The fields of answers; the short form refers to what the full one has put into the table.
var (
	answerFull  = field([]byte{0x88}, "content-type", "application/grpc") // 0x88: :status 200
	answerShort = indexed([]byte{0x88}, 1)
	answerPlain = literal([]byte{0x88}, "content-type", "application/grpc")
	// noTable says that our table is empty now too (RFC 7541, section 6.3): once, before a block's first field.
	noTable  = byte(0x20)
	trailers = literal(nil, "grpc-status", "0")
)

func newHTTP2Server(message []byte, echoes bool) *http2Server {
	h := &http2Server{echoes: echoes}
	h.ends, h.message = h, message
	return h
}

func (h *http2Server) opened(c *conn) { h.start(c, false) }

func (*http2Server) settled() {}

func (h *http2Server) read(c *conn, p []byte) {
	if h.http2.read(p) != nil {
		c.close() // the proxy counts it as its service's fault, and so the run fails
	}
}

func (*http2Server) closed(*conn, error) {}

func (h *http2Server) headers(id uint32, end bool) {
	s := h.streams[id]
	if s == nil {
		s = h.open(id)
		s.trailers = trailers
		if h.echoes {
			h.answer(s)
		}
	}
	if end {
		h.ended(s)
	}
}

// answer sends the fields of an answer.
func (h *http2Server) answer(s *stream2) {
	block := answerFull
	switch {
	case h.tableless && !h.warm:
		block = append([]byte{noTable}, answerPlain...)
	case h.tableless:
		block = answerPlain
	case h.warm:
		block = answerShort
	}
	h.warm = true
	h.frame(frameHeaders, flagEndHeaders, s.id, block)
}

func (h *http2Server) data(s *stream2, n int, end bool) {
	if h.echoes {
		s.pending += n
		h.send(s)
	}
	if end {
		h.ended(s)
	}
}

// ended is called when a request has come whole.
func (h *http2Server) ended(s *stream2) {
	s.last = true
	if !h.echoes {
		h.answer(s)
		s.pending = len(h.message)
	}
	h.send(s)
}

func (h *http2Server) reset(id, _ uint32) {
	if s := h.streams[id]; s != nil {
		h.forget(s)
	}
}
