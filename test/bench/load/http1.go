package load

import (
	"bytes"
	"fmt"
	"strconv"
)

// headMax bounds an answer's head.
const headMax = 16 << 10

var (
	headEnd = []byte("\r\n\r\n")
	okLine  = []byte("HTTP/1.1 200 ")
	lineEnd = []byte("\r\n")
	length  = []byte("content-length:")
)

// Host is the authority that all requests name.
const Host = "bench.example"

// http1Client asks, on one connection after another or on the same one.
type http1Client struct {
	run     *run
	conn    *conn
	request []byte
	timing  timing
	head    []byte // of an answer that has not come whole yet
	left    int    // bytes of the body that are still to come
	inBody  bool
	whole   bool // the answer has come, the end of the connection has not
}

func newHTTP1Client(r *run) *http1Client {
	h := &http1Client{run: r}
	text := "GET /bench HTTP/1.1\r\nHost: " + Host + "\r\nUser-Agent: bench\r\nAccept: */*\r\n"
	if r.job.Kind == Close {
		text += "Connection: close\r\n"
	}
	h.request = []byte(text + "\r\n")
	r.active[&h.timing] = struct{}{}
	return h
}

func (h *http1Client) opened(c *conn) {
	h.conn = c
	if h.run.job.Kind == Close && h.timing.at > 0 {
		c.write(h.request) // the operation began before its connection
		return
	}
	h.run.next(h)
}

func (h *http1Client) begin() {
	h.run.mark(&h.timing)
	if h.conn == nil {
		if err := h.run.dial(h.run.job.Target, h); err != nil {
			h.run.fail(err)
		}
		return
	}
	h.conn.write(h.request)
}

func (h *http1Client) read(_ *conn, p []byte) {
	for len(p) > 0 {
		switch {
		case h.timing.at == 0 || h.whole:
			h.run.fail(fmt.Errorf("%d bytes came that were not asked for: %q", len(p), p[:min(len(p), 64)]))
			return
		case h.inBody:
			n := min(len(p), h.left)
			h.left -= n
			p = p[n:]
		default:
			if p = h.readHead(p); p == nil {
				return
			}
		}
		if h.inBody && h.left == 0 {
			h.inBody = false
			h.ended()
		}
	}
}

// readHead takes the head, or a part of it; nil says that nothing is left.
func (h *http1Client) readHead(p []byte) []byte {
	if len(h.head) > 0 {
		h.head = append(h.head, p...)
		p = h.head
	}
	i := bytes.Index(p, headEnd)
	if i < 0 {
		if len(h.head) == 0 {
			h.head = append(h.head, p...)
		}
		if len(h.head) > headMax {
			h.run.fail(fmt.Errorf("a head of more than %d bytes", headMax))
		}
		return nil
	}
	n, err := bodyLength(p[:i])
	if err == nil && n != h.run.job.Size {
		err = fmt.Errorf("a body of %d bytes, want %d", n, h.run.job.Size)
	}
	if err != nil {
		h.run.fail(err)
		return nil
	}
	h.head = h.head[:0]
	h.inBody, h.left = true, n
	return p[i+len(headEnd):]
}

// bodyLength checks the status line and finds the length of the body.
func bodyLength(head []byte) (int, error) {
	if !bytes.HasPrefix(head, okLine) {
		return 0, fmt.Errorf("the answer is %q", head)
	}
	for line := range bytes.SplitSeq(head, lineEnd) {
		if len(line) < len(length) || !bytes.EqualFold(line[:len(length)], length) {
			continue
		}
		n, err := strconv.Atoi(string(bytes.TrimSpace(line[len(length):])))
		if err != nil {
			return 0, fmt.Errorf("read the length of a body: %w", err)
		}
		return n, nil
	}
	return 0, fmt.Errorf("an answer without a length: %q", head)
}

// ended is called when an answer has come whole.
func (h *http1Client) ended() {
	if h.run.job.Kind == Close {
		h.whole = true
		return
	}
	h.run.done(&h.timing)
	if h.run.job.Kind == Hold {
		h.run.hold()
		return
	}
	h.run.next(h)
}

func (h *http1Client) closed(_ *conn, err error) {
	if !h.whole {
		h.run.fail(fmt.Errorf("a connection ended: %w", err))
		return
	}
	h.whole, h.conn = false, nil
	h.run.done(&h.timing)
	h.run.next(h)
}

// http1Server answers each request, which has no body, with the same bytes.
type http1Server struct {
	answer []byte
	seen   int // how many bytes of headEnd the last read ended with
}

// http1Answer is an answer with a body of so many bytes.
func http1Answer(size int) []byte {
	head := "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: " + strconv.Itoa(size) + "\r\n\r\n"
	return append([]byte(head), Body(size)...)
}

// Body is the body of so many bytes that every service here answers with.
func Body(size int) []byte {
	return bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
}

func (*http1Server) opened(*conn) {}

func (s *http1Server) read(c *conn, p []byte) {
	for s.seen > 0 && len(p) > 0 { // a request in several parts is rare
		if p[0] != headEnd[s.seen] {
			s.seen = 0
			break
		}
		s.seen++
		p = p[1:]
		if s.seen == len(headEnd) {
			s.seen = 0
			c.write(s.answer)
		}
	}
	for {
		i := bytes.Index(p, headEnd)
		if i < 0 {
			break
		}
		c.write(s.answer)
		if p = p[i+len(headEnd):]; c.fd < 0 {
			return
		}
	}
	for n := min(len(p), len(headEnd)-1); n > 0; n-- {
		if bytes.HasSuffix(p, headEnd[:n]) {
			s.seen = n
			return
		}
	}
}

func (*http1Server) closed(*conn, error) {}
