package http2

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

func FuzzFrameHeader(f *testing.F) {
	f.Add([]byte(raw(frameData, 0xff, 1<<31|5, "")))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < frameHeaderLen {
			return
		}
		h := parseFrameHeader(p)
		got := h.append(nil)
		got[5] |= p[5] & 0x80 // the reserved bit is not kept
		if !bytes.Equal(got, p[:frameHeaderLen]) {
			t.Errorf("%x became %x", p[:frameHeaderLen], got)
		}
		body, err := stripPadding(h.flags, p[frameHeaderLen:])
		if err == nil && len(body) > len(p)-frameHeaderLen {
			t.Error("padding made a payload longer")
		}
	})
}

// FuzzHead decodes a header block; what is accepted as a request is valid, and survives being sent on.
func FuzzHead(f *testing.F) {
	for _, tt := range serverCases {
		if h := parseFrameHeader([]byte(tt.in)); h.typ == frameHeaders && h.length <= len(tt.in)-frameHeaderLen {
			f.Add([]byte(tt.in[frameHeaderLen : frameHeaderLen+h.length]))
		}
	}
	f.Fuzz(func(t *testing.T, block []byte) {
		cfg := Config{HeadBytesMax: 4096, HeadFieldsMax: 50, ExtendedConnect: true}.withDefaults()
		read := func(kind headKind, block []byte) *stream.Head {
			c := core{cfg: cfg}
			h := new(stream.Head)
			h.Reset()
			r, err := c.readHead(kind, block, h)
			if err != nil || r.fault != "" || r.tooLarge {
				return nil
			}
			return h
		}
		for _, kind := range []headKind{kindResponse, kindTrailers, kindLate} {
			if h := read(kind, block); h != nil && (h.Size() > 2*4096 || h.Len() > 50) {
				t.Errorf("%d bytes in %d fields", h.Size(), h.Len())
			}
		}
		h := read(kindRequest, block)
		if h == nil {
			return
		}
		if len(h.Method()) == 0 || len(h.Path()) == 0 && string(h.Method()) != "CONNECT" || strings.ContainsAny(describe(h), "\r\n\x00") {
			t.Errorf("accepted %q", describe(h))
		}
		e := new(encoder)
		e.request(h, "http")
		again := read(kindRequest, e.out)
		if again == nil {
			t.Fatalf("%q is refused when sent on", describe(h))
		}
		if d := cmp.Diff(describe(h), describe(again)); d != "" || h.ContentLength != again.ContentLength || h.Upgrade != again.Upgrade {
			t.Error(d)
		}
	})
}

// invariants checks what must hold of a connection between callbacks.
func (c *core) invariants(t *testing.T) {
	t.Helper()
	var waiting, kept int
	for id, x := range c.streams {
		waiting += x.pending.n
		kept += x.kept.n
		if x.id != id || x.flags&closed != 0 || x.window < 0 || x.sendWindow > maxWindow || x.left < -1 || x.recv == nil {
			t.Errorf("stream %d: %+v", id, x)
		}
		if x.flags&(sentEnd|gotEnd) == sentEnd|gotEnd {
			t.Errorf("stream %d has ended and is open", id)
		}
	}
	if waiting != c.waiting || kept > c.kept || c.recvWindow < 0 || c.withheld > c.kept {
		t.Errorf("waiting %d of %d, kept %d of %d, withheld %d, window %d", waiting, c.waiting, kept, c.kept, c.withheld, c.recvWindow)
	}
	if c.kept > keptFactor*c.cfg.ConnWindow+c.cfg.ConnWindow || len(c.block) > max(maxFrameSize, blockFactor*c.cfg.HeadBytesMax) {
		t.Errorf("kept %d, a block of %d bytes", c.kept, len(c.block))
	}
	if c.dead && len(c.streams) > 0 {
		t.Errorf("dead with %d streams", len(c.streams))
	}
	spare := make(map[*exchange]bool)
	for _, x := range slices.Concat(c.cfg.Memory.exchanges, c.cfg.Memory.resting) {
		if spare[x] || x.flags&(closed|deaf|inRing) != closed|deaf || c.streams[x.id] == x || x.pending.n+x.kept.n > 0 {
			t.Errorf("kept for reuse: %+v", x)
		}
		spare[x] = true
	}
	for x := c.first; x != nil; x = x.next {
		if spare[x] {
			t.Errorf("in the ring and kept for reuse: %+v", x)
		}
	}
}

// play feeds p in pieces, of a size that mode decides, as the loop would.
func play(mode byte, p []byte, onData func(p []byte) int, between func()) {
	size := 1 << (mode >> 4)
	var kept []byte
	for len(p) > 0 {
		n := min(size, len(p))
		kept, p = append(kept, p[:n]...), p[n:]
		kept = kept[onData(kept):]
		between()
	}
}

// FuzzServer feeds anything to a server whose Receivers answer, pause and reset.
func FuzzServer(f *testing.F) {
	for i, tt := range serverCases {
		f.Add(byte(i)|0x80, []byte(tt.in))
	}
	f.Fuzz(func(t *testing.T, mode byte, in []byte) {
		b := newBed(t, Config{MaxStreams: 5, HeadBytesMax: 1000, StreamWindow: 20_000, ConnWindow: 70_000, SendBuffer: 1000, ExtendedConnect: true})
		body := pattern(3000)
		b.on = func(r *recorder, event string) {
			defer r.release()
			switch {
			case r.release():
			case mode&1 != 0 && strings.HasPrefix(event, "head"):
				r.s.Pause()
			case mode&2 != 0 && strings.HasPrefix(event, "data"):
				r.s.Reset(stream.AbortLocal)
			case mode&4 != 0 && !r.ended:
				r.s.SendHead(response(200), false)
				r.s.SendData(body, false)
			case r.ended:
				r.s.SendHead(response(200), false)
				r.s.SendData(body, false)
				r.s.SendTrailers(response(0, "a", "b"))
			}
		}
		play(mode, in, b.s.OnData, func() {
			b.s.invariants(t)
			b.time = b.time.Add(100 * time.Millisecond)
			for _, r := range b.reqs {
				r.s.Resume()
				r.release()
			}
			b.s.invariants(t)
			b.s.Tick()
		})
		if mode&8 != 0 {
			b.s.OnEOF()
		}
		b.s.OnClose(nil)
		for _, r := range b.reqs {
			r.s.Resume()
		}
		b.s.invariants(t)
		if b.s.kept != 0 || b.s.waiting != 0 {
			t.Errorf("after the end %d bytes are kept, %d wait", b.s.kept, b.s.waiting)
		}
		b.frames()
	})
}

// FuzzClient feeds anything to a client with three exchanges open.
func FuzzClient(f *testing.F) {
	for i, tt := range clientCases {
		f.Add(byte(i)|0x80, []byte(tt.in))
	}
	f.Fuzz(func(t *testing.T, mode byte, in []byte) {
		d := newDesk(t, Config{HeadBytesMax: 1000, StreamWindow: 20_000, ConnWindow: 70_000, SendBuffer: 1000}, setting(settingExtendedConnect, 1))
		upgrade := request("GET", "/", "upgrade", "websocket")
		upgrade.Upgrade = true
		rs := []*recorder{d.open(request("GET", "/"), true), d.open(request("POST", "/"), false), d.open(upgrade, false)}
		rs[1].s.SendData(pattern(100_000), mode&1 != 0)
		for _, r := range rs {
			if mode&2 != 0 {
				r.s.Pause()
			}
			r.on = func(r *recorder, _ string) {
				if mode&4 != 0 && !r.release() {
					r.s.Reset(stream.AbortLocal)
				}
				r.release()
			}
		}
		play(mode, in, d.c.OnData, func() {
			d.c.invariants(t)
			for _, r := range rs {
				r.s.Resume()
				r.release()
			}
			d.c.invariants(t)
		})
		d.c.OnClose(nil)
		for _, r := range rs {
			r.s.Resume()
			ends := 0
			for _, event := range r.log {
				if strings.HasSuffix(event, "end") || strings.HasPrefix(event, "trailers") || strings.HasPrefix(event, "abort") {
					ends++
				}
			}
			if tunnel := r == rs[2]; ends > 1 && !tunnel || ends == 0 && mode&4 == 0 {
				t.Errorf("told %q", r.log)
			}
		}
		d.c.invariants(t)
		if d.c.kept != 0 || d.c.waiting != 0 || len(d.dead) != 1 {
			t.Errorf("after the end %d bytes are kept, %d wait, the owner was told %d times", d.c.kept, d.c.waiting, len(d.dead))
		}
		d.frames()
	})
}
