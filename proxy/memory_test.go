package proxy

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestWhenMemoryIsGivenBack(t *testing.T) {
	const mib = 1 << 20
	quiet := heapSample{objects: 6 * mib, live: 5 * mib, free: mib, allocated: 100 * mib}
	for _, c := range []struct {
		name string
		now  heapSample
		want bool
	}{
		{"little to be had", quiet, false},
		{"garbage of a burst", heapSample{objects: 14 * mib, live: 5 * mib, free: mib, allocated: 101 * mib}, true},
		{"room that a collection has freed", heapSample{objects: 6 * mib, live: 5 * mib, free: 9 * mib, allocated: 101 * mib}, true},
		{"the burst goes on", heapSample{objects: 14 * mib, live: 5 * mib, free: mib, allocated: 103 * mib}, false},
		{"little beside what is live", heapSample{objects: 47 * mib, live: 40 * mib, free: mib, allocated: 101 * mib}, false},
		{"not yet collected at all", heapSample{objects: 3 * mib, allocated: 101 * mib}, false},
	} {
		if got := c.now.worthwhile(quiet); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestHeapMetricsExist: the runtime knows what returnMemory asks for, and giving back shows in it.
func TestHeapMetricsExist(t *testing.T) {
	func() {
		burst := make([]byte, 32<<20)
		runtime.KeepAlive(burst)
	}()
	debug.FreeOSMemory()
	s := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
	}
	metrics.Read(s)
	for _, m := range s {
		if m.Value.Kind() != metrics.KindUint64 {
			t.Fatalf("the runtime does not know %s", m.Name)
		}
	}
	if free := s[2].Value.Uint64(); free > 24<<20 {
		t.Errorf("%d bytes are free and not given back", free)
	}
}
