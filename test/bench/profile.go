package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// profileMax bounds how long one profile is taken: the proxy's admin interface waits no longer.
const profileMax = 20 * time.Second

// top is how many functions are listed.
const top = "30"

// profile runs one load against our proxy alone and writes what it did meanwhile.
func profile(ctx context.Context, cfg config, t tools) error {
	chosen := cfg.chosen()
	if len(chosen) != 1 {
		return fmt.Errorf("name one scenario to profile, as in -scenario h1 or -scenario h1/256; there are %v", scenarioNames())
	}
	sc := chosen[0]
	v := sc.variants[0]
	if cfg.window > profileMax {
		return fmt.Errorf("a profile takes at most %s", profileMax)
	}
	out, err := filepath.Abs(cfg.profile)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("make the folder of profiles: %w", err)
	}
	binary := filepath.Join(out, "lateen-proxy")
	if text, err := os.ReadFile(t.lateen); err != nil {
		return err
	} else if err := os.WriteFile(binary, text, 0o755); err != nil {
		return fmt.Errorf("keep the program, which names the functions: %w", err)
	}
	t.lateen += " --contention"
	st, err := newStage(ctx, cfg, t, &sc, []string{ours})
	if err != nil {
		return err
	}
	err = st.profile(ctx, &v, out)
	if err = errors.Join(err, st.close()); err != nil {
		return err
	}
	for _, name := range []string{"cpu", "allocs"} {
		if err := list(ctx, cfg.log, binary, filepath.Join(out, name+".pprof")); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintf(cfg.log, "\nflame graph: go tool pprof -http :8080 %s %s\n", binary, filepath.Join(out, "cpu.pprof"))
	return nil
}

// profile makes load for two windows: the CPU's profile is taken in the first one, the others in the second.
func (s *stage) profile(ctx context.Context, v *variant, out string) error {
	p := s.peers[0]
	job := v.job
	if v.share > 0 {
		slowest, err := s.slowest(ctx, v)
		if err != nil {
			return err
		}
		job.Rate = v.share * slowest
	}
	job.Warm, job.For = warm, 2*s.cfg.window+time.Second
	seconds := max(1, int(s.cfg.window.Seconds()))
	take := func(name string) func() error {
		file := filepath.Join(out, name+".pprof")
		if name == "cpu" {
			name = "profile"
		}
		return func() error { return s.keep(ctx, fmt.Sprintf("/debug/pprof/%s?seconds=%d", name, seconds), file) }
	}
	return together(
		func() error {
			got, err := s.measure(ctx, p, v.service, job)
			if err == nil {
				_, _ = fmt.Fprintf(s.cfg.log, "%s: %.0f/s, %.2f µs CPU each, p99 %s, core used %s\n", v.name, perSecond(&got), 1e6/got.perCPU(),
					got.P99, percent(got.busy()))
			}
			return err
		},
		func() error {
			if err := take("cpu")(); err != nil {
				return err
			}
			return together(take("allocs"), take("mutex"), take("block"))
		},
	)
}

// together runs functions at the same time.
func together(list ...func() error) error {
	var work sync.WaitGroup
	errs := make([]error, len(list))
	for i, f := range list {
		work.Go(func() { errs[i] = f() })
	}
	work.Wait()
	return errors.Join(errs...)
}

// keep writes a page of our proxy's admin interface to a file.
func (s *stage) keep(ctx context.Context, page, path string) error {
	text, err := s.peers[0].admin(ctx, page)
	if err != nil {
		return fmt.Errorf("read %s of the proxy: %w", page, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// list prints where most of it is.
func list(ctx context.Context, w io.Writer, binary, path string) error {
	_, _ = fmt.Fprintf(w, "\n%s\n", path)
	args := []string{"tool", "pprof", "-top", "-nodecount=" + top}
	if filepath.Base(path) == "allocs.pprof" {
		args = append(args, "-sample_index=alloc_objects")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, binary, path)...)
	cmd.Stdout, cmd.Stderr = w, w
	return cmd.Run()
}
