package http2

import "time"

// A guard is a budget of one kind of cheap nuisance. What is named in
// guardLimits may be spent at once; it grows back with time and with useful
// work, so that a busy peer has more of it than an idle one. Beyond it the
// connection ends with ENHANCE_YOUR_CALM.
type guard uint8

const (
	// guardReset: streams opened and soon reset, by the peer (CVE-2023-44487) or, through its fault, by us
	// (CVE-2025-8671). Each exchange served to its end earns one.
	guardReset guard = iota
	// guardControl: PING, SETTINGS, PRIORITY, unknown frames, resets of closed streams (CVE-2019-9512, CVE-2019-9515).
	// Each frame with a head or a body, either way, earns.
	guardControl
	// guardWindow: WINDOW_UPDATE (CVE-2019-9511, CVE-2019-9517). Each DATA frame sent earns, unless a tiny window cut it short.
	guardWindow
	// guardEmpty: DATA without bytes and without the end (CVE-2019-9518). DATA with bytes earns.
	guardEmpty
	guardKinds
)

// The budgets. A gRPC peer that measures bandwidth sends a PING per DATA
// frame, one that updates eagerly two WINDOW_UPDATEs; both earn more than they
// spend.
const (
	resetBurst, resetPerSecond     = 500, 100
	controlBurst, controlPerSecond = 1000, 200
	windowBurst, windowPerSecond   = 2000, 500
	emptyBurst, emptyPerSecond     = 100, 20

	// settingsCost is what a SETTINGS frame spends of guardControl: it makes us visit every stream.
	settingsCost = 10
	controlEarns = 2
	windowEarns  = 8
	// tinyData is the size in bytes below which a DATA frame that the peer's window cut short earns nothing.
	tinyData = 256
	// soonReset is the age below which a reset stream counts.
	soonReset = time.Second
	// guardRefill is how often budgets grow back with time.
	guardRefill = 100 * time.Millisecond
)

var guardLimits = [guardKinds]struct{ burst, perSecond int }{
	guardReset:   {resetBurst, resetPerSecond},
	guardControl: {controlBurst, controlPerSecond},
	guardWindow:  {windowBurst, windowPerSecond},
	guardEmpty:   {emptyBurst, emptyPerSecond},
}

// guardNames is what the peer is told.
var guardNames = [guardKinds]string{
	guardReset:   "too many streams were reset",
	guardControl: "too many control frames",
	guardWindow:  "too many window updates",
	guardEmpty:   "too many empty DATA frames",
}

// guards hold what has been spent; the zero value is nothing.
type guards struct {
	spent    [guardKinds]int
	refilled time.Duration
}

// spend takes n of guard g at time now since the connection's start and reports whether they were there.
func (s *guards) spend(g guard, n int, now time.Duration) bool {
	if d := now - s.refilled; d >= guardRefill {
		s.refilled = now
		d = min(d, time.Minute)
		for i := range s.spent {
			s.earn(guard(i), int(int64(guardLimits[i].perSecond)*int64(d)/int64(time.Second)))
		}
	}
	s.spent[g] += n
	return s.spent[g] <= guardLimits[g].burst
}

func (s *guards) earn(g guard, n int) { s.spent[g] = max(s.spent[g]-n, 0) }
