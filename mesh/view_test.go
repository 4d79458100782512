package mesh

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func view(objects ...Object) *View {
	var changes []Change
	for _, o := range objects {
		changes = append(changes, Change{o.Ref(), o})
	}
	snap, _ := NewBuilder().Apply(changes)
	return NewView(snap)
}

func TestPatterns(t *testing.T) {
	for host, want := range map[string][]string{
		"a.b.c": {"a.b.c", "*.b.c", "*.c", "*"}, "*.b.c": {"*.b.c", "*.c", "*"}, "a": {"a", "*"}, "*": {"*"}, "*.c": {"*.c", "*"},
	} {
		if diff := cmp.Diff(want, Patterns(host)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", host, diff)
		}
	}
}

func TestServiceOfOneHost(t *testing.T) {
	service := func(namespace string, created int64, see Visibility) *Service {
		return &Service{Origin: Origin{Created: created}, Namespace: namespace, Host: "h", Visibility: see}
	}
	v := view(service("old", 1, Visibility{Namespaces: []string{"old"}}), service("mid", 2, Visibility{}), service("new", 3, Visibility{}), service("none", 0, Visibility{None: true}))
	for namespace, want := range map[string]string{"old": "old", "mid": "mid", "new": "new", "other": "mid", "none": "mid"} {
		if got := v.Service(namespace, "h"); got.Namespace != want {
			t.Errorf("%s sees the service of %s, want %s", namespace, got.Namespace, want)
		}
	}
}

func TestServiceAt(t *testing.T) {
	service := func(namespace, name string, ports []uint16, addrs ...string) *Service {
		s := &Service{Namespace: namespace, Host: name}
		for _, a := range addrs {
			s.Addresses = append(s.Addresses, netip.MustParsePrefix(a))
		}
		for _, p := range ports {
			s.Ports = append(s.Ports, Port{Number: p})
		}
		return s
	}
	v := view(
		service("a", "exact", []uint16{80}, "10.0.0.1/32"), service("a", "wide", []uint16{80, 81}, "10.0.0.0/8"),
		service("a", "narrow", []uint16{80}, "10.0.0.0/24", "fd00::/8"), service("b", "mine", []uint16{80}, "10.0.0.0/24"),
	)
	for _, c := range []struct {
		namespace, addr string
		port            uint16
		want            string
	}{
		{"a", "10.0.0.1", 80, "exact"},
		{"a", "10.0.0.1", 81, "wide"}, // the exact address's owner has no such port
		{"a", "10.0.0.2", 80, "narrow"},
		{"b", "10.0.0.2", 80, "mine"}, // of equal ranges one's own namespace's
		{"b", "10.0.0.1", 80, "exact"},
		{"a", "10.1.0.1", 80, "wide"},
		{"a", "fd00::1", 80, "narrow"},
		{"a", "11.0.0.1", 80, ""},
		{"a", "10.1.0.1", 82, ""},
	} {
		got := ""
		if s := v.ServiceAt(c.namespace, netip.MustParseAddr(c.addr), c.port); s != nil {
			got = s.Host
		}
		if got != c.want {
			t.Errorf("%s %s:%d is %q, want %q", c.namespace, c.addr, c.port, got, c.want)
		}
	}
}

// TestMostSpecific: a pattern that fits better hides those that fit worse, whatever their age; but only where it is seen.
func TestMostSpecific(t *testing.T) {
	route := func(name, host string, created int64, see ...string) *Route {
		return &Route{Origin: Origin{Created: created}, Namespace: "n", Name: name, Hosts: []string{host}, Gateways: []string{GatewayMesh}, Visibility: Visibility{Namespaces: see}}
	}
	v := view(route("any", "*", 1), route("wild", "*.b.c", 2), route("late", "a.b.c", 4), route("early", "a.b.c", 3, "n"), route("hidden", "x.b.c", 0, "m"))
	for _, c := range []struct {
		namespace, host string
		want            []string
	}{
		{"n", "a.b.c", []string{"early", "late"}},
		{"m", "a.b.c", []string{"late"}},
		{"n", "x.b.c", []string{"wild"}},
		{"m", "x.b.c", []string{"hidden"}},
		{"n", "x.c", []string{"any"}},
	} {
		var got []string
		for _, r := range v.Routes(c.namespace, GatewayMesh, c.host) {
			got = append(got, r.Name)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", c.namespace, c.host, diff)
		}
	}
}

func TestDefaults(t *testing.T) {
	v := view()
	if c := v.Config(); c.TrustDomain != "cluster.local" || c.RootNamespace != "istio-system" || c.Sampling != 1 || c.RegistryOnly {
		t.Errorf("the defaults are %+v", c)
	}
	if diff := cmp.Diff([]Dep{{ConfigAll, ""}}, v.Deps()); diff != "" {
		t.Errorf("dependencies (-want +got):\n%s", diff)
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		KindService.String(): "service", KindConfig.String(): "config", Kind(99).String(): "kind(99)", GRPC.String(): "grpc",
		Protocol(99).String(): "protocol(99)", (Ref{KindRoute, "n", "r"}).String(): "route n/r",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
