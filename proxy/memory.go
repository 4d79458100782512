package proxy

import (
	"context"
	"log/slog"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A burst of handshakes or requests leaves the heap with much that is free. The runtime would give it back only after
// a collection, and a proxy that allocates nothing has no reason to collect. These say when we have it do so.
const (
	// memoryEvery is how often the heap is looked at.
	memoryEvery = 3 * time.Second
	// slackBytes is the least that must be to be had.
	slackBytes = 6 << 20
	// quietBytes is how much may have been allocated since the last look: a burst that goes on is left alone.
	quietBytes = 2 << 20
)

// heapSample is what the runtime says of its heap, in bytes.
type heapSample struct {
	objects   uint64 // live ones, and garbage that has not been collected yet
	live      uint64 // at the last collection
	free      uint64 // held, without objects, and not given back
	allocated uint64 // ever
}

// worthwhile reports whether collecting now would give much back: the slack must be worth it, also beside what is live.
func (s heapSample) worthwhile(before heapSample) bool {
	slack := s.free
	if s.objects > s.live {
		slack += s.objects - s.live
	}
	return s.allocated-before.allocated <= quietBytes && slack >= max(slackBytes, s.live/2)
}

// returnMemory gives memory that the start and bursts have left behind back to the system.
func returnMemory(ctx context.Context, log *slog.Logger) error {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
	}
	look := func() heapSample {
		metrics.Read(samples)
		v := func(i int) uint64 { return samples[i].Value.Uint64() }
		return heapSample{objects: v(0), live: v(1), free: v(2) + v(3), allocated: v(4)}
	}
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	before := look()
	given := false     // since the heap last grew
	forgotten := false // the same, of the program's pages
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := look()
		given = given && now.allocated-before.allocated < slackBytes
		if !given && now.worthwhile(before) {
			debug.FreeOSMemory()
			given, now = true, look()
		}
		quiet := now.allocated-before.allocated <= quietBytes
		if quiet && !forgotten {
			if _, err := forgetText(); err != nil {
				log.Warn("more memory is held than necessary", "cause", err)
			}
		}
		forgotten = quiet
		before = now
	}
}
