package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/code"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/lateen-mesh/lateen/xds/client"
)

const (
	typeA = "type.googleapis.com/test.A"
	typeB = "type.googleapis.com/test.B"
	typeC = "type.googleapis.com/test.C"
)

// picture is an immutable Source of one scope, "all". A name that begins with a dot is known but not listed.
type picture struct {
	versions map[string]map[string]string // of names, by type
	names    map[string][]string
	scope    func(*Client) (string, error)
	asked    *atomic.Int64 // calls of Resource, over all pictures of a line
}

// newPicture reads entries such as "A a=1", for name a of typeA at version 1.
func newPicture(entries ...string) *picture {
	p := &picture{versions: map[string]map[string]string{}, names: map[string][]string{}, asked: &atomic.Int64{}}
	next, _ := p.with(entries...)
	return next
}

// with returns a picture in which entries differ, and the keys of what differs. "A a=" takes a away.
func (p *picture) with(entries ...string) (*picture, []Key) {
	next := &picture{versions: map[string]map[string]string{}, names: maps.Clone(p.names), scope: p.scope, asked: p.asked}
	for typeURL, versions := range p.versions {
		next.versions[typeURL] = maps.Clone(versions)
	}
	var changed []Key
	relisted := map[string]bool{}
	for _, entry := range entries {
		short, assignment, _ := strings.Cut(entry, " ")
		name, version, _ := strings.Cut(assignment, "=")
		typeURL := long(short)
		if next.versions[typeURL] == nil {
			next.versions[typeURL] = map[string]string{}
		}
		_, before := next.versions[typeURL][name]
		if version == "" {
			delete(next.versions[typeURL], name)
		} else {
			next.versions[typeURL][name] = version
		}
		changed = append(changed, Key{"all", typeURL, name})
		if before != (version != "") && name[0] != '.' {
			relisted[typeURL] = true
		}
	}
	for typeURL := range relisted {
		changed = append(changed, Key{"all", typeURL, ""})
		next.names[typeURL] = slices.DeleteFunc(slices.Sorted(maps.Keys(next.versions[typeURL])),
			func(name string) bool { return name[0] == '.' })
	}
	return next, changed
}

func (p *picture) Scope(c *Client) (string, error) {
	if p.scope != nil {
		return p.scope(c)
	}
	return "all", nil
}

func (p *picture) Resource(k Key) (Resource, bool) {
	p.asked.Add(1)
	version, ok := p.versions[k.Type][k.Name]
	if !ok || k.Scope != "all" {
		return Resource{}, false
	}
	return Resource{Name: k.Name, Version: version, Body: []byte(k.Name + "=" + version)}, true
}

func (p *picture) Names(_, typeURL string) []string { return p.names[typeURL] }

var shortTypes = map[string]string{
	"A": typeA, "B": typeB, "C": typeC, "CDS": typeCluster, "EDS": typeEndpoint, "LDS": typeListener, "RDS": typeRoute, "SDS": typeSecret,
}

func long(short string) string { return shortTypes[short] }

func short(typeURL string) string {
	for s, l := range shortTypes {
		if l == typeURL {
			return s
		}
	}
	return typeURL
}

// world is a server in a bubble, with the picture that it serves.
type world struct {
	*Server
	t       *testing.T
	picture *picture
}

// inBubble runs a test of a server with virtual time. The bubble fails it if a goroutine stays behind.
func inBubble(t *testing.T, config Config, p *picture, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if p != nil {
			config.Source = p
		}
		w := &world{Server: New(config), t: t, picture: p}
		test(t, w)
		w.Drain()
	})
}

// listed is the change of a source that is immutable.
func listed(keys ...Key) func() []Key { return func() []Key { return keys } }

// change pushes a picture in which entries differ.
func (w *world) change(entries ...string) {
	next, changed := w.picture.with(entries...)
	w.picture = next
	w.Push(next, listed(changed...))
}

// pass lets time go by in the bubble.
func pass(d time.Duration) { <-time.After(d) }

// pipe is both ends of a stream in memory. The server's end is slow: nothing is taken from it until a test reads.
type pipe[Request, Response any] struct {
	grpc.ServerStream
	t    *testing.T
	ctx  context.Context
	hang func()
	in   chan *Request
	out  chan *Response
	over chan error // what the method returned
}

func newPipe[Request, Response any](t *testing.T, serve func(*pipe[Request, Response]) error) *pipe[Request, Response] {
	ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 4711}})
	p := &pipe[Request, Response]{t: t, in: make(chan *Request), out: make(chan *Response), over: make(chan error, 1)}
	p.ctx, p.hang = context.WithCancel(ctx)
	go func() {
		err := serve(p)
		p.hang() // as gRPC does when a method returns
		p.over <- err
	}()
	return p
}

func (p *pipe[Request, Response]) Context() context.Context     { return p.ctx }
func (p *pipe[Request, Response]) SendHeader(metadata.MD) error { return nil }
func (p *pipe[Request, Response]) Recv() (*Request, error)      { return take(p.ctx, p.in) }
func (p *pipe[Request, Response]) Send(r *Response) error       { return give(p.ctx, p.out, r) }
func (p *pipe[Request, Response]) say(r *Request)               { p.t.Helper(); p.must(give(p.ctx, p.in, r)) }

func (p *pipe[Request, Response]) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Error(err)
	}
}

// next waits until nothing moves and returns the response that waits to be read, or nil.
func (p *pipe[Request, Response]) next() *Response {
	synctest.Wait()
	select {
	case r := <-p.out:
		return r
	default:
		return nil
	}
}

// ended waits until nothing moves and returns how the method ended.
func (p *pipe[Request, Response]) ended() error {
	p.t.Helper()
	synctest.Wait()
	select {
	case err := <-p.over:
		return err
	default:
		p.t.Error("the stream is still open")
		return nil
	}
}

func give[T any](ctx context.Context, to chan<- T, value T) error {
	select {
	case to <- value:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func take[T any](ctx context.Context, from <-chan T) (value T, err error) {
	select {
	case value, ok := <-from:
		if !ok {
			return value, io.EOF
		}
		return value, nil
	case <-ctx.Done():
		return value, ctx.Err()
	}
}

// delta is a client that speaks the incremental dialect.
type delta struct {
	*pipe[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]
	nonce string // of the last response
	named bool   // the node was sent
}

func (w *world) delta() *delta {
	return &delta{pipe: newPipe(w.t, func(p *pipe[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]) error {
		return w.DeltaAggregatedResources(p)
	})}
}

// ask sends a request for a type: "+name" subscribes, "-name" unsubscribes, "name=version" is held already.
func (d *delta) ask(short string, words ...string) {
	d.t.Helper()
	r := &discovery.DeltaDiscoveryRequest{TypeUrl: long(short)}
	for _, word := range words {
		switch name, version, held := strings.Cut(word, "="); {
		case held:
			if r.InitialResourceVersions == nil {
				r.InitialResourceVersions = map[string]string{}
			}
			r.InitialResourceVersions[name] = version
		case word[0] == '+':
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, word[1:])
		case word[0] == '-':
			r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, word[1:])
		}
	}
	d.request(r)
}

func (d *delta) request(r *discovery.DeltaDiscoveryRequest) {
	d.t.Helper()
	if !d.named {
		d.named = true
		r.Node = &core.Node{Id: "me"}
	}
	d.say(r)
}

// expect reads all responses that wait, accepts them and compares them: each is a type, what it holds and what it
// removes, such as "A a=1 b=2 -c".
func (d *delta) expect(want ...string) {
	d.t.Helper()
	var got []string
	for {
		r := d.next()
		if r == nil {
			break
		}
		got = append(got, describe(r))
		d.nonce = r.GetNonce()
		d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: d.nonce})
	}
	if !slices.Equal(got, want) {
		d.t.Errorf("responses:\n got %q\nwant %q", got, want)
	}
}

// refuse reads one response and refuses it.
func (d *delta) refuse(want, reason string) {
	d.t.Helper()
	r := d.next()
	if r == nil {
		d.t.Fatalf("no response, want %q", want)
	}
	if got := describe(r); got != want {
		d.t.Errorf("got %q, want %q", got, want)
	}
	d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: refused(reason)})
	synctest.Wait()
}

func refused(reason string) *rpc.Status {
	return &rpc.Status{Code: int32(code.Code_INVALID_ARGUMENT), Message: reason}
}

func describe(r *discovery.DeltaDiscoveryResponse) string {
	words := []string{short(r.GetTypeUrl())}
	for _, resource := range r.GetResources() {
		word := resource.GetName() + "=" + resource.GetVersion()
		if resource.GetResource().GetTypeUrl() != r.GetTypeUrl() || string(resource.GetResource().GetValue()) != word {
			word += fmt.Sprintf("(%v)", resource.GetResource())
		}
		words = append(words, word)
	}
	for _, name := range r.GetRemovedResources() {
		words = append(words, "-"+name)
	}
	return strings.Join(words, " ")
}

// sotw is a client that speaks the state-of-the-world dialect.
type sotw struct {
	*pipe[discovery.DiscoveryRequest, discovery.DiscoveryResponse]
	names  map[string][]string
	nonces map[string]string
	named  bool
}

func (w *world) sotw() *sotw {
	return &sotw{names: map[string][]string{}, nonces: map[string]string{}, pipe: newPipe(w.t,
		func(p *pipe[discovery.DiscoveryRequest, discovery.DiscoveryResponse]) error {
			return w.StreamAggregatedResources(p)
		})}
}

// ask sends a request for all names of a type that are wanted from now on.
func (s *sotw) ask(short string, names ...string) {
	s.t.Helper()
	s.names[long(short)] = names
	s.request(&discovery.DiscoveryRequest{TypeUrl: long(short), ResponseNonce: s.nonces[long(short)]})
}

func (s *sotw) request(r *discovery.DiscoveryRequest) {
	s.t.Helper()
	if !s.named {
		s.named = true
		r.Node = &core.Node{Id: "me"}
	}
	r.ResourceNames = s.names[r.GetTypeUrl()]
	s.say(r)
}

// expect reads all responses that wait, accepts them and compares them, such as "A a=1 b=2".
func (s *sotw) expect(want ...string) {
	s.t.Helper()
	var got []string
	for {
		r := s.next()
		if r == nil {
			break
		}
		words := []string{short(r.GetTypeUrl())}
		for _, resource := range r.GetResources() {
			words = append(words, string(resource.GetValue()))
		}
		got = append(got, strings.Join(words, " "))
		s.nonces[r.GetTypeUrl()] = r.GetNonce()
		s.request(&discovery.DiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), VersionInfo: r.GetVersionInfo()})
	}
	if !slices.Equal(got, want) {
		s.t.Errorf("responses:\n got %q\nwant %q", got, want)
	}
}

// dialer connects our own client to a server in memory.
type dialer struct {
	t *testing.T

	mu     sync.Mutex
	server *Server // nil: nobody answers
	last   *clientStream
}

func (d *dialer) OpenStream(ctx context.Context, _ string) (client.Stream, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.server == nil {
		return nil, errors.New("nobody answers")
	}
	server := d.server
	//nolint:contextcheck // A stream carries its context.
	p := newPipe(d.t, func(p *pipe[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]) error {
		return server.DeltaAggregatedResources(p)
	})
	context.AfterFunc(ctx, p.hang)
	d.last = &clientStream{pipe: p}
	return d.last, nil
}

// turn makes the next streams go to another server.
func (d *dialer) turn(s *Server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.server = s
}

// cut breaks the last stream.
func (d *dialer) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last != nil {
		d.last.hang()
	}
}

type clientStream struct {
	*pipe[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]

	mu  sync.Mutex
	log []string // the responses that the client received
}

func (s *clientStream) Send(b []byte) error {
	r := &discovery.DeltaDiscoveryRequest{}
	if err := proto.Unmarshal(b, r); err != nil {
		return err
	}
	return give(s.ctx, s.in, r)
}

func (s *clientStream) Recv() ([]byte, error) {
	r, err := take(s.ctx, s.out)
	if err != nil {
		return nil, io.EOF
	}
	s.mu.Lock()
	s.log = append(s.log, describe(r))
	s.mu.Unlock()
	return proto.Marshal(r)
}

func (s *clientStream) Close() { s.hang() }
