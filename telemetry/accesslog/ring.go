package accesslog

import "sync/atomic"

// ring is a queue of bytes with one writer and one reader, neither of which
// ever waits for the other. The positions only grow; a position's place in buf
// is its remainder by the length, a power of two.
//
// Invariant: head <= tail <= head + len(buf), and both stand between two lines.
type ring struct {
	buf  []byte
	head atomic.Uint64 // the reader's: everything before it is read
	tail atomic.Uint64 // the writer's: everything before it is written
}

// push copies a line in. It reports false if there is no room; wake is set if
// the reader may have gone to sleep over an empty ring.
func (r *ring) push(line []byte) (ok, wake bool) {
	tail := r.tail.Load()
	if uint64(len(r.buf))-(tail-r.head.Load()) < uint64(len(line)) {
		return false, false
	}
	at := tail & uint64(len(r.buf)-1)
	n := copy(r.buf[at:], line)
	copy(r.buf, line[n:])
	r.tail.Store(tail + uint64(len(line)))
	// In this order: a reader that emptied the ring meanwhile either is seen here or sees the new tail when it looks again.
	return true, r.head.Load() == tail
}

// fill is the number of bytes that wait to be read.
func (r *ring) fill() int { return int(r.tail.Load() - r.head.Load()) }

// take returns the bytes that wait, in two pieces of which the second is empty
// unless they wrap around. They stay in the ring until release.
func (r *ring) take() (first, second []byte) {
	head, tail := r.head.Load(), r.tail.Load()
	if len(r.buf) == 0 || head == tail {
		return nil, nil
	}
	mask := uint64(len(r.buf) - 1)
	from, to := head&mask, tail&mask
	if from < to {
		return r.buf[from:to], nil
	}
	return r.buf[from:], r.buf[:to]
}

// release gives n bytes' room back.
func (r *ring) release(n int) { r.head.Store(r.head.Load() + uint64(n)) }
