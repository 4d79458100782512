package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// failuresMax is how many exchanges may go wrong before the soak ends.
const failuresMax = 12

// counts are the exchanges of one kind, by their end.
type counts struct {
	whole, left, cut, wrong, failed int
	bytes                           int64
}

// unknown is the kind of what reaches a backend and is no exchange of ours.
const unknown = "unknown"

// tally counts exchanges and keeps what is known of those that went wrong.
type tally struct {
	mu       sync.Mutex
	counts   map[string]*counts
	failures []failure
	stop     func() // ends the soak
}

// failure is an exchange that went wrong.
type failure struct {
	kind  string
	order order
	facts facts
	err   error
	at    time.Time
	lines []string // what the proxies' access logs say of it
}

// facts are what the client knows beside the order.
type facts struct {
	local  string // its address
	reused bool   // the connection had served before
	more   string
	took   time.Duration
}

func (f *failure) String() string {
	return fmt.Sprintf("%s at %s: %v\n  order %s\n  from %q after %s; connection reused: %t; %s\n  access logs:\n    %s", f.kind,
		f.at.Format("15:04:05.000"), f.err, &f.order, f.facts.local, f.facts.took, f.facts.reused, f.facts.more, strings.Join(f.lines, "\n    "))
}

func (t *tally) of(kind string) *counts {
	c := t.counts[kind]
	if c == nil {
		c = &counts{}
		t.counts[kind] = c
	}
	return c
}

// add counts an exchange, or what a backend says of one.
func (t *tally) add(kind string, o *order, f *facts, err error, backend bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.of(kind)
	if !backend {
		c.bytes += int64(o.Up + o.Down)
	}
	switch {
	case err == nil && o.byBackend():
		err = wrong("the answer is complete, although the backend ended it after %d of %d bytes", o.DownAt, o.Down)
		c.wrong++
	case isWrong(err):
		c.wrong++
	case stalled(err):
		c.failed++
		err = fmt.Errorf("stalled: %w", err)
	case o.byClient():
		c.left++
		return
	case o.byBackend():
		c.cut++
		return
	case err == nil:
		c.whole++
		return
	default:
		c.failed++
	}
	if len(t.failures) < failuresMax {
		t.failures = append(t.failures, failure{kind: kind, order: *o, facts: *f, err: err, at: time.Now()})
	}
	if len(t.failures) == failuresMax {
		t.stop()
	}
}

// table is the account of all kinds.
func (t *tally) table(kinds []string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "kind\texchanges\twhole\tleft by us\tcut by the backend\tMiB\twrong\tfailed\t")
	sum := counts{}
	row := func(name string, c *counts) {
		n := c.whole + c.left + c.cut + c.wrong + c.failed
		if n == 0 {
			return
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", name, n, c.whole, c.left, c.cut, c.bytes>>20, c.wrong, c.failed)
	}
	for _, k := range append(kinds, unknown) {
		c := t.of(k)
		row(k, c)
		sum.whole, sum.left, sum.cut = sum.whole+c.whole, sum.left+c.left, sum.cut+c.cut
		sum.wrong, sum.failed, sum.bytes = sum.wrong+c.wrong, sum.failed+c.failed, sum.bytes+c.bytes
	}
	row("all", &sum)
	_ = w.Flush()
	return b.String()
}

// player plays one exchange after another; it is one worker's.
type player interface {
	play(ctx context.Context, w *worker)
	close()
}

// worker has a player play until the soak ends.
type worker struct {
	kind   string
	number uint64
	rnd    *rand.Rand
	player player
	tally  *tally
	count  uint64
	began  time.Time
}

// The bits of an exchange's ID: the soak's seed is not in it, but what is drawn for an exchange depends on both.
const countBits = 32

// order draws the next exchange.
func (w *worker) order(ends ...string) *order {
	w.count++
	return newOrder(w.number<<countBits|w.count, w.rnd, ends...)
}

// end tells how an exchange went.
func (w *worker) end(o *order, f *facts, err error) {
	f.took = time.Since(w.began).Round(time.Millisecond)
	w.tally.add(w.kind, o, f, err, false)
}

// work plays until ctx ends; the exchange that runs then is played to its end.
func (w *worker) work(ctx context.Context) {
	defer w.player.close()
	for ctx.Err() == nil {
		each, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		w.began = time.Now()
		w.player.play(each, w)
		cancel()
		_ = pause(ctx, time.Duration(w.rnd.IntN(int(restMax))))
	}
}
