package http2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// sink is a Conn in memory: what is written stays in out.
type sink struct {
	out     []byte
	limit   int // Full above it; 0 never
	closed  bool
	aborted bool
	discard bool
}

func (s *sink) Write(p []byte) {
	if !s.discard {
		s.out = append(s.out, p...)
	}
}
func (s *sink) Full() bool { return s.limit > 0 && len(s.out) >= s.limit }
func (s *sink) Close()     { s.closed = true }
func (s *sink) Abort()     { s.aborted = true }

// sent is a frame that we wrote.
type sent struct {
	frameHeader
	payload []byte
}

func (f sent) code() ErrCode {
	off := 0
	if f.typ == frameGoAway {
		off = 4
	}
	return ErrCode(binary.BigEndian.Uint32(f.payload[off:]))
}

// frames takes the frames written so far out of the sink, without a client's preface.
func (s *sink) frames(t testing.TB) []sent {
	t.Helper()
	var fs []sent
	p := bytes.TrimPrefix(s.out, []byte(Preface))
	for len(p) > 0 {
		h := parseFrameHeader(p)
		if len(p) < frameHeaderLen+h.length {
			t.Fatalf("a frame is cut short: %+v with %d bytes", h, len(p))
		}
		fs = append(fs, sent{h, bytes.Clone(p[frameHeaderLen : frameHeaderLen+h.length])})
		p = p[frameHeaderLen+h.length:]
	}
	s.out = nil
	return fs
}

func only(fs []sent, typ frameType) []sent {
	var r []sent
	for _, f := range fs {
		if f.typ == typ {
			r = append(r, f)
		}
	}
	return r
}

// raw makes any frame at all.
func raw(typ frameType, flags frameFlags, id uint32, payload string) string {
	n := len(payload)
	return string([]byte{byte(n >> 16), byte(n >> 8), byte(n), byte(typ), byte(flags), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}) + payload
}

func u32(v uint32) string { return string(binary.BigEndian.AppendUint32(nil, v)) }

func setting(id settingID, v uint32) string {
	return string(binary.BigEndian.AppendUint16(nil, uint16(id))) + u32(v)
}

func rawSettings(s ...string) string { return raw(frameSettings, 0, 0, strings.Join(s, "")) }

func rawWindow(id, n uint32) string { return raw(frameWindowUpdate, 0, id, u32(n)) }

func rawReset(id uint32, code ErrCode) string { return raw(frameReset, 0, id, u32(uint32(code))) }

func rawData(id uint32, end bool, p string) string {
	return raw(frameData, endFlag(end), id, p)
}

func endFlag(end bool) frameFlags {
	if end {
		return flagEndStream
	}
	return 0
}

// block encodes name, value, name, value ... without use of the dynamic table.
func block(nv ...string) string {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(nv); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: nv[i], Value: nv[i+1], Sensitive: true})
	}
	return b.String()
}

// rawHeaders is a whole HEADERS frame.
func rawHeaders(id uint32, end bool, nv ...string) string {
	return raw(frameHeaders, flagEndHeaders|endFlag(end), id, block(nv...))
}

var (
	get  = []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a.test"}
	post = []string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a.test"}
)

// with appends fields to a copy of head.
func with(head []string, nv ...string) []string { return append(slices.Clip(head), nv...) }

// recorder is a Receiver that writes down what it is told.
type recorder struct {
	s       stream.Sender
	log     []string
	body    []byte
	why     stream.Abort
	err     error
	head    stream.Head
	ended   bool
	drained int
	on      func(r *recorder, event string) // called after each event
}

func (r *recorder) note(event string) {
	r.log = append(r.log, event)
	if r.on != nil {
		r.on(r, event)
	}
}

func (r *recorder) OnHead(h *stream.Head, end bool) {
	r.head.CopyFrom(h)
	r.ended = r.ended || end
	r.note(fmt.Sprintf("head %s%s", describe(h), endMark(end)))
}
func (r *recorder) OnInterim(h *stream.Head) { r.note("interim " + describe(h)) }
func (r *recorder) OnData(p []byte, end bool) {
	r.body = append(r.body, p...)
	r.ended = r.ended || end
	r.note(fmt.Sprintf("data %d%s", len(p), endMark(end)))
}

func (r *recorder) OnTrailers(h *stream.Head) {
	r.ended = true
	r.note("trailers " + describe(h))
}

func (r *recorder) OnAbort(why stream.Abort, err error) {
	r.why, r.err = why, err
	r.note("abort " + why.String())
}

func (r *recorder) OnDrain() {
	r.drained++
	r.note("drain")
}

// release releases the Sender if nothing is to come any more, and reports whether it has.
func (r *recorder) release() bool {
	x, ok := r.s.(*exchange)
	if ok && x.flags&deaf != 0 {
		r.s = gone{}
		x.Release()
	}
	return !ok || x.flags&deaf != 0
}

// gone stands in for a Sender that may not be called any more.
type gone struct{ stream.Sender }

func (gone) Resume() {}

func endMark(end bool) string {
	if end {
		return " end"
	}
	return ""
}

// describe renders a head in one line.
func describe(h *stream.Head) string {
	var b strings.Builder
	if h.Status != 0 {
		fmt.Fprintf(&b, "%d", h.Status)
	} else if len(h.Method()) > 0 {
		fmt.Fprintf(&b, "%s %s://%s%s", h.Method(), h.Scheme(), h.Authority(), h.Path())
	}
	for i := range h.Len() {
		n, v := h.At(i)
		fmt.Fprintf(&b, " %s=%s", n, v)
	}
	return b.String()
}

// bed is a server connection over a sink, with a recorder for each request.
type bed struct {
	t    testing.TB
	conn *sink
	s    *ServerConn
	time time.Time
	reqs []*recorder
	errs []string
	on   func(r *recorder, event string)
}

func (b *bed) Accept(s stream.Sender) stream.Receiver {
	r := &recorder{s: s, on: b.on}
	b.reqs = append(b.reqs, r)
	return r
}

func (b *bed) OnFault(_ *ServerConn, err *Error) { b.errs = append(b.errs, err.Error()) }

// newBed makes a server that has exchanged SETTINGS; what it wrote then is gone.
func newBed(t testing.TB, cfg Config) *bed {
	b := bareBed(t, cfg)
	b.feed(Preface, rawSettings(), raw(frameSettings, flagAck, 0, ""))
	b.conn.out = nil
	return b
}

func bareBed(t testing.TB, cfg Config) *bed {
	b := &bed{t: t, conn: new(sink), time: time.Unix(1, 0)}
	cfg.Now = func() time.Time { return b.time }
	b.s = NewServerConn(b.conn, b, cfg, b)
	return b
}

// feed hands all to the server, which must consume it all.
func (b *bed) feed(parts ...string) {
	b.t.Helper()
	p := strings.Join(parts, "")
	if n := b.s.OnData([]byte(p)); n != len(p) {
		b.t.Fatalf("consumed %d of %d bytes", n, len(p))
	}
}

func (b *bed) frames() []sent { b.t.Helper(); return b.conn.frames(b.t) }

// ok answers a complete request with 200 and nothing else.
func ok(r *recorder, _ string) {
	if r.ended {
		r.s.SendHead(response(200), true)
	}
}

func response(status int, nv ...string) *stream.Head {
	h := new(stream.Head)
	h.Reset()
	h.Status = status
	for i := 0; i < len(nv); i += 2 {
		h.AddString(nv[i], nv[i+1])
	}
	return h
}

func request(method, path string, nv ...string) *stream.Head {
	h := response(0, nv...)
	h.SetMethodString(method)
	h.SetSchemeString("http")
	h.SetAuthorityString("a.test")
	h.SetPathString(path)
	return h
}

// desk is a client connection over a sink, and its owner.
type desk struct {
	t        testing.TB
	conn     *sink
	c        *ClientConn
	time     time.Time
	room     int
	draining []error
	dead     []error
	log      *[]string
}

func (d *desk) OnRoom(*ClientConn) { d.room++ }
func (d *desk) OnDraining(c *ClientConn) {
	d.draining = append(d.draining, c.Err())
	d.write("draining")
}

func (d *desk) OnDead(c *ClientConn) {
	d.dead = append(d.dead, c.Err())
	d.write("dead")
}

func (d *desk) write(event string) {
	if d.log != nil {
		*d.log = append(*d.log, event)
	}
}

func newDesk(t testing.TB, cfg Config, settings ...string) *desk {
	d := bareDesk(t, cfg)
	d.feed(rawSettings(settings...), raw(frameSettings, flagAck, 0, ""))
	d.conn.out = nil
	return d
}

func bareDesk(t testing.TB, cfg Config) *desk {
	d := &desk{t: t, conn: new(sink), time: time.Unix(1, 0)}
	cfg.Now = func() time.Time { return d.time }
	d.c = NewClientConn(d.conn, cfg, d)
	return d
}

func (d *desk) feed(parts ...string) {
	d.t.Helper()
	p := strings.Join(parts, "")
	if n := d.c.OnData([]byte(p)); n != len(p) {
		d.t.Fatalf("consumed %d of %d bytes", n, len(p))
	}
}

func (d *desk) frames() []sent { d.t.Helper(); return d.conn.frames(d.t) }

// open begins an exchange and sends its head.
func (d *desk) open(h *stream.Head, end bool) *recorder {
	d.t.Helper()
	r := new(recorder)
	s, ok := d.c.Open(r)
	if !ok {
		d.t.Fatal("no room")
	}
	r.s = s
	s.SendHead(h, end)
	return r
}

// hasFault reports an RST_STREAM of id with code, or for id 0 a GOAWAY, and describes what was there instead.
func hasFault(fs []sent, id uint32, code ErrCode) (bool, string) {
	var seen []string
	for _, f := range fs {
		if f.typ == frameGoAway && f.code() != ErrCodeNo || f.typ == frameReset {
			seen = append(seen, fmt.Sprintf("stream %d: %s %q", f.stream, f.code(), f.payload))
			if f.stream == id && f.code() == code {
				return true, ""
			}
		}
	}
	return false, fmt.Sprintf("faults sent: %q", seen)
}
