package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/lateen-mesh/lateen/fair"
	"github.com/lateen-mesh/lateen/proxy/probe"
)

// Bounds of the admin page, the metrics, the probes and the health ports, most of which any pod can reach.
const (
	// serveHead bounds a request's head, serveAnswer what comes after it, of which probes take longest.
	serveHead   = 10 * time.Second
	serveAnswer = probe.TimeoutMax + time.Minute
	// serveFarewell bounds what is still answered at the end.
	serveFarewell = time.Second
	// guestsMax is how many connections a port has: more than the probes of the largest pods at a time.
	guestsMax = 128
	// readersMax is how many are answered with metrics at a time, each of which holds all of ours, and readersTimeout how
	// long that may take: what the application has for its own, and for them to be read.
	readersMax     = 8
	readersTimeout = 30 * time.Second
)

// serveHTTP serves until ctx ends.
func (p *Proxy) serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: serveHead, WriteTimeout: serveAnswer, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(p.logs.loops.Handler(), slog.LevelWarn), // it tells of clients' faults
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		// Whoever has asked for the end is told that it comes.
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveFarewell)
		defer cancel()
		if s.Shutdown(late) != nil {
			_ = s.Close()
		}
	})
	err := s.Serve(newGuests(l))
	if !stop() {
		<-ended
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// guests is a listener with a bounded number of connections. One more takes the place of the oldest of the address with
// most: whoever opens all that there are cannot keep the kubelet or Prometheus out, of whose addresses we know nothing
// for sure (the kubelet's may be any of its node's, as the network has it).
type guests struct {
	net.Listener
	crowd *fair.Crowd
}

func newGuests(l net.Listener) net.Listener { return guests{l, fair.NewCrowd(guestsMax)} }

// Accept waits for the next connection.
func (g guests) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	leave := g.crowd.Enter(fair.Address(c.RemoteAddr().String()), func() {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // nor does the kernel keep what is not taken
		}
		_ = c.Close()
	})
	return guest{c, leave}, nil
}

// guest is a connection that has a place among the others.
type guest struct {
	net.Conn
	leave func()
}

// Close closes the connection and leaves its place to another.
func (g guest) Close() error {
	g.leave()
	return g.Conn.Close()
}

// fewReaders bounds how many are answered with metrics at a time, and how long. One more takes the place of another, as
// with connections.
func fewReaders(metrics http.Handler) http.Handler {
	readers := fair.NewCrowd(readersMax)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readersTimeout)
		defer cancel()
		stream := http.NewResponseController(w)
		_ = stream.SetWriteDeadline(time.Now().Add(readersTimeout)) // a recorder in a test has none
		defer readers.Enter(fair.Address(r.RemoteAddr), func() {
			cancel()
			_ = stream.SetWriteDeadline(time.Unix(1, 0))
		})()
		metrics.ServeHTTP(w, r.WithContext(ctx))
	})
}
