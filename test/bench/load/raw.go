package load

import "fmt"

// rawClient sends a message and reads its echo, again and again; on a new connection each time for Connect. For Bulk it
// only reads.
type rawClient struct {
	run     *run
	conn    *conn
	message []byte
	timing  timing
	left    int // bytes of the echo that are still to come
}

func newRawClient(r *run) *rawClient {
	w := &rawClient{run: r, message: Body(r.job.Size)}
	if r.job.Kind != Bulk {
		r.active[&w.timing] = struct{}{}
	}
	return w
}

func (w *rawClient) opened(c *conn) {
	w.conn = c
	switch {
	case w.run.job.Kind == Bulk:
	case w.timing.at > 0:
		w.send()
	default:
		w.run.next(w)
	}
}

func (w *rawClient) begin() {
	w.run.mark(&w.timing)
	if w.conn != nil {
		w.send()
		return
	}
	if err := w.run.dial(w.run.job.Target, w); err != nil {
		w.run.fail(err)
	}
}

func (w *rawClient) send() {
	w.left = len(w.message)
	w.conn.write(w.message)
}

func (w *rawClient) read(c *conn, p []byte) {
	if w.run.job.Kind == Bulk {
		if w.run.counts {
			w.run.ops += uint64(len(p))
		}
		return
	}
	if w.left -= len(p); w.left < 0 {
		w.run.fail(fmt.Errorf("an echo is %d bytes too long", -w.left))
		return
	}
	if w.left > 0 {
		return
	}
	if w.run.job.Kind == Connect {
		c.close()
		w.conn = nil
	}
	w.run.done(&w.timing)
	w.run.next(w)
}

func (w *rawClient) closed(_ *conn, err error) {
	w.run.fail(fmt.Errorf("a connection ended: %w", err))
}

// echo sends back what comes.
type echo struct{}

func (echo) opened(*conn)           {}
func (echo) read(c *conn, p []byte) { c.write(p) }
func (echo) closed(*conn, error)    {}

// source sends as much as the other side takes.
type source struct{ chunk []byte }

func (s source) opened(c *conn) {
	c.more = func(c *conn) { c.send(s.chunk) } // what is not taken is no loss: all bytes are alike
	c.arm(true)
}
func (source) read(*conn, []byte)  {}
func (source) closed(*conn, error) {}
