package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// world is a fake upstream for the resolver, with a clock.
type world struct {
	asked atomic.Int32
	now   atomic.Int64
}

func (w *world) respond(m *dnsmessage.Message, network string) *dnsmessage.Message {
	w.asked.Add(1)
	q := m.Questions[0]
	v4 := q.Type == dnsmessage.TypeA
	add := func(name, addr string, ttl uint32) {
		if netip.MustParseAddr(addr).Is4() == v4 {
			m.Answers = append(m.Answers, record(name, addr, ttl))
		}
	}
	alias := func(name, to string, ttl uint32) {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl},
			Body:   &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)},
		})
	}
	switch q.Name.String() {
	case "both.example.":
		add("both.example.", "192.0.2.2", 60)
		add("both.example.", "192.0.2.1", 90)
		add("both.example.", "192.0.2.1", 90)
		add("both.example.", "2001:db8::1", 30)
	case "alias.example.":
		alias("Alias.Example.", "a.example.", 20)
		alias("a.example.", "b.example.", 60)
		add("b.example.", "192.0.2.3", 60)
		add("evil.example.", "192.0.2.66", 60)
	case "short.example.":
		add("short.example.", "192.0.2.4", 0)
	case "long.example.":
		add("long.example.", "192.0.2.5", 1<<30)
	case "nothing.example.":
		m.RCode = dnsmessage.RCodeNameError
	case "broken.example.":
		m.RCode = dnsmessage.RCodeServerFailure
	case "half.example.":
		if !v4 {
			m.RCode = dnsmessage.RCodeServerFailure
		}
		add("half.example.", "192.0.2.6", 600)
	case "large.example.":
		if network == "udp" {
			m.Truncated = true
			return m
		}
		for i := range 200 {
			add("large.example.", fmt.Sprintf("192.0.3.%d", i), 60)
		}
	default:
		add(q.Name.String(), "192.0.2.9", 60)
	}
	return m
}

func (w *world) resolver(t testing.TB) *Resolver {
	w.now.Store(1e18)
	return NewResolver(ResolverConfig{Upstreams: []string{upstream(t, w.respond)}, Now: func() time.Time { return time.Unix(0, w.now.Load()) }})
}

func TestResolve(t *testing.T) {
	var w world
	r := w.resolver(t)
	tests := []struct {
		name string
		want []string
		ttl  time.Duration
	}{
		{"10.0.0.1", []string{"10.0.0.1"}, ttlCeiling},
		{"fd00::1", []string{"fd00::1"}, ttlCeiling},
		{"both.example", []string{"192.0.2.2", "192.0.2.1", "2001:db8::1"}, 30 * time.Second},
		{"Both.Example.", []string{"192.0.2.2", "192.0.2.1", "2001:db8::1"}, 30 * time.Second},
		{"alias.example", []string{"192.0.2.3"}, 20 * time.Second},
		{"short.example", []string{"192.0.2.4"}, ttlFloor},
		{"long.example", []string{"192.0.2.5"}, ttlCeiling},
		{"half.example", []string{"192.0.2.6"}, ttlFloor},
	}
	for _, tt := range tests {
		got, ttl, err := r.Resolve(t.Context(), tt.name)
		var text []string
		for _, a := range got {
			text = append(text, a.String())
		}
		if err != nil || !slices.Equal(text, tt.want) || ttl != tt.ttl {
			t.Errorf("%s: %v for %s, %v", tt.name, text, ttl, err)
		}
	}
	if got, _, err := r.Resolve(t.Context(), "large.example"); err != nil || len(got) != 200 {
		t.Errorf("%d addresses over TCP, %v", len(got), err)
	}
	if _, ttl, err := r.Resolve(t.Context(), "nothing.example"); !errors.Is(err, ErrNoAddress) || ttl != ttlFloor {
		t.Errorf("no such host: %v, for %s", err, ttl)
	}
	if _, ttl, err := r.Resolve(t.Context(), "broken.example"); err == nil || errors.Is(err, ErrNoAddress) || ttl != 0 {
		t.Errorf("server failure: %v, for %s", err, ttl)
	}
	if _, _, err := r.Resolve(t.Context(), string(make([]byte, 300))); err == nil {
		t.Error("a name that is none is resolved")
	}
}

func TestResolverRemembers(t *testing.T) {
	var w world
	r := w.resolver(t)
	resolve := func(name string, questions int32) {
		t.Helper()
		before := w.asked.Load()
		_, _, _ = r.Resolve(t.Context(), name)
		if n := w.asked.Load() - before; n != questions {
			t.Errorf("%s: %d questions, want %d", name, n, questions)
		}
	}
	resolve("both.example", 2)
	resolve("both.example", 0)
	w.now.Add(int64(30*time.Second - 1))
	resolve("both.example", 0)
	w.now.Add(1)
	resolve("both.example", 2)
	resolve("nothing.example", 2)
	resolve("nothing.example", 0)
	w.now.Add(int64(ttlFloor))
	resolve("nothing.example", 2)
	resolve("broken.example", 2)
	resolve("broken.example", 2) // an error is not remembered
}

func TestResolverAsksOnce(t *testing.T) {
	var w world
	r := w.resolver(t)
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if _, _, err := r.Resolve(t.Context(), "both.example"); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := w.asked.Load(); n != 2 {
		t.Errorf("%d questions, want 2", n)
	}
}

// TestResolverPatience: who gives up does not spoil it for the others.
func TestResolverPatience(t *testing.T) {
	asked, release := make(chan struct{}, 10), make(chan struct{})
	r := NewResolver(ResolverConfig{Upstreams: []string{upstream(t, func(m *dnsmessage.Message, _ string) *dnsmessage.Message {
		asked <- struct{}{}
		<-release
		return gives("192.0.2.1")(m, "")
	})}})
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := r.Resolve(ctx, "a.example")
		first <- err
	}()
	<-asked
	go func() {
		_, _, err := r.Resolve(t.Context(), "a.example")
		second <- err
	}()
	cancel()
	if err := <-first; err == nil {
		t.Error("no error for who gave up")
	}
	close(release)
	if err := <-second; err != nil {
		t.Error(err)
	}
}

func TestResolverIsBounded(t *testing.T) {
	var w world
	r := w.resolver(t)
	for i := range cacheMax + 10 {
		if i == cacheMax/2 {
			w.now.Add(int64(30 * time.Second))
		}
		r.mu.Lock()
		if len(r.hosts) < cacheMax { // as if it had been asked for
			done := make(chan struct{})
			close(done)
			r.hosts[fmt.Sprint(i)] = &host{done: done, until: r.now().Add(40 * time.Second)}
			r.mu.Unlock()
			continue
		}
		r.mu.Unlock()
		if _, _, err := r.Resolve(t.Context(), fmt.Sprintf("h%d.example", i)); err != nil {
			t.Fatal(err)
		}
		if n := len(r.hosts); n > cacheMax {
			t.Fatalf("%d hosts are remembered", n)
		}
	}
	w.now.Add(int64(10 * time.Second))
	for i := range 5 {
		if _, _, err := r.Resolve(t.Context(), fmt.Sprintf("z%d.example", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.hosts); n > cacheMax {
		t.Errorf("%d hosts are remembered", n)
	}
}
