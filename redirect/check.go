package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/google/nftables"
)

// probeTable holds, for the length of a transaction, what Check tries.
const probeTable = "lateen_check"

// probe is something that the rules need of the kernel.
type probe struct {
	what   string // For the message.
	module string // The module that brings it, if it is not built in.
	chain  Chain
}

func probes() []probe {
	port := Rule{Protocol: "tcp", Action: Redirect, Port: OutboundPort}
	return []probe{
		{
			"nf_tables with the family inet (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)", "nf_tables",
			Chain{Name: "family"},
		},
		{
			"NAT in the family inet (Linux 5.2, CONFIG_NFT_NAT, CONFIG_NF_NAT)", "nft_chain_nat",
			Chain{Name: "nat", Hook: HookOutput},
		},
		{
			"redirect (CONFIG_NFT_REDIR)", "nft_redir",
			Chain{Name: "redirect", Hook: HookOutput, Rules: []Rule{port}},
		},
		{"matching addresses and ports", "nf_tables", Chain{Name: "address", Hook: HookOutput, Rules: []Rule{
			{To: netip.MustParsePrefix("127.0.0.0/8"), Protocol: "tcp", ToPort: TunnelPort, Midway: true},
			{Out: loopback, To: netip.MustParsePrefix("::1/128"), Protocol: "udp", FromPort: DNSPort},
		}}},
		{
			"matching the owner of a socket (nft meta skuid, skgid)", "nf_tables",
			Chain{Name: "owner", Hook: HookOutput, Rules: []Rule{
				{Owner: Owner{Kind: OwnerUID, ID: ProxyUser}}, {Owner: Owner{Kind: OwnerGID, ID: ProxyUser}},
			}},
		},
		{
			"matching the mark of a socket (nft meta mark)", "nf_tables",
			Chain{Name: "mark", Hook: HookOutput, Rules: []Rule{
				{Owner: Owner{Kind: OwnerMark, ID: ProxyMark, Mask: ProxyMask}},
			}},
		},
		{
			"conntrack zones, for DNS (CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_ZONES)", "nft_ct",
			Chain{Name: "zone", Hook: HookTrack, Rules: []Rule{
				{Protocol: "udp", ToPort: domainPort, Action: Zone},
			}},
		},
	}
}

// Check says whether capture rules can be applied in the current network namespace: whether the kernel has each
// feature that they use, and whether the caller may use it. The error names what is missing and what to do. Nothing
// is changed: each feature is tried in a transaction that also takes it away again.
func Check() error {
	var faults []error
	for _, p := range probes() {
		if err := p.try(); err != nil {
			faults = append(faults, fmt.Errorf("check for %s: %s: %w", p.what, advise(err, p.what, p.module), err))
			if errors.Is(err, syscall.EPERM) {
				break // It would be the same for all.
			}
		}
	}
	return errors.Join(faults...)
}

func (p probe) try() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := ourTable(probeTable)
	replace(conn, table)
	write(conn, table, Ruleset{Chains: []Chain{p.chain}})
	conn.DelTable(table)
	return conn.Flush()
}

// advise says what to do about an error of the kernel.
func advise(err error, what, module string) string {
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return "no permission to change this network namespace's rules: run as root, with CAP_NET_ADMIN, or inside " +
			"a user namespace that owns the network namespace"
	case errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.EAFNOSUPPORT):
		return "the kernel has no netfilter netlink (CONFIG_NETFILTER_NETLINK): as root, modprobe nfnetlink"
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EINVAL),
		errors.Is(err, syscall.ENOPROTOOPT):
		return fmt.Sprintf("the kernel lacks %s: as root, modprobe %s; if there is no such module, use a kernel "+
			"that has it", what, module)
	case errors.Is(err, syscall.ENOMEM):
		return "the kernel is out of memory for rules"
	default:
		return "the kernel refused"
	}
}
