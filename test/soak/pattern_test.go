package soak

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// pieceMax is the most that is written or read at once.
const pieceMax = 64 << 10

// wrongError is an answer, or a request at the backend, that is not what was sent. Everything else is a failure.
type wrongError struct{ text string }

func (e *wrongError) Error() string { return e.text }

func wrong(format string, args ...any) error { return &wrongError{fmt.Sprintf(format, args...)} }

func isWrong(err error) bool {
	_, ok := errors.AsType[*wrongError](err)
	return ok
}

// fill makes the bytes from an offset on of the body that belongs to a seed. Any part of it can be made by itself, so
// that nothing of a body need be kept to compare it.
func fill(p []byte, seed uint64, off int) {
	var word [8]byte
	for len(p) > 0 {
		z := seed + uint64(off/8+1)*0x9E3779B97F4A7C15 // splitmix64
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		z = (z ^ z>>27) * 0x94D049BB133111EB
		z ^= z >> 31
		if off%8 == 0 && len(p) >= 8 {
			binary.LittleEndian.PutUint64(p, z)
			p, off = p[8:], off+8
			continue
		}
		binary.LittleEndian.PutUint64(word[:], z)
		n := copy(p, word[off%8:])
		p, off = p[n:], off+n
	}
}

// checker compares what it is given with the body of a seed. It is a writer.
type checker struct {
	seed uint64
	off  int
	want [pieceMax]byte
}

// Write refuses the first bytes that differ.
func (c *checker) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), pieceMax)
		want := c.want[:n]
		fill(want, c.seed, c.off)
		if !bytes.Equal(rest[:n], want) {
			i := 0
			for rest[i] == want[i] {
				i++
			}
			return 0, wrong("byte %d differs: got %x, want %x", c.off+i, rest[i:min(i+16, n)], want[i:min(i+16, n)])
		}
		rest, c.off = rest[n:], c.off+n
	}
	return len(p), nil
}

// pace says how fast a side reads or writes: in pieces of a random size, at times with pauses between them.
type pace struct {
	rnd  *rand.Rand
	slow bool
}

func newPace(o *order, way uint64) *pace {
	r := rand.New(rand.NewPCG(o.ID, way))
	return &pace{rnd: r, slow: r.IntN(slowOneIn) == 0}
}

// next is the size of the next piece, after a pause if there is to be one.
func (p *pace) next(ctx context.Context) (int, error) {
	if !p.slow {
		return 1 + p.rnd.IntN(pieceMax), nil
	}
	return 1 + p.rnd.IntN(pieceMax/4), pause(ctx, time.Duration(p.rnd.IntN(int(slowPause))))
}

// pause waits, as slow peers do.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send writes the first n bytes of a body.
func send(ctx context.Context, w io.Writer, seed uint64, n int, p *pace) error {
	buf := make([]byte, min(n, pieceMax))
	for off := 0; off < n; {
		size, err := p.next(ctx)
		if err != nil {
			return err
		}
		part := buf[:min(size, n-off)]
		fill(part, seed, off)
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("write after %d of %d bytes: %w", off, n, err)
		}
		off += len(part)
	}
	return nil
}

// receive reads n bytes of a body, and its end if end is set.
func receive(ctx context.Context, r io.Reader, seed uint64, n int, end bool, p *pace) (int, error) {
	c := &checker{seed: seed}
	buf := make([]byte, pieceMax)
	for end || c.off < n {
		size, err := p.next(ctx)
		if err != nil {
			return c.off, err
		}
		if !end {
			size = min(size, n-c.off)
		}
		got, err := r.Read(buf[:size])
		if _, err := c.Write(buf[:got]); err != nil {
			return c.off, err
		}
		switch {
		case c.off > n:
			return c.off, wrong("more than %d bytes", n)
		case errors.Is(err, io.EOF) && c.off < n:
			return c.off, errShort(c.off, n)
		case errors.Is(err, io.EOF):
			return c.off, nil
		case err != nil:
			return c.off, fmt.Errorf("read after %d of %d bytes: %w", c.off, n, err)
		}
	}
	return c.off, nil
}

// shortError is a body that ends too early, as if it was complete.
type shortError struct{ got, want int }

func (e *shortError) Error() string {
	return fmt.Sprintf("ends, as if complete, after %d of %d bytes", e.got, e.want)
}

func errShort(got, want int) error { return &shortError{got, want} }

func isShort(err error) bool {
	_, ok := errors.AsType[*shortError](err)
	return ok
}
