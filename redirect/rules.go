package redirect

import (
	"fmt"
	"net/netip"
	"slices"
)

// dnsZone is the conntrack zone of captured UDP queries. See trackChain.
const dnsZone = 1

// The chains.
const (
	chainTrack      = "dns_zone"
	chainPrerouting = "prerouting"
	chainOutput     = "output"
	chainProxy      = "proxy"
	chainApp        = "app"
)

// Rules returns the rules for a Config, or all that is wrong with it.
//
// The kernel shows the first packet of each connection to one chain: "prerouting" if it comes from outside, "output"
// if it is sent here, also if it stays here (loopback). "output" tells the proxy's connections from the workload's:
//
//   - The workload's go to the proxy's outbound port, those to port 53 to its DNS port. Not those that stay on this
//     host, to 127.0.0.1 or to the workload's own address: the two ends share their proxy.
//   - The proxy's pass, so that nothing loops. But if they come back to this host, as when a workload calls its own
//     service and the proxy picks the workload itself, they go to the proxy's inbound port, as if they came from
//     another host: to reach the workload past that port the proxy calls from 127.0.0.6 or ::6 (package netns gives
//     the latter to the loopback interface).
//
// DNS answers must come from the address that queries were redirected to: a listener on 15053 binds 127.0.0.1 and
// ::1, not the wildcard address.
//
// A connection out that was open before the rules came is left alone, a connection in is not: set the rules before the
// workload serves. An exemption of packets in the middle of a connection would let anybody in who can send one: the
// kernel's connection tracking takes it for the first of an open connection (nf_conntrack_tcp_loose), does not ask the
// rules about that connection again, and lets the SYN that follows go past them. Nor can the rules tell such a packet
// from one of an older connection; only a workload's own may be believed, as who sends raw packets from within has
// stepped around its proxy already (see Proxy). Captured connections that are open stay so when rules are applied again.
func Rules(config Config) (Ruleset, error) {
	if err := config.validate(); err != nil {
		return Ruleset{}, fmt.Errorf("make capture rules: %w", err)
	}
	c := config.complete()
	var chains []Chain
	if !c.NoDNS {
		chains = append(chains, trackChain(c))
	}
	chains = append(chains, preroutingChain(c), outputChain(c), proxyChain(c), appChain(c))
	count := 0
	for _, chain := range chains {
		count += len(chain.Rules)
	}
	if count > maxRules {
		return Ruleset{}, fmt.Errorf("make capture rules: %d rules, at most %d are allowed: list fewer ports, "+
			"ranges, resolvers or interfaces", count, maxRules)
	}
	return Ruleset{Chains: chains}, nil
}

// midway keeps the workload's own connections that are older than the rules: the kernel's connection tracking takes the
// next packet of one for a first packet. It must never judge what comes from outside (see Rules).
func midway() Rule {
	return Rule{Protocol: "tcp", Midway: true, Why: "open before the rules came"}
}

func loopbackAddresses() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}
}

// inboundSources are the addresses from which the proxy calls its workload.
func inboundSources() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("127.0.0.6/32"), netip.MustParsePrefix("::6/128")}
}

// trackChain gives captured UDP queries a conntrack zone of their own.
//
// Without it, when the workload has closed a socket that asked R:53 and the proxy's next query to R:53 happens to
// get the same local port, the packet looks to the kernel like one more of the captured flow, which it remembers for
// half a minute or more, and goes to the proxy itself instead of R. TCP does not need it: a new SYN ends a finished
// flow. Only packets between workload and proxy are in the zone, both ways, and none of others, so that other rules
// that translate the proxy's queries (a container runtime's resolver) are not disturbed.
func trackChain(c Config) Chain {
	rules := []Rule{{Protocol: "udp", FromPort: DNSPort, Action: Zone, Why: "answers of the proxy"}}
	for _, name := range c.ExcludeInterfaces {
		rules = append(rules, Rule{Out: name, Why: "excluded interface"})
	}
	for _, owner := range owners(c.Proxy) {
		rules = append(rules, Rule{Owner: owner, Why: "queries of the proxy"})
	}
	for _, to := range resolverRanges(c) {
		rules = append(rules, Rule{
			To: to, Protocol: "udp", ToPort: domainPort, Action: Zone,
			Why: "queries of the workload",
		})
	}
	return Chain{Name: chainTrack, Hook: HookTrack, Rules: rules}
}

func preroutingChain(c Config) Chain {
	chain := Chain{Name: chainPrerouting, Hook: HookPrerouting}
	if c.NoInbound {
		return chain
	}
	for _, name := range c.ExcludeInterfaces {
		chain.Rules = append(chain.Rules, Rule{In: name, Why: "excluded interface"})
	}
	chain.Rules = append(chain.Rules, Rule{Protocol: "tcp", ToPort: TunnelPort, Why: "HBONE"})
	capture := Rule{Protocol: "tcp", Action: Redirect, Port: c.InboundPort}
	if len(c.IncludeInboundPorts) > 0 {
		for _, port := range c.IncludeInboundPorts {
			capture.ToPort = port
			chain.Rules = append(chain.Rules, capture)
		}
		return chain
	}
	for _, port := range c.ExcludeInboundPorts {
		why := "excluded port"
		if slices.Contains(reservedInboundPorts(), port) {
			why = "served by the proxy as it is"
		}
		chain.Rules = append(chain.Rules, Rule{Protocol: "tcp", ToPort: port, Why: why})
	}
	chain.Rules = append(chain.Rules, capture)
	return chain
}

func outputChain(c Config) Chain {
	var rules []Rule
	for _, name := range c.ExcludeInterfaces {
		rules = append(rules, Rule{Out: name, Why: "excluded interface"})
	}
	rules = append(rules, midway())
	for _, port := range c.ExcludeOutboundPorts {
		rules = append(rules, Rule{Protocol: "tcp", ToPort: port, Why: "excluded port"})
	}
	for _, from := range inboundSources() {
		rules = append(rules, Rule{Out: loopback, From: from, Why: "the proxy calls its workload"})
	}
	for _, owner := range owners(c.Proxy) {
		rules = append(rules, Rule{Owner: owner, Action: Goto, Chain: chainProxy})
	}
	rules = append(rules, Rule{Action: Goto, Chain: chainApp})
	return Chain{Name: chainOutput, Hook: HookOutput, Rules: rules}
}

// proxyChain sends the proxy's connections on, except those that come back to this host.
func proxyChain(c Config) Chain {
	var rules []Rule
	for _, to := range loopbackAddresses() {
		rules = append(rules, Rule{To: to, Why: "not captured inbound"})
	}
	rules = append(rules, Rule{Protocol: "tcp", ToPort: TunnelPort, Why: "HBONE"})
	if !c.NoDNS {
		rules = append(rules, Rule{Protocol: "tcp", ToPort: domainPort, Why: "to a resolver on this host"})
	}
	rules = append(rules, Rule{
		Out: loopback, Protocol: "tcp", Action: Redirect, Port: c.InboundPort,
		Why: "the workload calls its own service",
	})
	return Chain{Name: chainProxy, Rules: rules}
}

func appChain(c Config) Chain {
	var rules []Rule
	if !c.NoDNS {
		for _, protocol := range []string{"udp", "tcp"} {
			for _, to := range resolverRanges(c) {
				rules = append(rules, Rule{
					To: to, Protocol: protocol, ToPort: domainPort, Action: Redirect,
					Port: DNSPort, Why: "DNS",
				})
			}
		}
	}
	if slices.ContainsFunc(c.IncludeOutboundRanges, func(r netip.Prefix) bool { return r.Addr().IsLoopback() }) {
		for _, to := range loopbackAddresses() {
			rules = append(rules, Rule{To: to, Why: "stays on this host"})
		}
	} else {
		rules = append(rules, Rule{Out: loopback, Why: "stays on this host"})
	}
	for _, to := range c.ExcludeOutboundRanges {
		rules = append(rules, Rule{To: to, Why: "excluded range"})
	}
	capture := Rule{Protocol: "tcp", Action: Redirect, Port: c.OutboundPort}
	for _, port := range c.IncludeOutboundPorts {
		byPort := capture
		byPort.ToPort = port
		rules = append(rules, byPort)
	}
	switch {
	case c.NoOutbound:
	case len(c.IncludeOutboundRanges) == 0:
		rules = append(rules, capture)
	default:
		for _, to := range c.IncludeOutboundRanges {
			capture.To = to
			rules = append(rules, capture)
		}
	}
	return Chain{Name: chainApp, Rules: rules}
}

// owners lists by what the proxy is recognised.
func owners(p Proxy) []Owner {
	var list []Owner
	for _, uid := range distinct(p.UIDs) {
		list = append(list, Owner{Kind: OwnerUID, ID: uid})
	}
	for _, gid := range distinct(p.GIDs) {
		list = append(list, Owner{Kind: OwnerGID, ID: gid})
	}
	if p.Mark != 0 {
		list = append(list, Owner{Kind: OwnerMark, ID: p.Mark, Mask: p.Mask})
	}
	return list
}

// resolverRanges are the destinations of captured queries; the zero prefix stands for every address.
func resolverRanges(c Config) []netip.Prefix {
	if len(c.Resolvers) == 0 {
		return []netip.Prefix{{}}
	}
	var ranges []netip.Prefix
	for _, r := range c.Resolvers {
		ranges = append(ranges, netip.PrefixFrom(r, r.BitLen()))
	}
	return ranges
}
