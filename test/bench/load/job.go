package load

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
)

// The kinds of load. An operation is a request and its answer; of Ping a message and its echo; of Connect a connection
// with one echo on it; of Bulk it is a byte; of Stream a message on a stream that is open and its echo.
const (
	HTTP1   = "http1"
	Close   = "http1-close" // a connection for each request
	GRPC    = "grpc"
	Stream  = "grpc-stream"
	HTTP2   = "http2" // requests without a body, and answers without trailers
	Ping    = "ping"
	Connect = "connect"
	Bulk    = "bulk"
	Hold    = "hold" // HTTP1 with one request on each connection, all of which then stay; the memory is what counts
)

// Job says what load to make.
type Job struct {
	Kind   string
	Target netip.AddrPort
	// Connections are used at the same time; Streams on each of them at the same time, for GRPC, Stream and HTTP2.
	Connections, Streams int
	// Rate is the number of operations per second, begun when they are due and not when there is room for them;
	// 0: each connection or stream begins one when the one before it has ended.
	Rate float64
	// Size is that of an answer's body in bytes, or of a message.
	Size int
	// Warm is how long load is made before it counts, and For how long it counts.
	Warm, For time.Duration
	// TLS, if not nil, is spoken by HTTP1, Hold and Ping.
	TLS *TLS
	// PIDs are the processes whose CPU time is read at the begin and end of what counts.
	PIDs []int
}

// Result is what came of a Job.
type Result struct {
	Operations uint64
	Elapsed    time.Duration
	// CPU is what the processes of the job used, Own what the generator itself used.
	CPU, Own time.Duration
	// P50, P99 and P999 are quantiles of the operations' durations.
	P50, P99, P999 time.Duration
	// Late is how many operations were due but not begun at the end, of a Job with a Rate.
	Late int
	// Memory is the anonymous memory of the processes of a Hold, in bytes, with all connections idle for the time of For:
	// connections map no files.
	Memory int64
}

const (
	// patience bounds how long one operation may take; beyond it the run fails.
	patience = 3 * time.Second
	// tick is how often the clock is looked at when nothing happens.
	tick = 10 * time.Millisecond
)

var errNotThese = errors.New("the processes that are watched have done nothing: others do the work")

var errIdle = errors.New("no operation has ended")

// slot is a place where one operation is under way at a time.
type slot interface {
	begin()
}

// run is one Job under way.
type run struct {
	*loop
	job     Job
	base    time.Time
	hist    histogram
	ops     uint64
	counts  bool
	started int64 // when counting began, ns since base; likewise below
	idle    []slot
	due     int64 // when the next operation is due
	every   int64 // 0: no rate
	active  map[*timing]struct{}
	tls     *tls.Config
	dialed  int // connections
	held    int // of a Hold
}

// timing is when the operation of a slot should have begun; 0: there is none.
type timing struct{ at int64 }

func (r *run) now() int64 { return int64(time.Since(r.base)) }

// Run makes load.
func Run(job Job) (Result, error) {
	l, err := newLoop()
	if err != nil {
		return Result{}, err
	}
	r := &run{loop: l, job: job, base: time.Now(), active: map[*timing]struct{}{}}
	if job.Rate > 0 {
		if job.Kind != HTTP1 && job.Kind != Ping {
			return Result{}, fmt.Errorf("load of kind %q has no rate", job.Kind)
		}
		r.every = int64(float64(time.Second) / job.Rate)
	}
	if err := r.connect(); err != nil {
		return Result{}, err
	}
	if job.Kind == Hold {
		return r.measureHold()
	}
	return r.measure()
}

// holdAtOnce is how many connections of a Hold are made at the same time.
const holdAtOnce = 16

// connect makes the connections; each of them begins by itself.
func (r *run) connect() error {
	if r.job.TLS != nil {
		if r.job.Kind != HTTP1 && r.job.Kind != Hold && r.job.Kind != Ping {
			return fmt.Errorf("load of kind %q speaks no TLS", r.job.Kind)
		}
		var err error
		if r.tls, err = r.job.TLS.Config(); err != nil {
			return err
		}
	}
	n := r.job.Connections
	if r.job.Kind == Hold {
		n = min(n, holdAtOnce)
	}
	for range n {
		if err := r.connectOne(); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) connectOne() error {
	var o owner
	switch r.job.Kind {
	case HTTP1, Close, Hold:
		o = newHTTP1Client(r)
	case GRPC, Stream, HTTP2:
		o = newHTTP2Client(r)
	case Ping, Connect, Bulk:
		o = newRawClient(r)
	default:
		return fmt.Errorf("load of kind %q is not known", r.job.Kind)
	}
	r.dialed++
	if r.tls != nil {
		return r.dialSecure(r.job.Target, r.tls, o)
	}
	return r.dial(r.job.Target, o)
}

// hold notes that one more connection of a Hold is idle.
func (r *run) hold() {
	r.held++
	if r.dialed < r.job.Connections {
		if err := r.connectOne(); err != nil {
			r.fail(err)
		}
	}
}

// measureHold runs the loop until all connections are idle, and so long after that as the job says.
func (r *run) measureHold() (Result, error) {
	var idle int64 // since when all are
	progress, held := r.now(), 0
	for r.err == nil {
		now := r.now()
		switch {
		case r.held == r.job.Connections && idle == 0:
			idle = now
		case idle > 0 && now-idle >= int64(r.job.For):
			_, memory, err := PSS(r.job.PIDs)
			return Result{Operations: uint64(r.held), Elapsed: time.Duration(now), Memory: memory}, err
		case r.held > held:
			progress, held = now, r.held
		case idle == 0 && now-progress > int64(patience):
			return Result{}, fmt.Errorf("only %d of %d connections were served", r.held, r.job.Connections)
		}
		r.wait(tick)
	}
	return Result{}, r.err
}

// measure runs the loop through the warming and what counts.
func (r *run) measure() (Result, error) {
	var out Result
	for r.err == nil {
		now := r.now()
		switch {
		case !r.counts && now >= int64(r.job.Warm):
			used, own, err := r.cpu()
			if err != nil {
				return out, err
			}
			r.counts, r.started, r.ops, r.hist = true, r.now(), 0, histogram{}
			out.CPU, out.Own = -used, -own
		case r.counts && now-r.started >= int64(r.job.For):
			return r.result(out)
		}
		r.wait(r.pace())
	}
	return out, r.err
}

func (r *run) result(out Result) (Result, error) {
	out.Operations, out.Elapsed = r.ops, time.Duration(r.now()-r.started)
	used, own, err := r.cpu()
	if err != nil {
		return out, err
	}
	out.CPU += used
	out.Own += own
	for t := range r.active {
		if t.at > 0 && r.now()-t.at > int64(patience) {
			return out, fmt.Errorf("an operation has not ended after %s", time.Duration(r.now()-t.at))
		}
	}
	if r.ops == 0 {
		return out, errIdle
	}
	if len(r.job.PIDs) > 0 && out.CPU == 0 {
		return out, errNotThese
	}
	quantile := func(q float64) time.Duration { return time.Duration(r.hist.quantile(q)) }
	out.P50, out.P99, out.P999 = quantile(0.5), quantile(0.99), quantile(0.999)
	if r.every > 0 {
		out.Late = int(max(0, r.now()-r.due) / r.every)
	}
	return out, nil
}

func (r *run) cpu() (used, own time.Duration, err error) {
	if used, err = CPU(r.job.PIDs); err != nil {
		return 0, 0, err
	}
	own, err = CPU([]int{os.Getpid()})
	return used, own, err
}

// pace begins what is due and returns how long there is nothing to begin.
func (r *run) pace() time.Duration {
	if r.every == 0 {
		return tick
	}
	now := r.now()
	for len(r.idle) > 0 && r.due <= now {
		s := r.idle[len(r.idle)-1]
		r.idle = r.idle[:len(r.idle)-1]
		s.begin()
	}
	if len(r.idle) == 0 {
		return tick
	}
	return min(tick, time.Duration(r.due-now))
}

// next is told by a slot that is free. The slot begins at once, or when an operation is due.
func (r *run) next(s slot) {
	if r.every == 0 {
		s.begin()
		return
	}
	if r.due == 0 {
		r.due = r.now() // the first one that is free starts the schedule
	}
	if r.due <= r.now() {
		s.begin()
		return
	}
	r.idle = append(r.idle, s)
}

// mark notes that an operation begins.
func (r *run) mark(t *timing) {
	if r.every == 0 {
		t.at = r.now()
		return
	}
	t.at = r.due
	r.due += r.every
}

// done notes that it has ended.
func (r *run) done(t *timing) {
	if r.counts {
		r.hist.add(r.now() - t.at)
		r.ops++
	}
	t.at = 0
}
