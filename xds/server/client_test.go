package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/xds/client"
)

// holder is a data plane that keeps the bodies that it was handed.
type holder struct {
	mu        sync.Mutex
	bodies    map[string]string
	refuse    error
	connected bool
	changed   chan struct{} // holds a token after each event, if not nil
}

func (h *holder) Update(typeURL string, added []client.Resource, removed []string) error {
	h.mu.Lock()
	defer h.signal()
	defer h.mu.Unlock()
	if h.refuse != nil {
		return h.refuse
	}
	for _, r := range added {
		h.bodies[short(typeURL)+" "+r.Name] = string(r.Body)
	}
	for _, name := range removed {
		delete(h.bodies, short(typeURL)+" "+name)
	}
	return nil
}

func (h *holder) Connected(ok bool) {
	h.mu.Lock()
	defer h.signal()
	defer h.mu.Unlock()
	h.connected = ok
}

func (h *holder) signal() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (h *holder) set(refuse error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse = refuse
}

func (h *holder) state() (bodies map[string]string, connected bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.bodies), h.connected
}

func (h *holder) expect(t *testing.T, connected bool, want map[string]string) {
	t.Helper()
	synctest.Wait()
	got, ok := h.state()
	if diff := cmp.Diff(want, got); diff != "" || ok != connected {
		t.Errorf("connected %v, bodies: -want +got\n%s", ok, diff)
	}
}

// expect compares what the server sent on the last stream so far.
func (d *dialer) expect(want ...string) {
	d.t.Helper()
	synctest.Wait()
	d.mu.Lock()
	last := d.last
	d.mu.Unlock()
	last.mu.Lock()
	defer last.mu.Unlock()
	if diff := cmp.Diff(want, last.log); diff != "" {
		d.t.Errorf("responses: -want +got\n%s", diff)
	}
	last.log = nil
}

// withClient runs a test of our own client against a server.
func withClient(t *testing.T, p *picture, test func(t *testing.T, w *world, d *dialer, c *client.Client, h *holder)) {
	inBubble(t, Config{}, p, func(t *testing.T, w *world) {
		d, h := &dialer{t: t, server: w.Server}, &holder{bodies: map[string]string{}}
		c := client.New(client.Config{Dialer: d, Handler: h, Node: client.Node{ID: "me"}})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := c.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		test(t, w, d, c, h)
		cancel()
		running.Wait()
	})
}

func subscribe(t *testing.T, c *client.Client, short string, names ...string) {
	t.Helper()
	if err := c.Subscribe(long(short), names...); err != nil {
		t.Fatal(err)
	}
}

func TestClientFollowsTheServer(t *testing.T) {
	p := newPicture("A a=1", "A b=1", "B b=1", "B c=1")
	withClient(t, p, func(t *testing.T, w *world, d *dialer, c *client.Client, h *holder) {
		subscribe(t, c, "A", "a", "x")
		h.expect(t, true, map[string]string{"A a": "a=1"})
		subscribe(t, c, "B", "*")
		h.expect(t, true, map[string]string{"A a": "a=1", "B b": "b=1", "B c": "c=1"})
		w.change("A a=", "A x=1", "A b=2", "B b=2", "B d=1", "B c=")
		h.expect(t, true, map[string]string{"A x": "x=1", "B b": "b=2", "B d": "d=1"})
		d.expect("A a=1 -x", "B b=1 c=1", "A x=1", "B b=2 d=1 -c", "A -a")

		// After any break only what differs is sent.
		d.cut()
		pass(5 * time.Second)
		h.expect(t, true, map[string]string{"A x": "x=1", "B b": "b=2", "B d": "d=1"})
		d.expect("A -a") // of names that do not exist there is no version to tell
		w.change("A x=2")
		d.expect("A x=2")

		d.turn(nil)
		d.cut()
		pass(time.Minute)
		h.expect(t, false, map[string]string{"A x": "x=2", "B b": "b=2", "B d": "d=1"})
		w.change("B b=3", "B d=", "A a=1")
		d.turn(w.Server)
		pass(time.Minute)
		h.expect(t, true, map[string]string{"A a": "a=1", "A x": "x=2", "B b": "b=3"})
		d.expect("A a=1", "B b=3 -d")
	})
}

func TestServerRestart(t *testing.T) {
	withClient(t, newPicture("A a=1", "A b=1"), func(t *testing.T, w *world, d *dialer, c *client.Client, h *holder) {
		subscribe(t, c, "A", "a", "b")
		d.expect("A a=1 b=1")
		d.turn(nil)
		w.Drain()
		h.expect(t, false, map[string]string{"A a": "a=1", "A b": "b=1"})

		next := New(Config{}) // it has not read its configuration yet, and must not say that nothing exists
		d.turn(next)
		pass(time.Minute)
		h.expect(t, true, map[string]string{"A a": "a=1", "A b": "b=1"})
		p, _ := w.picture.with("A b=2")
		next.Push(p, listed())
		d.expect("A b=2")
		h.expect(t, true, map[string]string{"A a": "a=1", "A b": "b=2"})
		next.Drain()
	})
}

func TestClientRefuses(t *testing.T) {
	withClient(t, newPicture("A a=1"), func(t *testing.T, w *world, _ *dialer, c *client.Client, h *holder) {
		subscribe(t, c, "A", "a")
		h.expect(t, true, map[string]string{"A a": "a=1"})
		h.set(errors.New("a has no port"))
		w.change("A a=2")
		h.expect(t, true, map[string]string{"A a": "a=1"})
		status := w.Clients()[0].Types[0]
		if status.Synced || status.NackMessage != "a has no port" || status.NackedAt.IsZero() {
			t.Errorf("status %+v", status)
		}
		h.set(nil)
		w.change("A a=3")
		h.expect(t, true, map[string]string{"A a": "a=3"})
		if status := w.Clients()[0].Types[0]; !status.Synced {
			t.Errorf("status %+v", status)
		}
	})
}

func TestStreamsEndWithAge(t *testing.T) {
	withClient(t, newPicture("A a=1"), func(t *testing.T, w *world, d *dialer, c *client.Client, h *holder) {
		subscribe(t, c, "A", "a")
		d.expect("A a=1")
		first := d.last
		pass(defaultAgeMax)
		h.expect(t, true, map[string]string{"A a": "a=1"})
		pass(defaultAgeMax / 4)
		pass(time.Minute) // it may have ended a moment ago
		h.expect(t, true, map[string]string{"A a": "a=1"})
		if err := first.ended(); err != nil {
			t.Errorf("the stream ended with %v", err)
		}
		d.expect()
		w.change("A a=2")
		h.expect(t, true, map[string]string{"A a": "a=2"})
	})
}

// TestRandomWalk changes everything at random, breaks streams, and then expects each client to hold what it
// subscribes to, as it is, and the server to know.
func TestRandomWalk(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, Config{ResponseMaxBytes: 500}, newPicture(), func(t *testing.T, w *world) {
				walk(t, w, rand.New(rand.NewPCG(seed, 0)))
			})
		})
	}
}

// walker is a client on a random walk.
type walker struct {
	*holder
	client  *client.Client
	dialer  *dialer
	names   map[string]bool // of type A that it subscribes to
	running sync.WaitGroup
}

func walk(t *testing.T, w *world, random *rand.Rand) {
	ctx, cancel := context.WithCancel(t.Context())
	walkers := make([]*walker, 4)
	for i := range walkers {
		k := &walker{
			holder: &holder{bodies: map[string]string{}},
			dialer: &dialer{t: t, server: w.Server},
			names:  map[string]bool{},
		}
		k.client = client.New(client.Config{Dialer: k.dialer, Handler: k.holder, Node: client.Node{ID: fmt.Sprint(i)}})
		subscribe(t, k.client, "B", "*")
		k.running.Go(func() {
			if err := k.client.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		walkers[i] = k
	}
	name := func() string { return fmt.Sprintf("n%02d", random.IntN(12)) }
	for i := range 600 {
		k, n := walkers[random.IntN(len(walkers))], name()
		switch dice := random.IntN(100); {
		case dice < 40:
			version := ""
			if random.IntN(3) > 0 {
				version = fmt.Sprint(i)
			}
			other := name()
			w.change("A "+n+"="+version, "B "+n+"="+version, "B "+other+"="+fmt.Sprint(i))
		case dice < 60:
			k.names[n] = true
			subscribe(t, k.client, "A", n)
		case dice < 75:
			delete(k.names, n)
			k.client.Unsubscribe(typeA, n)
		case dice < 78:
			k.set(errors.New("not now"))
		case dice < 84:
			k.set(nil)
		case dice < 87:
			k.dialer.cut()
		case dice < 92:
			pass(time.Second)
		default:
			synctest.Wait()
		}
	}
	for _, k := range walkers {
		// What was refused is only sent again after a change or on a new stream.
		k.set(nil)
		k.dialer.cut()
	}
	pass(time.Minute)
	for i, k := range walkers {
		bodies, _ := k.state()
		for n := range k.names {
			compare(t, i, "A "+n, bodies["A "+n], w.picture.versions[typeA][n], n)
		}
		for j := range 12 {
			n := fmt.Sprintf("n%02d", j)
			compare(t, i, "B "+n, bodies["B "+n], w.picture.versions[typeB][n], n)
		}
	}
	for _, c := range w.Clients() {
		for _, typ := range c.Types {
			if c.Until.IsZero() && !typ.Synced {
				t.Errorf("client %s is not synced: %+v", c.Client.Node.ID, typ)
			}
		}
	}
	cancel()
	for _, k := range walkers {
		k.running.Wait()
	}
}

// compare holds what a client has against what there is.
func compare(t *testing.T, i int, key, body, version, name string) {
	t.Helper()
	want := ""
	if version != "" {
		want = name + "=" + version
	}
	if body != want {
		t.Errorf("client %d holds %q of %s, want %q", i, body, key, want)
	}
}
