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

// pod is a network namespace with a way out.
func pod(t *testing.T) *os.File {
	t.Helper()
	home, ns := nstest.New(t), nstest.New(t)
	var bridge *netns.Bridge
	err := netns.Do(home, func() (err error) {
		bridge, err = netns.NewBridge(netns.BridgeConfig{Addresses: []netip.Prefix{netip.MustParsePrefix("10.78.0.1/24")}})
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
	if err := bridge.Attach(ns, netip.MustParseAddr("10.78.0.2")); err != nil {
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

// TestTarget: what is tried is captured, whatever is left out.
func TestTarget(t *testing.T) {
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
		{redirect.Config{}, "192.0.2.1:80"},
		{redirect.Config{ExcludeOutboundPorts: []uint16{80, 81}}, "192.0.2.1:82"},
		{redirect.Config{ExcludeOutboundRanges: prefixes("192.0.0.0/8")}, "198.51.100.1:80"},
		{redirect.Config{ExcludeOutboundRanges: prefixes("0.0.0.0/0")}, ""},
		{redirect.Config{IncludeOutboundRanges: prefixes("127.0.0.0/8", "10.0.0.0/8")}, "10.0.0.1:80"},
		{redirect.Config{IncludeOutboundRanges: prefixes("10.1.2.3/32")}, "10.1.2.3:80"},
		{redirect.Config{IncludeOutboundRanges: prefixes("fd00::/8")}, "[fd00::1]:80"},
		{redirect.Config{NoOutbound: true}, ""},
		{redirect.Config{NoOutbound: true, IncludeOutboundPorts: []uint16{443, 8443}, ExcludeOutboundPorts: []uint16{443}}, "192.0.2.1:8443"},
	} {
		got, ok := target(tt.config)
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("%+v: %s %v, want %s", tt.config, got, ok, tt.want)
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
