package metrics

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	durations := []struct {
		took time.Duration
		le   float64 // the bound of the bucket in milliseconds; 0 is beyond the last
	}{
		{0, 0.5},
		{500 * time.Microsecond, 0.5},
		{501 * time.Microsecond, 1},
		{time.Millisecond, 1},
		{5*time.Millisecond + time.Microsecond, 10},
		{time.Second, 1000},
		{time.Hour, 3_600_000},
		{time.Hour + time.Millisecond, 0},
	}
	for _, tt := range durations {
		checkBucket(t, tt.took.String(), microBounds.bucket(uint64(tt.took.Microseconds())), tt.le)
	}
	sizes := map[uint64]float64{0: 0.5, 1: 1, 2: 5, 1000: 1000, 1001: 2500, 3_600_000: 3_600_000, 3_600_001: 0}
	for n, le := range sizes {
		checkBucket(t, "bytes", byteBounds.bucket(n), le)
	}
}

func checkBucket(t *testing.T, what string, got int, le float64) {
	t.Helper()
	want := slices.Index(Bounds[:], le)
	if want < 0 {
		want = bucketBounds
	}
	if got != want {
		t.Errorf("%s is in bucket %d, want %d (le %v)", what, got, want, le)
	}
}

// TestLatencyError holds the estimate to the bound that the documentation states.
func TestLatencyError(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	values := []uint64{0, 1, 15, 16, 17, 31, 32, 1000, 1 << 31, 1<<32 - 1}
	for range 20_000 {
		values = append(values, rng.Uint64()>>(32+rng.IntN(32)))
	}
	last := -1
	slices.Sort(values)
	for _, v := range values {
		cell := latencyCell(v)
		if cell < last {
			t.Fatalf("%d µs is in cell %d, below that of a smaller value, %d", v, cell, last)
		}
		last = cell
		off := middle(cell) - time.Duration(v)*time.Microsecond
		bound := max(time.Duration(v)*time.Microsecond/16, time.Microsecond/2)
		if off.Abs() > bound {
			t.Errorf("%d µs is estimated as %v, off by more than %v", v, middle(cell), bound)
		}
	}
	if got := latencyCell(1 << 40); got != latencyCells-1 {
		t.Errorf("12 days are in cell %d, want the last, %d", got, latencyCells-1)
	}
}

func TestLatencyQuantile(t *testing.T) {
	var l Latency
	if got := l.Quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
	for ms := range 1000 {
		l[latencyCell(uint64(ms+1)*1000)]++
	}
	for q, want := range map[float64]time.Duration{
		0: time.Millisecond, 0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond, 1: time.Second, -3: time.Millisecond, 7: time.Second,
	} {
		if got := l.Quantile(q); (got - want).Abs() > want/16 {
			t.Errorf("quantile %v is %v, want %v within 1/16", q, got, want)
		}
	}
	earlier := l
	l[latencyCell(7_000_000)] += 10
	d := l.Since(&earlier)
	if got := d.Quantile(0.5); d.Count() != 10 || (got-7*time.Second).Abs() > 7*time.Second/16 {
		t.Errorf("since: %d values with median %v", d.Count(), got)
	}
	if d := earlier.Since(&l); d != earlier {
		t.Error("an edge that started again is not taken whole")
	}
}
