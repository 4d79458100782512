package proxy

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// The bounds of what is logged at a peer's will.
const (
	// rationBurst is how many lines of one message may follow one another at once.
	rationBurst = 10
	// rationEvery is the time after which one more may.
	rationEvery = time.Second
	// rationMessages bounds the messages that are told apart; further ones share one ration.
	rationMessages = 64
	// rationQueue is how many lines wait to be written.
	rationQueue = 256
)

// ration is a slog.Handler for event loops and for whatever a peer can cause at will. Each message, which is a constant
// of the program, has a token bucket; the next line after some that were dropped says how many, as "dropped". Lines
// are written by run, so that nobody who logs waits for a slow output. Any goroutine may use it.
type ration struct {
	next   slog.Handler
	shared *rationShared
}

// rationShared is what a ration has in common with those derived from it.
type rationShared struct {
	queue chan rationed

	mu      sync.Mutex
	buckets map[string]*bucket
}

// rationed is a line on its way.
type rationed struct {
	to   slog.Handler
	line slog.Record
}

// bucket is what one message may still use.
type bucket struct {
	tokens  float64
	at      time.Time
	dropped uint64
}

func newRation(next slog.Handler) *ration {
	return &ration{next: next, shared: &rationShared{queue: make(chan rationed, rationQueue), buckets: map[string]*bucket{}}}
}

// Enabled implements slog.Handler.
func (h *ration) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// WithAttrs implements slog.Handler.
func (h *ration) WithAttrs(a []slog.Attr) slog.Handler {
	return &ration{next: h.next.WithAttrs(a), shared: h.shared}
}

// WithGroup implements slog.Handler.
func (h *ration) WithGroup(name string) slog.Handler {
	return &ration{next: h.next.WithGroup(name), shared: h.shared}
}

// Handle implements slog.Handler. It never waits.
func (h *ration) Handle(_ context.Context, r slog.Record) error {
	s := h.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bucket(r.Message, r.Time)
	b.tokens = min(rationBurst, b.tokens+float64(r.Time.Sub(b.at))/float64(rationEvery))
	b.at = r.Time
	if b.tokens < 1 {
		b.dropped++
		return nil
	}
	line := r.Clone()
	if b.dropped > 0 {
		line.AddAttrs(slog.Uint64("dropped", b.dropped))
	}
	select {
	case s.queue <- rationed{h.next, line}:
		b.tokens--
		b.dropped = 0
	default:
		b.dropped++
	}
	return nil
}

// bucket finds the bucket of a message. The caller holds mu.
func (s *rationShared) bucket(message string, now time.Time) *bucket {
	b := s.buckets[message]
	if b == nil && len(s.buckets) >= rationMessages {
		message = ""
		b = s.buckets[message]
	}
	if b == nil {
		b = &bucket{tokens: rationBurst, at: now}
		s.buckets[message] = b
	}
	return b
}

// run writes lines until ctx ends, and then those that wait.
func (h *ration) run(ctx context.Context) {
	for {
		select {
		case l := <-h.shared.queue:
			h.write(l)
		case <-ctx.Done():
			for {
				select {
				case l := <-h.shared.queue:
					h.write(l)
				default:
					return
				}
			}
		}
	}
}

func (*ration) write(l rationed) {
	_ = l.to.Handle(context.Background(), l.line) // slog has nowhere to tell of it either
}
