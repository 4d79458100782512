package table

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/authz"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

func request(h *stream.Head) *Request {
	path, query, _ := bytes.Cut(h.Path(), []byte("?"))
	host := h.Authority()
	if i := bytes.LastIndexByte(host, ':'); i >= 0 {
		host = host[:i]
	}
	return &Request{Head: h, Path: path, Query: query, Host: host, Port: 80}
}

func match(kind plan.MatchKind, value string) plan.StringMatch {
	return plan.StringMatch{Kind: kind, Value: value}
}

func fold(kind plan.MatchKind, value string) plan.StringMatch {
	return plan.StringMatch{Kind: kind, Value: value, IgnoreCase: true}
}

func compileRoute(p *plan.Route) *Route {
	return newRoute(p, New(Config{}).view.Load())
}

func TestTextMatch(t *testing.T) {
	tests := []struct {
		m        plan.StringMatch
		yes, not []string
	}{
		{match(plan.MatchNone, "a"), nil, []string{"", "a"}},
		{match(plan.MatchExact, "/a"), []string{"/a"}, []string{"", "/", "/A", "/aa"}},
		{fold(plan.MatchExact, "/Ab"), []string{"/ab", "/AB"}, []string{"/a", "/abc"}},
		{match(plan.MatchPrefix, "/a"), []string{"/a", "/ab", "/a/b"}, []string{"", "/", "/A"}},
		{fold(plan.MatchPrefix, "/A"), []string{"/a", "/Ab"}, []string{"/", "/b"}},
		{match(plan.MatchSuffix, ".js"), []string{".js", "a.js"}, []string{"js", ".JS", ""}},
		{fold(plan.MatchSuffix, ".JS"), []string{"a.js", "a.Js"}, []string{"js"}},
		{match(plan.MatchRegex, "a|bc*"), []string{"a", "b", "bcc"}, []string{"", "ab", "xa", "bcx", "a\n"}},
		{match(plan.MatchPresent, ""), []string{"", "x"}, nil},
		{match(plan.MatchPath, "/a/{*}/c"), []string{"/a/b/c"}, []string{"/a/c", "/a//c", "/a/b/b/c", "/a/b/c/"}},
		{match(plan.MatchPath, "/a/{**}"), []string{"/a/", "/a/b", "/a/b/c", "/a//"}, []string{"/a", "/ab", "a/"}},
		{match(plan.MatchPath, "/a/{**}/z"), []string{"/a/b/z", "/a/b/c/z", "/a//z", "/a/z/z"}, []string{"/a/z", "/a/b/z/", "/a/bz"}},
		{match(plan.MatchPath, "/{*}/x/{**}"), []string{"/a/x/", "/a/x/y/z"}, []string{"//x/", "/a/x", "/a/b/x/"}},
	}
	for _, tt := range tests {
		c := newTextMatch(tt.m)
		for _, s := range tt.yes {
			if !c.matches([]byte(s)) {
				t.Errorf("%s does not match %q", tt.m, s)
			}
		}
		for _, s := range tt.not {
			if c.matches([]byte(s)) {
				t.Errorf("%s matches %q", tt.m, s)
			}
		}
	}
}

func TestTemplateIsRefused(t *testing.T) {
	for _, s := range []string{"/{**}/{*}", "/{**}/{**}", "/a{*}", "/{x}", "/{*", "/*"} {
		if _, err := authz.NewTemplate(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func TestRequestMatch(t *testing.T) {
	field := func(name string, m plan.StringMatch) plan.HeaderMatch { return plan.HeaderMatch{Name: name, Value: m} }
	not := func(name string, m plan.StringMatch) plan.HeaderMatch {
		return plan.HeaderMatch{Name: name, Value: m, Invert: true}
	}
	headers := func(list ...plan.HeaderMatch) plan.RequestMatch { return plan.RequestMatch{Headers: list} }
	query := func(list ...plan.HeaderMatch) plan.RequestMatch { return plan.RequestMatch{Query: list} }
	get := func(path string, fields ...string) *stream.Head { return head("GET", "a:80", path, fields...) }
	https := get("/")
	https.SetSchemeString("https")
	tests := []struct {
		what string
		m    plan.RequestMatch
		h    *stream.Head
		want bool
	}{
		{"everything", plan.RequestMatch{}, get("/"), true},
		{"path without query", plan.RequestMatch{Path: match(plan.MatchExact, "/a")}, get("/a?b"), true},
		{"method", plan.RequestMatch{Method: match(plan.MatchExact, "GET")}, get("/"), true},
		{"other method", plan.RequestMatch{Method: match(plan.MatchExact, "GET")}, head("POST", "a", "/"), false},
		{"authority as sent", plan.RequestMatch{Authority: match(plan.MatchExact, "a:80")}, get("/"), true},
		{"authority without port", plan.RequestMatch{Authority: match(plan.MatchExact, "a")}, get("/"), false},
		{"scheme of the connection", plan.RequestMatch{Scheme: match(plan.MatchExact, "http")}, get("/"), true},
		{"scheme of the request", plan.RequestMatch{Scheme: match(plan.MatchExact, "https")}, https, true},
		{"and", plan.RequestMatch{Method: match(plan.MatchExact, "GET"), Path: match(plan.MatchExact, "/b")}, get("/a"), false},

		{"header", headers(field("X-User", match(plan.MatchExact, "jason"))), get("/", "x-USER", "jason"), true},
		{"header value's case", headers(field("x-user", match(plan.MatchExact, "jason"))), get("/", "x-user", "Jason"), false},
		{"header missing", headers(field("x-user", match(plan.MatchRegex, ".*"))), get("/"), false},
		{"header present", headers(field("x-user", match(plan.MatchPresent, ""))), get("/", "x-user", ""), true},
		{"header not present", headers(field("x-user", match(plan.MatchPresent, ""))), get("/"), false},
		{"two values are one", headers(field("x-user", match(plan.MatchExact, "a,b"))), get("/", "x-user", "a", "y", "1", "X-User", "b"), true},
		{"one of two values", headers(field("x-user", match(plan.MatchExact, "a"))), get("/", "x-user", "a", "x-user", "b"), false},
		{"three values, one empty", headers(field("x-user", match(plan.MatchExact, ",a,"))), get("/", "x-user", "", "x-user", "a", "x-user", ""), true},
		{"without", headers(not("x-user", match(plan.MatchExact, "jason"))), get("/", "x-user", "jason"), false},
		{"without, another value", headers(not("x-user", match(plan.MatchExact, "jason"))), get("/", "x-user", "anna"), true},
		{"without, missing", headers(not("x-user", match(plan.MatchExact, "jason"))), get("/"), true},
		{"without, missing counts as empty", headers(not("x-user", match(plan.MatchPrefix, ""))), get("/"), false},
		{"without presence", headers(not("x-user", match(plan.MatchPresent, ""))), get("/"), true},
		{"without presence, there", headers(not("x-user", match(plan.MatchPresent, ""))), get("/", "x-user", ""), false},
		{":method", headers(field(":method", match(plan.MatchExact, "GET"))), get("/"), true},
		{":authority", headers(field(":authority", match(plan.MatchExact, "a:80"))), get("/"), true},
		{"host", headers(field("host", match(plan.MatchExact, "a:80"))), get("/"), true},
		{":path", headers(field(":path", match(plan.MatchExact, "/x?y"))), get("/x?y"), true},
		{":scheme", headers(field(":scheme", match(plan.MatchExact, "https"))), https, true},
		{"and of headers", headers(field("a", match(plan.MatchPresent, "")), field("b", match(plan.MatchPresent, ""))), get("/", "a", "1"), false},

		{"query", query(field("v", match(plan.MatchExact, "1"))), get("/?u=0&v=1"), true},
		{"query's case", query(field("V", match(plan.MatchExact, "1"))), get("/?v=1"), false},
		{"query missing", query(field("v", match(plan.MatchPresent, ""))), get("/?w=1"), false},
		{"query without value", query(field("v", match(plan.MatchExact, ""))), get("/?v"), true},
		{"first of two", query(field("v", match(plan.MatchExact, "2"))), get("/?v=1&v=2"), false},
		{"query as written", query(field("a", match(plan.MatchExact, "c%26d"))), get("/?a=c%26d"), true},
		{"query not decoded", query(field("v", match(plan.MatchRegex, "a b"))), get("/?v=a%20b"), false},
		{"no escape", query(field("v", match(plan.MatchExact, "%zz%4"))), get("/?v=%zz%4"), true},
		{"without query", query(not("v", match(plan.MatchExact, "1"))), get("/?v=1"), false},
		{"without query, missing", query(not("v", match(plan.MatchExact, "1"))), get("/"), true},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			m := newRequestMatch(&tt.m)
			if got := m.matches(request(tt.h)); got != tt.want {
				t.Errorf("%s: %t", tt.m, got)
			}
		})
	}
	m := newRequestMatch(&plan.RequestMatch{Scheme: match(plan.MatchExact, "https")})
	q := request(get("/"))
	if q.TLS = true; !m.matches(q) {
		t.Error("the scheme of a TLS connection is not https")
	}
}

func TestHosts(t *testing.T) {
	p := &plan.Route{}
	for _, d := range []string{"reviews:9080", "reviews", "*.example.com", "*.a.example.com", "*.ports.com:8443", "x.a.example.com", "Upper.com", "reviews", "*-s.example.com"} {
		p.Hosts = append(p.Hosts, plan.VirtualHost{Name: d, Domains: []string{d}})
	}
	tests := []struct{ authority, want, wantAny string }{
		{"reviews", "reviews", ""},
		{"REVIEWS:9080", "reviews:9080", ""},
		{"reviews:80", "reviews", ""},
		{"b.example.com", "*.example.com", ""},
		{"b.a.example.com:80", "*.a.example.com", ""},
		{"x.a.example.com", "x.a.example.com", ""},
		{"my-s.example.com", "*-s.example.com", ""},
		{"b.ports.com:8443", "*.ports.com:8443", ""},
		{"b.ports.com:8444", "", "*"},
		{"example.com", "", "*"},
		{".example.com", "", "*"},
		{"upper.COM", "Upper.com", ""},
		{"", "", "*"},
		{strings.Repeat("y", 300) + ".example.com", "*.example.com", ""},
	}
	for _, withAny := range []bool{false, true} {
		if withAny {
			p.Hosts = append(p.Hosts, plan.VirtualHost{Name: "*", Domains: []string{"*"}}, plan.VirtualHost{Name: "second", Domains: []string{"*"}})
		}
		r := compileRoute(p)
		for _, tt := range tests {
			want := tt.want
			if withAny && tt.wantAny != "" {
				want = tt.wantAny
			}
			h, rule := r.Match(request(head("GET", tt.authority, "/")))
			got := ""
			if h != nil {
				got = h.Plan.Name
			}
			if got != want || rule != nil {
				t.Errorf("%q: host %q, want %q", tt.authority, got, want)
			}
		}
	}
	var none *Route
	if h, rule := none.Match(request(head("GET", "a", "/"))); h != nil || rule != nil {
		t.Error("no route matches")
	}
}

func TestChoose(t *testing.T) {
	v := New(Config{}).view.Load()
	c := newChoices([]plan.WeightedCluster{{Cluster: "a", Weight: 90}, {Cluster: "none"}, {Cluster: "b", Weight: 10}}, v)
	count := map[string]int{}
	const n = 10000
	for i := range uint32(n) {
		count[c.Choose(i*(1<<32/n)).Name]++
	}
	if count["a"] < 8990 || count["a"] > 9010 || count["none"] != 0 {
		t.Errorf("%v", count)
	}
	if c.Choose(0).Name != "a" || c.Choose(1<<32-1).Name != "b" {
		t.Error("the ends of the range")
	}
	for _, list := range [][]plan.WeightedCluster{{{Cluster: "one"}}, {{Cluster: "one"}, {Cluster: "two"}}, {{Cluster: "one", Weight: 1<<32 - 1}}} {
		if got := newChoices(list, v).Choose(1<<32 - 1).Name; got != "one" {
			t.Errorf("%v: %s", list, got)
		}
	}
	if newChoices(nil, v) != nil {
		t.Error("no clusters, but choices")
	}
}

func TestOrigins(t *testing.T) {
	p := route("r", "c")
	rule := &p.Hosts[0].Rules[0]
	rule.CORS = &plan.CORS{AllowOrigins: []plan.StringMatch{match(plan.MatchExact, "https://a"), match(plan.MatchRegex, "https://.*\\.b")}}
	_, r := compileRoute(p).Match(request(head("GET", "a", "/")))
	for origin, want := range map[string]bool{"https://a": true, "https://x.b": true, "https://x.b.evil": false, "": false, "null": false} {
		if r.AllowsOrigin([]byte(origin)) != want {
			t.Errorf("origin %q: want %t", origin, want)
		}
	}
}

func TestListenerMatch(t *testing.T) {
	nets := func(s ...string) (out []netip.Prefix) {
		for _, n := range s {
			out = append(out, netip.MustParsePrefix(n))
		}
		return out
	}
	chains := []plan.Chain{
		{Name: "port", Match: plan.ChainMatch{Ports: []uint16{80}}},
		{Name: "port again", Match: plan.ChainMatch{Ports: []uint16{80, 81}}},
		{Name: "exact", Match: plan.ChainMatch{SNI: []string{"a.example.com"}}},
		{Name: "suffix", Match: plan.ChainMatch{SNI: []string{"*.example.com"}}},
		{Name: "longer suffix", Match: plan.ChainMatch{SNI: []string{"x.org", "*.b.example.com"}}},
		{Name: "from", Match: plan.ChainMatch{Ports: []uint16{90}, Sources: nets("10.0.0.0/8", "fe80::/10")}},
		{Name: "to", Match: plan.ChainMatch{Ports: []uint16{90}, Destinations: nets("10.1.0.0/16")}},
		{Name: "any name", Match: plan.ChainMatch{SNI: []string{"*"}, Ports: []uint16{443}}},
	}
	tab := New(Config{})
	addr := netip.MustParseAddr
	tests := []struct {
		m    ConnMatch
		want string
	}{
		{ConnMatch{Port: 80}, "port"},
		{ConnMatch{Port: 81}, "port again"},
		{ConnMatch{Port: 80, SNI: []byte("A.Example.com")}, "exact"},
		{ConnMatch{Port: 1, SNI: []byte("c.example.com")}, "suffix"},
		{ConnMatch{Port: 1, SNI: []byte("c.b.example.com")}, "longer suffix"},
		{ConnMatch{Port: 1, SNI: []byte("x.org")}, "longer suffix"},
		{ConnMatch{Port: 1, SNI: []byte("example.com")}, ""},
		{ConnMatch{Port: 1}, ""},
		{ConnMatch{Port: 90, Source: addr("10.2.3.4")}, "from"},
		{ConnMatch{Port: 90, Source: addr("::ffff:10.2.3.4")}, "from"},
		{ConnMatch{Port: 90, Source: addr("fe80::1%eth0")}, "from"},
		{ConnMatch{Port: 90, Source: addr("11.2.3.4"), Dest: addr("10.1.2.3")}, "to"},
		{ConnMatch{Port: 90, Source: addr("11.2.3.4"), Dest: addr("10.2.2.3")}, ""},
		{ConnMatch{Port: 443}, "any name"},
		{ConnMatch{Port: 443, SNI: []byte("z")}, "any name"},
		{ConnMatch{Port: 443, SNI: []byte("z.example.com")}, "suffix"},
	}
	l := tab.newListener(&plan.Listener{Chains: chains}, tab.view.Load())
	for _, tt := range tests {
		got := ""
		if c := l.Match(&tt.m); c != nil {
			got = c.Plan.Name
		}
		if got != tt.want {
			t.Errorf("%+v: chain %q, want %q", tt.m, got, tt.want)
		}
	}
	if !l.NeedsSNI() {
		t.Error("server names are needed")
	}
	passthrough := &plan.Listener{Chains: []plan.Chain{{TLS: plan.ServerTLS{Mode: plan.TLSPassthrough}}}}
	if !tab.newListener(passthrough, tab.view.Load()).NeedsSNI() || tab.newListener(&plan.Listener{Chains: chains[:2]}, tab.view.Load()).NeedsSNI() {
		t.Error("NeedsSNI")
	}
	m := &ConnMatch{Port: 443, SNI: []byte("c.b.example.com"), Source: addr("10.2.3.4")}
	if n := testing.AllocsPerRun(100, func() { l.Match(m) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestChainsAreCompiled(t *testing.T) {
	tab := New(Config{})
	deny := &plan.Authz{Policies: []plan.Policy{{Action: plan.ActionAllow}}}
	l := tab.newListener(&plan.Listener{Chains: []plan.Chain{
		{Authz: deny, TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: plan.ClusterBlackHole}}}},
		{Authz: &plan.Authz{}, HTTP: &plan.HTTP{Inline: route("in", "c")}},
	}}, tab.view.Load())
	if l.Chains[0].Authz == nil || l.Chains[0].TCP == nil || l.Chains[0].Route != nil {
		t.Errorf("%+v", l.Chains[0])
	}
	if l.Chains[1].Authz != nil || l.Chains[1].TCP != nil || l.Chains[1].Route == nil {
		t.Errorf("%+v", l.Chains[1])
	}
}

// manyRules is a route with n rules of the kinds that real ones have, the last of which matches "/last".
func manyRules(n int) *plan.Route {
	p := &plan.Route{Hosts: []plan.VirtualHost{{Name: "h", Domains: []string{"*"}}}}
	for i := range n - 1 {
		m := plan.RequestMatch{Path: match(plan.MatchPrefix, fmt.Sprintf("/api/v%d/things/", i))}
		if i%3 == 0 {
			m.Path = match(plan.MatchExact, fmt.Sprintf("/login/%d", i))
		}
		p.Hosts[0].Rules = append(p.Hosts[0].Rules, plan.Rule{Match: m})
	}
	p.Hosts[0].Rules = append(p.Hosts[0].Rules, plan.Rule{Name: "last", Match: plan.RequestMatch{
		Path:    match(plan.MatchPrefix, "/last"),
		Headers: []plan.HeaderMatch{{Name: "end-user", Value: match(plan.MatchExact, "jason")}},
	}})
	return p
}

func lastRequest() *Request {
	return request(head("GET", "reviews.default:9080", "/last/page?x=1&y=%20", "accept", "*/*", "End-User", "jason"))
}

func TestMatchDoesNotAllocate(t *testing.T) {
	p := manyRules(20)
	p.Hosts[0].Domains = []string{"*.default", "reviews"}
	p.Hosts[0].Rules[19].Match.Query = []plan.HeaderMatch{{Name: "y", Value: match(plan.MatchExact, "%20")}}
	p.Hosts[0].Rules[19].Match.Method = match(plan.MatchRegex, "GET|HEAD")
	for _, n := range []int{1, 20} {
		p.Hosts[0].Rules = p.Hosts[0].Rules[20-n:]
		r, q := compileRoute(p), lastRequest()
		if _, rule := r.Match(q); rule == nil || rule.Plan.Name != "last" {
			t.Fatal("no match")
		}
		if n := testing.AllocsPerRun(100, func() { r.Match(q) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
		p = manyRules(20)
		p.Hosts[0].Domains = []string{"*.default", "reviews"}
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 8, 20, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r, q := compileRoute(manyRules(n)), lastRequest()
			b.ReportAllocs()
			for b.Loop() {
				if _, rule := r.Match(q); rule == nil {
					b.Fatal("no match")
				}
			}
		})
		b.Run(fmt.Sprintf("%d without index", n), func(b *testing.B) {
			r, q := compileRoute(manyRules(n)), lastRequest()
			r.any.index = nil
			for b.Loop() {
				r.Match(q)
			}
		})
	}
}

// naive is the meaning of a route, written as plainly as possible.
func naive(p *plan.Route, q *Request) string {
	authority, host := strings.ToLower(string(q.Head.Authority())), strings.ToLower(string(q.Host))
	var best *plan.VirtualHost
	score := -1
	for i := range p.Hosts {
		for _, d := range p.Hosts[i].Domains {
			s := -1
			switch suffix, wild := strings.CutPrefix(d, "*"); {
			case d == "*":
				s = 0
			case wild:
				for _, name := range []string{authority, host} {
					if strings.HasSuffix(name, suffix) && len(name) > len(suffix) {
						s = len(suffix)
					}
				}
			case d == authority:
				s = 3000
			case d == host:
				s = 2000
			}
			if s > score {
				best, score = &p.Hosts[i], s
			}
		}
	}
	if best == nil {
		return "no host"
	}
	for i := range best.Rules {
		if naiveMatch(&best.Rules[i].Match, q) {
			return best.Rules[i].Name
		}
	}
	return "no rule"
}

func naiveMatch(m *plan.RequestMatch, q *Request) bool {
	text := func(m plan.StringMatch, s string) bool {
		v := m.Value
		if m.IgnoreCase && m.Kind != plan.MatchRegex {
			v, s = strings.ToLower(v), strings.ToLower(s)
		}
		switch m.Kind {
		case plan.MatchExact:
			return s == v
		case plan.MatchPrefix:
			return strings.HasPrefix(s, v)
		case plan.MatchSuffix:
			return strings.HasSuffix(s, v)
		case plan.MatchRegex:
			return regexp.MustCompile("^(?s:" + v + ")$").MatchString(s)
		default:
			return m.Kind == plan.MatchPresent
		}
	}
	if m.Path.Kind != plan.MatchNone && !text(m.Path, string(q.Path)) || m.Method.Kind != plan.MatchNone && !text(m.Method, string(q.Head.Method())) {
		return false
	}
	field := func(h plan.HeaderMatch, values []string) bool {
		if len(values) == 0 {
			if !h.Invert {
				return false
			}
			return h.Value.Kind == plan.MatchPresent || !text(h.Value, "")
		}
		return text(h.Value, strings.Join(values, ",")) != h.Invert
	}
	for _, h := range m.Headers {
		var values []string
		for i := range q.Head.Len() {
			if n, v := q.Head.At(i); strings.EqualFold(string(n), h.Name) {
				values = append(values, string(v))
			}
		}
		if !field(h, values) {
			return false
		}
	}
	for _, h := range m.Query {
		var values []string
		for part := range strings.SplitSeq(string(q.Query), "&") {
			if name, value, _ := strings.Cut(part, "="); name == h.Name && len(values) == 0 {
				values = append(values, value)
			}
		}
		if !field(h, values) {
			return false
		}
	}
	return true
}

// randomRoute has many rules that overlap.
func randomRoute(r *rand.Rand) *plan.Route {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	path := func() string {
		s := ""
		for range r.IntN(4) {
			s += "/" + pick("a", "b", "ab", "A", "")
		}
		return s
	}
	text := func() plan.StringMatch {
		m := plan.StringMatch{Kind: plan.MatchKind(r.IntN(5)), Value: path(), IgnoreCase: r.IntN(5) == 0}
		if m.Kind == plan.MatchRegex {
			m.Value, m.IgnoreCase = pick("/a.*", "/(a|b)/.*", ""), false
		}
		if m.Kind == plan.MatchSuffix {
			m.IgnoreCase = false
		}
		return m
	}
	p := &plan.Route{}
	for range 1 + r.IntN(3) {
		h := plan.VirtualHost{Domains: []string{pick("a", "a:80", "*.a", "*", "*.b.a", "b.a")}}
		for i := range r.IntN(40) {
			rule := plan.Rule{Name: fmt.Sprint(i), Match: plan.RequestMatch{Path: text()}}
			if r.IntN(3) == 0 {
				rule.Match.Headers = []plan.HeaderMatch{{Name: "x", Value: plan.StringMatch{Kind: plan.MatchKind(1 + r.IntN(3)), Value: pick("", "1", "2", "1,2")}, Invert: r.IntN(2) == 0}}
			}
			if r.IntN(4) == 0 {
				rule.Match.Query = []plan.HeaderMatch{{Name: "q", Value: plan.StringMatch{Kind: plan.MatchExact, Value: pick("", "1", "a b")}, Invert: r.IntN(2) == 0}}
			}
			h.Rules = append(h.Rules, rule)
		}
		p.Hosts = append(p.Hosts, h)
	}
	return p
}

func checkAgainstNaive(t *testing.T, seed uint64, authority, target, x, y string) {
	t.Helper()
	p := randomRoute(rand.New(rand.NewPCG(seed, 1)))
	h := head("GET", authority, target)
	if x != "-" {
		h.AddString("X", x)
	}
	if y != "-" {
		h.AddString("x", y)
	}
	q := request(h)
	want := naive(p, q)
	got := "no host"
	if host, rule := compileRoute(p).Match(q); rule != nil {
		got = rule.Plan.Name
	} else if host != nil {
		got = "no rule"
	}
	if got != want {
		t.Errorf("seed %d, %q %q, x %q %q: %s, want %s", seed, authority, target, x, y, got, want)
	}
}

func TestMatchAgainstNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	for seed := range uint64(3000) {
		target := "/" + pick("a", "b", "ab", "A", "", "a/b", "a/b/a", "ab//b", "b/ab/A/x") + pick("", "?q=1", "?q=a+b", "?q=a%20b&q=1", "?r=1")
		checkAgainstNaive(t, seed, pick("a", "a:80", "b.a", "x.b.a:80", "c", "B.A"), target, pick("-", "1", "2", ""), pick("-", "2"))
	}
}

func FuzzMatch(f *testing.F) {
	f.Add(uint64(1), "a:80", "/a/b?q=1", "1", "2")
	f.Add(uint64(2), "x.b.a", "/ab//A?q=a%20b", "", "-")
	f.Fuzz(func(t *testing.T, seed uint64, authority, target, x, y string) {
		if strings.ContainsAny(target, ";%\n") || strings.ContainsFunc(authority+target+x+y, func(r rune) bool { return r > 126 || r < 33 }) {
			return // what the naive matcher, or a parser, sees otherwise
		}
		checkAgainstNaive(t, seed, authority, target, x, y)
	})
}

func TestIndexKeepsLengthsBounded(t *testing.T) {
	p := &plan.Route{Hosts: []plan.VirtualHost{{Domains: []string{"*"}}}}
	for i := range 100 {
		p.Hosts[0].Rules = append(p.Hosts[0].Rules, plan.Rule{Name: fmt.Sprint(i), Match: plan.RequestMatch{Path: match(plan.MatchPrefix, "/"+strings.Repeat("x", 100-i)+"y")}})
	}
	r := compileRoute(p)
	if n := len(r.any.index.lengths); n != indexLengths {
		t.Errorf("%d lengths", n)
	}
	for i := range 100 {
		path := "/" + strings.Repeat("x", 100-i) + "yz"
		if _, rule := r.Match(request(head("GET", "a", path))); rule == nil || rule.Plan.Name != fmt.Sprint(i) {
			t.Errorf("%s: %v", path, rule)
		}
	}
	if !slices.IsSorted(r.any.index.lengths) {
		t.Error("lengths are not in order")
	}
}
