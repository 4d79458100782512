package http2

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

func calm(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == ErrCodeEnhanceYourCalm
}

func odd(i int) uint32 { return uint32(2*i + 1) }

var guardCases = []struct {
	name   string
	n      int
	every  time.Duration // between repetitions
	repeat func(i int) string
	calm   bool
}{
	{"rapid reset", 600, 0, func(i int) string { return rawHeaders(odd(i), true, get...) + rawReset(odd(i), ErrCodeCancel) }, true},
	{"some resets at once", 400, 0, func(i int) string { return rawHeaders(odd(i), true, get...) + rawReset(odd(i), ErrCodeCancel) }, false},
	{"a third is reset", 4000, 0, func(i int) string {
		if i%3 == 0 {
			return rawHeaders(odd(i), true, get...) + rawReset(odd(i), ErrCodeCancel)
		}
		return rawHeaders(odd(i), true, with(get, "x-answer", "1")...)
	}, false},
	{"resets over time", 4000, 20 * time.Millisecond, func(i int) string { return rawHeaders(odd(i), true, get...) + rawReset(odd(i), ErrCodeCancel) }, false},
	{"malformed requests", 600, 0, func(i int) string { return rawHeaders(odd(i), true, get[2:]...) }, true},
	{"streams made to be reset", 600, 0, func(i int) string { return rawHeaders(odd(i), false, post...) + rawWindow(odd(i), 0) }, true},
	{"requests too large", 600, 0, func(i int) string { return rawHeaders(odd(i), true, with(get, "a", strings.Repeat("x", 2000))...) }, true},
	{"requests beyond MAX_CONCURRENT_STREAMS", 700, 0, func(i int) string { return rawHeaders(odd(i), true, get...) }, true},
	{"PING", 1100, 0, func(int) string { return raw(framePing, 0, 0, "12345678") }, true},
	{"PING over time", 3000, 6 * time.Millisecond, func(int) string { return raw(framePing, 0, 0, "12345678") }, false},
	{"PING for each DATA frame", 3000, 0, func(i int) string {
		if i == 0 {
			return rawHeaders(1, false, post...)
		}
		return rawData(1, false, "x") + raw(framePing, 0, 0, "12345678")
	}, false},
	{"answers to PINGs that were not sent", 1100, 0, func(int) string { return raw(framePing, flagAck, 0, "12345678") }, true},
	{"SETTINGS", 110, 0, func(i int) string { return rawSettings(setting(settingInitialWindow, uint32(i))) }, true},
	{"SETTINGS acknowledged", 1100, 0, func(int) string { return raw(frameSettings, flagAck, 0, "") }, true},
	{"PRIORITY", 1100, 0, func(i int) string { return raw(framePriority, 0, odd(i), "\x00\x00\x00\x00\x10") }, true},
	{"GOAWAY", 1100, 0, func(int) string { return raw(frameGoAway, 0, 0, u32(0)+u32(0)) }, true},
	{"unknown frames", 1100, 0, func(int) string { return raw(0x42, 0, 0, "") }, true},
	{"resets of a closed stream", 1100, 0, func(i int) string {
		if i == 0 {
			return rawHeaders(1, true, with(get, "x-answer", "1")...)
		}
		return rawReset(1, ErrCodeCancel)
	}, true},
	{"WINDOW_UPDATE", 2100, 0, func(int) string { return rawWindow(0, 1) }, true},
	{"empty DATA", 110, 0, func(i int) string {
		if i == 0 {
			return rawHeaders(1, false, post...)
		}
		return rawData(1, false, "")
	}, true},
	{"padding only", 110, 0, func(i int) string {
		if i == 0 {
			return rawHeaders(1, false, post...)
		}
		return raw(frameData, flagPadded, 1, "\x01\x00")
	}, true},
	{"CONTINUATION without bytes", 70, 0, func(i int) string {
		if i == 0 {
			return raw(frameHeaders, 0, 1, "")
		}
		return raw(frameContinuation, 0, 1, "")
	}, true},
	{"CONTINUATION without end", 20, 0, func(i int) string {
		if i == 0 {
			return raw(frameHeaders, 0, 1, "")
		}
		return raw(frameContinuation, 0, 1, strings.Repeat("\x82", 1000))
	}, true},
	{"HEADERS without a field", 600, 0, func(i int) string { return rawHeaders(odd(i), true) }, true},
}

// TestGuards repeats something until the connection ends with ENHANCE_YOUR_CALM, or to the end without.
func TestGuards(t *testing.T) {
	for _, tt := range guardCases {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, Config{MaxStreams: 100, HeadBytesMax: 1500})
			b.conn.discard = true
			b.on = func(r *recorder, event string) {
				if _, answer := r.head.Get("x-answer"); answer {
					ok(r, event)
				}
			}
			for i := 0; i < tt.n && b.s.Err() == nil; i++ {
				b.time = b.time.Add(tt.every)
				b.feed(tt.repeat(i))
			}
			if got := calm(b.s.Err()); got != tt.calm || got != b.conn.closed {
				t.Errorf("ended with %v", b.s.Err())
			}
		})
	}
}

// TestDribble: a peer that opens tiny windows makes us send tiny frames only as long as its budget lasts.
func TestDribble(t *testing.T) {
	b := newBed(t, Config{})
	b.feed(rawSettings(setting(settingInitialWindow, 0)))
	r := answering(b, 1)[0]
	r.s.SendData(pattern(100_000), false)
	n := 0
	for ; n < 10_000 && b.s.Err() == nil; n++ {
		b.feed(rawWindow(1, 1))
	}
	if !calm(b.s.Err()) {
		t.Errorf("after %d updates: %v", n, b.s.Err())
	}
}

// TestEagerUpdates: a peer may update both windows for every small message that we send.
func TestEagerUpdates(t *testing.T) {
	b := newBed(t, Config{})
	b.conn.discard = true
	b.feed(rawHeaders(1, true, get...))
	b.reqs[0].s.SendHead(response(200), false)
	for range 10_000 {
		b.reqs[0].s.SendData([]byte("0123456789"), false)
		b.feed(rawWindow(0, 10), rawWindow(1, 10))
	}
	if err := b.s.Err(); err != nil {
		t.Error(err)
	}
}

// TestUnreadAnswers: a peer that asks and never reads is cut off before the output grows, however slowly it asks.
func TestUnreadAnswers(t *testing.T) {
	tests := map[string]func(i int) string{
		"PING":     func(int) string { return raw(framePing, 0, 0, "12345678") },
		"SETTINGS": func(int) string { return rawSettings() },
		"requests": func(i int) string { return rawHeaders(uint32(2*i+1), true, get...) },
	}
	for name, repeat := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, Config{})
			b.on = func(r *recorder, _ string) {
				r.s.SendHead(response(200, "a", strings.Repeat("~", 2000)), true)
			}
			b.conn.limit, b.conn.out = 1, []byte{0}
			for i := 0; i < 10_000 && !b.conn.aborted; i++ {
				b.time = b.time.Add(time.Second)
				b.feed(repeat(i))
			}
			if !b.conn.aborted || len(b.conn.out) > queuedBytesMax+10_000 {
				t.Errorf("aborted %v with %d bytes of output", b.conn.aborted, len(b.conn.out))
			}
		})
	}
}

// TestHeaderBomb: references to one large entry of the dynamic table cost nothing beyond the limit of the head.
func TestHeaderBomb(t *testing.T) {
	b := newBed(t, Config{})
	var buf bytes.Buffer
	e := hpack.NewEncoder(&buf)
	_ = e.WriteField(hpack.HeaderField{Name: "a", Value: strings.Repeat("x", 4000)})
	bomb := block(get...) + buf.String() + strings.Repeat("\xbe", 12_000) // 48 MB if it were unpacked
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for id := uint32(1); id < 20; id += 2 {
		b.feed(raw(frameHeaders, flagEndHeaders|flagEndStream, id, bomb))
	}
	runtime.ReadMemStats(&after)
	if len(b.reqs) != 0 || len(b.errs) != 10 || !strings.Contains(b.errs[0], "431") {
		t.Errorf("%d requests, owner told %q", len(b.reqs), b.errs)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("10 blocks of 12 KB made us allocate %d bytes", n)
	}
}

// TestClientGuards: a server cannot flood a client either.
func TestClientGuards(t *testing.T) {
	for name, frame := range map[string]string{
		"PING":          raw(framePing, 0, 0, "12345678"),
		"WINDOW_UPDATE": rawWindow(0, 1),
		"SETTINGS":      rawSettings(setting(settingMaxStreams, 1)),
		"empty DATA":    rawData(1, false, ""),
	} {
		d := newDesk(t, Config{})
		r := d.open(request("GET", "/"), true)
		d.feed(rawHeaders(1, false, status200...))
		for range 3000 {
			d.feed(frame)
		}
		if !calm(d.c.Err()) || r.why != stream.AbortProtocol || len(d.dead) != 1 {
			t.Errorf("%s: %v", name, d.c.Err())
		}
	}
}

func TestGuardRefill(t *testing.T) {
	var g guards
	for i := range resetBurst {
		if !g.spend(guardReset, 1, 0) {
			t.Fatalf("refused after %d", i)
		}
	}
	if g.spend(guardReset, 1, 0) {
		t.Fatal("the budget has no end")
	}
	if !g.spend(guardReset, resetPerSecond/2-2, time.Second/2) || g.spend(guardReset, 2, time.Second/2) {
		t.Fatal("half a second should give back half of a second's budget")
	}
	g.earn(guardReset, 1<<30)
	if g.spend(guardReset, resetBurst+1, time.Second/2) {
		t.Fatal("earnings are hoarded")
	}
}

func TestErrorText(t *testing.T) {
	got := fmt.Sprint(&Error{Code: 0x99, Stream: 3, Remote: true}, "; ", &Error{Code: ErrCodeHTTP11Required, Reason: "why"})
	if want := "http2 stream 3: received code 0x99; http2 connection: sent HTTP_1_1_REQUIRED: why"; got != want {
		t.Errorf("got %q", got)
	}
}

// TestTunnelsReset: tunnels that stand may be reset at any rate, those that were never granted only so often.
func TestTunnelsReset(t *testing.T) {
	for _, granted := range []bool{true, false} {
		b := newBed(t, Config{})
		b.on = func(r *recorder, event string) {
			if granted && event[:4] == "head" {
				r.s.SendHead(response(200), false)
			}
		}
		for i := range uint32(resetBurst + 10) {
			b.feed(rawHeaders(2*i+1, false, ":method", "CONNECT", ":authority", "a:1"), rawReset(2*i+1, ErrCodeCancel))
			b.conn.out = nil
			if len(b.errs) > 0 {
				break
			}
		}
		if fine := len(b.errs) == 0; fine != granted {
			t.Errorf("granted %t: %v", granted, b.errs)
		}
	}
}
