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
	"syscall"
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
// configuration that captures nothing that can be tried is valid. An address that the pod has no route to says nothing,
// as the kernel asks the rules behind the routes: the next is tried, so that each pod finds one of its family.
func Validate(ctx context.Context, config redirect.Config) error {
	if _, err := redirect.Rules(config); err != nil {
		return err
	}
	list := targets(config)
	if len(list) == 0 {
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
	ctx, cancel := context.WithTimeout(ctx, validateTimeout)
	defer cancel()
	for _, to := range list {
		if err = connect(ctx, to, secret); !unreachable(err) {
			return err
		}
	}
	return err
}

// unreachable reports whether the kernel has refused an address by itself, without asking the rules.
func unreachable(err error) bool {
	return slices.ContainsFunc([]error{syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT},
		func(no error) bool { return errors.Is(err, no) })
}

// connect expects the secret from the other end.
func connect(ctx context.Context, to netip.AddrPort, secret []byte) error {
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

// targets are addresses that the rules capture, at which nobody is: of those for documentation (RFC 5737, RFC 3849), and
// the first of each range of those that alone are captured. None if there is nothing that could be tried.
func targets(c redirect.Config) (list []netip.AddrPort) {
	port := uint16(80)
	for slices.Contains(c.ExcludeOutboundPorts, port) {
		port++
	}
	if c.NoOutbound {
		free := slices.IndexFunc(c.IncludeOutboundPorts, func(p uint16) bool { return !slices.Contains(c.ExcludeOutboundPorts, p) })
		if free < 0 {
			return nil
		}
		port = c.IncludeOutboundPorts[free]
	}
	var candidates []netip.Addr
	for _, text := range []string{"192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1"} {
		candidates = append(candidates, netip.MustParseAddr(text))
	}
	for _, r := range c.IncludeOutboundRanges {
		a := r.Masked().Addr().Next()
		if !r.Contains(a) {
			a = r.Addr()
		}
		candidates = append(candidates, a)
	}
	within := func(ranges []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
	}
	for _, a := range candidates {
		captured := len(c.IncludeOutboundRanges) == 0 || within(c.IncludeOutboundRanges, a)
		if captured && !within(c.ExcludeOutboundRanges, a) && anybodys(a) {
			list = append(list, netip.AddrPortFrom(a, port))
		}
	}
	return list
}

// anybodys reports whether an address can be another host's, and connected to as it is.
func anybodys(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsMulticast() && (a.Is4() || !a.IsLinkLocalUnicast())
}
