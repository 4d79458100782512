package accesslog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// output is an io.Writer that keeps what it gets and can fail or hang.
type output struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	sizes []int
	err   error
	hang  chan struct{} // Write waits for it to be closed
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	hang := o.hang
	o.mu.Unlock()
	if hang != nil {
		<-hang
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return 0, o.err
	}
	o.sizes = append(o.sizes, len(p))
	return o.buf.Write(p)
}

func (o *output) set(err error, hang chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err, o.hang = err, hang
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) writes() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.sizes)
}

// run starts the writer and returns what ends it.
func run(t *testing.T, w *Writer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func numbered(n int) *Entry { return &Entry{BytesSent: uint64(n)} }

func TestWriterBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{}
		w, err := NewWriter(WriterConfig{Output: out})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, w)
		f, b := compile(t, Config{Text: "%BYTES_SENT%"}), w.Buffer()
		var want strings.Builder
		for i := range 1000 {
			b.Log(f, numbered(i))
			fmt.Fprintln(&want, i)
		}
		synctest.Wait()
		if got := out.String(); got != "" {
			t.Errorf("%d bytes were written at once", len(got))
		}
		<-time.After(flushAfterDefault)
		synctest.Wait()
		if out.String() != want.String() || out.writes() != 1 {
			t.Errorf("after a second: %d bytes of %d, in %d writes", len(out.String()), want.Len(), out.writes())
		}
		b.Log(f, numbered(7)) // the timer starts again
		<-time.After(flushAfterDefault)
		synctest.Wait()
		if !strings.HasSuffix(out.String(), "\n7\n") {
			t.Error("a line after a flush was not flushed")
		}
		b.Log(f, numbered(8))
		stop()
		if !strings.HasSuffix(out.String(), "\n7\n8\n") || w.Dropped() != 0 {
			t.Errorf("the end of Run lost a line; %d were dropped", w.Dropped())
		}
	})
}

func TestWriterHalfFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{}
		w, _ := NewWriter(WriterConfig{Output: out, RingBytes: 1000, FlushAfter: time.Hour})
		defer run(t, w)()
		f, b := compile(t, Config{Text: strings.Repeat("x", 99)}), w.Buffer()
		for range 5 {
			b.Log(f, numbered(0))
		}
		synctest.Wait()
		if out.writes() != 0 {
			t.Error("a ring that is less than half full was written before its time")
		}
		b.Log(f, numbered(0))
		synctest.Wait()
		if got := len(out.String()); got != 600 {
			t.Errorf("%d bytes were written, want 600: the ring holds 1024", got)
		}
	})
}

func TestWriterNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{hang: make(chan struct{})}
		w, _ := NewWriter(WriterConfig{Output: out, RingBytes: 1024})
		stop := run(t, w)
		f, b := compile(t, Config{Text: strings.Repeat("x", 99)}), w.Buffer()
		huge := compile(t, Config{Text: strings.Repeat("x", 5000)})
		for range 100 {
			b.Log(f, numbered(0))
		}
		b.Log(huge, numbered(0))
		if got := w.Dropped(); got != 100-10+1 {
			t.Errorf("%d lines were dropped, want 91", got)
		}
		close(out.hang)
		stop()
		if got := strings.Count(out.String(), "\n"); got != 10 {
			t.Errorf("%d lines were written, want the 10 that fit", got)
		}
	})
}

func TestWriterOutputFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{err: errors.New("no space left on device")}
		var log output
		w, _ := NewWriter(WriterConfig{Output: out, Log: slog.New(slog.NewTextHandler(&log, nil))})
		stop := run(t, w)
		f, b := compile(t, Config{}), w.Buffer()
		for range 2 {
			b.Log(f, numbered(0))
			b.Log(f, numbered(0))
			<-time.After(flushAfterDefault)
			synctest.Wait()
		}
		if w.Dropped() != 4 || strings.Count(log.String(), "level=ERROR") != 1 || !strings.Contains(log.String(), "no space left on device") {
			t.Errorf("%d dropped, log: %s", w.Dropped(), log.String())
		}
		out.set(nil, nil)
		b.Log(f, numbered(0))
		stop()
		if w.Dropped() != 4 || !strings.Contains(log.String(), "access log is written again") {
			t.Errorf("%d dropped, log: %s", w.Dropped(), log.String())
		}
	})
}

func TestWriterReopens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	w, err := NewWriter(WriterConfig{Path: path, FlushAfter: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, w)
	f, b := compile(t, Config{Text: "%BYTES_SENT%"}), w.Buffer()
	b.Log(f, numbered(1))
	await(t, path, "1\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	b.Log(f, numbered(2))
	await(t, path+".1", "1\n2\n")
	w.Reopen()
	await(t, path, "")
	b.Log(f, numbered(3))
	await(t, path, "3\n")
	stop()
	if got, err := os.ReadFile(path + ".1"); err != nil || string(got) != "1\n2\n" {
		t.Errorf("the old file holds %q, %v", got, err)
	}
}

// await waits until the file exists and holds want.
func await(t *testing.T, path, want string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(10 * time.Second); ; {
		got, err := os.ReadFile(path)
		if err == nil && string(got) == want {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s holds %q, %v; want %q", filepath.Base(path), got, err, want)
		}
	}
}

func TestWriterErrors(t *testing.T) {
	if _, err := NewWriter(WriterConfig{}); err == nil {
		t.Error("a writer without an output was made")
	}
}

// TestWriterOpensLater: a file that cannot be opened, or a pipe without a reader, costs lines but neither a wait nor
// more than one message; it is written as soon as it can be.
func TestWriterOpensLater(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, path string)
		mend    func(t *testing.T, path string) (read func() string)
	}{
		{
			"no folder", func(*testing.T, string) {},
			func(t *testing.T, path string) func() string {
				if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				return func() string {
					text, _ := os.ReadFile(path)
					return string(text)
				}
			},
		},
		{
			"a pipe without a reader",
			func(t *testing.T, path string) {
				if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), syscall.Mkfifo(path, 0o600)); err != nil {
					t.Fatal(err)
				}
			},
			func(t *testing.T, path string) func() string {
				f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = f.Close() })
				return func() string {
					if err := f.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
						t.Fatal(err)
					}
					text := make([]byte, 1)
					n, _ := f.Read(text)
					return string(text[:n])
				}
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "folder", "access.log")
			tt.prepare(t, path)
			var log bytes.Buffer
			w, err := NewWriter(WriterConfig{Path: path, FlushAfter: time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			f, b := compile(t, Config{Text: "x"}), w.Buffer()
			stop := sync.OnceFunc(run(t, w))
			defer stop()
			tick := time.NewTicker(2 * time.Millisecond)
			defer tick.Stop()
			deadline := time.After(10 * time.Second)
			until := func(what string, cond func() bool) {
				t.Helper()
				for !cond() {
					b.Log(f, numbered(1))
					select {
					case <-tick.C:
					case <-deadline:
						t.Fatalf("not so after 10 s: %s", what)
					}
				}
			}
			until("lines are dropped", func() bool { return w.Dropped() >= 3 })
			read := tt.mend(t, path)
			until("a line is written", func() bool { return strings.HasPrefix(read(), "x") })
			stop()
			if n := strings.Count(log.String(), "level=ERROR"); n != 1 || !strings.Contains(log.String(), path) {
				t.Errorf("%d errors, want 1 that names the file: %s", n, log.String())
			}
		})
	}
}

// TestWriterEndsBesideAHungPipe: a reader of the log that stopped reading must not keep the proxy from stopping.
func TestWriterEndsBesideAHungPipe(t *testing.T) {
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), pipe.Close() })
	w, _ := NewWriter(WriterConfig{Output: pipe, RingBytes: 1 << 20, FlushAfter: time.Millisecond})
	stop := run(t, w)
	f, b := compile(t, Config{Text: strings.Repeat("x", 1000)}), w.Buffer()
	for range 1000 { // far more than a pipe holds
		b.Log(f, numbered(0))
	}
	stop()
	if w.Dropped() == 0 {
		t.Error("what did not fit into the pipe was not counted")
	}
}

// TestWriterManyLoops: lines stay whole, each loop's stay in order, and each is either written or counted.
func TestWriterManyLoops(t *testing.T) {
	const loops, lines = 4, 5000
	out := &output{}
	w, _ := NewWriter(WriterConfig{Output: out, RingBytes: 8 << 10, FlushAfter: time.Millisecond})
	stop := run(t, w)
	f := compile(t, Config{Text: "%CONNECTION_ID% %BYTES_SENT% " + strings.Repeat("y", 50)})
	var wg sync.WaitGroup
	for loop := range loops {
		b := w.Buffer()
		wg.Go(func() {
			for i := range lines {
				b.Log(f, &Entry{ConnectionID: uint64(loop), BytesSent: uint64(i)})
			}
		})
	}
	wg.Wait()
	stop()
	last, n := [loops]int{-1, -1, -1, -1}, 0
	for line := range strings.Lines(out.String()) {
		var loop, i int
		var pad string
		if _, err := fmt.Sscanf(line, "%d %d %s\n", &loop, &i, &pad); err != nil || len(pad) != 50 || i <= last[loop] {
			t.Fatalf("line %q after %d: %v", line, last[loop], err)
		}
		last[loop] = i
		n++
	}
	if uint64(n)+w.Dropped() != loops*lines || n == 0 {
		t.Errorf("%d lines written and %d dropped, of %d", n, w.Dropped(), loops*lines)
	}
}

func TestLogAllocations(t *testing.T) {
	w, _ := NewWriter(WriterConfig{Output: io.Discard})
	f, b, e := compile(t, Config{}), w.Buffer(), entry()
	e.Request, e.Response, e.Trailers = nil, nil, nil
	// The first, unmeasured run makes the ring; later it is full, and drops.
	if n := testing.AllocsPerRun(5000, func() { b.Log(f, e) }); n != 0 {
		t.Errorf("Log allocates %v times, want 0", n)
	}
	if w.Dropped() == 0 {
		t.Error("the ring was expected to be full")
	}
}

// TestRing plays random pushes and takes against a plain buffer.
func TestRing(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	r := ring{buf: make([]byte, 64)}
	var want, got bytes.Buffer
	for range 10_000 {
		line := bytes.Repeat([]byte{byte('a' + rng.IntN(26))}, rng.IntN(70))
		before := r.fill()
		ok, wake := r.push(line)
		if ok != (before+len(line) <= 64) || wake != (ok && before == 0) {
			t.Fatalf("push of %d over %d: ok %v, wake %v", len(line), before, ok, wake)
		}
		if ok {
			want.Write(line)
		}
		if rng.IntN(3) == 0 {
			first, second := r.take()
			got.Write(first)
			got.Write(second)
			r.release(len(first) + len(second))
		}
	}
	first, second := r.take()
	got.Write(first)
	got.Write(second)
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%d bytes came out, %d went in, or they differ", got.Len(), want.Len())
	}
}

func BenchmarkLog(b *testing.B) {
	w, _ := NewWriter(WriterConfig{Output: io.Discard})
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.Run(ctx) })
	f, buf, e := compile(b, Config{}), w.Buffer(), entry()
	e.Request, e.Response, e.Trailers = nil, nil, nil
	b.ReportAllocs()
	for b.Loop() {
		buf.Log(f, e)
	}
	cancel()
	wg.Wait()
}
