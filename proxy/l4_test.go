package proxy

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/telemetry"
)

func bytesOnly(c *plan.Chain, _ *plan.Cluster, _ []plan.Endpoint) {
	c.Protocol, c.HTTP = plan.ProtocolTCP, nil
}

// TestRelayHalfClose: each side may say that it is done and still hear the other out.
func TestRelayHalfClose(t *testing.T) {
	clientFirst := tcpServer(t, func(c *net.TCPConn) {
		in, _ := io.ReadAll(c) // to the client's FIN
		fmt.Fprintf(c, "got %s", in)
	})
	got := make(chan string, 1)
	serverFirst := tcpServer(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "bye")
		_ = c.CloseWrite()
		in, _ := io.ReadAll(c)
		got <- string(in)
	})
	r := sidecar(t, nil, "web")
	c := dialRaw(t, r.outbound(bytesOnly, clientFirst))
	c.send("hello")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.expect("got hello")
	c.ended()
	r = sidecar(t, nil, "web")
	c = dialRaw(t, r.outbound(bytesOnly, serverFirst))
	c.expect("bye")
	c.ended()
	c.send("still here")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "still here" {
		t.Errorf("the server got %q after its own end", s)
	}
	r.released("out")
	r.await("the connection given back", func(*worker) bool { return r.usage("out").Connections == 0 })
}

// TestRelayInBoundedMemory: 64 MiB each way at once arrive whole, and what waits in the proxy is bounded.
func TestRelayInBoundedMemory(t *testing.T) {
	const size = 64 << 20
	send := func(w *net.TCPConn, seed uint64) [32]byte {
		h := sha256.New()
		src := rand.NewChaCha8([32]byte{byte(seed)})
		if _, err := io.CopyN(io.MultiWriter(w, h), src, size); err != nil {
			t.Errorf("send: %v", err)
		}
		_ = w.CloseWrite()
		return [32]byte(h.Sum(nil))
	}
	receive := func(r io.Reader) [32]byte {
		h := sha256.New()
		if n, err := io.Copy(h, r); err != nil || n != size {
			t.Errorf("received %d bytes, %v", n, err)
		}
		return [32]byte(h.Sum(nil))
	}
	sums := make(chan [32]byte, 2)
	addr := tcpServer(t, func(c *net.TCPConn) {
		var g sync.WaitGroup
		g.Go(func() { sums <- send(c, 2) })
		g.Go(func() { sums <- receive(c) })
		g.Wait()
	})
	r := sidecar(t, nil, "web")
	c := dialRaw(t, r.outbound(bytesOnly, addr))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var sent, got [32]byte
	var g sync.WaitGroup
	g.Go(func() { sent = send(c.TCPConn, 1) })
	g.Go(func() { got = receive(c.in) })
	g.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	a, b := <-sums, <-sums
	if (a != got || b != sent) && (b != got || a != sent) {
		t.Error("the bytes are not the same")
	}
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 32<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

func TestRelayPassesResetsOn(t *testing.T) {
	saw := make(chan error, 1)
	addr := tcpServer(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "x")
		_, err := c.Read(make([]byte, 10))
		saw <- err
	})
	r := sidecar(t, nil, "web")
	c := dialRaw(t, r.outbound(bytesOnly, addr))
	c.expect("x")
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := <-saw; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server saw %v, want a reset", err)
	}
	addr = tcpServer(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
	})
	r = sidecar(t, nil, "web")
	c = dialRaw(t, r.outbound(bytesOnly, addr))
	c.send("x")
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client saw %v, want a reset", err)
	}
	r.await("the connection given back", func(*worker) bool { return r.usage("out").Connections == 0 })
}

// TestRelayTriesOthers: nothing has been sent yet, so an endpoint that refuses is followed by another.
func TestRelayTriesOthers(t *testing.T) {
	addr := tcpServer(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "hi") })
	refused := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	r := sidecar(t, nil, "web")
	at := r.outbound(bytesOnly, refused, addr)
	for range 20 {
		dialRaw(t, at).expect("hi")
	}
	r = sidecar(t, nil, "web")
	resets(t, r.outbound(bytesOnly, refused))
	r.await("the connection given back", func(w *worker) bool { return r.usage("out").Connections == 0 && len(w.relays) == 0 })
}

// TestRelayTriesOthersWithinLimit: a connection of which the handshake failed has no place in the limit any more.
func TestRelayTriesOthersWithinLimit(t *testing.T) {
	notTLS := tcpServer(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "220 mail.example ESMTP\r\n")
		_, _ = io.Copy(io.Discard, c)
	})
	addr := tcpServer(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "hi") })
	r := sidecar(t, authority(t), "web")
	at := r.outbound(func(c *plan.Chain, cl *plan.Cluster, e []plan.Endpoint) {
		bytesOnly(c, cl, e)
		cl.Limits.Connections, cl.TLS.Mode, e[0].MTLS = 1, plan.ClientTLSAuto, true
	}, notTLS, addr)
	for range 10 {
		c := dialRaw(t, at)
		c.expect("hi")
		_ = c.Close()
		r.await("the connection given back", func(*worker) bool { return r.usage("out").Connections == 0 })
	}
}

func TestRelayLimit(t *testing.T) {
	addr := tcpServer(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	r := sidecar(t, nil, "web")
	at := r.outbound(func(c *plan.Chain, cl *plan.Cluster, e []plan.Endpoint) {
		bytesOnly(c, cl, e)
		cl.Limits.Connections = 1
	}, addr)
	first := dialRaw(t, at)
	first.send("a")
	first.expect("a")
	resets(t, at)
	_ = first.Close()
	r.await("the first one gone", func(*worker) bool { return r.usage("out").Connections == 0 })
	third := dialRaw(t, at)
	third.send("b")
	third.expect("b")
}

// TestDetection: the protocol of an undeclared port shows in what is said first, whoever says it.
func TestDetection(t *testing.T) {
	web := backend(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Proto, r.Header.Get("X-Request-Id")[:0])
	})
	mysql := tcpServer(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "J\x00\x00\x00\x0a8.0.36")
		_, _ = io.Copy(c, c)
	})
	redis := tcpServer(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	r := sidecar(t, nil, "web")
	c := dialRaw(t, r.outbound(nil, web.Listener.Addr().String()))
	c.send("GET / HTTP/1.1\r\nHost: svc\r\n\r\n")
	if _, body := c.response("GET"); body != "HTTP/1.1 " {
		t.Errorf("body %q", body)
	}
	r = sidecar(t, nil, "web")
	c = dialRaw(t, r.outbound(nil, mysql)) // a silent client
	c.expect("J\x00\x00\x00\x0a8.0.36")
	c.send("query")
	c.expect("query")
	r = sidecar(t, nil, "web")
	c = dialRaw(t, r.outbound(nil, redis))
	c.send("*1\r\n$4\r\nPING\r\n")
	c.expect("*1\r\n$4\r\nPING\r\n")
	_ = c.CloseWrite()
	c.ended()
	r.released("out")
	r.await("connections given back", func(*worker) bool { return r.usage("out").Connections == 0 })
	// A silent client of a server that is not there learns so.
	r = sidecar(t, nil, "web")
	resets(t, r.outbound(nil, fmt.Sprintf("127.0.0.1:%d", freePort(t))))
	r.await("connections given back", func(w *worker) bool { return r.usage("out").Connections == 0 && len(w.sessions) == 0 })
}

// TestPassthroughByServerName: TLS is routed by its server name and not ended.
func TestPassthroughByServerName(t *testing.T) {
	serve := func(text string) string {
		s := newTLSBackend(t, text)
		return s.Listener.Addr().String()
	}
	chain := func(name, cluster string) plan.Chain {
		return plan.Chain{
			Name: name, Match: plan.ChainMatch{SNI: []string{name}}, TLS: plan.ServerTLS{Mode: plan.TLSPassthrough}, Protocol: plan.ProtocolTLS,
			TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: cluster}}},
		}
	}
	r := startRig(t)
	port := freePort(t)
	l := &plan.Listener{
		Name: fmt.Sprintf("gateway|%d", port), Direction: plan.Gateway, Bind: netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", port)),
		Chains: []plan.Chain{chain("a.example", "a"), chain("*.b.example", "b")},
	}
	res := []plan.Resource{l}
	for name, addr := range map[string]string{"a": serve("A"), "b": serve("B")} {
		res = append(res, &plan.Cluster{Name: name}, &plan.Endpoints{Name: name, Endpoints: []plan.Endpoint{{Address: netip.MustParseAddrPort(addr)}}})
	}
	r.feed(res...)
	r.p.gateways.update([]string{l.Name})
	for name, want := range map[string]string{"a.example": "A", "x.b.example": "B", "A.EXAMPLE": "A", "c.example": ""} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{ServerName: name, InsecureSkipVerify: true}}
		c := &http.Client{Transport: tr, Timeout: patience}
		res, err := c.Do(request(t, "GET", "https://"+l.Bind.String()+"/", nil))
		switch {
		case want == "" && err == nil:
			t.Errorf("%s: %s, want a refusal", name, res.Status)
		case want == "":
		case err != nil:
			t.Errorf("%s: %v", name, err)
		default:
			body, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if string(body) != want {
				t.Errorf("%s: came to %q, want %q", name, body, want)
			}
		}
		tr.CloseIdleConnections()
	}
	c := dialRaw(t, l.Bind.String())
	c.send("GET / HTTP/1.1\r\n\r\n")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("plaintext without a server name: %v, want a reset", err)
	}
}

// TestTCPMetrics: a relayed connection is counted with its bytes, exactly.
func TestTCPMetrics(t *testing.T) {
	addr := tcpServer(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 5))
		_, _ = c.Write(bytes.Repeat([]byte("y"), 7))
	})
	r := sidecar(t, nil, "web")
	c := dialRaw(t, r.outbound(bytesOnly, addr))
	c.send("hello")
	c.expect("yyyyyyy")
	_ = c.Close()
	r.released("out")
	series := r.p.metrics.Snapshot().TCP
	if len(series) != 1 {
		t.Fatalf("%d series, want 1: %+v", len(series), series)
	}
	s := series[0]
	if s.Opened != 1 || s.Closed != 1 || s.Sent != 7 || s.Received != 5 {
		t.Errorf("opened %d closed %d sent %d received %d, want 1 1 7 5", s.Opened, s.Closed, s.Sent, s.Received)
	}
	want := telemetry.TCPKey{
		Reporter: telemetry.ReporterSource, Source: r.p.self.ref,
		Destination: telemetry.Peer{Workload: "svc-0", Namespace: "default", App: "svc", Version: "v1"}.Ref(),
		Service:     telemetry.Service{Host: "svc.default.svc.cluster.local", Name: "svc", Namespace: "default"}.Ref(), Security: telemetry.SecurityNone,
	}
	if s.Key != want {
		t.Errorf("labels %v\nwant   %v", s.Key.AppendValues(nil), want.AppendValues(nil))
	}
}
