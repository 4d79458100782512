package export

import (
	"maps"
	"slices"
	"strings"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/lateen-mesh/lateen/telemetry/trace"
)

// scopeName is the instrumentation scope of our spans.
const scopeName = "lateen"

// otlp writes OTLP/HTTP in binary protobuf (OTLP specification, OTLP/HTTP).
type otlp struct {
	resource *resourcepb.Resource
	tags     []*commonpb.KeyValue
}

func newOTLP(cfg Config) otlp {
	attributes := map[string]string{"service.name": cfg.Service}
	maps.Copy(attributes, cfg.Resource)
	return otlp{resource: &resourcepb.Resource{Attributes: keyValues(attributes)}, tags: keyValues(cfg.Tags)}
}

func (o otlp) contentType() string { return "application/x-protobuf" }

func (o otlp) rejected(response []byte) (int, string) {
	var answer collectorpb.ExportTraceServiceResponse
	if proto.Unmarshal(response, &answer) != nil {
		return 0, "" // the status said that all is well
	}
	partial := answer.GetPartialSuccess()
	return int(max(0, partial.GetRejectedSpans())), partial.GetErrorMessage()
}

func (o otlp) encode(spans []trace.Span) ([]byte, error) {
	out := make([]*tracepb.Span, len(spans))
	for i := range spans {
		out[i] = o.span(&spans[i])
	}
	return proto.Marshal(&collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   o.resource,
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: scopeName}, Spans: out}},
	}}})
}

func (o otlp) span(s *trace.Span) *tracepb.Span {
	out := &tracepb.Span{
		TraceId: s.Trace[:], SpanId: s.ID[:], Name: valid(s.Name), Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: uint64(s.Start.UnixNano()), EndTimeUnixNano: uint64(s.Start.Add(s.Duration).UnixNano()),
		Attributes: slices.Clone(o.tags),
	}
	if s.Parent != (trace.SpanID{}) {
		out.ParentSpanId = s.Parent[:]
	}
	if s.Kind == trace.Client {
		out.Kind = tracepb.Span_SPAN_KIND_CLIENT
	}
	if s.Failed {
		out.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}
	}
	for key, value := range s.Tags {
		out.Attributes = append(out.Attributes, keyValue(key, value))
	}
	return out
}

func keyValues(m map[string]string) []*commonpb.KeyValue {
	var out []*commonpb.KeyValue
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, keyValue(key, m[key]))
	}
	return out
}

func keyValue(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: valid(key), Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: valid(value)}}}
}

// valid keeps one bad string from making protobuf refuse a whole batch.
func valid(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
