package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy"
)

// TestHost: what a host writes is understood, every field of it.
func TestHost(t *testing.T) {
	text, err := json.Marshal(host.ProxyConfig{
		Role: host.RoleGateway, Name: "n", Namespace: "ns", ServiceAccount: "sa", Labels: map[string]string{"a": "b"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.2")}, Workload: plan.Workload{Name: "w", App: "app"},
		Ports: map[string]uint16{"http": 80}, TrustDomain: "td", Control: []string{"10.77.0.1:1"}, ControlName: "c",
		Roots: []byte("pem"), Token: "t", Inherited: map[string]int{"admin": 3}, AdminSocket: "/s", MarkSockets: true,
		DrainTime: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := read("-", strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	want := proxy.Config{
		Role: proxy.RoleGateway, Name: "n", Namespace: "ns", ServiceAccount: "sa", Labels: map[string]string{"a": "b"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.2")}, Workload: plan.Workload{Name: "w", App: "app"},
		Ports: map[string]uint16{"http": 80}, TrustDomain: "td", Control: []string{"10.77.0.1:1"}, ControlName: "c",
		Roots: []byte("pem"), Token: "t", Inherited: map[string]int{"admin": 3}, AdminSocket: "/s", MarkSockets: true,
		DrainTime: time.Second,
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
}

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(`{"Name": "x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if cfg, err := read(file, nil); err != nil || cfg.Name != "x" {
		t.Errorf("%+v (%v)", cfg, err)
	}
	for _, test := range []struct{ path, stdin, want string }{
		{"", "", "use --config FILE"},
		{"/no/such/file", "", "open the configuration"},
		{"-", "{", "read the configuration"},
		{"-", `{"Nom": "x"}`, `unknown field "Nom"`},
	} {
		if _, err := read(test.path, strings.NewReader(test.stdin)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("read(%q, %q): %v, want %q", test.path, test.stdin, err, test.want)
		}
	}
}
