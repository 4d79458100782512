package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The bounds of the resolver.
const (
	// ttlFloor and ttlCeiling bound how long an answer is believed; an answer that there is nothing, ttlFloor.
	ttlFloor   = 5 * time.Second
	ttlCeiling = 5 * time.Minute
	cacheMax   = 1024 // hosts
	// resolverUDPBytes is offered with EDNS (what passes any network in one packet, DNS flag day 2020).
	resolverUDPBytes = 1232
)

// ErrNoAddress says that a host has no address.
var ErrNoAddress = errors.New("the host has no address")

// ResolverConfig is what a Resolver needs.
type ResolverConfig struct {
	// Upstreams are the name servers, "address:port"; tried in turn.
	Upstreams []string
	// Dial connects to an upstream; nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now tells the time; nil: time.Now.
	Now func() time.Time
}

// Resolver finds the addresses of clusters that are known by host name. It may be used from any goroutine.
type Resolver struct {
	up  upstreams
	now func() time.Time

	mu    sync.Mutex
	hosts map[string]*host
}

// host is what is known of one, or being asked: done is closed when it is known.
type host struct {
	done  chan struct{}
	addrs []netip.Addr
	err   error
	until time.Time
}

// NewResolver makes a resolver with an empty cache.
func NewResolver(cfg ResolverConfig) *Resolver {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Resolver{up: newUpstreams(cfg.Upstreams, cfg.Dial), now: cfg.Now, hosts: map[string]*host{}}
}

// Resolve returns the addresses of a host, IPv4 before IPv6, each kind in the server's order, and how long they may be used. An
// address is its own. The error is ErrNoAddress if the host has none; that, too, is remembered for a while.
func (r *Resolver) Resolve(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, ttlCeiling, nil
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for {
		h, mine := r.entry(name)
		if mine {
			r.fill(ctx, name, h)
		}
		select {
		case <-h.done:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
		if h.err != nil && !errors.Is(h.err, ErrNoAddress) && !mine && ctx.Err() == nil {
			continue // another caller's failure, perhaps of its patience: ask for ourselves
		}
		return h.addrs, max(h.until.Sub(r.now()), 0), h.err
	}
}

// entry returns what is known of a host; mine: nothing, and the caller is to find out.
func (r *Resolver) entry(name string) (h *host, mine bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if h := r.hosts[name]; h != nil {
		select {
		case <-h.done:
			if now.Before(h.until) {
				return h, false
			}
		default: // being asked
			return h, false
		}
	}
	if len(r.hosts) >= cacheMax {
		r.evict(now)
	}
	h = &host{done: make(chan struct{})}
	r.hosts[name] = h
	return h, true
}

// evict forgets the hosts whose time is over, and if there are none, any one.
func (r *Resolver) evict(now time.Time) {
	before := len(r.hosts)
	for name, h := range r.hosts {
		select {
		case <-h.done:
			if !now.Before(h.until) {
				delete(r.hosts, name)
			}
		default:
		}
	}
	for name := range r.hosts {
		if len(r.hosts) < before {
			return
		}
		delete(r.hosts, name)
	}
}

// fill asks for both kinds of addresses at once.
func (r *Resolver) fill(ctx context.Context, name string, h *host) {
	defer close(h.done)
	types := []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}
	found, errs := make([]records, len(types)), make([]error, len(types))
	var group sync.WaitGroup
	for i, t := range types {
		group.Go(func() { found[i], errs[i] = r.ask(ctx, name, t) })
	}
	group.Wait()
	ttl := ttlCeiling
	for _, f := range found {
		if len(f.addrs) > 0 {
			h.addrs, ttl = append(h.addrs, f.addrs...), min(ttl, f.ttl)
		}
	}
	err := errors.Join(errs...)
	if len(h.addrs) == 0 {
		h.err = fmt.Errorf("resolve %q: %w", name, cmp.Or(err, ErrNoAddress))
	}
	switch {
	case len(h.addrs) == 0 && err != nil:
		ttl = 0 // ask again
	case len(h.addrs) == 0 || err != nil:
		ttl = ttlFloor // nothing, or half of the answer
	default:
		ttl = max(ttl, ttlFloor)
	}
	h.until = r.now().Add(ttl)
}

// records are the addresses of one type.
type records struct {
	addrs []netip.Addr
	ttl   time.Duration
}

// ask puts one question, again over TCP if the answer is cut.
func (r *Resolver) ask(ctx context.Context, name string, t dnsmessage.Type) (records, error) {
	msg, q, err := question(name, t)
	if err != nil {
		return records{}, err
	}
	out, err := r.up.ask(ctx, msg, q, "udp")
	if err == nil && truncated(out) {
		out, err = r.up.ask(ctx, msg, q, "tcp")
	}
	if err != nil {
		return records{}, err
	}
	return readRecords(out, name, t)
}

func question(name string, t dnsmessage.Type) ([]byte, query, error) {
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, query{}, err
	}
	q := query{question: dnsmessage.Question{Name: n, Type: t, Class: dnsmessage.ClassINET}, udpBytes: resolverUDPBytes}
	m := dnsmessage.Message{Header: dnsmessage.Header{RecursionDesired: true}, Questions: []dnsmessage.Question{q.question}}
	var opt dnsmessage.ResourceHeader
	if err := opt.SetEDNS0(resolverUDPBytes, 0, false); err != nil {
		return nil, q, err
	}
	m.Additionals = []dnsmessage.Resource{{Header: opt, Body: &dnsmessage.OPTResource{}}}
	msg, err := m.Pack()
	return msg, q, err
}

func truncated(msg []byte) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	return err == nil && h.Truncated
}

// readRecords reads the addresses of a name, along the aliases that lead to them.
func readRecords(msg []byte, name string, t dnsmessage.Type) (records, error) {
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		return records{}, err
	}
	if m.RCode != dnsmessage.RCodeSuccess && m.RCode != dnsmessage.RCodeNameError {
		return records{}, fmt.Errorf("the name server answers %s", m.RCode)
	}
	out := records{ttl: ttlCeiling}
	names := []string{name + "."} // the name and its aliases; a server puts them in order
	for _, a := range m.Answers {
		own := slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, a.Header.Name.String()) })
		if !own || a.Header.Class != dnsmessage.ClassINET {
			continue
		}
		switch body := a.Body.(type) {
		case *dnsmessage.CNAMEResource:
			names = append(names, body.CNAME.String())
		case *dnsmessage.AResource:
			if t == dnsmessage.TypeA {
				out.add(netip.AddrFrom4(body.A))
			}
		case *dnsmessage.AAAAResource:
			if t == dnsmessage.TypeAAAA {
				out.add(netip.AddrFrom16(body.AAAA))
			}
		default:
			continue
		}
		out.ttl = min(out.ttl, time.Duration(a.Header.TTL)*time.Second)
	}
	return out, nil
}

// add notes an address, once, in the order in which servers rotate their answers.
func (r *records) add(a netip.Addr) {
	if !slices.Contains(r.addrs, a) {
		r.addrs = append(r.addrs, a)
	}
}
