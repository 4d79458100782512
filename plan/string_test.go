package plan

import (
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestStringShowsAll sets every field of every resource, one at a time, and finds it in the text.
func TestStringShowsAll(t *testing.T) {
	for _, typ := range []reflect.Type{
		reflect.TypeFor[Listener](), reflect.TypeFor[Route](), reflect.TypeFor[Cluster](), reflect.TypeFor[Endpoints](),
		reflect.TypeFor[Name](), reflect.TypeFor[Secret](),
	} {
		count := 0
		leaves(typ, "", nil, func(path string, set func(root reflect.Value, leaf bool)) {
			count++
			with, without := reflect.New(typ), reflect.New(typ)
			set(with.Elem(), true)
			set(without.Elem(), false)
			if a, b := with.Interface().(Resource).String(), without.Interface().(Resource).String(); a == b {
				t.Errorf("%s%s is not shown in\n%s", typ.Name(), path, a)
			}
		})
		if count < 2 {
			t.Errorf("%s has %d fields?", typ, count)
		}
	}
}

// leaves calls visit for every field that holds no further fields; set fills it, and, if leaf is false, only what is
// above it.
func leaves(typ reflect.Type, path string, above func(reflect.Value) reflect.Value, visit func(string, func(reflect.Value, bool))) {
	if above == nil {
		above = func(v reflect.Value) reflect.Value { return v }
	}
	if typ == reflect.TypeFor[Route]() && strings.Contains(path, "Inline") { // the same as outside
		visit(path, func(root reflect.Value, leaf bool) {
			if leaf {
				above(root).FieldByName("Name").SetString("text")
			} else {
				above(root)
			}
		})
		return
	}
	for i := range typ.NumField() {
		f := typ.Field(i)
		field := func(root reflect.Value) reflect.Value { return above(root).Field(i) }
		elem, inner := f.Type, field
		switch {
		case f.Type.Kind() == reflect.Pointer:
			elem = f.Type.Elem()
			inner = func(root reflect.Value) reflect.Value {
				p := field(root)
				if p.IsNil() {
					p.Set(reflect.New(elem))
				}
				return p.Elem()
			}
		case f.Type.Kind() == reflect.Slice:
			elem = f.Type.Elem()
			inner = func(root reflect.Value) reflect.Value {
				s := field(root)
				if s.Len() == 0 {
					s.Set(reflect.MakeSlice(f.Type, 1, 1))
				}
				return s.Index(0)
			}
		}
		if elem.Kind() == reflect.Struct && elem.PkgPath() == reflect.TypeFor[Listener]().PkgPath() {
			leaves(elem, path+"."+f.Name, inner, visit)
			continue
		}
		visit(path+"."+f.Name, func(root reflect.Value, leaf bool) {
			if leaf {
				fill(field(root))
			} else {
				above(root)
			}
		})
	}
}

func fill(v reflect.Value) {
	switch x := v.Addr().Interface().(type) {
	case *netip.Addr:
		*x = netip.MustParseAddr("10.0.0.7")
		return
	case *netip.AddrPort:
		*x = netip.MustParseAddrPort("10.0.0.7:80")
		return
	case *netip.Prefix:
		*x = netip.MustParsePrefix("10.0.0.0/8")
		return
	case *time.Duration:
		*x = 1500 * time.Millisecond
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(2)
	case reflect.Uint8:
		v.SetUint(1)
	case reflect.Uint16, reflect.Uint32: // 1 is often what 0 stands for
		v.SetUint(2)
	case reflect.Float64:
		v.SetFloat(1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(value)
		v.SetMapIndex(key, value)
	default:
		panic("fill " + v.Type().String())
	}
}

// TestGolden shows what the texts look like. UPDATE=1 writes it anew.
func TestGolden(t *testing.T) {
	var b strings.Builder
	for _, r := range examples() {
		b.WriteString(r.String())
		b.WriteString("\n")
	}
	const file = "testdata/resources.txt"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func examples() []Resource {
	origin := Origin{Kind: "VirtualService", Namespace: "default", Name: "reviews", File: "reviews.yaml", Line: 12}
	service := ServiceName{Host: "reviews.default.svc.cluster.local", Name: "reviews", Namespace: "default"}
	ttl := time.Hour
	return []Resource{
		&Listener{
			Name: ListenerInbound, Direction: Inbound,
			Chains: []Chain{{
				Name: "9080", Match: ChainMatch{Ports: []uint16{9080}}, TLS: ServerTLS{Mode: TLSStrict}, Protocol: ProtocolHTTP, Service: service,
				HTTP: &HTTP{
					ServerName: "istio-envoy", ForwardClientCert: ClientCertAppendForward, Peers: true,
					Inline: &Route{Name: "inbound|9080||", Hosts: []VirtualHost{{Name: "inbound|9080||", Domains: []string{"*"}, Rules: []Rule{{Clusters: []WeightedCluster{{Cluster: "inbound|9080||"}}}}}}},
				},
				TCP: &TCP{Clusters: []WeightedCluster{{Cluster: "inbound|9080||"}}, Tunnel: &Tunnel{Target: "db.example:5432", Post: true}},
				Authz: &Authz{Policies: []Policy{
					{Name: "default/nothing", Origin: origin},
					{Name: "default/readers", Action: ActionAllow, DryRun: true, Rules: []PolicyRule{{
						From: []Source{{Principals: []StringMatch{{Kind: MatchExact, Value: "cluster.local/ns/default/sa/web"}}, NotNamespaces: []StringMatch{{Kind: MatchPrefix, Value: "test-"}}}},
						To:   []Operation{{Methods: []StringMatch{{Kind: MatchExact, Value: "GET"}}, Paths: []StringMatch{{Kind: MatchPath, Value: "/a/{*}"}}, Ports: []uint16{9080}}},
						When: []Condition{{Key: "source.ip", NotPrefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
					}}},
				}},
			}},
			Telemetry: Telemetry{AccessLogs: []AccessLog{{Path: "/dev/stdout", JSON: true}}, Tracing: &Tracing{Endpoint: "http://zipkin:9411/api/v2/spans", Sampling: 1}},
		},
		&Route{Name: "reviews:9080", Hosts: []VirtualHost{{
			Name: "reviews.default.svc.cluster.local:9080", Domains: []string{"reviews", "reviews:9080"}, Service: service,
			Rules: []Rule{
				{
					Name: "jason", Origin: origin, Timeout: time.Second,
					Match:    RequestMatch{Path: StringMatch{Kind: MatchPrefix, Value: "/api"}, Headers: []HeaderMatch{{Name: "end-user", Value: StringMatch{Kind: MatchExact, Value: "jason"}}, {Name: "x", Value: StringMatch{Kind: MatchPresent}, Invert: true}}},
					Clusters: []WeightedCluster{{Cluster: "outbound|9080|v1|reviews", Weight: 90}, {Cluster: "outbound|9080|v2|reviews", Weight: 10, Request: HeaderEdits{Set: []Header{{"x", "1"}}}}},
					Retry:    &Retry{Attempts: 2, On: OnConnectFailure | OnStatusCodes, StatusCodes: []int{503}, PerTryTimeout: time.Second, AvoidPrevious: true},
					Rewrite:  &Rewrite{Path: "/v1", Prefix: "/api"},
					Fault:    &Fault{Delay: time.Second, DelayPercent: 50, AbortStatus: 500, AbortGRPC: -1, AbortPercent: 1},
					Mirrors:  []Mirror{{Cluster: "outbound|9080|v3|reviews", Percent: 100}},
					Request:  HeaderEdits{Remove: []string{"a"}, Set: []Header{{"b", "1"}}, Add: []Header{{"c", "2"}}},
					HashOn:   []HashOn{{Cookie: "session", CookieTTL: &ttl}},
				},
				{Redirect: &Redirect{Code: 301, Scheme: "https", Port: 443}},
				{Direct: &DirectResponse{Code: 404, Body: "gone"}},
			},
		}}},
		&Cluster{
			Name: "outbound|9080||reviews.default.svc.cluster.local", Service: service, Protocol: ProtocolHTTP, Origin: origin,
			TLS:     ClientTLS{Mode: ClientTLSAuto, SNI: "outbound_.9080_._.reviews.default.svc.cluster.local", Identities: []string{"spiffe://cluster.local/ns/default/sa/reviews"}},
			Limits:  Limits{Connections: 100, PendingRequests: 1},
			Outlier: &Outlier{Consecutive5xx: 5, Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjectionPercent: 10},
		},
		&Endpoints{Name: "outbound|9080||reviews.default.svc.cluster.local", Endpoints: []Endpoint{
			{Address: netip.MustParseAddrPort("10.0.0.7:9080"), MTLS: true, Locality: "eu/a", Identity: "spiffe://cluster.local/ns/default/sa/reviews", Workload: Workload{Name: "reviews-v1", Namespace: "default", App: "reviews", Version: "v1"}},
			{Host: "example.com", Port: 443, Health: Unhealthy, Weight: 3},
		}},
		&Name{Name: "reviews", Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd00::1")}},
		&Secret{Name: "kubernetes://istio-system/web", Chain: []byte("PEM"), Key: []byte("secret")},
	}
}

// TestSecretIsNotShown keeps keys out of every text.
func TestSecretIsNotShown(t *testing.T) {
	if s := (&Secret{Name: "n", Key: []byte("the-key")}).String(); strings.Contains(s, "the-key") {
		t.Errorf("the key is in %q", s)
	}
}

func TestNames(t *testing.T) {
	for _, k := range Kinds() {
		if strings.HasPrefix(k.String(), "kind(") {
			t.Errorf("%d has no name", k)
		}
	}
	for got, want := range map[string]string{
		Kind(99).String(): "kind(99)", Protocol(99).String(): "protocol(99)", ProtocolTLS.String(): "tls", TLSMesh.String(): "mesh",
		Draining.String(): "draining", Gateway.String(): "gateway", OriginalDestination.String(): "passthrough",
		DiscoverNothing.String(): "none", ClientTLSMutual.String(): "mutual tls", ActionAudit.String(): "audit",
		(On5xx | OnGRPCUnavailable).String(): "5xx,unavailable", Origin{}.String(): "",
		StringMatch{Kind: MatchPrefix, Value: "/A", IgnoreCase: true}.String(): "prefix /A (any case)",
		StringMatch{}.String(): "none",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if len(RetryOnNames) != 13 || 1<<(len(RetryOnNames)-1) != OnGRPCUnavailable {
		t.Error("the retry conditions have other names")
	}
}
