package soak

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"
)

// http1Player is a client of HTTP/1.1 on a connection of its own, written by hand in order to do what others do not.
type http1Player struct {
	r      *rig
	v      *via
	close1 bool // a connection for each request
	c      net.Conn
	br     *bufio.Reader
}

// connect opens the connection, or takes the open one.
func (p *http1Player) connect(ctx context.Context) (*facts, error) {
	f := &facts{reused: p.c != nil}
	if p.c == nil {
		c, err := p.r.dial(ctx, p.v)
		if err != nil {
			return f, err
		}
		p.c, p.br = c, bufio.NewReaderSize(c, pieceMax)
	}
	f.local = p.c.LocalAddr().String()
	return f, p.c.SetDeadline(time.Now().Add(patience))
}

func (p *http1Player) close() {
	if p.c != nil {
		_ = p.c.Close()
		p.c = nil
	}
}

func (p *http1Player) play(ctx context.Context, w *worker) {
	o := w.order(endClose, endReset, endWaiting, endCut, endCrash)
	f, err := p.connect(ctx)
	if err == nil {
		err = p.exchange(ctx, o)
	}
	if err != nil || p.close1 || o.byClient() {
		p.close()
	}
	w.end(o, f, err)
}

// exchange sends a request and receives the response at the same time.
func (p *http1Player) exchange(ctx context.Context, o *order) error {
	c := p.c
	sent := make(chan error, 1)
	go func() {
		err := p.request(ctx, c, o)
		switch o.End {
		case endClose:
			_ = c.Close()
		case endReset:
			reset(c)
		}
		sent <- err
	}()
	last, err := p.response(ctx, o, "POST")
	if err != nil {
		if o.Mode != modeSoon || !isWrong(err) {
			_ = c.Close() // ends the sending
		}
		if serr := <-sent; serr != nil && !isWrong(err) {
			err = fmt.Errorf("%w; meanwhile sending: %w", err, serr)
		}
		return err
	}
	if o.Mode == modeSoon { // the server need not read on
		_ = c.SetWriteDeadline(time.Now().Add(soonLimit))
	}
	serr := <-sent
	if serr != nil && (o.Mode == modeSoon || last) {
		p.close()
		return nil
	}
	if last || o.Mode == modeSoon && o.Up > discarded {
		p.close()
	}
	return serr
}

// discarded is how much of a request that was answered already any server reads before it closes the connection.
const discarded = 16 << 10

// soonLimit is how long a client goes on to send a request that was answered already.
const soonLimit = 2 * time.Second

// head is a request's up to its empty line.
func (p *http1Player) head(o *order, method, more string) string {
	h := fmt.Sprintf("%s /soak/%016x HTTP/1.1\r\nHost: %s\r\n%s: %s\r\nX-Request-Id: %016x\r\n%s", method, o.ID, p.v.host, orderField, o, o.ID, more)
	if p.close1 {
		h += "Connection: close\r\n"
	}
	switch {
	case method != "POST":
	case o.UpChunked:
		h += "Transfer-Encoding: chunked\r\n"
	default:
		h += "Content-Length: " + strconv.Itoa(o.Up) + "\r\n"
	}
	return h + "\r\n"
}

func (p *http1Player) request(ctx context.Context, c net.Conn, o *order) error {
	out := bufio.NewWriterSize(c, 16<<10)
	if _, err := out.WriteString(p.head(o, "POST", "")); err != nil {
		return err
	}
	n, whole := o.Up, true
	if o.End == endClose || o.End == endReset {
		n, whole = o.UpAt, false
	}
	var body io.Writer = out
	if o.UpChunked {
		body = httputil.NewChunkedWriter(out)
	}
	if err := send(ctx, flushing{body, out}, o.seedUp(), n, newPace(o, 1)); err != nil {
		return err
	}
	if o.UpChunked && whole {
		if _, err := out.WriteString("0\r\n\r\n"); err != nil {
			return err
		}
	}
	return out.Flush()
}

// flushing sends each piece at once.
type flushing struct {
	io.Writer
	out *bufio.Writer
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	return n, errors.Join(err, f.out.Flush())
}

// response receives one, and says whether the connection takes no other request.
func (p *http1Player) response(ctx context.Context, o *order, method string) (last bool, err error) {
	res, err := http.ReadResponse(p.br, &http.Request{Method: method})
	if err != nil {
		return true, fmt.Errorf("read the head: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	return res.Close, check(ctx, res, o, method)
}

// check judges a response of any version of HTTP.
func check(ctx context.Context, res *http.Response, o *order, method string) error {
	if id := res.Header.Get(idField); id != "" && id != fmt.Sprintf("%016x", o.ID) {
		return wrong("the answer is that to %s", id)
	}
	if res.StatusCode != http.StatusOK || res.Header.Get(idField) == "" {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 512))
		return &statusError{res.StatusCode, fmt.Sprintf("status %d, %v: %q", res.StatusCode, res.Header, text)}
	}
	if method == http.MethodHead {
		return nil
	}
	n, err := receive(ctx, leaving{res.Body, o, new(int)}, o.seedAnswer(), o.Down, true, newPace(o, 2))
	if isShort(err) {
		return wrong("the response %v", err)
	}
	if err != nil {
		return err
	}
	if n != o.Down {
		return wrong("a body of %d bytes, want %d", n, o.Down)
	}
	if v := res.Trailer.Get(endField); o.Trailer && v != fmt.Sprintf("%016x", o.ID) {
		return wrong("the trailer %q, want %016x", v, o.ID)
	}
	return nil
}

// statusError is an answer of the proxy's own.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// leaving is a body that is not read to its end if the client leaves before.
type leaving struct {
	io.Reader
	o   *order
	off *int
}

func (l leaving) Read(p []byte) (int, error) {
	if l.o.End == endWaiting {
		if *l.off >= l.o.DownAt {
			return 0, errLeft
		}
		p = p[:min(len(p), l.o.DownAt-*l.off)]
	}
	n, err := l.Reader.Read(p)
	*l.off += n
	return n, err
}

var (
	errLeft  = errors.New("the client leaves")
	errEnded = errors.New("the backend has ended it")
)

// pipelinePlayer sends several requests before it reads their answers.
type pipelinePlayer struct{ http1Player }

func (p *pipelinePlayer) play(ctx context.Context, w *worker) {
	var list []*order
	var methods []string
	var text strings.Builder
	for range 1 + w.rnd.IntN(8) {
		o := w.order()
		o.Up, o.Mode = min(o.Up, 4<<10), modeAfter
		o.Down = min(o.Down, pieceMax)
		if o.Trailer {
			o.DownChunked = true
		}
		method := []string{"POST", "POST", "GET", "HEAD"}[w.rnd.IntN(4)]
		if method != "POST" {
			o.Up = 0
		}
		text.WriteString(p.head(o, method, ""))
		if method == "POST" {
			body := make([]byte, o.Up)
			fill(body, o.seedUp(), 0)
			if o.UpChunked {
				c := httputil.NewChunkedWriter(&text)
				_, _ = c.Write(body)
				text.WriteString("0\r\n\r\n")
			} else {
				text.Write(body)
			}
		}
		list, methods = append(list, o), append(methods, method)
	}
	f, err := p.connect(ctx)
	c := p.c
	sent := make(chan error, 1)
	if err == nil {
		go func() {
			_, err := io.WriteString(c, text.String())
			sent <- err
		}()
	}
	for i, o := range list {
		f := *f
		f.more = fmt.Sprintf("number %d of %d in the pipeline", i+1, len(list))
		last := false
		if err == nil {
			last, err = p.response(ctx, o, methods[i])
		}
		w.end(o, &f, err)
		if err == nil && last && i < len(list)-1 {
			err = errors.New("the connection was closed in the middle of the pipeline")
		}
	}
	if c != nil {
		if err != nil {
			_ = c.Close()
		}
		err = errors.Join(err, <-sent)
	}
	if err != nil {
		p.close()
	}
}

// socketPlayer makes WebSockets.
type socketPlayer struct{ http1Player }

func (p *socketPlayer) play(ctx context.Context, w *worker) {
	o := w.order(endClose, endReset, endWaiting, endCut, endCrash)
	o.Mode, o.Trailer = modeEarly, false
	f, err := p.connect(ctx)
	if err == nil {
		err = p.upgrade(ctx, o)
	}
	p.close()
	w.end(o, f, err)
}

func (p *socketPlayer) upgrade(ctx context.Context, o *order) error {
	key := fmt.Appendf(nil, "%016x", o.ID)
	more := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.StdEncoding.EncodeToString(key) + "\r\n"
	if _, err := io.WriteString(p.c, p.head(o, "GET", more)); err != nil {
		return err
	}
	res, err := http.ReadResponse(p.br, &http.Request{Method: "GET"})
	if err != nil {
		return err
	}
	if id := res.Header.Get(idField); id != "" && id != fmt.Sprintf("%016x", o.ID) {
		return wrong("the answer is that to %s", id)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 512))
		return &statusError{res.StatusCode, fmt.Sprintf("status %d, %v: %q", res.StatusCode, res.Header, text)}
	}
	return talk(ctx, p.c, p.br, o, false)
}
