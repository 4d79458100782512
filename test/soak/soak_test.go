package soak

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
	"github.com/lateen-mesh/lateen/test/world"
)

var (
	soakFor  = flag.Duration("soak", 20*time.Second, "how long the traffic runs")
	soakSeed = flag.Uint64("seed", 0, "what the traffic and the changes are drawn from; 0: the time")
	soakOnly = flag.String("only", "", "pattern of the kinds of traffic that run; empty: all")
	soakIdle = flag.Bool("still", false, "leave the mesh unchanged")
)

func TestMain(m *testing.M) { nstest.Main(m, nil) }

const (
	// workersPerKind play the same at the same time.
	workersPerKind = 2
	changesEvery   = time.Second
	looksPerSoak   = 40 // at what the proxies hold
	rotationsEvery = 15 * time.Second
	// ending is what a soak needs beside the time of its traffic.
	ending = 6 * time.Minute
)

// kind is one sort of traffic on its ways.
type kind struct {
	name string
	ways []*via
	make func(*soak, *via) player
}

var kinds = []kind{
	{"h1", []*via{&plainHTTP, &plainHTTP2, &plainAuto, &pairHTTP, &pairAuto, &tunnelHTTP, &tunnelAuto, &gatewayHTTP, &gatewayPlain}, func(s *soak, v *via) player {
		return &http1Player{r: s.rig, v: v}
	}},
	{"h1-close", []*via{&plainHTTP, &pairHTTP, &tunnelHTTP, &gatewayHTTP}, func(s *soak, v *via) player {
		return &http1Player{r: s.rig, v: v, close1: true}
	}},
	{"h1-pipeline", []*via{&plainHTTP, &plainHTTP2, &pairHTTP, &tunnelHTTP, &gatewayHTTP}, func(s *soak, v *via) player {
		return &pipelinePlayer{http1Player{r: s.rig, v: v}}
	}},
	{"websocket", []*via{&plainHTTP, &pairHTTP, &tunnelHTTP, &gatewayHTTP}, func(s *soak, v *via) player {
		return &socketPlayer{http1Player{r: s.rig, v: v}}
	}},
	{"h2", []*via{&plainHTTP, &plainHTTP2, &plainAuto, &pairHTTP, &pairAuto, &tunnelHTTP, &tunnelAuto, &gatewayHTTP, &gatewayPlain}, func(s *soak, v *via) player {
		return &http2Player{v: v, transport: s.transports[v]}
	}},
	{"grpc-unary", []*via{&plainGRPC, &pairGRPC, &tunnelGRPC, &gatewayGRPC}, func(s *soak, v *via) player {
		return &grpcPlayer{conn: s.calls[v]}
	}},
	{"grpc-stream", []*via{&plainGRPC, &pairGRPC, &tunnelGRPC, &gatewayGRPC}, func(s *soak, v *via) player {
		return &grpcPlayer{conn: s.calls[v], stream: true}
	}},
	{"tcp", []*via{&plainBytes, &pairBytes, &tunnelBytes, &gatewayBytes}, func(s *soak, v *via) player {
		return &bytesPlayer{r: s.rig, v: v}
	}},
	{"server-first", []*via{&plainGreet, &pairGreet, &tunnelGreet}, func(s *soak, v *via) player {
		return &bytesPlayer{r: s.rig, v: v, greet: true}
	}},
	{"tls", []*via{&plainTLS, &pairTLS, &tunnelTLS, &gatewayTLS, &gatewaySNI}, func(s *soak, v *via) player {
		return &bytesPlayer{r: s.rig, v: v, tls: true}
	}},
}

// soak is one run.
type soak struct {
	rig        *rig
	seed       uint64
	tally      tally
	workers    []*worker
	names      []string // of the kinds, each with its way
	transports map[*via]*http.Transport
	calls      map[*via]*grpc.ClientConn
	seen       map[string][]held // by the proxy's name, one after another
}

// TestSoak has all kinds of traffic run while the mesh changes.
func TestSoak(t *testing.T) {
	nstest.Need(t)
	if testing.Short() {
		t.Skip("a soak takes its time")
	}
	if end, ok := t.Deadline(); ok && time.Until(end) < *soakFor+ending {
		t.Fatalf("a soak of %s needs -timeout %s or more", *soakFor, *soakFor+ending)
	}
	dir, err := os.MkdirTemp("", "ls") //nolint:usetesting // t.TempDir is too long for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary, err := world.Build(t.Context(), dir, raceFlags...)
	if err != nil {
		t.Fatal(err)
	}
	s := &soak{seed: *soakSeed, transports: map[*via]*http.Transport{}, calls: map[*via]*grpc.ClientConn{}, seen: map[string][]held{}}
	if s.seed == 0 {
		s.seed = uint64(time.Now().Unix())
	}
	t.Logf("-soak %s -seed %d", *soakFor, s.seed)
	ctx, cancel := context.WithTimeout(t.Context(), *soakFor)
	defer cancel()
	s.tally.counts, s.tally.stop = map[string]*counts{}, cancel
	s.rig, err = newRig(t.Context(), filepath.Join(dir, "w"), binary, s.report)
	defer func() {
		if err := s.rig.close(); err != nil {
			t.Error(err)
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.hire(regexp.MustCompile(*soakOnly)); err != nil {
		t.Fatal(err)
	}
	s.run(ctx, t)
	t.Log("\n" + s.tally.table(s.names))
	s.judge(t)
}

// report takes what a backend says of an exchange.
func (s *soak) report(o *order, err error) {
	name := unknown
	if n := int(o.ID >> countBits); o.ID != 0 && n < len(s.workers) {
		name = s.workers[n].kind
	}
	s.tally.add(name, o, &facts{more: "told by the backend"}, err, true)
}

// hire makes the workers.
func (s *soak) hire(only *regexp.Regexp) error {
	for _, k := range kinds {
		for _, v := range k.ways {
			name := k.name + " " + v.name
			number := len(s.names)
			if s.names = append(s.names, name); !only.MatchString(name) {
				s.workers = append(s.workers, &worker{kind: name}, &worker{kind: name}) // the others draw the same as ever
				continue
			}
			if s.transports[v] == nil {
				s.transports[v] = newTransport(s.rig, v)
			}
			if s.calls[v] == nil {
				c, err := dialGRPC(s.rig, v)
				if err != nil {
					return err
				}
				s.calls[v] = c
			}
			for i := range workersPerKind {
				n := uint64(number*workersPerKind + i)
				s.workers = append(s.workers, &worker{
					kind: name, number: n, rnd: rand.New(rand.NewPCG(s.seed, n)), player: k.make(s, v), tally: &s.tally,
				})
			}
		}
	}
	return nil
}

// run has everything happen until ctx ends, and then ends the clients, the backends, and what the mesh has of them.
func (s *soak) run(ctx context.Context, t *testing.T) {
	before := s.look(t)
	var work, rest sync.WaitGroup
	for _, w := range s.workers {
		if w.player != nil {
			work.Go(func() { w.work(ctx) })
		}
	}
	background := func(what string, f func(context.Context) error) {
		rest.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	if !*soakIdle {
		background("change the mesh", func(ctx context.Context) error { return s.changes(ctx, t) })
		background("a backend comes and goes", s.rig.tide)
	}
	background("watch", s.watch)
	background("rotate the access logs", func(ctx context.Context) error {
		for pause(ctx, rotationsEvery) == nil {
			if err := s.rig.rotate(); err != nil {
				return err
			}
		}
		return nil
	})
	work.Wait()
	rest.Wait()
	for v, c := range s.calls {
		_ = c.Close()
		s.transports[v].CloseIdleConnections()
	}
	if s.tally.failures != nil {
		return // connections that hang would be told of again
	}
	s.rest(t, before)
}

// changes changes the mesh again and again.
func (s *soak) changes(ctx context.Context, t *testing.T) error {
	rnd := rand.New(rand.NewPCG(s.seed, 1<<63))
	n := 0
	defer func() { t.Logf("%d changes", n) }()
	for pause(ctx, changesEvery) == nil {
		what, err := s.rig.change(ctx, rnd)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		n++
	}
	return nil
}

// watch looks at the proxies again and again.
func (s *soak) watch(ctx context.Context) error {
	for pause(ctx, *soakFor/looksPerSoak) == nil {
		for name, p := range s.rig.proxies {
			h, err := look(ctx, p)
			if err != nil {
				return err
			}
			s.seen[name] = append(s.seen[name], h)
		}
	}
	return nil
}

// look reads what each proxy holds.
func (s *soak) look(t *testing.T) map[string]held {
	out := map[string]held{}
	for name, p := range s.rig.proxies {
		h, err := look(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = h
	}
	return out
}

// The slack at the end. The heap's is for what a proxy learns once: names, series of metrics, sessions of TLS.
const (
	restFiles      = 2
	restGoroutines = 4
	restHeap       = 4 << 20
	restLimit      = 90 * time.Second
)

// rest ends the backends and takes the services away; then the proxies must hold no more than before the traffic.
func (s *soak) rest(t *testing.T, before map[string]held) {
	for _, b := range s.rig.backends { // which may still read what a client has sent
		ending, cancel := context.WithTimeout(t.Context(), drains)
		b.drain(ending)
		cancel()
	}
	_, services, _ := strings.Cut(meshYAML, "---\n")
	if err := s.rig.mesh.Delete(t.Context(), services); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), restLimit)
	defer cancel()
	for {
		now := s.look(t)
		err := resting(before, now)
		if err == nil {
			for name := range now {
				t.Logf("%s: before %v; after %v", name, before[name], now[name])
			}
			return
		}
		if pause(ctx, 200*time.Millisecond) != nil {
			t.Errorf("after the end: %v", err)
			for name, p := range s.rig.proxies {
				text, err := p.Admin(t.Context(), "/debug/pprof/goroutine?debug=1")
				t.Logf("%s: %v %s\n%s", name, err, text, files(p.PID()))
			}
			return
		}
	}
}

func resting(before, now map[string]held) error {
	var errs []error
	for name, b := range before {
		n := now[name]
		if n.files > b.files+restFiles || n.goroutines > b.goroutines+restGoroutines || n.heap > b.heap+restHeap {
			errs = append(errs, fmt.Errorf("%s holds %v; before %v", name, n, b))
		}
	}
	return errors.Join(errs...)
}

// files says what a process has open.
func files(pid int) string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, f := range list {
		to, _ := os.Readlink(filepath.Join(dir, f.Name()))
		fmt.Fprintf(&b, "%s %s\n", f.Name(), to)
	}
	return b.String()
}

// judge tells of all that was not as it should be.
func (s *soak) judge(t *testing.T) {
	s.rig.explain(s.tally.failures)
	for i := range s.tally.failures {
		t.Error(&s.tally.failures[i])
	}
	for name, p := range s.rig.proxies {
		if list := s.seen[name]; len(list) > 0 {
			t.Logf("%s: at first %v; at last %v", name, list[0], list[len(list)-1])
		}
		if *soakFor >= steadyFrom && len(raceFlags) == 0 {
			if err := growth(s.seen[name]); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, sign := range []string{"DATA RACE", "panic", "fatal error", "level=ERROR"} {
			if log := p.Log(); strings.Contains(log, sign) {
				t.Errorf("%s: %q in its log:\n%s", name, sign, log)
				break
			}
		}
	}
}

// steadyFrom is the least length of a soak whose memory can be judged while it runs.
const steadyFrom = 2 * time.Minute
