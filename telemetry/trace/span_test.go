package trace

import (
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/telemetry"
)

func tags(s *Span) map[string]string {
	return maps.Collect(s.Tags)
}

func TestSpanTags(t *testing.T) {
	var s Span
	c := ids(t, traceHex, parentHex)
	s.Reset(&c)
	s.SetHTTP(&HTTP{
		Method: []byte("POST"), Scheme: []byte("http"), Authority: []byte("reviews:9080"), Path: []byte("/pkg.Reviews/Get"),
		UserAgent: []byte("grpc-go/1.85"), RequestID: []byte("cc21d9b0"), Protocol: "HTTP/2", Status: 200, GRPC: telemetry.GRPCCode(14),
		Flags: telemetry.FlagUF | telemetry.FlagURX, Reason: telemetry.ConnectRefused, BytesReceived: 5, BytesSent: 1 << 63,
		UpstreamCluster: "outbound|9080||reviews.default.svc.cluster.local", Peer: netip.MustParseAddrPort("[2001:db8::7]:51230"),
	})
	want := map[string]string{
		"component": "proxy", "http.method": "POST", "http.url": "http://reviews:9080/pkg.Reviews/Get", "http.protocol": "HTTP/2",
		"http.status_code": "200", "request_size": "5", "response_size": "9223372036854775808", "response_flags": "UF,URX",
		"upstream_cluster":      "outbound|9080||reviews.default.svc.cluster.local",
		"upstream_cluster.name": "outbound|9080||reviews.default.svc.cluster.local", "user_agent": "grpc-go/1.85", "guid:x-request-id": "cc21d9b0",
		"peer.address": "[2001:db8::7]:51230", "grpc.path": "/pkg.Reviews/Get", "grpc.status_code": "14", "lateen.reason": "connect_refused", "error": "true",
	}
	if diff := cmp.Diff(want, tags(&s)); diff != "" || !s.Failed {
		t.Errorf("failed %v\n%s", s.Failed, diff)
	}
	if s.Trace != c.Trace || s.ID != c.Span || s.Parent != c.Parent {
		t.Errorf("the span is at %s %s %s", s.Trace, s.ID, s.Parent)
	}

	s.Reset(&c)
	s.SetHTTP(&HTTP{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/"), Status: 404})
	want = map[string]string{
		"component": "proxy", "http.method": "GET", "http.url": "http://a/", "http.protocol": "-", "http.status_code": "404",
		"request_size": "0", "response_size": "0", "response_flags": "-", "upstream_cluster": "", "upstream_cluster.name": "",
	}
	if diff := cmp.Diff(want, tags(&s)); diff != "" || s.Failed {
		t.Errorf("after Reset: failed %v\n%s", s.Failed, diff)
	}
	s.Reset(&c)
	s.SetHTTP(&HTTP{})
	if !s.Failed {
		t.Error("a request without an answer did not fail")
	}
}

func TestSpanIsBounded(t *testing.T) {
	var s Span
	huge := []byte(strings.Repeat("é", 1000))
	s.SetHTTP(&HTTP{Method: huge, Scheme: huge, Authority: huge, Path: huge, UserAgent: huge, RequestID: huge, GRPC: telemetry.GRPCCode(0)})
	for range 100 {
		s.SetBytes("more", huge)
		s.SetUint("number", 1<<63)
		s.SetString("x", "y")
	}
	n := 0
	for key, value := range s.Tags {
		if !utf8.ValidString(value) || len(value) > 4*tagMaxBytes {
			t.Errorf("%s is %d bytes, valid %v", key, len(value), utf8.ValidString(value))
		}
		n++
	}
	if n > tagsMax || s.used > textMaxBytes {
		t.Errorf("%d tags, %d bytes", n, s.used)
	}
	for range s.Tags {
		break // stops early without a panic
	}
}

func TestSpanAllocations(t *testing.T) {
	var s Span
	c := ids(t, traceHex, "")
	h := HTTP{
		Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/x"), UserAgent: []byte("curl"), Status: 503,
		Flags: telemetry.FlagUH, Reason: telemetry.NoHealthyEndpoint, Peer: netip.MustParseAddrPort("10.0.0.1:1"), UpstreamCluster: "c",
	}
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		s.Reset(&c)
		s.Name, s.Start, s.Duration = "reviews:9080/*", now, time.Millisecond
		s.SetHTTP(&h)
	}); n != 0 {
		t.Errorf("a span allocates %v times, want 0", n)
	}
}

func TestOperation(t *testing.T) {
	for want, path := range map[string]string{"reviews.default.svc.cluster.local:9080/*": "", "reviews.default.svc.cluster.local:9080/api/*": "/api/*"} {
		if got := Operation("reviews.default.svc.cluster.local", 9080, path); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
