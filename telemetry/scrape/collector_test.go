package scrape

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"github.com/lateen-mesh/lateen/telemetry"
	"github.com/lateen-mesh/lateen/telemetry/metrics"
)

// fill counts one of everything.
func fill(r *metrics.Registry) {
	s := r.NewShard()
	k := telemetry.RequestKey{
		Source:      telemetry.Peer{Workload: "productpage-v1", Namespace: "default", Principal: "spiffe://cluster.local/ns/default/sa/bookinfo-productpage", App: "productpage", Version: "v1", CanonicalService: "productpage", CanonicalRevision: "v1", Cluster: "Kubernetes"}.Ref(),
		Destination: telemetry.Peer{Workload: "reviews-v1", Namespace: "default", App: "reviews", Version: "v1", CanonicalService: "reviews", CanonicalRevision: "v1", Cluster: "Kubernetes"}.Ref(),
		Service:     telemetry.Service{Host: "reviews.default.svc.cluster.local", Name: "reviews", Namespace: "default"}.Ref(),
		Reporter:    telemetry.ReporterDestination, Code: 200, Security: telemetry.SecurityMutualTLS,
	}
	s.Request(k, 3*time.Millisecond, 120, 2300)
	s.Request(k, 7*time.Millisecond, 80, 700)
	k.Protocol, k.GRPC, k.Flags, k.Code = telemetry.ProtocolGRPC, telemetry.GRPCCode(14), telemetry.FlagUF|telemetry.FlagURX, 503
	s.Request(k, 2*time.Second, 5, 0)
	s.Messages(k.Edge(), 1, 2)
	tcp := telemetry.TCPKey{Source: k.Source, Destination: telemetry.Peer{Workload: "my\"sql\n"}.Ref(), Security: telemetry.SecurityNone}
	s.Opened(tcp)
	s.Transferred(tcp, 1<<40, 77)
	s.Closed(tcp)
}

func collector() *Collector {
	r := metrics.New(metrics.Config{})
	fill(r)
	return New(Config{Registry: r, Component: "proxy", Tag: "0.1.0", Counters: []Counter{
		{Name: "lateen_access_log_dropped_total", Help: "Access log lines dropped.", Read: func() uint64 { return 42 }},
	}})
}

func TestExposition(t *testing.T) {
	golden := filepath.Join("testdata", "exposition.txt")
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(collector())
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			t.Fatal(err)
		}
	}
	got := shorten(out.Bytes())
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (UPDATE=1 rewrites it):\n%s", golden, diff)
	}
}

// shorten leaves the labels of counters whole and those of histograms out, but for the two that vary.
func shorten(text []byte) []byte {
	labels, vary := regexp.MustCompile(`\{.*\}`), regexp.MustCompile(`(?:\{|,)((?:le|response_code)="[^"]*")`)
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(line, []byte("istio_re")) && !bytes.Contains(line, []byte("_total")) {
			line = labels.ReplaceAllFunc(line, func(all []byte) []byte {
				var kept [][]byte
				for _, m := range vary.FindAllSubmatch(all, -1) {
					kept = append(kept, m[1])
				}
				return slices.Concat([]byte("{…"), bytes.Join(kept, []byte(",")), []byte("}"))
			})
		}
		out.Write(line)
	}
	return out.Bytes()
}

// TestLint lists what Prometheus's linter finds in Istio's names, which we keep because dashboards use them.
func TestLint(t *testing.T) {
	problems, err := testutil.CollectAndLint(collector())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range problems {
		got = append(got, p.Metric+": "+p.Text)
	}
	slices.Sort(got)
	want := []string{
		`istio_request_duration_milliseconds: use base unit "seconds" instead of "milliseconds"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRegistersBesideOthers(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	c := collector()
	if err := reg.Register(c); err != nil {
		t.Fatal(err)
	}
	if n, err := testutil.GatherAndCount(reg); err != nil || n == 0 {
		t.Fatalf("%d metrics, %v", n, err)
	}
	if err := reg.Register(c); err == nil {
		t.Error("a second registration was accepted: Describe says nothing")
	}
	if got := testutil.CollectAndCount(c, telemetry.MetricRequests); got != 2 {
		t.Errorf("%d series of %s, want 2", got, telemetry.MetricRequests)
	}
	if got := testutil.CollectAndCount(New(Config{Registry: metrics.New(metrics.Config{})}), telemetry.MetricBuild); got != 1 {
		t.Errorf("%d series of %s in an empty registry, want 1", got, telemetry.MetricBuild)
	}
}

// TestMetricsAreDocumented holds this folder's README to the names in the code.
func TestMetricsAreDocumented(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc, 100)
	collector().Describe(descs)
	close(descs)
	for d := range descs {
		name := strings.SplitN(d.String(), `"`, 3)[1]
		if !strings.Contains(string(readme), "`"+name+"`") {
			t.Errorf("README.md does not mention %s", name)
		}
	}
}

func TestScrapeWhileWriting(t *testing.T) {
	r := metrics.New(metrics.Config{SeriesMax: 16})
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(New(Config{Registry: r})); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 2 {
		s := r.NewShard()
		wg.Go(func() {
			for i := range 3000 {
				k := telemetry.RequestKey{Source: telemetry.Peer{Workload: fmt.Sprint("w", i%40)}.Ref(), Code: uint16(200 + i%5)}
				s.Request(k, time.Millisecond, 1, 1)
				s.Messages(k.Edge(), 1, 1)
			}
		})
	}
	for range 20 {
		if _, err := reg.Gather(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if _, err := reg.Gather(); err != nil {
		t.Error(err)
	}
}
