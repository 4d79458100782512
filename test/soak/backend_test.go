package soak

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/lateen-mesh/lateen/test/world"
)

// The fields that tell the backend what the client does, and the client who has answered.
const (
	orderField = "X-Soak"
	idField    = "X-Soak-Id"
	endField   = "X-Soak-End" // a trailer
)

// The ports of a backend.
const (
	portHTTP  = 8080 // HTTP/1, HTTP/2 and WebSockets
	portAuto  = 8081 // the same, undeclared
	portGRPC  = 8082
	portBytes = 9000
	portGreet = 9001 // the server speaks first, undeclared
	portTLS   = 9443 // bytes
)

// greeting is what a server says that speaks first.
const greeting = "220 the sail is set\r\n"

// backend answers as orders say, and checks what it receives.
type backend struct {
	place   *world.Place
	address string
	tls     *tls.Config
	report  func(o *order, err error) // what it receives is not what was sent

	http  *http.Server
	grpc  *grpc.Server
	ports []net.Listener
	work  sync.WaitGroup
	mu    sync.Mutex
	conns map[net.Conn]struct{} // of bytes
}

// start opens all ports.
func (b *backend) start(ctx context.Context) error {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	b.http = &http.Server{
		Handler: http.HandlerFunc(b.serveHTTP), Protocols: protocols, ReadHeaderTimeout: patience,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	b.grpc = grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(b.serveGRPC), grpc.MaxRecvMsgSize(hugeMax+1))
	b.conns, b.ports = map[net.Conn]struct{}{}, nil
	for port, serve := range map[int]func(net.Listener){
		portHTTP:  func(l net.Listener) { _ = b.http.Serve(l) },
		portAuto:  func(l net.Listener) { _ = b.http.Serve(l) },
		portGRPC:  func(l net.Listener) { _ = b.grpc.Serve(l) },
		portBytes: func(l net.Listener) { b.serve(l, "") },
		portGreet: func(l net.Listener) { b.serve(l, greeting) },
		portTLS:   func(l net.Listener) { b.serve(tls.NewListener(l, b.tls), "") },
	} {
		l, err := b.place.Listen(ctx, net.JoinHostPort(b.address, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		b.ports = append(b.ports, l)
		b.work.Go(func() { serve(l) })
	}
	return nil
}

// drain takes no more connections and returns when those that are open have ended, but not later than ctx.
func (b *backend) drain(ctx context.Context) {
	for _, l := range b.ports {
		_ = l.Close()
	}
	_ = b.http.Shutdown(ctx)
	stop := context.AfterFunc(ctx, b.close)
	b.grpc.GracefulStop()
	b.work.Wait()
	stop()
	b.close()
}

// close ends everything at once.
func (b *backend) close() {
	for _, l := range b.ports {
		_ = l.Close()
	}
	_ = b.http.Close()
	b.grpc.Stop()
	b.mu.Lock()
	for c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
}

// serve answers connections of bytes.
func (b *backend) serve(l net.Listener, first string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.conns[c] = struct{}{}
		b.mu.Unlock()
		b.work.Go(func() {
			defer func() {
				_ = c.Close()
				b.mu.Lock()
				delete(b.conns, c)
				b.mu.Unlock()
			}()
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := io.WriteString(c, first); err != nil {
				return
			}
			b.converse(c, bufio.NewReader(c), true)
		})
	}
}

// converse reads an order from a connection and both sends and receives the bytes that it names. With half, each way
// ends by itself.
func (b *backend) converse(c net.Conn, r *bufio.Reader, half bool) {
	line, err := r.ReadString('\n')
	if err != nil {
		return // a client that ends early, or a proxy that asks whether the server speaks first
	}
	o, err := parseOrder(strings.TrimSuffix(line, "\n"))
	if err != nil {
		b.report(&order{}, err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sent := make(chan error, 1)
	go func() { sent <- answerBytes(ctx, c, o, half) }()
	_, err = receive(ctx, r, o.seedUp(), o.Up, half, newPace(o, 4))
	serr := <-sent
	switch {
	case isWrong(err):
		b.report(o, err)
	case serr != nil: // who writes may be told of a reset in the reader's place
		if !o.byClient() && !o.byBackend() {
			b.report(o, fmt.Errorf("the backend's side: send: %w", serr))
		}
	case isShort(err) && o.End != endClose && o.End != endWaiting && !o.byBackend():
		b.report(o, wrong("the backend's side %v", err))
	case err != nil && !o.byClient() && !o.byBackend():
		b.report(o, fmt.Errorf("the backend's side: %w", err))
	}
}

// answerBytes sends what an order wants back.
func answerBytes(ctx context.Context, c net.Conn, o *order, half bool) error {
	n := o.Down
	if o.byBackend() {
		n = o.DownAt
	}
	if _, err := fmt.Fprintf(c, "%016x\n", o.ID); err != nil {
		return err
	}
	if err := send(ctx, c, o.seedDown(), n, newPace(o, 3)); err != nil {
		return err
	}
	switch {
	case o.End == endCrash:
		reset(c)
	case o.End == endCut:
		return c.Close()
	case half:
		return closeWrite(c)
	}
	return nil
}

// reset ends a connection with RST.
func reset(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// closeWrite ends one way of a connection.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

func (b *backend) serveHTTP(w http.ResponseWriter, r *http.Request) {
	o, err := parseOrder(r.Header.Get(orderField))
	if err != nil {
		b.report(&order{}, err)
		w.WriteHeader(http.StatusTeapot)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w.Header().Set(idField, fmt.Sprintf("%016x", o.ID))
	if r.Header.Get("Upgrade") != "" {
		b.upgrade(w, r)
		return
	}
	out := http.NewResponseController(w)
	_ = out.EnableFullDuplex() // HTTP/2 is so
	chunked := o.DownChunked || o.Trailer
	if !chunked {
		w.Header().Set("Content-Length", strconv.Itoa(o.Down))
	}
	if o.Trailer {
		w.Header().Set("Trailer", endField)
	}
	if r.Method == http.MethodHead {
		return
	}
	down := &answer{w: w, r: r, out: out, o: o}
	switch o.Mode {
	case modeEcho:
		err = b.take(ctx, o, io.TeeReader(r.Body, down))
	case modeAfter:
		if err = b.take(ctx, o, r.Body); err == nil {
			err = send(ctx, down, o.seedDown(), o.Down, newPace(o, 3))
		}
	default:
		var taking sync.WaitGroup
		var failed error
		taking.Go(func() { failed = b.take(ctx, o, r.Body) })
		n := o.Down
		if o.Mode == modeEarly { // the end of the answer waits for that of the request
			n /= 2
		}
		err = send(ctx, down, o.seedDown(), n, newPace(o, 3))
		_ = out.Flush()
		taking.Wait()
		if o.Mode == modeEarly && err == nil && failed == nil {
			err = sendRest(ctx, down, o, n)
		}
		if o.Mode == modeEarly {
			err = errors.Join(err, failed)
		}
	}
	if err != nil {
		panic(http.ErrAbortHandler) // ends the stream or connection
	}
	if o.byBackend() && down.sent < o.Down {
		down.crash()
	}
	if o.Trailer {
		w.Header().Set(endField, fmt.Sprintf("%016x", o.ID))
	}
}

// sendRest sends a body from an offset on.
func sendRest(ctx context.Context, w io.Writer, o *order, from int) error {
	buf := make([]byte, pieceMax)
	for from < o.Down && ctx.Err() == nil {
		part := buf[:min(pieceMax, o.Down-from)]
		fill(part, o.seedDown(), from)
		if _, err := w.Write(part); err != nil {
			return err
		}
		from += len(part)
	}
	return ctx.Err()
}

// take receives the body of a request.
func (b *backend) take(ctx context.Context, o *order, body io.Reader) error {
	_, err := receive(ctx, body, o.seedUp(), o.Up, true, newPace(o, 4))
	switch {
	case isWrong(err):
		b.report(o, err)
	case isShort(err):
		b.report(o, wrong("the backend's request %v", err))
	case err != nil && !o.byClient() && !o.byBackend() && o.Mode != modeSoon && !errors.Is(err, errCrash):
		b.report(o, fmt.Errorf("the backend's request: %w", err))
	}
	return err
}

var errCrash = errors.New("the backend ends the exchange")

// answer writes the body of a response, and ends it early where the order says so.
type answer struct {
	w    http.ResponseWriter
	r    *http.Request
	out  *http.ResponseController
	o    *order
	sent int
}

func (a *answer) Write(p []byte) (int, error) {
	cut := a.o.byBackend() && a.sent+len(p) > a.o.DownAt
	if cut {
		p = p[:a.o.DownAt-a.sent]
	}
	n, err := a.w.Write(p)
	a.sent += n
	if err != nil {
		return n, err
	}
	if a.o.Mode == modeEcho || a.o.ID%3 == 0 || cut {
		err = a.out.Flush()
	}
	if cut {
		a.crash()
		return n, errCrash
	}
	return len(p), err
}

// crash ends the exchange without the rest of the answer; nothing may be written afterwards.
func (a *answer) crash() {
	_ = a.out.Flush()
	if a.o.End != endCrash || a.r.ProtoMajor != 1 {
		return // the handler's end ends it
	}
	if c, ok := a.r.Context().Value(connKey{}).(net.Conn); ok { // Hijack would wait for who reads the request
		reset(c)
	}
}

// connKey is where the context of a request has its connection.
type connKey struct{}

// upgrade makes a connection a WebSocket's, whose bytes are those of an order. Frames are not looked at: they are bytes
// to the proxies, too.
func (b *backend) upgrade(w http.ResponseWriter, r *http.Request) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		b.report(&order{}, wrong("upgrade of %s: %v", r.Proto, err))
		return
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	_, err = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n%s: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]), idField, w.Header().Get(idField))
	if err != nil {
		return
	}
	b.converse(c, rw.Reader, false)
}
