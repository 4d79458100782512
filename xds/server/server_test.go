package server

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
)

// step is something that happens, "ask TYPE WORDS" or "push ENTRY, ENTRY", and the responses that follow.
type step struct {
	do   string
	want []string
}

func steps(pairs ...any) []step {
	var all []step
	for _, p := range pairs {
		switch p := p.(type) {
		case string:
			all = append(all, step{do: p})
		case []string:
			all[len(all)-1].want = p
		}
	}
	return all
}

func answers(want ...string) []string { return want }

// TestDeltaSubscriptions follows the sections "How the client specifies what resources to return" and "Incremental
// xDS" of the protocol's description.
func TestDeltaSubscriptions(t *testing.T) {
	tests := []struct {
		name  string
		steps []step
	}{
		{"by name", steps(
			"ask A +a", answers("A a=1"),
			"ask A +b", answers("A b=1"),
			"push A a=2", answers("A a=2"),
			"push A c=1, B a=1")},
		{"a name that does not exist", steps(
			"ask A +x +a", answers("A a=1 -x"),
			"push A x=1", answers("A x=1"),
			"push A x=", answers("A -x"),
			"push A x=2", answers("A x=2"))},
		{"a name that is not listed", steps("ask A +.hidden", answers("A .hidden=1"))},
		{"asked again is answered again", steps(
			"ask A +a +x", answers("A a=1 -x"),
			"ask A +a +x", answers("A a=1 -x"))},
		{"pushed without a change", steps(
			"ask A +a +x", answers("A a=1 -x"),
			"push A a=1, A x=")},
		{"unsubscribed", steps(
			"ask A +a +b", answers("A a=1 b=1"),
			"ask A -a",
			"push A a=2, A b=2", answers("A b=2"),
			"ask A +a", answers("A a=2"))},
		{"unsubscribed without a subscription", steps(
			"ask A +a", answers("A a=1"),
			"ask A -y",
			"push A a=2", answers("A a=2"))},
		{"unsubscribed and subscribed at once", steps(
			"ask A +a", answers("A a=1"),
			"ask A +a -a", answers("A a=1"),
			"push A a=2", answers("A a=2"))},
		{"first request without names", steps(
			"ask A", answers("A a=1 b=1"),
			"push A c=1", answers("A c=1"),
			"push A a=, A b=2", answers("A b=2 -a"),
			"push A .hidden=2, B z=1")},
		{"the example of the description", steps(
			"ask A", answers("A a=1 b=1"),
			"ask A +a", answers("A a=1"),
			"push A b=2", answers("A b=2"),
			"ask A -*",
			"push A b=3",
			"push A a=2", answers("A a=2"),
			"ask A -a",
			"push A a=3",
			"ask A",
			"push A a=4, A b=4")},
		{"first request that only unsubscribes", steps(
			"ask A -y",
			"push A a=2")},
		{"wildcard by its name", steps(
			"ask A +*", answers("A a=1 b=1"),
			"push A c=1", answers("A c=1"))},
		{"wildcard asked again", steps(
			"ask A +* +a", answers("A a=1 b=1"),
			"ask A +*", answers("A a=1 b=1"))},
		{"wildcard over nothing", steps(
			"ask C", answers("C"),
			"ask B +*", answers("B"),
			"push C c=1", answers("C c=1"))},
		{"wildcard and a name that it covers", steps(
			"ask A +* +a", answers("A a=1 b=1"),
			"push A a=2", answers("A a=2"),
			"ask A -a", answers("A a=2"),
			"push A a=3", answers("A a=3"))},
		{"wildcard and a name that it does not cover", steps(
			"ask A +* +.hidden +x", answers("A .hidden=1 a=1 b=1 -x"),
			"push A .hidden=2", answers("A .hidden=2"),
			"ask A -.hidden", answers("A -.hidden"),
			"push A .hidden=3",
			"ask A -x", answers("A -x"))},
		{"wildcard given up together with a name", steps(
			"ask A +* +a", answers("A a=1 b=1"),
			"ask A -* -a",
			"push A a=2, A b=2")},
		{"back with versions", steps(
			"ask A +a +b +x a=1 b=0 x=5", answers("A b=1 -x"),
			"push A a=2", answers("A a=2"))},
		{"back with all versions", steps(
			"ask A +a +b a=1 b=1",
			"push A a=2", answers("A a=2"))},
		{"back with a wildcard", steps(
			"ask A +* +x a=1 b=0 gone=1 x=1", answers("A b=1 -gone -x"),
			"push A a=2", answers("A a=2"))},
		{"back with a wildcard and all versions", steps(
			"ask A a=1 b=1",
			"push A a=2", answers("A a=2"),
			"push A b=", answers("A -b"))},
		{"versions count only in a first request", steps(
			"ask A +a", answers("A a=1"),
			"ask A +b b=1", answers("A b=1"))},
		{"types are apart", steps(
			"ask A +a", answers("A a=1"),
			"ask B +a", answers("B -a"),
			"push B a=1", answers("B a=1"))},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Config{}, newPicture("A a=1", "A b=1", "A .hidden=1"), func(t *testing.T, w *world) {
				d := w.delta()
				for _, s := range test.steps {
					t.Log(s.do)
					w.do(s.do, d.ask)
					d.expect(s.want...)
				}
			})
		})
	}
}

// do carries out a step.
func (w *world) do(what string, ask func(string, ...string)) {
	verb, rest, _ := strings.Cut(what, " ")
	if verb == "push" {
		w.change(strings.Split(rest, ", ")...)
		return
	}
	words := strings.Fields(rest)
	ask(words[0], words[1:]...)
}

func TestSotwSubscriptions(t *testing.T) {
	tests := []struct {
		name  string
		steps []step
	}{
		{"whole type by name", steps(
			"ask LDS a", answers("LDS a=1"),
			"ask LDS a b", answers("LDS a=1 b=1"),
			"push LDS b=2", answers("LDS a=1 b=2"),
			"push LDS a=", answers("LDS b=2"),
			"ask LDS b",
			"push LDS a=1")},
		{"whole type, a name that does not exist", steps(
			"ask LDS x", answers("LDS"),
			"push LDS x=1", answers("LDS x=1"))},
		{"other type by name", steps(
			"ask RDS a b", answers("RDS a=1 b=1"),
			"push RDS b=2", answers("RDS b=2"),
			"ask RDS a b c",
			"push RDS c=1", answers("RDS c=1"),
			"push RDS a=",
			"push RDS a=1", answers("RDS a=1"))},
		{"asked again after it was given up", steps(
			"ask RDS a b", answers("RDS a=1 b=1"),
			"ask RDS b",
			"push RDS a=2",
			"ask RDS a b", answers("RDS a=2"),
			"ask RDS",
			"push RDS a=3, RDS b=3",
			"ask RDS b a b", answers("RDS a=3 b=3"))},
		{"the example of the description", steps(
			"ask CDS", answers("CDS a=1 b=1"),
			"ask CDS * a", answers("CDS a=1 b=1"),
			"push CDS b=2", answers("CDS a=1 b=2"),
			"ask CDS a",
			"push CDS b=3",
			"push CDS a=2", answers("CDS a=2"),
			"ask CDS",
			"push CDS a=3, CDS b=4")},
		{"wildcard over nothing", steps(
			"ask C", answers("C"),
			"push C c=1", answers("C c=1"))},
		{"wildcard loses and gains", steps(
			"ask CDS", answers("CDS a=1 b=1"),
			"push CDS a=", answers("CDS b=1"),
			"push CDS c=1", answers("CDS b=1 c=1"),
			"push CDS b=, CDS d=1", answers("CDS c=1 d=1"))},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := newPicture("LDS a=1", "LDS b=1", "RDS a=1", "RDS b=1", "CDS a=1", "CDS b=1")
			inBubble(t, Config{}, p, func(t *testing.T, w *world) {
				s := w.sotw()
				for _, step := range test.steps {
					t.Log(step.do)
					w.do(step.do, s.ask)
					s.expect(step.want...)
				}
			})
		})
	}
}

func TestMakeBeforeBreak(t *testing.T) {
	types := []string{"RDS", "A", "CDS", "LDS", "SDS", "EDS"}
	var before, change []string
	for _, typ := range types {
		before = append(before, typ+" old=1")
		change = append(change, typ+" old=", typ+" new=1")
	}
	t.Run("incremental", func(t *testing.T) {
		inBubble(t, Config{}, newPicture(before...), func(t *testing.T, w *world) {
			d := w.delta()
			for _, typ := range types {
				d.ask(typ, "+*")
				d.expect(typ + " old=1")
			}
			w.change(change...)
			d.expect("CDS new=1", "EDS new=1", "SDS new=1", "LDS new=1", "RDS new=1", "A new=1 -old",
				"RDS -old", "LDS -old", "SDS -old", "EDS -old", "CDS -old")
		})
	})
	t.Run("state of the world", func(t *testing.T) {
		inBubble(t, Config{}, newPicture(before...), func(t *testing.T, w *world) {
			s := w.sotw()
			for _, typ := range types {
				s.ask(typ, "old", "new")
				s.expect(typ + " old=1")
			}
			w.change(change...)
			s.expect("CDS new=1 old=1", "EDS new=1", "SDS new=1", "LDS new=1 old=1", "RDS new=1", "A new=1",
				"LDS new=1", "CDS new=1")
			w.change("CDS new=2", "RDS new=2")
			s.expect("CDS new=2", "EDS new=1", "RDS new=2")
			w.change("CDS new=", "RDS new=3")
			s.expect("RDS new=3", "CDS")
		})
	})
	t.Run("order of the config", func(t *testing.T) {
		config := Config{Order: []string{typeC, typeB, typeA}}
		inBubble(t, config, newPicture("A old=1", "B old=1", "C old=1"), func(t *testing.T, w *world) {
			d := w.delta()
			for _, typ := range []string{"A", "B", "C"} {
				d.ask(typ, "+old", "+new")
				d.expect(typ + " old=1 -new")
			}
			w.change("A old=2", "B old=", "B new=1", "C old=")
			d.expect("B new=1", "A old=2", "B -old", "C -old")
		})
	})
}

// TestAgain covers clusters that change while their endpoints do not: a client waits for these behind the cluster, and
// does not ask for names anew that it subscribes to.
func TestAgain(t *testing.T) {
	before := []string{"CDS a=1", "CDS b=1", "EDS a=1", "EDS b=1", "EDS c=1", "LDS a=1", "RDS a=1"}
	t.Run("incremental", func(t *testing.T) {
		inBubble(t, Config{}, newPicture(before...), func(t *testing.T, w *world) {
			d := w.delta()
			d.ask("CDS")
			d.expect("CDS a=1 b=1")
			w.change("CDS a=2") // nobody has asked for endpoints yet
			d.expect("CDS a=2")
			d.ask("EDS", "+a", "+c", "+x")
			d.expect("EDS a=1 c=1 -x")
			w.change("CDS a=3", "CDS b=2", "CDS x=1")
			d.expect("CDS a=3 b=2 x=1", "EDS a=1 -x")
			w.change("CDS a=4", "EDS a=2", "EDS c=2")
			d.expect("CDS a=4", "EDS a=2 c=2")
			w.change("CDS a=", "EDS c=3")
			d.expect("EDS c=3", "CDS -a")
			w.change("CDS a=4") // it came back before the client gave its endpoints up
			d.expect("CDS a=4", "EDS a=2")
			d.ask("EDS", "-a")
			d.expect()
			w.change("CDS a=5", "EDS c=4")
			d.expect("CDS a=5", "EDS c=4")
		})
	})
	t.Run("state of the world", func(t *testing.T) {
		inBubble(t, Config{}, newPicture(before...), func(t *testing.T, w *world) {
			s := w.sotw()
			s.ask("CDS")
			s.expect("CDS a=1 b=1")
			s.ask("EDS", "a", "b")
			s.expect("EDS a=1 b=1")
			w.change("CDS a=2")
			s.expect("CDS a=2 b=1", "EDS a=1")
			w.change("EDS b=2")
			s.expect("EDS b=2")
		})
	})
	t.Run("of the config", func(t *testing.T) {
		config := Config{Order: []string{typeC, typeA}, Again: map[string]string{typeC: typeA}}
		inBubble(t, config, newPicture("A a=1", "C a=1", "CDS a=1", "EDS a=1"), func(t *testing.T, w *world) {
			d := w.delta()
			for _, typ := range []string{"C", "A", "CDS", "EDS"} {
				d.ask(typ, "+a")
				d.expect(typ + " a=1")
			}
			w.change("C a=2", "CDS a=2")
			d.expect("C a=2", "A a=1", "CDS a=2")
		})
	})
}

// TestSlowClient covers pushes that pile up behind a client that does not read: each key is sent once, as it is
// when the client reads again, and a change that spans types stays whole and in order.
func TestSlowClient(t *testing.T) {
	inBubble(t, Config{}, newPicture("CDS c=1", "RDS r=1", "A a=1"), func(t *testing.T, w *world) {
		d := w.delta()
		d.ask("CDS", "+*")
		d.expect("CDS c=1")
		d.ask("RDS", "+r")
		d.expect("RDS r=1")
		w.change("RDS r=2")
		synctest.Wait() // now this one waits to be read
		asked := w.picture.asked.Load()
		for i := 3; i < 100; i++ {
			w.change(fmt.Sprintf("RDS r=%d", i), fmt.Sprintf("CDS c=%d", i), "CDS passing=1")
			w.change("CDS passing=")
			synctest.Wait()
		}
		if got := w.picture.asked.Load(); got != asked {
			t.Errorf("the source was asked %d times for a client that does not read", got-asked)
		}
		w.change("CDS new=1", "RDS r=100")
		d.expect("RDS r=2", "CDS c=99 new=1", "RDS r=100")

		// An unsubscription counts even while a response waits.
		w.change("RDS r=101")
		synctest.Wait()
		d.ask("RDS", "-r")
		w.change("RDS r=102")
		d.expect("RDS r=101")
	})
}

func TestFloodBehindASlowClient(t *testing.T) {
	inBubble(t, Config{ResponseMaxBytes: 1 << 30}, newPicture("A a=1", "B b=1"), func(t *testing.T, w *world) {
		d := w.delta()
		d.ask("A", "+*", "+.named")
		d.expect("A a=1 -.named")
		d.ask("B", "+b")
		synctest.Wait() // the answer waits to be read
		entries := []string{"A .named=1", "A a="}
		for i := range marksMax + 10 {
			entries = append(entries, fmt.Sprintf("A n%06d=1", i))
		}
		next, changed := w.picture.with(entries...)
		w.picture = next
		w.Push(next, listed(changed...))
		w.change("A n000000=")
		d.expect0(t, "B b=1")
		r := d.next()
		if got, want := len(r.GetResources()), marksMax+10; got != want {
			t.Errorf("%d resources, want %d", got, want)
		}
		if diff := cmp.Diff([]string{"a"}, r.GetRemovedResources()); diff != "" {
			t.Errorf("removed: -want +got\n%s", diff)
		}
		if got := r.GetResources()[0].GetName(); got != ".named" {
			t.Errorf("first is %q", got)
		}
		d.expect()
	})
}

// expect0 reads one response without accepting it.
func (d *delta) expect0(t *testing.T, want string) {
	t.Helper()
	if got := describe(d.next()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDeltaHonoursStaleRequests(t *testing.T) {
	inBubble(t, Config{}, newPicture("A a=1", "A b=1"), func(t *testing.T, w *world) {
		d := w.delta()
		d.ask("A", "+a")
		d.expect("A a=1")
		w.change("A a=2")
		synctest.Wait()
		d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: typeA, ResponseNonce: d.nonce, ResourceNamesSubscribe: []string{"b"}})
		d.expect("A a=2", "A b=1")
		d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: typeA, ResponseNonce: "from elsewhere", ResourceNamesSubscribe: []string{"b"}})
		d.expect("A b=1")
	})
}

func TestSotwIgnoresStaleRequests(t *testing.T) {
	inBubble(t, Config{}, newPicture("RDS a=1", "RDS b=1"), func(t *testing.T, w *world) {
		s := w.sotw()
		s.nonces[typeRoute] = "of a stream before" // a first request is never stale
		s.ask("RDS", "a")
		s.expect("RDS a=1")
		w.change("RDS a=2")
		synctest.Wait() // a response is under way, so what follows is stale
		s.ask("RDS", "a", "b")
		response := s.next()
		if extra := s.next(); extra != nil {
			t.Errorf("the stale request was answered: %v", extra)
		}
		s.nonces[typeRoute] = response.GetNonce()
		s.ask("RDS", "a", "b")
		s.expect("RDS b=1")
	})
}

// TestPushReachesOnlySubscribers counts what a push makes the server do among 2,000 clients.
func TestPushReachesOnlySubscribers(t *testing.T) {
	const clients, subscribers = 2000, 3
	inBubble(t, Config{}, newPicture("A common=1", "A rare=1"), func(t *testing.T, w *world) {
		var all []*delta
		for i := range clients {
			d := w.delta()
			d.ask("A", "+common", fmt.Sprintf("+own%d", i))
			if i < subscribers {
				d.ask("A", "+rare")
			}
			all = append(all, d)
		}
		read := func() (responses int) {
			for moved := true; moved; {
				moved = false
				synctest.Wait()
				for _, d := range all {
					select {
					case <-d.out:
						responses++
						moved = true
					default:
					}
				}
			}
			return responses
		}
		read()
		asked := w.picture.asked.Load()
		expect := func(n int, entries ...string) {
			t.Helper()
			w.change(entries...)
			if got := read(); got != n {
				t.Errorf("%v: %d responses, want %d", entries, got, n)
			}
			if got := w.picture.asked.Load() - asked; got != int64(n) {
				t.Errorf("%v: the source was asked %d times, want %d", entries, got, n)
			}
			asked = w.picture.asked.Load()
		}
		expect(subscribers, "A rare=2")
		expect(0, "A unknown=1", "B common=1")
		expect(1, "A own1234=1")
		expect(clients, "A common=2")
		for _, d := range all {
			d.hang()
		}
		synctest.Wait()
		w.change("A common=3", "A rare=3")
		if got := w.picture.asked.Load() - asked; got != 0 {
			t.Errorf("the source was asked %d times for clients that left", got)
		}
		if n := len(w.index.topics) + len(w.index.streams); n != 0 {
			t.Errorf("%d topics and streams are left in the index", n)
		}
	})
}

func TestLargeAnswersAreCut(t *testing.T) {
	inBubble(t, Config{ResponseMaxBytes: 150}, newPicture("A a=1", "A b=1", "A c=1", "CDS a=1", "CDS b=1", "CDS c=1"), func(t *testing.T, w *world) {
		d := w.delta()
		d.ask("A", "+*", "+x", "+y", "+z", "+zz")
		d.expect("A a=1 b=1", "A c=1 -x -y", "A -z -zz")
		s := w.sotw()
		s.ask("CDS")
		s.expect("CDS a=1 b=1 c=1")
	})
}

// changing is a source that changes in place. asked is called before each answer.
type changing struct {
	version atomic.Int64
	asked   func(name string)
}

func (c *changing) Scope(*Client) (string, error) { return "all", nil }

func (c *changing) Resource(k Key) (Resource, bool) {
	c.asked(k.Name)
	word := k.Name + "=" + strconv.FormatInt(c.version.Load(), 10)
	return Resource{Name: k.Name, Version: word[len(k.Name)+1:], Body: []byte(word)}, true
}

func (c *changing) Names(string, string) []string { return nil }

// TestAnswerOfOneVersion pushes a change while an answer is being made, of which one half has been asked for: the
// other half is of the same version, and the change follows whole.
func TestAnswerOfOneVersion(t *testing.T) {
	inBubble(t, Config{}, nil, func(t *testing.T, w *world) {
		source := &changing{}
		source.version.Store(1)
		var once sync.Once
		source.asked = func(name string) {
			if name != "b" {
				return
			}
			once.Do(func() {
				done := make(chan struct{})
				go func() {
					defer close(done)
					w.Push(source, func() []Key {
						source.version.Store(2)
						return []Key{{"all", typeA, "a"}, {"all", typeA, "b"}}
					})
				}()
				for waits := false; !waits; { // until the push waits, or is through
					select {
					case <-done:
						return
					default:
					}
					if waits = !w.index.mu.TryRLock(); !waits {
						w.index.mu.RUnlock()
						runtime.Gosched()
					}
				}
			})
		}
		w.Push(source, listed())
		d := w.delta()
		d.ask("A", "+a", "+b")
		d.expect("A a=1 b=1", "A a=2 b=2")
	})
}
