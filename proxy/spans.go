package proxy

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
	"github.com/lateen-mesh/lateen/telemetry/export"
	"github.com/lateen-mesh/lateen/telemetry/trace"
)

// spans are the exporters in use, one for each place that the plan names.
type spans struct {
	logger *slog.Logger
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	tags   map[string]string
	name   string

	mu        sync.Mutex
	ctx       context.Context // the life of exporters that are made while the proxy runs
	group     *sync.WaitGroup
	exporters map[string]*export.Exporter
}

func newSpans(logger *slog.Logger) *spans { return &spans{logger: logger} }

func (s *spans) start(ctx context.Context, group *sync.WaitGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx, s.group, s.exporters = ctx, group, map[string]*export.Exporter{}
}

// to returns the exporter for a tracing order, started at the first call; nil if there can be none.
func (s *spans) to(t *plan.Tracing) *export.Exporter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.exporters[t.Endpoint]; ok {
		return e
	}
	cfg := export.Config{
		Service: s.name, Tags: s.tags, Log: s.logger,
		Client: &http.Client{Transport: &http.Transport{DialContext: s.dial, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute}},
	}
	if t.Provider == plan.TracingOTLP {
		cfg.OTLP = strings.TrimSuffix(t.Endpoint, "/") + "/v1/traces"
	} else {
		cfg.Zipkin = t.Endpoint
	}
	e, err := export.New(cfg)
	if err != nil {
		s.logger.Error("spans are not sent", "endpoint", t.Endpoint, "cause", err)
		s.exporters[t.Endpoint] = nil
		return nil
	}
	s.exporters[t.Endpoint] = e
	s.group.Go(func() {
		if err := e.Run(s.ctx); err != nil {
			s.logger.Error("spans are not sent any more", "endpoint", t.Endpoint, "cause", err)
		}
	})
	return e
}

// dropped counts the spans that found no room.
func (s *spans) dropped() (n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.exporters {
		if e != nil {
			n += e.Dropped()
		}
	}
	return n
}

// trace gives the request its place in a trace, if spans are made; without, what came is passed on untouched.
func (x *exchange) trace(h *stream.Head) {
	t := x.d.s.listener.Plan.Telemetry.Tracing
	if t == nil {
		return
	}
	p := &x.w.propagator
	p.Formats = trace.FormatB3
	if t.Provider == plan.TracingOTLP {
		p.Formats = trace.FormatW3C
	}
	p.Sampler = trace.NewSampler(t.Sampling)
	x.span = p.Begin(h)
	p.Inject(h, &x.span)
	x.span.State = nil // it pointed into the head
	x.traced = true
}

// report sends the exchange's span, if its trace is recorded.
func (x *exchange) report(took time.Duration) {
	if !x.traced || !x.span.Decision.Recorded() {
		return
	}
	t := x.d.s.listener.Plan.Telemetry.Tracing
	e := x.w.p.spans.to(t)
	if e == nil {
		return
	}
	s, r := &x.w.span, &x.rec
	*s = trace.Span{Start: x.start, Duration: took, Kind: trace.Client}
	s.Reset(&x.span)
	s.Start, s.Duration = x.start, took
	s.Kind = trace.Client
	peer := r.target.addr
	if x.d.s.listener.Plan.Direction == plan.Inbound {
		s.Kind, peer = trace.Server, x.d.s.src()
	}
	s.Name = r.operation
	if x.rule != nil && s.Name == "" {
		s.Name = x.rule.Plan.Operation
	}
	id, _ := x.req.Get("x-request-id")
	agent, _ := x.req.Get("user-agent")
	http := trace.HTTP{
		Method: x.req.Method(), Scheme: []byte("http"), Authority: x.req.Authority(), Path: x.req.Path(), UserAgent: agent, RequestID: id,
		Protocol: x.d.protocol(), Status: r.status, Flags: r.flags, Reason: r.reason, BytesReceived: uint64(r.received), BytesSent: uint64(r.sent),
		Peer: peer,
	}
	if x.grpc && r.grpcStatus >= 0 {
		http.GRPC = telemetry.GRPCCode(r.grpcStatus)
	}
	if x.cluster != nil {
		http.UpstreamCluster = x.cluster.Plan().Name
	}
	s.SetHTTP(&http)
	for name, value := range t.Tags {
		s.SetString(name, value)
	}
	for name, header := range t.HeaderTag {
		if v, ok := x.req.Get(header); ok {
			s.SetBytes(name, v)
		}
	}
	e.Report(s)
}
