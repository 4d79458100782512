package loop

import "testing"

// TestTrim: of the free buffers half of those go that nobody has needed, and none that are in use again and again.
func TestTrim(t *testing.T) {
	var s chunks
	burst := func(n int) {
		var list []*chunk
		for range n {
			list = append(list, s.take(1))
		}
		for _, k := range list {
			s.give(k)
		}
	}
	trim := func(want int) {
		t.Helper()
		s.trim()
		n := 0
		for k := s.free; k != nil; k = k.next {
			n++
		}
		if n != want || s.n != want {
			t.Fatalf("%d buffers are free, %d are counted, want %d", n, s.n, want)
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
