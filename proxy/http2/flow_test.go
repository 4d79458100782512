package http2

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// answering opens n requests on b and sends their response heads.
func answering(b *bed, n int) []*recorder {
	b.t.Helper()
	first := uint32(2*len(b.reqs) + 1)
	for i := range n {
		b.feed(rawHeaders(first+uint32(2*i), true, get...))
	}
	rs := b.reqs[len(b.reqs)-n:]
	for _, r := range rs {
		r.s.SendHead(response(200), false)
	}
	b.frames()
	return rs
}

// dataOf adds up the DATA payloads of each stream and checks that no frame is longer than limit.
func dataOf(t *testing.T, fs []sent, limit int) map[uint32]string {
	t.Helper()
	got := map[uint32]string{}
	for _, f := range only(fs, frameData) {
		if f.length > limit {
			t.Fatalf("a DATA frame of %d bytes", f.length)
		}
		got[f.stream] += string(f.payload)
	}
	return got
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>8) ^ byte(i)
	}
	return p
}

// TestSendWindows sends more than the windows allow and opens them bit by bit, in every way that there is.
func TestSendWindows(t *testing.T) {
	b := newBed(t, Config{})
	b.feed(rawSettings(setting(settingInitialWindow, 10)))
	r := answering(b, 1)[0]
	body := pattern(300_000)
	r.s.SendData(body, true)
	var got []byte
	step := func(want int, in ...string) {
		t.Helper()
		b.feed(in...)
		p := dataOf(t, b.frames(), maxFrameSize)[1]
		if len(p) != want {
			t.Fatalf("after %d bytes: %d more, want %d", len(got), len(p), want)
		}
		got = append(got, p...)
	}
	step(10)
	step(5, rawWindow(1, 5))
	step(0, rawSettings(setting(settingInitialWindow, 0))) // the window is -10
	step(0, rawWindow(1, 10))
	step(1, rawWindow(1, 1))
	step(99, rawSettings(setting(settingInitialWindow, 99)))
	step(65535-115, rawWindow(1, 1<<20)) // the connection's window is used up
	step(100_000, rawWindow(0, 100_000))
	step(300_000-165_535, rawWindow(0, 1<<20))
	if !bytes.Equal(got, body) {
		t.Error("the bytes differ")
	}
	if b.s.Active() != 0 || b.s.waiting != 0 {
		t.Errorf("%d open, %d waiting", b.s.Active(), b.s.waiting)
	}
}

func TestSendFrameSize(t *testing.T) {
	for _, tt := range []struct{ setting, want int }{{16384, 16384}, {20000, 20000}, {1 << 20, dataFrameMax}} {
		b := newBed(t, Config{})
		b.feed(rawSettings(setting(settingMaxFrameSize, uint32(tt.setting)), setting(settingInitialWindow, 1<<20)), rawWindow(0, 1<<20))
		answering(b, 1)[0].s.SendData(pattern(200_000), true)
		fs := only(b.frames(), frameData)
		if fs[0].length != tt.want || len(dataOf(t, fs, tt.want)[1]) != 200_000 || fs[len(fs)-1].flags != flagEndStream {
			t.Errorf("SETTINGS_MAX_FRAME_SIZE %d: frames of %d bytes", tt.setting, fs[0].length)
		}
	}
}

// TestReceiveFrameSize: the peer is told how long its frames may be, and held to it.
func TestReceiveFrameSize(t *testing.T) {
	b := bareBed(t, Config{FrameBytes: 20_000})
	if said := only(b.frames(), frameSettings)[0].payload; !strings.Contains(string(said), setting(settingMaxFrameSize, 20_000)) {
		t.Errorf("SETTINGS say %x", said)
	}
	b.feed(Preface, rawSettings(), open1, rawData(1, false, strings.Repeat("x", 20_000)))
	if len(b.errs) > 0 || len(b.reqs[0].body) != 20_000 {
		t.Errorf("%d bytes arrived, %v", len(b.reqs[0].body), b.errs)
	}
	b.feed(rawData(1, false, strings.Repeat("x", 20_001)))
	if len(b.errs) != 1 || !strings.Contains(b.errs[0], ErrCodeFrameSize.String()) {
		t.Errorf("a frame that is too long: %v", b.errs)
	}
}

// TestSendTrailersWait: trailers go out behind the data that waits, also when the Conn is Full.
func TestSendTrailersWait(t *testing.T) {
	b := newBed(t, Config{})
	r := answering(b, 1)[0]
	b.conn.limit = 1
	b.conn.out = []byte{0}
	r.s.SendData([]byte("hello"), false)
	r.s.SendTrailers(response(0, "grpc-status", "0"))
	r.s.SendData([]byte("late"), true)
	if len(b.conn.out) != 1 {
		t.Fatalf("wrote %q while Full", b.conn.out)
	}
	b.conn.out, b.conn.limit = nil, 0
	b.s.OnDrain()
	fs := b.frames()
	if len(fs) != 2 || string(fs[0].payload) != "hello" || fs[0].flags != 0 || fs[1].typ != frameHeaders || fs[1].flags != flagEndStream|flagEndHeaders {
		t.Fatalf("wrote %+v", fs)
	}
	if b.s.Active() != 0 {
		t.Error("the stream is still open")
	}
}

// TestEndWhileOthersWait: the bare end of one message does not wait for the windows of others.
func TestEndWhileOthersWait(t *testing.T) {
	b := newBed(t, Config{})
	rs := answering(b, 2)
	rs[0].s.SendData(pattern(100_000), true)
	b.frames()
	rs[1].s.SendData(nil, true)
	if fs := b.frames(); len(fs) != 1 || fs[0].stream != 3 || fs[0].flags != flagEndStream {
		t.Fatalf("wrote %+v", fs)
	}
}

func TestFullAndDrain(t *testing.T) {
	b := newBed(t, Config{SendBuffer: 1000})
	b.feed(rawSettings(setting(settingInitialWindow, 0)))
	r := answering(b, 1)[0]
	r.s.SendData(pattern(1000), false)
	if r.s.Full() {
		t.Fatal("Full at the limit")
	}
	r.s.SendData(pattern(1), false)
	if !r.s.Full() {
		t.Fatal("not Full above the limit")
	}
	b.feed(rawWindow(1, 700))
	if !r.s.Full() || r.drained != 0 {
		t.Fatal("drained too early")
	}
	b.feed(rawWindow(1, 100))
	if r.s.Full() || r.drained != 1 {
		t.Fatalf("Full %v, told %d times", r.s.Full(), r.drained)
	}
}

// TestFairness: streams with data take turns, one frame each, whatever the order and size of what was queued.
func TestFairness(t *testing.T) {
	b := newBed(t, Config{})
	b.feed(rawSettings(setting(settingInitialWindow, 1<<20)))
	rs := answering(b, 4)
	rs[0].s.SendData(pattern(65535), false) // uses the connection's window up
	b.frames()
	rs[0].s.SendData(pattern(200_000), true)
	for _, r := range rs[1:] {
		r.s.SendData(pattern(40_000), true)
	}
	b.feed(rawWindow(0, 1<<20))
	var order []uint32
	for _, f := range only(b.frames(), frameData) {
		order = append(order, f.stream)
	}
	want := []uint32{1, 3, 5, 7, 1, 3, 5, 7, 1, 3, 5, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}
	if d := cmp.Diff(want, order); d != "" {
		t.Error(d)
	}
}

// TestFairnessFull: the turns go on where they stopped when the Conn was Full.
func TestFairnessFull(t *testing.T) {
	b := newBed(t, Config{})
	rs := answering(b, 3)
	b.conn.limit, b.conn.out = 1, []byte{0}
	for _, r := range rs {
		r.s.SendData(pattern(20_000), true)
	}
	var order []uint32
	for range 6 {
		b.conn.out = nil
		b.s.OnDrain()
		for _, f := range only(b.frames(), frameData) {
			order = append(order, f.stream)
		}
	}
	if d := cmp.Diff([]uint32{1, 3, 5, 1, 3, 5}, order); d != "" {
		t.Error(d)
	}
}

// TestDrainSendsMore: a Receiver that sends from within OnDrain gets its turn like the others, and order is kept.
func TestDrainSendsMore(t *testing.T) {
	b := newBed(t, Config{SendBuffer: 1000})
	rs := answering(b, 2)
	b.conn.limit, b.conn.out = 1, []byte{0}
	var want []byte
	rs[0].on = func(r *recorder, event string) {
		for event == "drain" && !r.s.Full() && len(want) < 30_000 {
			p := bytes.Repeat([]byte{byte(len(want) >> 8)}, 5000)
			want = append(want, p...)
			r.s.SendData(p, len(want) == 30_000)
		}
	}
	p := pattern(5000)
	want = append(want, p...)
	rs[0].s.SendData(p, false)
	rs[1].s.SendData(pattern(30_000), true)
	b.conn.limit, b.conn.out = 0, nil
	b.s.OnDrain()
	got := dataOf(t, b.frames(), maxFrameSize)
	if got[1] != string(want) || got[3] != string(pattern(30_000)) || b.s.Active() != 0 {
		t.Errorf("%d and %d bytes, %d open", len(got[1]), len(got[3]), b.s.Active())
	}
}

// credits adds up the WINDOW_UPDATEs of a stream.
func credits(fs []sent, id uint32) (sum, n int) {
	for _, f := range only(fs, frameWindowUpdate) {
		if f.stream == id {
			sum += int(f.payload[1])<<16 | int(f.payload[2])<<8 | int(f.payload[3])
			n++
		}
	}
	return sum, n
}

func TestReceiveWindows(t *testing.T) {
	b := newBed(t, Config{StreamWindow: 100_000, ConnWindow: 400_000})
	b.feed(rawHeaders(1, false, post...))
	chunk := strings.Repeat("x", 10_000)
	var stream1, conn, updates int
	for range 40 {
		b.feed(rawData(1, false, chunk))
		fs := b.frames()
		s, n := credits(fs, 1)
		c, _ := credits(fs, 0)
		stream1, conn, updates = stream1+s, conn+c, updates+n
	}
	if stream1 != 390_000 || updates != 13 {
		t.Errorf("the stream was given %d bytes in %d updates", stream1, updates)
	}
	if conn != 400_000 {
		t.Errorf("the connection was given %d bytes", conn)
	}
	b.feed(rawData(1, true, chunk))
	if s, _ := credits(b.frames(), 1); s != 0 || len(b.reqs[0].body) != 410_000 {
		t.Errorf("%d bytes given after the end, %d received", s, len(b.reqs[0].body))
	}
}

// TestReceivePadding: padding counts for the windows and is given back without the Receiver.
func TestReceivePadding(t *testing.T) {
	b := newBed(t, Config{StreamWindow: 100_000, ConnWindow: 100_000})
	b.feed(rawHeaders(1, false, post...))
	for range 200 {
		b.feed(raw(frameData, flagPadded, 1, "\xff"+"y"+strings.Repeat("\x00", 255)))
		b.feed(raw(frameData, flagPadded, 1, "\xff"+strings.Repeat("\x00", 255)))
	}
	fs := b.frames()
	s, _ := credits(fs, 1)
	c, _ := credits(fs, 0)
	if b.conn.closed || s < 75_000 || c < 75_000 || len(b.reqs[0].body) != 200 {
		t.Errorf("%d and %d bytes given, %d received: %v", s, c, len(b.reqs[0].body), b.s.Err())
	}
}

// TestPause: a paused Receiver is told nothing, the stream's window is withheld,
// the connection's is not; Resume delivers in order, the end and trailers last.
func TestPause(t *testing.T) {
	b := newBed(t, Config{StreamWindow: 100_000, ConnWindow: 100_000})
	b.on = func(r *recorder, event string) {
		if strings.HasPrefix(event, "head") {
			r.s.Pause()
		}
	}
	b.feed(rawHeaders(1, false, post...))
	body := pattern(90_000)
	for p := body; len(p) > 0; p = p[10_000:] {
		b.feed(rawData(1, false, string(p[:10_000])))
	}
	fs := b.frames()
	r := b.reqs[0]
	s, _ := credits(fs, 1)
	c, _ := credits(fs, 0)
	if len(r.log) != 1 || s != 0 || c != 90_000 || b.s.kept != 90_000 {
		t.Fatalf("told %q, given %d and %d", r.log, s, c)
	}
	r.s.Resume()
	s, _ = credits(b.frames(), 1)
	if !bytes.Equal(r.body, body) || s != 90_000 || b.s.kept != 0 {
		t.Fatalf("%d bytes after Resume, %d given", len(r.body), s)
	}
	r.s.Pause()
	b.feed(rawData(1, false, "tail"), rawHeaders(1, true, "x-sum", "1"))
	if r.ended {
		t.Fatal("the end came while paused")
	}
	r.s.Resume()
	if d := cmp.Diff([]string{"data 4", "trailers  x-sum=1"}, r.log[len(r.log)-2:]); d != "" {
		t.Fatal(d)
	}
}

// TestPauseAgain: a Receiver that pauses from within OnData stops the delivery of what is kept.
func TestPauseAgain(t *testing.T) {
	b := newBed(t, Config{})
	b.on = func(r *recorder, _ string) { r.s.Pause() }
	b.feed(rawHeaders(1, false, post...), rawData(1, false, strings.Repeat("x", 16000)), rawData(1, true, strings.Repeat("x", 16000)))
	r := b.reqs[0]
	want := []string{"head POST http://a.test/"}
	for _, event := range []string{"data 8192", "data 8192", "data 8192", "data 7424 end", ""} {
		if event != "" {
			want = append(want, event)
		}
		r.s.Resume()
		if d := cmp.Diff(want, r.log); d != "" {
			t.Fatal(d)
		}
	}
}

func TestPauseBareEnd(t *testing.T) {
	b := newBed(t, Config{})
	b.on = func(r *recorder, event string) {
		if strings.HasPrefix(event, "head") {
			r.s.Pause()
		}
	}
	b.feed(rawHeaders(1, false, post...), rawData(1, true, ""))
	b.reqs[0].s.Resume()
	if d := cmp.Diff([]string{"head POST http://a.test/", "data 0 end"}, b.reqs[0].log); d != "" {
		t.Fatal(d)
	}
}

// TestPauseResponse: a whole response that is kept outlives its stream and its connection.
func TestPauseResponse(t *testing.T) {
	d := newDesk(t, Config{})
	r := d.open(request("GET", "/"), true)
	r.s.Pause()
	d.feed(rawHeaders(1, false, status200...), rawData(1, false, "hello"), rawHeaders(1, true, "grpc-status", "0"), rawReset(1, ErrCodeNo))
	d.c.OnEOF()
	if d := cmp.Diff([]string{"head 200"}, r.log); d != "" {
		t.Fatal(d)
	}
	r.s.Resume()
	if d := cmp.Diff([]string{"head 200", "data 5", "trailers  grpc-status=0"}, r.log); d != "" {
		t.Fatal(d)
	}
}

// TestKeptLimit: what is kept for paused Receivers is bounded: beyond it the connection's window is withheld, too.
func TestKeptLimit(t *testing.T) {
	const connWindow = 65535
	b := newBed(t, Config{StreamWindow: 200_000, ConnWindow: connWindow})
	b.on = func(r *recorder, _ string) { r.s.Pause() }
	window, sum := connWindow, 0
	chunk := strings.Repeat("x", 10_000)
	for id := uint32(1); window >= len(chunk); id += 2 {
		b.feed(rawHeaders(id, false, post...))
		for n := 0; n+len(chunk) <= 200_000 && window >= len(chunk); n += len(chunk) {
			b.feed(rawData(id, false, chunk))
			window, sum = window-len(chunk), sum+len(chunk)
			c, _ := credits(b.frames(), 0)
			window += c
		}
		if sum > 2*keptFactor*connWindow {
			t.Fatalf("%d bytes are kept", sum)
		}
	}
	last := uint32(2*len(b.reqs) + 1)
	b.feed(rawHeaders(last, false, post...), rawData(last, false, strings.Repeat("x", window)), rawData(last, false, "x"))
	if found, what := hasFault(b.frames(), 0, ErrCodeFlowControl); !found {
		t.Fatalf("DATA beyond the connection's window: %s", what)
	}
}

// TestKeptReleased: delivery, a reset and the end of the response each give withheld windows back.
func TestKeptReleased(t *testing.T) {
	for name, release := range map[string]func(r *recorder){
		"Resume": func(r *recorder) { r.on = nil; r.s.Resume() },
		"Reset":  func(r *recorder) { r.s.Reset(stream.AbortLocal) },
		"answer": func(r *recorder) { r.s.SendHead(response(413), true) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, Config{StreamWindow: 1 << 20, ConnWindow: 65535})
			b.on = func(r *recorder, _ string) { r.s.Pause() }
			b.feed(rawHeaders(1, false, post...))
			window := 65535
			for window >= 10_000 {
				b.feed(rawData(1, false, strings.Repeat("x", 10_000)))
				c, _ := credits(b.frames(), 0)
				window += c - 10_000
			}
			release(b.reqs[0])
			b.feed(raw(framePing, 0, 0, "12345678"))
			if c, _ := credits(b.frames(), 0); window+c < 65535*3/4 || b.s.kept != 0 || b.s.withheld != 0 {
				t.Errorf("the window is %d; %d kept, %d withheld", window+c, b.s.kept, b.s.withheld)
			}
			if n := b.s.cfg.Memory.spares; n == 0 || n > spareChunksMax {
				t.Errorf("%d spare chunks", n)
			}
		})
	}
}

// TestDiscardedCounts: DATA for streams that are gone counts for the connection's window and is given back.
func TestDiscardedCounts(t *testing.T) {
	b := newBed(t, Config{ConnWindow: 65535})
	b.feed(rawHeaders(1, false, post...))
	b.reqs[0].s.Reset(stream.AbortLocal)
	b.frames()
	b.feed(strings.Repeat(rawData(1, false, strings.Repeat("x", 10_000)), 6))
	if c, _ := credits(b.frames(), 0); c != 60_000 {
		t.Errorf("%d bytes given back", c)
	}
}

// TestSmallStreamWindow: a window of ours below the initial one counts from the peer's ACK on.
func TestSmallStreamWindow(t *testing.T) {
	b := bareBed(t, Config{StreamWindow: 1000})
	b.on = func(r *recorder, _ string) { r.s.Pause() }
	b.feed(Preface, rawSettings(), rawHeaders(1, false, post...), rawData(1, false, strings.Repeat("x", 5000)))
	b.feed(raw(frameSettings, flagAck, 0, ""), rawHeaders(3, false, post...), rawData(3, false, strings.Repeat("x", 1000)))
	if fs := only(b.frames(), frameReset); len(fs) != 0 {
		t.Fatalf("wrote %+v", fs)
	}
	b.feed(rawData(3, false, "x"))
	if found, what := hasFault(b.frames(), 3, ErrCodeFlowControl); !found {
		t.Fatal(what)
	}
}

// TestStall: Tick resets exchanges that have had no window for too long, but no tunnels and none that are idle.
func TestStall(t *testing.T) {
	b := newBed(t, Config{StallTimeout: 10 * time.Second})
	b.feed(rawSettings(setting(settingInitialWindow, 0)))
	b.feed(rawHeaders(1, true, get...), rawHeaders(3, true, get...), rawHeaders(5, false, ":method", "CONNECT", ":authority", "a:1"), rawHeaders(7, true, get...))
	stalled, slow, tunnel, idle := b.reqs[0], b.reqs[1], b.reqs[2], b.reqs[3]
	for _, r := range b.reqs {
		r.s.SendHead(response(200), false)
	}
	for _, r := range []*recorder{stalled, slow, tunnel} {
		r.s.SendData(pattern(100), false)
	}
	b.frames()
	for range 3 {
		b.time = b.time.Add(4 * time.Second)
		b.s.Tick()
		b.feed(rawWindow(3, 10))
	}
	if stalled.why != stream.AbortTimeout {
		t.Errorf("stalled: %q", stalled.log)
	}
	if slow.why+tunnel.why+idle.why != stream.AbortNone || b.s.Active() != 3 {
		t.Errorf("slow %q, tunnel %q, idle %q", slow.log, tunnel.log, idle.log)
	}
	if found, what := hasFault(b.frames(), 1, ErrCodeCancel); !found {
		t.Error(what)
	}
}
