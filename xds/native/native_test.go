package native

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/lateen-mesh/lateen/plan"
)

// rich is one value of each kind as a compiler would make it.
func rich() []plan.Resource {
	session := time.Duration(0)
	origin := plan.Origin{Kind: "VirtualService", Namespace: "default", Name: "reviews", File: "mesh/reviews.yaml", Line: 7}
	route := plan.Route{Name: "reviews.default.svc.cluster.local:9080", Hosts: []plan.VirtualHost{{
		Name: "reviews", Domains: []string{"reviews", "reviews:9080", "*.example.com"},
		Rules: []plan.Rule{{
			Match: plan.RequestMatch{
				Path:    plan.StringMatch{Kind: plan.MatchPrefix, Value: "/api"},
				Headers: []plan.HeaderMatch{{Name: "end-user", Value: plan.StringMatch{Kind: plan.MatchExact, Value: "jason"}, Invert: true}},
			},
			Origin:   origin,
			Clusters: []plan.WeightedCluster{{Cluster: "v1", Weight: 90}, {Cluster: "v2", Weight: 10}},
			Request:  plan.HeaderEdits{Set: []plan.Header{{Name: "x-a", Value: "%REQ(b)%"}}, Remove: []string{"x-c"}},
			Retry:    &plan.Retry{Attempts: 2, On: plan.OnConnectFailure | plan.OnGRPCUnavailable, StatusCodes: []int{503, 429}},
			Fault:    &plan.Fault{AbortGRPC: -1, Delay: time.Second, DelayPercent: 12.5},
			HashOn:   []plan.HashOn{{Cookie: "user", CookieTTL: &session}},
		}},
	}}}
	return []plan.Resource{
		&plan.Listener{
			Name: "inbound", Direction: plan.Inbound, Bind: netip.MustParseAddrPort("[::]:443"),
			Chains: []plan.Chain{{
				Match: plan.ChainMatch{Ports: []uint16{80, 65535}, Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::/0")}},
				TLS:   plan.ServerTLS{Mode: plan.TLSStrict, CipherSuites: []uint16{0x1301}},
				HTTP:  &plan.HTTP{Inline: &route, ForwardClientCert: plan.ClientCertAppendForward},
				Authz: &plan.Authz{}, // which is not the same as none
			}},
			Telemetry: plan.Telemetry{AccessLogs: []plan.AccessLog{{Path: "/dev/stdout", Labels: map[string]string{"b": "2", "a": "1", "": ""}}}},
		},
		&route,
		&plan.Cluster{
			Name: "v1", Balance: plan.Balance{Distribute: map[string]uint32{"eu/*": 80, "us/*": 0}},
			Outlier: &plan.Outlier{}, Limits: plan.Limits{Connections: 1 << 31, RetryBudget: 20},
		},
		&plan.Endpoints{Name: "v1", Endpoints: []plan.Endpoint{
			{Address: netip.MustParseAddrPort("10.0.0.7:9080"), Health: plan.Draining, MTLS: true},
			{Host: "db.example.com", Port: 5432},
			{},
		}},
		&plan.Name{Name: "reviews", Addresses: []netip.Addr{netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("fe80::1%eth0")}},
		&plan.Secret{Name: "kubernetes://default/cert", Chain: []byte("chain"), Key: []byte{0, 255}},
	}
}

func TestRoundTrip(t *testing.T) {
	for _, want := range rich() {
		got, err := Decode(want.ResourceKind(), Encode(want))
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", want.ResourceKind(), d)
		}
	}
}

func TestTypeURL(t *testing.T) {
	urls := TypeURLs()
	if len(urls) != len(plan.Kinds()) {
		t.Fatalf("%d type URLs for %d kinds", len(urls), len(plan.Kinds()))
	}
	for i, kind := range plan.Kinds() {
		if got, ok := KindOf(urls[i]); !ok || got != kind || TypeURL(kind) != urls[i] {
			t.Errorf("%s: %q is of kind %s, %t", kind, urls[i], got, ok)
		}
	}
	if TypeURL(99) != "" {
		t.Error("an unknown kind has a type URL")
	}
	if _, ok := KindOf("type.googleapis.com/envoy.config.listener.v3.Listener"); ok {
		t.Error("a foreign type URL has a kind")
	}
}

// field encodes a field of bytes, number one of a number.
func field(num protowire.Number, body ...[]byte) []byte {
	var all []byte
	for _, b := range body {
		all = append(all, b...)
	}
	return appendBytes(nil, num, all)
}

func number(num protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), n)
}

func TestDecodeRefuses(t *testing.T) {
	name := field(1, []byte("x"))
	deep := []byte{}
	for range 20 {
		deep = field(7, deep) // no message nests so far; a later version's might, inside an unknown field
	}
	tests := []struct {
		what string
		kind plan.Kind
		body []byte
		want string // part of the error
	}{
		{"kind", 99, nil, "decode kind(99)"},
		{"cut off", plan.KindName, []byte{0x0a, 5, 'a'}, `decode name ""`},
		{"field number 0", plan.KindName, []byte{0x02, 0}, "invalid field number"},
		{"not UTF-8", plan.KindName, field(1, []byte{0xff}), "Name: is not UTF-8"},
		{"wrong type for text", plan.KindName, number(1, 3), "Name: has another wire type"},
		{"wrong type for a message", plan.KindListener, append(name, number(4, 3)...), `decode listener "x": Chains[0]: has another wire type`},
		{"wrong type for a number", plan.KindListener, field(2, []byte{1}), "Direction: has another wire type"},
		{"wrong type for a float", plan.KindCluster, field(9, number(8, 1)), "Limits.RetryBudget: has another wire type"},
		{"wrong type for a map", plan.KindCluster, field(4, number(7, 1)), "Balance.Distribute: has another wire type"},
		{"wrong type for bytes", plan.KindSecret, number(2, 1), "Chain: has another wire type"},
		{"TLS mode of the future", plan.KindListener, append(name, field(4, field(3, number(1, 99)))...), `"x": Chains[0].TLS.Mode: has the value 99`},
		{"action of the future", plan.KindListener, field(4, nil, field(7, field(1, number(2, 7)))), "Chains[0].Authz.Policies[0].Action: has the value 7"},
		{"port too large", plan.KindListener, field(4, field(2, field(1, []byte{0x80, 0x80, 0x04}))), "Chains[0].Match.Ports[0]: has the value 65536"},
		{"packed list cut off", plan.KindListener, field(4, field(2, field(1, []byte{0x80}))), "Chains[0].Match.Ports[0]: unexpected EOF"},
		{"address of 5 bytes", plan.KindName, field(2, []byte("12345")), "Addresses[0]:"},
		{"no address", plan.KindName, field(2), "Addresses[0]: is no address"},
		{"no range", plan.KindListener, field(4, field(2, field(3, []byte{10, 0, 0, 0, 99}))), "Chains[0].Match.Destinations[0]: is no address range"},
		{"second element", plan.KindName, append(field(2, []byte{1, 2, 3, 4}), field(2)...), "Addresses[1]: is no address"},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			r, err := Decode(tt.kind, tt.body)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, %v; want an error with %q", r, err, tt.want)
			}
			if r != nil {
				t.Error("an error came with a resource")
			}
		})
	}
	if _, err := Decode(plan.KindName, deep); err != nil {
		t.Errorf("an unknown field is skipped whatever it holds: %v", err)
	}
}

func TestDecodeIsBounded(t *testing.T) {
	if _, err := Decode(plan.KindName, make([]byte, bodyMax+1)); err == nil {
		t.Error("a body above the limit was taken")
	}
	// Two bytes on the wire, and a large struct in memory.
	v := reflect.ValueOf(&plan.Route{}).Elem()
	err := (&decoder{memory: memoryMax - 10}).message(field(2, field(3)), v, 0)
	if err == nil || !strings.Contains(err.Error(), "Hosts[0]: makes the resource larger than 256 MiB") {
		t.Errorf("got %v for a list that explodes", err)
	}
	if err := new(decoder).message(nil, reflect.ValueOf(&plan.Name{}).Elem(), depthMax+1); err == nil {
		t.Error("no bound on depth")
	}
}

// TestLaterVersion adds, to every message of a resource, a field that this version does not know.
func TestLaterVersion(t *testing.T) {
	for _, kind := range plan.Kinds() {
		want := filler{rand.New(rand.NewPCG(1, 2)), true}.resource(kind)
		unknown := append(number(200, 7), field(201, []byte("later"))...)
		unknown = protowire.AppendFixed32(protowire.AppendTag(unknown, 202, protowire.Fixed32Type), 1)
		body := append(append([]byte{}, unknown...), append(Encode(want), unknown...)...)
		got, err := Decode(kind, body)
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", kind, d)
		}
	}
}

// TestEarlierVersion takes fields away one at a time; the others stay as they were, and nothing is an error.
func TestEarlierVersion(t *testing.T) {
	for _, kind := range plan.Kinds() {
		whole := Encode(filler{rand.New(rand.NewPCG(3, 4)), true}.resource(kind))
		numbers := map[protowire.Number]bool{}
		if err := eachField(whole, func(num protowire.Number, _ protowire.Type, _ []byte) error {
			numbers[num] = true
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for gone := range numbers {
			var body []byte
			if err := eachField(whole, func(num protowire.Number, kind protowire.Type, p []byte) error {
				if num != gone {
					body = append(protowire.AppendTag(body, num, kind), p...)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			got, err := Decode(kind, body)
			if err != nil {
				t.Fatalf("%s without field %d: %v", kind, gone, err)
			}
			if string(Encode(got)) != string(body) {
				t.Errorf("%s without field %d: another field changed", kind, gone)
			}
		}
	}
}

// TestOtherWriters checks what proto3 allows other writers to do.
func TestOtherWriters(t *testing.T) {
	listener := func(parts ...[]byte) []byte { return field(4, parts...) }
	tests := []struct {
		what       string
		kind       plan.Kind
		body, same []byte
	}{
		{"a list that is not packed", plan.KindListener, listener(field(2, number(1, 80), number(1, 443))), listener(field(2, field(1, []byte{80, 0xbb, 0x03})))},
		{"the last of two", plan.KindName, append(field(1, []byte("a")), field(1, []byte("b"))...), field(1, []byte("b"))},
		{"a message in two parts", plan.KindCluster, append(field(9, number(1, 5)), field(9, number(2, 6))...), field(9, number(1, 5), number(2, 6))},
		{"an entry without value", plan.KindCluster, field(4, field(7, field(1, []byte("a")))), field(4, field(7, field(1, []byte("a")), number(2, 0)))},
		{"two entries of one key", plan.KindCluster, field(4, field(7, field(1, []byte("a")), number(2, 1)), field(7, field(1, []byte("a")), number(2, 2))), field(4, field(7, field(1, []byte("a")), number(2, 2)))},
		{"zero that is written", plan.KindListener, number(2, 0), nil},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			got, err := Decode(tt.kind, tt.body)
			if err != nil {
				t.Fatal(err)
			}
			want, err := Decode(tt.kind, tt.same)
			if err != nil {
				t.Fatal(err)
			}
			if d := diff(want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range rich() {
		f.Add(uint8(r.ResourceKind()), Encode(r))
	}
	for _, kind := range plan.Kinds() {
		f.Add(uint8(kind), Encode(filler{rand.New(rand.NewPCG(5, 6)), true}.resource(kind)))
	}
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		r, err := Decode(plan.Kind(kind), body)
		if err != nil {
			return
		}
		first := Encode(r)
		again, err := Decode(plan.Kind(kind), first)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if string(Encode(again)) != string(first) {
			t.Fatal("written twice, two results")
		}
		_ = r.String()
	})
}

func hundred() *plan.Endpoints {
	e := &plan.Endpoints{Name: "outbound|9080||reviews.default.svc.cluster.local"}
	for i := range 100 {
		e.Endpoints = append(e.Endpoints, plan.Endpoint{
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), 9080), MTLS: true, Locality: "eu/a/1",
			Identity: "spiffe://cluster.local/ns/default/sa/reviews",
			Workload: plan.Workload{Name: fmt.Sprintf("reviews-%d", i), Namespace: "default", App: "reviews", Version: "v1"},
		})
	}
	return e
}

func BenchmarkEncode(b *testing.B) {
	e := hundred()
	b.ReportAllocs()
	for b.Loop() {
		Encode(e)
	}
}

func BenchmarkDecode(b *testing.B) {
	body := Encode(hundred())
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(plan.KindEndpoints, body); err != nil {
			b.Fatal(err)
		}
	}
}
