package http2

import "github.com/lateen-mesh/lateen/proxy/stream"

// Limits on what Memory keeps for the next use.
const (
	// chunkSize is the payload of a chunk: half a default DATA frame.
	chunkSize = 8 << 10
	// spareChunksMax chunks are kept: 2 MiB for all connections of a loop.
	spareChunksMax = 256
	// spareHeadsMax heads are kept.
	spareHeadsMax = 16
	// spareExchangesMax exchanges are kept.
	spareExchangesMax = 1024
	// blockKeptMax is the largest header block buffer that is kept, in bytes.
	blockKeptMax = 64 << 10
)

// Memory is the working memory that the connections of one loop share, so that
// an idle connection owns none: the heads and header blocks at work, and the
// chunks in which bodies wait. Its zero value is ready.
type Memory struct {
	spare  *chunk
	spares int
	low    int // the least that spares has been since the last Trim
	heads  []*stream.Head
	block  []byte
	reader headReader

	// exchanges are ready for reuse; those that rest are once depth is 0. Until then a method of theirs may be at work
	// further up the stack: depth counts the calls that may lead to a Receiver and go on afterwards.
	exchanges, resting []*exchange
	depth              int
	lowExchanges       int // the least that there were of exchanges since the last Trim
}

// enter begins a call that may lead to a Receiver; leave ends it.
func (m *Memory) enter() { m.depth++ }

func (m *Memory) leave() {
	if m.depth--; m.depth > 0 {
		return
	}
	for i, x := range m.resting {
		m.resting[i] = nil
		*x = exchange{flags: closed | deaf}
		if len(m.exchanges) < spareExchangesMax {
			m.exchanges = append(m.exchanges, x)
		}
	}
	m.resting = m.resting[:0]
}

// takeExchange returns an empty exchange; giveExchange takes it back.
func (m *Memory) takeExchange() *exchange {
	n := len(m.exchanges)
	if n == 0 {
		m.lowExchanges = 0
		return new(exchange)
	}
	x := m.exchanges[n-1]
	m.exchanges[n-1] = nil
	m.exchanges = m.exchanges[:n-1]
	m.lowExchanges = min(m.lowExchanges, n-1)
	x.flags = 0
	return x
}

func (m *Memory) giveExchange(x *exchange) { m.resting = append(m.resting, x) }

// takeHead returns an empty head; giveHead takes it back.
func (m *Memory) takeHead() *stream.Head {
	if n := len(m.heads); n > 0 {
		h := m.heads[n-1]
		m.heads = m.heads[:n-1]
		return h
	}
	h := new(stream.Head)
	h.Reset()
	return h
}

func (m *Memory) giveHead(h *stream.Head) {
	if h != nil && len(m.heads) < spareHeadsMax {
		h.Reset()
		m.heads = append(m.heads, h)
	}
}

// chunk is a piece of a body that waits: bytes off to end of b.
type chunk struct {
	next     *chunk
	off, end int
	b        [chunkSize]byte
}

func (k *chunk) bytes() []byte { return k.b[k.off:k.end:k.end] }

func (m *Memory) takeChunk() *chunk {
	k := m.spare
	if k == nil {
		m.low = 0
		return new(chunk)
	}
	m.spare, m.spares = k.next, m.spares-1
	m.low = min(m.low, m.spares)
	k.next, k.off, k.end = nil, 0, 0
	return k
}

func (m *Memory) giveChunk(k *chunk) {
	if m.spares < spareChunksMax {
		k.next, m.spare = m.spare, k
		m.spares++
	}
}

// Trim leaves half of the chunks, and of the exchanges, that were not needed since the last call to the garbage collector.
// Its user calls it from time to time, so that a burst is forgotten.
func (m *Memory) Trim() {
	n := (m.low + 1) / 2
	for range n {
		m.spare = m.spare.next
	}
	m.spares -= n
	m.low = m.spares

	rest := len(m.exchanges) - (m.lowExchanges+1)/2
	clear(m.exchanges[rest:])
	m.exchanges = m.exchanges[:rest]
	m.lowExchanges = rest
}

// queue is a first-in-first-out of bytes in chunks; n bytes are in it.
type queue struct {
	head, tail *chunk
	n          int
}

func (q *queue) push(m *Memory, p []byte) {
	q.n += len(p)
	for len(p) > 0 {
		if q.tail == nil {
			q.head = m.takeChunk()
			q.tail = q.head
		} else if q.tail.end == chunkSize {
			q.tail.next = m.takeChunk()
			q.tail = q.tail.next
		}
		n := copy(q.tail.b[q.tail.end:], p)
		q.tail.end += n
		p = p[n:]
	}
}

// pop takes the first chunk out; the caller gives it back to the Memory.
func (q *queue) pop() *chunk {
	k := q.head
	q.head = k.next
	if q.head == nil {
		q.tail = nil
	}
	q.n -= k.end - k.off
	return k
}

// writeTo writes the first n bytes, which are there, to w and takes them out.
func (q *queue) writeTo(m *Memory, w Conn, n int) {
	for n > 0 {
		p := q.head.bytes()
		if len(p) > n {
			w.Write(p[:n])
			q.head.off += n
			q.n -= n
			return
		}
		w.Write(p)
		n -= len(p)
		m.giveChunk(q.pop())
	}
}

func (q *queue) drop(m *Memory) {
	for q.head != nil {
		m.giveChunk(q.pop())
	}
}
