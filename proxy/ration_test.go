package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/telemetry"
)

// TestRation: a flood of one message leaves some lines and a count, and takes nothing from other messages.
func TestRation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &lines{}
		h := newRation(slog.NewTextHandler(out, nil))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { h.run(ctx); close(done) }()
		log := slog.New(h).With("part", "x")
		for range 1000 {
			log.Info("flood")
		}
		log.Info("rare")
		synctest.Wait()
		if n := strings.Count(out.String(), "msg=flood"); n != rationBurst {
			t.Errorf("%d lines of the flood, want %d", n, rationBurst)
		}
		if !strings.Contains(out.String(), "msg=rare part=x\n") {
			t.Errorf("another message suffers from the flood: %s", out)
		}
		<-time.After(rationEvery)
		log.Info("flood")
		log.Info("flood") // there is a token for one
		cancel()
		<-done
		if n := strings.Count(out.String(), "msg=flood"); n != rationBurst+1 || !strings.Contains(out.String(), fmt.Sprintf("dropped=%d", 1000-rationBurst)) {
			t.Errorf("%d lines, want one more, which tells of %d dropped: %s", n, 1000-rationBurst, out)
		}
	})
}

// TestRationBounded: messages that are no constants share one ration in the end.
func TestRationBounded(t *testing.T) {
	h := newRation(slog.DiscardHandler)
	h.next = slog.NewTextHandler(&lines{}, nil)
	log := slog.New(h)
	for i := range 10 * rationMessages {
		log.Info(fmt.Sprint("message ", i))
	}
	if n := len(h.shared.buckets); n > rationMessages+1 {
		t.Errorf("%d buckets, want at most %d", n, rationMessages+1)
	}
}

// TestRationNeverWaits: an output that takes nothing holds up nobody, and what it cost is told when it goes on.
func TestRationNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := &stuckHandler{open: make(chan struct{})}
		h := newRation(stuck)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { h.run(ctx); close(done) }()
		log := slog.New(h)
		log.Info("m0")
		synctest.Wait()                  // it hangs in the output
		for i := range rationQueue / 4 { // of 10 lines each: more than the queue holds
			for range rationBurst {
				log.Info(fmt.Sprint("m", i%(rationMessages/2)))
			}
			<-time.After(rationBurst * rationEvery)
		}
		close(stuck.open)
		synctest.Wait()
		log.Info("m0")
		cancel()
		<-done
		if want := 1 + rationQueue + 1; stuck.n != want || stuck.dropped == 0 {
			t.Errorf("%d lines, the last with %d dropped; want %d lines, and to be told of the others", stuck.n, stuck.dropped, want)
		}
	})
}

// stuckHandler takes no line until it is opened.
type stuckHandler struct {
	open    chan struct{}
	n       int
	dropped uint64 // of the last line
}

func (*stuckHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h *stuckHandler) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h *stuckHandler) WithGroup(string) slog.Handler          { return h }
func (h *stuckHandler) Handle(_ context.Context, r slog.Record) error {
	<-h.open
	h.n++
	h.dropped = 0
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "dropped" {
			h.dropped = a.Value.Uint64()
		}
		return true
	})
	return nil
}

// TestRefusalsAreRationed: clients that are refused again and again cannot fill the log.
func TestRefusalsAreRationed(t *testing.T) {
	r := startRig(t)
	refused := errors.New("the client's fault")
	r.onLoop(func(w *worker) {
		s := &session{w: w, c: &loop.Conn{}, started: w.loop.Elapsed(), proof: nothingProven}
		for range 500 {
			w.recordRefusal(s, telemetry.MTLSRequired, refused)
		}
	})
	r.stop()
	if n := strings.Count(r.logs.String(), "connection refused"); n == 0 || n > rationBurst+1 {
		t.Errorf("%d lines of 500 refusals, want no more than %d", n, rationBurst+1)
	}
}
