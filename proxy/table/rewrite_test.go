package table

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

func TestRewrite(t *testing.T) {
	tests := []struct {
		w                 plan.Rewrite
		path, query, want string
	}{
		{plan.Rewrite{Path: "/new", Prefix: "/old"}, "/old/x", "", "/new/x"},
		{plan.Rewrite{Path: "/new", Prefix: "/old"}, "/old", "a=1", "/new?a=1"},
		{plan.Rewrite{Path: "/", Prefix: "/old/"}, "/old/x", "", "/x"},
		{plan.Rewrite{Path: "/", Prefix: "/old"}, "/old/x", "", "//x"}, // as Envoy does it
		{plan.Rewrite{Path: "new", Prefix: "/old"}, "/old/x", "", "/new/x"},
		{plan.Rewrite{Prefix: "/old"}, "/old/x", "", "/x"},
		{plan.Rewrite{Prefix: "/old"}, "/old", "", "/"},
		{plan.Rewrite{Path: "/long", Prefix: "/longer"}, "/x", "", "/long"},
		{plan.Rewrite{Path: "/whole"}, "/a/b", "q", "/whole?q"},
		{plan.Rewrite{Authority: "b"}, "/a", "q", "/a?q"},
		{plan.Rewrite{Regex: "^/v(\\d+)/(.*)$", Substitution: `/\2/\1`}, "/v2/x/y", "q", "/x/y/2?q"},
		{plan.Rewrite{Regex: "o", Substitution: `0\0`}, "/foo", "", "/f0o0o"},
		{plan.Rewrite{Regex: "o", Substitution: `$1\\`}, "/fo", "", `/f$1\`},
		{plan.Rewrite{Regex: "(o)", Substitution: `\11`}, "/fo", "", "/fo1"},
		{plan.Rewrite{Regex: "x", Substitution: "y"}, "/fo", "", "/fo"},
	}
	for _, tt := range tests {
		p := route("r", "c")
		p.Hosts[0].Rules[0].Rewrite = &tt.w
		if err := checkRoute(p); err != nil {
			t.Fatal(err)
		}
		_, r := compileRoute(p).Match(request(head("GET", "a", "/")))
		if got := string(r.Rewrite([]byte("dst "), []byte(tt.path), []byte(tt.query))); got != "dst "+tt.want {
			t.Errorf("%+v of %q: %q, want %q", tt.w, tt.path, got, tt.want)
		}
	}
}

func TestLocation(t *testing.T) {
	tests := []struct {
		what      string
		r         plan.Redirect
		authority string
		port      uint16
		tls       bool
		want      string
	}{
		{"nothing but another path", plan.Redirect{Path: "/b"}, "a", 80, false, "http://a/b?q=1"},
		{"query of its own", plan.Redirect{Path: "/b?c"}, "a", 80, false, "http://a/b?c"},
		{"path that has no slash", plan.Redirect{Path: ".evil"}, "a", 80, false, "http://a/.evil?q=1"},
		{"authority", plan.Redirect{Authority: "b"}, "a:8080", 8080, false, "http://b/p/x?q=1"},
		{"own port stays", plan.Redirect{Path: "/b"}, "a:8080", 8080, false, "http://a:8080/b?q=1"},
		{"https", plan.Redirect{Scheme: "https"}, "a", 80, false, "https://a/p/x?q=1"},
		{"https from port 80 as sent", plan.Redirect{Scheme: "https"}, "a:80", 80, false, "https://a/p/x?q=1"},
		{"https from an odd port", plan.Redirect{Scheme: "https"}, "a:8080", 8080, false, "https://a:8080/p/x?q=1"},
		{"http from port 443", plan.Redirect{Scheme: "http"}, "a:443", 443, true, "http://a/p/x?q=1"},
		{"same scheme keeps its port", plan.Redirect{Scheme: "https"}, "a:443", 443, true, "https://a:443/p/x?q=1"},
		{"over TLS", plan.Redirect{Path: "/"}, "a", 443, true, "https://a/?q=1"},
		{"port", plan.Redirect{Port: 8443, Scheme: "https"}, "a:80", 80, false, "https://a:8443/p/x?q=1"},
		{"port 443 is left out", plan.Redirect{Port: 443, Scheme: "https"}, "a:8080", 8080, false, "https://a/p/x?q=1"},
		{"port 80 is left out", plan.Redirect{Port: 80}, "a:8080", 8080, false, "http://a/p/x?q=1"},
		{"port 80 of https is not", plan.Redirect{Port: 80, Scheme: "https"}, "a", 80, false, "https://a:80/p/x?q=1"},
		{"port of the request", plan.Redirect{PortFromRequest: true, Authority: "b"}, "a:8080", 8080, false, "http://b:8080/p/x?q=1"},
		{"port of the request, the default", plan.Redirect{PortFromRequest: true}, "a", 80, false, "http://a/p/x?q=1"},
		{"prefix", plan.Redirect{Prefix: "/new", MatchedPrefix: "/p"}, "a", 80, false, "http://a/new/x?q=1"},
		{"prefix is all", plan.Redirect{Prefix: "/new", MatchedPrefix: "/p/x"}, "a", 80, false, "http://a/new?q=1"},
		{"IPv6", plan.Redirect{Scheme: "https"}, "[::1]:80", 80, false, "https://[::1]/p/x?q=1"},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			q := request(head("GET", tt.authority, "/p/x?q=1"))
			q.Port, q.TLS = tt.port, tt.tls
			if i := strings.LastIndex(tt.authority, "]"); i >= 0 {
				q.Host = []byte(tt.authority[:i+1])
			}
			if got := string((&Rule{Plan: &plan.Rule{Redirect: &tt.r}}).Location(nil, q)); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

type values map[string]string

func (v values) AppendValue(dst []byte, operator string) ([]byte, bool) {
	s, ok := v[operator]
	return append(dst, s...), ok
}

func TestEdits(t *testing.T) {
	e := newEdits(plan.HeaderEdits{
		Remove: []string{"X-Gone", "x-back"},
		Set:    []plan.Header{{Name: "X-Set", Value: "%ADDR%"}, {Name: "x-back", Value: "100%%"}, {Name: "Host", Value: "new"}, {Name: "empty"}},
		Add:    []plan.Header{{Name: "X-Add", Value: "a%ADDR%b%REQ(x)%"}, {Name: "x-unknown", Value: "%WHAT%"}, {Name: "lone", Value: "5%"}},
	})
	h := head("GET", "old", "/", "x-gone", "1", "x-set", "1", "X-Back", "2", "x-add", "0", "X-SET", "2")
	e.Apply(h, values{"ADDR": "10.0.0.1", "REQ(x)": ""})
	var got []string
	for i := range h.Len() {
		n, v := h.At(i)
		got = append(got, string(n)+": "+string(v))
	}
	want := []string{"x-set: 10.0.0.1", "x-add: 0", "x-back: 100%", "empty: ", "X-Add: a10.0.0.1b", "x-unknown: %WHAT%", "lone: 5%"}
	if d := cmp.Diff(want, got); d != "" || string(h.Authority()) != "new" {
		t.Errorf("authority %s (-want +got):\n%s", h.Authority(), d)
	}
	newEdits(plan.HeaderEdits{Set: []plan.Header{{Name: ":authority", Value: "z"}, {Name: ":path", Value: "/z"}}}).Apply(h, nil)
	if string(h.Authority()) != "z" || string(h.Path()) != "/z" {
		t.Errorf("%s%s", h.Authority(), h.Path())
	}
	if newEdits(plan.HeaderEdits{}) != nil {
		t.Error("no edits, but something to apply")
	}
}

func TestEditsDoNotAllocate(t *testing.T) {
	e := newEdits(plan.HeaderEdits{Set: []plan.Header{{Name: "x", Value: "1"}}, Add: []plan.Header{{Name: "y", Value: "2"}}, Remove: []string{"z"}})
	h := &stream.Head{}
	if n := testing.AllocsPerRun(100, func() {
		h.Reset()
		e.Apply(h, nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNormalizePath(t *testing.T) {
	const refused = "refused"
	tests := []struct{ in, base, merge, decode string }{
		{"/", "/", "/", "/"},
		{"/a/b", "/a/b", "/a/b", "/a/b"},
		{"*", "*", "*", "*"},
		{"", "", "", ""},
		{"/a/./b/.", "/a/b/", "/a/b/", "/a/b/"},
		{"/a/../b", "/b", "/b", "/b"},
		{"/a/b/..", "/a/", "/a/", "/a/"},
		{"/..", "/", "/", "/"},
		{"/../../a", "/a", "/a", "/a"},
		{"/a/%2e%2E/b", "/b", "/b", "/b"},
		{"/a/.%2e/b", "/b", "/b", "/b"},
		{"/...", "/...", "/...", "/..."},
		{"/.well-known", "/.well-known", "/.well-known", "/.well-known"},
		{"/a//b", "/a//b", "/a/b", "/a/b"},
		{"//", "//", "/", "/"},
		{"/a//../b", "/a/b", "/a/b", "/a/b"},
		{"/a///../../b", "/a/b", "/a/b", "/a/b"},
		{`\a\b`, `\a\b`, `\a\b`, `\a\b`},
		{`/a\b`, "/a/b", "/a/b", "/a/b"},
		{`/a\..\b`, "/b", "/b", "/b"},
		{"/a%2fb", "/a%2fb", "/a%2fb", "/a/b"},
		{"/a%5Cb", "/a%5Cb", "/a%5Cb", "/a/b"},
		{"/a%2f..%2fb", "/a%2f..%2fb", "/a%2f..%2fb", "/b"},
		{"/a%2F%2Fb", "/a%2F%2Fb", "/a%2F%2Fb", "/a/b"},
		{"/%61dmin", "/admin", "/admin", "/admin"},
		{"/%7Ex%2D%5f", "/~x-_", "/~x-_", "/~x-_"},
		{"/a%20b%3F", "/a%20b%3F", "/a%20b%3F", "/a%20b%3F"},
		{"/%2561", "/%2561", "/%2561", "/%2561"},
		{"/%4%31", "/%4%31", "/%4%31", "/%4%31"},
		{"/%%36%31", "/%%361", "/%%361", "/%%361"},
		{"/100%", "/100%", "/100%", "/100%"},
		{"/%zz", "/%zz", "/%zz", "/%zz"},
		{"/a%00b", refused, refused, refused},
		{"/a\x00b", refused, refused, refused},
		{"/a/../\x00", refused, refused, refused},
	}
	for _, tt := range tests {
		for how, want := range map[plan.PathNormalization]string{
			plan.PathBase: tt.base, plan.PathMergeSlashes: tt.merge, plan.PathDecodeAndMergeSlashes: tt.decode, plan.PathNone: tt.in,
		} {
			out, ok := NormalizePath(nil, []byte(tt.in), how)
			got := string(out)
			if !ok {
				got = refused
			}
			if how == plan.PathNone && strings.Contains(tt.in, "\x00") {
				want = refused
			}
			if got != want {
				t.Errorf("%q, %d: %q, want %q", tt.in, how, got, want)
			}
		}
	}
	if out, _ := NormalizePath([]byte("dst "), []byte("/a/../b"), plan.PathBase); string(out) != "dst /b" {
		t.Errorf("%q", out)
	}
}

func TestNormalizePathDoesNotAllocate(t *testing.T) {
	dst := make([]byte, 0, 100)
	for _, p := range []string{"/a/b/c", "/a/../b/%2e%2e%2f/x//y"} {
		in := []byte(p)
		if n := testing.AllocsPerRun(100, func() { NormalizePath(dst, in, plan.PathDecodeAndMergeSlashes) }); n != 0 {
			t.Errorf("%s: %v allocations", p, n)
		}
	}
}

func FuzzNormalizePath(f *testing.F) {
	for _, p := range []string{"/a/../b", "/%2e%2e%2f//\\", "/%4%31", "/..%", "//a/./"} {
		f.Add(p, uint8(0))
		f.Add(p, uint8(3))
	}
	f.Fuzz(func(t *testing.T, p string, how uint8) {
		n := plan.PathNormalization(how % 4)
		in := []byte(p)
		out, ok := NormalizePath(nil, in, n)
		if string(in) != p {
			t.Fatal("the path itself was changed")
		}
		if !ok || n == plan.PathNone || !strings.HasPrefix(p, "/") {
			return
		}
		again, ok := NormalizePath(nil, out, n)
		if !ok || string(again) != string(out) {
			t.Fatalf("%q becomes %q, and that %q", p, out, again)
		}
		if out[0] != '/' || len(out) > len(p) || strings.ContainsAny(string(out), "\\\x00") {
			t.Fatalf("%q becomes %q", p, out)
		}
		for s := range strings.SplitSeq(string(out), "/") {
			if s == "." || s == ".." {
				t.Fatalf("%q becomes %q", p, out)
			}
		}
		if n == plan.PathBase {
			return
		}
		if strings.Contains(string(out), "//") {
			t.Fatalf("%q becomes %q", p, out)
		}
		// Where the standard library can tell, and there are no empty segments for .. to remove, it agrees.
		text := strings.ReplaceAll(p, "\\", "/")
		if u, err := url.PathUnescape(text); err == nil && !strings.Contains(u, "//") && !strings.Contains(text, "%") {
			want := path.Clean(u)
			if got := strings.TrimSuffix(string(out), "/"); got != strings.TrimSuffix(want, "/") {
				t.Fatalf("%q becomes %q, want %q", p, got, want)
			}
		}
	})
}
