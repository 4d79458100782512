package loop

import (
	"math"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// chunkBytes is the size of a pooled buffer. A TLS record and the head of
	// most messages fit in one or two.
	chunkBytes = 16 << 10
	// freeChunks bounds the buffers that a loop keeps for later: 2 MiB. More are left to the garbage collector, and so
	// are those that nobody needs for some time: see Trim.
	freeChunks = 128
	// rangesPerSend is how many ranges one sendmsg call takes: 1 MiB of chunks.
	rangesPerSend = 64
)

// chunk is a buffer whose bytes b[r:w] wait: for the kernel, or for the rest of a message.
type chunk struct {
	next *chunk
	r, w int
	b    []byte
}

func (k *chunk) bytes() []byte { return k.b[k.r:k.w] }

// chunks is a loop's stock of free buffers. The last one given back is taken first: it is still in the CPU's cache.
type chunks struct {
	free *chunk
	n    int
	low  int // the least that n has been since the last trim
}

// take returns an empty buffer of at least size bytes.
func (s *chunks) take(size int) *chunk {
	if size > chunkBytes {
		return &chunk{b: make([]byte, size)}
	}
	k := s.free
	if k == nil {
		s.low = 0
		return &chunk{b: make([]byte, chunkBytes)}
	}
	s.free, k.next = k.next, nil
	s.n--
	s.low = min(s.low, s.n)
	return k
}

// give takes a buffer back.
func (s *chunks) give(k *chunk) {
	if len(k.b) != chunkBytes || s.n >= freeChunks {
		return
	}
	k.r, k.w, k.next = 0, 0, s.free
	s.free = k
	s.n++
}

// trim lets go of half of the buffers that nobody has needed since the last call.
func (s *chunks) trim() {
	n := (s.low + 1) / 2
	for range n {
		s.free = s.free.next
	}
	s.n -= n
	s.low = s.n
}

// Trim leaves half of the free buffers that were not needed since the last call to the garbage collector. The loop's user
// calls it from time to time, on the loop, so that a burst is forgotten.
func (l *Loop) Trim() { l.chunks.trim() }

// output is a queue of bytes in buffers of a stock. The zero value is empty and owns nothing.
type output struct {
	head, tail *chunk
	n          int32  // bytes, of which there are hardly more than outputBytesMax
	given      uint32 // bytes that the kernel has taken since Conn.Mark, or the most that fit
}

// add copies p to the end.
func (o *output) add(s *chunks, p []byte) {
	o.n += int32(len(p))
	for len(p) > 0 {
		if o.tail == nil || o.tail.w == len(o.tail.b) {
			o.extend(s)
		}
		n := copy(o.tail.b[o.tail.w:], p)
		o.tail.w += n
		p = p[n:]
	}
}

// extend appends an empty buffer.
func (o *output) extend(s *chunks) {
	k := s.take(chunkBytes)
	if o.tail == nil {
		o.head = k
	} else {
		o.tail.next = k
	}
	o.tail = k
}

// drop removes n bytes from the front and gives emptied buffers back.
func (o *output) drop(s *chunks, n int) {
	o.n -= int32(n)
	for o.head != nil {
		k := o.head
		if k.w-k.r > n {
			k.r += n
			return
		}
		n -= k.w - k.r
		o.head = k.next
		s.give(k)
	}
	o.tail = nil
}

// clear removes everything.
func (o *output) clear(s *chunks) { o.drop(s, int(o.n)) }

// flush gives the kernel what waits in c.out.
func (c *Conn) flush() {
	if c.out.n > 0 {
		c.send(nil)
	}
}

// send gives the kernel what waits in c.out, and tail behind it, until all is
// gone or the kernel takes no more. It returns how many bytes of tail went.
func (c *Conn) send(tail []byte) (sent int) {
	l := c.loop
	flags := 0
	if c.handshake == nil && (c.state == closing || c.flags&(shut|shutDone) == shut) && !l.cfg.Accelerated {
		flags = unix.MSG_MORE // FIN follows in this batch, and the kernel puts both in one segment
	}
	for c.flags&(blocked|broken) == 0 {
		var n, size int
		var errno syscall.Errno
		if k := c.out.head; k != nil && k.next == nil && len(tail) == 0 { // mostly
			size = k.w - k.r
			n, errno = send(int(c.fd), k.bytes(), flags)
		} else if size = l.gather(&c.out, tail[sent:]); size > 0 {
			n, errno = l.push(int(c.fd), flags)
		}
		if size == 0 {
			break
		}
		if errno != 0 && errno != unix.EAGAIN {
			c.breakOff(errno)
			break
		}
		// Taking less than offered means that the socket's buffer is full: the kernel will tell when it is not.
		if n < size {
			c.flags |= blocked
		}
		c.out.given = uint32(min(uint64(c.out.given)+uint64(n), math.MaxUint32))
		queued := min(n, int(c.out.n))
		c.out.drop(&l.chunks, queued)
		sent += n - queued
	}
	return sent
}

// gather fills the loop's ranges with the front of o and, if there is room behind it, tail. It returns their bytes.
func (l *Loop) gather(o *output, tail []byte) (size int) {
	l.ranges = l.ranges[:0]
	k := o.head
	for ; k != nil && len(l.ranges) < rangesPerSend; k = k.next {
		size += l.gatherRange(k.bytes())
	}
	if k == nil && len(tail) > 0 && len(l.ranges) < rangesPerSend {
		size += l.gatherRange(tail)
	}
	return size
}

func (l *Loop) gatherRange(p []byte) int {
	r := unix.Iovec{Base: &p[0]}
	r.SetLen(len(p))
	l.ranges = append(l.ranges, r)
	return len(p)
}

// push sends the gathered ranges and forgets them.
func (l *Loop) push(fd, flags int) (n int, errno syscall.Errno) {
	if len(l.ranges) == 1 {
		r := &l.ranges[0]
		n, errno = send(fd, unsafe.Slice(r.Base, int(r.Len)), flags)
	} else {
		l.message.Iov = &l.ranges[0]
		l.message.SetIovlen(len(l.ranges))
		n, errno = sendmsg(fd, &l.message, flags)
	}
	clear(l.ranges)
	return n, errno
}
