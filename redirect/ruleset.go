package redirect

import (
	"fmt"
	"net/netip"
	"strings"
)

// tableName is our table, of the family inet: IPv4 and IPv6 in one.
const tableName = "lateen"

// loopback is the loopback interface of every network namespace.
const loopback = "lo"

// Ruleset is all rules of the table "inet lateen".
type Ruleset struct {
	Chains []Chain
}

// Chain is a list of rules that a packet meets in order until one decides. A packet that comes to the end of a chain
// goes on its way unchanged.
type Chain struct {
	Name string
	// Hook is where the kernel enters the chain; HookNone for a chain that only rules lead to.
	Hook  Hook
	Rules []Rule
}

// Hook is a place in the kernel's path of a packet.
type Hook int

// The hooks that rules are attached to.
const (
	HookNone       Hook = iota
	HookTrack           // Local packets going out, before connection tracking.
	HookPrerouting      // First packets of connections coming in, before routing.
	HookOutput          // First packets of connections going out.
)

// Rule is an action for the packets that match all its fields. A field with the zero value matches every packet.
type Rule struct {
	In, Out  string       // Name of the interface that the packet comes in by, or goes out by.
	From, To netip.Prefix // Source and destination address.
	Protocol string       // "tcp" or "udp".
	FromPort uint16       // Source port. Needs Protocol.
	ToPort   uint16       // Destination port. Needs Protocol.
	Midway   bool         // A TCP packet that does not open a connection. Needs Protocol "tcp".
	Owner    Owner        // Whose socket sends the packet.

	Action Action
	Port   uint16 // For Redirect: the local port.
	Chain  string // For Goto: the chain.

	Why string // Shown as the rule's comment, also in the kernel's listing. At most 100 bytes, no quotes.
}

// Owner matches the socket that sends a packet.
type Owner struct {
	Kind OwnerKind
	ID   uint32 // The uid, gid or mark.
	Mask uint32 // For OwnerMark: the bits that are compared.
}

// OwnerKind says by what a socket is recognised.
type OwnerKind int

// The kinds of owner.
const (
	OwnerAny OwnerKind = iota
	OwnerUID
	OwnerGID
	OwnerMark
)

// Action is what a rule does with a packet.
type Action int

// The actions.
const (
	Return   Action = iota // The packet, and so its connection, goes on unchanged.
	Redirect               // The connection goes to a local port; SO_ORIGINAL_DST tells where it wanted to go.
	Goto                   // Another chain decides.
	Zone                   // The connection is tracked in the zone of its own for DNS; the next rule follows.
)

// String prints the rules as nft would, so that they may be compared, and fed to nft -f.
func (r Ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", tableName)
	for i, c := range r.Chains {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != HookNone {
			fmt.Fprintf(&b, "\t\t%s\n", c.Hook)
		}
		for _, rule := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", rule)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// String prints the hook as nft would.
func (h Hook) String() string {
	switch h {
	case HookTrack:
		return "type filter hook output priority raw; policy accept;"
	case HookPrerouting:
		return "type nat hook prerouting priority dstnat; policy accept;"
	case HookOutput:
		return "type nat hook output priority -100; policy accept;"
	default:
		return ""
	}
}

// String prints the rule as nft would.
func (r Rule) String() string {
	words := r.match()
	switch r.Action {
	case Redirect:
		words = append(words, fmt.Sprintf("redirect to :%d", r.Port))
	case Goto:
		words = append(words, "goto "+r.Chain)
	case Zone:
		words = append(words, fmt.Sprintf("ct zone set %d", dnsZone))
	default:
		words = append(words, "return")
	}
	if r.Why != "" {
		words = append(words, fmt.Sprintf("comment %q", r.Why))
	}
	return strings.Join(words, " ")
}

func (r Rule) match() []string {
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if r.In != "" {
		add("iifname %q", r.In)
	}
	if r.Out != "" {
		add("oifname %q", r.Out)
	}
	if r.From.IsValid() {
		add("%s", rangeText(r.From, "saddr"))
	}
	if r.To.IsValid() {
		add("%s", rangeText(r.To, "daddr"))
	}
	if r.FromPort != 0 {
		add("%s sport %d", r.Protocol, r.FromPort)
	}
	if r.ToPort != 0 {
		add("%s dport %d", r.Protocol, r.ToPort)
	}
	if r.Midway {
		add("tcp flags != syn / fin,syn,rst,ack")
	}
	if r.Protocol != "" && r.FromPort == 0 && r.ToPort == 0 && !r.Midway {
		add("meta l4proto %s", r.Protocol)
	}
	switch r.Owner.Kind {
	case OwnerUID:
		add("meta skuid %d", r.Owner.ID)
	case OwnerGID:
		add("meta skgid %d", r.Owner.ID)
	case OwnerMark:
		if r.Owner.Mask == ^uint32(0) {
			add("meta mark 0x%08x", r.Owner.ID)
		} else {
			add("meta mark & 0x%08x == 0x%08x", r.Owner.Mask, r.Owner.ID)
		}
	case OwnerAny:
	}
	return words
}

// rangeText prints a match of an address; of a whole family, as nft has it.
func rangeText(p netip.Prefix, side string) string {
	family, version := "ip", "ipv4"
	if p.Addr().Is6() {
		family, version = "ip6", "ipv6"
	}
	switch {
	case p.Bits() == 0:
		return "meta nfproto " + version
	case p.IsSingleIP():
		return fmt.Sprintf("%s %s %s", family, side, p.Addr())
	default:
		return fmt.Sprintf("%s %s %s", family, side, p)
	}
}
