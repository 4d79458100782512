package telemetry

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var productPage = Peer{
	Workload: "productpage-v1", Namespace: "default", Principal: "spiffe://cluster.local/ns/default/sa/bookinfo-productpage",
	App: "productpage", Version: "v1", CanonicalService: "productpage", CanonicalRevision: "v1", Cluster: "Kubernetes",
}

// TestRequestLabels holds the names to Istio's, value by value.
func TestRequestLabels(t *testing.T) {
	key := RequestKey{
		Source: productPage.Ref(), Service: Service{"reviews.default.svc.cluster.local", "reviews", "default"}.Ref(),
		Flags: FlagUF | FlagURX, Code: 503, GRPC: GRPCCode(14), Reporter: ReporterDestination, Protocol: ProtocolGRPC, Security: SecurityMutualTLS,
	}
	want := map[string]string{
		"reporter":        "destination",
		"source_workload": "productpage-v1", "source_workload_namespace": "default",
		"source_principal": "spiffe://cluster.local/ns/default/sa/bookinfo-productpage",
		"source_app":       "productpage", "source_version": "v1", "source_cluster": "Kubernetes",
		"source_canonical_service": "productpage", "source_canonical_revision": "v1",
		"destination_workload": "unknown", "destination_workload_namespace": "unknown", "destination_principal": "unknown",
		"destination_app": "unknown", "destination_version": "unknown", "destination_cluster": "unknown",
		"destination_canonical_service": "unknown", "destination_canonical_revision": "latest",
		"destination_service": "reviews.default.svc.cluster.local", "destination_service_name": "reviews", "destination_service_namespace": "default",
		"request_protocol": "grpc", "response_code": "503", "grpc_response_status": "14", "response_flags": "UF,URX",
		"connection_security_policy": "mutual_tls",
	}
	if diff := cmp.Diff(want, zip(t, RequestLabels, key.AppendValues(nil))); diff != "" {
		t.Error(diff)
	}

	tcp := TCPKey{Destination: productPage.Ref(), Flags: FlagUH, Security: SecurityNone}
	got := zip(t, TCPLabels, tcp.AppendValues(nil))
	for name, value := range map[string]string{
		"reporter": "source", "destination_workload": "productpage-v1", "source_workload": "unknown", "request_protocol": "tcp",
		"response_flags": "UH", "connection_security_policy": "none", "destination_service": "unknown",
	} {
		if got[name] != value {
			t.Errorf("tcp label %s is %q, want %q", name, got[name], value)
		}
	}
	for _, name := range []string{"response_code", "grpc_response_status"} {
		if _, ok := got[name]; ok {
			t.Errorf("TCP metrics must not have the label %s", name)
		}
	}
	if n := len(slices.Collect(maps.Keys(want))); n != len(RequestLabels) {
		t.Errorf("%d request labels, want %d", len(RequestLabels), n)
	}
}

func zip(t *testing.T, names, values []string) map[string]string {
	t.Helper()
	if len(names) != len(values) {
		t.Fatalf("%d names, %d values", len(names), len(values))
	}
	m := map[string]string{}
	for i := range names {
		m[names[i]] = values[i]
	}
	return m
}

// TestRefs: equal labels must be equal keys, or a scrape would show one series twice.
func TestRefs(t *testing.T) {
	copied := productPage
	copied.Workload = strings.Clone(copied.Workload)
	if copied.Ref() != productPage.Ref() {
		t.Error("two equal peers have different refs")
	}
	other := productPage
	other.Version = "v2"
	if other.Ref() == productPage.Ref() {
		t.Error("two different peers have the same ref")
	}
	for _, p := range []Peer{{}, {Workload: Unknown, CanonicalRevision: "latest"}, {App: "\xff"}, {App: "unkn\xffown"}} {
		if p.Ref() != (PeerRef{}) {
			t.Errorf("%+v is not the unknown peer", p)
		}
	}
	if got := (PeerRef{}).Peer(); got != (Peer{}) {
		t.Errorf("the zero ref is %+v", got)
	}
	if got := productPage.Ref().Peer(); got != productPage {
		t.Errorf("got %+v back", got)
	}
	s := Service{Host: "a.b", Name: Unknown}
	if got := s.Ref().Service(); got != (Service{Host: "a.b"}) {
		t.Errorf("got %+v back", got)
	}
	if (Service{}).Ref() != (ServiceRef{}) || (ServiceRef{}).Service() != (Service{}) {
		t.Error("the unknown service is not the zero ref")
	}
	hostile := Peer{Workload: strings.Repeat("é", 5000)}.Ref().Peer().Workload
	if len(hostile) > labelMaxBytes || !utf8.ValidString(hostile) {
		t.Errorf("a long name became %d bytes, valid %v", len(hostile), utf8.ValidString(hostile))
	}
}

func TestGRPCStatus(t *testing.T) {
	for http, want := range map[int]string{
		400: "Internal", 401: "Unauthenticated", 403: "PermissionDenied", 404: "Unimplemented", 429: "Unavailable", 502: "Unavailable",
		503: "Unavailable", 504: "Unavailable", 500: "Unknown", 200: "Unknown", 413: "Unknown",
	} {
		if got := GRPCFromHTTP(http).Name(); got != want {
			t.Errorf("HTTP %d is gRPC %s, want %s", http, got, want)
		}
	}
	for code, want := range map[int]string{0: "0", 16: "16", 17: "2", -1: "2", 1 << 20: "2"} {
		if got := GRPCCode(code).String(); got != want {
			t.Errorf("code %d is labelled %q, want %q", code, got, want)
		}
	}
	if NoGRPCStatus.String() != "" || NoGRPCStatus.Name() != "" || NoGRPCStatus.Code() != -1 {
		t.Error("no status is not empty")
	}
	if got := (RequestKey{}); got.Code != 0 || got.GRPC != NoGRPCStatus || got.Protocol != ProtocolHTTP {
		t.Error("the zero key is not a plain HTTP request without an answer")
	}
}
