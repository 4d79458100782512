package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/test/bench/load"
)

// The metrics of a row. Ratios above 1 say that we are ahead, whichever way a metric counts.
const (
	metricCPU     = "requests_per_cpu_second"
	metricBytes   = "bytes_per_cpu_second"
	metricRate    = "requests_per_second"
	metricThrough = "bytes_per_second"
	metricP50     = "p50_seconds"
	metricP99     = "p99_seconds"
	metricP999    = "p999_seconds"
	metricPSS     = "pss_bytes"
	metricIdle    = "pss_bytes_per_1000_connections"
	metricReady   = "ready_seconds"
	metricObeyed  = "obeyed_p50_seconds"
	metricObeyed9 = "obeyed_p99_seconds"
	added         = "added_" // before a quantile: less that of no proxy at all
)

// row is one figure of us beside one peer.
type row struct {
	Scenario string  `json:"scenario"`
	Variant  string  `json:"variant"`
	Peer     string  `json:"peer"`
	Metric   string  `json:"metric"`
	Ours     float64 `json:"ours"`
	Theirs   float64 `json:"theirs"`
	Ratio    float64 `json:"ratio"`
	// Spread is half the distance between the largest and the smallest ratio of a round, as a part of Ratio.
	Spread float64 `json:"spread"`
	// Busy is how much of its core each used while it was measured: the figure is about the proxy if that is near 1.
	OurBusy   float64 `json:"our_busy"`
	TheirBusy float64 `json:"their_busy"`
}

// table is the whole outcome.
type table struct {
	Machine machine   `json:"machine"`
	Commit  string    `json:"commit"`
	Date    time.Time `json:"date"`
	Rounds  int       `json:"rounds"`
	Seconds float64   `json:"seconds"` // of each measurement
	Rows    []row     `json:"rows"`
	Failed  []string  `json:"failed"`
}

// report writes what came of it all.
func report(cfg config, m machine, results []*result, missing []string) error {
	t := table{
		Machine: m, Commit: m.commit, Date: time.Now().UTC().Truncate(time.Second), Rounds: cfg.rounds, Seconds: cfg.window.Seconds(),
		Rows: []row{}, Failed: append([]string{}, missing...),
	}
	for _, r := range results {
		t.Failed = append(t.Failed, r.failed...)
		for _, p := range slices.Concat(cfg.peers, special) {
			t.Rows = append(t.Rows, r.rows(p)...)
		}
	}
	text := t.markdown(cfg.peers, results)
	if cfg.markdown == "" {
		if _, err := io.WriteString(os.Stdout, text); err != nil {
			return err
		}
	} else if err := os.WriteFile(cfg.markdown, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	if cfg.plot != "" {
		if err := os.WriteFile(cfg.plot, []byte(t.plot(cfg.peers)), 0o644); err != nil {
			return fmt.Errorf("write the plot: %w", err)
		}
	}
	if cfg.json == "" {
		return nil
	}
	all, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(cfg.json, append(all, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}

// figure is a metric: how it is read from a sample, and whether less is better.
type figure struct {
	metric string
	less   bool
	read   func(*sample) float64
}

// figures are the metrics that say something about a variant.
func (r *result) figures() []figure {
	perCPU := figure{metricCPU, false, (*sample).perCPU}
	rate := figure{metricRate, false, perSecond}
	pss := figure{metricPSS, true, func(s *sample) float64 { return float64(s.pss) }}
	p50 := func(s *sample) float64 { return s.P50.Seconds() }
	switch {
	case r.kind == load.Hold:
		return []figure{{metricIdle, true, func(s *sample) float64 { return 1000 * float64(s.more) / float64(s.Operations) }}}
	case r.scenario == "start":
		return []figure{{metricReady, true, p50}, pss}
	case r.scenario == "config":
		return []figure{{metricObeyed, true, p50}, {metricObeyed9, true, p99}}
	case r.scenario == "memory":
		return []figure{pss}
	}
	if r.kind == load.Bulk {
		perCPU.metric, rate.metric = metricBytes, metricThrough
		return []figure{perCPU, rate, pss}
	}
	quantiles := []figure{
		{metricP50, true, p50},
		{metricP99, true, p99},
		{metricP999, true, func(s *sample) float64 { return s.P999.Seconds() }},
	}
	if r.rate == 0 {
		return append([]figure{perCPU, rate, pss}, quantiles...)
	}
	out := []figure{perCPU, pss}
	for _, q := range quantiles {
		base := median(r.samples[direct], q.read)
		out = append(out, q, figure{added + q.metric, true, func(s *sample) float64 { return max(q.read(s)-base, 0) }})
	}
	return out
}

// rows compares with one peer.
func (r *result) rows(peer string) []row {
	ours, theirs := r.samples[ours], r.samples[peer]
	if len(ours) == 0 || len(theirs) == 0 {
		return nil
	}
	var out []row
	for _, f := range r.figures() {
		ratio := func(a, b float64) float64 {
			if f.less {
				a, b = b, a
			}
			return a / b
		}
		x := row{
			Scenario: r.scenario, Variant: r.variant, Peer: peer, Metric: f.metric, Ours: median(ours, f.read), Theirs: median(theirs, f.read),
			OurBusy: median(ours, (*sample).busy), TheirBusy: median(theirs, (*sample).busy),
		}
		x.Ratio = ratio(x.Ours, x.Theirs)
		var rounds []float64
		for i := range min(len(ours), len(theirs)) {
			rounds = append(rounds, ratio(f.read(&ours[i]), f.read(&theirs[i])))
		}
		x.Spread = (slices.Max(rounds) - slices.Min(rounds)) / 2 / x.Ratio
		if math.IsNaN(x.Ratio) || math.IsInf(x.Ratio, 0) || math.IsNaN(x.Spread) || math.IsInf(x.Spread, 0) {
			continue // nothing was added that could be compared
		}
		out = append(out, x)
	}
	return out
}

// find looks a row up.
func (t *table) find(scenario, variant, peer, metric string) *row {
	i := slices.IndexFunc(t.Rows, func(r row) bool {
		return r.Scenario == scenario && r.Variant == variant && r.Peer == peer && r.Metric == metric
	})
	if i < 0 {
		return nil
	}
	return &t.Rows[i]
}

// markdown writes the table for people.
func (t *table) markdown(peers []string, results []*result) string {
	var b strings.Builder
	var versions []string
	for _, p := range peers {
		versions = append(versions, p+" "+t.Machine.Versions[p])
	}
	fmt.Fprintf(&b, "Measured %s at commit `%s` on %s (%d cores, Linux %s), %s, beside %s. ", t.Date.Format(time.DateOnly), t.Commit,
		t.Machine.CPU, t.Machine.Cores, t.Machine.Kernel, t.Machine.Go, strings.Join(versions, ", "))
	fmt.Fprintf(&b, "%d interleaved rounds of %g s; medians. Load and services on one core, the proxy alone on another; in h1-loops all share both.\n", t.Rounds, t.Seconds)
	t.part(&b, "CPU per operation (per GB for bulk), and how many times as much the peer needs; ± is half the spread of the rounds. "+
		"More than 1 × means that we are ahead.", peers, results, metricCPU)
	t.part(&b, "Latency (p99 of each operation; at a fixed rate what the proxy adds to the p99 of no proxy), and how many times as "+
		"much the peer's is.", peers, results, metricP99)
	t.part(&b, "What is no load, and how many times as much the peer needs.", peers, results, "")
	t.part(&b, "Memory right after (PSS), and how many times as much the peer has.", peers, results, metricPSS)
	t.beside(&b, results)
	if len(t.Failed) > 0 {
		b.WriteString("\nFailed measurements:\n\n")
		for _, f := range t.Failed {
			b.WriteString("- " + f + "\n")
		}
	}
	return b.String()
}

// part writes the table of one metric, or of what stands for it in a variant; nothing if no variant has it.
func (t *table) part(b *strings.Builder, title string, peers []string, results []*result, metric string) {
	head := "\n" + title + "\n\n| scenario | load | Lateen |"
	for _, p := range peers {
		head += " " + p + " | × |"
	}
	head += " core used: ours, theirs |\n| --- | --- | ---: |" + strings.Repeat(" ---: | ---: |", len(peers)) + " --- |\n"
	for _, r := range results {
		name := metric
		switch {
		case metric == "":
			if name = r.figures()[0].metric; name == metricCPU || name == metricBytes || name == metricPSS {
				continue
			}
		case r.kind == load.Bulk && metric == metricCPU:
			name = metricBytes
		case r.rate > 0 && metric == metricP99:
			name = added + metricP99
		}
		var cells, busy []string
		mine := ""
		for _, p := range peers {
			x := t.find(r.scenario, r.variant, p, name)
			if x == nil {
				cells = append(cells, "–", "–")
				busy = append(busy, "–")
				continue
			}
			mine = show(name, x.Ours)
			cells = append(cells, show(name, x.Theirs), fmt.Sprintf("**%.2f** ± %.0f %%", x.Ratio, 100*x.Spread))
			busy = append(busy, percent(x.TheirBusy))
			if len(busy) == 1 {
				busy = []string{percent(x.OurBusy), percent(x.TheirBusy)}
			}
		}
		if mine == "" {
			continue
		}
		b.WriteString(head)
		head = ""
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", r.scenario, r.load(), mine, strings.Join(cells, " | "), strings.Join(busy, ", "))
	}
}

// special are the peers that stand in one scenario only: they have no column but a table of their own.
var special = []string{peerOneLoop, peerNginxDefault, peerEnvoyUsed}

// beside writes the table of the special peers; nothing if none was measured.
func (t *table) beside(b *strings.Builder, results []*result) {
	head := "\nOf particular interest: our proxy with two event loops beside the same with one, nginx with the buffers that it has unless " +
		"told otherwise, and Envoy that is told of the used services only.\n\n" +
		"| scenario | load | beside | what | Lateen | theirs | × |\n| --- | --- | --- | --- | ---: | ---: | ---: |\n"
	for _, r := range results {
		for _, p := range special {
			for _, m := range []string{metricCPU, metricP50, metricP99, metricP999, metricPSS} {
				x := t.find(r.scenario, r.variant, p, m)
				if x == nil || p != peerOneLoop && m != metricCPU && m != metricPSS {
					continue
				}
				b.WriteString(head)
				head = ""
				fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | **%.2f** ± %.0f %% |\n", r.scenario, r.load(), p, metricNames[m], show(m, x.Ours),
					show(m, x.Theirs), x.Ratio, 100*x.Spread)
			}
		}
	}
}

// metricNames are what people call the metrics of the table of special peers.
var metricNames = map[string]string{
	metricCPU: "CPU per operation", metricP50: "p50", metricP99: "p99", metricP999: "p99.9", metricPSS: "PSS right after",
}

// load names a variant, with its rate where that was found by measuring.
func (r *result) load() string {
	if r.rate > 0 && !strings.Contains(r.variant, "/s") {
		return r.variant + " = " + strconv.FormatFloat(r.rate, 'f', 0, 64) + "/s"
	}
	return r.variant
}

func percent(share float64) string {
	if share == 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f %%", 100*share)
}

// show writes a figure for people.
func show(metric string, v float64) string {
	switch metric {
	case metricCPU:
		return fmt.Sprintf("%.2f µs", 1e6/v)
	case metricBytes:
		return fmt.Sprintf("%.2f s/GB", 1e9/v)
	case metricPSS, metricIdle:
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	}
	return fmt.Sprintf("%.2f ms", cmp.Or(v, 0)*1e3)
}
