package redirect

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

// expectation is one connection and the line that answers it.
type expectation struct {
	name   string
	caller caller
	to     string
	want   string
}

func (w workload) expect(t *testing.T, rows []expectation) {
	t.Helper()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if row.caller.uid != 0 || row.caller.gid != 0 {
				needIDs(t)
			}
			if got := w.call(t, row.caller, row.to); got != row.want {
				t.Errorf("a call to %s is answered %q, want %q", row.to, got, row.want)
			}
		})
	}
}

// needIDs skips where the test's user is the only one of its user namespace.
func needIDs(t *testing.T) {
	t.Helper()
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if fields := strings.Fields(string(ids)); len(fields) == 3 && fields[2] == "1" {
		t.Skip("needs a second uid: an ordinary user has one, run as root")
	}
}

func TestCaptureOutbound(t *testing.T) {
	a, b := pair(t)
	a.apply(t, Config{})
	a.serve(t, "outbound", ":15001")
	a.serve(t, "inbound", ":15006")
	for _, port := range []uint16{80, TunnelPort, OutboundPort} {
		b.serve(t, "real", fmt.Sprintf(":%d", port))
	}
	marked := caller{mark: ProxyMark}
	a.expect(t, []expectation{
		{"v4", caller{}, at(b.v4, 80), "outbound 10.77.0.3:80 from 10.77.0.2"},
		{"v6", caller{}, at(b.v6, 80), "outbound [fd77::3]:80 from fd77::2"},
		{"v4 VIP", caller{}, "240.240.0.1:443", "outbound 240.240.0.1:443 from 10.77.0.2"},
		{"v6 VIP", caller{}, "[2001:2::1]:443", "outbound [2001:2::1]:443 from fd77::2"},
		{"HBONE of another host", caller{}, at(b.v4, TunnelPort), "outbound 10.77.0.3:15008 from 10.77.0.2"},
		{"proxy of another host", caller{}, at(b.v4, OutboundPort), "outbound 10.77.0.3:15001 from 10.77.0.2"},
		{"marked v4", marked, at(b.v4, 80), "real 10.77.0.3:80 from 10.77.0.2"},
		{"marked v6", marked, at(b.v6, 80), "real [fd77::3]:80 from fd77::2"},
		{"marked with more bits", caller{mark: 0xa000 | ProxyMark}, at(b.v4, 80), "real 10.77.0.3:80 from 10.77.0.2"},
		{"other mark", caller{mark: 0x53a}, at(b.v4, 80), "outbound 10.77.0.3:80 from 10.77.0.2"},
		{"proxy's uid v4", caller{uid: ProxyUser}, at(b.v4, 80), "real 10.77.0.3:80 from 10.77.0.2"},
		{"proxy's uid v6", caller{uid: ProxyUser}, at(b.v6, 80), "real [fd77::3]:80 from fd77::2"},
		{"proxy's gid", caller{gid: ProxyUser}, at(b.v4, 80), "real 10.77.0.3:80 from 10.77.0.2"},
		{"other uid and gid", caller{uid: 1338, gid: 1338}, at(b.v4, 80), "outbound 10.77.0.3:80 from 10.77.0.2"},
	})
}

// TestCaptureSelf is a workload whose calls come back to itself.
func TestCaptureSelf(t *testing.T) {
	a, _ := pair(t)
	a.apply(t, Config{})
	a.serve(t, "outbound", ":15001")
	a.serve(t, "inbound", ":15006")
	for _, port := range []uint16{8080, 53, TunnelPort} {
		a.serve(t, "app", fmt.Sprintf(":%d", port))
	}
	marked := caller{mark: ProxyMark}
	a.expect(t, []expectation{
		// The way of a call to the own service: workload, outbound, inbound, workload.
		{"own VIP", caller{}, "240.240.0.1:8080", "outbound 240.240.0.1:8080 from 10.77.0.2"},
		{"proxy to own v4", marked, at(a.v4, 8080), "inbound 10.77.0.2:8080 from 10.77.0.2"},
		{"proxy to own v6", marked, at(a.v6, 8080), "inbound [fd77::2]:8080 from fd77::2"},
		{"proxy by uid to own v4", caller{uid: ProxyUser}, at(a.v4, 8080), "inbound 10.77.0.2:8080 from 10.77.0.2"},
		{"proxy by gid to own v6", caller{gid: ProxyUser}, at(a.v6, 8080), "inbound [fd77::2]:8080 from fd77::2"},
		{
			"inbound to app v4",
			caller{mark: ProxyMark, from: "127.0.0.6:0"},
			at(a.v4, 8080),
			"app 10.77.0.2:8080 from 127.0.0.6",
		},
		{"inbound to app v6", caller{mark: ProxyMark, from: "[::6]:0"}, at(a.v6, 8080), "app [fd77::2]:8080 from ::6"},

		{"app to own v4", caller{}, at(a.v4, 8080), "app 10.77.0.2:8080 from 10.77.0.2"},
		{"app to own v6", caller{}, at(a.v6, 8080), "app [fd77::2]:8080 from fd77::2"},
		{"app to 127.0.0.1", caller{}, "127.0.0.1:8080", "app 127.0.0.1:8080 from 127.0.0.1"},
		{"app to ::1", caller{}, "[::1]:8080", "app [::1]:8080 from ::1"},
		{"app to 127.0.0.2", caller{}, "127.0.0.2:8080", "app 127.0.0.2:8080 from 127.0.0.1"},
		{"proxy to 127.0.0.1", marked, "127.0.0.1:8080", "app 127.0.0.1:8080 from 127.0.0.1"},
		{"proxy to ::1", marked, "[::1]:8080", "app [::1]:8080 from ::1"},
		{"proxy to own HBONE", marked, at(a.v4, TunnelPort), "app 10.77.0.2:15008 from 10.77.0.2"},
		{"proxy to own resolver", marked, at(a.v4, 53), "app 10.77.0.2:53 from 10.77.0.2"},
	})
}

func TestCaptureInbound(t *testing.T) {
	a, b := pair(t)
	a.apply(t, Config{})
	a.serve(t, "inbound", ":15006")
	for _, port := range []uint16{8080, 15000, OutboundPort, TunnelPort, 15020, 15021, 15090, DNSPort} {
		a.serve(t, "app", fmt.Sprintf(":%d", port))
	}
	b.expect(t, []expectation{
		{"v4", caller{}, at(a.v4, 8080), "inbound 10.77.0.2:8080 from 10.77.0.3"},
		{"v6", caller{}, at(a.v6, 8080), "inbound [fd77::2]:8080 from fd77::3"},
		{"marked by the other host", caller{mark: ProxyMark}, at(a.v4, 8080), "inbound 10.77.0.2:8080 from 10.77.0.3"},
		{"HBONE v4", caller{}, at(a.v4, TunnelPort), "app 10.77.0.2:15008 from 10.77.0.3"},
		{"HBONE v6", caller{}, at(a.v6, TunnelPort), "app [fd77::2]:15008 from fd77::3"},
		{"merged metrics", caller{}, at(a.v4, 15020), "app 10.77.0.2:15020 from 10.77.0.3"},
		{"health", caller{}, at(a.v4, 15021), "app 10.77.0.2:15021 from 10.77.0.3"},
		{"metrics", caller{}, at(a.v6, 15090), "app [fd77::2]:15090 from fd77::3"},
		{"admin is not reached past the proxy", caller{}, at(a.v4, 15000), "inbound 10.77.0.2:15000 from 10.77.0.3"},
		{"outbound port", caller{}, at(a.v4, OutboundPort), "inbound 10.77.0.2:15001 from 10.77.0.3"},
		{"inbound port", caller{}, at(a.v4, InboundPort), "inbound 10.77.0.2:15006 from 10.77.0.3"},
		{"DNS port over TCP", caller{}, at(a.v4, DNSPort), "inbound 10.77.0.2:15053 from 10.77.0.3"},
	})
}

// TestCaptureConfig has one workload with rules, "a", that calls another and is called by it.
func TestCaptureConfig(t *testing.T) {
	ranges := func(list ...string) (out []netip.Prefix) {
		for _, r := range list {
			out = append(out, netip.MustParsePrefix(r))
		}
		return out
	}
	const (
		outbound = "outbound 10.77.0.3:80 from 10.77.0.2"
		real     = "real 10.77.0.3:80 from 10.77.0.2"
	)
	for _, test := range []struct {
		name   string
		config Config
		out    []expectation // Calls of a.
		in     []expectation // Calls to a.
	}{
		{
			name: "ports of the proxy", config: Config{OutboundPort: 16001, InboundPort: 16006},
			out: []expectation{{"outbound", caller{}, "10.77.0.3:80", "other outbound 10.77.0.3:80 from 10.77.0.2"}},
			in:  []expectation{{"inbound", caller{}, "10.77.0.2:80", "other inbound 10.77.0.2:80 from 10.77.0.3"}},
		},
		{
			name: "proxy by uid only", config: Config{Proxy: Proxy{UIDs: []uint32{0}}},
			out: []expectation{
				{"uid", caller{}, "10.77.0.3:80", real},
				{"mark and other uid", caller{uid: 9, mark: ProxyMark}, "10.77.0.3:80", outbound},
			},
		},
		{
			name: "proxy by whole mark only", config: Config{Proxy: Proxy{Mark: 0x10000001}},
			out: []expectation{
				{"mark", caller{mark: 0x10000001}, "10.77.0.3:80", real},
				{"a bit less", caller{mark: 1}, "10.77.0.3:80", outbound},
				{"uid", caller{uid: ProxyUser}, "10.77.0.3:80", outbound},
			},
		},
		{
			name: "excluded inbound port", config: Config{ExcludeInboundPorts: []uint16{22}},
			in: []expectation{
				{"excluded", caller{}, "10.77.0.2:22", "app 10.77.0.2:22 from 10.77.0.3"},
				{"excluded v6", caller{}, "[fd77::2]:22", "app [fd77::2]:22 from fd77::3"},
				{"other", caller{}, "10.77.0.2:80", "inbound 10.77.0.2:80 from 10.77.0.3"},
			},
		},
		{
			name: "included inbound port", config: Config{
				IncludeInboundPorts: []uint16{80},
				ExcludeInboundPorts: []uint16{80},
			},
			in: []expectation{
				{"included", caller{}, "10.77.0.2:80", "inbound 10.77.0.2:80 from 10.77.0.3"},
				{"other", caller{}, "10.77.0.2:22", "app 10.77.0.2:22 from 10.77.0.3"},
			},
		},
		{
			name: "no inbound", config: Config{NoInbound: true},
			out: []expectation{{"outbound", caller{}, "10.77.0.3:80", outbound}},
			in:  []expectation{{"inbound", caller{}, "10.77.0.2:80", "app 10.77.0.2:80 from 10.77.0.3"}},
		},
		{
			name: "excluded outbound port", config: Config{
				ExcludeOutboundPorts: []uint16{80},
				IncludeOutboundPorts: []uint16{80},
			},
			out: []expectation{
				{"excluded", caller{}, "10.77.0.3:80", real},
				{"other", caller{}, "10.77.0.3:81", "outbound 10.77.0.3:81 from 10.77.0.2"},
				{"proxy to itself", caller{mark: ProxyMark}, "10.77.0.2:80", "app 10.77.0.2:80 from 10.77.0.2"},
			},
		},
		{
			name: "excluded outbound range", config: Config{
				ExcludeOutboundRanges: ranges("10.77.0.3/31", "fd78::/16"),
				IncludeOutboundPorts:  []uint16{80},
			},
			out: []expectation{
				{"excluded", caller{}, "10.77.0.3:80", real},
				{"next range", caller{}, "10.77.0.4:80", "outbound 10.77.0.4:80 from 10.77.0.2"},
				{"other family", caller{}, "[fd77::3]:80", "outbound [fd77::3]:80 from fd77::2"},
			},
		},
		{
			name: "included outbound range", config: Config{IncludeOutboundRanges: ranges("fd77::/64", "10.78.0.0/16")},
			out: []expectation{
				{"not included", caller{}, "10.77.0.3:80", real},
				{"included v6", caller{}, "[fd77::3]:80", "outbound [fd77::3]:80 from fd77::2"},
				{"included v4", caller{}, "10.78.255.1:80", "outbound 10.78.255.1:80 from 10.77.0.2"},
				{"own loopback", caller{}, "127.0.0.2:80", "app 127.0.0.2:80 from 127.0.0.1"},
			},
		},
		{
			name: "one family", config: Config{IncludeOutboundRanges: ranges("0.0.0.0/0")},
			out: []expectation{
				{"v4", caller{}, "10.77.0.3:80", outbound},
				{"v6", caller{}, "[fd77::3]:80", "real [fd77::3]:80 from fd77::2"},
			},
		},
		{
			name: "included loopback range", config: Config{IncludeOutboundRanges: ranges("127.0.0.0/30")},
			out: []expectation{
				{"included", caller{}, "127.0.0.2:80", "outbound 127.0.0.2:80 from 127.0.0.1"},
				{"127.0.0.1 never", caller{}, "127.0.0.1:80", "app 127.0.0.1:80 from 127.0.0.1"},
				{"own address", caller{}, "10.77.0.2:80", "app 10.77.0.2:80 from 10.77.0.2"},
			},
		},
		{
			name: "no outbound but a port", config: Config{NoOutbound: true, IncludeOutboundPorts: []uint16{81}},
			out: []expectation{
				{"not captured", caller{}, "10.77.0.3:80", real},
				{"port", caller{}, "10.77.0.3:81", "outbound 10.77.0.3:81 from 10.77.0.2"},
			},
		},
		{
			name: "excluded interface", config: Config{ExcludeInterfaces: []string{netns.Interface}},
			out: []expectation{
				{"outbound", caller{}, "10.77.0.3:80", real},
				{"to itself", caller{mark: ProxyMark}, "10.77.0.2:80", "inbound 10.77.0.2:80 from 10.77.0.2"},
			},
			in: []expectation{{"inbound", caller{}, "10.77.0.2:80", "app 10.77.0.2:80 from 10.77.0.3"}},
		},
		{
			name: "interface with a longer name", config: Config{ExcludeInterfaces: []string{"eth", "eth00"}},
			out: []expectation{{"outbound", caller{}, "10.77.0.3:80", outbound}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := pair(t)
			a.apply(t, test.config)
			a.serve(t, "outbound", ":15001")
			a.serve(t, "inbound", ":15006")
			a.serve(t, "other outbound", ":16001")
			a.serve(t, "other inbound", ":16006")
			a.serve(t, "app", ":80")
			a.serve(t, "app", ":22")
			b.serve(t, "real", ":80")
			a.expect(t, test.out)
			b.expect(t, test.in)
		})
	}
}

// TestOpenConnections shows that connections outlive changes of the rules: one of the workload's that was open before
// the first rules is not captured midway, and what was made under rules stays when others are applied. One that came in
// before the rules is cut: it cannot be told from a forged one (TestForgedSegments).
func TestOpenConnections(t *testing.T) {
	a, b := pair(t)
	a.serve(t, "outbound", ":15001")
	a.serve(t, "inbound", ":15006")
	a.serve(t, "app", ":80")
	b.serve(t, "real", ":80")
	type open struct {
		name   string
		write  func(string) error
		reader *bufio.Reader
	}
	var all []open
	connect := func(name string, from workload, as caller, to, want string) open {
		conn, err := from.dial(as, "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		o := open{name, func(s string) error { _, err := conn.Write([]byte(s)); return err }, bufio.NewReader(conn)}
		if line, err := o.reader.ReadString('\n'); err != nil || strings.TrimSpace(line) != want {
			t.Fatalf("%s is answered %q (%v), want %q", name, line, err, want)
		}
		return o
	}
	keep := func(o open) { all = append(all, o) }
	echo := func(when string) {
		for _, o := range all {
			if err := o.write(when + "\n"); err != nil {
				t.Errorf("%s, %s: %v", o.name, when, err)
			} else if line, err := o.reader.ReadString('\n'); err != nil || line != when+"\n" {
				t.Errorf("%s, %s: answered %q (%v)", o.name, when, line, err)
			}
		}
	}
	keep(connect("an older outbound connection", a, caller{}, "10.77.0.3:80", "real 10.77.0.3:80 from 10.77.0.2"))
	cut := connect("an older inbound connection", b, caller{}, "[fd77::2]:80", "app [fd77::2]:80 from fd77::3")
	a.apply(t, Config{})
	echo("after the first rules")
	if err := cut.write("after the first rules\n"); err != nil {
		t.Error(err)
	} else if line, err := cut.reader.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s is answered %q (%v), want a reset", cut.name, line, err)
	}
	keep(connect("a captured outbound connection", a, caller{}, "10.77.0.3:80", "outbound 10.77.0.3:80 from 10.77.0.2"))
	keep(connect("a captured inbound connection", b, caller{}, "[fd77::2]:80", "inbound [fd77::2]:80 from fd77::3"))
	keep(connect("the proxy's own connection", a, caller{mark: ProxyMark}, "10.77.0.3:80", "real 10.77.0.3:80 from 10.77.0.2"))
	a.apply(t, Config{ExcludeOutboundPorts: []uint16{80}, NoInbound: true})
	echo("after other rules")
	a.apply(t, Config{})
	echo("after the first rules again")
}
