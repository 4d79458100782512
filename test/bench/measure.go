package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/test/bench/load"
)

// sample is one measurement of one peer.
type sample struct {
	load.Result
	pss  int64 // bytes, afterwards
	more int64 // bytes that the connections of a load.Hold have cost
}

// perCPU is how many operations a second of CPU time does.
func (s *sample) perCPU() float64 { return float64(s.Operations) / s.CPU.Seconds() }

// busy is how much of its core a proxy used; 0 where that was not measured.
func (s *sample) busy() float64 {
	if s.Elapsed == 0 {
		return 0
	}
	return float64(s.CPU) / float64(s.Elapsed)
}

// result is what came of one variant.
type result struct {
	scenario, variant string
	kind              string  // of the load
	rate              float64 // 0: as fast as it goes
	samples           map[string][]sample
	failed            []string
}

// inside runs the bench; it has the network to itself.
func inside(ctx context.Context, cfg config) error {
	if err := netns.Loopback(); err != nil {
		return fmt.Errorf("bring the loopback interface up: %w", err)
	}
	if err := widen(); err != nil {
		return err
	}
	prefer()
	dir, err := os.MkdirTemp("", "lb")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if cfg.profile != "" {
		cfg.peers = nil
	}
	t, missing, err := findTools(ctx, &cfg, dir)
	if err != nil {
		return err
	}
	for _, note := range missing {
		_, _ = fmt.Fprintln(cfg.log, "failed:", note)
	}
	if cfg.profile != "" {
		return profile(ctx, cfg, t)
	}
	m, err := describe(ctx, cfg, t)
	if err != nil {
		return err
	}
	var results []*result
	for _, sc := range cfg.chosen() {
		list, err := compare(ctx, cfg, t, &sc)
		results = append(results, list...)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // the other scenarios have their worth
			missing = append(missing, sc.name+": "+err.Error())
			_, _ = fmt.Fprintln(cfg.log, "failed:", missing[len(missing)-1])
		}
	}
	return report(cfg, m, results, missing)
}

// prefer puts this session before others, where that is allowed: where the scheduler groups processes by session, the
// niceness of each counts within its session only. What else runs disturbs less then; it is not needed.
func prefer() { _ = os.WriteFile("/proc/self/autogroup", []byte(niceness), 0) }

// compare runs a scenario with all peers.
func compare(ctx context.Context, cfg config, t tools, sc *scenario) ([]*result, error) {
	if sc.position&fresh == 0 {
		return compareOnce(ctx, cfg, t, sc, cfg.rounds)
	}
	var out []*result
	for _, v := range sc.variants {
		one := *sc
		one.variants = []variant{v}
		rounds := cfg.rounds
		if v.services > 0 {
			rounds = 1 // memory varies little, and a large mesh takes long
		}
		var r *result
		for range rounds {
			list, err := compareOnce(ctx, cfg, t, &one, 1)
			switch {
			case err != nil && ctx.Err() != nil:
				return out, err
			case err != nil:
				r = cmp.Or(r, newResult(sc, &v, &v.job))
				r.fail(cfg, err.Error())
			case r == nil:
				r = list[0]
			default:
				r.add(list[0])
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// compareOnce runs the rounds of a scenario on one stage.
func compareOnce(ctx context.Context, cfg config, t tools, sc *scenario, rounds int) ([]*result, error) {
	names := append([]string{ours}, sc.peers(cfg.peers)...)
	if slices.ContainsFunc(sc.variants, func(v variant) bool { return v.fixed() }) {
		names = append(names, direct) // what a proxy adds to a latency is told by the one without any
	}
	st, err := newStage(ctx, cfg, t, sc, names)
	if err != nil {
		return nil, err
	}
	results, err := st.run(ctx, sc, rounds)
	for _, note := range st.absent {
		if len(results) > 0 {
			results[0].failed = append(results[0].failed, note)
		}
	}
	if end := st.close(); err == nil {
		err = end
	}
	return results, err
}

func newResult(sc *scenario, v *variant, job *load.Job) *result {
	return &result{scenario: sc.name, variant: v.name, kind: job.Kind, rate: job.Rate, samples: map[string][]sample{}}
}

// add takes the samples of another one over.
func (r *result) add(other *result) {
	for name, list := range other.samples {
		r.samples[name] = append(r.samples[name], list...)
	}
	r.failed = append(r.failed, other.failed...)
}

// fail notes a measurement that failed.
func (r *result) fail(cfg config, why string) {
	note := r.scenario + " " + r.variant + ": " + why
	_, _ = fmt.Fprintln(cfg.log, "failed:", note)
	r.failed = append(r.failed, note)
}

func (v *variant) fixed() bool { return v.job.Rate > 0 || v.share > 0 }

func (s *stage) run(ctx context.Context, sc *scenario, rounds int) ([]*result, error) {
	var out []*result
	for _, v := range sc.variants {
		job := v.job
		if v.share > 0 {
			slowest, err := s.slowest(ctx, &v)
			if err != nil {
				return out, err
			}
			job.Rate = math.Round(v.share * slowest)
		}
		job.Warm, job.For = warm, s.cfg.window
		if job.Kind == load.Hold {
			job.For = max(job.For, 2*settleTime)
		}
		r := newResult(sc, &v, &job)
		out = append(out, r)
		for range rounds {
			for _, p := range s.peers {
				if p.name == direct && !v.fixed() {
					continue
				}
				if err := s.repeat(ctx, r, p, &v, job); err != nil {
					return out, err
				}
			}
		}
		r.tell(s.cfg, s.peers)
	}
	return out, nil
}

// slowest is how many operations the slowest peer does in a second without a rate; where loops are compared, how many one does.
func (s *stage) slowest(ctx context.Context, v *variant) (float64, error) {
	least := math.Inf(1)
	for _, p := range s.peers {
		if p.name == direct || s.unpinned && len(s.peers) > 1 && p.name != peerOneLoop {
			continue
		}
		job := v.job
		job.Rate, job.Warm, job.For = 0, warm, time.Second
		got, err := s.measure(ctx, p, v.service, job)
		if err != nil {
			return 0, err
		}
		least = min(least, float64(got.Operations)/got.Elapsed.Seconds())
	}
	if math.IsInf(least, 1) {
		return 0, errors.New("nobody is there by whom to set the rate")
	}
	return least, nil
}

// repeat measures once and notes it; what fails is tried once more, and noted too.
func (s *stage) repeat(ctx context.Context, r *result, p *peer, v *variant, job load.Job) error {
	for range 2 {
		got, err := s.take(ctx, p, v, job)
		if err == nil {
			r.samples[p.name] = append(r.samples[p.name], got)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.fail(s.cfg, fmt.Sprintf("%s: %v", p.name, err))
	}
	return nil
}

// take measures once.
func (s *stage) take(ctx context.Context, p *peer, v *variant, job load.Job) (sample, error) {
	if v.special != nil {
		got, err := v.special(s, ctx, p)
		if err == nil {
			got.pss, _, err = load.PSS(p.pids)
		}
		return got, err
	}
	before := int64(0)
	if job.Kind == load.Hold {
		err := settle(ctx) // as afterwards
		if err == nil {
			_, before, err = load.PSS(p.pids)
		}
		if err != nil {
			return sample{}, err
		}
	}
	got, err := s.measure(ctx, p, v.service, job)
	got.more = got.Memory - before
	return got, err
}

// measure makes one load on one peer.
func (s *stage) measure(ctx context.Context, p *peer, service int, job load.Job) (sample, error) {
	job.Target, job.PIDs, job.TLS = p.ports[service], p.pids, s.tls
	text, err := json.Marshal(job)
	if err != nil {
		return sample{}, err
	}
	cmd := pinned(s.near, s.tools.self, partLoad)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = bytes.NewReader(text), &out, &said, oneProcessor()
	err = p.place.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return sample{}, fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	var got sample
	if err := json.Unmarshal(out.Bytes(), &got.Result); err != nil {
		return sample{}, fmt.Errorf("read the result: %w", err)
	}
	got.pss, _, err = load.PSS(p.pids)
	return got, errOr(ctx, err)
}

// errOr prefers the reason why everything ends.
func errOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// tell writes one line of progress.
func (r *result) tell(cfg config, peers []*peer) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-12s %-8s", r.scenario, r.variant)
	for _, p := range peers {
		if list := r.samples[p.name]; len(list) > 0 {
			f := r.figures()[0]
			fmt.Fprintf(&b, "  %s %s", p.name, show(f.metric, median(list, f.read)))
		}
	}
	_, _ = fmt.Fprintln(cfg.log, b.String())
}

func perSecond(s *sample) float64 { return float64(s.Operations) / s.Elapsed.Seconds() }
func p99(s *sample) float64       { return s.P99.Seconds() }

// median of what f reads from each sample.
func median(list []sample, f func(*sample) float64) float64 {
	var all []float64
	for i := range list {
		all = append(all, f(&list[i]))
	}
	return middle(all)
}

// middle is the median; NaN of nothing.
func middle(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	n := len(all)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 0:
		return (all[n/2-1] + all[n/2]) / 2
	}
	return all[n/2]
}
