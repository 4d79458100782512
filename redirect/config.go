// Package redirect is packets in: the rules by which a workload's connections reach its proxy without the workload
// knowing. The semantics are those of Istio's sidecar in REDIRECT mode, for IPv4 and IPv6.
//
// In comes a Config, made by hand or from a pod's annotations (Annotated); Rules turns it into a Ruleset, which is
// data: String prints it in the syntax of nft, Apply puts it into the network namespace of the caller, Verify says
// whether it is there, Remove takes it out, Check says whether this kernel can hold it. The path of a connection, and why, is told at Rules.
//
// The package must not know who calls it (sidecar's init, CNI plugin, node agent, demo) and never touches another
// table than its own, "inet lateen", and for a moment "inet lateen_gate". Everything may be called concurrently, but two Applies race for who is last.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The ports and marks that Istio's sidecar uses; a Config may change the first two.
const (
	OutboundPort = 15001 // The proxy takes captured outbound connections here.
	InboundPort  = 15006 // The proxy takes captured inbound connections here.
	TunnelPort   = 15008 // HBONE (mTLS CONNECT): never captured, the proxy serves it as it is.
	ProbePort    = 15002 // Captured where nothing else is outbound, so that a pod can see that its rules are there.
	DNSPort      = 15053 // The proxy answers captured queries here, bound to 127.0.0.1 and ::1 (see Rules).
	ProxyUser    = 1337  // Uid and gid of the proxy.
	ProxyMark    = 0x539 // Socket mark of the proxy, 1337 too.
	ProxyMask    = 0xfff // The bits of a socket mark that are compared with ProxyMark.
)

const (
	// maxEntries bounds each list of a Config.
	maxEntries = 256
	// maxRules bounds a rule set: it is walked for every new connection, and goes to the kernel in one message.
	maxRules = 700
	// maxInterfaceName is IFNAMSIZ less the final zero.
	maxInterfaceName = 15
	domainPort       = 53
)

// Config says what is captured. The zero value captures everything: inbound TCP, outbound TCP, DNS to any resolver.
type Config struct {
	// Proxy is how the proxy's own traffic is recognised. The zero value stands for uid 1337, gid 1337 and socket
	// mark 0x539/0xfff, each of which is enough.
	Proxy Proxy `json:"proxy,omitzero"`
	// OutboundPort and InboundPort are where the proxy listens (Istio: proxyListenPort, proxyInboundListenPort of
	// the mesh configuration). Default 15001 and 15006.
	OutboundPort uint16 `json:"outboundPort,omitzero"`
	InboundPort  uint16 `json:"inboundPort,omitzero"`

	// NoInbound captures no inbound connection.
	NoInbound bool `json:"noInbound,omitzero"`
	// IncludeInboundPorts, unless empty, are the only ports whose inbound connections are captured.
	IncludeInboundPorts []uint16 `json:"includeInboundPorts,omitzero"`
	// ExcludeInboundPorts are not captured, besides the proxy's own 15008, 15020, 15021 and 15090. As in Istio they
	// do not count when IncludeInboundPorts is given.
	ExcludeInboundPorts []uint16 `json:"excludeInboundPorts,omitzero"`

	// NoOutbound captures no outbound connection, except to IncludeOutboundPorts.
	NoOutbound bool `json:"noOutbound,omitzero"`
	// IncludeOutboundPorts are captured whatever IncludeOutboundRanges and NoOutbound say, but not where an
	// exclusion says otherwise.
	IncludeOutboundPorts []uint16 `json:"includeOutboundPorts,omitzero"`
	// ExcludeOutboundPorts are not captured. Port 53 among them also frees DNS.
	ExcludeOutboundPorts []uint16 `json:"excludeOutboundPorts,omitzero"`
	// IncludeOutboundRanges, unless empty, are the only destinations whose connections are captured. A loopback
	// range among them makes connections over the loopback interface eligible too, which otherwise are not.
	IncludeOutboundRanges []netip.Prefix `json:"includeOutboundRanges,omitzero"`
	// ExcludeOutboundRanges are destinations that are not captured.
	ExcludeOutboundRanges []netip.Prefix `json:"excludeOutboundRanges,omitzero"`

	// NoDNS captures no query. Istio's sidecar has it so unless ISTIO_META_DNS_CAPTURE is set.
	NoDNS bool `json:"noDNS,omitzero"`
	// Resolvers, unless empty, are the only addresses whose port 53 is captured; else it is port 53 of any address.
	// Name the workload's configured resolvers here if a DNS server of its own (dnsmasq) asks others.
	Resolvers []netip.Addr `json:"resolvers,omitzero"`

	// ExcludeInterfaces are left alone in both directions.
	ExcludeInterfaces []string `json:"excludeInterfaces,omitzero"`
}

// Proxy is how the proxy's traffic is recognised: by any of these. As soon as one field is set the others have no
// default, so that Proxy{UIDs: ...} trusts no mark. A workload that may run under such an id, or set such a mark
// (CAP_NET_ADMIN, or CAP_NET_RAW since Linux 5.17), can step around the proxy.
type Proxy struct {
	// UIDs and GIDs own the proxy's sockets. They are numbers of the user namespace that owns the network namespace.
	UIDs []uint32 `json:"uids,omitzero"`
	GIDs []uint32 `json:"gids,omitzero"`
	// Mark is the SO_MARK of the proxy's sockets, which works also where the workload and the proxy share their
	// only uid. 0 means none.
	Mark uint32 `json:"mark,omitzero"`
	// Mask are the bits of the mark that are compared. 0 means all.
	Mask uint32 `json:"mask,omitzero"`
}

// reservedInboundPorts are served by the proxy for those who are not in the mesh: merged metrics and the probes of
// the workload, health, metrics of the proxy.
func reservedInboundPorts() []uint16 { return []uint16{15020, 15021, 15090} }

// complete returns the Config with defaults in place, ranges in canonical form, and nothing twice.
func (c Config) complete() Config {
	if c.OutboundPort == 0 {
		c.OutboundPort = OutboundPort
	}
	if c.InboundPort == 0 {
		c.InboundPort = InboundPort
	}
	if p := c.Proxy; len(p.UIDs) == 0 && len(p.GIDs) == 0 && p.Mark == 0 && p.Mask == 0 {
		c.Proxy = Proxy{UIDs: []uint32{ProxyUser}, GIDs: []uint32{ProxyUser}, Mark: ProxyMark, Mask: ProxyMask}
	}
	if c.Proxy.Mark != 0 && c.Proxy.Mask == 0 {
		c.Proxy.Mask = ^uint32(0)
	}
	c.ExcludeInboundPorts = distinct(slices.Concat(reservedInboundPorts(), c.ExcludeInboundPorts))
	c.IncludeInboundPorts = distinct(c.IncludeInboundPorts)
	c.IncludeOutboundPorts = distinct(c.IncludeOutboundPorts)
	c.ExcludeOutboundPorts = distinct(c.ExcludeOutboundPorts)
	c.IncludeOutboundRanges = distinct(masked(c.IncludeOutboundRanges))
	c.ExcludeOutboundRanges = distinct(masked(c.ExcludeOutboundRanges))
	c.Resolvers = distinct(c.Resolvers)
	c.ExcludeInterfaces = distinct(c.ExcludeInterfaces)
	c.NoDNS = c.NoDNS || slices.Contains(c.ExcludeOutboundPorts, domainPort)
	return c
}

// distinct returns the elements in their order, each once.
func distinct[T comparable](list []T) []T {
	var out []T
	for _, v := range list {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func masked(ranges []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(ranges))
	for i, r := range ranges {
		out[i] = r.Masked()
	}
	return out
}

// validate returns all faults at once. The Config is as the user gave it.
func (c Config) validate() error {
	faults := []error{c.validateLimits(), c.validateProxy(), c.validateChoices()}
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for _, list := range []struct {
		name  string
		ports []uint16
	}{
		{"IncludeInboundPorts", c.IncludeInboundPorts},
		{"ExcludeInboundPorts", c.ExcludeInboundPorts},
		{"IncludeOutboundPorts", c.IncludeOutboundPorts},
		{"ExcludeOutboundPorts", c.ExcludeOutboundPorts},
	} {
		if slices.Contains(list.ports, 0) {
			fault("%s: 0 is not a port", list.name)
		}
	}
	for _, list := range []struct {
		name   string
		ranges []netip.Prefix
	}{
		{"IncludeOutboundRanges", c.IncludeOutboundRanges}, {"ExcludeOutboundRanges", c.ExcludeOutboundRanges},
	} {
		for _, r := range list.ranges {
			if !r.IsValid() || r.Addr().Is4In6() {
				fault("%s: %q is not a range of IPv4 or IPv6 addresses", list.name, r)
			}
		}
	}
	for _, r := range c.Resolvers {
		if !r.IsValid() || r.Is4In6() || r.Zone() != "" {
			fault("Resolvers: %q is not an IPv4 or IPv6 address", r)
		}
	}
	for _, name := range c.ExcludeInterfaces {
		switch {
		case name == "" || len(name) > maxInterfaceName || strings.ContainsFunc(name, notInInterfaceName):
			fault("ExcludeInterfaces: %q is not the name of a network interface", name)
		case name == loopback:
			fault("ExcludeInterfaces: without %q a workload's calls to its own service would miss its proxy", name)
		}
	}
	return errors.Join(faults...)
}

func (c Config) validateProxy() error {
	complete := c.complete()
	var faults []error
	if complete.OutboundPort == complete.InboundPort {
		faults = append(faults, fmt.Errorf("OutboundPort and InboundPort are both %d", complete.OutboundPort))
	}
	for _, port := range []uint16{complete.OutboundPort, complete.InboundPort} {
		if port == TunnelPort || port == DNSPort || slices.Contains(reservedInboundPorts(), port) {
			faults = append(faults, fmt.Errorf("OutboundPort or InboundPort is %d, which the proxy needs for "+
				"something else", port))
		}
	}
	if p := c.Proxy; p.Mark&^complete.Proxy.Mask != 0 || (p.Mask != 0 && p.Mark == 0) {
		faults = append(faults, fmt.Errorf("Proxy: no socket mark can be %#x under the mask %#x", p.Mark, p.Mask))
	}
	return errors.Join(faults...)
}

func (c Config) validateLimits() error {
	var faults []error
	for _, list := range []struct {
		name  string
		count int
	}{
		{"Proxy.UIDs", len(c.Proxy.UIDs)},
		{"Proxy.GIDs", len(c.Proxy.GIDs)},
		{"IncludeInboundPorts", len(c.IncludeInboundPorts)},
		{"ExcludeInboundPorts", len(c.ExcludeInboundPorts)},
		{"IncludeOutboundPorts", len(c.IncludeOutboundPorts)},
		{"ExcludeOutboundPorts", len(c.ExcludeOutboundPorts)},
		{"IncludeOutboundRanges", len(c.IncludeOutboundRanges)},
		{"ExcludeOutboundRanges", len(c.ExcludeOutboundRanges)},
		{"Resolvers", len(c.Resolvers)},
		{"ExcludeInterfaces", len(c.ExcludeInterfaces)},
	} {
		if list.count > maxEntries {
			faults = append(faults, fmt.Errorf("%s: %d entries, at most %d are allowed", list.name, list.count,
				maxEntries))
		}
	}
	return errors.Join(faults...)
}

// validateChoices refuses what contradicts itself.
func (c Config) validateChoices() error {
	var faults []error
	if c.NoInbound && len(c.IncludeInboundPorts) > 0 {
		faults = append(faults, errors.New("NoInbound and IncludeInboundPorts contradict each other"))
	}
	if c.NoOutbound && len(c.IncludeOutboundRanges) > 0 {
		faults = append(faults, errors.New("NoOutbound and IncludeOutboundRanges contradict each other"))
	}
	if c.NoDNS && len(c.Resolvers) > 0 {
		faults = append(faults, errors.New("NoDNS and Resolvers contradict each other"))
	}
	return errors.Join(faults...)
}

// notInInterfaceName tells what the kernel refuses in a name (dev_valid_name), and what nft would not print plainly.
func notInInterfaceName(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune(`/:"*\`, r)
}
