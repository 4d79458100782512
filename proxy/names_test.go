package proxy

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

// TestNamesWithoutIPv6: a node without IPv6 has names, too.
func TestNamesWithoutIPv6(t *testing.T) {
	errSetting := errors.New("settings cannot be written")
	for _, tt := range []struct {
		name, disabled string
		servers        int
	}{{"with IPv6", "0", 2}, {"without IPv6", "1", 1}} {
		t.Run(tt.name, func(t *testing.T) {
			ns, err := netns.New()
			if netns.Denied(err) {
				t.Skip(err)
			} else if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = ns.Close() }()
			p := &Proxy{cfg: Config{Logger: slog.New(slog.DiscardHandler)}}
			var servers []func(context.Context) error
			err = netns.Do(ns, func() error {
				if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte(tt.disabled), 0o600); err != nil {
					return errors.Join(errSetting, err)
				}
				if err := netns.Loopback(); err != nil {
					return err
				}
				return p.openDNS(func(_ string, serve func(context.Context) error) { servers = append(servers, serve) })
			})
			ended, end := context.WithCancel(t.Context())
			end()
			for _, serve := range servers {
				if err := serve(ended); err != nil {
					t.Error(err)
				}
			}
			if errors.Is(err, errSetting) {
				t.Skip(err)
			}
			if err != nil || len(servers) != tt.servers {
				t.Errorf("%d servers (%v), want %d", len(servers), err, tt.servers)
			}
		})
	}
}
