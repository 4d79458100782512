package proxy

import (
	"math/rand/v2"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/hbone"
	"github.com/lateen-mesh/lateen/proxy/http1"
	"github.com/lateen-mesh/lateen/proxy/http2"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
	"github.com/lateen-mesh/lateen/telemetry/accesslog"
	"github.com/lateen-mesh/lateen/telemetry/metrics"
	"github.com/lateen-mesh/lateen/telemetry/trace"
)

const (
	// sweepEvery is how often a worker looks for what has been idle for too long.
	sweepEvery = time.Second
	// trimEvery is how long memory that is kept for reuse may be of no use until half of it goes.
	trimEvery = 10 * time.Second
)

// worker is one event loop and all that belongs to it. Nothing of it is shared
// with other workers, so nothing of it is locked.
type worker struct {
	p     *Proxy
	loop  *loop.Loop
	rnd   *rand.Rand
	shard *metrics.Shard
	peers peerCache

	h1  *http1.Codec
	mem http2.Memory

	pools       map[poolKey]*pool
	recent      [recentPools]*pool // of pools, by address
	sessions    map[*session]struct{}
	relays      map[*relay]struct{}
	downstreams map[*downstream]struct{}
	tunnels     *hbone.Client
	peersIn     map[*tunnelPeer]struct{} // who may open tunnels to us
	detections  spares[detection]
	exchanges   spares[exchange]
	attempts    spares[attempt]
	bodies      bodies
	mirrors     int
	draining    bool
	quiet       time.Duration // while draining: how long a client's connection must have been without requests to be closed
	ending      bool          // draining, and the proxy is told when nothing is open any more
	empty       bool          // while ending: nothing is open any more
	sweeper     loop.Timer
	trimmed     time.Time // when trim was called last

	// What telemetry calls things, made once.
	entry     accesslog.Entry
	sinks     map[*plan.Listener][]logSink
	buffers   map[*accesslog.Writer]*accesslog.Buffer
	services  map[plan.ServiceName]telemetry.ServiceRef
	endpoints map[*plan.Endpoint]telemetry.PeerRef
	origins   map[plan.Origin]string

	own        stream.Head // for responses of our own
	date       date        // ... and when they are made
	propagator trace.Propagator
	span       trace.Span
	scratch    []byte
	name       []byte
}

func (p *Proxy) newWorker() (*worker, error) {
	l, err := loop.New(loop.Config{Logger: p.logs.loops, StdlibTLS: p.cfg.StdlibTLS, Accelerated: p.cfg.Accelerator == AcceleratorOn})
	if err != nil {
		return nil, err
	}
	w := &worker{
		p: p, loop: l, shard: p.metrics.NewShard(), h1: http1.New(http1.Config{}),
		rnd:         rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		pools:       map[poolKey]*pool{},
		sessions:    map[*session]struct{}{},
		relays:      map[*relay]struct{}{},
		downstreams: map[*downstream]struct{}{},
		peersIn:     map[*tunnelPeer]struct{}{},
		sinks:       map[*plan.Listener][]logSink{},
		buffers:     map[*accesslog.Writer]*accesslog.Buffer{},
		services:    map[plan.ServiceName]telemetry.ServiceRef{},
		endpoints:   map[*plan.Endpoint]telemetry.PeerRef{},
		origins:     map[plan.Origin]string{},
		propagator:  trace.Propagator{IDs: trace.NewIDs()},
	}
	w.tunnels = w.newTunnels()
	w.sweeper.Init(l, w.sweep)
	l.Post(func() { w.sweeper.Reset(sweepEvery) })
	return w, nil
}

// sweep ends what has been idle for too long.
func (w *worker) sweep() {
	now := w.loop.Now()
	for s := range w.sessions {
		s.sweep(w.loop.Elapsed())
	}
	for d := range w.downstreams {
		d.sweep(w.loop.Elapsed())
	}
	for r := range w.relays {
		r.sweep(now)
	}
	for t := range w.peersIn {
		t.sweep(now)
	}
	w.sweepPools(now)
	w.forgetPlans()
	w.tunnels.Sweep(now, tunnelIdle)
	if now.Sub(w.trimmed) >= trimEvery {
		w.trim(now)
	}
	if w.draining {
		w.sweeper.Reset(drainQuiet / 2)
		return
	}
	w.sweeper.Reset(sweepEvery)
}

// trim forgets memory that a burst has left behind: of what nobody has needed since the last call, half.
func (w *worker) trim(now time.Time) {
	w.trimmed = now
	w.loop.Trim()
	w.mem.Trim()
	w.bodies.trim()
	w.exchanges.trim(now)
	w.attempts.trim(now)
}

// drain lets what is open end and takes nothing new on open connections. Those that have been quiet for so long are closed.
func (w *worker) drain(quiet time.Duration) {
	w.draining, w.quiet = true, quiet
	w.sweeper.Reset(drainQuiet / 2)
	for d := range w.downstreams {
		d.drain()
	}
	for t := range w.peersIn {
		t.drain()
	}
}

// end has the proxy told when nothing is open any more.
func (w *worker) end() {
	w.ending = true
	w.connectionGone()
}

// connectionGone tells the proxy when a worker at its end has nothing left to do.
func (w *worker) connectionGone() {
	if w.ending && len(w.downstreams)+len(w.relays)+len(w.sessions) == 0 {
		w.p.drained(w)
	}
}

// chance is true in percent of a hundred cases.
func (w *worker) chance(percent float64) bool {
	return percent >= 100 || percent > 0 && w.rnd.Float64()*100 < percent
}

// h2Server and h2Client are the settings of HTTP/2 connections.
func (w *worker) h2Server() http2.Config {
	return http2.Config{Now: w.loop.Now, Memory: &w.mem, ExtendedConnect: true}
}

// The windows of connections that carry requests of HTTP/1.1: wide enough that one body fills 1 Gbit/s over 8 ms.
const (
	muxStreamWindow = 1 << 20
	muxConnWindow   = 2 << 20
)

// h2Mux are those of connections that carry requests of HTTP/1.1, at both ends. A head that HTTP/1 takes, with what the
// proxies on its way add, must not be too large for them.
func (w *worker) h2Mux() http2.Config {
	const headBytes, headFields = http1.HeadMaxBytes + 32<<10, http1.FieldsMax + 64
	return http2.Config{
		Now: w.loop.Now, Memory: &w.mem, HTTP1: true, MaxStreams: muxStreams, StreamWindow: muxStreamWindow, ConnWindow: muxConnWindow,
		HeadBytesMax: headBytes, HeadFieldsMax: headFields,
	}
}

func (w *worker) h2Client(t target) http2.Config {
	return http2.Config{Now: w.loop.Now, Memory: &w.mem, MaxStreams: int(t.cluster.Plan().Limits.ConcurrentStreams)}
}
