package proxy

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/telemetry"
)

// hosts15008 counts the loopback addresses that tests take for hosts, since the port for tunnels is the same on all.
var hosts15008 atomic.Uint32

// loopbackHost is an address that no other test uses at the time, of this process or of another one.
func loopbackHost() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 64+pid>>8&63, pid&255, hosts15008.Add(1)%250+1)
}

// tcpServerOn is tcpServer at an address of its own.
func tcpServerOn(t *testing.T, host string, f func(c *net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		group.Wait()
	})
	return l.Addr().String()
}

func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// openTunnels has the sidecar take tunnels at a host.
func (r *rig) openTunnels(host string) {
	r.t.Helper()
	if err := r.p.listen(netip.AddrPortFrom(netip.MustParseAddr(host), PortTunnel), (*worker).acceptTunnels, nil); err != nil {
		r.t.Fatal(err)
	}
}

// tunnelled is a server's sidecar and a client's, between which everything travels in tunnels.
type tunnelled struct {
	a              *ca.Authority
	host           string
	server, client *rig
	at             string // where the client's application reaches the server's
}

// tunnelPair makes one for an application at app, on host.
func tunnelPair(t *testing.T, host, app string, in func(*plan.Chain), out func(*plan.Chain, *plan.Cluster, []plan.Endpoint)) *tunnelled {
	t.Helper()
	p := &tunnelled{a: authority(t), host: host}
	p.server = sidecar(t, p.a, "server")
	p.server.inbound(app, func(c *plan.Chain) {
		c.TLS.Mode = plan.TLSStrict
		if in != nil {
			in(c)
		}
	})
	p.server.openTunnels(host)
	p.client = sidecar(t, p.a, "client")
	p.at = p.client.outbound(p.through(out), app)
	return p
}

// through makes the endpoints take tunnels.
func (p *tunnelled) through(change func(*plan.Chain, *plan.Cluster, []plan.Endpoint)) func(*plan.Chain, *plan.Cluster, []plan.Endpoint) {
	return func(c *plan.Chain, k *plan.Cluster, e []plan.Endpoint) {
		k.TLS.Mode = plan.ClientTLSAuto
		k.TLS.Identities = []string{workloadID("server").String()}
		for i := range e {
			e[i].MTLS, e[i].Tunnel, e[i].Identity = true, plan.TunnelHBONE, workloadID("server").String()
		}
		if change != nil {
			change(c, k, e)
		}
	}
}

func bytesIn(c *plan.Chain) { c.Protocol, c.HTTP = plan.ProtocolTCP, nil }

// connections is what the client's first worker has open to take tunnels.
func (p *tunnelled) connections() (conns, tunnels int) {
	p.client.onLoop(func(w *worker) { conns, tunnels, _ = w.tunnels.Connections() })
	return conns, tunnels
}

// TestHBONEHalfClose: bytes, the end of each direction, and identity go through; connections are shared.
func TestHBONEHalfClose(t *testing.T) {
	host := loopbackHost()
	app := tcpServerOn(t, host, func(c *net.TCPConn) {
		in, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %d", len(in))
	})
	p := tunnelPair(t, host, app, bytesIn, bytesOnly)
	for i := range 3 {
		c := dialRaw(t, p.at)
		text := strings.Repeat("x", i*100_000+5)
		c.send(text)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		c.expect(fmt.Sprintf("got %d", len(text)))
		c.ended()
	}
	p.client.released("out")
	p.server.released()
	p.client.await("connections given back", func(*worker) bool { return p.client.usage("out").Connections == 0 })
	if conns, tunnels := p.connections(); conns != 1 || tunnels != 0 {
		t.Errorf("%d connections with %d tunnels, want 1 with none", conns, tunnels)
	}
	s := p.server.p.metrics.Snapshot().TCP
	if len(s) != 1 || s[0].Key.Security != telemetry.SecurityMutualTLS || s[0].Key.Source != (telemetry.Peer{Principal: workloadID("client").String(), Namespace: "default"}.Ref()) {
		t.Errorf("counted %+v", s)
	}
}

// TestHBONEServerFirst: a server that speaks first is heard, also where the protocol is not declared.
func TestHBONEServerFirst(t *testing.T) {
	for _, in := range []func(*plan.Chain){nil, bytesIn} {
		host := loopbackHost() // two proxies would share the port for tunnels of one
		app := tcpServerOn(t, host, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "220 ready\r\n")
			echo(c)
		})
		p := tunnelPair(t, host, app, in, nil)
		c := dialRaw(t, p.at)
		c.expect("220 ready\r\n")
		c.send("EHLO\r\n")
		c.expect("EHLO\r\n")
	}
}

// TestHBONEReset: a reset travels, both ways, and hurts nobody else on the connection.
func TestHBONEReset(t *testing.T) {
	host := loopbackHost()
	ended := make(chan error, 1)
	app := tcpServerOn(t, host, func(c *net.TCPConn) {
		p := make([]byte, 5)
		if _, err := io.ReadFull(c, p); err != nil {
			return
		}
		switch string(p) {
		case "echo!":
			_, _ = c.Write(p)
			echo(c)
		case "reset":
			_ = c.SetLinger(0)
		case "wait!":
			_, _ = c.Write(p)
			_, err := c.Read(p)
			ended <- err
		}
	})
	p := tunnelPair(t, host, app, bytesIn, bytesOnly)
	other := dialRaw(t, p.at)
	other.send("echo!")
	other.expect("echo!")
	c := dialRaw(t, p.at)
	c.send("reset")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
	c = dialRaw(t, p.at)
	c.send("wait!")
	c.expect("wait!")
	_ = c.SetLinger(0)
	_ = c.Close()
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
	other.send("still here")
	other.expect("still here")
	if conns, tunnels := p.connections(); conns != 1 || tunnels != 1 {
		t.Errorf("%d connections with %d tunnels, want 1 with 1", conns, tunnels)
	}
}

// TestHBONECarriesMuch: bytes arrive whole, both ways at once, and what waits in the proxies is bounded.
func TestHBONECarriesMuch(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 64 << 20
	}
	host := loopbackHost()
	app := tcpServerOn(t, host, echo)
	p := tunnelPair(t, host, app, bytesIn, bytesOnly)
	c := dialRaw(t, p.at)
	_ = c.SetDeadline(time.Now().Add(5 * patience))
	before := heap()
	var sent [32]byte
	var group sync.WaitGroup
	group.Go(func() {
		h := sha256.New()
		if _, err := io.CopyN(io.MultiWriter(c.TCPConn, h), rand.NewChaCha8([32]byte{1}), size); err != nil {
			t.Errorf("send: %v", err)
		}
		_ = c.CloseWrite()
		sent = [32]byte(h.Sum(nil))
	})
	h := sha256.New()
	if _, err := io.CopyN(h, c.in, size/2); err != nil {
		t.Fatal(err)
	}
	if now := heap(); now > before+32<<20 {
		t.Errorf("%d MiB more are held in the middle", (now-before)>>20)
	}
	n, err := io.Copy(h, c.in)
	group.Wait()
	if err != nil || n != size-size/2 || [32]byte(h.Sum(nil)) != sent {
		t.Errorf("%d bytes, %v; or they differ", n, err)
	}
}

// TestHBONESlowReader: a reader that stops holds its sender back, in bounded memory, and nobody else.
func TestHBONESlowReader(t *testing.T) {
	host := loopbackHost()
	stop := make(chan struct{})
	app := tcpServerOn(t, host, func(c *net.TCPConn) {
		p := make([]byte, 4)
		if _, err := io.ReadFull(c, p); err != nil {
			return
		}
		if string(p) == "slow" {
			<-stop
			return
		}
		_, _ = c.Write(p)
		echo(c)
	})
	p := tunnelPair(t, host, app, bytesIn, bytesOnly)
	c := dialRaw(t, p.at)
	c.send("slow")
	var sent atomic.Int64
	var group sync.WaitGroup
	group.Go(func() {
		block := make([]byte, 64<<10)
		for {
			n, err := c.Write(block)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	other := dialRaw(t, p.at)
	other.send("fast")
	other.expect("fast")
	last := int64(-1)
	for last != sent.Load() { // until nothing moves
		last = sent.Load()
		for range 20 {
			other.send("ping")
			other.expect("ping")
		}
	}
	if n := sent.Load(); n > 64<<20 {
		t.Errorf("%d MiB were taken for a reader that does not read", n>>20)
	}
	_ = c.Close()
	close(stop)
	group.Wait()
}

// TestHBONEThousand: many tunnels share few connections, and each has its own bytes.
func TestHBONEThousand(t *testing.T) {
	const n = 1000
	host := loopbackHost()
	p := tunnelPair(t, host, tcpServerOn(t, host, echo), bytesIn, bytesOnly)
	var group sync.WaitGroup
	conns := make([]*raw, n)
	for i := range conns {
		conns[i] = dialRaw(t, p.at)
	}
	for i, c := range conns {
		group.Go(func() {
			text := fmt.Sprintf("I am %d", i)
			c.send(text)
			c.expect(text)
		})
	}
	group.Wait()
	have, tunnels := p.connections()
	if tunnels != n || have != 5 {
		t.Errorf("%d tunnels on %d connections, want %d on 5", tunnels, have, n)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	p.client.released("out")
	p.server.released()
}

// tunnelBytesMax is what an idle tunnel may hold of the heap in each of the two proxies, with the relay and the socket
// at its end.
const tunnelBytesMax = 2 << 10

// TestHBONEIdle: a tunnel that waits for its next byte holds no buffer and no goroutine.
func TestHBONEIdle(t *testing.T) {
	const n = 1000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 6*n {
		t.Skipf("%d descriptors are needed and %d permitted (ulimit -n); %v", 6*n, limit.Cur, err)
	}
	host := loopbackHost()
	server := rawSocket(t)
	defer func() { _ = syscall.Close(server) }()
	if err := syscall.Bind(server, &syscall.SockaddrInet4{Addr: netip.MustParseAddr(host).As4()}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(server, n); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(server)
	if err != nil {
		t.Fatal(err)
	}
	p := tunnelPair(t, host, net.JoinHostPort(host, fmt.Sprint(name.(*syscall.SockaddrInet4).Port)), bytesIn, bytesOnly)
	at := netip.MustParseAddrPort(p.at)
	fill := func() (clients, servers sockets) {
		for range n {
			fd := rawSocket(t)
			if err := syscall.Connect(fd, &syscall.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, fd)
		}
		clients.write(t, []byte("ping"))
		for range n {
			fd, _, err := syscall.Accept4(server, syscall.SOCK_CLOEXEC)
			for errors.Is(err, syscall.EINTR) {
				fd, _, err = syscall.Accept4(server, syscall.SOCK_CLOEXEC)
			}
			if err != nil {
				t.Fatal(err)
			}
			servers = append(servers, fd)
		}
		servers.read(t, []byte("ping"))
		servers.write(t, []byte("pong"))
		clients.read(t, []byte("pong"))
		return clients, servers
	}
	clients, servers := fill() // which fills the stocks of what is used again
	clients.close()
	servers.close()
	p.client.released("out")
	p.server.released()
	before := heap()
	clients, servers = fill()
	defer clients.close()
	defer servers.close()
	each := (int64(heap()) - int64(before)) / n / 2
	t.Logf("%d bytes of heap and stack for each tunnel in each proxy", each)
	if each > tunnelBytesMax {
		t.Errorf("%d bytes for each tunnel, want no more than %d", each, tunnelBytesMax)
	}
}

// TestHBONEHTTP: requests travel in tunnels; the peer's identity counts for authorization and is told to the
// application.
func TestHBONEHTTP(t *testing.T) {
	host := loopbackHost()
	app := httpOn(t, host, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Cert", r.Header.Get("X-Forwarded-Client-Cert"))
		fmt.Fprintf(w, "%s %s", r.Proto, r.URL.Path)
	})
	onlyClient := &plan.Authz{Policies: []plan.Policy{{Name: "p", Action: plan.ActionAllow, Rules: []plan.PolicyRule{{
		From: []plan.Source{{Principals: []plan.StringMatch{{Kind: plan.MatchExact, Value: "cluster.local/ns/default/sa/client"}}}},
		To:   []plan.Operation{{Paths: []plan.StringMatch{{Kind: plan.MatchPrefix, Value: "/ok"}}}},
	}}}}}
	p := tunnelPair(t, host, app, func(c *plan.Chain) { c.Authz = onlyClient }, nil)
	for range 3 {
		res, body := fetch(t, webClient(t), request(t, "GET", "http://"+p.at+"/ok", nil))
		if res.StatusCode != 200 || body != "HTTP/1.1 /ok" || !strings.Contains(res.Header.Get("X-Cert"), "URI="+workloadID("client").String()) {
			t.Errorf("%s %q, certificate %q", res.Status, body, res.Header.Get("X-Cert"))
		}
	}
	if res, _ := fetch(t, webClient(t), request(t, "GET", "http://"+p.at+"/no", nil)); res.StatusCode != 403 {
		t.Errorf("a path that is not allowed: %s", res.Status)
	}
	p.server.series(4)
	other := sidecar(t, p.a, "other")
	at := other.outbound(p.through(nil), app)
	if res, _ := fetch(t, webClient(t), request(t, "GET", "http://"+at+"/ok", nil)); res.StatusCode != 403 {
		t.Errorf("another client: %s", res.Status)
	}
}

// TestHBONERefused: who may not open a tunnel, or to where nobody listens, is told why.
func TestHBONERefused(t *testing.T) {
	host := loopbackHost()
	app := tcpServerOn(t, host, echo)
	deny := &plan.Authz{Policies: []plan.Policy{{Name: "p", Action: plan.ActionDeny, Rules: []plan.PolicyRule{{
		From: []plan.Source{{Principals: []plan.StringMatch{{Kind: plan.MatchExact, Value: "cluster.local/ns/default/sa/client"}}}},
	}}}}}
	p := tunnelPair(t, host, app, func(c *plan.Chain) { bytesIn(c); c.Authz = deny }, bytesOnly)
	resets(t, p.at)
	p.client.await("the refusal logged", func(*worker) bool { return strings.Contains(p.client.logs.String(), "answers 403") })

	nobody := net.JoinHostPort(host, fmt.Sprint(freePort(t)))
	p.server.inbound(nobody, func(c *plan.Chain) { c.TLS.Mode = plan.TLSStrict; bytesIn(c) })
	p.client = sidecar(t, p.a, "client")
	resets(t, p.client.outbound(p.through(bytesOnly), nobody))
	p.client.await("the refusal logged", func(*worker) bool { return strings.Contains(p.client.logs.String(), "answers 503") })

	impostor := sidecar(t, p.a, "client")
	resets(t, impostor.outbound(p.through(func(c *plan.Chain, k *plan.Cluster, e []plan.Endpoint) {
		bytesOnly(c, k, e)
		k.TLS.Identities, e[0].Identity = []string{workloadID("else").String()}, ""
	}), app))
	impostor.await("the identity refused", func(*worker) bool { return strings.Contains(impostor.logs.String(), "tls_identity_mismatch") })
}

// httpOn is an HTTP server at a host of its own.
func httpOn(t *testing.T, host string, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return l.Addr().String()
}

// TestHBONEPortRefuses: nothing but mutual TLS with HTTP/2 is taken at the port for tunnels.
func TestHBONEPortRefuses(t *testing.T) {
	host := loopbackHost()
	p := tunnelPair(t, host, tcpServerOn(t, host, echo), bytesIn, bytesOnly)
	at := net.JoinHostPort(host, fmt.Sprint(PortTunnel))
	for _, first := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x00\xff garbage"} {
		c := dialRaw(t, at)
		c.send(first)
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q: read %d bytes, %v; want a reset", first, n, err)
		}
	}
	for what, cfg := range map[string]*tls.Config{
		"no certificate": {InsecureSkipVerify: true, NextProtos: []string{"h2"}},
		"another root":   meshClient(t, authority(t), "client", "h2"),
		"no HTTP/2":      meshClient(t, p.a, "client", "http/1.1"),
		"TLS 1.2":        {InsecureSkipVerify: true, NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12},
	} {
		c, err := tls.Dial("tcp", at, cfg)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
			_ = c.Close()
		}
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", what, err)
		}
	}
	p.server.await("all forgotten", func(w *worker) bool { return len(w.peersIn) == 0 })
}

// TestHBONERotation: with a new certificate tunnels go over a new connection; those that are open go on.
func TestHBONERotation(t *testing.T) {
	host := loopbackHost()
	p := tunnelPair(t, host, tcpServerOn(t, host, echo), bytesIn, bytesOnly)
	open := func() *raw {
		c := dialRaw(t, p.at)
		c.send("hello")
		c.expect("hello")
		return c
	}
	old := open()
	for range 3 {
		p.client.as(p.a, "client")
		p.server.as(p.a, "server")
		for range 20 { // over the old connection until the new one is there
			c := open()
			_ = c.Close()
		}
		p.client.await("the new connection beside the oldest, which has a tunnel", func(w *worker) bool {
			n, _, stale := w.tunnels.Connections()
			return n == 2 && stale == 1
		})
		old.send("still here")
		old.expect("still here")
	}
	c := open()
	p.client.await("two connections with a tunnel each", func(w *worker) bool {
		n, tunnels, _ := w.tunnels.Connections()
		return n == 2 && tunnels == 2
	})
	_ = old.Close()
	p.client.await("the old connection closed", func(w *worker) bool { n, _, _ := w.tunnels.Connections(); return n == 1 })
	c.send("and on")
	c.expect("and on")
}

// TestHBONEServerDrains: a server that leaves lets open tunnels end, and new ones find another way.
func TestHBONEServerDrains(t *testing.T) {
	host := loopbackHost()
	p := tunnelPair(t, host, tcpServerOn(t, host, echo), bytesIn, bytesOnly)
	old := dialRaw(t, p.at)
	old.send("hello")
	old.expect("hello")
	p.server.onLoop(func(w *worker) {
		for t := range w.peersIn {
			t.drain()
		}
	})
	for range 10 {
		c := dialRaw(t, p.at)
		c.send("new")
		c.expect("new")
		_ = c.Close()
	}
	old.send("still here")
	old.expect("still here")
	_ = old.CloseWrite()
	old.ended()
	p.client.await("one connection left", func(w *worker) bool { n, _, _ := w.tunnels.Connections(); return n == 1 })
}
