package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lateen-mesh/lateen/test/bench/load"
)

// measured is a sample with so much CPU per operation and such a p99.
func measured(cpu, p99 time.Duration) sample {
	return sample{
		Result: load.Result{Operations: 1000, Elapsed: time.Second, CPU: 1000 * cpu, P50: p99 / 2, P99: p99, P999: 2 * p99}, pss: 10 << 20,
	}
}

func example() *result {
	return &result{scenario: "h1", variant: "64", kind: load.HTTP1, samples: map[string][]sample{
		ours: {
			measured(10*time.Microsecond, 2*time.Millisecond), measured(20*time.Microsecond, 1*time.Millisecond),
			measured(10*time.Microsecond, 1*time.Millisecond),
		},
		peerEnvoy: {
			measured(40*time.Microsecond, 4*time.Millisecond), measured(50*time.Microsecond, 4*time.Millisecond),
			measured(50*time.Microsecond, 4*time.Millisecond),
		},
	}}
}

func TestRows(t *testing.T) {
	got := map[string]row{}
	for _, r := range example().rows(peerEnvoy) {
		got[r.Metric] = r
	}
	approx := cmpopts.EquateApprox(1e-9, 1e-9)
	for metric, want := range map[string]row{
		// The rounds' ratios are 4, 2.5 and 5.
		metricCPU: {
			Scenario: "h1", Variant: "64", Peer: peerEnvoy, Metric: metricCPU, Ours: 100_000, Theirs: 20_000, Ratio: 5, Spread: 0.25,
			OurBusy: 0.01, TheirBusy: 0.05,
		},
		// Less is better: 2, 4 and 4.
		metricP99: {
			Scenario: "h1", Variant: "64", Peer: peerEnvoy, Metric: metricP99, Ours: 0.001, Theirs: 0.004, Ratio: 4, Spread: 0.25,
			OurBusy: 0.01, TheirBusy: 0.05,
		},
	} {
		if diff := cmp.Diff(want, got[metric], approx); diff != "" {
			t.Errorf("%s (-want +got):\n%s", metric, diff)
		}
	}
	if rows := example().rows(peerNginx); rows != nil {
		t.Errorf("rows of a peer that was not measured: %v", rows)
	}
}

// TestAdded takes the latency of no proxy off.
func TestAdded(t *testing.T) {
	r := example()
	r.rate = 1000
	r.samples[direct] = []sample{measured(0, 500*time.Microsecond)}
	for _, x := range r.rows(peerEnvoy) {
		if x.Metric == added+metricP99 && math.Abs(x.Ratio-7) > 1e-9 {
			t.Errorf("%+v, want a ratio of 3.5 ms to 0.5 ms", x)
		}
		if x.Metric == metricRate {
			t.Error("at a fixed rate the rate is no result")
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := example()
	tab := table{Machine: machine{CPU: "abacus", Versions: map[string]string{peerEnvoy: "1"}}, Rows: r.rows(peerEnvoy), Rounds: 3, Failed: []string{"x failed"}}
	text := tab.markdown([]string{peerEnvoy, peerNginx}, []*result{r})
	for _, want := range []string{
		"| h1 | 64 | 10.00 µs | 50.00 µs | **5.00** ± 25 % | – | – | 1 %, 5 %, – |", "| h1 | 64 | 1.00 ms | 4.00 ms |", "abacus", "- x failed",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// TestPlot reads the picture as XML.
func TestPlot(t *testing.T) {
	r := example()
	tab := table{Rows: r.rows(peerEnvoy), Machine: machine{CPU: "a < b & c"}}
	circles := 0
	for d := xml.NewDecoder(strings.NewReader(tab.plot([]string{peerEnvoy}))); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "circle" {
			circles++
		}
	}
	if circles != 3 { // in the legend and in both panels
		t.Errorf("%d circles, want 3", circles)
	}
	if place(ratioLeast) != 0 || place(1000) != plotPanel || place(4) <= place(2) {
		t.Error("the scale does not grow from one end to the other")
	}
}

func TestParse(t *testing.T) {
	cfg, err := parse([]string{"-scenario", "h1/64,grpc", "-peers", "nginx", "-cpus", "3,1"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, sc := range cfg.chosen() {
		for _, v := range sc.variants {
			names = append(names, sc.name+"/"+v.name)
		}
	}
	if diff := cmp.Diff([]string{"h1/64", "grpc/8x16", "grpc/64x1"}, names); diff != "" || cfg.cpus != [2]int{3, 1} {
		t.Errorf("%v %v", names, cfg.cpus)
	}
	for _, args := range [][]string{{"-scenario", "h9"}, {"-scenario", "h1/2"}, {"-peers", "x"}, {"-cpus", "1,1"}, {"-rounds", "0"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}

// TestTemplates fills every template for every scenario.
func TestTemplates(t *testing.T) {
	for _, sc := range scenarios() {
		s := &stage{dir: "/d"}
		for _, v := range sc.services {
			s.routes = append(s.routes, route{
				Downstream: v.downstream, Upstream: v.upstream, Service: 7, Number: 80, Backend: "127.0.0.1:7", Ports: map[string]int{ours: 1},
			})
		}
		names := []string{"mesh.yaml", "nginx.conf", "haproxy.cfg"}
		if sc.position&atGateway == 0 {
			names = []string{"sidecars.yaml", "pair-nginx.conf", "pair-haproxy.cfg"}
		}
		for _, name := range names {
			text, err := fill(name, s.data(s.routes, map[string]any{"Peers": []meshPeer{{ours, virtualAddress(0)}}, "Others": []int{1}, "Client": true, "Tuned": true}))
			if err != nil || strings.Contains(text, "no value") {
				t.Errorf("%s of %s: %v\n%s", name, sc.name, err, text)
			}
		}
		for _, v := range sc.variants {
			if v.service >= len(sc.services) {
				t.Errorf("%s %s names a service that is not there", sc.name, v.name)
			}
		}
	}
}

// TestPeers leaves out who cannot stand in a position.
func TestPeers(t *testing.T) {
	all := []string{peerEnvoy, peerHAProxy, peerNginx}
	for name, want := range map[string][]string{"h1": all, "l4-mtls": all, "hbone": all[1:], "h1-mesh": all[:1], "h1-mesh-pair": all[:1]} {
		sc := (&config{scenarios: []string{name}}).chosen()[0]
		if diff := cmp.Diff(want, sc.peers(all)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestLargeMesh exports the services that are used, and no others.
func TestLargeMesh(t *testing.T) {
	s := &stage{dir: "/d", routes: []route{{Service: 7}}}
	for _, test := range []struct {
		first bool
		want  int
	}{{true, 1}, {false, 3}} {
		peers := []meshPeer{{"a", largeAddress(0)}, {"b", largeAddress(1)}, {"c", largeAddress(2)}}
		text, err := fill("services.yaml", s.data(s.routes, map[string]any{"Peers": peers, "Server": serverAddress(0), "Used": 2, "First": test.first}))
		if got := strings.Count(text, "exportTo"); err != nil || got != test.want {
			t.Errorf("first %t: %d services of 3 are kept to their namespace, want %d (%v)", test.first, got, test.want, err)
		}
	}
}

// TestBeside lists what has no column.
func TestBeside(t *testing.T) {
	r := example()
	r.samples[peerNginxDefault] = r.samples[peerEnvoy]
	tab := table{Rows: r.rows(peerNginxDefault), Failed: []string{}}
	text := tab.markdown([]string{peerEnvoy}, []*result{r})
	if want := "| h1 | 64 | nginx-default | CPU per operation | 10.00 µs | 50.00 µs | **5.00** ± 25 % |"; !strings.Contains(text, want) {
		t.Errorf("no %q in\n%s", want, text)
	}
}

// TestMissing goes on without a peer that is not here.
func TestMissing(t *testing.T) {
	if _, err := find(peerOther, "/no/such/file"); err == nil {
		t.Error("a program that is not there is found")
	}
	all := []string{peerEnvoy, peerHAProxy, peerNginx}
	for name, want := range map[string][]string{
		"h1-loops": {peerOneLoop}, "h1-64k": append(all[:3:3], peerNginxDefault), "memory": {peerEnvoy, peerEnvoyUsed},
	} {
		sc := (&config{scenarios: []string{name}}).chosen()[0]
		if diff := cmp.Diff(want, sc.peers(all)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
