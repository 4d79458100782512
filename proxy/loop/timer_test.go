package loop

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTimersFireInOrder(t *testing.T) {
	l := start(t, Config{})
	var order []string
	done := make(chan struct{})
	on(t, l, func() {
		after := func(ms int, name string) *Timer {
			return l.After(time.Duration(ms)*time.Millisecond, func() { order = append(order, name) })
		}
		after(30, "f")
		after(10, "c")
		after(20, "d")
		after(20, "e")
		after(0, "b")
		after(-5, "a").Reset(-1)
		stopped := after(15, "stopped")
		later := after(5, "g")
		later.Reset(40 * time.Millisecond)
		earlier := after(50, "h")
		earlier.Reset(45 * time.Millisecond)
		if !stopped.Stop() || stopped.Stop() {
			t.Error("Stop does not say whether the timer was pending")
		}
		l.After(60*time.Millisecond, func() { close(done) })
	})
	await(t, "last timer", done)
	// "a" was armed again after "b", for the same instant.
	if got := strings.Join(order, ""); got != "bacdefgh" && got != "abcdefgh" {
		t.Errorf("order: %s", got)
	}
}

func TestTimerIsNotEarly(t *testing.T) {
	l := start(t, Config{})
	done := make(chan time.Duration, 1)
	on(t, l, func() {
		armed := l.Now()
		l.After(20*time.Millisecond, func() { done <- l.Now().Sub(armed) })
	})
	if d := await(t, "timer", done); d < 20*time.Millisecond {
		t.Errorf("fired after %v", d)
	}
}

// A timer that arms itself for at once must leave the loop to others.
func TestTimerThatRearmsItself(t *testing.T) {
	l := start(t, Config{})
	var own Timer
	fired := 0
	on(t, l, func() {
		own.Init(l, func() { fired++; own.Reset(0) })
		own.Reset(0)
	})
	for range 100 {
		on(t, l, func() {})
	}
	on(t, l, func() {
		own.Stop()
		if fired == 0 {
			t.Error("never fired")
		}
	})
}

func TestTimersStoppedWhenFiring(t *testing.T) {
	l := start(t, Config{})
	done := make(chan struct{})
	on(t, l, func() {
		var second *Timer
		l.After(5*time.Millisecond, func() { second.Stop() })
		second = l.After(5*time.Millisecond, func() { t.Error("fired after Stop") })
		l.After(20*time.Millisecond, func() { close(done) })
	})
	await(t, "last timer", done)
}

// TestReadBeforeTimers: what came before a time was over is read before that is told, however late the loop is for both.
func TestReadBeforeTimers(t *testing.T) {
	l := start(t, Config{})
	told := make(chan string, 2)
	accepted := make(chan struct{})
	addr := listen(t, l, func(*Conn) Handler {
		close(accepted)
		return &probe{data: func(_ *Conn, p []byte) int { told <- string(p); return len(p) }}
	})
	c := dial(t, addr)
	await(t, "the connection", accepted)
	on(t, l, func() {
		l.After(time.Millisecond, func() { told <- "the time is over" })
		if _, err := c.Write([]byte("data")); err != nil {
			t.Error(err)
		}
		<-time.After(5 * time.Millisecond) // as if something held it up
	})
	if first := await(t, "something", told); first != "data" {
		t.Errorf("first came %q", first)
	}
}

// TestTimersAgainstAModel compares the heap with a list that is searched from end to end.
func TestTimersAgainstAModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	l := &Loop{}
	pending := map[*Timer]time.Duration{}
	all := make([]*Timer, 200)
	for i := range all {
		all[i] = new(Timer)
		all[i].Init(l, nil)
	}
	for range 50_000 {
		tm := all[r.IntN(len(all))]
		switch r.IntN(10) {
		case 0, 1, 2, 3, 4:
			d := time.Duration(1 + r.IntN(1000))
			tm.Reset(d)
			pending[tm] = l.elapsed + d
		case 5, 6:
			_, was := pending[tm]
			if tm.Stop() != was {
				t.Fatalf("Stop says %v, want %v", !was, was)
			}
			delete(pending, tm)
		default:
			l.elapsed += time.Duration(r.IntN(50))
			for got := l.timers.due(l.elapsed); got != nil; got = l.timers.due(l.elapsed) {
				due, ok := pending[got]
				if !ok || due > l.elapsed {
					t.Fatalf("fired a timer that is due at %d (pending %v) at %d", due, ok, l.elapsed)
				}
				delete(pending, got)
			}
			for _, due := range pending {
				if due <= l.elapsed {
					t.Fatalf("a timer due at %d did not fire at %d", due, l.elapsed)
				}
			}
		}
		if len(l.timers.heap) != len(pending) || slices.Contains(l.timers.heap, nil) {
			t.Fatalf("%d timers in the heap, want %d", len(l.timers.heap), len(pending))
		}
	}
}

func TestTimerAllocatesNothing(t *testing.T) {
	l := &Loop{}
	var tm Timer
	tm.Init(l, func() {})
	tm.Reset(1)
	if n := testing.AllocsPerRun(100, func() { tm.Reset(time.Second); tm.Reset(time.Millisecond); tm.Stop() }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkTimerPushedBack(b *testing.B) {
	l := &Loop{}
	timers := make([]Timer, 10_000)
	for i := range timers {
		timers[i].Init(l, func() {})
		timers[i].Reset(time.Minute)
	}
	i := 0
	for b.Loop() {
		l.elapsed++
		timers[i%len(timers)].Reset(time.Minute)
		i++
	}
}
