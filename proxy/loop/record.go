package loop

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"

	"github.com/lateen-mesh/lateen/proxy/tls13"
)

const (
	// recordBytesMax is the longest TLS record with its header (RFC 8446 section 5.2, RFC 5246 section 6.2.3): what
	// is left at most of one read until the next, by us, or by crypto/tls.
	recordBytesMax = 5 + 16<<10 + 2048
	// slowRecords is how many records of each key are short, so that a peer that is far away can use the first ones
	// while the rest of a long answer is still waiting for the window of TCP to open.
	slowRecords = 16
	// slowBytes is the longest content of those: what fits in three packets.
	slowBytes = 4 << 10
	// roomBytes is the least room, for content, in which a record begins in a buffer that others began to fill.
	roomBytes = 1 << 10
)

// cipherScratch is the loop's memory for what TLS reads: the end of the last read, which is less than a record, then one read.
func (l *Loop) cipherScratch() []byte {
	if l.cipher == nil {
		l.cipher = make([]byte, recordBytesMax+l.cfg.ReadBytes)
	}
	return l.cipher
}

// recordTransport is our own record layer. What is written in one batch is
// gathered in records, in the buffers of the output, where each is encrypted when
// it is full or at the end of the batch. What is read is decrypted from the
// loop's scratch to where the handler sees it, in one pass.
type recordTransport struct {
	session *tls13.Session
	state   *tls.ConnectionState
	early   []byte // came with the handshake, to be read first
	part    *chunk // of a record whose rest is to come
	begun   bool   // the last buffer of the output has a record that is not encrypted yet,
	start   int    // which begins here,
	limit   int    // and whose content ends here at the latest
}

// read takes one read's worth of records from the socket and decrypts all that are complete. They fit in p.
func (t *recordTransport) read(c *Conn, p []byte) (n int, more bool, err error) {
	scratch := c.loop.cipherScratch()
	have := t.unpart(c, scratch)
	room := scratch[have : have+c.loop.cfg.ReadBytes]
	var got int
	if len(t.early) > 0 {
		got, more = copy(room, t.early), true
		if t.early = t.early[got:]; len(t.early) == 0 {
			t.early = nil
		}
	} else if got, more, err = c.receive(room); err != nil && !errors.Is(err, io.EOF) {
		return 0, false, err
	}
	come := scratch[:have+got]
	n, used, fault := t.session.Open(p, come)
	rest := come[used:]
	switch {
	case fault != nil:
		return n, false, fault
	case err != nil:
		return n, false, t.session.Ended(rest)
	}
	if len(rest) > 0 {
		t.part = c.loop.chunks.take(len(rest))
		t.part.w = copy(t.part.b, rest)
	}
	if t.session.UpdateDue() {
		if err := t.update(c); err != nil {
			return n, false, err
		}
		c.loop.touch(c)
	}
	return n, more, nil
}

// unpart moves the beginning of a record, if there is one, to the front of p.
func (t *recordTransport) unpart(c *Conn, p []byte) int {
	if t.part == nil {
		return 0
	}
	n := copy(p, t.part.bytes())
	c.loop.chunks.give(t.part)
	t.part = nil
	return n
}

func (t *recordTransport) write(c *Conn, p []byte) error {
	for len(p) > 0 && !t.session.Closed() {
		if !t.begun {
			if err := t.begin(c); err != nil {
				return err
			}
		}
		k := c.out.tail
		n := copy(k.b[k.w:t.limit], p)
		k.w += n
		c.out.n += int32(n)
		p = p[n:]
		if k.w == t.limit {
			t.flush(c)
		}
	}
	return nil
}

// begin makes place for a record at the end of the output.
func (t *recordTransport) begin(c *Conn) error {
	if t.session.UpdateDue() {
		if err := t.update(c); err != nil {
			return err
		}
	}
	o := &c.out
	if o.tail == nil || len(o.tail.b)-o.tail.w < tls13.HeaderBytes+roomBytes+tls13.TrailerBytes {
		o.extend(&c.loop.chunks)
	}
	k := o.tail
	t.begun, t.start = true, k.w
	k.w += tls13.HeaderBytes
	o.n += tls13.HeaderBytes
	t.limit = len(k.b) - tls13.TrailerBytes
	if t.session.Sealed() < slowRecords {
		t.limit = min(t.limit, k.w+slowBytes)
	}
	return nil
}

// flush encrypts the record that was begun.
func (t *recordTransport) flush(c *Conn) {
	if !t.begun {
		return
	}
	t.begun = false
	k := c.out.tail
	n := len(t.session.Seal(k.b[t.start:k.w])) - (k.w - t.start)
	k.w += n
	c.out.n += int32(n)
}

// update changes the keys of what we write.
func (t *recordTransport) update(c *Conn) error {
	t.flush(c)
	record, err := t.session.AppendUpdate(nil)
	if err != nil {
		return fmt.Errorf("change keys: %w", err)
	}
	c.buffer(record)
	return nil
}

func (t *recordTransport) closeWrite(c *Conn) error {
	t.flush(c)
	c.buffer(t.session.AppendClose(nil))
	return nil
}

func (t *recordTransport) forget(c *Conn) {
	if t.part != nil {
		c.loop.chunks.give(t.part)
	}
	t.part, t.early, t.begun = nil, nil, false
	t.session.Forget()
}

// tlsTransport is crypto/tls, after its handshake, over memory. It relies on
// this: a Read of crypto/tls that gets a temporary net.Error from below keeps
// the bytes of the incomplete record, and of an incomplete post-handshake
// message, and goes on with them at the next Read (crypto/tls, readRecordOrCCS
// and readHandshake).
type tlsTransport struct {
	wire  *wire
	conn  *tls.Conn
	state *tls.ConnectionState
}

// read takes one read's worth of records from the socket and decrypts all that
// are complete. They fit in p, so crypto/tls holds back less than one record.
func (t *tlsTransport) read(c *Conn, p []byte) (n int, more bool, err error) {
	if len(t.wire.in) > 0 { // from before the handshake
		more = true
	} else {
		room := c.loop.cipherScratch()[:c.loop.cfg.ReadBytes]
		var got int
		got, more, err = c.receive(room)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, false, err
		}
		t.wire.in, t.wire.end = room[:got], err
	}
	for n < len(p) {
		got, err := t.conn.Read(p[n:])
		n += got
		if errors.Is(err, errLater) {
			return n, more, nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, true, nil
}

func (t *tlsTransport) write(_ *Conn, p []byte) error {
	_, err := t.conn.Write(p)
	return err
}

func (*tlsTransport) flush(*Conn) {}

func (t *tlsTransport) closeWrite(*Conn) error { return t.conn.CloseWrite() }

func (*tlsTransport) forget(*Conn) {}
