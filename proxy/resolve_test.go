package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/proxy/dns"
)

// zone is a name server's knowledge. A host without addresses does not exist.
type zone struct {
	mu     sync.Mutex
	addrs  map[string][]string
	broken bool // every question is answered with a failure
	silent bool // no question is answered
	asked  map[string]int
}

func (z *zone) set(host string, addrs ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.addrs[host] = addrs
}

func (z *zone) fail(broken, silent bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.broken, z.silent = broken, silent
}

// questions is how often IPv4 addresses of a host were asked for.
func (z *zone) questions(host string) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked[host]
}

func (z *zone) answer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	host := strings.TrimSuffix(q.Name.String(), ".")
	z.mu.Lock()
	defer z.mu.Unlock()
	if q.Type == dnsmessage.TypeA {
		z.asked[host]++
	}
	m.Response, m.Additionals = true, nil
	switch {
	case z.silent:
		return nil
	case z.broken:
		m.RCode = dnsmessage.RCodeServerFailure
	case len(z.addrs[host]) == 0:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		for _, a := range z.addrs[host] {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 30},
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()},
			})
		}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

// resolving starts a sidecar whose name server knows the zone. now moves the clock of its resolver.
func resolving(t *testing.T, z *zone) (r *rig, now *atomic.Int64) {
	t.Helper()
	z.addrs, z.asked = map[string][]string{}, map[string]int{}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if out := z.answer(buf[:n]); out != nil {
				_, _ = udp.WriteTo(out, from)
			}
		}
	}()
	t.Cleanup(func() {
		_ = udp.Close()
		<-done
	})
	r = sidecar(t, nil, "web")
	now = &atomic.Int64{}
	now.Store(1e18)
	r.p.hosts.resolve = dns.NewResolver(dns.ResolverConfig{
		Upstreams: []string{udp.LocalAddr().String()}, Now: func() time.Time { return time.Unix(0, now.Load()) },
	}).Resolve
	return r, now
}

// again has the cluster "out" looked up when its answer has become too old, and waits for that.
func (r *rig) again(now *atomic.Int64) {
	r.t.Helper()
	now.Add(int64(time.Hour))
	n := (*r.p.hosts.known.Load())["out"]
	before := n.answer.Load()
	n.poke <- struct{}{}
	r.await("another look-up", func(*worker) bool { return n.answer.Load() != before })
}

// servers are servers that tell their names, at one port of as many addresses from 127.0.0.2 on.
func servers(t *testing.T, names ...string) (port uint16) {
	t.Helper()
	for i, name := range names {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.%d:%d", i+2, port))
		if err != nil {
			t.Fatal(err)
		}
		port = netip.MustParseAddrPort(l.Addr().String()).Port()
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Client", r.RemoteAddr)
			_, _ = io.WriteString(w, name)
		}))
		_ = s.Listener.Close()
		s.Listener = l
		s.Start()
		t.Cleanup(s.Close)
	}
	return port
}

// external orders the cluster "out" as a ServiceEntry with resolution DNS does.
func external(d plan.Discovery, addrs ...plan.Address) func(*plan.Chain, *plan.Cluster, []plan.Endpoint) {
	return func(_ *plan.Chain, c *plan.Cluster, _ []plan.Endpoint) {
		c.Discovery, c.Addresses, c.External, c.Balance.Algorithm = d, addrs, true, plan.RoundRobin
	}
}

// heard asks n times and returns who answered.
func heard(t *testing.T, at string, n int) map[string]int {
	t.Helper()
	out := map[string]int{}
	c := webClient(t)
	for range n {
		res, body := fetch(t, c, request(t, "GET", "http://"+at+"/", nil))
		if res.StatusCode != 200 {
			body = res.Header.Get("X-Lateen-Reason")
		}
		out[body]++
	}
	return out
}

// TestDNS: a service of host names is looked up when it is used, follows the answers, and lives on through failures.
func TestDNS(t *testing.T) {
	port := servers(t, "a", "b", "c")
	z := &zone{}
	r, now := resolving(t, z)
	z.set("api.example", "127.0.0.3", "127.0.0.2")
	at := r.outbound(external(plan.DiscoverDNS, plan.Address{Host: "api.example", Port: port}, plan.Address{Host: "127.0.0.4", Port: port}))
	if n := z.questions("api.example"); n != 0 {
		t.Errorf("%d questions before anybody asked", n)
	}
	want := func(n int, all map[string]int) {
		t.Helper()
		if diff := cmp.Diff(all, heard(t, at, n)); diff != "" {
			t.Errorf("who answered (-want +got):\n%s", diff)
		}
	}
	want(6, map[string]int{"a": 2, "b": 2, "c": 2})
	if n := z.questions("api.example"); n != 1 {
		t.Errorf("%d questions for an answer that is good", n)
	}
	z.set("api.example", "127.0.0.3")
	r.again(now)
	want(4, map[string]int{"b": 2, "c": 2})
	r.await("no connection to the address that has gone", func(w *worker) bool {
		for key, p := range w.pools {
			if key.addr.Addr() == netip.MustParseAddr("127.0.0.2") && p.open > 0 {
				return false
			}
		}
		return true
	})
	z.fail(true, false)
	r.again(now)
	want(4, map[string]int{"b": 2, "c": 2})
	z.fail(false, false)
	z.set("api.example")
	r.again(now)
	want(2, map[string]int{"c": 2})
	if n := z.questions("127.0.0.4"); n != 0 {
		t.Errorf("%d questions for an address", n)
	}
	r.released("out")
}

// TestDNSFails: without any answer requests and connections are refused with the reason, and served when there is one.
func TestDNSFails(t *testing.T) {
	port := servers(t, "a")
	z := &zone{}
	r, now := resolving(t, z)
	z.fail(true, false)
	out := external(plan.DiscoverDNS, plan.Address{Host: "api.example", Port: port})
	at := r.outbound(func(chain *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		out(chain, c, e)
		declared(chain, c, e)
	})
	if got := heard(t, at, 2); got["dns_failure"] != 2 {
		t.Errorf("answered %v", got)
	}
	if res, _ := fetch(t, webClient(t), request(t, "GET", "http://"+at+"/", nil)); res.StatusCode != 503 {
		t.Errorf("status %d", res.StatusCode)
	}
	z.fail(false, false) // the host does not exist
	r.again(now)
	if got := heard(t, at, 1); got["dns_failure"] != 1 {
		t.Errorf("answered %v", got)
	}
	z.set("api.example", "127.0.0.2")
	r.again(now)
	if got := heard(t, at, 2); got["a"] != 2 {
		t.Errorf("answered %v", got)
	}
	r.released("out")
}

// TestDNSFirst: a service of one logical host uses the first address for new connections, and keeps open ones.
func TestDNSFirst(t *testing.T) {
	port := servers(t, "a", "b")
	z := &zone{}
	r, now := resolving(t, z)
	z.set("api.example", "127.0.0.3", "127.0.0.2")
	at := r.outbound(external(plan.DiscoverDNSFirst, plan.Address{Host: "api.example", Port: port}))
	if got := heard(t, at, 4); got["b"] != 4 {
		t.Errorf("answered %v, want the first address only", got)
	}
	z.set("api.example", "127.0.0.2", "127.0.0.3")
	r.again(now)
	r.onLoop(func(w *worker) { w.sweepPools(w.loop.Now()) })
	if got := heard(t, at, 2); got["b"] != 2 {
		t.Errorf("answered %v, want the open connection to be used", got)
	}
	r.onLoop(func(w *worker) {
		for _, p := range w.pools {
			for len(p.idle) > 0 {
				u := p.idle[0]
				u.retire()
				u.c.Close()
			}
		}
	})
	if got := heard(t, at, 2); got["a"] != 2 {
		t.Errorf("answered %v, want the new address for a new connection", got)
	}
}

// TestDNSParks: those who wait for an answer can leave, are bounded by the cluster's limits and get their turn.
func TestDNSParks(t *testing.T) {
	port := servers(t, "a")
	z := &zone{}
	r, _ := resolving(t, z)
	answer := make(chan struct{})
	ask := r.p.hosts.resolve
	z.set("api.example", "127.0.0.2")
	r.p.hosts.resolve = func(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
		<-answer
		return ask(ctx, host)
	}
	at := r.outbound(func(ch *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		external(plan.DiscoverDNS, plan.Address{Host: "api.example", Port: port})(ch, c, e)
		c.Limits.PendingRequests = 2
	})
	get := func(c *raw) { c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n") }
	waiting := func(n int64) {
		r.await(fmt.Sprintf("%d wait", n), func(*worker) bool { return r.usage("out").Pending == n })
	}
	first, second := dialRaw(t, at), dialRaw(t, at)
	get(first)
	get(second)
	waiting(2)
	third := dialRaw(t, at)
	get(third)
	if res, _ := third.response("GET"); res.StatusCode != 503 || res.Header.Get("X-Lateen-Reason") != "pending_overflow" {
		t.Errorf("%s %q", res.Status, res.Header.Get("X-Lateen-Reason"))
	}
	_ = first.Close()
	waiting(1)
	close(answer)
	if res, body := second.response("GET"); body != "a" {
		t.Errorf("%s %q", res.Status, body)
	}
	r.released("out")
}

// TestDNSRelay: bytes wait for the answer, too, and are refused if there is none.
func TestDNSRelay(t *testing.T) {
	echo := netip.MustParseAddrPort(tcpServer(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }))
	z := &zone{}
	r, now := resolving(t, z)
	at := r.outbound(func(ch *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		bytesOnly(ch, c, e)
		external(plan.DiscoverDNS, plan.Address{Host: "db.example", Port: echo.Port()})(ch, c, e)
	})
	resets(t, at)
	r.await("the reason is told", func(*worker) bool { return strings.Contains(r.logs.String(), "reason=dns_failure") })
	z.set("db.example", "127.0.0.1")
	r.again(now)
	c := dialRaw(t, at)
	c.send("ping")
	c.expect("ping")

	z = &zone{}
	r, _ = resolving(t, z) // one that waits
	z.set("db.example", "127.0.0.1")
	c = dialRaw(t, r.outbound(func(ch *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		bytesOnly(ch, c, e)
		external(plan.DiscoverDNS, plan.Address{Host: "db.example", Port: echo.Port()})(ch, c, e)
	}))
	c.send("ping")
	c.expect("ping")
}

// lookups is a resolver of a test. It tells when it is asked.
type lookups struct {
	at chan time.Time

	mu    sync.Mutex
	addrs map[string]string
	ttl   time.Duration
	err   error
}

func (l *lookups) resolve(_ context.Context, host string) ([]netip.Addr, time.Duration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at <- time.Now()
	if l.err != nil {
		return nil, l.ttl, l.err
	}
	return []netip.Addr{netip.MustParseAddr(l.addrs[host])}, l.ttl, nil
}

func (l *lookups) set(ttl time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ttl, l.err = ttl, err
}

func hostsOf(c *balance.Cluster) string {
	var out []string
	for _, e := range c.Endpoints() {
		out = append(out, e.Plan().Address.Addr().String())
	}
	return strings.Join(out, " ")
}

// TestLookupTimes: a cluster is looked up as often as its answers say, within bounds; less often while that fails; and
// not any more when it is not used, or gone.
func TestLookupTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lookups{at: make(chan time.Time, 1000), addrs: map[string]string{"a.example": "192.0.2.1", "b.example": "192.0.2.2"}, ttl: 20 * time.Second}
		order := func(host string) *plan.Cluster {
			return &plan.Cluster{Name: "c", Discovery: plan.DiscoverDNS, Addresses: []plan.Address{{Host: host, Port: 80}}}
		}
		c := balance.New(order("a.example"), nil)
		var inForce atomic.Pointer[balance.Cluster]
		inForce.Store(c)
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		h := newHosts(l.resolve, func(string) *balance.Cluster { return inForce.Load() }, slog.New(slog.DiscardHandler))
		h.ctx, h.group = ctx, &group
		begin := func(c *balance.Cluster) {
			h.mu.Lock()
			if _, err := h.hosted(c, time.Now()); err != nil {
				t.Error(err)
			}
			h.mu.Unlock()
			synctest.Wait()
		}
		last := time.Now()
		// after expects the next look-up d after the last one, give or take the jitter.
		after := func(d time.Duration) {
			t.Helper()
			h.look(inForce.Load(), time.Now())
			now := <-l.at
			if took := now.Sub(last); took < d || took > d+resolveJitter {
				t.Errorf("looked up after %s, want %s and the jitter", took, d)
			}
			last = now
			synctest.Wait()
		}
		begin(c)
		<-l.at
		if hostsOf(c) != "192.0.2.1" {
			t.Fatalf("endpoints %q", hostsOf(c))
		}
		l.set(time.Second, nil)
		after(20 * time.Second)
		l.set(time.Hour, nil)
		after(resolveFloor)
		l.set(0, errors.New("no answer"))
		after(resolveCeiling)
		for _, d := range []time.Duration{resolveRetry, 2 * resolveRetry, 4 * resolveRetry} {
			after(d)
		}
		if found, err := h.look(c, time.Now()); !found || err == nil || hostsOf(c) != "192.0.2.1" {
			t.Errorf("found %v, %v, endpoints %q; want the last good ones", found, err, hostsOf(c))
		}
		l.set(0, fmt.Errorf("resolve: %w", dns.ErrNoAddress))
		after(8 * resolveRetry)
		if hostsOf(c) != "" {
			t.Errorf("endpoints %q of a host that has none", hostsOf(c))
		}
		l.set(time.Minute, nil)
		after(resolveFloor)
		next := balance.New(order("b.example"), c)
		inForce.Store(next)
		if found, _ := h.look(next, time.Now()); !found || hostsOf(next) != "192.0.2.1" {
			t.Errorf("found %v, endpoints %q; want those of the orders before", found, hostsOf(next))
		}
		synctest.Wait()
		if hostsOf(next) != "192.0.2.2" {
			t.Errorf("endpoints %q under new orders", hostsOf(next))
		}
		if found, _ := h.look(balance.New(order("b.example"), nil), time.Now()); found {
			t.Error("a cluster that has come back without endpoints is taken for looked up")
		}
		<-time.After(resolveIdle + 2*resolveCeiling)
		synctest.Wait()
		if n := len(*h.known.Load()); n != 0 {
			t.Errorf("%d clusters are looked up that nobody uses", n)
		}
		begin(next)
		inForce.Store(nil)
		<-time.After(2 * resolveCeiling)
		synctest.Wait()
		if n := len(*h.known.Load()); n != 0 {
			t.Errorf("%d clusters are looked up that are gone", n)
		}
		cancel()
		group.Wait()
	})
}

// TestExpand: each host's addresses get its port, weight and locality.
func TestExpand(t *testing.T) {
	ip := netip.MustParseAddr
	hosts := map[string][]netip.Addr{"a": {ip("192.0.2.2"), ip("192.0.2.1")}, "b": {ip("2001:db8::1")}}
	c := &plan.Cluster{Addresses: []plan.Address{
		{Host: "a", Port: 80, Weight: 3, Locality: "r/z"}, {Host: "b", Port: 81}, {Host: "none", Port: 82}, {Host: "a", Port: 83},
	}}
	tests := map[plan.Discovery]string{
		plan.DiscoverDNS:      "192.0.2.1:80*3r/z 192.0.2.2:80*3r/z [2001:db8::1]:81*0 192.0.2.1:83*0 192.0.2.2:83*0",
		plan.DiscoverDNSFirst: "192.0.2.2:80*3r/z [2001:db8::1]:81*0 192.0.2.2:83*0",
	}
	for d, want := range tests {
		c.Discovery = d
		var out []string
		for _, e := range expand(c, hosts) {
			out = append(out, fmt.Sprintf("%s*%d%s", e.Address, e.Weight, e.Locality))
		}
		if got := strings.Join(out, " "); got != want {
			t.Errorf("%s: %s\nwant %s", d, got, want)
		}
	}
}
