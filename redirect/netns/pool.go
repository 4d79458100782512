package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
)

// maxPoolAddresses bounds what a Pool hands out of a large prefix, and so its memory.
const maxPoolAddresses = 1 << 16

// ErrExhausted is what Pool.Take wraps when every address is taken.
var ErrExhausted = errors.New("no address is left")

// Pool hands out the addresses of one prefix, at most its first 65,536. A released address comes back only after the
// others had their turn, so that what remembers it (an ARP cache, a client) meets its new owner late. Safe for
// concurrent use.
type Pool struct {
	prefix netip.Prefix
	first  uint32 // Offset of the first address that may be taken.
	count  uint32 // Number of offsets from first on.

	mu   sync.Mutex
	next uint32 // 0 <= next < count: where the search for a free address starts.
	used map[netip.Addr]bool
}

// NewPool returns a pool over prefix that never hands out the reserved addresses, such as the bridge's. The first
// address of a prefix is not handed out either (the network's own in IPv4, the routers' anycast in IPv6, RFC 4291
// section 2.6.1), nor is the last one of an IPv4 prefix, its broadcast address.
func NewPool(prefix netip.Prefix, reserved ...netip.Addr) (*Pool, error) {
	prefix = prefix.Masked()
	if !prefix.IsValid() {
		return nil, fmt.Errorf("make an address pool: the prefix is not valid")
	}
	p := &Pool{prefix: prefix, used: map[netip.Addr]bool{}}
	hostBits := prefix.Addr().BitLen() - prefix.Bits()
	size := uint32(maxPoolAddresses)
	if hostBits < 16 {
		size = 1 << hostBits
	}
	p.count = size
	if hostBits >= 2 {
		p.first, p.count = 1, size-1
		if prefix.Addr().Is4() && hostBits <= 16 {
			p.count--
		}
	}
	for _, a := range reserved {
		if prefix.Contains(a) {
			p.used[a] = true
		}
	}
	return p, nil
}

// Take returns an address that nobody has. The error wraps ErrExhausted when there is none.
func (p *Pool) Take() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range p.count {
		a := p.at(p.first + p.next)
		p.next = (p.next + 1) % p.count
		if !p.used[a] {
			p.used[a] = true
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("take an address of %s: %w: use a larger prefix or end some workloads",
		p.prefix, ErrExhausted)
}

// Release gives a back. It is an error if a was not taken: two owners of one address are a fault worth seeing.
func (p *Pool) Release(a netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.used[a] {
		return fmt.Errorf("release the address %s to the pool %s: it is not taken", a, p.prefix)
	}
	delete(p.used, a)
	return nil
}

// at returns the address at an offset, which is smaller than the prefix's size: no carry leaves the last 32 bits.
func (p *Pool) at(offset uint32) netip.Addr {
	bytes := p.prefix.Addr().AsSlice()
	last := bytes[len(bytes)-4:]
	binary.BigEndian.PutUint32(last, binary.BigEndian.Uint32(last)+offset)
	a, _ := netip.AddrFromSlice(bytes)
	return a
}
