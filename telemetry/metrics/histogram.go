package metrics

import (
	"math"
	"math/bits"
	"time"
)

// bucketBounds is the number of bounds of Istio's histograms, bucketCount adds the bucket beyond the last.
const (
	bucketBounds = 19
	bucketCount  = bucketBounds + 1
)

// Bounds are the upper bounds of the buckets of Istio's histograms, milliseconds
// for durations and bytes for sizes; a bucket holds what is at most its bound.
//
// Source: Envoy's default histogram buckets, which Istio leaves as they are.
var Bounds = [bucketBounds]float64{
	0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000,
}

// Bounds in the units that are counted: microseconds and whole bytes.
var (
	microBounds = scaled(1000)
	byteBounds  = scaled(1)
)

// bounds finds buckets quickly.
type bounds struct {
	upper [bucketBounds]uint64
	// from is the first bucket that a value of this many significant bits can be in.
	from [65]uint8
}

func scaled(unit float64) *bounds {
	b := &bounds{}
	for i, bound := range Bounds {
		b.upper[i] = uint64(bound * unit)
	}
	for n := range b.from {
		smallest := uint64(1) << n >> 1
		for b.from[n] < bucketBounds && b.upper[b.from[n]] < smallest {
			b.from[n]++
		}
	}
	return b
}

// bucket returns the bucket that v belongs to.
func (b *bounds) bucket(v uint64) int {
	i := int(b.from[bits.Len64(v)])
	for i < bucketBounds && v > b.upper[i] {
		i++
	}
	return i
}

// Histogram is a merged histogram with the buckets of Bounds.
type Histogram struct {
	// Buckets count the values of each bucket alone; the last one is beyond every bound.
	Buckets [bucketCount]uint64
	// Sum is the sum of the values, in milliseconds or bytes.
	Sum float64
}

// Count is the number of values.
func (h *Histogram) Count() (n uint64) {
	for _, b := range h.Buckets {
		n += b
	}
	return n
}

// latencyCells: 16 cells of one microsecond, then 8 for each doubling up to 2^32 microseconds (71 minutes).
const latencyCells = 16 + (32-4)*8

// Latency is a histogram of durations that is finer than Istio's: its cells grow
// with the value (log-linear), so that an estimate is off by at most 1/16 of the
// true value, or by half a microsecond below 16 microseconds. Values above 71
// minutes count as 71 minutes.
type Latency [latencyCells]uint64

func latencyCell(micros uint64) int {
	if micros < 16 {
		return int(micros)
	}
	if micros > math.MaxUint32 {
		return latencyCells - 1
	}
	shift := bits.Len64(micros) - 4 // leaves the leading bit and 3 more: 8 to 15
	return shift*8 + int(micros>>shift)
}

// middle is the middle of a cell.
func middle(cell int) time.Duration {
	if cell < 16 {
		return time.Duration(2*cell+1) * time.Microsecond / 2
	}
	shift := cell/8 - 1
	twice := (2*(cell-shift*8) + 1) << shift // in microseconds
	return time.Duration(twice) * time.Microsecond / 2
}

// Count is the number of values.
func (l *Latency) Count() (n uint64) {
	for _, c := range l {
		n += c
	}
	return n
}

// Quantile estimates the duration below which the share q, between 0 and 1, of
// all values lies; 0 if there are none.
func (l *Latency) Quantile(q float64) time.Duration {
	total := l.Count()
	if total == 0 {
		return 0
	}
	rank := uint64(math.Ceil(min(max(q, 0), 1) * float64(total)))
	var seen uint64
	for cell, n := range l {
		seen += n
		if seen >= max(rank, 1) {
			return middle(cell)
		}
	}
	return middle(latencyCells - 1)
}

// Since returns what was counted after an earlier state of the same edge. An
// edge that expired in between starts again from nothing.
func (l *Latency) Since(earlier *Latency) Latency {
	var d Latency
	for i := range l {
		if l[i] < earlier[i] {
			return *l
		}
		d[i] = l[i] - earlier[i]
	}
	return d
}
