// Package loop is the event loop of the proxy: it moves bytes between sockets
// and the codecs, which are written against Conn and Handler.
//
// A Loop is one ordinary goroutine that owns an epoll instance, which the Go
// runtime's poller watches. It works in batches: take what is ready, let each
// ready connection read once and its handler act, then give the kernel the
// output of each touched connection once. Nothing is shared between loops. A
// connection that has been used and is idle owns no buffer and no goroutine;
// in steady state plaintext allocates nothing.
//
// In: listening sockets, addresses to dial, functions posted by other
// goroutines. Out: callbacks. It must not know protocols above TLS, routes or
// the plan. Only Post may be called from any goroutine; everything else runs on
// the loop (inside a callback, a timer or a posted function), or before Run.
package loop

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// batchBytes ends a batch's reading, so that what was read is sent on and small connections do not wait for large ones.
	batchBytes = 1 << 20
	// outputBytesMax is what a connection may have waiting for the kernel. Beyond it, the handler has ignored Full for long.
	outputBytesMax = 64 << 20
	// postedMax is how many posted functions wait before Post slows its callers down.
	postedMax = 64 << 10
	// postWait is the longest time that Post holds a caller back.
	postWait = 10 * time.Millisecond
	// yieldEvery is the longest time for which a loop with work keeps its
	// processor. The runtime would preempt it only after 10 ms, during which
	// handshakes on the same processor stand still; yielding at each batch would
	// wake another processor each time.
	yieldEvery = time.Millisecond
)

// Errors that OnClose, Dial and the handshake report, wrapped.
var (
	// ErrTooLong is the end of a connection whose handler wanted more than KeepBytesMax for one message.
	ErrTooLong = errors.New("message longer than the bytes kept for it")
	// ErrOverflow is the end of a connection whose handler kept writing while the peer did not read.
	ErrOverflow = errors.New("peer does not take the output")
	// ErrTimeout is a connect or a handshake that took too long.
	ErrTimeout = errors.New("timed out")
	// ErrBusy is a handshake refused because too many are under way on the loop.
	ErrBusy = errors.New("too many handshakes at once")
	// ErrCarried is a handshake on a connection that has no socket, only a Carrier.
	ErrCarried = errors.New("TLS inside of a tunnel is not supported")
	// ErrStopped is what the end of Run does to all that is open.
	ErrStopped = errors.New("the event loop has stopped")
)

// Config sets a loop up. The zero value is ready for use.
type Config struct {
	// Logger gets what no callback can be told, such as running out of file descriptors; nil discards it.
	Logger *slog.Logger
	// ReadBytes is the most that one read takes; default 256 KiB. It is the main knob for bulk throughput.
	ReadBytes int
	// KeepBytesMax is the longest incomplete message that is kept for a connection; default 64 KiB.
	KeepBytesMax int
	// HighWater is the waiting output, in bytes, above which a connection is Full; default 256 KiB.
	HighWater int
	// LowWater is the waiting output, in bytes, at which a Full connection calls OnDrain; default a quarter of HighWater.
	LowWater int
	// CloseTimeout bounds the time that Close spends on handing output over and on
	// waiting for the peer to close too; default 5 seconds.
	CloseTimeout time.Duration
	// StdlibTLS leaves TLS 1.3 to crypto/tls after the handshake too, as is always done with earlier versions and in
	// FIPS 140 mode. By default our own record layer goes on, which is faster and holds less memory.
	StdlibTLS bool
	// Accelerated says that bytes may come to a socket on two ways, of which TCP is one (redirect/accelerate). What has
	// come on the other is read alone: a short read does not say that nothing is left, and reading goes on until the
	// kernel says so. Urgent data is read in its place then, as on the other way (RFC 6093 section 6), and else skipped.
	Accelerated bool
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.ReadBytes = cmp.Or(c.ReadBytes, 256<<10)
	c.KeepBytesMax = cmp.Or(c.KeepBytesMax, 64<<10)
	c.HighWater = cmp.Or(c.HighWater, 256<<10)
	c.LowWater = cmp.Or(c.LowWater, c.HighWater/4, 1)
	c.CloseTimeout = cmp.Or(c.CloseTimeout, 5*time.Second)
	return c
}

func (c Config) validate() error {
	var errs []error
	for _, v := range []struct {
		name  string
		value int
	}{{"ReadBytes", c.ReadBytes}, {"KeepBytesMax", c.KeepBytesMax}, {"HighWater", c.HighWater}, {"LowWater", c.LowWater}} {
		if v.value <= 0 || v.value > math.MaxInt32 {
			errs = append(errs, fmt.Errorf("loop config: %s is %d bytes; use a positive number below 2 GiB", v.name, v.value))
		}
	}
	if c.LowWater > c.HighWater {
		errs = append(errs, fmt.Errorf("loop config: LowWater %d is above HighWater %d; lower it or leave it out", c.LowWater, c.HighWater))
	}
	if c.CloseTimeout < 0 {
		errs = append(errs, fmt.Errorf("loop config: CloseTimeout is %v; use a positive duration", c.CloseTimeout))
	}
	return errors.Join(errs...)
}

// Loop is an event loop. Each Loop that New returns must be Run, also to give its descriptors back.
type Loop struct {
	cfg      Config
	poll     *poller
	wake     *waker
	slots    []slot // by file descriptor
	open     int    // occupied slots, the waker's not counted
	running  atomic.Bool
	stopping bool

	start   time.Time
	now     time.Time     // of this batch
	elapsed time.Duration // now - start
	timers  timers
	yielded time.Time // when other goroutines last had their turn

	ready  []*Conn // to be served: may have something to read or to offer
	dirty  []*Conn // to be settled: touched in this batch
	budget int     // bytes that this batch may still read

	plain      []byte // scratch for what handlers see: kept bytes, then one read
	cipher     []byte // scratch for what TLS reads; made for the first TLS connection
	joined     []byte // scratch of Feed; nil while in use and before
	chunks     chunks
	ranges     []unix.Iovec // scratch of send
	message    unix.Msghdr  // scratch of send
	from       unix.RawSockaddrAny
	handshakes int            // goroutines under way
	helpers    sync.WaitGroup // the same, until they have really ended
	peers      certificates   // of the connections that are open

	mu     sync.Mutex
	posted []func()      // waiting
	room   chan struct{} // closed when posted is taken; nil if nobody waits for that
	ended  bool          // nothing is taken any more
	taken  []func()      // the loop's: being run
}

// source is what a descriptor's events are for.
type source interface {
	ready(events uint32)
	stop() // the loop ends
}

// slot is a descriptor's place. gen tells its present owner from former ones of the same number.
type slot struct {
	src source
	gen uint32
}

// New makes a loop that is to be Run.
func New(cfg Config) (*Loop, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	p, err := newPoller()
	if err != nil {
		return nil, fmt.Errorf("new event loop: %w", err)
	}
	now := time.Now()
	l := &Loop{
		cfg: cfg, poll: p, start: now, now: now,
		plain:  make([]byte, cfg.KeepBytesMax+cfg.ReadBytes+recordBytesMax),
		ranges: make([]unix.Iovec, 0, rangesPerSend),
	}
	if l.wake, err = newWaker(l); err != nil {
		p.close()
		return nil, fmt.Errorf("new event loop: %w", err)
	}
	return l, nil
}

// Run serves until ctx ends, then closes all that the loop owns, with
// ErrStopped, and returns nil. It returns when each goroutine that it started
// has ended. A loop runs once.
func (l *Loop) Run(ctx context.Context) error {
	if !l.running.CompareAndSwap(false, true) {
		return errors.New("run event loop: it runs already or has run")
	}
	told := make(chan struct{})
	forget := context.AfterFunc(ctx, func() {
		defer close(told)
		l.Post(l.stop)
	})
	var err error
	for err == nil && (!l.stopping || l.open > 0) {
		err = l.batch() //nolint:contextcheck // what a batch begins is ended by stop, which the end of ctx posts
	}
	if err != nil {
		l.stop()
		l.settleDirty() //nolint:contextcheck // as above
	}
	l.finish()
	if !forget() {
		<-told
	}
	return err
}

// Post has f run on the loop soon, in order of posting. It may be called from
// any goroutine. It never drops f while the loop runs, and holds the caller
// back for a bounded time if very many functions wait. It reports false, and f
// will not run, if Run has returned.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	if len(l.posted) >= postedMax && !l.ended {
		l.awaitRoom()
	}
	if l.ended {
		l.mu.Unlock()
		return false
	}
	l.posted = append(l.posted, f)
	if len(l.posted) == 1 {
		l.wake.wake() // under the lock, because finish closes the descriptor
	}
	l.mu.Unlock()
	return true
}

// awaitRoom waits until the loop has taken what is posted, or for postWait: loops that post to one another must not
// wait for ever. It is called with the lock, which it gives up meanwhile.
func (l *Loop) awaitRoom() {
	if l.room == nil {
		l.room = make(chan struct{})
	}
	room := l.room
	l.mu.Unlock()
	t := time.NewTimer(postWait)
	defer t.Stop()
	select {
	case <-room:
	case <-t.C:
	}
	l.mu.Lock()
}

// Now is the time at which the present batch began.
func (l *Loop) Now() time.Time { return l.now }

// Elapsed is the time from New to Now: a short form of Now for what is kept of many.
func (l *Loop) Elapsed() time.Duration { return l.elapsed }

// At is the time at which Elapsed was d.
func (l *Loop) At(d time.Duration) time.Time { return l.start.Add(d) }

// batch waits for something to do and does it.
func (l *Loop) batch() error {
	idle := len(l.ready) == 0 && len(l.dirty) == 0
	events, parked, err := l.poll.wait(idle, l.nextTimer(), l.now)
	if err != nil {
		return fmt.Errorf("run event loop: %w", err)
	}
	l.now = time.Now()
	l.elapsed = l.now.Sub(l.start)
	if parked {
		l.yielded = l.now
	}
	for i := range events {
		e := &events[i]
		if s := &l.slots[e.Fd]; s.src != nil && s.gen == uint32(e.Pad) {
			s.src.ready(e.Events)
		}
	}
	l.serveReady()
	l.fireTimers() // what has come in time is read first, also by a loop that was held up
	l.settleDirty()
	if l.now.Sub(l.yielded) >= yieldEvery {
		runtime.Gosched()
		l.yielded = l.now
	}
	return nil
}

// serveReady lets each ready connection read once, until the batch has read enough. Who is not served is first next time.
func (l *Loop) serveReady() {
	l.budget = batchBytes
	i := 0
	for n := len(l.ready); i < n && l.budget > 0; i++ {
		c := l.ready[i]
		c.flags &^= queued
		c.serve()
	}
	l.ready = drop(l.ready, i)
}

// settleDirty sends the output of each touched connection and completes what its handlers asked for. Connections that
// callbacks touch meanwhile are settled in the next batch, so that a handler that writes on each OnDrain does not keep the loop.
func (l *Loop) settleDirty() {
	n := len(l.dirty)
	for i := range n {
		c := l.dirty[i]
		c.flags &^= dirty
		c.settle()
	}
	l.dirty = drop(l.dirty, n)
}

// drop removes the first n of list and keeps its memory.
func drop(list []*Conn, n int) []*Conn {
	rest := copy(list, list[n:])
	clear(list[rest:])
	return list[:rest]
}

// enqueue has c served in this batch or the next.
func (l *Loop) enqueue(c *Conn) {
	if c.flags&queued == 0 {
		c.flags |= queued
		l.ready = append(l.ready, c)
	}
}

// touch has c settled at the end of the batch.
func (l *Loop) touch(c *Conn) {
	if c.flags&dirty == 0 {
		c.flags |= dirty
		l.dirty = append(l.dirty, c)
	}
}

// attach makes src the owner of fd's events.
func (l *Loop) attach(fd int, src source, events uint32) error {
	for fd >= len(l.slots) {
		l.slots = append(l.slots, slot{})
	}
	s := &l.slots[fd]
	s.gen++
	if err := l.poll.add(fd, s.gen, events); err != nil {
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	s.src = src
	l.open++
	return nil
}

// detach ends what attach began, before fd is closed.
func (l *Loop) detach(fd int) {
	l.slots[fd].src = nil
	l.open--
}

// stop begins the end: everything is closed, and Run returns when the last handshake has given its descriptor back.
func (l *Loop) stop() {
	l.stopping = true
	for i := range l.slots {
		if s := l.slots[i].src; s != nil {
			s.stop()
		}
	}
}

// finish refuses further posts, runs those that were accepted and gives the descriptors back.
func (l *Loop) finish() {
	l.helpers.Wait()
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.runPosted()
	l.wake.close()
	l.poll.close()
}

// runPosted runs what has been posted by now.
func (l *Loop) runPosted() {
	l.mu.Lock()
	l.posted, l.taken = l.taken[:0], l.posted
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
	l.mu.Unlock()
	for i, f := range l.taken {
		l.taken[i] = nil
		f()
	}
	if cap(l.taken) > postedMax {
		l.taken = nil
	}
}

// waker is an eventfd with which other goroutines end the loop's wait.
type waker struct {
	loop *Loop
	fd   int
}

func newWaker(l *Loop) (*waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	w := &waker{loop: l, fd: fd}
	// Edge-triggered: each write is an event, so the counter need not be read.
	if err := l.attach(fd, w, unix.EPOLLIN|unix.EPOLLET); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	l.open-- // not among what Run waits for
	return w, nil
}

func (w *waker) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.fd, one[:]) // fails only if the counter is full, after 2^64 - 2 posts
}

func (w *waker) ready(uint32) { w.loop.runPosted() }

func (w *waker) stop() {}

func (w *waker) close() { _ = unix.Close(w.fd) }
