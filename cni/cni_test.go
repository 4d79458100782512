package cni

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/redirect"
	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
)

// A copy of the test binary can play a plugin, by its name.
func TestMain(m *testing.M) { nstest.Main(m, map[string]func() error{rolePlugin: plugin}) }

// pod is a network namespace with a way out, by IPv4.
func pod(t *testing.T) *os.File {
	t.Helper()
	return podAt(t, "10.78.0.1/24", "10.78.0.2")
}

// podAt is one at an address, with the bridge's.
func podAt(t *testing.T, gateway, address string) *os.File {
	t.Helper()
	home, ns := nstest.New(t), nstest.New(t)
	var bridge *netns.Bridge
	err := netns.Do(home, func() (err error) {
		bridge, err = netns.NewBridge(netns.BridgeConfig{Addresses: []netip.Prefix{netip.MustParsePrefix(gateway)}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bridge.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := bridge.Attach(ns, netip.MustParseAddr(address)); err != nil {
		t.Fatal(err)
	}
	return ns
}

// TestInit: a pod is captured after Init and not before, and Validate tells which.
func TestInit(t *testing.T) {
	for i, text := range []string{`{"noDNS":true}`, `{"noDNS":true,"outboundPort":15101,"includeOutboundRanges":["10.99.0.0/16"],"excludeOutboundPorts":[80,81]}`} {
		config, err := Read(text)
		if err != nil {
			t.Fatal(err)
		}
		err = netns.Do(pod(t), func() error {
			if i == 0 { // it waits for an answer that does not come
				if err := Validate(t.Context(), config); !errors.Is(err, ErrNotCaptured) {
					t.Errorf("%s: without rules: %v", text, err)
				}
			}
			for range 2 { // a container may be started again
				if err := Init(config); err != nil {
					return err
				}
			}
			return Validate(t.Context(), config)
		})
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestValidateFamilies: a pod is found to be captured whatever it has routes to, and not to be without rules.
func TestValidateFamilies(t *testing.T) {
	for _, tt := range []struct{ name, gateway, address, config string }{
		{"IPv6 alone", "fd78::1/64", "fd78::2", `{"noDNS":true}`},
		{"IPv6 alone, both captured", "fd78::1/64", "fd78::2", `{"includeOutboundRanges":["10.0.0.0/8","fd00::/8"]}`},
		{"IPv4 alone, both captured", "10.78.0.1/24", "10.78.0.2", `{"includeOutboundRanges":["fd00::/8","10.99.0.0/16"]}`},
		{"IPv4 alone, all of it captured by name", "10.78.0.1/24", "10.78.0.2", `{"includeOutboundRanges":["::/0","0.0.0.0/0"]}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config, err := Read(tt.config)
			if err != nil {
				t.Fatal(err)
			}
			err = netns.Do(podAt(t, tt.gateway, tt.address), func() error {
				if err := Init(config); err != nil {
					return err
				}
				return Validate(t.Context(), config)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	nowhere := nstest.New(t)
	err := netns.Do(nowhere, func() error { return Validate(t.Context(), redirect.Config{}) })
	if !errors.Is(err, ErrNotCaptured) {
		t.Errorf("a pod without routes: %v", err)
	}
}

// TestTargets: what is tried is captured, whatever is left out.
func TestTargets(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	for _, tt := range []struct {
		config redirect.Config
		want   string // empty: nothing can be tried
	}{
		{redirect.Config{}, "192.0.2.1:80 198.51.100.1:80 203.0.113.1:80 [2001:db8::1]:80"},
		{redirect.Config{ExcludeOutboundPorts: []uint16{80, 81}, ExcludeOutboundRanges: prefixes("192.0.0.0/2")}, "[2001:db8::1]:82"},
		{redirect.Config{ExcludeOutboundRanges: prefixes("192.0.0.0/8", "::/0")}, "198.51.100.1:80 203.0.113.1:80"},
		{redirect.Config{ExcludeOutboundRanges: prefixes("0.0.0.0/0", "::/0")}, ""},
		{redirect.Config{IncludeOutboundRanges: prefixes("127.0.0.0/8", "::1/128", "224.0.0.0/4", "fe80::/10", "10.0.0.0/8")}, "10.0.0.1:80"},
		{redirect.Config{IncludeOutboundRanges: prefixes("10.1.2.3/32")}, "10.1.2.3:80"},
		{redirect.Config{IncludeOutboundRanges: prefixes("fd00::/8", "10.0.0.0/8")}, "[fd00::1]:80 10.0.0.1:80"},
		{redirect.Config{IncludeOutboundRanges: prefixes("0.0.0.0/0")}, "192.0.2.1:80 198.51.100.1:80 203.0.113.1:80 0.0.0.1:80"},
		{redirect.Config{IncludeOutboundRanges: prefixes("::/0")}, "[2001:db8::1]:80"},
		{redirect.Config{NoOutbound: true}, ""},
		{
			redirect.Config{
				NoOutbound: true, IncludeOutboundPorts: []uint16{443, 8443}, ExcludeOutboundPorts: []uint16{443},
				ExcludeOutboundRanges: prefixes("192.0.0.0/2"),
			}, "[2001:db8::1]:8443",
		},
	} {
		var got []string
		for _, a := range targets(tt.config) {
			got = append(got, a.String())
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.config, got, tt.want)
		}
	}
}

// TestRead: nothing that is not understood is passed over.
func TestRead(t *testing.T) {
	for _, text := range []string{"", "{", `{"noSuch":1}`, "{} {}", `{"excludeInboundPorts":[70000]}`, `{"noDNS":` + strings.Repeat(" ", configMax) + "true}"} {
		if _, err := Read(text); err == nil {
			t.Errorf("%.40q is read", text)
		}
	}
}
