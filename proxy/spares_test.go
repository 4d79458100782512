package proxy

import (
	"testing"
	"time"
)

// TestTrim: of what is kept for reuse half of that goes which nobody has needed.
func TestTrim(t *testing.T) {
	var s spares[int]
	var b bodies
	now := time.Unix(1, 0)
	burst := func(n int) {
		now = now.Add(time.Second)
		var kept []*int
		var memory [][]byte
		for range n {
			v := s.take(now)
			if v == nil {
				v = new(int)
			}
			kept, memory = append(kept, v), append(memory, b.take(nil))
		}
		for i := range n {
			s.give(now, kept[i])
			b.give(memory[i])
		}
	}
	trim := func(want int) {
		t.Helper()
		now = now.Add(time.Second)
		s.trim(now)
		b.trim()
		if n := len(s.ready) + len(s.resting); n != want || len(b.free) != want {
			t.Fatalf("%d objects and %d bodies are kept, want %d", n, len(b.free), want)
		}
	}
	trim(0)
	burst(9)
	trim(9) // all were needed
	burst(3)
	trim(6) // 6 were not
	for _, want := range []int{3, 1, 0, 0} {
		trim(want)
	}
	burst(2)
	trim(2)
}
