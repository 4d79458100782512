package http2

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

var status200 = []string{":status", "200"}

// clientConformance is a case that begins with stream 1 open: a GET that is
// complete, or what method says. The faults are those that we send.
type clientConformance struct {
	section, name string
	method        string // of stream 1; "POST" leaves the request open
	in            string
	want          verdict
	log           string // what the Receiver is told in all, if not empty
}

var resp = rawHeaders(1, false, status200...)

var clientCases = []clientConformance{
	{"5.1", "idle: HEADERS", "GET", rawHeaders(3, true, status200...), connection(ErrCodeProtocol), ""},
	{"5.1", "idle: DATA", "GET", rawData(3, true, "x"), connection(ErrCodeProtocol), ""},
	{"5.1", "idle: RST_STREAM", "GET", rawReset(3, ErrCodeCancel), connection(ErrCodeProtocol), ""},
	{"5.1", "idle: WINDOW_UPDATE", "GET", rawWindow(3, 1), connection(ErrCodeProtocol), ""},
	{"5.1", "even stream: HEADERS", "GET", rawHeaders(2, true, status200...), connection(ErrCodeProtocol), ""},
	{"5.1", "half-closed (remote): DATA", "CONNECT", resp + rawData(1, true, "") + rawData(1, true, "x"), reset(1, ErrCodeStreamClosed), "head 200; data 0 end; abort protocol"},
	{"5.1", "half-closed (remote): HEADERS", "CONNECT", resp + rawData(1, true, "") + rawHeaders(1, true, "a", "b"), reset(1, ErrCodeStreamClosed), "head 200; data 0 end; abort protocol"},
	{"5.1", "closed: all is discarded", "GET", rawHeaders(1, true, status200...) + rawHeaders(1, true, status200...) + rawData(1, true, "x") + rawReset(1, 0) + rawWindow(1, 1), fine(), "head 200 end"},
	{"6.5.2", "ENABLE_PUSH 1", "GET", rawSettings(setting(settingEnablePush, 1)), connection(ErrCodeProtocol), "abort protocol"},
	{"6.5.2", "ENABLE_PUSH 0", "GET", rawSettings(setting(settingEnablePush, 0)), fine(), ""},
	{"6.6", "PUSH_PROMISE", "GET", raw(framePushPromise, flagEndHeaders, 1, "\x00\x00\x00\x02"), connection(ErrCodeProtocol), "abort protocol"},
	{"6.8", "second GOAWAY promises more", "GET", raw(frameGoAway, 0, 0, u32(1)+u32(0)) + raw(frameGoAway, 0, 0, u32(3)+u32(0)), connection(ErrCodeProtocol), "abort protocol"},
	{"8.1", "response", "GET", resp + rawData(1, false, "abc") + rawData(1, true, "d"), fine(), "head 200; data 3; data 1 end"},
	{"8.1", "response before the request is whole", "POST", resp + rawData(1, true, "x"), reset(1, ErrCodeCancel), "head 200; data 1 end"},
	{"8.1", "response with trailers", "GET", resp + rawData(1, false, "abc") + rawHeaders(1, true, "grpc-status", "0"), fine(), "head 200; data 3; trailers  grpc-status=0"},
	{"8.1", "trailers only (gRPC)", "GET", rawHeaders(1, true, with(status200, "grpc-status", "5")...), fine(), "head 200 grpc-status=5 end"},
	{"8.1", "trailers without END_STREAM", "GET", resp + rawHeaders(1, false, "a", "b"), malformed(), "head 200; abort protocol"},
	{"8.1", "trailers with a pseudo-field", "GET", resp + rawHeaders(1, true, ":status", "200"), malformed(), "head 200; abort protocol"},
	{"8.1", "DATA before the head", "GET", rawData(1, true, "x"), malformed(), "abort protocol"},
	{"8.1", "interim responses", "GET", rawHeaders(1, false, ":status", "100") + rawHeaders(1, false, ":status", "103", "link", "x") + rawHeaders(1, true, status200...), fine(), "interim 100; interim 103 link=x; head 200 end"},
	{"8.1", "interim response ends the stream", "GET", rawHeaders(1, true, ":status", "100"), malformed(), "abort protocol"},
	{"8.1", "DATA after an interim response", "GET", rawHeaders(1, false, ":status", "100") + rawData(1, true, "x"), malformed(), "interim 100; abort protocol"},
	{"8.1", "interim responses without end", "GET", strings.Repeat(rawHeaders(1, false, ":status", "100"), 101), reset(1, ErrCodeEnhanceYourCalm), ""},
	{"8.1.1", "Content-Length above DATA", "GET", rawHeaders(1, false, ":status", "200", "content-length", "2") + rawData(1, true, "x"), malformed(), "head 200 content-length=2; abort protocol"},
	{"8.1.1", "Content-Length below DATA", "GET", rawHeaders(1, false, ":status", "200", "content-length", "2") + rawData(1, true, "xyz"), malformed(), "head 200 content-length=2; abort protocol"},
	{"8.1.1", "Content-Length and END_STREAM", "GET", rawHeaders(1, true, ":status", "200", "content-length", "2"), malformed(), "abort protocol"},
	{"8.1.1", "HEAD with Content-Length", "HEAD", rawHeaders(1, true, ":status", "200", "content-length", "2"), fine(), "head 200 content-length=2 end"},
	{"8.1.1", "HEAD with DATA", "HEAD", rawHeaders(1, false, ":status", "200", "content-length", "2") + rawData(1, true, "xy"), malformed(), "head 200 content-length=2; abort protocol"},
	{"8.1.1", "304 with Content-Length", "GET", rawHeaders(1, true, ":status", "304", "content-length", "2"), fine(), "head 304 content-length=2 end"},
	{"8.1.1", "204 with DATA", "GET", rawHeaders(1, false, ":status", "204") + rawData(1, true, "x"), malformed(), "head 204; abort protocol"},
	{"8.2.2", "connection", "GET", rawHeaders(1, true, with(status200, "connection", "close")...), malformed(), "abort protocol"},
	{"8.2.1", "upper-case name", "GET", rawHeaders(1, true, with(status200, "X-A", "1")...), malformed(), "abort protocol"},
	{"8.3.2", "no :status", "GET", rawHeaders(1, true, "a", "b"), malformed(), "abort protocol"},
	{"8.3.2", ":status twice", "GET", rawHeaders(1, true, with(status200, status200...)...), malformed(), "abort protocol"},
	{"8.3.2", ":status of two digits", "GET", rawHeaders(1, true, ":status", "20"), malformed(), "abort protocol"},
	{"8.3.2", ":status of letters", "GET", rawHeaders(1, true, ":status", "2xx"), malformed(), "abort protocol"},
	{"8.3.2", ":status 099", "GET", rawHeaders(1, true, ":status", "099"), malformed(), "abort protocol"},
	{"8.3.2", "pseudo-field of requests", "GET", rawHeaders(1, true, with(status200, ":path", "/")...), malformed(), "abort protocol"},
	{"8.6", "101", "GET", rawHeaders(1, false, ":status", "101"), malformed(), "abort protocol"},
	{"8.5", "tunnel", "CONNECT", rawHeaders(1, false, with(status200, "content-length", "9")...) + rawData(1, false, "abc") + rawData(1, true, ""), fine(), "head 200; data 3; data 0 end"},
	{"8.5", "HEADERS in a tunnel", "CONNECT", resp + rawHeaders(1, true, "a", "b"), malformed(), "head 200; abort protocol"},
	{"8.5", "refused tunnel with trailers", "CONNECT", rawHeaders(1, false, ":status", "403") + rawHeaders(1, true, "a", "b"), fine(), "head 403; trailers  a=b"},
	{"10.5.1", "head too large", "GET", rawHeaders(1, true, with(status200, "a", strings.Repeat("x", 2048))...), reset(1, ErrCodeCancel), "abort too large"},
}

func TestClientConformance(t *testing.T) {
	for _, tt := range clientCases {
		t.Run(tt.section+" "+tt.name, func(t *testing.T) {
			d := newDesk(t, Config{HeadBytesMax: 2048})
			h := request(tt.method, "/")
			r := d.open(h, tt.method != "POST" && tt.method != "CONNECT")
			d.frames()
			d.feed(tt.in)
			fs := d.frames()
			found, what := hasFault(fs, tt.want.id, tt.want.code)
			if found != tt.want.fault {
				t.Errorf("fault is %v; %s", found, what)
			}
			if d.conn.closed != (tt.want.fault && tt.want.id == 0) || len(d.dead) == 1 != d.conn.closed {
				t.Errorf("closed is %v, the owner was told %v", d.conn.closed, d.dead)
			}
			if got := strings.Join(r.log, "; "); tt.log != "" && got != tt.log {
				t.Errorf("told %q, want %q", got, tt.log)
			}
		})
	}
}

func TestClientPreface(t *testing.T) {
	d := bareDesk(t, Config{})
	if !strings.HasPrefix(string(d.conn.out), Preface) {
		t.Fatalf("begins with %q", d.conn.out)
	}
	fs := d.frames()
	want := setting(settingEnablePush, 0) + setting(settingInitialWindow, 256<<10) + setting(settingMaxHeadBytes, 64<<10)
	if fs[0].typ != frameSettings || string(fs[0].payload) != want {
		t.Errorf("SETTINGS are %q", fs[0].payload)
	}
	if fs[1].typ != frameWindowUpdate || string(fs[1].payload) != u32(1<<20-initialWindow) {
		t.Errorf("the second frame is %+v", fs[1])
	}
	d.feed(raw(framePing, 0, 0, "12345678"))
	if found, what := hasFault(d.frames(), 0, ErrCodeProtocol); !found {
		t.Errorf("a server that does not begin with SETTINGS: %s", what)
	}
}

func TestClientRoom(t *testing.T) {
	d := bareDesk(t, Config{MaxStreams: 200})
	if n := d.c.Available(); n != unknownMaxStreams {
		t.Errorf("%d before SETTINGS", n)
	}
	d.feed(rawSettings(setting(settingMaxStreams, 2)))
	if n := d.c.Available(); n != 2 || d.room != 1 {
		t.Errorf("%d after SETTINGS, owner told %d times", n, d.room)
	}
	a := d.open(request("GET", "/"), true)
	if _, ok := d.c.Open(new(recorder)); !ok {
		t.Error("no place for a second exchange")
	}
	if _, ok := d.c.Open(new(recorder)); ok || d.c.Available() != 0 {
		t.Error("a place beyond the limit")
	}
	d.feed(rawHeaders(1, true, status200...))
	if n := d.c.Available(); n != 1 || d.room != 2 || !a.ended {
		t.Errorf("%d after a response, owner told %d times", n, d.room)
	}
	d.feed(rawSettings(setting(settingMaxStreams, 0)))
	if n := d.c.Available(); n != 0 {
		t.Errorf("%d after the limit became 0", n)
	}
	d.feed(rawSettings(setting(settingMaxStreams, 1000)))
	if n := d.c.Available(); n != 199 || d.room != 3 {
		t.Errorf("%d after the limit was lifted, owner told %d times", n, d.room)
	}
}

// TestClientOpenOrder: identifiers follow the heads, not the calls of Open, and a place that is not used is given back.
func TestClientOpenOrder(t *testing.T) {
	d := newDesk(t, Config{}, setting(settingMaxStreams, 3))
	var rs [3]recorder
	var ss [3]stream.Sender
	for i := range rs {
		ss[i], _ = d.c.Open(&rs[i])
	}
	ss[0].Reset(stream.AbortLocal)
	ss[2].SendHead(request("GET", "/2"), true)
	ss[1].SendHead(request("GET", "/1"), true)
	if n := d.c.Available(); n != 1 || d.c.Active() != 2 {
		t.Errorf("%d available, %d open", n, d.c.Active())
	}
	d.feed(rawHeaders(1, true, status200...))
	if len(rs[2].log) != 1 || len(rs[1].log)+len(rs[0].log) != 0 {
		t.Errorf("the first identifier went to %q, %q, %q", rs[0].log, rs[1].log, rs[2].log)
	}
	if fs := d.frames(); len(only(fs, frameReset)) != 0 {
		t.Errorf("a stream that was never open was reset: %+v", fs)
	}
}

func TestClientResets(t *testing.T) {
	tests := []struct {
		name string
		in   string
		want stream.Abort
		code ErrCode
	}{
		{"cancelled", rawReset(1, ErrCodeCancel), stream.AbortReset, ErrCodeCancel},
		{"inner error", rawReset(1, ErrCodeInternal), stream.AbortReset, ErrCodeInternal},
		{"unknown code", rawReset(1, 0x99), stream.AbortReset, 0x99},
		{"refused", rawReset(1, ErrCodeRefusedStream), stream.AbortRefused, ErrCodeRefusedStream},
		{"no error before the end", rawHeaders(1, false, status200...) + rawReset(1, ErrCodeNo), stream.AbortReset, ErrCodeNo},
		{"no error after the end", rawHeaders(1, true, status200...) + rawReset(1, ErrCodeNo), stream.AbortNone, 0},
		{"cancelled after the end", rawHeaders(1, true, status200...) + rawReset(1, ErrCodeCancel), stream.AbortNone, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t, Config{})
			r := d.open(request("POST", "/"), false)
			d.feed(tt.in)
			d.frames()
			if r.why != tt.want {
				t.Fatalf("told %v", r.log)
			}
			var e *Error
			if tt.want != stream.AbortNone && (!errors.As(r.err, &e) || e.Code != tt.code || !e.Remote || e.Stream != 1) {
				t.Errorf("the error is %v", r.err)
			}
			r.s.SendData([]byte("late"), true)
			r.s.Reset(stream.AbortLocal)
			if fs := d.frames(); len(fs) != 0 || d.c.Active() != 0 {
				t.Errorf("after it we wrote %+v; %d streams are open", fs, d.c.Active())
			}
		})
	}
}

func TestClientGoAway(t *testing.T) {
	var log []string
	d := newDesk(t, Config{})
	d.log = &log
	taken, late := d.open(request("GET", "/"), true), d.open(request("GET", "/"), true)
	unsent := new(recorder)
	s, _ := d.c.Open(unsent)
	for _, r := range []*recorder{taken, late, unsent} {
		r.on = func(_ *recorder, event string) { log = append(log, event) }
	}
	d.feed(raw(frameGoAway, 0, 0, u32(1)+u32(uint32(ErrCodeNo))))
	if want := []string{"draining", "abort refused", "abort refused"}; !cmp.Equal(want, log) {
		t.Fatalf("told %q", log)
	}
	if late.why != stream.AbortRefused || unsent.why != stream.AbortRefused || d.draining[0] != nil {
		t.Errorf("late %v, unsent %v, owner %v", late.err, unsent.err, d.draining)
	}
	s.SendHead(request("GET", "/"), true)
	if _, ok := d.c.Open(new(recorder)); ok || d.c.Available() != 0 || d.conn.closed {
		t.Error("can open after GOAWAY, or is closed already")
	}
	d.feed(rawHeaders(1, true, status200...))
	if !taken.ended || !d.conn.closed || !cmp.Equal(d.dead, []error{nil}) {
		t.Errorf("after the last exchange: %q, closed %v, dead %v", taken.log, d.conn.closed, d.dead)
	}
}

func TestClientGoAwayWithReason(t *testing.T) {
	d := newDesk(t, Config{})
	r := d.open(request("GET", "/"), true)
	d.feed(raw(frameGoAway, 0, 0, u32(0)+u32(uint32(ErrCodeEnhanceYourCalm))+"too_many_pings"))
	var e *Error
	if !errors.As(d.draining[0], &e) || e.Code != ErrCodeEnhanceYourCalm || e.Reason != "too_many_pings" {
		t.Errorf("the owner was told %v", d.draining)
	}
	if r.why != stream.AbortRefused || !errors.As(r.err, &e) || e.Code != ErrCodeEnhanceYourCalm {
		t.Errorf("the exchange was told %v: %v", r.why, r.err)
	}
}

func TestClientDrain(t *testing.T) {
	d := newDesk(t, Config{})
	r := d.open(request("GET", "/"), true)
	d.c.Drain()
	if d.c.Available() != 0 || d.conn.closed {
		t.Fatal("drains badly")
	}
	d.frames()
	d.feed(rawHeaders(1, true, status200...))
	fs := d.frames()
	if !r.ended || !d.conn.closed || len(fs) != 1 || fs[0].typ != frameGoAway || fs[0].code() != ErrCodeNo {
		t.Errorf("ended %v, closed %v, wrote %+v", r.ended, d.conn.closed, fs)
	}
	if d.c.OnClose(nil); len(d.dead) != 1 {
		t.Errorf("the owner was told %v", d.dead)
	}
}

func TestClientIdentifiersEnd(t *testing.T) {
	d := newDesk(t, Config{})
	d.c.lastID = maxStreamID - 2
	r := d.open(request("GET", "/"), true)
	if d.c.Available() != 0 || len(d.draining) != 1 {
		t.Fatalf("%d available, owner told %v", d.c.Available(), d.draining)
	}
	d.feed(rawHeaders(maxStreamID, true, status200...))
	if !r.ended || !d.conn.closed {
		t.Error("the last exchange did not end the connection")
	}
}

func TestClientConnectionLost(t *testing.T) {
	tests := []struct {
		name string
		lose func(c *ClientConn)
		want stream.Abort
	}{
		{"FIN", func(c *ClientConn) { c.OnEOF(); c.OnClose(nil) }, stream.AbortClosed},
		{"RST", func(c *ClientConn) { c.OnClose(errors.New("connection reset by peer")) }, stream.AbortReset},
		{"closed here", func(c *ClientConn) { c.OnClose(nil) }, stream.AbortLocal},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t, Config{})
			open, done, unsent := d.open(request("GET", "/"), true), d.open(request("POST", "/"), false), new(recorder)
			d.c.Open(unsent)
			d.feed(rawHeaders(3, true, status200...))
			tt.lose(d.c)
			if open.why != tt.want || done.why != stream.AbortNone || unsent.why != stream.AbortRefused {
				t.Errorf("open %v, complete %v, unsent %v", open.why, done.why, unsent.why)
			}
			if len(d.dead) != 1 || d.dead[0] == nil || d.c.Err() == nil || d.c.Available() != 0 || d.c.Active() != 0 {
				t.Errorf("owner told %v", d.dead)
			}
			if _, ok := d.c.Open(unsent); ok || d.c.Ping() {
				t.Error("a dead connection is used")
			}
		})
	}
}

func TestPing(t *testing.T) {
	d := newDesk(t, Config{})
	if !d.c.Ping() || d.c.Ping() {
		t.Fatal("the second PING should wait for the first one's answer")
	}
	fs := d.frames()
	if len(fs) != 1 || fs[0].typ != framePing {
		t.Fatalf("wrote %+v", fs)
	}
	d.feed(raw(framePing, flagAck, 0, "unasked!"))
	if d.c.Ping() {
		t.Fatal("another PING's answer counts")
	}
	d.feed(raw(framePing, flagAck, 0, string(fs[0].payload)))
	if !d.c.Ping() {
		t.Fatal("the answer does not count")
	}
}
