package http2

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// verdict is what a case of the conformance tables expects: a connection error
// (id 0), a stream error, or none.
type verdict struct {
	fault bool
	id    uint32
	code  ErrCode
}

func connection(code ErrCode) verdict       { return verdict{true, 0, code} }
func reset(id uint32, code ErrCode) verdict { return verdict{true, id, code} }
func fine() verdict                         { return verdict{} }
func malformed() verdict                    { return reset(1, ErrCodeProtocol) }

type conformance struct {
	section string // of RFC 9113 unless said otherwise
	name    string
	in      string
	want    verdict
}

var (
	open1    = rawHeaders(1, false, post...)
	done1    = rawHeaders(1, true, get...)
	longName = strings.Repeat("n", 100)
)

// serverCases begin after both SETTINGS were exchanged. The server answers each
// complete request with 200.
var serverCases = []conformance{
	{"4.1", "unknown type is ignored", raw(0x42, 0xff, 3, "whatever") + done1, fine()},
	{"4.1", "unknown flags are ignored", raw(framePing, 0x16, 0, "12345678") + done1, fine()},
	{"4.1", "reserved bit is ignored", raw(framePing, 0, 1<<31, "12345678") + done1, fine()},
	{"4.2", "DATA of 16384 bytes", open1 + rawData(1, true, strings.Repeat("x", 16384)), fine()},
	{"4.2", "DATA of 16385 bytes", open1 + rawData(1, true, strings.Repeat("x", 16385)), connection(ErrCodeFrameSize)},
	{"4.2", "HEADERS of 16385 bytes", raw(frameHeaders, flagEndHeaders, 1, strings.Repeat("x", 16385)), connection(ErrCodeFrameSize)},
	{"4.2", "unknown type of 16385 bytes", raw(0x42, 0, 0, strings.Repeat("x", 16385)), connection(ErrCodeFrameSize)},
	{"4.3", "bad index", raw(frameHeaders, flagEndHeaders|flagEndStream, 1, "\xff\xff\x0f"), connection(ErrCodeCompression)},
	{"4.3", "index 0", raw(frameHeaders, flagEndHeaders|flagEndStream, 1, "\x80"), connection(ErrCodeCompression)},
	{"4.3", "truncated literal", raw(frameHeaders, flagEndHeaders|flagEndStream, 1, "\x40\x05ab"), connection(ErrCodeCompression)},
	{"4.3", "table size beyond ours", raw(frameHeaders, flagEndHeaders|flagEndStream, 1, "\x3f\xe2\x1f"), connection(ErrCodeCompression)},
	{"4.3", "table size update at the end", raw(frameHeaders, flagEndHeaders|flagEndStream, 1, block(get...)+"\x41\x01x\x20"), connection(ErrCodeCompression)},
	{"4.3", "Huffman padding of 8 bits", raw(frameHeaders, flagEndHeaders|flagEndStream, 1, "\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"), connection(ErrCodeCompression)},
	{"4.3", "Huffman with EOS", raw(frameHeaders, flagEndHeaders|flagEndStream, 1, "\x00\x01x\x84\xff\xff\xff\xff"), connection(ErrCodeCompression)},
	{"5.1", "idle: DATA", rawData(1, true, "x"), connection(ErrCodeProtocol)},
	{"5.1", "idle: RST_STREAM", rawReset(1, ErrCodeCancel), connection(ErrCodeProtocol)},
	{"5.1", "idle: WINDOW_UPDATE", rawWindow(1, 1), connection(ErrCodeProtocol)},
	{"5.1", "idle: CONTINUATION", raw(frameContinuation, flagEndHeaders, 1, ""), connection(ErrCodeProtocol)},
	{"5.1", "idle: PRIORITY", raw(framePriority, 0, 1, "\x00\x00\x00\x00\x10") + done1, fine()},
	{"5.1", "even stream is idle: DATA", open1 + rawData(2, true, "x"), connection(ErrCodeProtocol)},
	{"5.1", "half-closed (remote): DATA", rawHeaders(1, true, with(get, "x-wait", "1")...) + rawData(1, true, "x"), reset(1, ErrCodeStreamClosed)},
	{"5.1", "half-closed (remote): HEADERS", rawHeaders(1, true, with(get, "x-wait", "1")...) + rawHeaders(1, true, "a", "b"), reset(1, ErrCodeStreamClosed)},
	{"5.1", "half-closed (remote): WINDOW_UPDATE, PRIORITY", rawHeaders(1, true, with(get, "x-wait", "1")...) + rawWindow(1, 9) + raw(framePriority, 0, 1, "\x00\x00\x00\x00\x10") + rawHeaders(3, true, get...), fine()},
	{"5.1", "closed: DATA is discarded", done1 + rawData(1, true, "x") + rawHeaders(3, true, get...), fine()},
	{"5.1", "closed: late trailers are discarded", open1 + rawReset(1, ErrCodeCancel) + rawHeaders(1, true, "grpc-status", "0") + rawHeaders(3, true, get...), fine()},
	{"5.1", "closed: WINDOW_UPDATE, RST_STREAM, PRIORITY", done1 + rawWindow(1, 1) + rawReset(1, ErrCodeCancel) + raw(framePriority, 0, 1, "\x00\x00\x00\x00\x10") + rawHeaders(3, true, get...), fine()},
	{"5.1", "closed: HEADERS opens again", done1 + done1, connection(ErrCodeProtocol)},
	{"5.1.1", "even identifier", rawHeaders(2, true, get...), connection(ErrCodeProtocol)},
	{"5.1.1", "identifier goes down", rawHeaders(5, true, get...) + rawHeaders(3, true, get...), connection(ErrCodeProtocol)},
	{"5.1.1", "identifiers leave gaps", rawHeaders(5, true, get...) + rawHeaders(0x7fffffff, true, get...), fine()},
	{"5.1.2", "too many streams", open1 + rawHeaders(3, false, post...) + rawHeaders(5, false, post...), reset(5, ErrCodeRefusedStream)},
	{"5.3", "HEADERS with priority", raw(frameHeaders, flagEndHeaders|flagEndStream|flagPriority, 1, "\x80\x00\x00\x00\x10"+block(get...)), fine()},
	{"5.3", "HEADERS too short for its priority", raw(frameHeaders, flagEndHeaders|flagPriority, 1, "\x00\x00"), connection(ErrCodeFrameSize)},
	{"5.5", "unknown setting is ignored", rawSettings(setting(0x9999, 7)) + done1, fine()},
	{"5.5", "unknown frame inside a header block", raw(frameHeaders, 0, 1, block(get...)) + raw(0x42, 0, 1, ""), connection(ErrCodeProtocol)},
	{"6.1", "DATA on stream 0", rawData(0, true, "x"), connection(ErrCodeProtocol)},
	{"6.1", "padding", open1 + raw(frameData, flagEndStream|flagPadded, 1, "\x03abc\x00\x00\x00"), fine()},
	{"6.1", "padding as long as the payload", open1 + raw(frameData, flagEndStream|flagPadded, 1, "\x04abc"), connection(ErrCodeProtocol)},
	{"6.1", "padding without its length", open1 + raw(frameData, flagEndStream|flagPadded, 1, ""), connection(ErrCodeFrameSize)},
	{"6.2", "HEADERS on stream 0", rawHeaders(0, true, get...), connection(ErrCodeProtocol)},
	{"6.2", "padding", raw(frameHeaders, flagEndHeaders|flagEndStream|flagPadded, 1, "\x02"+block(get...)+"\x00\x00"), fine()},
	{"6.2", "padding longer than the payload", raw(frameHeaders, flagEndHeaders|flagPadded, 1, "\x09"+"short"), connection(ErrCodeProtocol)},
	{"6.2", "another stream's HEADERS inside a block", raw(frameHeaders, 0, 1, block(get...)) + rawHeaders(3, true, get...), connection(ErrCodeProtocol)},
	{"6.2", "DATA inside a block", raw(frameHeaders, 0, 1, block(get...)) + rawData(1, false, "x"), connection(ErrCodeProtocol)},
	{"6.3", "PRIORITY on stream 0", raw(framePriority, 0, 0, "\x00\x00\x00\x00\x10"), connection(ErrCodeProtocol)},
	{"6.3", "PRIORITY of 4 bytes on an open stream", open1 + raw(framePriority, 0, 1, "\x00\x00\x00\x00"), reset(1, ErrCodeFrameSize)},
	{"6.3", "PRIORITY of 4 bytes on an idle stream", raw(framePriority, 0, 1, "\x00\x00\x00\x00"), connection(ErrCodeFrameSize)},
	{"6.4", "RST_STREAM on stream 0", rawReset(0, ErrCodeCancel), connection(ErrCodeProtocol)},
	{"6.4", "RST_STREAM of 3 bytes", open1 + raw(frameReset, 0, 1, "\x00\x00\x00"), connection(ErrCodeFrameSize)},
	{"6.5", "ACK with a payload", raw(frameSettings, flagAck, 0, setting(settingMaxStreams, 1)), connection(ErrCodeFrameSize)},
	{"6.5", "on a stream", raw(frameSettings, 0, 1, ""), connection(ErrCodeProtocol)},
	{"6.5", "of 5 bytes", raw(frameSettings, 0, 0, "12345"), connection(ErrCodeFrameSize)},
	{"6.5", "an ACK too many", raw(frameSettings, flagAck, 0, "") + done1, fine()},
	{"6.5.2", "ENABLE_PUSH 2", rawSettings(setting(settingEnablePush, 2)), connection(ErrCodeProtocol)},
	{"6.5.2", "ENABLE_PUSH 1", rawSettings(setting(settingEnablePush, 1)) + done1, fine()},
	{"6.5.2", "INITIAL_WINDOW_SIZE 2^31", rawSettings(setting(settingInitialWindow, 1<<31)), connection(ErrCodeFlowControl)},
	{"6.5.2", "MAX_FRAME_SIZE 16383", rawSettings(setting(settingMaxFrameSize, 16383)), connection(ErrCodeProtocol)},
	{"6.5.2", "MAX_FRAME_SIZE 2^24", rawSettings(setting(settingMaxFrameSize, 1<<24)), connection(ErrCodeProtocol)},
	{"6.5.3", "settings in order", rawSettings(setting(settingInitialWindow, 5), setting(settingInitialWindow, 9)) + done1, fine()},
	{"RFC 8441 3", "ENABLE_CONNECT_PROTOCOL 2", rawSettings(setting(settingExtendedConnect, 2)), connection(ErrCodeProtocol)},
	{"RFC 8441 3", "ENABLE_CONNECT_PROTOCOL taken back", rawSettings(setting(settingExtendedConnect, 1), setting(settingExtendedConnect, 0)), connection(ErrCodeProtocol)},
	{"6.6", "PUSH_PROMISE", open1 + raw(framePushPromise, flagEndHeaders, 1, "\x00\x00\x00\x02"+block(get...)), connection(ErrCodeProtocol)},
	{"6.7", "PING on a stream", raw(framePing, 0, 1, "12345678"), connection(ErrCodeProtocol)},
	{"6.7", "PING of 7 bytes", raw(framePing, 0, 0, "1234567"), connection(ErrCodeFrameSize)},
	{"6.7", "an answer that was not asked for", raw(framePing, flagAck, 0, "12345678") + done1, fine()},
	{"6.8", "GOAWAY on a stream", raw(frameGoAway, 0, 1, u32(0)+u32(0)), connection(ErrCodeProtocol)},
	{"6.8", "GOAWAY of 7 bytes", raw(frameGoAway, 0, 0, "1234567"), connection(ErrCodeFrameSize)},
	{"6.8", "requests go on after the client's GOAWAY", open1 + raw(frameGoAway, 0, 0, u32(0)+u32(0)+"bye") + rawData(1, true, "x"), fine()},
	{"6.9", "WINDOW_UPDATE of 0 on the connection", rawWindow(0, 0), connection(ErrCodeProtocol)},
	{"6.9", "WINDOW_UPDATE of 0 on a stream", open1 + rawWindow(1, 0), malformed()},
	{"6.9", "WINDOW_UPDATE of 3 bytes", raw(frameWindowUpdate, 0, 0, "\x00\x00\x01"), connection(ErrCodeFrameSize)},
	{"6.9.1", "connection's window above 2^31-1", rawWindow(0, maxWindow), connection(ErrCodeFlowControl)},
	{"6.9.1", "stream's window above 2^31-1", open1 + rawWindow(1, maxWindow), reset(1, ErrCodeFlowControl)},
	{"6.9.1", "DATA beyond the stream's window", rawHeaders(1, false, with(post, "x-pause", "1")...) + strings.Repeat(rawData(1, false, strings.Repeat("x", 16384)), 17), reset(1, ErrCodeFlowControl)},
	{"6.9.1", "padding beyond the stream's window", rawHeaders(1, false, with(post, "x-pause", "1")...) + strings.Repeat(raw(frameData, flagPadded, 1, "\xff"+strings.Repeat("x", 300)), 872), reset(1, ErrCodeFlowControl)},
	{"6.9.2", "change of the initial window overflows", open1 + rawWindow(1, maxWindow-initialWindow) + rawSettings(setting(settingInitialWindow, initialWindow+1)), connection(ErrCodeFlowControl)},
	{"6.10", "CONTINUATION", raw(frameHeaders, flagEndStream, 1, block(get[:2]...)) + raw(frameContinuation, 0, 1, block(get[2:6]...)) + raw(frameContinuation, flagEndHeaders, 1, block(get[6:]...)), fine()},
	{"6.10", "CONTINUATION of another stream", raw(frameHeaders, 0, 1, block(get...)) + raw(frameContinuation, flagEndHeaders, 3, ""), connection(ErrCodeProtocol)},
	{"6.10", "CONTINUATION on stream 0", raw(frameHeaders, 0, 1, block(get...)) + raw(frameContinuation, flagEndHeaders, 0, ""), connection(ErrCodeProtocol)},
	{"6.10", "CONTINUATION after END_HEADERS", rawHeaders(1, false, post...) + raw(frameContinuation, flagEndHeaders, 1, ""), connection(ErrCodeProtocol)},
	{"6.10", "CONTINUATION after DATA", rawHeaders(1, false, post...) + rawData(1, false, "x") + raw(frameContinuation, flagEndHeaders, 1, ""), connection(ErrCodeProtocol)},
	{"8.1", "trailers", open1 + rawData(1, false, "x") + rawHeaders(1, true, "x-checksum", "1"), fine()},
	{"8.1", "trailers without END_STREAM", open1 + rawHeaders(1, false, "x-checksum", "1"), malformed()},
	{"8.1", "trailers with a pseudo-field", open1 + rawHeaders(1, true, ":method", "GET"), malformed()},
	{"8.1", "Content-Length in trailers", open1 + rawHeaders(1, true, "content-length", "0"), malformed()},
	{"8.1.1", "Content-Length above DATA", rawHeaders(1, false, with(post, "content-length", "2")...) + rawData(1, true, "x"), malformed()},
	{"8.1.1", "Content-Length below DATA", rawHeaders(1, false, with(post, "content-length", "2")...) + rawData(1, false, "xyz"), malformed()},
	{"8.1.1", "Content-Length of the sum of DATA", rawHeaders(1, false, with(post, "content-length", "2")...) + rawData(1, false, "x") + rawData(1, true, "y"), fine()},
	{"8.1.1", "Content-Length and END_STREAM", rawHeaders(1, true, with(post, "content-length", "2")...), malformed()},
	{"8.1.1", "Content-Length above DATA before trailers", rawHeaders(1, false, with(post, "content-length", "2")...) + rawData(1, false, "x") + rawHeaders(1, true, "a", "b"), malformed()},
	{"8.1.1", "Content-Length 0 and END_STREAM", rawHeaders(1, true, with(post, "content-length", "0")...), fine()},
	{"8.1.1", "Content-Length twice", rawHeaders(1, true, with(post, "content-length", "0", "content-length", "0")...), malformed()},
	{"8.1.1", "Content-Length signed", rawHeaders(1, false, with(post, "content-length", "+1")...), malformed()},
	{"8.1.1", "Content-Length of 20 digits", rawHeaders(1, false, with(post, "content-length", "99999999999999999999")...), malformed()},
	{"8.2.1", "upper-case name", rawHeaders(1, true, with(get, "X-Test", "1")...), malformed()},
	{"8.2.1", "empty name", rawHeaders(1, true, with(get, "", "1")...), malformed()},
	{"8.2.1", "name with a space", rawHeaders(1, true, with(get, "a b", "1")...), malformed()},
	{"8.2.1", "name with a colon", rawHeaders(1, true, with(get, "a:b", "1")...), malformed()},
	{"8.2.1", "name with a byte above 0x7e", rawHeaders(1, true, with(get, "a\xff", "1")...), malformed()},
	{"8.2.1", "value with a line feed", rawHeaders(1, true, with(get, "a", "1\n2")...), malformed()},
	{"8.2.1", "value with a carriage return", rawHeaders(1, true, with(get, "a", "1\r2")...), malformed()},
	{"8.2.1", "value with a zero", rawHeaders(1, true, with(get, "a", "1\x002")...), malformed()},
	{"8.2.1", "value begins with a space", rawHeaders(1, true, with(get, "a", " 1")...), malformed()},
	{"8.2.1", "value ends with a tab", rawHeaders(1, true, with(get, "a", "1\t")...), malformed()},
	{"8.2.1", "value with a tab, a space and UTF-8", rawHeaders(1, true, with(get, "a", "1\t 2\xc3\xa4")...), fine()},
	{"8.2.1", "empty value", rawHeaders(1, true, with(get, "a", "")...), fine()},
	{"8.2.2", "connection", rawHeaders(1, true, with(get, "connection", "close")...), malformed()},
	{"8.2.2", "proxy-connection", rawHeaders(1, true, with(get, "proxy-connection", "close")...), malformed()},
	{"8.2.2", "keep-alive", rawHeaders(1, true, with(get, "keep-alive", "5")...), malformed()},
	{"8.2.2", "transfer-encoding", rawHeaders(1, true, with(get, "transfer-encoding", "chunked")...), malformed()},
	{"8.2.2", "upgrade", rawHeaders(1, true, with(get, "upgrade", "h2c")...), malformed()},
	{"8.2.2", "te: gzip", rawHeaders(1, true, with(get, "te", "trailers, gzip")...), malformed()},
	{"8.2.2", "te: trailers", rawHeaders(1, true, with(get, "te", "trailers")...), fine()},
	{"8.3", "unknown pseudo-field", rawHeaders(1, true, with(get, ":test", "1")...), malformed()},
	{"8.3", "pseudo-field of responses", rawHeaders(1, true, with(get, ":status", "200")...), malformed()},
	{"8.3", "pseudo-field after a regular one", rawHeaders(1, true, append([]string{"a", "b"}, get...)...), malformed()},
	{"8.3", "pseudo-field twice", rawHeaders(1, true, with(get, ":path", "/")...), malformed()},
	{"8.3.1", "no :method", rawHeaders(1, true, get[2:]...), malformed()},
	{"8.3.1", "no :scheme", rawHeaders(1, true, with(get[:2], get[4:]...)...), malformed()},
	{"8.3.1", "no :path", rawHeaders(1, true, with(get[:4], get[6:]...)...), malformed()},
	{"8.3.1", "empty :path", rawHeaders(1, true, ":method", "GET", ":scheme", "http", ":path", "", ":authority", "a"), malformed()},
	{"8.3.1", ":path without a slash", rawHeaders(1, true, ":method", "GET", ":scheme", "http", ":path", "a", ":authority", "a"), malformed()},
	{"8.3.1", ":path with a space", rawHeaders(1, true, ":method", "GET", ":scheme", "http", ":path", "/ a", ":authority", "a"), malformed()},
	{"8.3.1", ":path with a fragment", rawHeaders(1, true, ":method", "GET", ":scheme", "http", ":path", "/#a", ":authority", "a"), malformed()},
	{"8.3.1", "OPTIONS *", rawHeaders(1, true, ":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "a"), fine()},
	{"8.3.1", "GET *", rawHeaders(1, true, ":method", "GET", ":scheme", "http", ":path", "*", ":authority", "a"), malformed()},
	{"8.3.1", "no authority", rawHeaders(1, true, get[:6]...), malformed()},
	{"8.3.1", "authority with user information", rawHeaders(1, true, with(get[:6], ":authority", "me@a.test")...), malformed()},
	{"8.3.1", "authority with a slash", rawHeaders(1, true, with(get[:6], ":authority", "a/b")...), malformed()},
	{"8.3.1", "authority with an address and a port", rawHeaders(1, true, with(get[:6], ":authority", "[::1]:80")...), fine()},
	{"8.3.1", "host instead of :authority", rawHeaders(1, true, with(get[:6], "host", "a.test")...), fine()},
	{"8.3.1", "host like :authority", rawHeaders(1, true, with(get, "host", "A.test")...), fine()},
	{"8.3.1", "host unlike :authority", rawHeaders(1, true, with(get, "host", "b.test")...), malformed()},
	{"8.3.1", "host twice", rawHeaders(1, true, with(get, "host", "a.test", "host", "a.test")...), malformed()},
	{"8.3.1", "method with a space", rawHeaders(1, true, append([]string{":method", "GET /"}, get[2:]...)...), malformed()},
	{"8.3.1", "scheme in upper case", rawHeaders(1, true, ":method", "GET", ":scheme", "HTTP", ":path", "/", ":authority", "a"), malformed()},
	{"8.5", "CONNECT", rawHeaders(1, false, ":method", "CONNECT", ":authority", "a.test:80") + rawData(1, true, "x"), fine()},
	{"8.5", "CONNECT with :path", rawHeaders(1, false, ":method", "CONNECT", ":authority", "a.test:80", ":path", "/"), malformed()},
	{"8.5", "CONNECT with :scheme", rawHeaders(1, false, ":method", "CONNECT", ":authority", "a.test:80", ":scheme", "http"), malformed()},
	{"8.5", "CONNECT without an authority", rawHeaders(1, false, ":method", "CONNECT"), malformed()},
	{"8.5", "HEADERS in a tunnel", rawHeaders(1, false, ":method", "CONNECT", ":authority", "a.test:80") + rawHeaders(1, true, "a", "b"), malformed()},
	{"RFC 8441 4", ":protocol that was not offered", rawHeaders(1, false, with(get, ":protocol", "websocket")...), malformed()},
	{"10.5.1", "header list above 2 KiB", rawHeaders(1, false, with(get, "a", strings.Repeat("x", 2048))...), reset(1, ErrCodeNo)},
	{"10.5.1", "header list above 20 fields", rawHeaders(1, false, with(get, strings.Split(strings.Repeat("a,b,", 17)+"a,b", ",")...)...), reset(1, ErrCodeNo)},
	{"10.5.1", "trailers above 2 KiB", open1 + rawHeaders(1, true, strings.Split(strings.Repeat(longName+",b,", 20)+"a,b", ",")...), reset(1, ErrCodeEnhanceYourCalm)},
	{"10.5.1", "header block above 4 KiB", raw(frameHeaders, 0, 1, strings.Repeat("x", 3000)) + raw(frameContinuation, 0, 1, strings.Repeat("x", 3000)), connection(ErrCodeEnhanceYourCalm)},
}

func TestServerConformance(t *testing.T) {
	for _, tt := range serverCases {
		t.Run(tt.section+" "+tt.name, func(t *testing.T) {
			b := newBed(t, Config{MaxStreams: 2, HeadBytesMax: 2048, HeadFieldsMax: 20})
			b.on = func(r *recorder, event string) {
				if _, wait := r.head.Get("x-wait"); !wait {
					ok(r, event)
				}
				if _, pause := r.head.Get("x-pause"); pause {
					r.s.Pause()
				}
			}
			b.feed(tt.in)
			fs := b.frames()
			if !tt.want.fault {
				if b.conn.closed || len(only(fs, frameReset)) > 0 || len(only(fs, frameGoAway)) > 0 {
					_, what := hasFault(fs, 0, 0)
					t.Fatalf("want no fault; %s", what)
				}
				if len(only(fs, frameHeaders)) == 0 {
					t.Fatal("want a response, there is none")
				}
				return
			}
			if found, what := hasFault(fs, tt.want.id, tt.want.code); !found {
				t.Fatalf("want stream %d: %s; %s", tt.want.id, tt.want.code, what)
			}
			if b.conn.closed != (tt.want.id == 0) {
				t.Fatalf("closed is %v", b.conn.closed)
			}
		})
	}
}

func TestServerPreface(t *testing.T) {
	tests := []struct {
		name, in string
		want     verdict
	}{
		{"HTTP/1 request", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", connection(ErrCodeProtocol)},
		{"wrong at the end", Preface[:23] + "x", connection(ErrCodeProtocol)},
		{"no SETTINGS", Preface + raw(framePing, 0, 0, "12345678"), connection(ErrCodeProtocol)},
		{"SETTINGS is an ACK", Preface + raw(frameSettings, flagAck, 0, ""), connection(ErrCodeProtocol)},
		{"well", Preface + rawSettings(), fine()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := bareBed(t, Config{})
			b.feed(tt.in)
			found, what := hasFault(b.frames(), 0, tt.want.code)
			if found != tt.want.fault {
				t.Fatalf("fault %v; %s", found, what)
			}
		})
	}
}

// TestServerPieces feeds a conversation byte by byte, as a loop may.
func TestServerPieces(t *testing.T) {
	b := bareBed(t, Config{})
	b.on = ok
	in := Preface + rawSettings() + rawHeaders(1, false, post...) + rawData(1, false, "hello") + rawData(1, true, "")
	var kept []byte
	for i := range len(in) {
		kept = append(kept, in[i])
		kept = kept[b.s.OnData(kept):]
	}
	want := []string{"head POST http://a.test/", "data 5", "data 0 end"}
	if d := cmp.Diff(want, b.reqs[0].log); d != "" {
		t.Fatal(d)
	}
}

func TestServerSettings(t *testing.T) {
	b := bareBed(t, Config{MaxStreams: 7, StreamWindow: 1 << 17, ConnWindow: 1 << 18, HeadBytesMax: 5000, ExtendedConnect: true})
	fs := b.frames()
	want := setting(settingMaxStreams, 7) + setting(settingExtendedConnect, 1) +
		setting(settingInitialWindow, 1<<17) + setting(settingMaxHeadBytes, 5000)
	if fs[0].typ != frameSettings || string(fs[0].payload) != want {
		t.Errorf("SETTINGS are %q", fs[0].payload)
	}
	if fs[1].typ != frameWindowUpdate || string(fs[1].payload) != u32(1<<18-initialWindow) {
		t.Errorf("the second frame is %+v", fs[1])
	}
	b.feed(Preface, rawSettings())
	if fs := b.frames(); len(fs) != 1 || fs[0].typ != frameSettings || fs[0].flags != flagAck {
		t.Errorf("the answer to SETTINGS is %+v", fs)
	}
}

func TestDetectPreface(t *testing.T) {
	for n := range len(Preface) + 4 {
		p := []byte(Preface + "more")[:n]
		match, more := DetectPreface(p)
		if match != (n >= len(Preface)) || more != (n < len(Preface)) {
			t.Errorf("%d bytes: match %v, more %v", n, match, more)
		}
	}
	if match, more := DetectPreface([]byte("POST")); match || more {
		t.Error("POST is taken for a preface")
	}
}
