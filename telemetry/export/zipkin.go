package export

import (
	"encoding/json"
	"maps"
	"net/netip"

	"github.com/lateen-mesh/lateen/telemetry/trace"
)

// zipkin writes Zipkin's JSON, version 2 (openzipkin/zipkin-api, zipkin2-api.yaml).
type zipkin struct {
	service string
	tags    map[string]string
}

func newZipkin(cfg Config) zipkin { return zipkin{service: cfg.Service, tags: cfg.Tags} }

type zipkinSpan struct {
	TraceID  string            `json:"traceId"`
	ID       string            `json:"id"`
	ParentID string            `json:"parentId,omitempty"`
	Kind     string            `json:"kind"`
	Name     string            `json:"name"`
	Start    int64             `json:"timestamp"` // microseconds
	Duration int64             `json:"duration"`  // microseconds, at least 1
	Local    zipkinEndpoint    `json:"localEndpoint"`
	Remote   *zipkinEndpoint   `json:"remoteEndpoint,omitempty"`
	Tags     map[string]string `json:"tags"`
}

type zipkinEndpoint struct {
	Service string `json:"serviceName,omitempty"`
	IPv4    string `json:"ipv4,omitempty"`
	IPv6    string `json:"ipv6,omitempty"`
	Port    uint16 `json:"port,omitempty"`
}

func (z zipkin) contentType() string { return "application/json" }

func (z zipkin) rejected([]byte) (int, string) { return 0, "" }

func (z zipkin) encode(spans []trace.Span) ([]byte, error) {
	out := make([]zipkinSpan, len(spans))
	for i := range spans {
		out[i] = z.span(&spans[i])
	}
	return json.Marshal(out)
}

func (z zipkin) span(s *trace.Span) zipkinSpan {
	out := zipkinSpan{
		TraceID: s.Trace.String(), ID: s.ID.String(), Kind: "SERVER", Name: s.Name,
		Start: s.Start.UnixMicro(), Duration: max(1, s.Duration.Microseconds()),
		Local: zipkinEndpoint{Service: z.service}, Tags: map[string]string{},
	}
	if s.Parent != (trace.SpanID{}) {
		out.ParentID = s.Parent.String()
	}
	if s.Kind == trace.Client {
		out.Kind = "CLIENT"
	}
	maps.Copy(out.Tags, z.tags)
	for key, value := range s.Tags {
		out.Tags[key] = value
		if key == trace.TagPeerAddress {
			out.Remote = remote(value)
		}
	}
	return out
}

func remote(address string) *zipkinEndpoint {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil
	}
	if a.Addr().Unmap().Is4() {
		return &zipkinEndpoint{IPv4: a.Addr().Unmap().String(), Port: a.Port()}
	}
	return &zipkinEndpoint{IPv6: a.Addr().String(), Port: a.Port()}
}
