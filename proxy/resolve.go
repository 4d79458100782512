package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/proxy/dns"
	"github.com/lateen-mesh/lateen/telemetry"
)

// The times of looking a cluster's hosts up.
const (
	// resolveFloor and resolveCeiling bound the time to the next look-up; between them the answer's TTL decides (Envoy:
	// respect_dns_ttl; MeshConfig: dnsRefreshRate).
	resolveFloor   = 5 * time.Second
	resolveCeiling = time.Minute
	// resolveJitter, at most, is added, so that proxies do not ask in step (Istio: PILOT_DNS_JITTER_DURATION).
	resolveJitter = 100 * time.Millisecond
	// resolveRetry is the time to the next look-up after a failure; it doubles with each, up to resolveCeiling.
	resolveRetry = time.Second
	// resolveWait bounds one look-up of a cluster, and by this how long anybody waits for it.
	resolveWait = 5 * time.Second
	// resolveIdle is how long the endpoints of a cluster that nobody uses are kept up to date.
	resolveIdle = 5 * time.Minute
)

// The bounds of looking up.
const (
	resolvedMax    = 4096 // clusters
	lookupsMax     = 64   // hosts at once
	resolveWaiters = 8192 // of one cluster, besides those that wait in a pool
	// hostsUsedStep is how exactly the time of use is noted.
	hostsUsedStep = time.Second
)

var (
	errTooManyHosts   = fmt.Errorf("%d clusters are looked up by DNS already: narrow the proxy's scope with a Sidecar resource", resolvedMax)
	errTooManyWaiters = fmt.Errorf("%d connections wait for the same DNS answer", resolveWaiters)
)

// hosts finds the endpoints of the clusters that are known by host name. A
// cluster is looked up when it is first used, and from then on as often as its
// answers are to be believed, by a goroutine of its own that ends with the
// cluster or when nobody uses it. It may be asked from any loop.
type hosts struct {
	resolve func(ctx context.Context, host string) ([]netip.Addr, time.Duration, error)
	inForce func(name string) *balance.Cluster // nil: none
	logger  *slog.Logger
	lookups chan struct{} // one element for each that is under way
	known   atomic.Pointer[map[string]*hosted]

	mu    sync.Mutex // also guards what hosted says, and changes of known
	ctx   context.Context
	group *sync.WaitGroup
}

// hosted is a cluster that is looked up.
type hosted struct {
	name   string
	used   atomic.Int64           // ns
	answer atomic.Pointer[answer] // nil: none yet
	poke   chan struct{}          // look up now

	want    *balance.Cluster     // the newest that was asked for; guarded by hosts.mu
	waiting map[*parked]struct{} // guarded by hosts.mu
}

// answer says for which cluster endpoints were found.
type answer struct {
	cluster *balance.Cluster
	err     error // of the last look-up; the endpoints are those of the last good one
}

// parked is somebody on an event loop who waits for an answer.
type parked struct {
	w    *worker
	f    func()
	over bool // belongs to the loop
}

// startHosts begins to serve those who ask, on goroutines of group, until ctx ends.
func (p *Proxy) startHosts(ctx context.Context, group *sync.WaitGroup) {
	r := dns.NewResolver(dns.ResolverConfig{Upstreams: p.nameServers(), Dial: p.dialer().DialContext})
	p.hosts = newHosts(r.Resolve, p.table.Cluster, p.cfg.Logger)
	p.hosts.ctx, p.hosts.group = ctx, group
}

func newHosts(resolve func(context.Context, string) ([]netip.Addr, time.Duration, error), inForce func(string) *balance.Cluster, logger *slog.Logger) *hosts {
	h := &hosts{resolve: resolve, inForce: inForce, logger: logger, lookups: make(chan struct{}, lookupsMax)}
	h.known.Store(&map[string]*hosted{})
	return h
}

// byHost reports whether a cluster is known by host names.
func byHost(c *plan.Cluster) bool {
	return c.Discovery == plan.DiscoverDNS || c.Discovery == plan.DiscoverDNSFirst
}

// look reports whether there is an answer for a cluster, and what went wrong with the last one. While the cluster has
// new orders that have not been looked up, the endpoints of the old ones serve.
func (h *hosts) look(c *balance.Cluster, now time.Time) (found bool, err error) {
	n := (*h.known.Load())[c.Plan().Name]
	if n == nil {
		return false, nil
	}
	if t := now.UnixNano(); t-n.used.Load() > int64(hostsUsedStep) {
		n.used.Store(t)
	}
	a := n.answer.Load()
	switch {
	case a == nil || !a.cluster.Same(c):
		return false, nil
	case a.cluster != c:
		h.mu.Lock()
		n.ask(c)
		h.mu.Unlock()
	}
	return true, a.err
}

// ask has a cluster looked up if it is another one than before. The caller holds hosts.mu.
func (n *hosted) ask(c *balance.Cluster) {
	if n.want == c {
		return
	}
	n.want = c
	select {
	case n.poke <- struct{}{}:
	default: // it will be, already
	}
}

// await calls f once on the worker's loop, and not from within, when the cluster has been looked up. cancel is for
// the loop only.
func (h *hosts) await(w *worker, c *balance.Cluster, f func()) (cancel func(), err error) {
	k := &parked{w: w, f: f}
	h.mu.Lock()
	n, err := h.hosted(c, w.loop.Now())
	if err == nil && len(n.waiting) >= resolveWaiters {
		err = errTooManyWaiters
	}
	if err != nil {
		h.mu.Unlock()
		return nil, err
	}
	n.ask(c)
	a := n.answer.Load()
	late := a != nil && a.cluster.Same(c) // it has just come
	if !late {
		n.waiting[k] = struct{}{}
	}
	h.mu.Unlock()
	if late {
		k.tell()
	}
	return func() {
		k.over = true
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(n.waiting, k)
	}, nil
}

func (k *parked) tell() {
	k.w.loop.Post(func() {
		if !k.over {
			k.f()
		}
	})
}

// hosted returns what is looked up for a cluster, and starts that. The caller holds mu.
func (h *hosts) hosted(c *balance.Cluster, now time.Time) (*hosted, error) {
	name, known := c.Plan().Name, *h.known.Load()
	if n := known[name]; n != nil {
		return n, nil
	}
	if len(known) >= resolvedMax {
		return nil, errTooManyHosts
	}
	n := &hosted{name: name, poke: make(chan struct{}, 1), want: c, waiting: map[*parked]struct{}{}}
	n.used.Store(now.UnixNano())
	next := maps.Clone(known)
	next[name] = n
	h.known.Store(&next)
	h.group.Go(func() { h.keep(h.ctx, n) })
	return n, nil
}

// keep looks a cluster up, again and again.
func (h *hosts) keep(ctx context.Context, n *hosted) {
	last := found{hosts: map[string][]netip.Addr{}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.poke:
		case <-timer.C:
		}
		if last.cluster != nil && h.drop(n) {
			return
		}
		timer.Reset(h.round(ctx, n, &last))
	}
}

// drop forgets a cluster that has gone or is not used any more, and reports whether it did.
func (h *hosts) drop(n *hosted) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.inForce(n.name)
	gone := c == nil || !byHost(c.Plan())
	idle := time.Since(time.Unix(0, n.used.Load())) > resolveIdle
	if len(n.waiting) > 0 || !gone && !idle {
		return false
	}
	next := maps.Clone(*h.known.Load())
	delete(next, n.name)
	h.known.Store(&next)
	return true
}

// found is what the last look-up of a cluster came to.
type found struct {
	cluster  *balance.Cluster
	hosts    map[string][]netip.Addr // the last good answers
	set      []plan.Endpoint
	failures int // in a row
}

// round looks all hosts of a cluster up, gives it its endpoints and wakes those who wait. It returns the time to the
// next look-up.
func (h *hosts) round(ctx context.Context, n *hosted, last *found) time.Duration {
	h.mu.Lock()
	c := n.want
	h.mu.Unlock()
	if now := h.inForce(n.name); now != nil && now.Same(c) && byHost(now.Plan()) {
		c = now
	}
	hosts, ttl, err := h.lookUp(ctx, c.Plan(), last.hosts)
	if ctx.Err() != nil {
		return 0
	}
	set := expand(c.Plan(), hosts)
	if c != last.cluster || !slices.Equal(set, last.set) {
		c.SetEndpoints(set)
	}
	wait := min(max(ttl, resolveFloor), resolveCeiling)
	switch {
	case err == nil:
		last.failures = 0
	case errors.Is(err, dns.ErrNoAddress) && last.failures > 0: // has been told
	default:
		if last.failures == 0 {
			h.logger.Warn("a host is not resolved; addresses found before stay in use: check the ServiceEntry and the name servers", "cluster", n.name, "cause", err)
		}
		wait = min(resolveRetry<<min(last.failures, 10), resolveCeiling)
		last.failures++
	}
	last.cluster, last.hosts, last.set = c, hosts, set
	h.mu.Lock()
	n.answer.Store(&answer{c, err})
	told := slices.Collect(maps.Keys(n.waiting))
	clear(n.waiting)
	h.mu.Unlock()
	for _, k := range told { // without the lock, which the loops need to go on
		k.tell()
	}
	return wait + rand.N(resolveJitter)
}

// lookUp resolves the hosts of a cluster at the same time. A host that cannot be resolved keeps its last addresses;
// one that has none any more loses them. ttl is that of the answer which is to be renewed first.
func (h *hosts) lookUp(ctx context.Context, c *plan.Cluster, last map[string][]netip.Addr) (now map[string][]netip.Addr, ttl time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, resolveWait)
	defer cancel()
	type result struct {
		addrs []netip.Addr
		ttl   time.Duration
		err   error
	}
	results := map[string]*result{}
	var group sync.WaitGroup
	for _, a := range c.Addresses {
		if results[a.Host] != nil {
			continue
		}
		r := &result{}
		results[a.Host] = r
		group.Go(func() {
			select {
			case h.lookups <- struct{}{}:
				defer func() { <-h.lookups }()
				r.addrs, r.ttl, r.err = h.resolve(ctx, a.Host)
			case <-ctx.Done():
				r.err = fmt.Errorf("resolve %q: %w", a.Host, ctx.Err())
			}
		})
	}
	group.Wait()
	now, ttl = map[string][]netip.Addr{}, resolveCeiling
	var errs []error
	for host, r := range results {
		switch {
		case r.err == nil:
			now[host], ttl = r.addrs, min(ttl, r.ttl)
		case errors.Is(r.err, dns.ErrNoAddress):
			ttl = min(ttl, r.ttl)
		default:
			now[host] = last[host]
		}
		if r.err != nil {
			errs = append(errs, r.err)
		}
	}
	return now, ttl, errors.Join(errs...)
}

// expand lists the endpoints of a cluster: each address of each host, or the first one only.
func expand(c *plan.Cluster, hosts map[string][]netip.Addr) []plan.Endpoint {
	var out []plan.Endpoint
	for _, a := range c.Addresses {
		addrs := hosts[a.Host]
		if c.Discovery == plan.DiscoverDNSFirst {
			addrs = addrs[:min(1, len(addrs))]
		} else { // servers rotate their answers, which changes nothing
			addrs = slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
		}
		for _, ip := range addrs {
			out = append(out, plan.Endpoint{Address: netip.AddrPortFrom(ip, a.Port), Weight: a.Weight, Locality: a.Locality})
		}
	}
	return out
}

// park has an attempt wait for its cluster's first look-up, among the others of a pool that never dials.
func (w *worker) park(t target, a *attempt) {
	key := poolKey{plan: t.cluster.Plan(), parked: true}
	p := w.pool(&key)
	p.t = t
	p.used = w.loop.Now()
	if len(p.waiters) >= waitersPerPool || !t.cluster.AcquirePending() {
		a.failed(telemetry.PendingOverflow, errors.New("too many requests wait for a DNS answer"))
		return
	}
	if p.dialing == 0 {
		if _, err := w.p.hosts.await(w, t.cluster, p.resolved); err != nil {
			t.cluster.ReleasePending()
			a.failed(telemetry.PendingOverflow, err)
			return
		}
		p.dialing = 1
	}
	a.pool = p
	p.waiters = append(p.waiters, a)
}

// resolved has those who were parked try again. One that has to wait another time goes to the end.
func (p *pool) resolved() {
	p.dialing = 0
	for n := len(p.waiters); n > 0 && len(p.waiters) > 0; n-- {
		a := p.waiters[0]
		p.forget(a)
		a.pool = nil
		if x := a.x; x != nil {
			x.current = nil
			x.rec.attempts-- // it was none
			a.close()
			x.attempt()
			continue
		}
		t, why := p.w.target(a.t.cluster, netip.AddrPort{}, pick{})
		if why != telemetry.None {
			a.failed(why, errors.New(strings.ToLower(why.Doc())))
			continue
		}
		t.http2, t.client = a.t.http2, a.t.client
		a.t = t
		p.w.acquire(t, a)
	}
}
