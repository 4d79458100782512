package redirect

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestAnnotated(t *testing.T) {
	prefixes := cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})
	base := Config{NoDNS: true, NoInbound: true, NoOutbound: true}
	for _, test := range []struct {
		name, key, value string
		want             Config // Besides NoDNS.
		err              string
	}{
		{"another's", "sidecar.istio.io/inject", "true", Config{NoInbound: true, NoOutbound: true}, ""},
		{"all inbound", "includeInboundPorts", "*", Config{NoOutbound: true}, ""},
		{"no inbound", "includeInboundPorts", " ", Config{NoInbound: true, NoOutbound: true}, ""},
		{"no inbound either", "includeInboundPorts", ",", Config{NoInbound: true, NoOutbound: true}, ""},
		{
			"some inbound", "includeInboundPorts", "80, 443,",
			Config{NoOutbound: true, IncludeInboundPorts: []uint16{80, 443}},
			"",
		},
		{
			"inbound but", "excludeInboundPorts", "65535",
			Config{NoInbound: true, NoOutbound: true, ExcludeInboundPorts: []uint16{65535}},
			"",
		},
		{"all outbound", "includeOutboundIPRanges", " * ", Config{NoInbound: true}, ""},
		{"no outbound", "includeOutboundIPRanges", "", Config{NoInbound: true, NoOutbound: true}, ""},
		{"some outbound", "includeOutboundIPRanges", "10.1.2.3/8,fd00::/8", Config{
			NoInbound:             true,
			IncludeOutboundRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
		}, ""},
		{"outbound but", "excludeOutboundIPRanges", "10.0.0.0/8", Config{
			NoInbound: true, NoOutbound: true,
			ExcludeOutboundRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		}, ""},
		{"outbound ports", "includeOutboundPorts", "1", Config{
			NoInbound: true, NoOutbound: true,
			IncludeOutboundPorts: []uint16{1},
		}, ""},
		{"outbound but ports", "excludeOutboundPorts", "1,2", Config{
			NoInbound: true, NoOutbound: true,
			ExcludeOutboundPorts: []uint16{1, 2},
		}, ""},
		{"interfaces", "excludeInterfaces", "eth1, net1", Config{
			NoInbound: true, NoOutbound: true,
			ExcludeInterfaces: []string{"eth1", "net1"},
		}, ""},
		{"no virtual interface", "kubevirtInterfaces", "", Config{NoInbound: true, NoOutbound: true}, ""},

		{"virtual interface", "kubevirtInterfaces", "net1", Config{}, "not supported"},
		{"virtual interface, new name", "istio.io/reroute-virtual-interfaces", "net1", Config{}, "not supported"},
		{"unknown", "includeInboundPort", "80", Config{}, "no such annotation"},
		{"port too large", "includeInboundPorts", "80,65536,0,x", Config{}, `not a port (1 to 65535): ["65536" "0" "x"]`},
		{"star to exclude", "excludeOutboundPorts", "*", Config{}, `not a port (1 to 65535): ["*"]`},
		{"address without length", "excludeOutboundIPRanges", "10.0.0.1", Config{}, `fd00::/8: ["10.0.0.1"]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := test.key
			if !strings.Contains(key, "/") {
				key = annotationPrefix + key
			}
			got, err := Annotated(base, map[string]string{key: test.value})
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), key) {
					t.Errorf("error %v, want one with %q and %q", err, key, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			test.want.NoDNS = true
			if diff := cmp.Diff(test.want, got, prefixes, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// FuzzAnnotated: whatever a pod says, the answer is an error or rules that can be printed and encoded.
func FuzzAnnotated(f *testing.F) {
	f.Add("80,443", "10.0.0.0/8,fd00::/8", "eth1")
	f.Add("*", "*", "")
	f.Add("0", "::ffff:1.2.3.4/128", "lo")
	f.Fuzz(func(t *testing.T, ports, ranges, interfaces string) {
		config, err := Annotated(Config{}, map[string]string{
			annotationPrefix + "includeInboundPorts":     ports,
			annotationPrefix + "excludeOutboundPorts":    ports,
			annotationPrefix + "includeOutboundIPRanges": ranges,
			annotationPrefix + "excludeInterfaces":       interfaces,
		})
		if err != nil {
			return
		}
		rules, err := Rules(config)
		if err != nil {
			return
		}
		lines := strings.Count(rules.String(), "\n")
		for _, c := range rules.Chains {
			for _, r := range c.Rules {
				lines--
				if len(encodeRule(r)) == 0 {
					t.Errorf("rule %q encodes to nothing", r)
				}
			}
		}
		if lines > 5*len(rules.Chains)+2 {
			t.Errorf("a rule takes more than one line:\n%s", rules)
		}
	})
}
