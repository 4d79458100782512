package telemetry

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const reasonsDoc = "../docs/reasons.md"

func TestReasonWords(t *testing.T) {
	word := regexp.MustCompile(`^[a-z][a-z0-9_]*[a-z0-9]$`)
	seen := map[string]Reason{}
	for _, r := range Reasons() {
		if !word.MatchString(r.String()) {
			t.Errorf("reason %d: word %q is not snake case", r, r)
		}
		if other, dup := seen[r.String()]; dup {
			t.Errorf("reasons %d and %d are both called %q", r, other, r)
		}
		seen[r.String()] = r
		if got, ok := ParseReason(r.String()); !ok || got != r {
			t.Errorf("ParseReason(%q) = %v, %v", r, got, ok)
		}
		if !strings.HasSuffix(r.Doc(), ".") || !strings.HasSuffix(r.Hint(), ".") {
			t.Errorf("%s: doc and hint must be sentences: %q, %q", r, r.Doc(), r.Hint())
		}
		if r.Details() == "" || strings.ContainsAny(r.Details(), " \t\n\"") {
			t.Errorf("%s: details %q would break a log line's columns", r, r.Details())
		}
		if s := r.Status(); s != 0 && (s < 200 || s > 599) {
			t.Errorf("%s: status %d", r, s)
		}
	}
	if _, ok := ParseReason("no such reason"); ok {
		t.Error("an unknown word was found")
	}
	if got := Reason(255).String(); got != "internal_error" {
		t.Errorf("a number outside of the list is called %q", got)
	}
}

func TestReasonIsEnvoys(t *testing.T) {
	tests := []struct {
		reason  Reason
		flags   string
		details string
		status  int
		grpc    int
	}{
		{None, "-", "via_upstream", 0, -1},
		{NoRoute, "NR", "route_not_found", 404, 12},
		{NoCluster, "NC", "cluster_not_found", 503, 14},
		{NoHealthyEndpoint, "UH", "no_healthy_upstream", 503, 14},
		{PendingOverflow, "UO", "upstream_reset_before_response_started{overflow}", 503, 14},
		{ConnectRefused, "UF", "upstream_reset_before_response_started{remote_connection_failure}", 503, 14},
		{ConnectTimeout, "UF", "upstream_reset_before_response_started{connection_timeout}", 503, 14},
		{UpstreamReset, "UR", "upstream_reset_before_response_started{remote_reset}", 503, 14},
		{UpstreamClosed, "UC", "upstream_reset_before_response_started{connection_termination}", 503, 14},
		{UpstreamProtocolError, "UPE", "upstream_reset_before_response_started{protocol_error}", 502, 14},
		{RequestTimeout, "UT", "response_timeout", 504, 14},
		{PerTryTimeout, "UT", "upstream_per_try_timeout", 504, 14},
		{RetriesExhausted, "URX", "via_upstream", 0, -1},
		{FaultAbort, "FI", "fault_filter_abort", 503, 14},
		{FaultDelay, "DI", "via_upstream", 0, -1},
		{DeniedByPolicy, "-", "rbac_access_denied_matched_policy[none]", 403, 7},
		{NotAllowed, "-", "rbac_access_denied_matched_policy[none]", 403, 7},
		{TokenInvalid, "-", "jwt_authn_access_denied", 401, 16},
		{ExternalDenied, "UAEX", "ext_authz_denied", 403, 7},
		{RateLimited, "RL", "local_rate_limited", 429, 14},
		{RateLimitUnavailable, "RLSE", "rate_limiter_error", 500, 2},
		{DownstreamClosed, "DC", "downstream_remote_disconnect", 0, -1},
		{DownstreamProtocolError, "DPE", "http1.codec_error", 400, 13},
		{IdleTimeout, "SI", "stream_idle_timeout", 408, 2},
		{ConnectionDurationLimit, "DT", "duration_timeout", 0, -1},
		{StreamDurationLimit, "UMSDR", "upstream_max_stream_duration_reached", 504, 14},
		{HeaderInvalid, "IH", "request_headers_failed_strict_check", 400, 13},
		{ConfigMissing, "NFCF", "route_configuration_not_found", 503, 14},
		{DNSFailure, "DF", "dns_resolution_failure", 503, 14},
		{Overload, "OM", "overload", 503, 14},
	}
	for _, tt := range tests {
		if r := tt.reason; r.Flags().String() != tt.flags || r.Details() != tt.details || r.Status() != tt.status || r.GRPCStatus().Code() != tt.grpc {
			t.Errorf("%s: got %s %s %d %d, want %s %s %d %d", r, r.Flags(), r.Details(), r.Status(), r.GRPCStatus().Code(),
				tt.flags, tt.details, tt.status, tt.grpc)
		}
	}
}

func TestAppendDetails(t *testing.T) {
	tests := []struct {
		name       string
		reason     Reason
		particular string
		want       string
	}{
		{"nothing to add", NotAllowed, "", "rbac_access_denied_matched_policy[none]"},
		{"policy", DeniedByPolicy, "ns[default]-policy[no-get]-rule[0]", "rbac_access_denied_matched_policy[ns[default]-policy[no-get]-rule[0]]"},
		{"reset cause", ConnectRefused, "delayed connect error: Connection refused", "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"},
		{"plain", TokenInvalid, "Jwt is expired", "jwt_authn_access_denied{Jwt_is_expired}"},
		{"hostile", TokenInvalid, "a\r\n\"b\x00\xff", "jwt_authn_access_denied{a__\"b__}"},
	}
	for _, tt := range tests {
		if got := string(tt.reason.AppendDetails([]byte(">"), tt.particular)); got != ">"+tt.want {
			t.Errorf("%s: got %s, want >%s", tt.name, got, tt.want)
		}
	}
	if got := DeniedByPolicy.AppendDetails(nil, strings.Repeat("x", 10_000)); len(got) != detailsMaxBytes || got[len(got)-1] != ']' {
		t.Errorf("a long particular gave %d bytes ending in %q", len(got), got[len(got)-1])
	}
	buf := make([]byte, 0, 512)
	if n := testing.AllocsPerRun(100, func() { _ = DeniedByPolicy.AppendDetails(buf, "ns[default]-policy[p]-rule[0]") }); n != 0 {
		t.Errorf("AppendDetails allocates %v times, want 0", n)
	}
}

// TestReasonsConstantsAreInTheTable catches a constant that was added without a row.
func TestReasonsConstantsAreInTheTable(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var documented int
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if ok && spec.Names[0].IsExported() {
			if spec.Doc == nil || !strings.HasPrefix(spec.Doc.Text(), spec.Names[0].Name+": ") {
				t.Errorf("constant %s has no comment of the form %q", spec.Names[0].Name, spec.Names[0].Name+": …")
			}
			documented++
		}
		return true
	})
	if documented != int(reasonCount) {
		t.Errorf("reason.go declares %d constants, the list has %d", documented, reasonCount)
	}
	for i := range reasons {
		if reasons[i].name == "" {
			t.Errorf("reason %d has no row in reason_table.go", i)
		}
	}
}

// TestReasonsAreDocumented holds docs/reasons.md to the table; UPDATE=1 rewrites it.
func TestReasonsAreDocumented(t *testing.T) {
	want := renderReasons()
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(reasonsDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(reasonsDoc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s differs from the table in reason_table.go (UPDATE=1 rewrites it):\n%s", reasonsDoc, diff)
	}
}

func renderReasons() string {
	var b strings.Builder
	b.WriteString(`# Reasons

Why a request or a connection was refused, failed, or was answered by the proxy itself. The list is closed: the same
word stands in the access log (` + "`%LATEEN_REASON%`" + `), in the response header and in ` + "`lateen explain`" + `. Flags and details are those
that Envoy logs in the same case, so that dashboards made for Istio go on working. Status is the HTTP status that the proxy
answers with unless configuration names another; "-" means that the upstream's or the route's own status is sent, or none
because the connection is closed. gRPC is the status code that a gRPC client sees.

| Reason | Flags | Details | Status | gRPC | What happened | What to do next |
| --- | --- | --- | --- | --- | --- | --- |
`)
	for _, r := range Reasons() {
		status, grpc := "-", "-"
		if r.Status() != 0 {
			status, grpc = fmt.Sprint(r.Status()), fmt.Sprintf("%d %s", r.GRPCStatus().Code(), r.GRPCStatus().Name())
		}
		fmt.Fprintf(&b, "| `%s` | %s | `%s` | %s | %s | %s | %s |\n",
			r, r.Flags(), strings.ReplaceAll(r.Details(), "|", `\|`), status, grpc, r.Doc(), r.Hint())
	}
	return b.String()
}
