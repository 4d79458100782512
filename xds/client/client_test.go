package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/code"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
)

// far is the server's end of streams, and the dialer to it. It says only what a test makes it say.
type far struct {
	t *testing.T

	mu      sync.Mutex
	refuse  error // of OpenStream
	hang    bool  // OpenStream waits for its context
	deaf    bool  // Send waits for the stream's end
	dialled []time.Time
	streams []*farStream
}

func (f *far) OpenStream(ctx context.Context, method string) (Stream, error) {
	if method != Method {
		f.t.Errorf("method %q, want %q", method, Method)
	}
	f.mu.Lock()
	f.dialled = append(f.dialled, time.Now())
	hang := f.hang
	f.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return nil, f.refuse
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s := &farStream{t: f.t, ctx: ctx, cancel: cancel, deaf: f.deaf, replies: make(chan []byte)}
	f.streams = append(f.streams, s)
	return s, nil
}

// set changes how the far end behaves from now on.
func (f *far) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// stream waits until nothing moves any more and returns the last stream.
func (f *far) stream() *farStream {
	f.t.Helper()
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.streams) == 0 {
		f.t.Fatal("no stream was opened")
	}
	return f.streams[len(f.streams)-1]
}

func (f *far) dials() []time.Time {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.dialled)
}

type farStream struct {
	t       *testing.T
	ctx     context.Context
	cancel  context.CancelCauseFunc
	deaf    bool
	replies chan []byte

	mu       sync.Mutex
	requests []*discovery.DeltaDiscoveryRequest
}

func (s *farStream) Send(b []byte) error {
	if s.deaf {
		<-s.ctx.Done()
		return io.EOF
	}
	r := &discovery.DeltaDiscoveryRequest{}
	if err := proto.Unmarshal(b, r); err != nil {
		s.t.Errorf("request: %v", err)
	}
	if len(b) > 4<<20 {
		s.t.Errorf("a request has %d bytes, servers take 4 MiB", len(b))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r)
	return nil
}

func (s *farStream) Recv() ([]byte, error) {
	select {
	case b := <-s.replies:
		return b, nil
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

func (s *farStream) Close() { s.cancel(context.Canceled) }

// end ends the stream from the far side.
func (s *farStream) end(err error) {
	s.cancel(err)
	synctest.Wait()
}

// expect waits until nothing moves and compares the requests that came since the last time.
func (s *farStream) expect(want ...*discovery.DeltaDiscoveryRequest) {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff(want, s.requests, protocmp.Transform(), protocmp.IgnoreFields(&discovery.DeltaDiscoveryRequest{}, "node")); diff != "" {
		s.t.Errorf("requests: -want +got\n%s", diff)
	}
	s.requests = nil
}

// reply sends a response whose added resources are given as "name=version".
func (s *farStream) reply(typeURL, nonce string, added []string, removed ...string) {
	s.t.Helper()
	r := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, RemovedResources: removed}
	for _, a := range added {
		name, version, _ := strings.Cut(a, "=")
		r.Resources = append(r.Resources, &discovery.Resource{
			Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typeURL, Value: []byte("body " + a)},
		})
	}
	b, err := proto.Marshal(r)
	if err != nil {
		s.t.Fatal(err)
	}
	s.replies <- b
	synctest.Wait()
}

// near is a handler that keeps what it is handed.
type near struct {
	mu     sync.Mutex
	events []string
	update func(typeURL string, added []Resource) error // if set, may refuse
}

func (n *near) Update(typeURL string, added []Resource, removed []string) (refusal error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	event := typeURL[len(typeURL)-1:]
	for _, r := range added {
		if string(r.Body) != "body "+r.Name+"="+r.Version {
			event += fmt.Sprintf(" body of %s: %q", r.Name, r.Body)
		}
		event += " +" + r.Name + "=" + r.Version
	}
	for _, name := range removed {
		event += " -" + name
	}
	if n.update != nil {
		refusal = n.update(typeURL, added)
	}
	if _, some := errors.AsType[Refused](refusal); refusal != nil && !some {
		return refusal
	}
	n.events = append(n.events, event)
	return refusal
}

func (n *near) Connected(ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, fmt.Sprintf("connected %v", ok))
}

func (n *near) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if diff := cmp.Diff(want, n.events); diff != "" {
		t.Errorf("events: -want +got\n%s", diff)
	}
	n.events = nil
}

type ask = discovery.DeltaDiscoveryRequest

// inBubble runs a test of a running client. The bubble fails it if Run leaves a goroutine behind.
func inBubble(t *testing.T, config Config, test func(t *testing.T, c *Client, f *far, n *near)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f, n := &far{t: t}, &near{}
		config.Dialer, config.Handler = f, n
		c := New(config)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		test(t, c, f, n)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}

// pass lets time go by in the bubble.
func pass(d time.Duration) { <-time.After(d) }

func refusal(message string) *rpc.Status {
	return &rpc.Status{Code: int32(code.Code_INVALID_ARGUMENT), Message: message}
}

func subscribe(t *testing.T, c *Client, typeURL string, names ...string) {
	t.Helper()
	if err := c.Subscribe(typeURL, names...); err != nil {
		t.Fatal(err)
	}
}

func TestSubscriptionsCoalesce(t *testing.T) {
	inBubble(t, Config{Node: Node{ID: "me"}}, func(t *testing.T, c *Client, f *far, n *near) {
		if len(f.dials()) != 0 {
			t.Error("a stream was opened before there was a subscription")
		}
		f.set(func() { f.refuse = errors.New("not yet") })
		var callers sync.WaitGroup
		for i := range 50 {
			callers.Go(func() { subscribe(t, c, typeA, fmt.Sprintf("a%02d", i), "both") })
		}
		callers.Wait()
		subscribe(t, c, typeB, "b")
		f.set(func() { f.refuse = nil })
		pass(time.Second)
		s := f.stream()
		s.mu.Lock()
		requests := s.requests
		s.mu.Unlock()
		if len(requests) != 2 {
			t.Errorf("%d requests for 52 names of two types", len(requests))
		}
		if requests[0].GetNode().GetId() != "me" {
			t.Errorf("first request: node %v", requests[0].GetNode())
		}
		told := map[string]int{}
		for i, r := range requests {
			if i > 0 && r.GetNode() != nil {
				t.Errorf("request %d repeats the node", i)
			}
			for _, name := range r.GetResourceNamesSubscribe() {
				told[r.GetTypeUrl()+" "+name]++
			}
		}
		if len(told) != 52 {
			t.Errorf("%d names were told, want 52", len(told))
		}
		for name, times := range told {
			if times != 1 {
				t.Errorf("%s was told %d times", name, times)
			}
		}
		s.expect(requests...)
		subscribe(t, c, typeA, "a00", "both")
		s.expect() // nothing new
	})
}

func TestAcceptAndRefuse(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Client, f *far, n *near) {
		subscribe(t, c, typeA, "x", "y")
		s := f.stream()
		s.expect(&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"x", "y"}})
		s.reply(typeA, "1", []string{"x=1"}, "y")
		n.expect(t, "connected true", "A +x=1 -y")
		s.expect(&ask{TypeUrl: typeA, ResponseNonce: "1"})

		n.update = func(string, []Resource) error { return errors.New("x has no port") }
		s.reply(typeA, "2", []string{"x=2", "y=2"})
		n.update = nil
		n.expect(t)
		s.expect(&ask{TypeUrl: typeA, ResponseNonce: "2", ErrorDetail: refusal("x has no port")})

		s.reply(typeA, "3", []string{"x=3", "x=3"})
		s.expect(&ask{TypeUrl: typeA, ResponseNonce: "3", ErrorDetail: refusal(`the resource "x" is there twice`)})
		n.expect(t)

		// The versions of the last good state are what the client holds.
		s.end(io.EOF)
		n.expect(t, "connected false")
		pass(time.Second) // until the next stream
		f.stream().expect(&ask{
			TypeUrl: typeA, ResourceNamesSubscribe: []string{"x", "y"}, InitialResourceVersions: map[string]string{"x": "1"},
		})
	})
}

// TestRefuseSome: of a response in which some resources are refused the client holds the others.
func TestRefuseSome(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Client, f *far, n *near) {
		subscribe(t, c, typeA, "u", "v", "x", "y", "z")
		s := f.stream()
		s.expect(&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"u", "v", "x", "y", "z"}})
		s.reply(typeA, "1", []string{"x=1", "y=1", "z=1"})
		n.expect(t, "connected true", "A +x=1 +y=1 +z=1")
		s.expect(&ask{TypeUrl: typeA, ResponseNonce: "1"})

		n.update = func(string, []Resource) error {
			return Refused{"x": errors.New("x has no port"), "u": errors.New("u is odd"), "v": errors.New("v is odd"), "w": errors.New("w is odd")}
		}
		s.reply(typeA, "2", []string{"u=2", "v=2", "x=2", "y=2"}, "z")
		n.expect(t, "A +u=2 +v=2 +x=2 +y=2 -z")
		s.expect(&ask{TypeUrl: typeA, ResponseNonce: "2", ErrorDetail: refusal("u is odd; v is odd; w is odd; and 1 more")})
		n.update = nil

		s.end(io.EOF)
		n.expect(t, "connected false")
		pass(time.Second) // until the next stream
		f.stream().expect(&ask{
			TypeUrl: typeA, ResourceNamesSubscribe: []string{"u", "v", "x", "y", "z"}, InitialResourceVersions: map[string]string{"x": "1", "y": "2"},
		})
	})
}

// TestAnswerCarriesSubscriptions covers the way of a connection: a route arrives, the handler asks for its cluster.
func TestAnswerCarriesSubscriptions(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Client, f *far, n *near) {
		n.update = func(typeURL string, added []Resource) error {
			if typeURL == typeA {
				c.Unsubscribe(typeA, "old")
				return errors.Join(c.Subscribe(typeA, "new"), c.Subscribe(typeB, "b1"), c.Subscribe(typeB, "b2"))
			}
			return nil
		}
		subscribe(t, c, typeA, "old", "x")
		s := f.stream()
		s.expect(&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"old", "x"}})
		s.reply(typeA, "1", []string{"x=1"})
		s.expect(
			&ask{TypeUrl: typeB, ResourceNamesSubscribe: []string{"b1", "b2"}},
			&ask{TypeUrl: typeA, ResponseNonce: "1", ResourceNamesSubscribe: []string{"new"}, ResourceNamesUnsubscribe: []string{"old"}},
		)
	})
}

func TestUnsubscribe(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Client, f *far, n *near) {
		c.Unsubscribe(typeA, "never")
		subscribe(t, c, typeA, "w", "x", "y", "z")
		c.Unsubscribe(typeA, "z", "never") // not told yet: nobody hears of it
		s := f.stream()
		s.expect(&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"w", "x", "y"}})
		s.reply(typeA, "1", []string{"x=1", "y=1"})
		s.expect(&ask{TypeUrl: typeA, ResponseNonce: "1"})
		c.Unsubscribe(typeA, "x")
		s.expect(&ask{TypeUrl: typeA, ResourceNamesUnsubscribe: []string{"x"}})
		n.expect(t, "connected true", "A +x=1 +y=1")

		// What was under way for a name that is given up is not handed over, but accepted.
		s.reply(typeA, "2", []string{"x=2"})
		n.expect(t)
		s.expect(&ask{TypeUrl: typeA, ResponseNonce: "2"})

		// Given up and wanted again in one breath: the server has to send it anew.
		n.update = func(string, []Resource) error {
			c.Unsubscribe(typeA, "y")
			return c.Subscribe(typeA, "y")
		}
		s.reply(typeA, "3", []string{"y=2"})
		n.update = nil
		n.expect(t, "A +y=2")
		s.expect(&ask{TypeUrl: typeA, ResponseNonce: "3", ResourceNamesSubscribe: []string{"y"}})

		s.end(io.EOF)
		c.Unsubscribe(typeA, "w") // the next server knows nothing of it
		pass(time.Second)
		f.stream().expect(&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"y"}}) // without a version: it was forgotten
		n.expect(t, "connected false")

		// A type without names is not mentioned on the next stream: a request without names would ask for all.
		c.Unsubscribe(typeA, "y")
		f.stream().expect(&ask{TypeUrl: typeA, ResourceNamesUnsubscribe: []string{"y"}})
		subscribe(t, c, typeB, "b")
		f.stream().expect(&ask{TypeUrl: typeB, ResourceNamesSubscribe: []string{"b"}})
		f.stream().end(io.EOF)
		pass(time.Second)
		s = f.stream()
		s.expect(&ask{TypeUrl: typeB, ResourceNamesSubscribe: []string{"b"}})
		s.reply(typeA, "1", []string{"y=1"}) // nobody asked for this
		s.expect()
		n.expect(t, "connected true")

		// Nor is one that was given up before the server heard of it.
		n.update = func(string, []Resource) error {
			defer c.Unsubscribe(typeA, "z")
			return c.Subscribe(typeA, "z")
		}
		s.reply(typeB, "2", []string{"b=1"})
		s.reply(typeA, "3", []string{"z=1"})
		s.expect(&ask{TypeUrl: typeB, ResponseNonce: "2"})
		n.expect(t, "B +b=1")
	})
}

func TestWildcard(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Client, f *far, n *near) {
		subscribe(t, c, typeA, Wildcard, "x")
		s := f.stream()
		s.expect(&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"*", "x"}})
		subscribe(t, c, typeB, Wildcard)
		s.expect(&ask{TypeUrl: typeB, ResourceNamesSubscribe: []string{"*"}})
		s.reply(typeA, "1", []string{"w=1", "x=1", "y=1"})
		s.reply(typeA, "2", nil, "y")
		s.reply(typeB, "3", nil)
		n.expect(t, "connected true", "A +w=1 +x=1 +y=1", "A -y", "B")
		s.expect(&ask{TypeUrl: typeA, ResponseNonce: "1"}, &ask{TypeUrl: typeA, ResponseNonce: "2"}, &ask{TypeUrl: typeB, ResponseNonce: "3"})

		// x may still be covered by the wildcard: the client keeps it until it hears.
		c.Unsubscribe(typeA, "x")
		s.expect(&ask{TypeUrl: typeA, ResourceNamesUnsubscribe: []string{"x"}})
		s.end(io.EOF)
		pass(time.Second)
		s = f.stream()
		s.expect(
			&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: map[string]string{"w": "1", "x": "1"}},
			&ask{TypeUrl: typeB, ResourceNamesSubscribe: []string{"*"}},
		)
		subscribe(t, c, typeA, "w") // which it holds by the wildcard, and tells so if the answer does not come
		s.expect(&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"w"}})
		s.end(io.EOF)
		pass(time.Second)
		s = f.stream()
		s.expect(
			&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"*", "w"}, InitialResourceVersions: map[string]string{"w": "1", "x": "1"}},
			&ask{TypeUrl: typeB, ResourceNamesSubscribe: []string{"*"}},
		)
		c.Unsubscribe(typeA, Wildcard, "w")
		s.expect(&ask{TypeUrl: typeA, ResourceNamesUnsubscribe: []string{"*", "w"}})
		subscribe(t, c, typeA, "w")
		s.expect(&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"w"}})
		s.reply(typeA, "1", []string{"w=1", "x=2"})
		n.expect(t, "connected false", "connected true", "A +w=1")
	})
}

// TestBack: a client is back within seconds after its server, however long that was away.
func TestBack(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Client, f *far, n *near) {
		f.set(func() { f.refuse = errors.New("connection refused") })
		subscribe(t, c, typeA, "x")
		pass(time.Hour)
		f.set(func() { f.refuse, f.dialled = nil, nil })
		pass(10 * time.Second)
		if got := len(f.dials()); got != 1 {
			t.Errorf("%d attempts within 10 s after an hour, want one", got)
		}
		pass(settleTime)
		n.expect(t, "connected true")
	})
}

func TestBackoff(t *testing.T) {
	const least, most = 100 * time.Millisecond, 2 * time.Second
	inBubble(t, Config{BackoffMin: least, BackoffMax: most}, func(t *testing.T, c *Client, f *far, n *near) {
		f.set(func() { f.refuse = errors.New("connection refused") })
		subscribe(t, c, typeA, "x")
		pass(time.Minute)
		check := func(dials []time.Time) {
			t.Helper()
			pause := least
			for i := range dials[1:] {
				got := dials[i+1].Sub(dials[i])
				if got < pause/2 || got > pause {
					t.Errorf("pause %d is %v, want between %v and %v", i, got, pause/2, pause)
				}
				pause = min(2*pause, most)
			}
		}
		dials := f.dials()
		if len(dials) < 30 {
			t.Errorf("%d attempts in a minute", len(dials))
		}
		check(dials)
		n.expect(t)

		// A stream that the server ends at once is no success.
		f.set(func() { f.refuse, f.dialled = nil, nil })
		pass(most)
		f.stream().end(errors.New("permission denied"))
		pass(least)
		if got := len(f.dials()); got != 1 {
			t.Errorf("%d attempts, want the next one to wait longer", got)
		}
		n.expect(t)

		// A stream that stands is one, even if the server has nothing to say. Then pauses start anew.
		pass(most + settleTime)
		n.expect(t, "connected true")
		f.set(func() { f.refuse, f.dialled = errors.New("connection refused"), []time.Time{time.Now()} })
		f.stream().end(errors.New("the server went away"))
		n.expect(t, "connected false")
		pass(time.Minute)
		check(f.dials())
	})
}

func TestHangingServer(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Client, f *far, n *near) {
		f.set(func() { f.hang = true })
		subscribe(t, c, typeA, "x")
		synctest.Wait()
		pass(openTimeout + time.Second)
		f.set(func() { f.hang, f.deaf = false, true })
		pass(openTimeout + time.Second)
		first := f.stream()
		pass(sendTimeout + time.Second)
		if f.stream() == first {
			t.Error("the client still waits for a server that does not read")
		}
	})
}

func TestBrokenResponseEndsTheStream(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Client, f *far, n *near) {
		subscribe(t, c, typeA, "x")
		s := f.stream()
		s.expect(&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"x"}})
		s.replies <- []byte{0xff}
		pass(time.Second)
		if f.stream() == s {
			t.Error("the client stays on the stream")
		}
		f.stream().expect(&ask{TypeUrl: typeA, ResourceNamesSubscribe: []string{"x"}})
		n.expect(t)
	})
}

func TestLargeSubscriptionsAreSplit(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Client, f *far, n *near) {
		names := make([]string, 40_000)
		for i := range names {
			names[i] = fmt.Sprintf("%0200d", i)
		}
		subscribe(t, c, typeA, names...)
		s := f.stream()
		var told []string
		for _, r := range s.requests {
			told = append(told, r.GetResourceNamesSubscribe()...)
		}
		if !slices.Equal(told, names) {
			t.Errorf("%d names were told, want all %d", len(told), len(names))
		}
		c.Unsubscribe(typeA, names...)
		synctest.Wait()
		told = nil
		for _, r := range s.requests {
			told = append(told, r.GetResourceNamesUnsubscribe()...)
		}
		if !slices.Equal(told, names) {
			t.Errorf("%d names were given up, want all %d", len(told), len(names))
		}
	})
}

func TestLimits(t *testing.T) {
	c := New(Config{SubscriptionsMax: 2})
	subscribe(t, c, typeA, "a", "a", "b", "a")
	for _, names := range [][]string{{"c"}, {""}, {"a\xff"}, {strings.Repeat("x", nameMaxBytes+1)}} {
		if err := c.Subscribe(typeA, names...); err == nil {
			t.Errorf("subscribe to %.20q: no error", names)
		}
	}
	c.Unsubscribe(typeA, "a")
	subscribe(t, c, typeA, "c")
	if err := c.Subscribe("", "a"); err == nil {
		t.Error("subscribe without a type: no error")
	}
	for i := range typesMax - 1 {
		subscribe(t, c, fmt.Sprint("type", i), "x")
	}
	if err := c.Subscribe("one more", "x"); err == nil {
		t.Error("subscribe to one type too many: no error")
	}
}

func TestRunRefusesABadConfig(t *testing.T) {
	for name, config := range map[string]Config{
		"no dialer":    {Handler: &near{}},
		"no handler":   {Dialer: &far{}},
		"bad metadata": {Dialer: &far{}, Handler: &near{}, Node: Node{Metadata: map[string]any{"x": 1}}},
	} {
		if err := New(config).Run(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c := New(Config{Dialer: &far{}, Handler: &near{}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Error(err)
	}
	if err := c.Run(ctx); err == nil {
		t.Error("a second Run: no error")
	}
}
