package load

import "math/bits"

// The buckets of a histogram: each power of two is cut into subBuckets, which keeps the error below 1.6 %.
const (
	subBits    = 6
	subBuckets = 1 << subBits
	buckets    = (64 - subBits) * subBuckets
)

// histogram counts durations in nanoseconds.
type histogram struct {
	counts [buckets]uint64
	total  uint64
}

// bucket is the place of a value.
func bucket(v uint64) int {
	if v < subBuckets {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return shift*subBuckets + int(v>>shift)
}

// value is the middle of a bucket.
func value(b int) float64 {
	if b < 2*subBuckets {
		return float64(b)
	}
	shift := b/subBuckets - 1
	low := uint64(b-shift*subBuckets) << shift
	return float64(low) + float64(uint64(1)<<shift)/2
}

func (h *histogram) add(ns int64) {
	h.counts[bucket(uint64(max(ns, 0)))]++
	h.total++
}

// quantile is the value below which the share q of all values lies; 0 if there are none.
func (h *histogram) quantile(q float64) float64 {
	rank := uint64(q * float64(h.total))
	var seen uint64
	for b, n := range h.counts {
		if seen += n; n > 0 && seen > rank {
			return value(b)
		}
	}
	return 0
}
