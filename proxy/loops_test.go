package proxy

import "testing"

// TestLoops: one loop until four CPUs are there.
func TestLoops(t *testing.T) {
	for _, test := range []struct{ asked, cpus, want int }{
		{0, 1, 1}, {0, 2, 1}, {0, 3, 1}, {0, 4, 2}, {0, 8, 4}, {2, 1, 2}, {1, 8, 1},
	} {
		if got := loops(test.asked, test.cpus); got != test.want {
			t.Errorf("%d asked for on %d CPUs: %d loops, want %d", test.asked, test.cpus, got, test.want)
		}
	}
}
