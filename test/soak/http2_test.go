package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"time"
)

// http2Player is a client of HTTP/2 on connections that workers share.
type http2Player struct {
	v         *via
	transport *http.Transport
}

func newTransport(r *rig, v *via) *http.Transport {
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols: protocols, DisableCompression: true, IdleConnTimeout: patience,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx, v) },
	}
}

func (p *http2Player) close() { p.transport.CloseIdleConnections() }

func (p *http2Player) play(ctx context.Context, w *worker) {
	o := w.order(endClose, endReset, endWaiting, endCut, endCrash)
	if w.rnd.IntN(200) == 0 {
		p.transport.CloseIdleConnections()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := p.exchange(ctx, o, cancel)
	w.end(o, &facts{}, err)
}

func (p *http2Player) exchange(ctx context.Context, o *order, cancel func()) error {
	body := &source{ctx: ctx, o: o, pace: newPace(o, 1), cancel: cancel}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://%s/soak/%016x", p.v.host, o.ID), body)
	if err != nil {
		return err
	}
	req.Header.Set(orderField, o.String())
	req.Header.Set("X-Request-Id", fmt.Sprintf("%016x", o.ID))
	if req.ContentLength = int64(o.Up); o.UpChunked {
		req.ContentLength = -1
	}
	if o.Up == 0 && !o.UpChunked {
		req.Body = http.NoBody
	}
	res, err := p.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	return check(ctx, res, o, http.MethodPost)
}

// source is the body of a request.
type source struct {
	ctx    context.Context
	o      *order
	pace   *pace
	off    int
	cancel func()
}

func (s *source) Close() error { return nil }

func (s *source) Read(p []byte) (int, error) {
	if s.o.End == endClose || s.o.End == endReset {
		if s.off >= s.o.UpAt {
			s.cancel()
			return 0, errLeft
		}
		p = p[:min(len(p), s.o.UpAt-s.off)]
	}
	if s.off == s.o.Up {
		return 0, io.EOF
	}
	n, err := s.pace.next(s.ctx)
	if err != nil {
		return 0, err
	}
	n = min(n, len(p), s.o.Up-s.off)
	fill(p[:n], s.o.seedUp(), s.off)
	s.off += n
	return n, nil
}

// abortAfter is when a client gives a call up that it cannot give up in the middle.
func abortAfter(o *order) time.Duration {
	return time.Duration(rand.New(rand.NewPCG(o.ID, 5)).IntN(int(10 * time.Millisecond)))
}

// stalled reports whether an exchange has taken all the time that there is.
func stalled(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout() || errors.Is(err, context.DeadlineExceeded)
}
