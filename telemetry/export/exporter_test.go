package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/lateen-mesh/lateen/telemetry"
	"github.com/lateen-mesh/lateen/telemetry/trace"
)

// span returns the n-th client span of a trace.
func span(n int) *trace.Span {
	var s trace.Span
	s.Reset(&trace.Context{Trace: trace.ID{0x4b, 15: 0x36}, Span: trace.SpanID{7: byte(n + 1)}, Parent: trace.SpanID{0xb7}})
	s.Kind, s.Name = trace.Client, trace.Operation("reviews.default.svc.cluster.local", 9080, "")
	s.Start, s.Duration = time.Date(2026, 11, 22, 9, 8, 7, 123_456_789, time.UTC), 12_345*time.Microsecond
	s.SetHTTP(&trace.HTTP{
		Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("reviews:9080"), Path: []byte("/\xff"), Protocol: "HTTP/1.1", Status: 503,
		Flags: telemetry.FlagUH, UpstreamCluster: "outbound|9080||reviews.default.svc.cluster.local", Peer: netip.MustParseAddrPort("10.0.0.7:9080"),
	})
	return &s
}

// run starts the exporter and returns what ends it.
func run(t *testing.T, e *Exporter) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// receive starts a collector on loopback and returns its URL and the requests that it gets.
func receive(t *testing.T, path string) (url string, got chan received) {
	t.Helper()
	got = make(chan received, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.URL.Path != path {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		got <- received{r.Header, body}
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(server.Close)
	return server.URL + path, got
}

type received struct {
	header http.Header
	body   []byte
}

func next(t *testing.T, got chan received) received {
	t.Helper()
	select {
	case r := <-got:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("nothing arrived in 10 seconds")
		return received{}
	}
}

func TestZipkin(t *testing.T) {
	url, got := receive(t, "/api/v2/spans")
	e, err := New(Config{
		Zipkin: url, Service: "productpage.default", Tags: map[string]string{trace.TagCanonicalService: "productpage"},
		Headers: map[string]string{"Authorization": "Bearer x"}, FlushAfter: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, e)
	e.Report(span(0))
	r := next(t, got)
	if r.header.Get("Content-Type") != "application/json" || r.header.Get("Authorization") != "Bearer x" {
		t.Errorf("headers: %v", r.header)
	}
	var spans []map[string]any
	if err := json.Unmarshal(r.body, &spans); err != nil || len(spans) != 1 {
		t.Fatalf("%v: %s", err, r.body)
	}
	want := map[string]any{
		"traceId": "4b000000000000000000000000000036", "id": "0000000000000001", "parentId": "b700000000000000", "kind": "CLIENT",
		"name": "reviews.default.svc.cluster.local:9080/*", "timestamp": 1795338487123456.0, "duration": 12345.0,
		"localEndpoint": map[string]any{"serviceName": "productpage.default"}, "remoteEndpoint": map[string]any{"ipv4": "10.0.0.7", "port": 9080.0},
		"tags": map[string]any{
			"istio.canonical_service": "productpage", "component": "proxy", "http.method": "GET", "http.url": "http://reviews:9080/\ufffd",
			"http.protocol": "HTTP/1.1", "http.status_code": "503", "request_size": "0", "response_size": "0", "response_flags": "UH",
			"upstream_cluster":      "outbound|9080||reviews.default.svc.cluster.local",
			"upstream_cluster.name": "outbound|9080||reviews.default.svc.cluster.local", "peer.address": "10.0.0.7:9080", "error": "true",
		},
	}
	if diff := cmp.Diff(want, spans[0]); diff != "" {
		t.Error(diff)
	}
	e.Report(span(1)) // sent when Run ends
	stop()
	if r := next(t, got); !bytes.Contains(r.body, []byte(`"id":"0000000000000002"`)) || e.Dropped() != 0 {
		t.Errorf("the last span: %s; %d dropped", r.body, e.Dropped())
	}
}

func TestZipkinDetails(t *testing.T) {
	var s trace.Span
	s.Reset(&trace.Context{Trace: trace.ID{15: 1}, Span: trace.SpanID{7: 2}})
	s.SetString(trace.TagPeerAddress, "[2001:db8::1]:80")
	got := zipkin{}.span(&s)
	if got.ParentID != "" || got.Kind != "SERVER" || got.Duration != 1 {
		t.Errorf("a root of no duration: %+v", got)
	}
	if diff := cmp.Diff(&zipkinEndpoint{IPv6: "2001:db8::1", Port: 80}, got.Remote); diff != "" {
		t.Error(diff)
	}
	s.SetString(trace.TagPeerAddress, "@internal")
	if got := (zipkin{}).span(&s); got.Remote != nil {
		t.Errorf("an endpoint without an address: %+v", got.Remote)
	}
}

func TestOTLP(t *testing.T) {
	url, got := receive(t, "/v1/traces")
	e, err := New(Config{
		OTLP: url, Service: "productpage.default", Tags: map[string]string{trace.TagMeshID: "mesh1", "bad": "\xff"},
		Resource: map[string]string{"k8s.pod.name": "productpage-v1-0"}, FlushAfter: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer run(t, e)()
	sent := span(0)
	e.Report(sent)
	r := next(t, got)
	var req collectorpb.ExportTraceServiceRequest
	if err := proto.Unmarshal(r.body, &req); err != nil || r.header.Get("Content-Type") != "application/x-protobuf" {
		t.Fatalf("%v, headers %v", err, r.header)
	}
	rs := req.GetResourceSpans()[0]
	resource := map[string]string{}
	for _, kv := range rs.GetResource().GetAttributes() {
		resource[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	if diff := cmp.Diff(map[string]string{"service.name": "productpage.default", "k8s.pod.name": "productpage-v1-0"}, resource); diff != "" {
		t.Error(diff)
	}
	s := rs.GetScopeSpans()[0].GetSpans()[0]
	if !bytes.Equal(s.GetTraceId(), sent.Trace[:]) || !bytes.Equal(s.GetSpanId(), sent.ID[:]) || !bytes.Equal(s.GetParentSpanId(), sent.Parent[:]) {
		t.Errorf("ids: %x %x %x", s.GetTraceId(), s.GetSpanId(), s.GetParentSpanId())
	}
	if s.GetKind() != tracepb.Span_SPAN_KIND_CLIENT || s.GetName() != sent.Name || s.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("kind %v, name %q, status %v", s.GetKind(), s.GetName(), s.GetStatus())
	}
	if s.GetStartTimeUnixNano() != 1795338487123456789 || s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano() != 12_345_000 {
		t.Errorf("from %d to %d", s.GetStartTimeUnixNano(), s.GetEndTimeUnixNano())
	}
	attributes := map[string]string{}
	for _, kv := range s.GetAttributes() {
		attributes[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	for key, want := range map[string]string{"istio.mesh_id": "mesh1", "bad": "\ufffd", "response_flags": "UH", "http.status_code": "503", "component": "proxy"} {
		if attributes[key] != want {
			t.Errorf("attribute %s is %q, want %q", key, attributes[key], want)
		}
	}
}

func TestNewErrors(t *testing.T) {
	for want, cfg := range map[string]Config{
		"exactly one of": {},
		"exactly one":    {Zipkin: "http://a", OTLP: "http://b"},
		`"collector:4317" is not the URL of an HTTP server`: {OTLP: "collector:4317"},
		`"ftp://x/" is not the URL of an HTTP server`:       {Zipkin: "ftp://x/"},
		"export spans: parse":                               {OTLP: "http://a b/"},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", cfg, err, want)
		}
	}
}

// answers is a collector without a network: each request takes the next answer, the last one for ever.
type answers struct {
	mu    sync.Mutex
	list  []answer
	times []time.Time
	spans int
}

type answer struct {
	status     int
	retryAfter string
	body       []byte
	err        error
}

// seen returns the times of the requests so far and the number of spans that were taken.
func (a *answers) seen() ([]time.Time, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.times), a.spans
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.times = append(a.times, time.Now())
	now := a.list[0]
	if len(a.list) > 1 {
		a.list = a.list[1:]
	}
	if now.err != nil {
		return nil, now.err
	}
	if now.status == http.StatusOK {
		a.spans += bytes.Count(body, []byte(`"traceId"`))
	}
	header := http.Header{}
	if now.retryAfter != "" {
		header.Set("Retry-After", now.retryAfter)
	}
	return &http.Response{Status: http.StatusText(now.status), StatusCode: now.status, Header: header, Body: io.NopCloser(bytes.NewReader(now.body)), Request: r}, nil
}

func TestRetries(t *testing.T) {
	unreachable := errors.New("connection refused")
	tests := []struct {
		name     string
		answers  []answer
		attempts int
		took     time.Duration
		sent     int
		dropped  uint64
	}{
		{"at once", []answer{{status: 200}}, 1, 0, 1, 0},
		{"second time", []answer{{status: 503}, {status: 200}}, 2, backoffFirst, 1, 0},
		{"third time", []answer{{err: unreachable}, {status: 502}, {status: 200}}, 3, 3 * backoffFirst, 1, 0},
		{"never", []answer{{status: 503}}, attemptsMax, 3 * backoffFirst, 0, 1},
		{"no use", []answer{{status: 400}}, 1, 0, 0, 1},
		{"redirected", []answer{{status: 307}}, 1, 0, 0, 1},
		{"asked to wait", []answer{{status: 429, retryAfter: "4"}, {status: 200}}, 2, 4 * time.Second, 1, 0},
		{"asked to wait for too long", []answer{{status: 429, retryAfter: "999999999999"}, {status: 200}}, 2, retryAfterMax, 1, 0},
		{"asked for nonsense", []answer{{status: 429, retryAfter: "-1"}, {status: 200}}, 2, backoffFirst, 1, 0},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			collector := &answers{list: tt.answers}
			e, err := New(Config{Zipkin: "http://zipkin/", Client: &http.Client{Transport: collector}})
			if err != nil {
				t.Fatal(err)
			}
			stop := run(t, e)
			e.Report(span(0))
			<-time.After(time.Minute)
			synctest.Wait()
			stop()
			times, sent := collector.seen()
			n := len(times)
			if took := times[n-1].Sub(times[0]); n != tt.attempts || took != tt.took || sent != tt.sent || e.Dropped() != tt.dropped {
				t.Errorf("%s: %d attempts in %v, %d sent, %d dropped; want %d in %v, %d, %d",
					tt.name, n, took, sent, e.Dropped(), tt.attempts, tt.took, tt.sent, tt.dropped)
			}
		})
	}
}

// TestReportNeverBlocks: a collector that hangs fills the queue, and what exceeds it is counted.
func TestReportNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		collector := &answers{list: []answer{{status: 503}, {status: 200}}}
		e, err := New(Config{Zipkin: "http://zipkin/", Client: &http.Client{Transport: collector}, QueueMax: 10})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 25 {
			e.Report(span(i))
		}
		if e.Dropped() != 15 {
			t.Errorf("%d dropped, want 15", e.Dropped())
		}
		stop := run(t, e)
		synctest.Wait()
		stop() // sends, is refused, waits and sends again
		if _, sent := collector.seen(); sent != 10 || e.Dropped() != 15 {
			t.Errorf("%d sent, %d dropped", sent, e.Dropped())
		}
	})
}

func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		collector := &answers{list: []answer{{status: 200}}}
		e, _ := New(Config{Zipkin: "http://zipkin/", Client: &http.Client{Transport: collector}, QueueMax: 1000})
		stop := run(t, e)
		for i := range 3*batchMax + 1 {
			e.Report(span(i))
		}
		synctest.Wait()
		if times, sent := collector.seen(); len(times) != 3 || sent != 3*batchMax {
			t.Errorf("%d requests with %d spans at once", len(times), sent)
		}
		<-time.After(flushAfterDefault)
		synctest.Wait()
		if times, sent := collector.seen(); len(times) != 4 || sent != 3*batchMax+1 {
			t.Errorf("%d requests with %d spans later", len(times), sent)
		}
		stop()
		if times, _ := collector.seen(); len(times) != 4 {
			t.Error("an empty batch was sent")
		}
	})
}

func TestPartialSuccessAndLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body, err := proto.Marshal(&collectorpb.ExportTraceServiceResponse{
			PartialSuccess: &collectorpb.ExportTracePartialSuccess{RejectedSpans: 1, ErrorMessage: "too old"},
		})
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		collector := &answers{list: []answer{{status: 200, body: body}, {status: 400}, {status: 400}, {status: 200, body: []byte("not protobuf")}}}
		e, _ := New(Config{OTLP: "http://otel/", Client: &http.Client{Transport: collector}, Log: slog.New(slog.NewTextHandler(&log, nil))})
		stop := run(t, e)
		for range 4 {
			e.Report(span(0))
			<-time.After(flushAfterDefault)
			synctest.Wait()
		}
		stop()
		if e.Dropped() != 3 {
			t.Errorf("%d dropped, want the one rejected and the two refused", e.Dropped())
		}
		for text, want := range map[string]int{"level=WARN": 1, `message="too old"`: 1, "level=ERROR": 1, "spans are sent again": 1} {
			if got := strings.Count(log.String(), text); got != want {
				t.Errorf("%q is in the log %d times, want %d:\n%s", text, got, want, log.String())
			}
		}
	})
}

func TestReportAllocations(t *testing.T) {
	e, _ := New(Config{Zipkin: "http://zipkin/"})
	s := span(0)
	if n := testing.AllocsPerRun(1000, func() { e.Report(s) }); n != 0 { // the queue takes 256, then drops
		t.Errorf("Report allocates %v times, want 0", n)
	}
}

func TestMetricIsDocumented(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(readme, []byte(MetricDropped)) {
		t.Errorf("README.md does not mention %s", MetricDropped)
	}
}

// hung is a collector that takes requests and never answers.
type hung struct{}

func (hung) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// TestRunEndsBesideAHungCollector: stopping waits for one request's time and no longer.
func TestRunEndsBesideAHungCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := New(Config{Zipkin: "http://zipkin/", Client: &http.Client{Transport: hung{}}, Timeout: 3 * time.Second, QueueMax: 500})
		stop := run(t, e)
		for i := range 200 {
			e.Report(span(i))
		}
		synctest.Wait()
		start := time.Now()
		stop()
		if took := time.Since(start); took > 3*time.Second || e.Dropped() != 200 {
			t.Errorf("Run ended after %v with %d dropped", took, e.Dropped())
		}
	})
}
