package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/telemetry"
)

// mirrorHead answers with what the backend saw.
func mirrorHead(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-App", "app")
	for _, n := range []string{"X-A", "X-B", "X-Gone", "X-Forwarded-For", "X-Forwarded-Proto", "X-Envoy-Peer-Metadata", "X-Envoy-Peer-Metadata-Id"} {
		for _, v := range r.Header.Values(n) {
			w.Header().Add("Saw-"+n, v)
		}
	}
	w.Header().Set("X-Lateen-Reason", "forged")
	fmt.Fprintf(w, "%s %s", r.Host, r.URL)
}

func TestEditsAndRewrites(t *testing.T) {
	r := newRig(t, to("c", func(p *plan.Rule) {
		p.Request = plan.HeaderEdits{
			Set:    []plan.Header{{Name: "X-A", Value: "%REQ(x-b)%-%PROTOCOL%-100%%"}},
			Add:    []plan.Header{{Name: "X-B", Value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}},
			Remove: []string{"x-gone"},
		}
		p.Response = plan.HeaderEdits{Set: []plan.Header{{Name: "x-code", Value: "%RESPONSE_CODE%"}}, Remove: []string{"x-app"}}
		p.Match.Path = plan.StringMatch{Kind: plan.MatchPrefix, Value: "/old/"}
		p.Rewrite = &plan.Rewrite{Prefix: "/old/", Path: "/new/", Authority: "inner.example"}
	}), cluster("c", backend(t, mirrorHead))...)
	res, body := r.get("/x/../old/p?q=1", "X-B", "b", "X-Gone", "1")
	got := fmt.Sprint(body, " ", res.Header["Saw-X-A"], res.Header["Saw-X-B"], res.Header["Saw-X-Gone"], res.Header["X-Code"], res.Header["X-App"])
	if want := "inner.example /new/p?q=1 [b-HTTP/1.1-100%] [b 127.0.0.1] [] [200] []"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if reason := res.Header.Get("X-Lateen-Reason"); reason != "" {
		t.Errorf("the application's own reason %q was passed on", reason)
	}
}

// TestForwardedTrust: what a client says of itself counts as far as the proxies in front of us are believed.
func TestForwardedTrust(t *testing.T) {
	for hops, want := range map[int]string{0: "[6.6.6.6,10.0.0.1,127.0.0.1] [http]", 1: "[6.6.6.6,10.0.0.1,127.0.0.1] [https]"} {
		r := startRig(t)
		deny := &plan.Authz{Policies: []plan.Policy{{Name: "p", Action: plan.ActionDeny, Rules: []plan.PolicyRule{{From: []plan.Source{{RemoteIPs: prefixes("6.6.6.6/32")}}}}}}}
		r.openGateway(&plan.Chain{Protocol: plan.ProtocolHTTP, Authz: deny, HTTP: &plan.HTTP{AppendForwardedFor: true, TrustedHops: hops, Peers: true}}, plan.Telemetry{},
			to("c"), cluster("c", backend(t, mirrorHead))...)
		// The last proxy in front adds what it saw in a line of its own.
		req := request(t, "GET", "http://"+r.addr+"/", nil, "X-Forwarded-For", "6.6.6.6", "X-Forwarded-For", "10.0.0.1", "X-Forwarded-Proto", "https", "X-Envoy-Peer-Metadata", "forged")
		res, body := fetch(t, webClient(t), req)
		if got := fmt.Sprint(res.Header["Saw-X-Forwarded-For"], " ", res.Header["Saw-X-Forwarded-Proto"]); res.StatusCode != 200 || got != want {
			t.Errorf("%d hops: %s %s %q, want %s", hops, res.Status, got, body, want)
		}
		if m := res.Header["Saw-X-Envoy-Peer-Metadata"]; len(m) != 1 || m[0] != string(r.p.self.metadata) {
			t.Errorf("peer metadata %q", m)
		}
	}
	// Without metadata of our own, what came from outside is still not passed on.
	r := startRig(t)
	r.openGateway(&plan.Chain{Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{}}, plan.Telemetry{}, to("c"), cluster("c", backend(t, mirrorHead))...)
	if res, _ := r.get("/", "X-Envoy-Peer-Metadata", "forged", "X-Envoy-Peer-Metadata-Id", "forged"); res.Header["Saw-X-Envoy-Peer-Metadata"] != nil || res.Header["Saw-X-Envoy-Peer-Metadata-Id"] != nil {
		t.Errorf("passed on: %v", res.Header)
	}
}

// TestClientAddr: who asks, as far as proxies in front are believed. A sidecar believes the last of them, its gateway.
func TestClientAddr(t *testing.T) {
	peer := netip.MustParseAddr("127.0.0.1")
	for _, tt := range []struct {
		adds bool
		hops int
		said string
		want string
	}{
		{true, 0, "6.6.6.6", "127.0.0.1"},
		{true, 1, "6.6.6.6, 10.0.0.1", "10.0.0.1"},
		{true, 2, "6.6.6.6,10.0.0.1", "6.6.6.6"},
		{true, 3, "6.6.6.6,10.0.0.1", "127.0.0.1"}, // it did not come through all of them
		{true, 2, "6.6.6.6,unknown", "6.6.6.6"},
		{true, 1, "6.6.6.6,unknown", "127.0.0.1"},
		{false, 0, "6.6.6.6, ::ffff:10.0.0.1", "10.0.0.1"},
		{false, 1, "6.6.6.6,10.0.0.1", "6.6.6.6"},
		{false, 0, "", "127.0.0.1"},
		{false, 0, "6.6.6.6:80", "127.0.0.1"},
	} {
		http := &plan.HTTP{AppendForwardedFor: tt.adds, TrustedHops: tt.hops}
		if got := clientAddr(http, []byte(tt.said), peer).String(); got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

func TestRedirects(t *testing.T) {
	tests := []struct {
		redirect plan.Redirect
		want     string
	}{
		{plan.Redirect{Code: 301, Authority: "new.example"}, "http://new.example/a/b?c=d"},
		{plan.Redirect{Code: 308, Scheme: "https", Authority: "new.example", Path: "/x"}, "https://new.example/x?c=d"},
		{plan.Redirect{Code: 302, Authority: "h", MatchedPrefix: "/a", Prefix: "/z"}, "http://h/z/b?c=d"},
	}
	for _, tt := range tests {
		r := newRig(t, to("", func(p *plan.Rule) { p.Clusters, p.Redirect = nil, &tt.redirect }))
		res, _ := r.get("/a/b?c=d")
		if res.StatusCode != tt.redirect.Code || res.Header.Get("Location") != tt.want {
			t.Errorf("%s %q, want %q", res.Status, res.Header.Get("Location"), tt.want)
		}
	}
}

// TestCORSAnything: a policy that allows every method and field says so by repeating what it was asked, since to a
// request with credentials * is the name of one (Fetch standard, section 3.2.3).
func TestCORSAnything(t *testing.T) {
	r := newRig(t, to("c", func(p *plan.Rule) {
		p.CORS = &plan.CORS{AllowOrigins: []plan.StringMatch{{Kind: plan.MatchPrefix, Value: "https://"}}, AllowMethods: []string{"*"}, AllowHeaders: []string{"*"}}
	}), cluster("c", backend(t, mirrorHead))...)
	for _, fields := range []string{"x-a,x-b", ""} {
		req := request(t, "OPTIONS", "http://"+r.addr+"/", nil, "Origin", "https://any.example", "Access-Control-Request-Method", "PUT")
		if fields != "" {
			req.Header.Set("Access-Control-Request-Headers", fields)
		}
		res, _ := fetch(t, webClient(t), req)
		h := res.Header
		if m, f := h.Get("Access-Control-Allow-Methods"), h.Get("Access-Control-Allow-Headers"); m != "PUT" || f != fields && f != "*" {
			t.Errorf("%q: %q %q", fields, m, f)
		}
	}
}

// TestDated: what we refuse, and what a server does not date, bears a Date (RFC 9110 section 6.6.1), and a refusal its reason.
func TestDated(t *testing.T) {
	s := tcpServer(t, func(c *net.TCPConn) {
		_ = newRawServer(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	r := newRig(t, to("c"), &plan.Cluster{Name: "c", Protocol: plan.ProtocolHTTP}, &plan.Endpoints{Name: "c", Endpoints: []plan.Endpoint{endpointAt(s, "w")}})
	for _, tt := range []struct{ in, reason string }{
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ""},
		{"GET / HTTP/1.1\r\n\r\n", "downstream_protocol_error"},
		{"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 70<<10) + "\r\n\r\n", "headers_too_large"},
	} {
		c := dialRaw(t, r.addr)
		c.send(tt.in)
		res, _ := c.response("GET")
		if _, err := http.ParseTime(res.Header.Get("Date")); err != nil || len(res.Header["Date"]) != 1 || res.Header.Get("X-Lateen-Reason") != tt.reason {
			t.Errorf("%.30q: %s %v %v", tt.in, res.Status, res.Header, err)
		}
	}
}

func TestCORS(t *testing.T) {
	r := newRig(t, to("c", func(p *plan.Rule) {
		p.CORS = &plan.CORS{
			AllowOrigins: []plan.StringMatch{{Kind: plan.MatchExact, Value: "https://ok.example"}}, AllowMethods: []string{"GET", "PUT"},
			AllowHeaders: []string{"x-a"}, ExposeHeaders: []string{"x-app"}, MaxAge: time.Hour, AllowCredentials: true,
		}
	}), cluster("c", backend(t, mirrorHead))...)
	ask := func(method, origin string) http.Header {
		req := request(t, method, "http://"+r.addr+"/", nil, "Origin", origin)
		if method == "OPTIONS" {
			req.Header.Set("Access-Control-Request-Method", "PUT")
		}
		res, _ := fetch(t, webClient(t), req)
		if res.StatusCode != 200 {
			t.Error(res.Status)
		}
		return res.Header
	}
	h := ask("OPTIONS", "https://ok.example")
	if got := fmt.Sprint(h["Access-Control-Allow-Origin"], h["Access-Control-Allow-Methods"], h["Access-Control-Allow-Headers"], h["Access-Control-Max-Age"], h["Access-Control-Allow-Credentials"]); got != "[https://ok.example] [GET,PUT] [x-a] [3600] [true]" {
		t.Errorf("preflight %s", got)
	}
	if h.Get("X-App") != "" {
		t.Error("the preflight reached the application")
	}
	if h := ask("GET", "https://ok.example"); h.Get("Access-Control-Allow-Origin") != "https://ok.example" || h.Get("Access-Control-Expose-Headers") != "x-app" {
		t.Errorf("%v", h)
	}
	for _, method := range []string{"GET", "OPTIONS"} {
		if h := ask(method, "https://evil.example"); h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %v", method, h)
		}
	}
}

func TestFaults(t *testing.T) {
	r := newRig(t, to("c", func(p *plan.Rule) {
		p.Fault = &plan.Fault{Delay: 30 * time.Millisecond, DelayPercent: 100, AbortStatus: 418, AbortGRPC: -1, AbortPercent: 100}
	}), cluster("c", backend(t, mirrorHead))...)
	began := time.Now()
	res, _ := r.get("/")
	if res.StatusCode != 418 || time.Since(began) < 30*time.Millisecond {
		t.Errorf("%s after %s", res.Status, time.Since(began))
	}
	if k := r.series(1)[0].Key; k.Flags != telemetry.FlagDI|telemetry.FlagFI {
		t.Errorf("flags %s", k.Flags)
	}
	// A client that leaves during the delay leaves nothing behind.
	r = newRig(t, to("c", func(p *plan.Rule) { p.Fault = &plan.Fault{Delay: time.Hour, DelayPercent: 100, AbortGRPC: -1} }), cluster("c", backend(t, mirrorHead))...)
	c := dialRaw(t, r.addr)
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	r.await("the delay", func(w *worker) bool { return len(w.downstreams) == 1 })
	_ = c.Close()
	r.await("the end", func(w *worker) bool { return len(w.downstreams) == 0 })
	r.released("c")
}

// logged stops the proxy and returns its log's lines, with what varies named.
func (r *rig) logged(path string) []string {
	r.t.Helper()
	r.stop()
	text, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	out := string(text)
	for _, s := range [][2]string{
		{`\d{4}-\d\d-\d\dT[\d:.]+Z`, "TIME"},
		{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`, "ID"},
		{regexp.QuoteMeta(r.addr), "GATEWAY"},
		{`127\.0\.0\.1:\d+`, "ADDR"},
	} {
		out = regexp.MustCompile(s[0]).ReplaceAllString(out, s[1])
	}
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

func denySecret() *plan.Authz {
	return &plan.Authz{Policies: []plan.Policy{{
		Name: "default/no-secrets", Action: plan.ActionDeny, Origin: plan.Origin{Kind: "AuthorizationPolicy", Namespace: "default", Name: "no-secrets"},
		Rules: []plan.PolicyRule{{To: []plan.Operation{{Paths: []plan.StringMatch{{Kind: plan.MatchPrefix, Value: "/secret"}}}}}},
	}}}
}

// TestDenied: policies see the path that the application will see, however it was written.
func TestDenied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r := startRig(t)
	r.openGateway(&plan.Chain{Name: "http", Protocol: plan.ProtocolHTTP, Authz: denySecret(), HTTP: &plan.HTTP{PathNormalization: plan.PathDecodeAndMergeSlashes}},
		plan.Telemetry{AccessLogs: []plan.AccessLog{{Path: path, Format: "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS%\n"}}}, to("c"), cluster("c", backend(t, mirrorHead))...)
	for _, p := range []string{"/secret", "/x/../secret", "//secret", "/x/..%2fsecret", "/%2e/secret", `/x\..\secret`, "/secret?a"} {
		c := dialRaw(t, r.addr)
		c.send("GET " + p + " HTTP/1.1\r\nHost: x\r\n\r\n")
		if res, body := c.response("GET"); res.StatusCode != 403 || body != "RBAC: access denied" || res.Header.Get("X-Lateen-Reason") != "denied_by_policy" {
			t.Errorf("%s: %s %q %q", p, res.Status, body, res.Header.Get("X-Lateen-Reason"))
		}
	}
	if res, _ := r.get("/public"); res.StatusCode != 200 {
		t.Error(res.Status)
	}
	lines := r.logged(path)
	if len(lines) != 8 || lines[7] != "/public 200 via_upstream" {
		t.Errorf("log %q", lines)
	}
	for _, l := range lines[:len(lines)-1] {
		if !strings.HasPrefix(l, "/secret") || !strings.Contains(l, " 403 rbac_access_denied") || !strings.Contains(l, "no-secrets") {
			t.Errorf("log %q", l)
		}
	}
}

// TestAccessLog: Istio's default formats, exactly.
func TestAccessLog(t *testing.T) {
	dir := t.TempDir()
	text, object := filepath.Join(dir, "text"), filepath.Join(dir, "json")
	r := startRig(t)
	r.openGateway(&plan.Chain{Name: "http", Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{AppendForwardedFor: true}},
		plan.Telemetry{AccessLogs: []plan.AccessLog{{Path: text}, {Path: object, JSON: true, MinStatus: 400}}},
		to("c", func(p *plan.Rule) { p.Match.Path = plan.StringMatch{Kind: plan.MatchPrefix, Value: "/a"} }), cluster("c", backend(t, mirrorHead))...)
	r.get("/a?b", "User-Agent", "ua")
	r.get("/none", "User-Agent", "ua")
	r.series(2)
	lines := r.logged(text)
	duration := regexp.MustCompile(`^(.* \d+ \d+ )\d+ (\S+) `)
	want := []string{
		`[TIME] "GET /a?b HTTP/1.1" 200 - via_upstream - "-" 0 N D - "127.0.0.1" "ua" "ID" "GATEWAY" "ADDR" c ADDR GATEWAY ADDR - r`,
		`[TIME] "GET /none HTTP/1.1" 404 NR route_not_found - "-" 0 N D - "127.0.0.1" "ua" "ID" "GATEWAY" "-" - - GATEWAY ADDR - -`,
	}
	for i, l := range lines {
		l = duration.ReplaceAllString(l, "${1}D $2 ")
		l = regexp.MustCompile(` 0 \d+ D `).ReplaceAllString(l, " 0 N D ")
		if i >= len(want) || l != want[i] {
			t.Errorf("line %d\ngot  %s\nwant %s", i, l, want[min(i, len(want)-1)])
		}
	}
	var got map[string]any
	lines = r.logged(object)
	if len(lines) != 1 || json.Unmarshal([]byte(lines[0]), &got) != nil {
		t.Fatalf("JSON %q", lines)
	}
	if got["response_code"] != 404.0 || got["response_flags"] != "NR" || got["path"] != "/none" || got["user_agent"] != "ua" || got["upstream_host"] != nil {
		t.Errorf("JSON %v", got)
	}
}
