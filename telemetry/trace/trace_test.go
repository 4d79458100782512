package trace

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	traceHex  = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanHex   = "00f067aa0ba902b7"
	parentHex = "05e3ac9a4f6e3b90"
)

// ids returns a context with the span spanHex.
func ids(t testing.TB, trace, parent string) Context {
	t.Helper()
	var c Context
	if len(trace) == 16 {
		trace = strings.Repeat("0", 16) + trace
	}
	for _, x := range []struct {
		dst []byte
		hex string
	}{{c.Trace[:], trace}, {c.Span[:], spanHex}, {c.Parent[:], parent}} {
		if x.hex != "" && !decodeHex(x.dst, []byte(x.hex), false) {
			t.Fatalf("bad hex %q", x.hex)
		}
	}
	return c
}

func with(c Context, d Decision) Context { c.Decision = d; return c }

func TestTraceparent(t *testing.T) {
	good := ids(t, traceHex, "")
	random := with(good, Keep)
	random.Random = true
	tests := []struct {
		in   string
		want Context
		ok   bool
		out  string
	}{
		{"00-" + traceHex + "-" + spanHex + "-01", with(good, Keep), true, ""},
		{"00-" + traceHex + "-" + spanHex + "-00", with(good, Drop), true, ""},
		{"00-" + traceHex + "-" + spanHex + "-03", random, true, ""},
		{"00-" + traceHex + "-" + spanHex + "-fd", with(good, Keep), true, "00-" + traceHex + "-" + spanHex + "-01"},
		{"01-" + traceHex + "-" + spanHex + "-01-what-the-future-will-be-like", with(good, Keep), true, "00-" + traceHex + "-" + spanHex + "-01"},
		{"cc-" + traceHex + "-" + spanHex + "-01", with(good, Keep), true, "00-" + traceHex + "-" + spanHex + "-01"},
		{"cc-" + traceHex + "-" + spanHex + "-01.what", Context{}, false, ""},
		{"00-" + traceHex + "-" + spanHex + "-01-x", Context{}, false, ""},
		{"ff-" + traceHex + "-" + spanHex + "-01", Context{}, false, ""},
		{"00-" + strings.ToUpper(traceHex) + "-" + spanHex + "-01", Context{}, false, ""},
		{"00-" + strings.Repeat("0", 32) + "-" + spanHex + "-01", Context{}, false, ""},
		{"00-" + traceHex + "-0000000000000000-01", Context{}, false, ""},
		{"00-" + traceHex + "-" + spanHex + "-1", Context{}, false, ""},
		{"00-" + traceHex + "-" + spanHex + "-0x", Context{}, false, ""},
		{"00_" + traceHex + "-" + spanHex + "-01", Context{}, false, ""},
		{"", Context{}, false, ""},
	}
	for _, tt := range tests {
		got, ok := ParseTraceparent([]byte(tt.in))
		if diff := cmp.Diff(tt.want, got); ok != tt.ok || diff != "" {
			t.Errorf("%q: ok %v\n%s", tt.in, ok, diff)
		}
		if out := string(got.AppendTraceparent(nil)); ok && out != cmpOr(tt.out, tt.in) {
			t.Errorf("%q is written as %q", tt.in, out)
		}
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func TestTracestate(t *testing.T) {
	var many []string
	for i := range stateMembersMax {
		many = append(many, fmt.Sprintf("k%d=v", i))
	}
	tests := map[string]bool{
		"congo=t61rcWkgMzE":                    true,
		"rojo=00f067aa0ba902b7,congo=t61rcWkg": true,
		" rojo=1 ,\tcongo=2,, ":                true,
		"fw529a3039@dt=FfAAA,0x/_-*=~ !":       true,
		strings.Join(many, ","):                true,
		strings.Join(many, ",") + ",one=more":  false,
		"":                                     false,
		",":                                    false,
		"a":                                    false,
		"a=":                                   false,
		"=b":                                   false,
		"a=b=c":                                false,
		"a=1,a=2":                              false,
		"A=1":                                  false,
		"_a=1":                                 false,
		"a b=1":                                false,
		"a=\x7f":                               false,
		"a=é":                                  false,
		"a=\r\n":                               false,
		strings.Repeat("k", 256) + "=1":        true,
		strings.Repeat("k", 257) + "=1":        false,
		"a=" + strings.Repeat("v", 256):        true,
		"a=" + strings.Repeat("v", 257):        false,
		"a=1" + strings.Repeat(",", 9000):      false,
	}
	for in, want := range tests {
		if got := ValidTracestate([]byte(in)); got != want {
			t.Errorf("%.60q: %v, want %v", in, got, want)
		}
	}
}

func TestB3(t *testing.T) {
	good := ids(t, traceHex, "")
	tests := []struct {
		in   string
		want Context
		ok   bool
		out  string
	}{
		{traceHex + "-" + spanHex + "-1-" + parentHex, with(ids(t, traceHex, parentHex), Keep), true, ""},
		{traceHex + "-" + spanHex + "-0", with(good, Drop), true, ""},
		{traceHex + "-" + spanHex + "-d", with(good, Debug), true, ""},
		{traceHex + "-" + spanHex, good, true, ""},
		{"a3ce929d0e0e4736-" + spanHex + "-1", with(ids(t, "a3ce929d0e0e4736", ""), Keep), true, ""},
		{strings.ToUpper(traceHex) + "-" + spanHex + "-1", with(good, Keep), true, traceHex + "-" + spanHex + "-1"},
		{"0", with(Context{}, Drop), true, "-"},
		{"1", with(Context{}, Keep), true, "-"},
		{"d", with(Context{}, Debug), true, "-"},
		{"2", Context{}, false, ""},
		{"", Context{}, false, ""},
		{traceHex, Context{}, false, ""},
		{traceHex + "-", Context{}, false, ""},
		{traceHex + "-" + spanHex + "-", Context{}, false, ""},
		{traceHex + "-" + spanHex + "-true", Context{}, false, ""},
		{traceHex + "-" + spanHex + "-1-", Context{}, false, ""},
		{traceHex + "-" + spanHex + "-1-" + parentHex + "-x", Context{}, false, ""},
		{strings.Repeat("0", 32) + "-" + spanHex + "-1", Context{}, false, ""},
		{traceHex[1:] + "-" + spanHex + "-1", Context{}, false, ""},
	}
	for _, tt := range tests {
		got, ok := ParseB3([]byte(tt.in))
		if diff := cmp.Diff(tt.want, got); ok != tt.ok || diff != "" {
			t.Errorf("%q: ok %v\n%s", tt.in, ok, diff)
		}
		if out := string(got.AppendB3(nil)); ok && tt.out != "-" && out != cmpOr(tt.out, tt.in) {
			t.Errorf("%q is written as %q", tt.in, out)
		}
	}
}

// head is a Carrier like the engine's.
type head struct{ names, values [][]byte }

func (h *head) Get(name string) ([]byte, bool) {
	for i := range h.names {
		if string(h.names[i]) == name {
			return h.values[i], true
		}
	}
	return nil, false
}

func (h *head) Set(name string, value []byte) {
	for i := range h.names {
		if string(h.names[i]) == name {
			h.values[i] = append(h.values[i][:0], value...)
			return
		}
	}
	h.names, h.values = append(h.names, []byte(name)), append(h.values, bytes.Clone(value))
}

func (h *head) Del(name string) (found bool) {
	for i, n := range slices.Backward(h.names) {
		if string(n) == name {
			h.names, h.values, found = append(h.names[:i], h.names[i+1:]...), append(h.values[:i], h.values[i+1:]...), true
		}
	}
	return found
}

func headOf(fields map[string]string) *head {
	h := &head{}
	for name, value := range fields {
		h.Set(name, []byte(value))
	}
	return h
}

func (h *head) fields() map[string]string {
	m := map[string]string{}
	for i := range h.names {
		m[string(h.names[i])] = string(h.values[i])
	}
	return m
}

// TestPropagation: what comes in, in which formats, and what goes out. In the values, TRACE and SPAN are new ids.
func TestPropagation(t *testing.T) {
	const parent = "00-" + traceHex + "-" + spanHex + "-01"
	tests := []struct {
		name    string
		formats Formats
		percent float64
		in, out map[string]string
	}{
		{"new trace, kept", FormatW3C, 100, nil, map[string]string{"traceparent": "00-TRACE-SPAN-03"}},
		{"new trace, dropped", FormatB3, 0, nil, map[string]string{"x-b3-traceid": "TRACE", "x-b3-spanid": "SPAN", "x-b3-sampled": "0"}},
		{
			"continued", FormatW3C, 0,
			map[string]string{"traceparent": parent, "tracestate": "congo=1"},
			map[string]string{"traceparent": "00-" + traceHex + "-SPAN-01", "tracestate": "congo=1"},
		},
		{
			"parent says no", FormatW3C, 100,
			map[string]string{"traceparent": "00-" + traceHex + "-" + spanHex + "-00"},
			map[string]string{"traceparent": "00-" + traceHex + "-SPAN-00"},
		},
		{
			"bad state is dropped", FormatW3C, 0,
			map[string]string{"traceparent": parent, "tracestate": "a=1,a=2"},
			map[string]string{"traceparent": "00-" + traceHex + "-SPAN-01"},
		},
		{
			"bad parent restarts the trace", FormatW3C, 100,
			map[string]string{"traceparent": parent + "-x", "tracestate": "congo=1"},
			map[string]string{"traceparent": "00-TRACE-SPAN-03"},
		},
		{
			"b3 headers", FormatB3, 0,
			map[string]string{"x-b3-traceid": traceHex, "x-b3-spanid": spanHex, "x-b3-parentspanid": parentHex, "x-b3-sampled": "1"},
			map[string]string{"x-b3-traceid": traceHex, "x-b3-spanid": "SPAN", "x-b3-parentspanid": spanHex, "x-b3-sampled": "1"},
		},
		{
			"b3 short trace id and debug", FormatB3, 0,
			map[string]string{"x-b3-traceid": traceHex[16:], "x-b3-spanid": spanHex, "x-b3-flags": "1"},
			map[string]string{"x-b3-traceid": traceHex[16:], "x-b3-spanid": "SPAN", "x-b3-parentspanid": spanHex, "x-b3-flags": "1"},
		},
		{
			"b3 single wins over headers", FormatB3Single, 0,
			map[string]string{"b3": traceHex + "-" + spanHex + "-1", "x-b3-sampled": "0"},
			map[string]string{"b3": traceHex + "-SPAN-1-" + spanHex, "x-b3-sampled": "0"},
		},
		{
			"b3 decision alone", FormatB3, 100,
			map[string]string{"x-b3-sampled": "false"},
			map[string]string{"x-b3-traceid": "TRACE", "x-b3-spanid": "SPAN", "x-b3-sampled": "0"},
		},
		{
			"b3 without a decision", FormatB3, 100,
			map[string]string{"x-b3-traceid": traceHex, "x-b3-spanid": spanHex},
			map[string]string{"x-b3-traceid": traceHex, "x-b3-spanid": "SPAN", "x-b3-parentspanid": spanHex, "x-b3-sampled": "1"},
		},
		{
			"b3 that is broken", FormatB3, 0,
			map[string]string{"x-b3-traceid": "xyz", "x-b3-spanid": spanHex, "x-b3-parentspanid": parentHex, "x-b3-sampled": "1", "b3": "?"},
			map[string]string{"x-b3-traceid": "TRACE", "x-b3-spanid": "SPAN", "x-b3-sampled": "0", "b3": "?"},
		},
		{
			"b3 with W3C: B3 first, both written", FormatB3 | FormatW3C, 0,
			map[string]string{"x-b3-traceid": traceHex, "x-b3-spanid": spanHex, "x-b3-sampled": "1", "traceparent": "00-" + strings.Repeat("1", 32) + "-" + parentHex + "-00"},
			map[string]string{"x-b3-traceid": traceHex, "x-b3-spanid": "SPAN", "x-b3-parentspanid": spanHex, "x-b3-sampled": "1", "traceparent": "00-" + traceHex + "-SPAN-01"},
		},
		{
			"b3 with W3C: W3C if there is no B3", FormatB3 | FormatW3C, 0,
			map[string]string{"traceparent": parent},
			map[string]string{"x-b3-traceid": traceHex, "x-b3-spanid": "SPAN", "x-b3-parentspanid": spanHex, "x-b3-sampled": "1", "traceparent": "00-" + traceHex + "-SPAN-01"},
		},
		{"nothing asked for", 0, 100, map[string]string{"traceparent": parent}, map[string]string{"traceparent": parent}},
	}
	for _, tt := range tests {
		p := &Propagator{Formats: tt.formats, Sampler: NewSampler(tt.percent), IDs: NewIDs()}
		h := headOf(tt.in)
		c := p.Begin(h)
		if c.Trace == (ID{}) || c.Span == (SpanID{}) || c.Decision == Undecided {
			t.Errorf("%s: incomplete context %+v", tt.name, c)
		}
		p.Inject(h, &c)
		want := map[string]string{}
		for name, value := range tt.out {
			want[name] = strings.NewReplacer("TRACE", c.Trace.String(), "SPAN", c.Span.String()).Replace(value)
		}
		if diff := cmp.Diff(want, h.fields()); diff != "" {
			t.Errorf("%s:\n%s", tt.name, diff)
		}
	}
}

func TestInjectIntoAnotherHead(t *testing.T) {
	p := &Propagator{Formats: FormatW3C, IDs: NewIDs()}
	in := headOf(map[string]string{"traceparent": "00-" + traceHex + "-" + spanHex + "-01", "tracestate": "congo=1"})
	server := p.Begin(in)
	client := p.Child(server)
	if client.Parent != server.Span || client.Trace != server.Trace || client.Span == server.Span || server.Parent.String() != spanHex {
		t.Errorf("server %+v, client %+v", server, client)
	}
	out := headOf(map[string]string{"tracestate": "other=1"})
	p.Inject(out, &client)
	want := map[string]string{"traceparent": "00-" + traceHex + "-" + client.Span.String() + "-01", "tracestate": "congo=1"}
	if diff := cmp.Diff(want, out.fields()); diff != "" {
		t.Error(diff)
	}
}

func TestSampler(t *testing.T) {
	g := NewIDs()
	one, ten := NewSampler(1), NewSampler(10)
	const n = 200_000
	var kept1, kept10 int
	for range n {
		id := g.Trace()
		k1, k10 := one.Decide(id).Recorded(), ten.Decide(id).Recorded()
		if k1 && !k10 {
			t.Fatalf("%s is kept at 1 %% and dropped at 10 %%", id)
		}
		if k1 {
			kept1++
		}
		if k10 {
			kept10++
		}
		if NewSampler(100).Decide(id) != Keep || (Sampler{}).Decide(id) != Drop || NewSampler(1) != one {
			t.Fatal("the ends are wrong")
		}
	}
	// Six standard deviations: sqrt(n p (1-p)) is 44 and 134.
	if kept1 < n/100-270 || kept1 > n/100+270 || kept10 < n/10-810 || kept10 > n/10+810 {
		t.Errorf("kept %d at 1 %% and %d at 10 %% of %d", kept1, kept10, n)
	}
	nan := 0.0
	nan /= nan
	for percent, want := range map[float64]Sampler{-1: {}, 1000: {kept: randomRange}} {
		if got := NewSampler(percent); got != want {
			t.Errorf("%v %%: %v", percent, got)
		}
	}
	if NewSampler(nan) != (Sampler{}) {
		t.Error("NaN keeps something")
	}
}

func TestRequestID(t *testing.T) {
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	p := &Propagator{IDs: NewIDs()}
	seen := map[string]bool{}
	for in, keep := range map[string]bool{
		"": false, "cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2": true, "my own id": false, "any.id/of:mine": true, "a\nb": false, strings.Repeat("x", 257): false,
		strings.Repeat("x", 256): true,
	} {
		h := headOf(map[string]string{HeaderRequestID: in})
		p.EnsureRequestID(h)
		got := h.fields()[HeaderRequestID]
		if keep && got != in || !keep && !uuid.MatchString(got) || seen[got] {
			t.Errorf("%q became %q", in, got)
		}
		seen[got] = true
	}
	h := &head{}
	p.EnsureRequestID(h)
	if got := h.fields()[HeaderRequestID]; !uuid.MatchString(got) {
		t.Errorf("no id became %q", got)
	}
}

func TestAllocations(t *testing.T) {
	p := &Propagator{Formats: FormatB3 | FormatB3Single | FormatW3C, Sampler: NewSampler(1), IDs: NewIDs()}
	h := headOf(map[string]string{"traceparent": "00-" + traceHex + "-" + spanHex + "-01", "tracestate": "congo=1"})
	exchange := func() {
		c := p.Begin(h)
		c = p.Child(c)
		p.Inject(h, &c)
		h.Set(HeaderRequestID, nil)
		p.EnsureRequestID(h)
	}
	if n := testing.AllocsPerRun(100, exchange); n != 0 { // the first, unmeasured run grows the head
		t.Errorf("propagation allocates %v times, want 0", n)
	}
}

func FuzzParseTraceparent(f *testing.F) {
	f.Add([]byte("00-" + traceHex + "-" + spanHex + "-01"))
	f.Add([]byte("cc-" + traceHex + "-" + spanHex + "-01-what"))
	f.Fuzz(func(t *testing.T, p []byte) {
		c, ok := ParseTraceparent(p)
		if !ok {
			return
		}
		again, ok := ParseTraceparent(c.AppendTraceparent(nil))
		if diff := cmp.Diff(c, again); !ok || diff != "" {
			t.Errorf("%q: %v %s", p, ok, diff)
		}
	})
}

func FuzzParseB3(f *testing.F) {
	f.Add([]byte(traceHex + "-" + spanHex + "-1-" + parentHex))
	f.Add([]byte(traceHex[:16] + "-" + spanHex))
	f.Add([]byte("0"))
	f.Fuzz(func(t *testing.T, p []byte) {
		c, ok := ParseB3(p)
		if !ok || c.Trace == (ID{}) {
			return
		}
		again, ok := ParseB3(c.AppendB3(nil))
		if diff := cmp.Diff(c, again); !ok || diff != "" {
			t.Errorf("%q: %v %s", p, ok, diff)
		}
	})
}

func FuzzTracestate(f *testing.F) {
	f.Add([]byte("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"))
	f.Add([]byte(" a=b ,, c@d=e"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if ValidTracestate(p) && bytes.ContainsAny(p, "\r\n\x00") {
			t.Errorf("%q may be passed on", p)
		}
	})
}
