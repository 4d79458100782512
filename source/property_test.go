package source

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

// TestIncremental makes random edits and compares: what the changes add up to, and the findings, are those of the same
// objects read at once; and each change is one.
func TestIncremental(t *testing.T) {
	const rounds, edits = 12, 30
	for seed := range uint64(rounds) {
		random := rand.New(rand.NewPCG(seed, 1))
		s := New(Config{})
		picture := map[mesh.Ref]mesh.Object{}
		for range edits {
			for _, c := range edit(t, s, random) {
				if c.Object == nil && picture[c.Ref] == nil || c.Object != nil && reflect.DeepEqual(c.Object, picture[c.Ref]) {
					t.Fatalf("seed %d: the change of %s changes nothing", seed, c.Ref)
				}
				if picture[c.Ref] = c.Object; c.Object == nil {
					delete(picture, c.Ref)
				}
			}
		}
		same := NewAllocator()
		same.Restore(s.addresses.Snapshot())
		fresh := New(Config{Allocator: same})
		want := map[mesh.Ref]mesh.Object{}
		for _, c := range fresh.Replace(s.Objects()) {
			want[c.Ref] = c.Object
		}
		if diff := cmp.Diff(want, picture, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
			cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatalf("seed %d (-at once +by edits):\n%s", seed, diff)
		}
		if diff := cmp.Diff(fresh.Findings(), s.Findings()); diff != "" {
			t.Fatalf("seed %d, findings (-at once +by edits):\n%s", seed, diff)
		}
	}
}

// edit adds, changes or removes a few objects from a small world full of conflicts.
func edit(t *testing.T, s *Set, random *rand.Rand) []mesh.Change {
	var upsert []*api.Object
	var remove []api.Ref
	seen := map[api.Ref]bool{}
	for range 1 + random.IntN(3) {
		o := invent(t, random)
		if seen[o.Ref] {
			continue
		}
		seen[o.Ref] = true
		if random.IntN(3) == 0 {
			remove = append(remove, o.Ref)
		} else {
			upsert = append(upsert, o)
		}
	}
	return s.Apply(upsert, remove)
}

func invent(t *testing.T, random *rand.Rand) *api.Object {
	n, host, port := random.IntN(3), random.IntN(3), 80+random.IntN(2)
	head := func(version, kind string) string {
		return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: n%d, namespace: ns%d}\n", version, kind, n, random.IntN(2))
	}
	const net = "networking.istio.io/v1"
	forms := []string{
		head("v1", "Service") + fmt.Sprintf("spec: {ports: [{port: %d}], selector: {app: a%d}}", port, host),
		head(net, "ServiceEntry") + fmt.Sprintf("spec: {hosts: [h%d.com, h2.com], resolution: DNS, ports: [{number: %d, name: http}]}", host%2, port),
		head(net, "VirtualService") + fmt.Sprintf("spec: {hosts: [n%d], http: [{route: [{destination: {host: n%d, subset: v1}}]}]}", host, n),
		head(net, "DestinationRule") + fmt.Sprintf("spec: {host: n%d, subsets: [{name: v%d}]}", host, port-79),
		head(net, "WorkloadEntry") + fmt.Sprintf("spec: {address: 10.0.0.%d, labels: {app: a%d}}", port, host),
		fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'defaultServiceExportTo: [ns%d]'}", host%2),
	}
	return decode(t, "x.yaml", forms[random.IntN(len(forms))])[0]
}

func TestAllocator(t *testing.T) {
	a := NewAllocator()
	seen := map[netip.Addr]string{}
	for i := range 3000 { // some of which collide: 3000 of 65,534
		host := fmt.Sprintf("h%d.example.com", i)
		list, err := a.Addresses("ns", host)
		if err != nil || len(list) != 2 || !rangeV4.Contains(list[0]) || !rangeV6.Contains(list[1]) {
			t.Fatal(list, err)
		}
		for _, addr := range list {
			if other := seen[addr]; other != "" {
				t.Fatalf("%s was given to %s and %s", addr, other, host)
			}
			seen[addr] = host
		}
	}
	first, _ := a.Addresses("ns", "h0.example.com")
	b := NewAllocator()
	b.Restore(a.Snapshot())
	again, err := b.Addresses("ns", "h0.example.com")
	if err != nil || !reflect.DeepEqual(first, again) {
		t.Errorf("%v became %v: %v", first, again, err)
	}
	other, err := NewAllocator().Addresses("ns", "h0.example.com")
	if err != nil || !reflect.DeepEqual(first, other) {
		t.Errorf("the first address of a host is not determined by its name: %v, %v", first, other)
	}
}

func TestAllocatorFull(t *testing.T) {
	a := NewAllocator()
	table := map[string]uint16{}
	for i := range MaxAllocations - 1 {
		table[fmt.Sprintf("ns/%d", i)] = uint16(i + 1)
	}
	a.Restore(table)
	if got, err := a.Addresses("ns", "last"); err != nil || got[0].String() != "240.240.255.254" {
		t.Errorf("the last free address: %v %v", got, err)
	}
	if _, err := a.Addresses("ns", "more"); err == nil {
		t.Error("more addresses are given than there are")
	}
	a.Prune(func(key string) bool { return key == "ns/7" })
	if got := a.Snapshot(); len(got) != 1 {
		t.Errorf("%d are left", len(got))
	}
}

func TestProtocol(t *testing.T) {
	for _, row := range []struct {
		transport, app, name string
		number               uint16
		want                 mesh.Protocol
	}{
		{"TCP", "", "http", 80, mesh.HTTP},
		{"TCP", "", "http-web", 80, mesh.HTTP},
		{"TCP", "", "http_proxy", 80, mesh.HTTP},
		{"TCP", "", "http2-x", 80, mesh.HTTP2},
		{"TCP", "", "grpc", 80, mesh.GRPC},
		{"TCP", "", "grpc-web-x", 80, mesh.HTTP2},
		{"TCP", "", "https-x", 443, mesh.HTTPS},
		{"TCP", "", "tls", 443, mesh.TLS},
		{"TCP", "", "mongo", 1, mesh.TCP},
		{"TCP", "", "redis-x", 1, mesh.TCP},
		{"TCP", "", "web", 80, mesh.Auto},
		{"TCP", "", "", 3306, mesh.TCP},
		{"TCP", "", "", 53, mesh.TCP},
		{"UDP", "", "http", 53, mesh.UDP},
		{"TCP", "grpc", "http", 80, mesh.GRPC},
		{"TCP", "kubernetes.io/ws", "x", 80, mesh.HTTP},
		{"TCP", "kubernetes.io/wss", "x", 80, mesh.HTTPS},
		{"TCP", "example.com/own", "http", 80, mesh.Auto},
	} {
		if got := protocol(row.transport, row.app, row.name, row.number); got != row.want {
			t.Errorf("%v is %s, want %s", row, got, row.want)
		}
	}
}

// TestOnlyWhatDiffers moves, touches and changes objects.
func TestOnlyWhatDiffers(t *testing.T) {
	s := New(Config{})
	text := "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n---\n" +
		"apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {ports: [{port: 80}]}\n"
	if got := s.Replace(decode(t, "x.yaml", text)); len(got) != 2 {
		t.Errorf("first: %v", got)
	}
	if got := s.Replace(decode(t, "x.yaml", text+"# a note\n")); len(got) != 0 {
		t.Errorf("same: %v", got)
	}
	if got := s.Replace(decode(t, "x.yaml", text[:len(text)-6]+"81}]}\n")); len(got) != 1 {
		t.Errorf("one differs: %v", got)
	}
	if got := s.Delete(api.Ref{Kind: api.KindService, Namespace: "default", Name: "a"}); len(got) != 1 || got[0].Object != nil {
		t.Errorf("delete: %v", got)
	}
}

// TestAllocationsAgree: servers of one mesh give a host the same address, whether they were there when its object was made
// or have read all objects at once, also where two hosts would have the same one.
func TestAllocationsAgree(t *testing.T) {
	twins := func() (a, b string) {
		seen := map[netip.Addr]string{}
		for i := 0; ; i++ {
			host := fmt.Sprintf("h%06d.example.com", i)
			list, err := NewAllocator().Addresses("ns", host)
			if err != nil {
				t.Fatal(err)
			}
			if other, ok := seen[list[0]]; ok {
				return other, host
			}
			seen[list[0]] = host
		}
	}
	a, b := twins()
	entry := func(host string, created int64) *api.Object {
		o := decode(t, "x.yaml", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: "+strings.TrimSuffix(host, ".example.com")+
			", namespace: ns}\nspec: {hosts: ["+host+"], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}\n")[0]
		o.Created = created
		return o
	}
	older, younger := entry(b, 1), entry(a, 2) // by name the younger one goes first
	address := func(s *Set, host string) netip.Prefix {
		return s.winner(mesh.Ref{Kind: mesh.KindService, Namespace: "ns", Name: host}).(*mesh.Service).Addresses[0]
	}
	grown, read := New(Config{}), New(Config{})
	grown.Upsert(older)
	grown.Upsert(younger)
	read.Upsert(younger, older)
	for _, host := range []string{a, b} {
		if x, y := address(grown, host), address(read, host); x != y {
			t.Errorf("%s is %v to one server and %v to another", host, x, y)
		}
	}
}
