package source

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"sync"
)

// The ranges from which services without an address get theirs; Istio's.
var (
	rangeV4 = netip.MustParsePrefix("240.240.0.0/16")
	rangeV6 = netip.MustParsePrefix("2001:2::/48")
)

// MaxAllocations is the number of services that can be given an address: those of 240.240.0.0/16 but its first and last.
const MaxAllocations = 1<<16 - 2

// Allocator gives virtual addresses to services, one of each family. The
// choice follows from namespace and host, but for collisions, and a service
// keeps what it was given as long as the Allocator (or its Snapshot) lives.
type Allocator struct {
	mu    sync.Mutex
	slots map[string]uint16 // by "namespace/host": 1 to MaxAllocations
	taken map[uint16]string
}

// NewAllocator makes one that has given nothing.
func NewAllocator() *Allocator {
	return &Allocator{slots: map[string]uint16{}, taken: map[uint16]string{}}
}

// Addresses returns the addresses of a host in a namespace, IPv4 first. It fails when all are given.
func (a *Allocator) Addresses(namespace, host string) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := namespace + "/" + host
	slot, ok := a.slots[key]
	if !ok {
		if len(a.slots) >= MaxAllocations {
			return nil, fmt.Errorf("allocate an address for %s: all %d of %s are given; write addresses yourself", key, MaxAllocations, rangeV4)
		}
		slot = a.free(key)
		a.slots[key], a.taken[slot] = slot, key
	}
	return addressesOf(slot), nil
}

// free finds the first free slot from the one that the key's hash names.
func (a *Allocator) free(key string) uint16 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // a hash takes everything
	slot := h.Sum32() % MaxAllocations
	for {
		if _, used := a.taken[uint16(slot+1)]; !used {
			return uint16(slot + 1)
		}
		slot = (slot + 1) % MaxAllocations
	}
}

func addressesOf(slot uint16) []netip.Addr {
	v4, v6 := rangeV4.Addr().As4(), rangeV6.Addr().As16()
	v4[2], v4[3] = byte(slot>>8), byte(slot)
	v6[14], v6[15] = byte(slot>>8), byte(slot)
	return []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

// Snapshot returns what was given: "namespace/host" to a number that Restore understands.
func (a *Allocator) Snapshot() map[string]uint16 {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[string]uint16, len(a.slots))
	maps.Copy(out, a.slots)
	return out
}

// Restore makes what was given earlier given again, in place of the present table. Entries that cannot be are left out.
func (a *Allocator) Restore(table map[string]uint16) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.slots, a.taken = make(map[string]uint16, len(table)), make(map[uint16]string, len(table))
	for k, slot := range table {
		if _, used := a.taken[slot]; used || slot < 1 || slot > MaxAllocations {
			continue
		}
		a.slots[k], a.taken[slot] = slot, k
	}
}

// Prune forgets what is not in use, once more than half of all is given.
func (a *Allocator) Prune(inUse func(namespaceAndHost string) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.slots) <= MaxAllocations/2 {
		return
	}
	for k, slot := range a.slots {
		if !inUse(k) {
			delete(a.slots, k)
			delete(a.taken, slot)
		}
	}
}
