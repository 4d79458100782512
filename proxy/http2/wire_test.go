package http2

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// handler is what a connection of ours looks like to a loop.
type handler interface {
	OnData(p []byte) int
	OnEOF()
	OnClose(err error)
	OnDrain()
}

// wire is a Conn over a net.Conn. loop stands for the event loop: whoever holds
// it calls handlers, so that all wires that share it are driven by one at a
// time. One goroutine reads, one writes; run returns when both have ended.
type wire struct {
	loop    *sync.Mutex
	nc      net.Conn
	h       handler
	more    *sync.Cond // on loop: there is something to write, or closing
	out     []byte
	unsent  int
	full    bool
	closing bool
}

const wireHigh, wireLow = 64 << 10, 16 << 10

func newWire(loop *sync.Mutex, nc net.Conn) *wire {
	return &wire{loop: loop, nc: nc, more: sync.NewCond(loop)}
}

func (w *wire) Write(p []byte) {
	w.out = append(w.out, p...)
	w.full = w.full || w.Full()
	w.more.Signal()
}
func (w *wire) Full() bool { return len(w.out)+w.unsent >= wireHigh }
func (w *wire) Close()     { w.closing = true; w.more.Signal() }
func (w *wire) Abort()     { w.out = nil; w.Close(); _ = w.nc.Close() }

// run drives the connection until it is closed.
func (w *wire) run() {
	var wg sync.WaitGroup
	wg.Go(w.writeAll)
	err := w.readAll()
	w.loop.Lock()
	if w.closing {
		err = nil
	} else if errors.Is(err, io.EOF) {
		w.h.OnEOF()
	}
	w.Close()
	w.loop.Unlock()
	wg.Wait()
	w.loop.Lock()
	w.h.OnClose(err)
	w.loop.Unlock()
}

func (w *wire) readAll() error {
	var kept []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := w.nc.Read(buf)
		if err != nil {
			return err
		}
		kept = append(kept, buf[:n]...)
		w.loop.Lock()
		done := w.h.OnData(kept)
		w.loop.Unlock()
		kept = kept[:copy(kept, kept[done:])]
	}
}

func (w *wire) writeAll() {
	defer func() { _ = w.nc.Close() }()
	w.loop.Lock()
	defer w.loop.Unlock()
	for {
		for len(w.out) == 0 && !w.closing {
			w.more.Wait()
		}
		if len(w.out) == 0 {
			return
		}
		p := w.out
		w.out, w.unsent = nil, len(p)
		w.loop.Unlock()
		_, err := w.nc.Write(p)
		w.loop.Lock()
		w.unsent = 0
		if err != nil {
			return
		}
		if w.full && len(w.out) <= wireLow {
			w.full = false
			w.h.OnDrain()
		}
	}
}

// relay is a proxy in small: it accepts HTTP/2 on a listener and sends every
// request over one pooled connection to a backend.
type relay struct {
	t       testing.TB
	loop    sync.Mutex
	mem     Memory
	addr    string
	backend string
	wg      sync.WaitGroup
	ln      net.Listener
	up      *ClientConn
	servers map[*ServerConn]*wire
	wires   map[*wire]bool
	cfg     Config
}

// newRelay begins a relay to backend; it ends with the test.
func newRelay(t testing.TB, backend string, cfg Config) *relay {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, ln: ln, addr: ln.Addr().String(), backend: backend, servers: map[*ServerConn]*wire{}, wires: map[*wire]bool{}, cfg: cfg}
	r.cfg.Memory = &r.mem
	r.wg.Go(r.accept)
	t.Cleanup(r.close)
	return r
}

func (r *relay) close() {
	_ = r.ln.Close()
	r.loop.Lock()
	for w := range r.wires {
		w.Abort()
	}
	r.loop.Unlock()
	r.wg.Wait()
}

func (r *relay) accept() {
	for {
		nc, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.loop.Lock()
		w := newWire(&r.loop, nc)
		s := NewServerConn(w, r, r.cfg, r)
		w.h = s
		r.servers[s] = w
		r.run(w)
		r.loop.Unlock()
	}
}

func (r *relay) run(w *wire) {
	r.wires[w] = true
	r.wg.Go(func() {
		w.run()
		r.loop.Lock()
		delete(r.wires, w)
		r.loop.Unlock()
	})
}

// client returns the connection to the backend, a new one if the last cannot be used.
func (r *relay) client() *ClientConn {
	if r.up == nil || r.up.Available() == 0 {
		nc, err := net.Dial("tcp", r.backend)
		if err != nil {
			r.t.Error(err)
			return r.up
		}
		w := newWire(&r.loop, nc)
		r.up = NewClientConn(w, r.cfg, r)
		w.h = r.up
		r.run(w)
	}
	return r.up
}

func (r *relay) OnFault(_ *ServerConn, err *Error) { r.t.Log(err) }
func (r *relay) OnRoom(*ClientConn)                {}
func (r *relay) OnDraining(*ClientConn)            {}
func (r *relay) OnDead(*ClientConn)                {}

func (r *relay) Accept(s stream.Sender) stream.Receiver {
	x := &relayed{front: front{down: s}}
	x.front.x, x.back.x = x, x
	up, ok := r.client().Open(&x.back)
	if !ok {
		r.t.Error("no room on a connection that was available")
	}
	x.up = up
	return &x.front
}

// relayed is one exchange on its way through the relay.
type relayed struct {
	front front
	back  back
	up    stream.Sender
	over  bool
}

type front struct {
	x    *relayed
	down stream.Sender
}
type back struct{ x *relayed }

func (f *front) check() {
	if f.x.over {
		panic("a Receiver was called after the end of its exchange")
	}
}

func (f *front) OnHead(h *stream.Head, end bool) { f.check(); f.x.up.SendHead(h, end) }
func (f *front) OnInterim(*stream.Head)          {}
func (f *front) OnData(p []byte, end bool) {
	f.check()
	f.x.up.SendData(p, end)
	if f.x.up.Full() {
		f.down.Pause()
	}
}
func (f *front) OnTrailers(h *stream.Head) { f.check(); f.x.up.SendTrailers(h) }
func (f *front) OnAbort(stream.Abort, error) {
	f.check()
	f.x.over = true
	f.x.up.Reset(stream.AbortLocal)
}
func (f *front) OnDrain() { f.check(); f.x.up.Resume() }

func (b *back) check() *front {
	b.x.front.check()
	return &b.x.front
}

func (b *back) OnHead(h *stream.Head, end bool) {
	f := b.check()
	b.x.over = end
	f.down.SendHead(h, end)
}
func (b *back) OnInterim(h *stream.Head) { b.check().down.SendInterim(h) }
func (b *back) OnData(p []byte, end bool) {
	f := b.check()
	b.x.over = end
	f.down.SendData(p, end)
	if f.down.Full() {
		b.x.up.Pause()
	}
}

func (b *back) OnTrailers(h *stream.Head) {
	f := b.check()
	b.x.over = true
	f.down.SendTrailers(h)
}

func (b *back) OnAbort(stream.Abort, error) {
	f := b.check()
	b.x.over = true
	f.down.Reset(stream.AbortLocal)
}
func (b *back) OnDrain() { b.check().down.Resume() }
