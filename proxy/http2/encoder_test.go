package http2

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2/hpack"
)

// bothTables is an encoder and a decoder of another's making that must agree.
type bothTables struct {
	t   testing.TB
	e   encoder
	dec *hpack.Decoder
	got []string
}

func newBothTables(t testing.TB) *bothTables {
	b := &bothTables{t: t}
	b.dec = hpack.NewDecoder(hpackTableSize, func(f hpack.HeaderField) {
		mark := ""
		if f.Sensitive {
			mark = "!"
		}
		b.got = append(b.got, mark+f.Name+"="+f.Value)
	})
	return b
}

// send encodes a block of names and values and returns it; what comes out of the decoder is in got.
func (b *bothTables) send(nv ...string) []byte {
	b.t.Helper()
	b.e.begin(b.e.out)
	for i := 0; i < len(nv); i += 2 {
		b.e.field(nv[i], nv[i+1])
	}
	b.got = b.got[:0]
	block := b.e.out[frameHeaderLen:]
	if _, err := b.dec.Write(block); err != nil {
		b.t.Fatalf("block %x: %v", block, err)
	}
	if err := b.dec.Close(); err != nil {
		b.t.Fatalf("block %x: %v", block, err)
	}
	return block
}

// TestNumbers are the examples of RFC 7541 section C.1.
func TestNumbers(t *testing.T) {
	for _, tt := range []struct {
		limit, n int
		want     string
	}{{0x1f, 10, "0a"}, {0x1f, 1337, "1f9a0a"}, {0xff, 42, "2a"}, {0x1f, 31, "1f00"}, {0x7f, 127, "7f00"}, {0x7f, 255, "7f8001"}} {
		if got := hex.EncodeToString(appendNumber(nil, 0, tt.limit, tt.n)); got != tt.want {
			t.Errorf("%d after %#x is %s, want %s", tt.n, tt.limit, got, tt.want)
		}
	}
}

// TestRequestVectors are the examples of RFC 7541 sections C.2.2, C.2.4 and C.3. Its encoder adds every field at once;
// ours does when it has seen it before.
func TestRequestVectors(t *testing.T) {
	b := newBothTables(t)
	if got := hex.EncodeToString(b.send(":path", "/sample/path")); got != "040c2f73616d706c652f70617468" {
		t.Errorf("C.2.2: %s", got)
	}
	if got := hex.EncodeToString(b.send(":method", "GET")); got != "82" {
		t.Errorf("C.2.4: %s", got)
	}
	b.send(":authority", "www.example.com", "cache-control", "no-cache", "custom-key", "custom-value")
	for i, tt := range []struct {
		nv   []string
		want string
	}{
		{
			[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "www.example.com"},
			"828684410f7777772e6578616d706c652e636f6d",
		},
		{
			[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "www.example.com", "cache-control", "no-cache"},
			"828684be58086e6f2d6361636865",
		},
		{
			[]string{":method", "GET", ":scheme", "https", ":path", "/index.html", ":authority", "www.example.com", "custom-key", "custom-value"},
			"828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
		},
	} {
		if got := hex.EncodeToString(b.send(tt.nv...)); got != tt.want {
			t.Errorf("C.3.%d: %s, want %s", i+1, got, tt.want)
		}
	}
	if b.e.table.size != 164 {
		t.Errorf("the table is of %d bytes, want 164", b.e.table.size)
	}
}

// TestStaticTable: every entry with a value is one byte, and every name that may be is the entry's number.
func TestStaticTable(t *testing.T) {
	if len(staticTable) != 62 {
		t.Fatalf("the static table has %d entries", len(staticTable)-1)
	}
	for i, f := range staticTable[1:] {
		b := newBothTables(t)
		if got := b.send(f.name, f.value); len(got) != 1 || int(got[0]) != formIndexed|(i+1) {
			t.Errorf("%s: %s is %x, want entry %d", f.name, f.value, got, i+1)
		}
		if diff := cmp.Diff([]string{f.name + "=" + f.value}, b.got); diff != "" {
			t.Error(diff)
		}
		b.send(f.name, "something else")
		if got := strings.TrimPrefix(b.got[0], "!"); got != f.name+"=something else" {
			t.Errorf("%q comes back as %q", f.name, b.got)
		}
	}
	for _, name := range []string{"", "x", "accept-", "zzz", ":unknown"} {
		if n := nameTable.at(name); n.first != 0 || n.use != useRepeats {
			t.Errorf("%q is known as %+v", name, n)
		}
	}
}

// TestUses: how the fields are written when they come for the third time.
func TestUses(t *testing.T) {
	for _, tt := range []struct {
		name, value, want string
		size              int
	}{
		{"user-agent", "test", "user-agent=test", 1},
		{"x-any", "test", "x-any=test", 1},
		{"te", "trailers", "te=trailers", 1},
		{"grpc-message", "", "grpc-message=", 1},
		{"authorization", "Bearer x", "!authorization=Bearer x", 2 + 1 + len("Bearer x")},
		{"cookie", "a=b", "!cookie=a=b", 2 + 1 + len("a=b")},
		{"date", "today", "date=today", 2 + 1 + len("today")},
		{"content-length", "1234", "content-length=1234", 2 + 1 + len("1234")},
		{"x-request-id", "12345678", "x-request-id=12345678", 2 + 1 + len("12345678")}, // its name is in the table
		{"x-large", strings.Repeat("a", indexedMax), "x-large=" + strings.Repeat("a", indexedMax), 1 + 1 + len("x-large") + 3 + indexedMax},
	} {
		b := newBothTables(t)
		var size int
		for range 3 {
			size = len(b.send(tt.name, tt.value))
			if diff := cmp.Diff([]string{tt.want}, b.got); diff != "" {
				t.Error(diff)
			}
		}
		if size != tt.size {
			t.Errorf("%s takes %d bytes, want %d", tt.name, size, tt.size)
		}
	}
}

// TestOnlyRepeatsEnter: values that come once leave the table to those that come again.
func TestOnlyRepeatsEnter(t *testing.T) {
	b := newBothTables(t)
	for i := range 10_000 {
		n := len(b.send(":path", fmt.Sprintf("/item/%d", i), "user-agent", "test", "x-tenant", "a", "x-request-id", fmt.Sprint(i)))
		if i > 2 && n > 1+1+10+1+1+2+5 {
			t.Fatalf("block %d has %d bytes", i, n)
		}
	}
	if got := b.e.table.added; got != 3 { // user-agent, x-tenant and a request's ID, for its name
		t.Errorf("%d entries were added, want 3", got)
	}
}

// TestManyRepeats: fields that share a set of the cache do not keep one another out of the table.
func TestManyRepeats(t *testing.T) {
	b := newBothTables(t)
	var nv []string
	for i := range 40 {
		nv = append(nv, fmt.Sprintf("x-field-%d", i), fmt.Sprint("value of ", i))
	}
	b.send(nv...)
	b.send(nv...)
	if got := b.send(nv...); len(got) != 40 {
		t.Errorf("40 fields take %d bytes", len(got))
	}
}

// TestSampledAlike: fields that differ where hashField does not look are told apart.
func TestSampledAlike(t *testing.T) {
	values := make([]string, 3)
	for i := range values {
		p := []byte(strings.Repeat("a", 100))
		p[20] = byte('a' + i)
		values[i] = string(p)
	}
	if hashField("x", values[0]) != hashField("x", values[1]) {
		t.Fatal("the values are not alike for the hash")
	}
	b := newBothTables(t)
	for range 4 {
		for _, v := range values {
			b.send("x", v)
			if b.got[0] != "x="+v {
				t.Fatalf("%s came back as %s", v, b.got[0])
			}
		}
	}
}

// TestResizeSaidOnce: a size that is smaller in between empties the table first, and what is no change is not said (RFC
// 7541 section 4.2).
func TestResizeSaidOnce(t *testing.T) {
	for _, tt := range []struct {
		sizes []uint32
		want  string
	}{
		{[]uint32{4096}, "82"},
		{[]uint32{1 << 20}, "82"},
		{[]uint32{0}, "2082"},
		{[]uint32{0, 4096}, "203fe11f82"},
		{[]uint32{100, 0, 200}, "203fa90182"},
		{[]uint32{100, 200}, "203fa90182"},
		{[]uint32{200, 100}, "3f4582"},
	} {
		b := newBothTables(t)
		for _, n := range tt.sizes {
			b.e.setTableSize(n)
		}
		if got := hex.EncodeToString(b.send(":method", "GET")); got != tt.want {
			t.Errorf("%d is said as %s, want %s", tt.sizes, got, tt.want)
		}
		if got := hex.EncodeToString(b.send(":method", "GET")); got != "82" {
			t.Errorf("%d is said again: %s", tt.sizes, got)
		}
	}
}

// TestTablesAgree sends many fields of all sizes through a table that changes.
func TestTablesAgree(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	b := newBothTables(t)
	for range 20_000 {
		if rnd.IntN(200) == 0 {
			n := uint32(rnd.IntN(5000))
			b.dec.SetAllowedMaxDynamicTableSize(max(n, uint32(b.e.tableSize())))
			b.e.setTableSize(n)
		}
		name := [...]string{"a", "user-agent", "x-request-id", "x-long-name-of-a-field", "cookie", ":path"}[rnd.IntN(6)]
		value := strings.Repeat(string(rune('a'+rnd.IntN(8))), rnd.IntN(1+rnd.IntN(1+rnd.IntN(1100))))
		b.send(name, value)
		if got := strings.TrimPrefix(b.got[0], "!"); got != name+"="+value {
			t.Fatalf("%s=%s came back as %s", name, value, got)
		}
		if tab := b.e.table; tab != nil && (tab.size > b.e.tableSize() || tab.added-tab.gone > entriesMax) {
			t.Fatalf("the table has %d bytes of %d, %d entries", tab.size, b.e.tableSize(), tab.added-tab.gone)
		}
	}
}

// TestForeseen: fields in the order of the block before are found without a search, others as ever.
func TestForeseen(t *testing.T) {
	b := newBothTables(t)
	nv := []string{":path", "/a", "x-a", "1", "x-b", "2", "te", "trailers"}
	b.send(nv...)
	b.send(nv...)
	b.send(nv...)
	b.e.table.seen = [seenSets][seenWays]seenField{} // nothing could be found
	if got := b.send(nv...); len(got) != 4 {
		t.Errorf("the same block again: %x", got)
	}
	for _, nv := range [][]string{{"x-b", "2", ":path", "/a"}, {"x-a", "1"}, {"x-b", "1", "x-a", "2"}, nv, {"te", "trailers", "x-b", "2"}} {
		b.send(nv...)
		for i, got := range b.got {
			if got != nv[2*i]+"="+nv[2*i+1] {
				t.Errorf("%q came back as %q", nv, b.got)
			}
		}
	}
}

// TestEntriesWrap: entries are counted modulo 2^32.
func TestEntriesWrap(t *testing.T) {
	b := newBothTables(t)
	b.e.table = &sendTable{added: 1<<32 - 5, gone: 1<<32 - 5}
	for i := range 200 {
		nv := []string{"x-a", fmt.Sprint(i / 4), "x-b", fmt.Sprint(i / 3), "x-c", "constant"}
		b.send(nv...)
		if diff := cmp.Diff([]string{"x-a=" + nv[1], "x-b=" + nv[3], "x-c=constant"}, b.got); diff != "" {
			t.Fatal(diff)
		}
	}
}

// FuzzEncoder sends fields that the input names through a table whose size it changes, to a decoder of another's making.
func FuzzEncoder(f *testing.F) {
	f.Add("abcabcabc")
	f.Add("\xf0abc\xf3abc\xffabc")
	f.Add("aaaaaaaaaaaaaaaaaaaaaaaa\xf1bbbbbbbbbbbbbbbbbbbb\xf8aaaa")
	f.Fuzz(func(t *testing.T, in string) {
		b := newBothTables(t)
		for i := range len(in) {
			c := in[i]
			if c >= 0xf0 {
				b.e.setTableSize(uint32(c-0xf0) * 300)
				continue
			}
			name := [...]string{"a", "te", "x-request-id", "x-much-longer-name", "cookie", ":path", "via", "accept-encoding"}[c%8]
			value := strings.Repeat(string(rune('a'+c/8)), int(c/8)*int(c%3)*20)
			b.send(name, value, "constant", "1", "content-length", "5")
			if got := strings.TrimPrefix(b.got[0], "!"); got != name+"="+value || len(b.got) != 3 {
				t.Fatalf("%s=%s came back as %s", name, value, b.got)
			}
		}
	})
}

func TestHasUpper(t *testing.T) {
	for _, s := range []string{"", "a", "x-request-id", "abcdefgh", "abcdefghi", "0123456789-.", "sec-websocket-key"} {
		if hasUpper([]byte(s)) {
			t.Errorf("%q has no letter in upper case", s)
		}
		for i := range len(s) {
			p := []byte(s)
			for _, c := range []byte("AMZ") {
				if p[i] = c; !hasUpper(p) {
					t.Errorf("%q has a letter in upper case", p)
				}
			}
		}
	}
	e := new(encoder)
	if got := string(e.lowerName([]byte("X-Some_Name^"))); got != "x-some_name^" {
		t.Errorf("got %q", got)
	}
}

func BenchmarkEncode(b *testing.B) {
	h := request("POST", "/helloworld.Greeter/SayHello", "content-type", "application/grpc", "user-agent", "grpc-go/1.85.0", "te", "trailers",
		"x-forwarded-for", "10.0.0.1", "x-forwarded-proto", "http", "x-request-id", "7a9c2d52-3a6f-4b40-9a6c-6b0a7a4f1f10")
	e := new(encoder)
	b.ReportAllocs()
	for b.Loop() {
		e.begin(e.out)
		e.request(h, "http")
	}
}
