package http2

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

func TestServerResponse(t *testing.T) {
	b := newBed(t, Config{})
	b.feed(rawHeaders(1, true, get...))
	s := b.reqs[0].s
	s.SendData([]byte("too early"), false)
	s.SendTrailers(response(0))
	s.SendInterim(response(103, "link", "x"))
	s.SendInterim(response(200))
	s.SendHead(response(200, "Content-Type", "application/grpc"), false)
	s.SendInterim(response(103))
	s.SendHead(response(500), true)
	s.SendData(nil, false)
	s.SendData([]byte("body"), false)
	s.SendTrailers(response(0, "grpc-status", "0"))
	s.SendData([]byte("late"), true)
	s.SendTrailers(response(0))
	s.Reset(stream.AbortLocal)
	var got []string
	for _, f := range b.frames() {
		got = append(got, []string{"DATA", "HEADERS"}[f.typ]+map[frameFlags]string{0: "", 4: "", 5: " end"}[f.flags])
	}
	if d := cmp.Diff([]string{"HEADERS", "HEADERS", "DATA", "HEADERS end"}, got); d != "" {
		t.Error(d)
	}
	if b.s.Active() != 0 {
		t.Error("the stream is open")
	}
}

// TestReleased: an exchange serves again when it has left the connection, its ring and the stack, and not before.
func TestReleased(t *testing.T) {
	b := newBed(t, Config{})
	spare := func() int { return len(b.s.cfg.Memory.exchanges) }
	inside := -1
	b.on = func(r *recorder, _ string) {
		r.s.SendHead(response(200), true)
		r.s.Release()
		inside = spare()
	}
	b.feed(rawHeaders(1, true, get...))
	if inside != 0 || spare() != 1 {
		t.Errorf("%d to reuse while it was at work, %d afterwards", inside, spare())
	}
	b.on = nil
	b.feed(rawHeaders(3, true, get...))
	r := b.reqs[1]
	if r.s != b.reqs[0].s || spare() != 0 {
		t.Error("it is not used again")
	}
	r.s.SendHead(response(200), false)
	r.s.SendData(pattern(initialWindow+1), true)
	r.s.Release()
	b.feed(rawHeaders(5, true, get...)) // while a byte of the answer waits for the window
	if b.reqs[2].s == r.s {
		t.Fatal("it is used again before its stream has ended")
	}
	b.feed(rawWindow(0, 10), rawWindow(3, 10))
	b.feed(rawHeaders(7, true, get...))
	if b.reqs[3].s != r.s {
		t.Error("it is not used again after its stream has ended")
	}
	b.s.invariants(t)
}

// TestTrailersOnly: gRPC's short form of an error is one HEADERS frame with END_STREAM.
func TestTrailersOnly(t *testing.T) {
	b := newBed(t, Config{})
	b.feed(rawHeaders(1, true, with(post, "te", "trailers", "content-type", "application/grpc")...))
	b.reqs[0].s.SendHead(response(200, "content-type", "application/grpc", "grpc-status", "12"), true)
	if fs := b.frames(); len(fs) != 1 || fs[0].typ != frameHeaders || fs[0].flags != flagEndHeaders|flagEndStream {
		t.Errorf("wrote %+v", fs)
	}
}

// TestEarlyResponse: a response that does not wait for the request ends the
// exchange; the rest of a short request is thrown away, any other is refused politely.
func TestEarlyResponse(t *testing.T) {
	tests := []struct {
		name    string
		head    []string
		rest    string
		refused bool
	}{
		{"unknown length", post, rawData(1, true, "x"), true},
		{"long", with(post, "content-length", "262145"), rawData(1, false, "x"), true},
		{"short", with(post, "content-length", "262144"), strings.Repeat(rawData(1, false, strings.Repeat("x", 16384)), 15) + rawData(1, true, strings.Repeat("x", 16381)), false},
		{"short with trailers", with(post, "content-length", "4"), rawData(1, false, "x") + rawHeaders(1, true, "a", "b"), false},
		{"short and given up", with(post, "content-length", "4"), rawReset(1, ErrCodeCancel), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, Config{})
			b.feed(rawHeaders(1, false, tt.head...))
			r := b.reqs[0]
			r.s.Pause()
			b.feed(rawData(1, false, "abc"))
			r.s.SendHead(response(403), true)
			if found, what := hasFault(b.frames(), 1, ErrCodeNo); found != tt.refused {
				t.Errorf("refused %v; %s", found, what)
			}
			b.feed(tt.rest)
			if fs := b.frames(); len(r.log) != 1 || b.s.Active()+b.s.kept != 0 || len(only(fs, frameReset)) != 0 {
				t.Errorf("told %q, %d open, wrote %+v", r.log, b.s.Active(), fs)
			}
		})
	}
}

// TestDeafWhileFlushing: from the end of the response on the Receiver is told nothing, though bytes still wait.
func TestDeafWhileFlushing(t *testing.T) {
	for name, in := range map[string]string{
		"more of the request": rawData(1, true, "x"),
		"trailers":            rawHeaders(1, true, "a", "b"),
		"reset":               rawReset(1, ErrCodeCancel),
		"window":              rawWindow(1, 1<<20) + rawWindow(0, 1<<20),
		"connection error":    raw(framePing, 0, 1, ""),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, Config{SendBuffer: 10})
			b.feed(rawSettings(setting(settingInitialWindow, 5)), rawHeaders(1, false, post...))
			r := b.reqs[0]
			r.s.SendHead(response(200), false)
			r.s.SendData(pattern(100), true)
			told := len(r.log)
			b.feed(in)
			b.s.OnClose(nil)
			if len(r.log) != told {
				t.Errorf("told %q", r.log[told:])
			}
		})
	}
}

// TestServerCancelled: the client's reset reaches the Receiver also after the request's end.
func TestServerCancelled(t *testing.T) {
	b := newBed(t, Config{})
	b.feed(rawHeaders(1, true, get...))
	r := b.reqs[0]
	r.s.SendHead(response(200), false)
	b.frames()
	b.feed(rawReset(1, ErrCodeCancel))
	var e *Error
	if r.why != stream.AbortReset || !errors.As(r.err, &e) || e.Code != ErrCodeCancel || !e.Remote {
		t.Fatalf("told %q, %v", r.log, r.err)
	}
	r.s.SendData([]byte("late"), false)
	r.s.SendTrailers(response(0))
	r.s.Pause()
	r.s.Resume()
	r.s.Reset(stream.AbortLocal)
	if fs := b.frames(); len(fs) != 0 || r.s.Full() {
		t.Errorf("wrote %+v", fs)
	}
}

func TestResetCodes(t *testing.T) {
	server := []struct {
		why    stream.Abort
		tunnel bool
		want   ErrCode
	}{
		{stream.AbortRefused, false, ErrCodeRefusedStream},
		{stream.AbortLocal, false, ErrCodeCancel},
		{stream.AbortTimeout, false, ErrCodeCancel},
		{stream.AbortClosed, false, ErrCodeInternal},
		{stream.AbortReset, false, ErrCodeInternal},
		{stream.AbortReset, true, ErrCodeConnect},
	}
	for _, tt := range server {
		b := newBed(t, Config{})
		if tt.tunnel {
			b.feed(rawHeaders(1, false, ":method", "CONNECT", ":authority", "a:1"))
		} else {
			b.feed(rawHeaders(1, false, post...))
		}
		b.reqs[0].s.Reset(tt.why)
		if found, what := hasFault(b.frames(), 1, tt.want); !found {
			t.Errorf("server, %v: %s", tt.why, what)
		}
		told := len(b.reqs[0].log)
		b.feed(rawData(1, true, "x"))
		if len(b.reqs[0].log) != told {
			t.Errorf("told %q after Reset", b.reqs[0].log)
		}
	}
	for _, why := range []stream.Abort{stream.AbortLocal, stream.AbortReset, stream.AbortRefused} {
		d := newDesk(t, Config{})
		d.open(request("GET", "/"), true).s.Reset(why)
		if found, what := hasFault(d.frames(), 1, ErrCodeCancel); !found {
			t.Errorf("client, %v: %s", why, what)
		}
	}
}

// TestTunnel: both directions of a CONNECT end on their own, and only then is the exchange over.
func TestTunnel(t *testing.T) {
	b := newBed(t, Config{})
	b.feed(rawHeaders(1, false, ":method", "CONNECT", ":authority", "10.0.0.1:80"), rawData(1, false, "early"))
	r := b.reqs[0]
	r.s.SendHead(response(200), false)
	r.s.SendData([]byte("down"), true)
	b.feed(rawData(1, false, "more"))
	if b.s.Active() != 1 || string(r.body) != "earlymore" {
		t.Fatalf("after our end: %q", r.log)
	}
	b.feed(rawData(1, true, ""))
	if b.s.Active() != 0 || !r.ended || len(only(b.frames(), frameReset)) != 0 {
		t.Errorf("after both ends: %q", r.log)
	}

	b.feed(rawHeaders(3, false, ":method", "CONNECT", ":authority", "10.0.0.1:80"))
	b.reqs[1].s.SendHead(response(503), true)
	b.feed(rawData(3, true, "late"))
	if r := b.reqs[1]; len(r.log) != 1 || b.s.Active() != 0 {
		t.Errorf("a refused tunnel: told %q", r.log)
	}
}

// TestClientTunnelReset: a tunnel whose other direction has ended is still told of a reset.
func TestClientTunnelReset(t *testing.T) {
	d := newDesk(t, Config{})
	r := d.open(request("CONNECT", ""), false)
	d.feed(rawHeaders(1, false, status200...), rawData(1, true, ""))
	r.s.SendData([]byte("up"), false)
	d.feed(rawReset(1, ErrCodeConnect))
	if r.why != stream.AbortReset {
		t.Errorf("told %q", r.log)
	}
}

// TestResetInCallbacks: an exchange may be given up from within any callback.
func TestResetInCallbacks(t *testing.T) {
	in := rawHeaders(1, false, post...) + rawData(1, false, "x") + rawHeaders(1, true, "a", "b")
	for _, at := range []string{"head POST http://a.test/", "data 1", "trailers  a=b"} {
		b := newBed(t, Config{})
		b.on = func(r *recorder, event string) {
			if event == at {
				r.s.Reset(stream.AbortLocal)
			}
		}
		b.feed(in, rawHeaders(3, true, get...))
		if r := b.reqs[0]; r.log[len(r.log)-1] != at || len(b.reqs) != 2 || b.s.Active() != 1 {
			t.Errorf("%s: told %q, %d open", at, r.log, b.s.Active())
		}
	}
}

func TestServerConnectionLost(t *testing.T) {
	tests := []struct {
		name string
		lose func(b *bed)
		want stream.Abort
	}{
		{"FIN", func(b *bed) { b.s.OnEOF() }, stream.AbortClosed},
		{"RST", func(b *bed) { b.s.OnClose(errors.New("connection reset by peer")) }, stream.AbortReset},
		{"closed here", func(b *bed) { b.s.OnClose(nil) }, stream.AbortLocal},
		{"connection error", func(b *bed) { b.feed(raw(framePing, 0, 1, "")) }, stream.AbortProtocol},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, Config{})
			b.feed(rawHeaders(1, false, post...), rawHeaders(3, true, get...))
			tt.lose(b)
			for _, r := range b.reqs {
				if r.why != tt.want {
					t.Errorf("told %q", r.log)
				}
				r.s.SendHead(response(200), true)
			}
			b.s.Drain()
			b.s.Tick()
			b.feed(rawHeaders(5, true, get...))
			b.s.OnEOF()
			b.s.OnClose(nil)
			if len(b.reqs) != 2 || len(only(b.frames(), frameHeaders)) != 0 || b.s.Err() == nil {
				t.Error("a dead connection works")
			}
		})
	}
}

func TestServerDrain(t *testing.T) {
	b := newBed(t, Config{})
	b.on = ok
	b.feed(rawHeaders(1, false, post...))
	b.s.Drain()
	b.s.Drain()
	fs := b.frames()
	if len(fs) != 2 || fs[0].typ != frameGoAway || string(fs[0].payload) != u32(maxStreamID)+u32(0) || fs[1].typ != framePing {
		t.Fatalf("wrote %+v", fs)
	}
	// The client opened stream 3 before it knew, and 5 though it knew.
	b.feed(rawHeaders(3, false, post...), raw(framePing, flagAck, 0, string(fs[1].payload)))
	if fs := b.frames(); len(fs) != 1 || fs[0].typ != frameGoAway || string(fs[0].payload) != u32(3)+u32(0) {
		t.Fatalf("wrote %+v", fs)
	}
	b.feed(rawHeaders(5, false, post...), rawData(5, false, "x"), rawHeaders(5, true, "a", "b"))
	if len(b.reqs) != 2 || b.conn.closed {
		t.Fatalf("%d requests, closed %v", len(b.reqs), b.conn.closed)
	}
	b.feed(rawData(1, true, ""))
	if b.conn.closed {
		t.Fatal("closed before the last response")
	}
	b.feed(rawData(3, true, ""))
	if !b.conn.closed || b.s.Err() != nil || len(b.errs) != 0 {
		t.Errorf("closed %v, %v, owner told %q", b.conn.closed, b.s.Err(), b.errs)
	}
	if fs := only(b.frames(), frameHeaders); len(fs) != 2 {
		t.Errorf("%d responses", len(fs))
	}
}

func TestServerDrainIdle(t *testing.T) {
	b := newBed(t, Config{})
	b.s.Drain()
	b.feed(raw(framePing, flagAck, 0, string(pingDrain[:])))
	if !b.conn.closed {
		t.Error("an idle connection stays open")
	}
}

func TestServerOwner(t *testing.T) {
	b := newBed(t, Config{MaxStreams: 1, HeadBytesMax: 200})
	b.feed(rawHeaders(1, false, get[2:]...), rawHeaders(3, false, post...), rawHeaders(5, false, post...))
	b.reqs[0].s.Reset(stream.AbortLocal)
	b.feed(rawHeaders(7, true, with(get, "a", "0123456789012345678901234567890123456789")...), raw(framePing, 0, 1, "12345678"))
	want := []string{
		"http2 stream 1: sent PROTOCOL_ERROR: a request without a valid :method",
		"http2 stream 5: sent REFUSED_STREAM: more streams than SETTINGS_MAX_CONCURRENT_STREAMS",
		"http2 stream 7: sent NO_ERROR: the head is too large; answered 431",
		"http2 connection: sent PROTOCOL_ERROR: PING on a stream",
	}
	if d := cmp.Diff(want, b.errs); d != "" {
		t.Error(d)
	}
}
