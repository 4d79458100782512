package proxy

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/telemetry/metrics"
)

// authority is a certificate authority of the trust domain cluster.local.
func authority(t *testing.T) *ca.Authority {
	t.Helper()
	a, err := ca.New(ca.Config{TrustDomain: "cluster.local", Dir: filepath.Join(t.TempDir(), "ca")})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func workloadID(account string) identity.ID {
	return identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: account}
}

// as gives the proxy an identity.
func (r *rig) as(a *ca.Authority, account string) {
	r.t.Helper()
	cert, err := a.Certificate(workloadID(account), time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.p.holder.Set(cert, a.Bundle()); err != nil {
		r.t.Fatal(err)
	}
}

// sidecar starts a sidecar of the account, with an identity if there is an authority.
func sidecar(t *testing.T, a *ca.Authority, account string) *rig {
	t.Helper()
	r := startRig(t, func(c *Config) {
		c.Role, c.Name, c.ServiceAccount = RoleSidecar, account, account
		c.Workload = plan.Workload{Name: account, Namespace: "default", App: account, Version: "v1", CanonicalName: account}
	})
	if a != nil {
		r.as(a, account)
	}
	return r
}

// capture opens an address whose connections are treated as captured ones: to dst, by the listener of that name.
func (r *rig) capture(dst, name string) string {
	r.t.Helper()
	addr := netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", freePort(r.t)))
	to := netip.MustParseAddrPort(dst)
	if err := r.p.listen(addr, func(w *worker, c *loop.Conn) { w.newSession(c, to).findListener(name) }, nil); err != nil {
		r.t.Fatal(err)
	}
	return addr.String()
}

// inbound makes the sidecar serve an application at app by a chain, and returns where clients reach it.
func (r *rig) inbound(app string, change func(*plan.Chain)) string {
	r.t.Helper()
	c := plan.Chain{
		Name: "in", Protocol: plan.ProtocolAuto, Service: plan.ServiceName{Host: "app.default.svc.cluster.local", Name: "app", Namespace: "default"},
		HTTP: &plan.HTTP{Inline: to("app"), Peers: true, ForwardClientCert: plan.ClientCertAppendForward},
		TCP:  &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: "app"}}},
	}
	cluster := &plan.Cluster{Name: "app", Discovery: plan.DiscoverOriginalDst, Protocol: plan.ProtocolHTTP}
	change(&c)
	r.feed(&plan.Listener{Name: plan.ListenerInbound, Direction: plan.Inbound, Chains: []plan.Chain{c}}, cluster)
	return r.capture(app, plan.ListenerInbound)
}

// outbound makes the sidecar send what goes to a service to the addresses, and returns where the application reaches it.
func (r *rig) outbound(change func(*plan.Chain, *plan.Cluster, []plan.Endpoint), addrs ...string) string {
	r.t.Helper()
	name := plan.ServiceName{Host: "svc.default.svc.cluster.local", Name: "svc", Namespace: "default"}
	cluster := &plan.Cluster{Name: "out", Service: name, Protocol: plan.ProtocolHTTP}
	eps := &plan.Endpoints{Name: "out"}
	for i, a := range addrs {
		eps.Endpoints = append(eps.Endpoints, plan.Endpoint{
			Address: netip.MustParseAddrPort(a), Workload: plan.Workload{Name: fmt.Sprintf("svc-%d", i), Namespace: "default", App: "svc", Version: "v1"},
		})
	}
	c := plan.Chain{
		Name: "out", Protocol: plan.ProtocolAuto, Service: name, HTTP: &plan.HTTP{Inline: to("out"), Peers: true},
		TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: "out"}}},
	}
	if change != nil {
		change(&c, cluster, eps.Endpoints)
	}
	const dst = "10.1.2.3:80"
	r.feed(&plan.Listener{Name: dst, Direction: plan.Outbound, Chains: []plan.Chain{c}}, cluster, eps)
	// A listener that was fed before anybody asked for it has to be asked for.
	if _, state := r.p.table.Listener(dst); state.String() != "ready" {
		r.feed(&plan.Listener{Name: dst, Direction: plan.Outbound, Chains: []plan.Chain{c}}, cluster, eps)
	}
	return r.capture(dst, dst)
}

// declared says that a port speaks HTTP. Of one that is not declared the server is asked, too, where a client is silent for
// 25 ms, as the test's may be on a busy machine: a test that counts connections, or has them refused, must not see that.
func declared(c *plan.Chain, _ *plan.Cluster, _ []plan.Endpoint) { c.Protocol = plan.ProtocolHTTP }

// onLoop runs f on the first event loop and waits for it.
func (r *rig) onLoop(f func(w *worker)) {
	r.t.Helper()
	done := make(chan struct{})
	w := r.p.workers[0]
	if !w.loop.Post(func() { f(w); close(done) }) {
		r.t.Fatal("the event loop has ended")
	}
	<-done
}

// await waits until cond, asked on the event loop, is true.
func (r *rig) await(what string, cond func(w *worker) bool) {
	r.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		var ok bool
		r.onLoop(func(w *worker) { ok = cond(w) })
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// usage is what a cluster holds.
func (r *rig) usage(name string) balance.Usage {
	r.t.Helper()
	c := r.p.table.Cluster(name)
	if c == nil {
		r.t.Fatalf("no cluster %q", name)
	}
	return c.Usage()
}

// released waits until nothing is held for clients any more, neither exchanges nor limits of the clusters.
func (r *rig) released(clusters ...string) {
	r.t.Helper()
	r.await("everything given back", func(w *worker) bool {
		for d := range w.downstreams {
			if d.active != 0 {
				return false
			}
		}
		for _, name := range clusters {
			if u := r.usage(name); u.Pending != 0 || u.Requests != 0 || u.Retries != 0 {
				return false
			}
			for _, e := range r.p.table.Cluster(name).Endpoints() {
				if e.Active() != 0 {
					return false
				}
			}
		}
		return len(w.relays) == 0 && w.mirrors == 0
	})
}

// series returns the request series of the metrics when the count of requests has come to n.
func (r *rig) series(n uint64) []metrics.RequestSeries {
	r.t.Helper()
	var out []metrics.RequestSeries
	r.await(fmt.Sprintf("%d requests counted", n), func(*worker) bool {
		out = r.p.metrics.Snapshot().Requests
		var sum uint64
		for _, s := range out {
			sum += s.Duration.Count()
		}
		return sum == n
	})
	return out
}

// fetch does a request of any kind and returns the answer with its body.
func fetch(t *testing.T, c *http.Client, req *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func request(t *testing.T, method, url string, body io.Reader, header ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return req
}

// h2Client speaks HTTP/2 in plaintext, with prior knowledge.
func h2PlainClient(t *testing.T) *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// meshClient is a client with an identity of the mesh and the ALPN of a mesh proxy.
func meshClient(t *testing.T, a *ca.Authority, account string, alpn ...string) *tls.Config {
	t.Helper()
	cert, err := a.Certificate(workloadID(account), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, NextProtos: alpn}
}

// raw is a connection with deadlines on which a test speaks by hand.
type raw struct {
	t *testing.T
	*net.TCPConn
	in *bufio.Reader
}

func dialRaw(t *testing.T, addr string) *raw {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &raw{t, c.(*net.TCPConn), bufio.NewReader(c)}
}

func (c *raw) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

// expect reads exactly s.
func (c *raw) expect(s string) {
	c.t.Helper()
	p := make([]byte, len(s))
	if n, err := io.ReadFull(c.in, p); err != nil || string(p) != s {
		c.t.Fatalf("read %q, %v; want %q", p[:n], err, s)
	}
}

// response reads an answer with its body.
func (c *raw) response(method string) (*http.Response, string) {
	c.t.Helper()
	res, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		c.t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res, string(body)
}

// resets expects that the connection is reset, or was already before it was used.
func resets(t *testing.T, addr string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

// ended expects the orderly end of the connection and nothing before.
func (c *raw) ended() {
	c.t.Helper()
	if b, err := c.in.ReadByte(); err != io.EOF {
		c.t.Fatalf("read %q, %v; want the end", b, err)
	}
}

// tcpServer serves each connection with f, one after another as they come.
func tcpServer(t *testing.T, f func(c *net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			}()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

func endpointAt(addr, workload string) plan.Endpoint {
	return plan.Endpoint{Address: netip.MustParseAddrPort(addr), Workload: plan.Workload{Name: workload}}
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
