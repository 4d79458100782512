package redirect

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

const (
	register = 1 // All of our expressions use one register, as every rule is a chain of comparisons.

	sourcePortOffset      = 0 // RFC 9293 section 3.1, RFC 768.
	destinationPortOffset = 2
	portBytes             = 2
	tcpFlagsOffset        = 13
	tcpSYN                = 0x02
	tcpOpening            = 0x17 // ACK, RST, SYN, FIN: of these, only SYN is set in a segment that opens a connection.
	specifiedPorts        = 2    // NF_NAT_RANGE_PROTO_SPECIFIED of linux/netfilter/nf_nat.h.
)

// encodeChain returns the kernel's form of a chain.
func encodeChain(table *nftables.Table, c Chain) *nftables.Chain {
	chain := &nftables.Chain{Name: c.Name, Table: table}
	accept := nftables.ChainPolicyAccept
	switch c.Hook {
	case HookTrack:
		chain.Type, chain.Hooknum, chain.Priority = nftables.ChainTypeFilter, nftables.ChainHookOutput,
			nftables.ChainPriorityRaw
	case HookPrerouting:
		chain.Type, chain.Hooknum, chain.Priority = nftables.ChainTypeNAT, nftables.ChainHookPrerouting,
			nftables.ChainPriorityNATDest
	case HookOutput:
		chain.Type, chain.Hooknum, chain.Priority = nftables.ChainTypeNAT, nftables.ChainHookOutput,
			nftables.ChainPriorityNATDest
	default:
		return chain
	}
	chain.Policy = &accept
	return chain
}

// encodeRule returns the kernel's form of a rule: comparisons that must all hold, then what to do.
func encodeRule(r Rule) []expr.Any {
	var e []expr.Any
	if r.In != "" {
		e = append(e, meta(expr.MetaKeyIIFNAME), equal(interfaceName(r.In)))
	}
	if r.Out != "" {
		e = append(e, meta(expr.MetaKeyOIFNAME), equal(interfaceName(r.Out)))
	}
	if r.From.IsValid() {
		e = append(e, matchAddress(r.From, true)...)
	}
	if r.To.IsValid() {
		e = append(e, matchAddress(r.To, false)...)
	}
	switch r.Protocol {
	case "tcp":
		e = append(e, meta(expr.MetaKeyL4PROTO), equal([]byte{unix.IPPROTO_TCP}))
	case "udp":
		e = append(e, meta(expr.MetaKeyL4PROTO), equal([]byte{unix.IPPROTO_UDP}))
	}
	if r.FromPort != 0 {
		e = append(e, transport(sourcePortOffset, portBytes), equal(network16(r.FromPort)))
	}
	if r.ToPort != 0 {
		e = append(e, transport(destinationPortOffset, portBytes), equal(network16(r.ToPort)))
	}
	if r.Midway {
		e = append(e, transport(tcpFlagsOffset, 1), and([]byte{tcpOpening}),
			&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: []byte{tcpSYN}})
	}
	return append(append(e, matchOwner(r.Owner)...), act(r)...)
}

func matchOwner(o Owner) []expr.Any {
	switch o.Kind {
	case OwnerUID:
		return []expr.Any{meta(expr.MetaKeySKUID), equal(host32(o.ID))}
	case OwnerGID:
		return []expr.Any{meta(expr.MetaKeySKGID), equal(host32(o.ID))}
	case OwnerMark:
		e := []expr.Any{meta(expr.MetaKeyMARK)}
		if o.Mask != ^uint32(0) {
			e = append(e, and(host32(o.Mask)))
		}
		return append(e, equal(host32(o.ID)))
	default:
		return nil
	}
}

// matchAddress compares the source or the destination address, after the family: the table sees both.
func matchAddress(p netip.Prefix, source bool) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16) // RFC 791 section 3.1.
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 24 // RFC 8200 section 3.
	}
	address := p.Addr().AsSlice()
	size := uint32(len(address))
	if source {
		offset -= size
	}
	e := []expr.Any{meta(expr.MetaKeyNFPROTO), equal([]byte{family})}
	if p.Bits() == 0 {
		return e
	}
	e = append(e, &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
	if !p.IsSingleIP() {
		e = append(e, and(maskBytes(p.Bits(), len(address))))
	}
	return append(e, equal(address))
}

func act(r Rule) []expr.Any {
	switch r.Action {
	case Redirect:
		return []expr.Any{
			&expr.Immediate{Register: register, Data: network16(r.Port)},
			&expr.Redir{RegisterProtoMin: register, RegisterProtoMax: register, Flags: specifiedPorts},
		}
	case Goto:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: r.Chain}}
	case Zone:
		zone := binary.NativeEndian.AppendUint16(nil, dnsZone)
		return []expr.Any{
			&expr.Immediate{Register: register, Data: zone},
			&expr.Ct{Key: expr.CtKeyZONE, Register: register, SourceRegister: true},
		}
	default:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	}
}

// encodeWhy returns a rule's comment in the form that nft shows.
func encodeWhy(r Rule) []byte {
	if r.Why == "" {
		return nil
	}
	return userdata.AppendString(nil, userdata.TypeComment, r.Why)
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: register} }

func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

func and(mask []byte) expr.Any {
	return &expr.Bitwise{
		SourceRegister: register, DestRegister: register, Len: uint32(len(mask)), Mask: mask,
		Xor: make([]byte, len(mask)),
	}
}

func transport(offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}
}

// interfaceName pads a name to IFNAMSIZ, so that the whole of it is compared and not a beginning.
func interfaceName(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}

func maskBytes(bits, size int) []byte {
	mask := make([]byte, size)
	for i := range mask {
		ones := min(max(bits-8*i, 0), 8)
		mask[i] = byte(0xff << (8 - ones))
	}
	return mask
}

func network16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
