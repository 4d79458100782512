package oracle

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
	"github.com/lateen-mesh/lateen/test/world"
)

// only chooses worlds; with fewer than all, differences that are not seen are no fault.
var only = flag.String("world", "*", "pattern of the names of worlds to ask about")

// tell prints what differs and is accepted, to write the lists with.
var tell = flag.Bool("accepted", false, "print each accepted difference")

func TestMain(m *testing.M) { nstest.Main(m, nil) }

// TestOracle asks both proxies.
func TestOracle(t *testing.T) {
	if testing.Short() {
		t.Skip("short: six proxies and some hundred requests take their time")
	}
	nstest.Need(t)
	if _, err := world.EnvoyBinary(); err != nil {
		t.Skip(err)
	}
	certs, err := newCertificates()
	if err != nil {
		t.Fatal(err)
	}
	everywhere := readEverywhere(t)
	worlds := readWorlds(t, *only, certs.replacer)
	envoy, lateen := answers(t, worlds, certs)
	requests, accepted := 0, 0
	for i, w := range worlds {
		t.Run(w.name, func(t *testing.T) {
			if err := errors.Join(envoy[i].err, lateen[i].err); err != nil {
				t.Fatal(err)
			}
			for j, q := range w.requests {
				requests += q.count
				for _, m := range compare(envoy[i].list[j], lateen[i].list[j], q.within) {
					// Both lists are asked: what is listed twice would else look as if it did not occur.
					here, there := accept(w.differs, w.name, q.name, m), accept(everywhere, w.name, q.name, m)
					if here || there {
						accepted++
						if *tell {
							t.Logf("accepted: %s %s %s: %s > %s", w.name, q.name, m.field, m.envoy, m.lateen)
						}
						continue
					}
					t.Errorf("%s %s:\n\tEnvoy  %s\n\tLateen %s", q.name, m.field, m.envoy, m.lateen)
				}
			}
			unused(t, w.differs)
		})
	}
	if *only == "*" {
		unused(t, everywhere)
	}
	t.Logf("%d worlds, %d requests to each proxy, %d differences accepted", len(worlds), requests, accepted)
}

// unused reports accepted differences that have not been seen.
func unused(t *testing.T, list []difference) {
	t.Helper()
	for _, d := range list {
		if !d.used {
			t.Errorf("listed, but not seen any more: %s %s %s %s > %s: %s", d.world, d.request, d.field, d.envoy, d.lateen, d.decision)
		}
	}
}

// outcome is what came of one world in one rig.
type outcome struct {
	list []observation
	err  error
}

// answers has both kinds of proxies play all worlds, side by side.
func answers(t *testing.T, worlds []*worldFile, certs *certificates) (envoy, lateen []outcome) {
	t.Helper()
	dir, err := os.MkdirTemp("", "or") //nolint:usetesting // t.TempDir is too long for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary, err := world.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	play := func(kind world.Kind) (out []outcome) {
		r, err := newRig(t.Context(), kind, folder(dir, kind), binary, certs)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
		} else {
			out = r.playAll(t.Context(), worlds)
		}
		for _, text := range r.slow {
			t.Log("slow: ", text)
		}
		if err := r.close(); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		return out
	}
	var both sync.WaitGroup
	both.Go(func() { envoy = play(world.Envoy) })
	both.Go(func() { lateen = play(world.Lateen) })
	both.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return envoy, lateen
}

// playAll plays worlds one after the other.
func (r *rig) playAll(ctx context.Context, worlds []*worldFile) []outcome {
	out := make([]outcome, len(worlds))
	for i, w := range worlds {
		if out[i].list, out[i].err = r.play(ctx, w); out[i].err != nil {
			for j := range out[i:] { // What one world leaves behind would spoil the next.
				out[i+j].err = fmt.Errorf("%s does not go on after %s: %w", r.kind, w.name, out[i].err)
			}
			return out
		}
	}
	return out
}
