package main

import (
	"bytes"
	"context"
	"encoding/json"
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
	pss int64 // bytes, afterwards
}

// perCPU is how many operations a second of CPU time does.
func (s *sample) perCPU() float64 { return float64(s.Operations) / s.CPU.Seconds() }

// busy is how much of its core a proxy used.
func (s *sample) busy() float64 { return float64(s.CPU) / float64(s.Elapsed) }

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
	// Each connection of a load has a port of its own; those of a minute ago are still reserved.
	_ = os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("24000 65000"), 0) // elsewhere the default has to do
	prefer()
	dir, err := os.MkdirTemp("", "lb")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if cfg.profile != "" {
		cfg.peers = nil
	}
	t, err := findTools(ctx, cfg, dir)
	if err != nil {
		return err
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
		if err != nil {
			return fmt.Errorf("scenario %s: %w", sc.name, err)
		}
	}
	return report(cfg, m, results)
}

// prefer puts this session before others, where that is allowed: where the scheduler groups processes by session, the
// niceness of each counts within its session only. What else runs disturbs less then; it is not needed.
func prefer() { _ = os.WriteFile("/proc/self/autogroup", []byte(niceness), 0) }

// compare runs a scenario with all peers.
func compare(ctx context.Context, cfg config, t tools, sc *scenario) ([]*result, error) {
	names := append([]string{ours}, sc.peers(cfg.peers)...)
	if slices.ContainsFunc(sc.variants, func(v variant) bool { return v.fixed() }) {
		names = append(names, direct) // what a proxy adds to a latency is told by the one without any
	}
	st, err := newStage(ctx, cfg, t, sc, names)
	if err != nil {
		return nil, err
	}
	results, err := st.run(ctx, sc)
	if end := st.close(); err == nil {
		err = end
	}
	return results, err
}

func (v *variant) fixed() bool { return v.job.Rate > 0 || v.share > 0 }

func (s *stage) run(ctx context.Context, sc *scenario) ([]*result, error) {
	for _, p := range s.peers {
		if err := s.check(ctx, p, sc.services); err != nil {
			return nil, err
		}
	}
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
		r := &result{scenario: sc.name, variant: v.name, kind: job.Kind, rate: job.Rate, samples: map[string][]sample{}}
		out = append(out, r)
		for range s.cfg.rounds {
			for _, p := range s.peers {
				if p.name == direct && !v.fixed() {
					continue
				}
				if err := s.repeat(ctx, r, p, v.service, job); err != nil {
					return out, err
				}
			}
		}
		r.tell(s.cfg, s.peers)
	}
	return out, nil
}

// slowest is how many operations the slowest peer does in a second without a rate.
func (s *stage) slowest(ctx context.Context, v *variant) (float64, error) {
	least := math.Inf(1)
	for _, p := range s.peers {
		if p.name == direct {
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
	return least, nil
}

// repeat measures once and notes it; what fails is tried once more, and noted too.
func (s *stage) repeat(ctx context.Context, r *result, p *peer, service int, job load.Job) error {
	for range 2 {
		got, err := s.measure(ctx, p, service, job)
		if err == nil {
			r.samples[p.name] = append(r.samples[p.name], got)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		note := fmt.Sprintf("%s %s, %s: %v", r.scenario, r.variant, p.name, err)
		_, _ = fmt.Fprintln(s.cfg.log, "failed:", note)
		r.failed = append(r.failed, note)
	}
	return nil
}

// measure makes one load on one peer.
func (s *stage) measure(ctx context.Context, p *peer, service int, job load.Job) (sample, error) {
	job.Target, job.PIDs, job.TLS = p.ports[service], p.pids, s.tls
	text, err := json.Marshal(job)
	if err != nil {
		return sample{}, err
	}
	cmd := pinned(s.cfg.cpus[0], s.tools.self, partLoad)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), &out, &said
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
	fmt.Fprintf(&b, "%-11s %-8s", r.scenario, r.variant)
	for _, p := range peers {
		list := r.samples[p.name]
		if len(list) == 0 {
			continue
		}
		m := median(list, func(s *sample) float64 { return 1e6 / s.perCPU() })
		if r.kind == load.Bulk {
			m *= 1e9 / 1e6 // seconds per GB
		}
		fmt.Fprintf(&b, "  %s %.2f µs %.0f/s p99 %.2f ms", p.name, m, median(list, perSecond), median(list, p99)*1e3)
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
