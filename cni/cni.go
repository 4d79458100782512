// Package cni puts the capture rules into a pod's network and looks whether they are there.
//
// In comes the redirect.Config of a pod as JSON, as package inject writes it: into the annotation that a container
// runtime shows the Plugin, and into the arguments of the containers that call Init and Validate. Out go rules in the
// network namespace of the pod, or a verdict about them. An Installer keeps the Plugin on a node. It links redirect and
// nothing else of ours, and must not know Kubernetes' API: it runs before anything else of a pod. Nothing here may be
// called concurrently, but any number of processes may.
package cni

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/redirect"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

// configMax bounds the configuration in bytes.
const configMax = 64 << 10

// validateTimeout is how long Validate waits for its own connection to come back.
const validateTimeout = 5 * time.Second

// ErrNotCaptured is Validate's when a connection went past the rules.
var ErrNotCaptured = errors.New("the pod's traffic is not captured: the CNI plugin has not set the rules; " +
	"see whether it runs on this node; if this does not pass soon then, delete the pod to have it made anew")

// Read reads a configuration; what is unknown in it is refused, as a rule less would go unseen.
func Read(text string) (redirect.Config, error) {
	var config redirect.Config
	if len(text) > configMax {
		return config, fmt.Errorf("read the capture configuration: more than %d KiB", configMax>>10)
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&config); err != nil {
		return config, fmt.Errorf("read the capture configuration: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return config, errors.New("read the capture configuration: something stands behind it")
	}
	return config, nil
}

// Init sets the rules in the network namespace of the caller, which needs CAP_NET_ADMIN. It may be repeated.
func Init(config redirect.Config) error {
	rules, err := redirect.Rules(config)
	if err != nil {
		return err
	}
	if err := netns.Loopback(); err != nil { // ::6, from which the proxy calls its application
		return fmt.Errorf("prepare the loopback interface: %w", err)
	}
	return redirect.Apply(rules)
}

// Validate takes the place of the proxy for a moment, connects to somewhere that must be captured, and looks whether
// it has itself at the other end. Reading the rules would take a privilege. The caller must not be the proxy's user. A
// configuration that captures nothing that can be tried is valid.
func Validate(ctx context.Context, config redirect.Config) error {
	if _, err := redirect.Rules(config); err != nil {
		return err
	}
	to, ok := target(config)
	if !ok {
		return nil
	}
	port := config.OutboundPort
	if port == 0 {
		port = redirect.OutboundPort
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return fmt.Errorf("take the place of the proxy: %w", err)
	}
	secret := []byte(rand.Text())
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(secret)
			_ = c.Close()
		}
	}()
	defer func() {
		_ = l.Close()
		<-served
	}()
	return connect(ctx, to, secret)
}

// connect expects the secret from the other end.
func connect(ctx context.Context, to netip.AddrPort, secret []byte) error {
	ctx, cancel := context.WithTimeout(ctx, validateTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return fmt.Errorf("%w (tried %s: %w)", ErrNotCaptured, to, err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(validateTimeout))
	got := make([]byte, len(secret))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != string(secret) {
		return fmt.Errorf("%w (%s is somebody else)", ErrNotCaptured, to)
	}
	return nil
}

// target is an address that the rules capture, at which nobody is: of those for documentation (RFC 5737), or of the
// ranges that alone are captured. Not ok if there is none.
func target(c redirect.Config) (netip.AddrPort, bool) {
	port := uint16(80)
	for slices.Contains(c.ExcludeOutboundPorts, port) {
		port++
	}
	ranges := c.IncludeOutboundRanges
	if len(ranges) == 0 {
		for _, text := range []string{"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"} {
			ranges = append(ranges, netip.MustParsePrefix(text))
		}
	}
	if c.NoOutbound {
		free := slices.IndexFunc(c.IncludeOutboundPorts, func(p uint16) bool { return !slices.Contains(c.ExcludeOutboundPorts, p) })
		if free < 0 {
			return netip.AddrPort{}, false
		}
		port = c.IncludeOutboundPorts[free]
	}
	for _, r := range ranges {
		a := r.Masked().Addr().Next()
		if !r.Contains(a) {
			a = r.Addr()
		}
		if !a.IsLoopback() && !slices.ContainsFunc(c.ExcludeOutboundRanges, func(x netip.Prefix) bool { return x.Contains(a) }) {
			return netip.AddrPortFrom(a, port), true
		}
	}
	return netip.AddrPort{}, false
}
