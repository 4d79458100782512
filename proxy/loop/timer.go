package loop

import (
	"time"
)

// Timer calls a function on the loop at a later time. It is made to be part of
// another struct: Init it once, then Reset and Stop it as often as wanted;
// neither allocates, and pushing a pending timer back is a store. All methods
// run on the loop only. A Timer must not be copied after Init.
type Timer struct {
	loop *Loop
	f    func()
	due  time.Duration // when f is to run, as the loop counts
	key  time.Duration // place in the heap: due, or earlier if due has been pushed back since
	seq  uint64        // order among equal keys
	slot int           // index in the heap + 1; 0 if not pending
}

// Init makes t a timer of l that calls f, not pending. It must not be called on a pending timer.
func (t *Timer) Init(l *Loop, f func()) {
	*t = Timer{loop: l, f: f}
}

// Reset makes t fire d after the loop's Now, instead of when it would have
// fired if it was pending. It never fires in the batch that arms it, even if d
// is zero or less.
func (t *Timer) Reset(d time.Duration) {
	l := t.loop
	t.due = l.elapsed + max(d, 1)
	switch {
	case t.slot == 0:
		l.timers.insert(t)
	case t.due < t.key:
		l.timers.advance(t)
	}
}

// Stop makes t not fire. It reports whether t was pending.
func (t *Timer) Stop() bool {
	if t.slot == 0 {
		return false
	}
	t.loop.timers.remove(t)
	return true
}

// After calls f on the loop after d. It must be called on the loop, or before Run.
func (l *Loop) After(d time.Duration, f func()) *Timer {
	t := new(Timer)
	t.Init(l, f)
	t.Reset(d)
	return t
}

// fireTimers calls what is due. It ends, because what is armed meanwhile is due later than now.
func (l *Loop) fireTimers() {
	for t := l.timers.due(l.elapsed); t != nil; t = l.timers.due(l.elapsed) {
		t.f()
	}
}

// nextTimer is when the loop must wake for its timers; zero if there are none.
func (l *Loop) nextTimer() time.Time {
	if len(l.timers.heap) == 0 {
		return time.Time{}
	}
	return l.start.Add(l.timers.heap[0].key)
}

// timerFan is the number of children of a node of the heap. Four keeps the heap
// half as deep as two, and a node's children in one or two cache lines.
const timerFan = 4

// timers is a heap of pending timers, the earliest key first, equal keys in order of arming.
type timers struct {
	heap []*Timer
	seq  uint64
}

// due removes and returns the earliest timer if it is due at now. On the way it gives those that
// have been pushed back their place.
func (h *timers) due(now time.Duration) *Timer {
	for len(h.heap) > 0 {
		t := h.heap[0]
		if t.key > now {
			return nil
		}
		if t.due <= t.key {
			h.remove(t)
			return t
		}
		t.key = t.due
		h.seq++
		t.seq = h.seq
		h.down(t)
	}
	return nil
}

// insert adds t at t.due.
func (h *timers) insert(t *Timer) {
	h.heap = append(h.heap, t)
	t.slot = len(h.heap)
	h.advance(t)
}

// advance moves t, which is in the heap, to t.due, which is not later than its key or is new.
func (h *timers) advance(t *Timer) {
	t.key = t.due
	h.seq++
	t.seq = h.seq
	h.up(t)
}

func (h *timers) remove(t *Timer) {
	last := len(h.heap) - 1
	moved := h.heap[last]
	h.heap[last] = nil
	h.heap = h.heap[:last]
	if moved != t {
		h.put(t.slot-1, moved)
		h.up(moved)
		h.down(moved)
	}
	t.slot = 0
}

func (h *timers) put(i int, t *Timer) {
	h.heap[i] = t
	t.slot = i + 1
}

func (h *timers) up(t *Timer) {
	i := t.slot - 1
	for i > 0 {
		parent := (i - 1) / timerFan
		if !before(t, h.heap[parent]) {
			break
		}
		h.put(i, h.heap[parent])
		i = parent
	}
	h.put(i, t)
}

func (h *timers) down(t *Timer) {
	i := t.slot - 1
	for {
		first := i*timerFan + 1
		if first >= len(h.heap) {
			break
		}
		least := first
		for j := first + 1; j < min(first+timerFan, len(h.heap)); j++ {
			if before(h.heap[j], h.heap[least]) {
				least = j
			}
		}
		if !before(h.heap[least], t) {
			break
		}
		h.put(i, h.heap[least])
		i = least
	}
	h.put(i, t)
}

func before(a, b *Timer) bool {
	return a.key < b.key || a.key == b.key && a.seq < b.seq
}
