package http1

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// handler is what both sides of the codec are to the loop.
type handler interface {
	OnData(p []byte) int
	OnEOF()
	OnClose(err error)
	OnDrain()
}

// fakeConn is a connection and its loop: it keeps what was left unread, does
// not read while paused, and calls OnClose once, never from within another call.
type fakeConn struct {
	t       *testing.T
	h       handler
	out     []byte
	unread  []byte
	eof     bool // the peer has ended its side
	eofTold bool
	err     error // why the connection broke

	// lastSaid: closed without waiting for the peer
	full, paused, finished, closed, lastSaid, aborted, told, pumping bool
}

func (c *fakeConn) Write(p []byte) {
	if c.finished {
		c.t.Errorf("write of %q after CloseWrite", p)
	}
	if !c.closed {
		c.out = append(c.out, p...)
	}
}
func (c *fakeConn) Full() bool  { return c.full }
func (c *fakeConn) Close()      { c.closed = true }
func (c *fakeConn) Finish()     { c.closed, c.lastSaid = true, true }
func (c *fakeConn) Abort()      { c.closed, c.aborted = true, true }
func (c *fakeConn) CloseWrite() { c.finished = true }
func (c *fakeConn) PauseRead()  { c.paused = true }
func (c *fakeConn) ResumeRead() { c.paused = false }

// pump does what the loop does until nothing is left to do.
func (c *fakeConn) pump() {
	if c.pumping {
		return
	}
	c.pumping = true
	for len(c.unread) > 0 && !c.paused && !c.closed {
		n := c.h.OnData(c.unread)
		if n < 0 || n > len(c.unread) {
			c.t.Fatalf("consumed %d of %d", n, len(c.unread))
		}
		if c.unread = c.unread[n:]; n == 0 {
			break
		}
	}
	if c.eof && !c.eofTold && !c.paused && !c.closed {
		c.eofTold = true
		c.h.OnEOF()
	}
	if (c.closed || c.err != nil) && !c.told {
		c.closed, c.told = true, true
		c.h.OnClose(c.err)
	}
	c.pumping = false
}

func (c *fakeConn) feed(s string) { c.unread = append(c.unread, s...); c.pump() }
func (c *fakeConn) end()          { c.eof = true; c.pump() }
func (c *fakeConn) fail(e error)  { c.err = e; c.pump() }

// sent returns what was written since the last call, with \r\n written as "|".
func (c *fakeConn) sent() string {
	c.pump()
	s := strings.ReplaceAll(string(c.out), "\r\n", "|")
	c.out = c.out[:0]
	return s
}

// state says what has been done to the connection.
func (c *fakeConn) state() string {
	c.pump()
	switch {
	case c.aborted:
		return "aborted"
	case c.closed:
		return "closed"
	case c.finished:
		return "finished"
	case c.paused:
		return "paused"
	}
	return "open"
}

// journal is a relay and an owner that write down what they are told, one word
// for each, and do what the test says.
type journal struct {
	strings.Builder
	sender    stream.Sender
	onHead    func(h *stream.Head, end bool)
	onEnd     func() // the incoming message has ended
	onIdle    func()
	onRefusal string      // what the owner adds to a refusal
	head      stream.Head // the last head delivered
	collect   bool        // data goes to body, however it is cut, and is not noted
	body      []byte
}

func (j *journal) note(format string, args ...any) {
	if j.Len() > 0 {
		j.WriteByte(' ')
	}
	_, _ = fmt.Fprintf(j, format, args...)
}

// told returns what was noted since the last call.
func (j *journal) told() string {
	s := j.String()
	j.Reset()
	return s
}

func (j *journal) Accept(s stream.Sender) stream.Receiver {
	j.sender = s
	return j
}

func (j *journal) OnHead(h *stream.Head, end bool) {
	j.head.CopyFrom(h)
	if h.Status != 0 {
		j.note("%d", h.Status)
	} else {
		j.note("%s%s", h.Method(), h.Path())
	}
	if j.onHead != nil {
		j.onHead(h, end)
	}
	j.ended(end)
}

func (j *journal) OnInterim(h *stream.Head) { j.note("interim:%d", h.Status) }

func (j *journal) OnData(p []byte, end bool) {
	if j.collect {
		j.body = append(j.body, p...)
	} else {
		j.note("%q", p)
	}
	j.ended(end)
}

func (j *journal) OnTrailers(h *stream.Head) {
	for i := range h.Len() {
		name, value := h.At(i)
		j.note("%s=%s", name, value)
	}
	j.ended(true)
}

func (j *journal) OnAbort(why stream.Abort, err error) { j.note("abort:%v:%v", why, err) }
func (j *journal) OnDrain()                            { j.note("drain") }

func (j *journal) ended(end bool) {
	if end {
		j.note("end")
		if j.onEnd != nil {
			j.onEnd()
		}
	}
}

// serverJournal and clientJournal are the journal as owner.
type serverJournal struct{ *journal }

func (j serverJournal) OnIdle(*ServerConn) {
	j.note("idle")
	if j.onIdle != nil {
		j.onIdle()
	}
}

func (j serverJournal) AppendRefusal(out []byte, _ Fault) []byte { return append(out, j.onRefusal...) }

func (j serverJournal) OnRefused(_ *ServerConn, f Fault) { j.note("refused:%d", f.Status()) }
func (j serverJournal) OnLinger(*ServerConn)             { j.note("linger") }

type clientJournal struct{ *journal }

func (j clientJournal) OnIdle(*ClientConn) {
	j.note("idle")
	if j.onIdle != nil {
		j.onIdle()
	}
}
func (j clientJournal) OnDead(*ClientConn) { j.note("dead") }

func newServer(t *testing.T, cfg Config) (*ServerConn, *fakeConn, *journal) {
	conn, j := &fakeConn{t: t}, &journal{}
	c := New(cfg).NewServerConn(conn, j, serverJournal{j})
	conn.h = c
	return c, conn, j
}

func newClient(t *testing.T) (*ClientConn, *fakeConn, *journal) {
	conn, j := &fakeConn{t: t}, &journal{}
	c := New(Config{}).NewClientConn(conn, clientJournal{j})
	conn.h = c
	return c, conn, j
}

// response makes a response head; fields are name and value by turns.
func response(status int, length int64, fields ...string) *stream.Head {
	h := &stream.Head{Status: status, ContentLength: length}
	for i := 0; i < len(fields); i += 2 {
		h.AddString(fields[i], fields[i+1])
	}
	return h
}

// request makes a request head like response.
func request(method, path string, length int64, fields ...string) *stream.Head {
	h := response(0, length, fields...)
	h.SetMethodString(method)
	h.SetAuthorityString("a")
	h.SetPathString(path)
	return h
}
