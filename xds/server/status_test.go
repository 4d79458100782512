package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestNackKeepsTheLastGoodState(t *testing.T) {
	inBubble(t, Config{}, newPicture("A a=1", "A b=1"), func(t *testing.T, w *world) {
		d := w.delta()
		d.ask("A", "+*", "+x")
		d.expect("A a=1 b=1 -x")
		began := time.Now()
		one := func() TypeStatus {
			t.Helper()
			synctest.Wait()
			clients := w.Clients()
			if len(clients) != 1 || len(clients[0].Types) != 1 {
				t.Fatalf("clients: %+v", clients)
			}
			return clients[0].Types[0]
		}
		version := func(n int) string { return fmt.Sprintf("%s/%d", w.began, n) }
		want := TypeStatus{
			TypeURL: typeA, Names: 1, Wildcard: true, Synced: true,
			SentVersion: version(0), SentNonce: "1", SentAt: began, AckedAt: began,
		}
		if diff := cmp.Diff(want, one()); diff != "" {
			t.Errorf("after the first answer: -want +got\n%s", diff)
		}

		pass(time.Second)
		w.change("A a=2")
		want.Synced = false
		if diff := cmp.Diff(want, one()); diff != "" {
			t.Errorf("while a response waits: -want +got\n%s", diff)
		}
		pass(time.Second)
		d.refuse("A a=2", strings.Repeat("no", 2*refusalMaxBytes))
		want.SentVersion, want.SentNonce, want.SentAt = version(1), "2", began.Add(2*time.Second)
		want.NackedAt, want.NackMessage = want.SentAt, strings.Repeat("no", refusalMaxBytes/2)
		if diff := cmp.Diff(want, one()); diff != "" {
			t.Errorf("after a refusal: -want +got\n%s", diff)
		}
		d.expect() // what was refused is not sent again
		w.change("A b=2")
		d.expect("A b=2")
		w.change("A a=3")
		d.expect("A a=3")
		want.Synced, want.SentVersion, want.SentNonce, want.AckedAt = true, version(3), "4", want.SentAt
		if diff := cmp.Diff(want, one()); diff != "" {
			t.Errorf("after the repair: -want +got\n%s", diff)
		}
	})
}

// peeking is a picture that looks at the server while it is asked.
type peeking struct {
	*picture
	peek func()
}

func (p peeking) Resource(k Key) (Resource, bool) {
	p.peek()
	return p.picture.Resource(k)
}

// TestNotSyncedWhileAssembling holds that nobody counts as synced between the change and the response that tells of it.
func TestNotSyncedWhileAssembling(t *testing.T) {
	inBubble(t, Config{}, newPicture("A a=1"), func(t *testing.T, w *world) {
		d := w.delta()
		d.ask("A", "+a")
		d.expect("A a=1")
		next, changed := w.picture.with("A a=2")
		looks := 0
		w.Push(peeking{next, func() {
			looks++
			if w.Clients()[0].Types[0].Synced {
				t.Error("synced while the response is being made")
			}
		}}, listed(changed...))
		d.expect("A a=2")
		if synctest.Wait(); looks == 0 || !w.Clients()[0].Types[0].Synced {
			t.Errorf("looked %d times; in the end: %+v", looks, w.Clients()[0].Types)
		}
	})
}

func TestStreamsWaitForTheFirstPicture(t *testing.T) {
	inBubble(t, Config{}, nil, func(t *testing.T, w *world) {
		d := w.delta()
		d.ask("A", "+a", "+x")
		pass(time.Hour)
		d.expect()
		w.Push(newPicture("A a=1"), listed())
		d.expect("A a=1 -x")
	})
}

func TestScopeAndNode(t *testing.T) {
	p := newPicture()
	var seen *Client
	p.scope = func(c *Client) (string, error) {
		seen = c
		return "", errors.New("namespace default is not served here")
	}
	inBubble(t, Config{}, p, func(t *testing.T, w *world) {
		d := w.delta()
		metadata, err := structpb.NewStruct(map[string]any{"NAMESPACE": "default", "IPS": []any{"10.0.0.1"}})
		if err != nil {
			t.Fatal(err)
		}
		d.named = true
		d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: typeA, Node: &core.Node{
			Id: "me", Cluster: "mine", UserAgentName: "envoy", Metadata: metadata, Locality: &core.Locality{Region: "r", Zone: "z", SubZone: "s"},
		}})
		err = d.ended()
		if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "namespace default is not served here" {
			t.Errorf("ended with %v", err)
		}
		want := &Client{
			Node: Node{
				ID: "me", Cluster: "mine", Agent: "envoy", Locality: Locality{"r", "z", "s"},
				Metadata: map[string]any{"NAMESPACE": "default", "IPS": []any{"10.0.0.1"}},
			},
			Peer: "10.0.0.7:4711",
		}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	})
}

func TestIdentify(t *testing.T) {
	tests := []struct {
		name     string
		identify func(context.Context) (string, error)
		want     codes.Code
	}{
		{"proven", func(context.Context) (string, error) { return "spiffe://td/ns/a/sa/b", nil }, codes.OK},
		{"plain error", func(context.Context) (string, error) { return "", errors.New("expired") }, codes.Unauthenticated},
		{"status", func(context.Context) (string, error) { return "", status.Error(codes.Unavailable, "later") }, codes.Unavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Config{Identify: test.identify}, newPicture("A a=1"), func(t *testing.T, w *world) {
				d := w.delta()
				if test.want != codes.OK { // refused before it says anything
					if err := d.ended(); status.Code(err) != test.want {
						t.Errorf("ended with %v", err)
					}
					return
				}
				d.ask("A", "+a")
				d.expect("A a=1")
				if got := w.Clients()[0].Client.Identity; got != "spiffe://td/ns/a/sa/b" {
					t.Errorf("identity %q", got)
				}
			})
		})
	}
}

func TestLimits(t *testing.T) {
	var types, long []string
	for i := range typesMax + 1 {
		types = append(types, fmt.Sprintf("type%d", i))
	}
	long = append(long, "+"+strings.Repeat("x", nameMaxBytes+1))
	tests := []struct {
		name   string
		config Config
		do     func(w *world, d *delta)
		want   codes.Code
	}{
		{"names", Config{SubscriptionsMax: 3}, func(_ *world, d *delta) {
			d.ask("A", "+a", "+b")
			d.ask("A", "-b", "+a", "+c", "+c")
			d.ask("B", "+a")
			d.expect("A a=1 -b", "A a=1", "B -a", "A -c")
			d.ask("C", "+a")
		}, codes.ResourceExhausted},
		{"types", Config{}, func(_ *world, d *delta) {
			for _, typ := range types {
				d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: typ, ResourceNamesUnsubscribe: []string{"x"}})
			}
		}, codes.ResourceExhausted},
		{"long name", Config{}, func(_ *world, d *delta) { d.ask("A", long...) }, codes.InvalidArgument},
		{"empty name", Config{}, func(_ *world, d *delta) { d.ask("A", "+") }, codes.InvalidArgument},
		{"no type", Config{}, func(_ *world, d *delta) { d.request(&discovery.DeltaDiscoveryRequest{}) }, codes.InvalidArgument},
		{"no node", Config{}, func(_ *world, d *delta) { d.named = true; d.ask("A", "+a") }, codes.InvalidArgument},
		{"large node", Config{NodeMaxBytes: 100}, func(_ *world, d *delta) {
			d.named = true
			d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: typeA, Node: &core.Node{Id: strings.Repeat("x", 100)}})
		}, codes.InvalidArgument},
		{"silent from the start", Config{}, func(*world, *delta) { pass(firstRequestTimeout + time.Second) }, codes.DeadlineExceeded},
		{"does not read", Config{WriteTimeout: time.Minute}, func(_ *world, d *delta) {
			d.ask("A", "+a")
			pass(time.Minute + time.Second)
		}, codes.DeadlineExceeded},
		{"shutting down", Config{}, func(w *world, d *delta) {
			d.ask("A", "+a")
			d.expect("A a=1")
			began := time.Now()
			w.Drain()
			if took := time.Since(began); took > 0 {
				w.t.Errorf("draining took %v", took)
			}
		}, codes.OK},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, test.config, newPicture("A a=1"), func(t *testing.T, w *world) {
				d := w.delta()
				test.do(w, d)
				if err := d.ended(); status.Code(err) != test.want {
					t.Errorf("ended with %v, want %v", err, test.want)
				}
			})
		})
	}
}

func TestStreamsMax(t *testing.T) {
	inBubble(t, Config{StreamsMax: 1}, newPicture("A a=1"), func(t *testing.T, w *world) {
		first := w.delta()
		first.ask("A", "+a")
		first.expect("A a=1")
		if err := w.delta().ended(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a second stream ended with %v", err)
		}
		close(first.in) // the client says goodbye
		if err := first.ended(); err != nil {
			t.Errorf("ended with %v", err)
		}
		third := w.delta()
		third.ask("A", "+a")
		third.expect("A a=1")
		w.Drain()
		if err := w.delta().ended(); status.Code(err) != codes.Unavailable {
			t.Errorf("a stream to a server that drains ended with %v", err)
		}
	})
}

func TestClientsRemembersTheDeparted(t *testing.T) {
	config := Config{DepartedMax: 2, DepartedKeep: time.Hour, WriteTimeout: time.Second}
	inBubble(t, config, newPicture("A a=1"), func(t *testing.T, w *world) {
		began := time.Now()
		for range 3 {
			d := w.delta()
			d.ask("A", "+a")
			d.expect("A a=1")
			d.hang()
			synctest.Wait()
			pass(time.Minute)
		}
		stuck := w.delta()
		stuck.ask("A", "+a")
		pass(time.Minute)
		open := w.sotw()
		open.ask("A", "a")
		open.expect("A a=1")
		clients := w.Clients()
		if len(clients) != 3 {
			t.Fatalf("%d clients, want two of the past and one", len(clients))
		}
		past := clients[1]
		want := ClientStatus{
			Client: Client{Node: Node{ID: "me"}, Peer: "10.0.0.7:4711"},
			Scope:  "all", Incremental: true, Since: began.Add(3 * time.Minute), Until: began.Add(3*time.Minute + time.Second),
			Cause: "rpc error: code = DeadlineExceeded desc = the client took no response within 1s",
			Types: []TypeStatus{{TypeURL: typeA, Names: 1}},
		}
		if diff := cmp.Diff(want, past); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		if now := clients[2]; now.Incremental || !now.Until.IsZero() || now.Cause != "" {
			t.Errorf("the open one: %+v", now)
		}
		pass(time.Hour)
		if got := len(w.Clients()); got != 1 { // in a bubble an hour is longer than AgeMax: the open one has ended too
			t.Errorf("%d clients after an hour, want the one that ended since", got)
		}
	})
}

func TestRelease(t *testing.T) {
	inBubble(t, Config{}, newPicture("A a=1", "B b=1"), func(t *testing.T, w *world) {
		d := w.delta()
		d.ask("A", "+a")
		d.ask("B", "+*")
		d.expect("A a=1", "B b=1")
		check := func(want bool, keys ...Key) {
			t.Helper()
			for _, k := range keys {
				kept := true
				w.Release([]Key{k}, func(Key) { kept = false })
				if kept != want {
					t.Errorf("%v: kept %v, want %v", k, kept, want)
				}
			}
		}
		named, covered := Key{"all", typeA, "a"}, Key{"all", typeB, "b"}
		check(true, named, covered, Key{"all", typeB, ""})
		check(false, Key{"all", typeA, "b"}, Key{"other", typeA, "a"}, Key{"all", typeC, "a"})
		d.ask("A", "-a")
		d.hang()
		synctest.Wait()
		check(false, named, covered)
	})
}
