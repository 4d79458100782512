package world

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The fields of a request that tell a backend how to answer. Without any it answers 200 and its name, the method and the
// target.
const (
	AnswerStatus   = "X-Answer-Status"   // the status
	AnswerFirst    = "X-Answer-First"    // only the first so many requests of one x-key are answered as told
	AnswerDelay    = "X-Answer-Delay"    // how long to wait first (a Go duration)
	AnswerHeader   = "X-Answer-Header"   // "name: value", may be repeated
	AnswerTrailer  = "X-Answer-Trailer"  // "name: value", may be repeated
	AnswerBytes    = "X-Answer-Bytes"    // the length of the body
	AnswerCut      = "X-Answer-Cut"      // close (or "reset N") the connection after so many bytes of the body
	AnswerEnd      = "X-Answer-End"      // "close" or "reset": end the connection without an answer
	AnswerRaw      = "X-Answer-Raw"      // these bytes, with Go's escapes, and then close (HTTP/1 only)
	AnswerKey      = "X-Key"             // whose attempts are counted together
	AnswerEarly    = "X-Answer-Early"    // answer before the body of the request is read
	AnswerInterim  = "X-Answer-Interim"  // a 1xx status to send first
	AnswerProtocol = "X-Answer-Protocol" // the protocol to switch to, with 101; then what comes is sent back
)

// bodyMax bounds what a backend reads and sends.
const bodyMax = 64 << 20

// Backend is a server that answers as it is told and notes what it receives.
type Backend struct {
	// Name is what it calls itself.
	Name string
	// Journal is where it notes; it may be shared.
	Journal *Journal
	// TLS, if not nil, is what it speaks, with HTTP/2 if its ALPN says so. Without, it takes HTTP/1 and HTTP/2 alike.
	TLS *tls.Config

	work  sync.WaitGroup
	close func()
}

// Serve answers HTTP on a listener until Close.
func (b *Backend) Serve(l net.Listener) {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{
		Handler: http.HandlerFunc(b.answer), Protocols: protocols, TLSConfig: b.TLS, ReadHeaderTimeout: patience,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), MaxHeaderBytes: 1 << 20,
	}
	b.close = func() { _ = s.Close() }
	b.work.Go(func() {
		if b.TLS != nil {
			_ = s.ServeTLS(l, "", "") // ends by Close only
			return
		}
		_ = s.Serve(l)
	})
}

// ServeTCP answers connections on a listener until Close: what comes goes back, after the backend's name and a colon.
func (b *Backend) ServeTCP(l net.Listener) {
	live, stop := context.WithCancel(context.Background())
	b.close = func() {
		stop()
		_ = l.Close()
	}
	b.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if b.TLS != nil {
				c = tls.Server(c, b.TLS)
			}
			b.work.Go(func() {
				defer context.AfterFunc(live, func() { _ = c.Close() })()
				b.echo(c)
			})
		}
	})
}

// Close ends the backend and returns when nothing of it is left.
func (b *Backend) Close() {
	b.close()
	b.work.Wait()
}

func (b *Backend) echo(c net.Conn) {
	defer func() { _ = c.Close() }()
	buf := make([]byte, 64<<10)
	noted := false
	for {
		n, err := c.Read(buf)
		out := buf[:n]
		if n > 0 && !noted {
			noted = true
			b.Journal.add(Record{Backend: b.Name, From: from(c.RemoteAddr().String()), Proto: "TCP", Body: string(out)})
			out = append([]byte(b.Name+":"), out...) // in one piece, for those who take what comes first
		}
		if _, failed := c.Write(out); failed != nil || err != nil {
			return
		}
	}
}

func from(s string) netip.AddrPort {
	a, _ := netip.ParseAddrPort(s) // of the kernel's making
	return a
}

func (b *Backend) answer(w http.ResponseWriter, r *http.Request) {
	rec := Record{
		Backend: b.Name, From: from(r.RemoteAddr), Proto: r.Proto, Method: r.Method, Target: r.RequestURI, Host: r.Host,
		Header: r.Header.Clone(), Attempt: b.Journal.attempt(r.Header.Get(AnswerKey)),
	}
	if len(r.TransferEncoding) > 0 {
		rec.Header["Transfer-Encoding"] = r.TransferEncoding
	}
	upgrade := r.Header.Get(AnswerProtocol) != ""
	if r.Header.Get(AnswerEarly) == "" && !upgrade {
		body, err := io.ReadAll(io.LimitReader(r.Body, bodyMax))
		if rec.Body = string(body); err != nil {
			rec.BodyError = err.Error()
		}
		rec.Trailer = r.Trailer
	}
	b.Journal.add(rec)
	if first, err := strconv.Atoi(r.Header.Get(AnswerFirst)); err == nil && rec.Attempt > first {
		_, _ = fmt.Fprintf(w, "%s %s %s\n", b.Name, r.Method, r.RequestURI)
		return
	}
	if d, err := time.ParseDuration(r.Header.Get(AnswerDelay)); err == nil {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case upgrade:
		b.takeOver(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get(AnswerProtocol)+"\r\n\r\n", echoAll)
	case r.Header.Get(AnswerRaw) != "":
		text, err := strconv.Unquote(`"` + r.Header.Get(AnswerRaw) + `"`)
		if err != nil {
			http.Error(w, err.Error(), http.StatusTeapot)
			return
		}
		b.takeOver(w, text, nil)
	case r.Header.Get(AnswerEnd) == "reset" && r.ProtoMajor == 1:
		b.takeOver(w, "", reset)
	case r.Header.Get(AnswerEnd) != "":
		panic(http.ErrAbortHandler) // the way to end a connection or stream without an answer
	default:
		b.write(w, r)
	}
}

// write answers with what the request's fields ask for.
func (b *Backend) write(w http.ResponseWriter, r *http.Request) {
	if code, err := strconv.Atoi(r.Header.Get(AnswerInterim)); err == nil {
		w.WriteHeader(code)
	}
	for _, h := range r.Header.Values(AnswerHeader) {
		name, value, _ := strings.Cut(h, ":")
		w.Header().Add(name, strings.TrimSpace(value))
	}
	body := fmt.Sprintf("%s %s %s\n", b.Name, r.Method, r.RequestURI)
	if n, err := strconv.Atoi(r.Header.Get(AnswerBytes)); err == nil {
		body = strings.Repeat("x", min(n, bodyMax))
	}
	status := http.StatusOK
	if code, err := strconv.Atoi(r.Header.Get(AnswerStatus)); err == nil {
		status = code
	}
	trailers := r.Header.Values(AnswerTrailer)
	for _, h := range trailers {
		name, _, _ := strings.Cut(h, ":")
		w.Header().Add("Trailer", name)
	}
	bodiless := status == http.StatusNoContent || status == http.StatusNotModified
	if len(trailers) == 0 && !bodiless && r.Method != http.MethodHead && !slices.Contains(r.Header.Values(AnswerHeader), "transfer-encoding: chunked") {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	if bodiless {
		body = ""
	}
	w.WriteHeader(status)
	how, at, _ := strings.Cut(r.Header.Get(AnswerCut), " ")
	if at == "" {
		at = how
	}
	if n, err := strconv.Atoi(at); err == nil && n < len(body) {
		_, _ = io.WriteString(w, body[:n])
		_ = http.NewResponseController(w).Flush()
		if how == "reset" && r.ProtoMajor == 1 {
			b.takeOver(w, "", reset)
			return
		}
		panic(http.ErrAbortHandler)
	}
	_, _ = io.WriteString(w, body)
	for _, h := range trailers {
		name, value, _ := strings.Cut(h, ":")
		w.Header().Set(name, strings.TrimSpace(value))
	}
}

// takeOver writes bytes on the connection as they are, then does what is left to do, and closes it.
func (b *Backend) takeOver(w http.ResponseWriter, text string, then func(net.Conn, *bufio.ReadWriter)) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this is no connection of HTTP/1", http.StatusTeapot)
		return
	}
	defer func() { _ = c.Close() }()
	if t, ok := c.(*net.TCPConn); ok && then == nil { // the end comes with the text, so that nobody takes the connection for one that stays
		raw, err := t.SyscallConn()
		if err == nil {
			_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, 1) })
		}
		if err != nil {
			return
		}
	}
	if _, err := io.WriteString(c, text); err != nil {
		return
	}
	if then != nil {
		then(c, rw)
	}
}

func reset(c net.Conn, _ *bufio.ReadWriter) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
}

func echoAll(c net.Conn, rw *bufio.ReadWriter) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return
	}
	_, err := io.Copy(c, rw)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return
	}
}
