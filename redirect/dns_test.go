package redirect

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

func TestCaptureDNS(t *testing.T) {
	type query struct {
		name, to    string
		caller      caller
		udp, answer string
	}
	app, proxy := caller{}, caller{mark: ProxyMark}
	for _, test := range []struct {
		name    string
		config  Config
		queries []query
	}{
		{"every resolver", Config{}, []query{
			{"v4", "10.77.0.3:53", app, "proxy ?", "proxy 10.77.0.3:53 from 10.77.0.2"},
			{"v6", "[fd77::3]:53", app, "proxy ?", "proxy [fd77::3]:53 from fd77::2"},
			{"of nowhere", "192.0.2.1:53", app, "proxy ?", "proxy 192.0.2.1:53 from 10.77.0.2"},
			{"of nowhere v6", "[2001:db8::1]:53", app, "proxy ?", "proxy [2001:db8::1]:53 from fd77::2"},
			{"on this host", "127.0.0.53:53", app, "proxy ?", "proxy 127.0.0.53:53 from 127.0.0.1"},
			{"proxy's own v4", "10.77.0.3:53", proxy, "resolver ?", "resolver 10.77.0.3:53 from 10.77.0.2"},
			{"proxy's own v6", "[fd77::3]:53", proxy, "resolver ?", "resolver [fd77::3]:53 from fd77::2"},
			{
				"proxy's own by uid", "10.77.0.3:53",
				caller{uid: ProxyUser},
				"resolver ?",
				"resolver 10.77.0.3:53 from 10.77.0.2",
			},
		}},
		{"named resolvers", Config{Resolvers: []netip.Addr{netip.MustParseAddr("10.77.0.3")}}, []query{
			{"named", "10.77.0.3:53", app, "proxy ?", "proxy 10.77.0.3:53 from 10.77.0.2"},
			// Over TCP it is a connection like any other.
			{"not named", "[fd77::3]:53", app, "resolver ?", "outbound [fd77::3]:53 from fd77::2"},
		}},
		{"none", Config{NoDNS: true}, []query{
			{"v4", "10.77.0.3:53", app, "resolver ?", "outbound 10.77.0.3:53 from 10.77.0.2"},
		}},
		{"excluded port", Config{ExcludeOutboundPorts: []uint16{53}}, []query{
			{"v4", "10.77.0.3:53", app, "resolver ?", "resolver 10.77.0.3:53 from 10.77.0.2"},
		}},
		{"excluded interface", Config{ExcludeInterfaces: []string{netns.Interface}}, []query{
			{"v4", "10.77.0.3:53", app, "resolver ?", "resolver 10.77.0.3:53 from 10.77.0.2"},
			{"on this host", "127.0.0.53:53", app, "proxy ?", "proxy 127.0.0.53:53 from 127.0.0.1"},
		}},
		{"no outbound", Config{NoOutbound: true}, []query{
			{"v4", "10.77.0.3:53", app, "proxy ?", "proxy 10.77.0.3:53 from 10.77.0.2"},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := pair(t)
			a.apply(t, test.config)
			a.serve(t, "outbound", ":15001")
			a.serve(t, "proxy", "127.0.0.1:15053")
			a.serve(t, "proxy", "[::1]:15053")
			a.answer(t, "proxy", "127.0.0.1:15053", "[::1]:15053")
			b.serve(t, "resolver", ":53")
			b.answer(t, "resolver", "10.77.0.3:53", "[fd77::3]:53")
			for _, q := range test.queries {
				t.Run(q.name, func(t *testing.T) {
					if q.caller.uid != 0 {
						needIDs(t)
					}
					if got := a.ask(t, q.caller, q.to, "?"); got != q.udp {
						t.Errorf("over UDP %s answers %q, want %q", q.to, got, q.udp)
					}
					if got := a.call(t, q.caller, q.to); got != q.answer {
						t.Errorf("over TCP %s answers %q, want %q", q.to, got, q.answer)
					}
				})
			}
		})
	}
}

// TestSharedQueryPort has the workload and the proxy ask one resolver from one local port, one after the other, as
// happens by chance: each keeps getting its own answers, because captured queries are tracked in a zone of their own.
func TestSharedQueryPort(t *testing.T) {
	a, b := pair(t)
	a.apply(t, Config{})
	a.answer(t, "proxy", "127.0.0.1:15053", "[::1]:15053")
	b.answer(t, "resolver", "10.77.0.3:53", "[fd77::3]:53")
	app, proxy := caller{}, caller{mark: ProxyMark}
	byUID, byGID := caller{uid: ProxyUser}, caller{gid: ProxyUser}
	for _, test := range []struct {
		name  string
		from  netip.Addr
		to    string
		order []caller
	}{
		{"workload first", a.v4, "10.77.0.3:53", []caller{app, proxy, app, proxy}},
		{"proxy first", a.v6, "[fd77::3]:53", []caller{proxy, app, proxy, app}},
		{"proxy by uid", a.v4, "10.77.0.3:53", []caller{byUID, app, byUID}},
		{"proxy by gid", a.v6, "[fd77::3]:53", []caller{app, byGID, app}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for i, c := range test.order {
				if c.uid != 0 || c.gid != 0 {
					needIDs(t)
				}
				question := fmt.Sprint("question ", i)
				want := "proxy " + question
				if c != app {
					want = "resolver " + question
				}
				c.from = at(test.from, 5353)
				if got := a.ask(t, c, test.to, question); got != want {
					t.Errorf("%s, asked by %+v, answers %q, want %q", test.to, c, got, want)
				}
			}
		})
	}
}
