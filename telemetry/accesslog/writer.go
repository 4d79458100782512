package accesslog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	ringBytesDefault  = 256 << 10
	flushAfterDefault = time.Second
	// lastFlush is how long the last write may take when Run is to end.
	lastFlush = 2 * time.Second
	// lineKeepBytes bounds the memory that a Buffer keeps for formatting.
	lineKeepBytes = 64 << 10
)

// MetricDropped is the name under which Writer.Dropped is to be exposed.
const MetricDropped = "lateen_access_log_dropped_total"

// WriterConfig describes a Writer.
type WriterConfig struct {
	// Path is the file to append to, created with mode 0640 if need be; "/dev/stdout" is the usual one. Run opens it, and
	// tries again with each batch of lines while it cannot be opened; these lines are dropped and counted.
	Path string
	// Output is written to instead, if it is not nil.
	Output io.Writer
	// RingBytes is how much each Buffer holds while the output is slow, rounded up to a power of two; default 256 KiB.
	// What does not fit is dropped and counted.
	RingBytes int
	// FlushAfter is how long a line may wait for others to be written with it; default 1 second.
	FlushAfter time.Duration
	// Log is told when the output fails and when it works again.
	Log *slog.Logger
}

// Writer brings lines to a file or an io.Writer. Its callers never wait, not even
// for the file to be opened: each has a Buffer of its own, which one goroutine,
// that of Run, empties.
type Writer struct {
	cfg     WriterConfig
	failing bool   // belongs to Run
	joined  []byte // belongs to Run

	wake, full, reopen chan struct{} // of capacity 1: a signal that is pending is not sent again
	dropped            atomic.Uint64

	// mu guards buffers and, where it is not Run that reads, file.
	mu      sync.Mutex
	buffers []*Buffer
	file    *os.File // nil if Output is given, and while the file cannot be opened
}

// NewWriter prepares a writer. It touches no file, so that an event loop may call it.
func NewWriter(cfg WriterConfig) (*Writer, error) {
	if cfg.RingBytes <= 0 {
		cfg.RingBytes = ringBytesDefault
	}
	cfg.RingBytes = 1 << bits.Len(uint(cfg.RingBytes-1))
	if cfg.FlushAfter <= 0 {
		cfg.FlushAfter = flushAfterDefault
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	w := &Writer{cfg: cfg, wake: make(chan struct{}, 1), full: make(chan struct{}, 1), reopen: make(chan struct{}, 1)}
	if cfg.Output != nil {
		return w, nil
	}
	if cfg.Path == "" {
		return nil, errors.New("open access log: neither a path nor an output is given")
	}
	return w, nil
}

// Buffer returns a new Buffer, for one event loop.
func (w *Writer) Buffer() *Buffer {
	b := &Buffer{writer: w}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buffers = append(w.buffers, b)
	return b
}

// Dropped is the number of lines that were dropped so far, because a Buffer was full or the output failed.
func (w *Writer) Dropped() uint64 { return w.dropped.Load() }

// Reopen asks for the file to be opened anew, after a log rotation moved it away. It does not wait.
func (w *Writer) Reopen() { signal(w.reopen) }

// Run opens the file and writes until ctx ends, then writes what is left and
// closes the file. Lines that are logged later are lost. It must be called once.
func (w *Writer) Run(ctx context.Context) error {
	if w.cfg.Output == nil {
		if err := w.open(); err != nil {
			w.fail(err)
		}
	}
	flush := time.NewTimer(0)
	flush.Stop()
	defer flush.Stop()
	stop := context.AfterFunc(ctx, w.hurry)
	defer stop()
	waiting := false // for flush
	for {
		select {
		case <-w.wake:
			if !waiting {
				waiting = true
				flush.Reset(w.cfg.FlushAfter)
			}
		case <-w.full:
			w.drain()
		case <-flush.C:
			waiting = false
			w.drain()
		case <-w.reopen:
			w.drain()
			w.replace()
		case <-ctx.Done():
			w.drain()
			if w.file == nil {
				return nil
			}
			return w.file.Close()
		}
	}
}

// hurry lets a write that hangs, as one into a pipe that nobody reads can, end soon.
func (w *Writer) hurry() {
	out, _ := w.cfg.Output.(interface{ SetWriteDeadline(time.Time) error })
	if w.cfg.Output == nil {
		w.mu.Lock()
		out = w.file
		w.mu.Unlock()
	}
	if out != nil {
		// Files that know no deadline do not hang either.
		_ = out.SetWriteDeadline(time.Now().Add(lastFlush))
	}
}

// drain writes what every ring holds, with one write for each.
func (w *Writer) drain() {
	w.mu.Lock()
	buffers := w.buffers
	w.mu.Unlock()
	for _, b := range buffers {
		r := b.ring.Load()
		if r == nil {
			continue
		}
		first, second := r.take()
		n := len(first) + len(second)
		if n == 0 {
			continue
		}
		if len(second) > 0 {
			// One write, because another process may append to the same file.
			w.joined = append(append(w.joined[:0], first...), second...)
			first = w.joined
		}
		w.write(first)
		r.release(n)
		if r.fill() > 0 {
			signal(w.wake) // its loop may have found the ring not empty and told nobody
		}
	}
}

func (w *Writer) write(lines []byte) {
	n, err := w.put(lines)
	if err == nil {
		if w.failing {
			w.failing = false
			w.cfg.Log.Info("access log is written again", "output", w.name(), "dropped", w.Dropped())
		}
		return
	}
	w.dropped.Add(uint64(bytes.Count(lines[max(0, min(n, len(lines))):], []byte("\n"))))
	w.fail(err)
}

// put writes to the output, and opens the file before if that did not succeed so far.
func (w *Writer) put(lines []byte) (int, error) {
	if w.cfg.Output != nil {
		return w.cfg.Output.Write(lines)
	}
	if w.file == nil {
		if err := w.open(); err != nil {
			return 0, err
		}
	}
	return w.file.Write(lines)
}

// fail tells once that lines are being dropped.
func (w *Writer) fail(err error) {
	if !w.failing {
		w.failing = true
		w.cfg.Log.Error("access log lines are dropped: check the folder, the disk's space and the file's permissions",
			"output", w.name(), "error", err)
	}
}

// replace opens the file anew and keeps the old one if it cannot be opened.
func (w *Writer) replace() {
	if w.cfg.Output != nil {
		return
	}
	old := w.file
	err := w.open()
	switch {
	case err != nil && old == nil:
		w.fail(err)
		return
	case err != nil:
		w.cfg.Log.Error("access log goes on in the old file", "error", err)
		return
	case old == nil:
		return
	}
	if err := old.Close(); err != nil {
		w.cfg.Log.Error("close the old access log", "error", err)
	}
}

func (w *Writer) open() error {
	// Without O_NONBLOCK, opening a named pipe would wait for its reader, maybe for ever (fifo(7)).
	file, err := os.OpenFile(w.cfg.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o640)
	if err != nil {
		return fmt.Errorf("open access log: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.file = file
	return nil
}

func (w *Writer) name() string {
	if w.cfg.Output != nil {
		return fmt.Sprintf("%T", w.cfg.Output)
	}
	return w.cfg.Path
}

// Buffer is one event loop's way to a Writer. Only the goroutine that owns it
// may call its methods.
type Buffer struct {
	writer *Writer
	ring   atomic.Pointer[ring] // made at the first line, so that a loop that logs nothing holds nothing
	line   []byte
}

// Log formats a line and leaves it to the Writer. It never waits, and it
// allocates only until its memory has reached its working size. A line that finds
// no room is dropped and counted.
func (b *Buffer) Log(f *Format, e *Entry) {
	b.line = f.Append(b.line[:0], e)
	r := b.ring.Load()
	if r == nil {
		r = &ring{buf: make([]byte, b.writer.cfg.RingBytes)}
		b.ring.Store(r)
	}
	ok, wake := r.push(b.line)
	switch {
	case !ok:
		b.writer.dropped.Add(1)
		signal(b.writer.full)
	case wake:
		signal(b.writer.wake)
	case r.fill() > len(r.buf)/2:
		signal(b.writer.full)
	}
	if cap(b.line) > lineKeepBytes {
		b.line = nil
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
