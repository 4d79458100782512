package server

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// stream is one client's stream.
//
// The goroutine of the gRPC method owns it. It takes requests from a goroutine that reads, has answers written by
// one that lives as long as the write, and is woken by Push.
type stream struct {
	server  *Server
	dialect dialect
	sotw    bool
	client  *Client
	scope   string
	began   time.Time

	// Owned by the goroutine of the method.
	types    map[string]*subscription
	names    int    // subscribed to, over all types
	nonce    uint64 // of the last answer
	awaiting bool   // a request asks for an answer

	wake chan struct{} // holds one token while there are new marks
	quit chan struct{} // closed by Drain; not shared, since every stream waits on it all the time

	mu         sync.Mutex
	marked     map[string]*marks
	assembling bool // the marks are taken, and what follows from them is not queued yet
	progress   map[string]*progress
}

// marks is what has changed for a stream since it last looked.
type marks struct {
	names map[string]struct{}
	set   bool // the set of names that a wildcard covers
	flood bool // so many names that they are not worth listing
}

// mark notes that a name of a type changed, or with an empty name the set of names.
func (st *stream) mark(typeURL, name string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	m := st.marked[typeURL]
	if m == nil {
		m = &marks{}
		st.marked[typeURL] = m
	}
	switch {
	case name == "":
		m.set = true
	case len(m.names) >= marksMax:
		m.names, m.flood = nil, true
	case !m.flood:
		if m.names == nil {
			m.names = map[string]struct{}{}
		}
		m.names[name] = struct{}{}
	}
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// takeMarks returns the marks and forgets them. What becomes of them is told to queued.
func (st *stream) takeMarks() map[string]*marks {
	st.mu.Lock()
	defer st.mu.Unlock()
	taken := st.marked
	st.marked, st.assembling = map[string]*marks{}, true
	return taken
}

// serve serves one stream to its end.
func (s *Server) serve(ctx context.Context, d dialect, sotw bool) error {
	proven, err := s.prove(ctx)
	if err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()

	requests, broken, ended := make(chan *request), make(chan error, 1), make(chan struct{})
	defer close(ended)
	s.work.Go(func() { broken <- receive(d, requests, ended) })

	var first *request
	select {
	case first = <-requests:
	case err := <-broken:
		return endOf(err)
	case <-time.After(firstRequestTimeout):
		return status.Errorf(codes.DeadlineExceeded, "no request within %v", firstRequestTimeout)
	case <-s.draining:
		return nil
	}
	client, err := s.identify(ctx, first.node, proven)
	if err != nil {
		return err
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-s.draining:
		return nil
	}
	scope, err := s.index.current().Scope(client)
	if err != nil {
		s.logger.Warn("discovery stream refused", "node", client.Node.ID, "peer", client.Peer,
			"identity", client.Identity, "cause", err)
		return status.Error(codes.PermissionDenied, err.Error())
	}
	st := newStream(s, d, sotw, client, scope)
	if !s.join(st) {
		return nil
	}
	err = st.run(ctx, first, requests, broken)
	s.part(st, err)
	return err
}

func newStream(s *Server, d dialect, sotw bool, client *Client, scope string) *stream {
	return &stream{
		server:   s,
		dialect:  d,
		sotw:     sotw,
		client:   client,
		scope:    scope,
		began:    time.Now(),
		types:    map[string]*subscription{},
		wake:     make(chan struct{}, 1),
		quit:     make(chan struct{}),
		marked:   map[string]*marks{},
		progress: map[string]*progress{},
	}
}

// receive passes requests on until the stream ends, and returns why it did.
func receive(d dialect, requests chan<- *request, ended <-chan struct{}) error {
	for {
		r, err := d.recv()
		if err != nil {
			return err
		}
		select {
		case requests <- r:
		case <-ended:
			return nil
		}
	}
}

// endOf is the status of a stream whose client left.
func endOf(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// run serves an admitted client to the end of its stream, in the first place its first request.
func (st *stream) run(ctx context.Context, first *request, requests <-chan *request, broken <-chan error) error {
	if err := st.take(first); err != nil {
		return err
	}
	aged := time.NewTimer(st.server.lifetime())
	defer aged.Stop()
	late := time.NewTimer(st.server.config.WriteTimeout)
	late.Stop()
	defer late.Stop()
	var queue []*answer    // of one assembly: nothing is added until it is sent
	var written chan error // nil while nothing is being written
	for {
		if written == nil {
			if len(queue) == 0 {
				queue = st.assemble()
			}
			if len(queue) > 0 {
				written = st.write(queue[0])
				late.Reset(st.server.config.WriteTimeout)
			}
		}
		select {
		case r := <-requests:
			if err := st.take(r); err != nil {
				return err
			}
		case err := <-written:
			if err != nil {
				return err
			}
			late.Stop()
			st.sent(queue[0])
			queue, written = queue[1:], nil
		case <-late.C:
			st.server.connections.cut(ctx)
			return status.Errorf(codes.DeadlineExceeded, "the client took no response within %v", st.server.config.WriteTimeout)
		case <-st.wake:
			st.awaiting = true
		case <-aged.C:
			return nil
		case err := <-broken:
			return endOf(err)
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-st.quit:
			return nil
		}
	}
}

// lifetime is how long a stream may live: until its connection has surely been drained, which is a tenth past AgeMax
// at most (see [Server.Options]), and a little more that differs from stream to stream.
func (s *Server) lifetime() time.Duration {
	age := s.config.AgeMax
	return age + age/10 + age/20 + rand.N(age/10+1)
}

// write sends an answer in a goroutine of its own, since it may block for as long as the client does not read, and
// only the return of the gRPC method ends it then.
func (st *stream) write(a *answer) chan error {
	st.number(a)
	written := make(chan error, 1)
	st.server.work.Go(func() { written <- st.dialect.send(a) })
	return written
}
