// Package metrics counts requests, messages, connections and bytes by Istio's
// labels, without a lock and without an allocation on the way of a request.
//
// In: what an event loop observed, told to its own Shard. Out: a Snapshot, the
// sum of all shards, from which scrape exposes Istio's metrics and `lateen
// status` draws who talks to whom. It must not know HTTP, sockets or Prometheus.
//
// A Shard belongs to one goroutine, which alone writes it. Registry's methods
// may be called by any goroutine at any time; they read shards with atomics and
// make no loop wait.
package metrics

import (
	"sync"
	"time"

	"github.com/lateen-mesh/lateen/telemetry"
)

const (
	seriesMaxDefault = 2048
	idleAfterDefault = 15 * time.Minute
	// edgeShare: an edge is four times as large as a series and has several of them.
	edgeShare = 4
)

// Config describes a Registry; the zero value is the default.
type Config struct {
	// SeriesMax bounds the series of each kind that one shard holds; default 2048, which is some 3 MiB when all are full. What
	// exceeds it is counted in series whose peers and service are called "other".
	SeriesMax int
	// IdleAfter is how long a series may go without a change before a scrape drops it; default 15 minutes.
	// Negative: never.
	IdleAfter time.Duration
}

// Registry holds the shards and adds them up.
type Registry struct {
	cfg Config

	// mu guards what follows. Loops never take it.
	mu       sync.Mutex
	shards   []*Shard
	requests merger[telemetry.RequestKey]
	edges    merger[telemetry.EdgeKey]
	tcp      merger[telemetry.TCPKey]
}

// New returns an empty registry.
func New(cfg Config) *Registry {
	if cfg.SeriesMax <= 0 {
		cfg.SeriesMax = seriesMaxDefault
	}
	if cfg.IdleAfter == 0 {
		cfg.IdleAfter = idleAfterDefault
	}
	return &Registry{cfg: cfg}
}

// NewShard returns a shard for one event loop. It is part of the registry for as
// long as the registry lives, so that counters never go backwards.
func (r *Registry) NewShard() *Shard {
	s := &Shard{}
	s.requests.init(requestCells, r.cfg.SeriesMax, otherRequest)
	s.edges.init(edgeCells, max(1, r.cfg.SeriesMax/edgeShare), otherEdge)
	s.tcp.init(tcpCells, r.cfg.SeriesMax, otherTCP)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shards = append(r.shards, s)
	return s
}

// Snapshot adds the shards up and drops the series that were idle for too long.
// It costs time and memory in proportion to the number of series.
func (r *Registry) Snapshot() *Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	snap := &Snapshot{}
	for _, s := range r.shards {
		drain(&r.requests, &s.requests, now)
		drain(&r.edges, &s.edges, now)
		drain(&r.tcp, &s.tcp, now)
		snap.Overflows += s.requests.overflows.Load() + s.edges.overflows.Load() + s.tcp.overflows.Load()
	}
	r.requests.gather(now, r.cfg.IdleAfter, func(k telemetry.RequestKey, cells []uint64) {
		snap.Requests = append(snap.Requests, requestSeries(k, cells))
	})
	r.edges.gather(now, r.cfg.IdleAfter, func(k telemetry.EdgeKey, cells []uint64) {
		snap.Peers = append(snap.Peers, edgeSeries(k, cells))
	})
	r.tcp.gather(now, r.cfg.IdleAfter, func(k telemetry.TCPKey, cells []uint64) {
		snap.TCP = append(snap.TCP, tcpSeries(k, cells))
	})
	return snap
}
