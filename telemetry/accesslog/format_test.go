package accesslog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/telemetry"
)

type headers map[string]string

func (h headers) Get(name string) ([]byte, bool) {
	v, ok := h[name]
	return []byte(v), ok
}

// keptHeaders gives slices out without making them, as the engine does.
type keptHeaders map[string][]byte

func (h keptHeaders) Get(name string) ([]byte, bool) {
	v, ok := h[name]
	return v, ok
}

// entry is a request from productpage to reviews.
func entry() *Entry {
	return &Entry{
		Start: time.Date(2026, 11, 22, 9, 8, 7, 65_432_100, time.UTC), Duration: 12_345 * time.Microsecond,
		RequestDuration: time.Millisecond, RequestTxDuration: 2 * time.Millisecond, ResponseDuration: 10 * time.Millisecond,
		Protocol: "HTTP/1.1", UpstreamProtocol: "HTTP/2",
		Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("reviews:9080"), Path: []byte("/reviews/0?user=jason&x=1"),
		Request:  headers{"user-agent": "curl/8.7.1", "x-request-id": "cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2", "x-forwarded-for": "10.0.35.28"},
		Response: headers{"x-envoy-upstream-service-time": "11"}, Trailers: headers{"grpc-message": "done"},
		Status: 200, BytesReceived: 5, BytesSent: 295, Attempts: 1, ConnectionID: 7,
		RequestHeaderBytes: 301, DownstreamWireSent: 412,
		UpstreamHost: netip.MustParseAddrPort("10.244.1.9:9080"), UpstreamLocal: netip.MustParseAddrPort("10.244.1.8:51234"),
		DownstreamLocal: netip.MustParseAddrPort("10.96.7.7:9080"), DownstreamRemote: netip.MustParseAddrPort("[2001:db8::7]:51230"),
		UpstreamCluster: "outbound|9080||reviews.default.svc.cluster.local", Route: "default",
		ServerName: "outbound_.9080_._.reviews.default.svc.cluster.local",
		TraceID:    [16]byte{0x0a, 15: 1}, SpanID: [8]byte{7: 2}, LogType: "DownstreamEnd",
	}
}

// refused is a request that found no endpoint.
func refused() *Entry {
	e := entry()
	e.Status, e.Reason, e.Flags = 503, telemetry.NoHealthyEndpoint, telemetry.FlagUH
	e.UpstreamHost, e.UpstreamLocal, e.ServerName, e.Response = netip.AddrPort{}, netip.AddrPort{}, "", nil
	e.ResponseDuration = 0
	return e
}

func compile(t testing.TB, cfg Config) *Format {
	t.Helper()
	f, err := Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestDefaultText(t *testing.T) {
	f := compile(t, Config{})
	tests := []struct {
		name  string
		entry *Entry
		want  string
	}{
		{"answered", entry(), `[2026-11-22T09:08:07.065Z] "GET /reviews/0?user=jason&x=1 HTTP/1.1" 200 - via_upstream - "-" 5 295 12 11 ` +
			`"10.0.35.28" "curl/8.7.1" "cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2" "reviews:9080" "10.244.1.9:9080" ` +
			`outbound|9080||reviews.default.svc.cluster.local 10.244.1.8:51234 10.96.7.7:9080 [2001:db8::7]:51230 ` +
			`outbound_.9080_._.reviews.default.svc.cluster.local default`},
		{"refused", refused(), `[2026-11-22T09:08:07.065Z] "GET /reviews/0?user=jason&x=1 HTTP/1.1" 503 UH no_healthy_upstream - "-" 5 295 12 - ` +
			`"10.0.35.28" "curl/8.7.1" "cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2" "reviews:9080" "-" ` +
			`outbound|9080||reviews.default.svc.cluster.local - 10.96.7.7:9080 [2001:db8::7]:51230 - default`},
		{"tcp", &Entry{
			Start: entry().Start, Duration: time.Second, BytesReceived: 1, BytesSent: 2, Flags: telemetry.FlagUF,
			Termination: "rbac_access_denied_matched_policy[none]", UpstreamFailure: "TLS_error: certificate is expired",
			DownstreamRemote: entry().DownstreamRemote, UpstreamCluster: "outbound|3306||mysql",
		}, `[2026-11-22T09:08:07.065Z] "- - -" 0 UF - rbac_access_denied_matched_policy[none] "TLS_error:_certificate_is_expired" 1 2 1000 - ` +
			`"-" "-" "-" "-" "-" outbound|3306||mysql - - [2001:db8::7]:51230 - -`},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want+"\n", string(f.Append(nil, tt.entry))); diff != "" {
			t.Errorf("%s:\n%s", tt.name, diff)
		}
	}
}

func TestDefaultJSON(t *testing.T) {
	f := compile(t, Config{JSON: DefaultJSON()})
	const want = `{"authority":"reviews:9080","bytes_received":5,"bytes_sent":295,"connection_termination_details":null,` +
		`"downstream_local_address":"10.96.7.7:9080","downstream_remote_address":"[2001:db8::7]:51230","duration":12,"method":"GET",` +
		`"path":"/reviews/0?user=jason&x=1","protocol":"HTTP/1.1","request_id":"cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2",` +
		`"requested_server_name":null,"response_code":503,"response_code_details":"no_healthy_upstream","response_flags":"UH",` +
		`"route_name":"default","start_time":"2026-11-22T09:08:07.065Z","upstream_cluster":"outbound|9080||reviews.default.svc.cluster.local",` +
		`"upstream_host":null,"upstream_local_address":null,"upstream_service_time":null,"upstream_transport_failure_reason":null,` +
		`"user_agent":"curl/8.7.1","x_forwarded_for":"10.0.35.28"}` + "\n"
	if diff := cmp.Diff(want, string(f.Append(nil, refused()))); diff != "" {
		t.Error(diff)
	}
}

func TestJSONLabels(t *testing.T) {
	cfg := Config{JSON: map[string]any{
		"a\"key":  "%REQ(:METHOD)% took %DURATION% ms, \"100%%\"",
		"nested":  map[string]any{"code": "%RESPONSE_CODE%", "none": "%REQ(X-NONE)%", "deep": map[string]any{}},
		"literal": "v1", "empty": "", "port": "%DOWNSTREAM_REMOTE_PORT%", "grpc": "%GRPC_STATUS_NUMBER%", "mixed": "[%REQ(X-NONE)%]",
	}}
	want := `{"a\"key":"GET took 12 ms, \"100%\"","empty":"","grpc":null,"literal":"v1","mixed":"[-]",` +
		`"nested":{"code":200,"deep":{},"none":null},"port":51230}` + "\n"
	if diff := cmp.Diff(want, string(compile(t, cfg).Append(nil, entry()))); diff != "" {
		t.Error(diff)
	}
	cfg.OmitEmpty = true
	want = `{"a\"key":"GET took 12 ms, \"100%\"","empty":"","literal":"v1","mixed":"[]","nested":{"code":200,"deep":{}},"port":51230}` + "\n"
	if diff := cmp.Diff(want, string(compile(t, cfg).Append(nil, entry()))); diff != "" {
		t.Errorf("without empty values:\n%s", diff)
	}
}

func TestOperators(t *testing.T) {
	t.Setenv("POD_NAME", "reviews v1-0")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	full := entry()
	full.UpstreamRemote, full.DownstreamDirect, full.DownstreamDirectLocal = netip.MustParseAddrPort("10.1.10.23:1"), full.DownstreamRemote, full.DownstreamLocal
	full.GRPC, full.Decider, full.Reason, full.Flags = telemetry.GRPCCode(3), "a.yaml:3 VirtualService default/reviews", telemetry.DeniedByPolicy, telemetry.FlagUF|telemetry.FlagURX
	full.Particular, full.DownstreamPeerURI = "ns[a b]-policy[c]-rule[0]", "spiffe://cluster.local/ns/default/sa/x"
	tests := map[string]string{
		"%START_TIME(%Y/%m/%dT%H:%M:%S%z %s)%":                      "2026/11/22T09:08:07+0000 1795338487",
		"%START_TIME(%s.%3f)%":                                      "1795338487.065",
		"%START_TIME(%s.%6f|%9f|%f|%1f)%":                           "1795338487.065432|065432100|065432100|0",
		"%START_TIME(%a %A %b %B %e %j %y %I%p %D %T %R %F %Z %%)%": "Sun Sunday Nov November 22 326 26 09AM 11/22/26 09:08:07 09:08 2026-11-22 UTC %",
		"%EMIT_TIME(%6f)%":                                          "077777",
		"%REQ(X-NONE?user-AGENT)%":                                  "curl/8.7.1",
		"%REQ(X-NONE?X-NO)%":                                        "-",
		"%REQ(USER-AGENT):4%":                                       "curl",
		"%REQUEST_HEADER(:scheme)%":                                 "http",
		"%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%":          "/reviews/0",
		"%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%":                     "11",
		"%TRAILER(GRPC-MESSAGE)%":                                   "done",
		"%PATH%":                                                    "/reviews/0?user=jason&x=1",
		"%PATH(NQ)%":                                                "/reviews/0",
		"%PATH(NQ:PATH):4%":                                         "/rev",
		"%PATH(WQ:ORIG)%":                                           "-",
		"%QUERY_PARAM(x)%":                                          "1",
		"%QUERY_PARAM(y)%":                                          "-",
		"%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%":                    "UF,URX UpstreamConnectionFailure,UpstreamRetryLimitExceeded",
		"%RESPONSE_CODE_DETAILS%":                                   "rbac_access_denied_matched_policy[ns[a_b]-policy[c]-rule[0]]",
		"%LATEEN_REASON% \"%LATEEN_DECIDED_BY%\"":                   `denied_by_policy "a.yaml:3 VirtualService default/reviews"`,
		"%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%": "InvalidArgument INVALID_ARGUMENT 3 3",
		"%REQUEST_DURATION% %REQUEST_TX_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%":  "1 2 10 2",
		"%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%":                                           "10.1.0.0/16",
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(32)%":                                         "2001:db8::/32",
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%":                                             "2001:db8::7",
		"%DOWNSTREAM_DIRECT_REMOTE_PORT%":                                                      "51230",
		"%REQUESTED_SERVER_NAME(SNI_ONLY)%":                                                    "outbound_.9080_._.reviews.default.svc.cluster.local",
		"%TRACE_ID% %SPAN_ID%":                                                                 "0a000000000000000000000000000001 0000000000000002",
		"%HOSTNAME%":                                                                           host,
		"\"%ENVIRONMENT(POD_NAME)%\"":                                                          `"reviews v1-0"`,
		"%ENVIRONMENT(NO_SUCH_VARIABLE)%":                                                      "-",
		"%UPSTREAM_CLUSTER%":                                                                   "outbound|9080||reviews.default.svc.cluster.local",
		"%DOWNSTREAM_PEER_URI_SAN%":                                                            "spiffe://cluster.local/ns/default/sa/x",
		"%UPSTREAM_TLS_VERSION%":                                                               "-",
		"%CONNECTION_ID% %UPSTREAM_REQUEST_ATTEMPT_COUNT%":                                     "7 1",
		"100%% %PROTOCOL%%%":                                                                   "100% HTTP/1.1%",
	}
	for format, want := range tests {
		if got := string(compile(t, Config{Text: format}).Append(nil, full)); got != want+"\n" {
			t.Errorf("%s\ngot  %swant %s", format, got, want)
		}
	}
	if got := string(compile(t, Config{Text: "%REQ(X-NONE)%|%DURATION%|%RESPONSE_FLAGS%\n", OmitEmpty: true}).Append(nil, entry())); got != "|12|-\n" {
		t.Errorf("without empty values: %q", got)
	}
	// Every operator works on an entry that knows nothing, and on one that knows much.
	for name, s := range specs {
		format := "%" + name + map[parameter]string{parameterHeader: "(a)", parameterName: "(a)"}[s.parameter] + "%"
		f := compile(t, Config{Text: format})
		for _, e := range []*Entry{{}, full} {
			if got := f.Append(nil, e); len(got) < 2 || bytes.Count(got, []byte("\n")) != 1 {
				t.Errorf("%s gives %q", format, got)
			}
		}
	}
}

func TestCompileErrors(t *testing.T) {
	tests := map[string]string{
		"ab %FOO%":                   "column 4: unknown operator FOO",
		"%CEL(request.path)%":        "column 1: operator CEL is one of Envoy's that Lateen does not fill; remove it from the format",
		"%START_TIME":                "column 1: operator START_TIME does not end in %",
		"%REQ%":                      "column 1: operator REQ needs a parameter in parentheses",
		"%REQ()%":                    "column 1: operator REQ needs a parameter in parentheses",
		"%REQ(a?)%":                  `column 1: operator REQ: a header's name is missing in "a?"`,
		"%REQ(:FOO)%":                "column 1: operator REQ: there is no pseudo-header :foo here",
		"%RESP(:path)%":              "column 1: operator RESP: there is no pseudo-header :path here",
		"%REQ(a):%":                  "column 1: operator REQ: a number is expected after the colon",
		"%REQ(a":                     "column 1: operator REQ has no closing parenthesis",
		"%DURATION(x)%":              "column 1: operator DURATION takes no parameter",
		"%DURATION:3%":               "column 1: operator DURATION takes no length",
		"50% of":                     "column 3: an operator's name is expected after %; write %% for a percent sign",
		"%START_TIME(%Q)%":           `column 1: operator START_TIME: time format "%Q" has the unknown conversion %Q`,
		"%START_TIME(%)%":            `column 1: operator START_TIME: time format "%" ends in the middle of a conversion`,
		"%GRPC_STATUS(x)%":           `column 1: operator GRPC_STATUS: unknown parameter "x"`,
		"%PATH(x)%":                  `column 1: operator PATH: unknown parameter "x"`,
		"%REQUESTED_SERVER_NAME(x)%": `column 1: operator REQUESTED_SERVER_NAME: unknown parameter "x"`,
		"%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(129)%": `column 1: operator UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT: the length of a prefix, 0 to 128, is expected, not "129"`,
		strings.Repeat("x", formatMaxBytes+1):         "the format is 16386 bytes long; at most 16384 are accepted",
	}
	for format, want := range tests {
		_, err := Compile(Config{Text: format})
		if err == nil || err.Error() != "compile access log format: "+want {
			t.Errorf("%.40q: got %v, want %s", format, err, want)
		}
	}
	deep := map[string]any{}
	for range depthMax + 2 {
		deep = map[string]any{"x": deep}
	}
	for want, labels := range map[string]map[string]any{
		`key "a": column 3: unknown operator NOPE`:                        {"a": "x %NOPE%"},
		`key "a": key "b": a format string or a map is expected, not int`: {"a": map[string]any{"b": 1}},
		"at most 256 keys in an object and objects 8 deep":                deep,
	} {
		if _, err := Compile(Config{JSON: labels}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// hostile is an entry in which every foreign byte tries to break the line.
func hostile(evil string) *Entry {
	e := entry()
	e.Method, e.Path, e.Authority = []byte(evil), []byte("/"+evil), []byte(evil)
	e.Request = headers{"user-agent": evil, "x-request-id": evil, "x-forwarded-for": evil, "x-envoy-original-path": evil}
	e.Response = headers{"x-envoy-upstream-service-time": evil}
	e.ServerName, e.UpstreamFailure, e.Termination, e.Particular, e.Route = evil, evil, evil, evil, evil
	return e
}

func evils() []string {
	all := []string{
		"\" 200 - via_upstream\n[2026-11-22T00:00:00.000Z] \"GET /forged HTTP/1.1\" 200", "a b\tc", "\x00\x01\x1b[31m\x7f", "\\\"\\", "\xff\xfe\xc3", "é世\u2028\u2029\u202e\u0085\ufeff",
		strings.Repeat("\"", 20_000), "\xed\xa0\x80", "</script>",
	}
	for c := range 256 {
		all = append(all, string([]byte{'x', byte(c), 'y'}))
	}
	return all
}

func TestTextCannotBeForged(t *testing.T) {
	f := compile(t, Config{})
	columns := len(splitColumns(string(f.Append(nil, entry()))))
	for _, evil := range evils() {
		line := string(f.Append(nil, hostile(evil)))
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Errorf("%.30q: not one line: %.200q", evil, line)
		}
		if i := strings.IndexFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 || r == utf8.RuneError }); i >= 0 {
			t.Errorf("%.30q: control or invalid byte at %d: %.200q", evil, i, line[i:])
		}
		if got := len(splitColumns(line)); got != columns {
			t.Errorf("%.30q: %d columns, want %d: %.300s", evil, got, columns, line)
		}
	}
}

// TestPlain compares the fast look at eight bytes with the table.
func TestPlain(t *testing.T) {
	for x, floor := range map[escape]uint64{escapeBare: '!', escapeQuoted: ' ', escapeJSON: ' '} {
		for at := range 8 {
			for c := range 256 {
				p := []byte("abcdefgh")
				p[at] = byte(c)
				p[(at+3)%8] = '~'
				if got, want := plain(binary.LittleEndian.Uint64(p), floor), harmless[x][c]; got != want {
					t.Errorf("%d: %q: %v, want %v", x, p, got, want)
				}
			}
		}
	}
}

// splitColumns splits at spaces outside of double quotes.
func splitColumns(line string) []string {
	var columns []string
	var b strings.Builder
	quoted, escaped := false, false
	for _, r := range strings.TrimSuffix(line, "\n") {
		switch {
		case escaped:
			escaped = false
		case r == '\\':
			escaped = true
		case r == '"':
			quoted = !quoted
		case r == ' ' && !quoted:
			columns = append(columns, b.String())
			b.Reset()
			continue
		}
		b.WriteRune(r)
	}
	return append(columns, b.String())
}

func TestJSONIsValid(t *testing.T) {
	labels := DefaultJSON()
	labels["mixed"] = "%REQ(:METHOD)% \x01\" %REQ(USER-AGENT):5% %TRAILER(X)%"
	asText := Config{Text: `{"path":"%REQ(:PATH)%","agent":"%REQ(USER-AGENT)%","code":%RESPONSE_CODE%}`}
	for _, cfg := range []Config{{JSON: labels}, {JSON: labels, OmitEmpty: true}, asText} {
		f := compile(t, cfg)
		for _, evil := range evils() {
			line := f.Append(nil, hostile(evil))
			if bytes.Count(line, []byte("\n")) != 1 || !utf8.Valid(line) {
				t.Errorf("%.30q: not one line of UTF-8: %.200q", evil, line)
			}
			var got map[string]any
			if err := json.Unmarshal(line, &got); err != nil {
				t.Fatalf("%.30q: %v: %.200s", evil, err, line)
			}
			if len(evil) <= 100 && utf8.ValidString(evil) && got["user_agent"] != nil && got["user_agent"] != evil {
				t.Errorf("%.30q: comes back as %.30q", evil, got["user_agent"])
			}
			if cfg.JSON != nil && !cfg.OmitEmpty && !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(labels))) {
				t.Errorf("%.30q: keys are %v", evil, slices.Sorted(maps.Keys(got)))
			}
		}
	}
}

func TestAppendAllocations(t *testing.T) {
	e := entry()
	e.Request = keptHeaders{"user-agent": []byte("evil \" agent\x01"), "x-request-id": []byte("1")}
	e.Response, e.Trailers = keptHeaders{}, nil
	e.Particular, e.Reason = "x y", telemetry.ConnectRefused
	everything := "" // every operator at once
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		everything += "%" + name + map[parameter]string{parameterHeader: "(user-agent)", parameterName: "(x)"}[specs[name].parameter] + "% "
	}
	for name, cfg := range map[string]Config{"text": {}, "json": {JSON: DefaultJSON()}, "every operator": {Text: everything}} {
		f := compile(t, cfg)
		buf := make([]byte, 0, 64<<10)
		if n := testing.AllocsPerRun(100, func() { _ = f.Append(buf, e) }); n != 0 {
			t.Errorf("%s: Append allocates %v times, want 0", name, n)
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(DefaultText)
	for name := range specs {
		f.Add("%" + name + "(x):3%")
	}
	f.Add("%START_TIME(%Y-%m-%dT%H:%M:%E3SZ %9f)%")
	f.Add("%REQ(X?Y):7% %% 50%")
	full, empty := hostile("\" \n\x00\xff"), &Entry{}
	f.Fuzz(func(t *testing.T, text string) {
		if format, err := Compile(Config{Text: text}); err == nil {
			for _, e := range []*Entry{full, empty} {
				// The format's own newlines are the operator's wish.
				if line := format.Append(nil, e); !bytes.HasSuffix(line, []byte("\n")) {
					t.Errorf("%q gives %q", text, line)
				}
			}
		}
		format, err := Compile(Config{JSON: map[string]any{"a": text, text: "%DURATION%", "n": map[string]any{"x": text}}})
		if err != nil {
			return
		}
		for _, e := range []*Entry{full, empty} {
			if line := format.Append(nil, e); !json.Valid(line) || bytes.Count(line, []byte("\n")) != 1 {
				t.Errorf("%q gives %q", text, line)
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	e := entry()
	e.Request = keptHeaders{"user-agent": []byte("curl/8.7.1"), "x-request-id": []byte("cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2")}
	e.Response, e.Trailers = keptHeaders{}, nil
	for _, cfg := range []Config{{}, {JSON: DefaultJSON()}} {
		b.Run(fmt.Sprintf("json=%v", cfg.JSON != nil), func(b *testing.B) {
			f, buf := compile(b, cfg), make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				buf = f.Append(buf[:0], e)
			}
		})
	}
}

// TestOperatorsAreDocumented holds README.md to the operators in the code.
func TestOperatorsAreDocumented(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range specs {
		if !bytes.Contains(readme, []byte("`"+name+"`")) && !bytes.Contains(readme, []byte("`"+name+"(")) {
			t.Errorf("README.md does not mention %s", name)
		}
	}
	if !bytes.Contains(readme, []byte(MetricDropped)) {
		t.Errorf("README.md does not mention %s", MetricDropped)
	}
}
