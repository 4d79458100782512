package envoy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/xds/envoy"
)

// TestGolden holds what is sent against testdata. UPDATE=1 rewrites it; read the difference before you commit it.
func TestGolden(t *testing.T) {
	at := netip.MustParseAddrPort
	for name, c := range map[string]struct {
		flavour envoy.Flavour
		list    []plan.Resource
	}{
		"sidecar": {envoy.Sidecar, sidecarPlan(at("10.9.1.2:9080"), at("10.9.1.3:9080"), at("10.9.1.4:8080"))},
		"gateway": {envoy.Gateway, append(gatewayPlan(8080, 443, 80, at("10.9.1.2:9080"),
			&plan.Secret{Name: "kubernetes://default/shop", Chain: []byte("chain"), Key: []byte("key"), Roots: []byte("roots")}), oddClusters()...)},
		"grpc": {envoy.GRPC, append(greeterPlan(at("10.9.1.2:9080"), at("10.9.1.3:9080")), grpcClusters()...)},
	} {
		t.Run(name, func(t *testing.T) {
			got := &txtar.Archive{Comment: []byte("What a plan of the tests is for Envoy's " + name + " flavour. Written by UPDATE=1 go test ./xds/envoy.\n")}
			for _, r := range c.list {
				for _, x := range encode(t, c.flavour, envoy.Options{}, r) {
					got.Files = append(got.Files, txtar.File{Name: r.ResourceKind().String() + " " + x.Name, Data: readable(t, x.Message)})
				}
			}
			path := filepath.Join("testdata", name+".txtar")
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(path, txtar.Format(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(txtar.Format(got))); diff != "" {
				t.Errorf("%s (-want +got); UPDATE=1 rewrites it:\n%s", path, diff)
			}
		})
	}
}

// readable is a message as JSON with sorted keys: protojson varies its spaces on purpose.
func readable(t *testing.T, m proto.Message) []byte {
	t.Helper()
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// oddClusters are what the plans of the other tests do not have.
func oddClusters() []plan.Resource {
	dns := func(d plan.Discovery) plan.Cluster {
		return plan.Cluster{Discovery: d, Protocol: plan.ProtocolHTTP2, External: true, Addresses: []plan.Address{{Host: "api.example.com", Port: 443}}}
	}
	simple, mutual, through := dns(plan.DiscoverDNS), dns(plan.DiscoverDNSFirst), dns(plan.DiscoverEndpoints)
	simple.Name, simple.TLS = "simple", plan.ClientTLS{Mode: plan.ClientTLSSimple, SNI: "api.example.com"}
	mutual.Name = "mutual"
	mutual.TLS = plan.ClientTLS{Mode: plan.ClientTLSMutual, SNI: "api.example.com", Secret: "kubernetes://default/shop", Identities: []string{"api.example.com"}}
	mutual.ProxyProtocol = 2
	through.Name, through.Balance.Algorithm, through.Addresses = "passthrough", plan.OriginalDestination, nil
	through.TLS = plan.ClientTLS{Mode: plan.ClientTLSMesh}
	return []plan.Resource{&simple, &mutual, &through}
}

func grpcClusters() []plan.Resource {
	return []plan.Resource{
		&plan.Cluster{
			Name: "mesh", Balance: plan.Balance{Algorithm: plan.Maglev},
			TLS: plan.ClientTLS{Mode: plan.ClientTLSMesh, SNI: "outbound_.9080_._." + greeterHost, Identities: []string{"spiffe://cluster.local/ns/default/sa/greeter"}},
		},
		&plan.Cluster{Name: "dns", Discovery: plan.DiscoverDNS, Balance: plan.Balance{Algorithm: plan.Random}, Addresses: []plan.Address{
			{Host: "api.example.com", Port: 443}, {Host: "other.example.com", Port: 443},
		}},
	}
}

// TestNames holds the table of names of the package comment, there and back.
func TestNames(t *testing.T) {
	for _, c := range []struct {
		flavour envoy.Flavour
		kind    plan.Kind
		name    string
		want    []string
	}{
		{envoy.Sidecar, plan.KindListener, "inbound", []string{"virtualInbound", "virtualOutbound"}},
		{envoy.Sidecar, plan.KindListener, "10.0.0.7:9080", []string{"10.0.0.7_9080"}},
		{envoy.Sidecar, plan.KindListener, "[fd00::7]:9080", []string{"fd00::7_9080"}},
		{envoy.Gateway, plan.KindListener, "gateway|8080", []string{"0.0.0.0_8080"}},
		{envoy.GRPC, plan.KindListener, greeterPort, []string{greeterPort}},
		{envoy.Sidecar, plan.KindRoute, greeterPort, []string{greeterPort}},
		{envoy.Gateway, plan.KindRoute, "gateway|8080", []string{"http.8080"}},
		{envoy.Gateway, plan.KindRoute, "gateway|443|default/web/0", []string{"https.443.default/web/0"}},
		{envoy.GRPC, plan.KindRoute, greeterPort, []string{greeterPort}},
		{envoy.Sidecar, plan.KindCluster, "outbound|80||a", []string{"outbound|80||a"}},
		{envoy.Sidecar, plan.KindEndpoints, "outbound|80||a", []string{"outbound|80||a"}},
		{envoy.Gateway, plan.KindSecret, "kubernetes://default/shop", []string{"kubernetes://default/shop", "kubernetes://default/shop-cacert"}},
	} {
		got := envoy.Names(c.flavour, c.kind, c.name)
		if !slices.Equal(got, c.want) {
			t.Errorf("Names(%d, %s, %q) = %q, want %q", c.flavour, c.kind, c.name, got, c.want)
		}
		for _, n := range got {
			if back := envoy.PlanName(c.flavour, c.kind, n); back != c.name {
				t.Errorf("PlanName(%d, %s, %q) = %q, want %q", c.flavour, c.kind, n, back, c.name)
			}
		}
	}
	for _, name := range []string{"http.api.example.com:80", "https.example.com:80"} {
		if got := envoy.PlanName(envoy.Sidecar, plan.KindRoute, name); got != name {
			t.Errorf("the route of host %q is taken for %q", name, got)
		}
	}
}

// TestTypes holds type URLs against the messages that Encode makes, and their order against the plan's.
func TestTypes(t *testing.T) {
	at := netip.MustParseAddrPort("10.9.1.2:9080")
	for _, r := range gatewayPlan(8080, 443, 80, at, &plan.Secret{Name: "s", Chain: []byte("c"), Roots: []byte("r")}) {
		for _, x := range encode(t, envoy.Gateway, envoy.Options{}, r) {
			if want := "type.googleapis.com/" + string(x.Message.ProtoReflect().Descriptor().FullName()); x.TypeURL != want {
				t.Errorf("%s: type %s, want %s", x.Name, x.TypeURL, want)
			}
			if kind, ok := envoy.KindOf(x.TypeURL); !ok || kind != r.ResourceKind() {
				t.Errorf("KindOf(%s) = %s, %t", x.TypeURL, kind, ok)
			}
		}
	}
	var order []string
	for _, k := range plan.Kinds() {
		if u := envoy.TypeURL(k); u != "" {
			order = append(order, u)
		}
	}
	if got := envoy.TypeURLs(); !slices.Equal(got, order) {
		t.Errorf("TypeURLs() = %q, want %q", got, order)
	}
}

// TestSameBytes encodes everything twice: equal plans must be equal bytes, or proxies are sent what they have.
func TestSameBytes(t *testing.T) {
	at := netip.MustParseAddrPort("10.9.1.2:9080")
	bodies := func() [][]byte {
		var out [][]byte
		for _, r := range sidecarPlan(at, at, at) {
			for _, x := range encode(t, envoy.Sidecar, envoy.Options{}, r) {
				body, err := x.Body()
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, body)
			}
		}
		return out
	}
	want := bodies()
	for range 20 {
		if !slices.EqualFunc(want, bodies(), bytes.Equal) {
			t.Fatal("the second encoding differs")
		}
	}
}
