package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/telemetry"
)

func newTLSBackend(t *testing.T, text string) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }))
	t.Cleanup(s.Close)
	return s
}

func tlsMode(m plan.TLSMode) func(*plan.Chain) {
	return func(c *plan.Chain) { c.TLS.Mode = m }
}

func app(t *testing.T) string {
	return backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Cert", r.Header.Get("X-Forwarded-Client-Cert"))
		w.Header().Set("X-Meta", r.Header.Get("X-Envoy-Peer-Metadata"))
		fmt.Fprintf(w, "%s %s", r.Proto, r.URL.Path)
	}).Listener.Addr().String()
}

// TestMeshBothSides: two sidecars speak mutual TLS with one another; the application is told who called.
func TestMeshBothSides(t *testing.T) {
	a := authority(t)
	for _, mode := range []plan.TLSMode{plan.TLSPermissive, plan.TLSStrict} {
		for _, protocol := range []plan.Protocol{plan.ProtocolHTTP, plan.ProtocolHTTP2} {
			server := sidecar(t, a, "server")
			in := server.inbound(app(t), tlsMode(mode))
			client := sidecar(t, a, "client")
			at := client.outbound(func(_ *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
				c.TLS.Mode, c.Protocol, e[0].MTLS = plan.ClientTLSAuto, protocol, true
				c.TLS.Identities = []string{workloadID("server").String()}
			}, in)
			for range 3 {
				res, body := fetch(t, webClient(t), request(t, "GET", "http://"+at+"/x", nil, "X-Envoy-Peer-Metadata", "forged"))
				if protocol == plan.ProtocolHTTP && body != "HTTP/1.1 /x" || res.StatusCode != 200 {
					t.Fatalf("%s, %s: %s %q", mode, protocol, res.Status, body)
				}
				cert := res.Header.Get("X-Cert")
				if !strings.Contains(cert, "URI="+workloadID("client").String()) || !strings.HasPrefix(cert, "By="+workloadID("server").String()+";Hash=") {
					t.Errorf("x-forwarded-client-cert %q", cert)
				}
				if m := res.Header.Get("X-Meta"); m != "" {
					t.Errorf("the application saw peer metadata %q", m)
				}
			}
			s := server.series(3)
			if len(s) != 1 {
				t.Fatalf("%d series: %v", len(s), s)
			}
			want := telemetry.RequestKey{
				Reporter: telemetry.ReporterDestination, Code: 200, Security: telemetry.SecurityMutualTLS, Destination: server.p.self.ref,
				Source: telemetry.Peer{
					Workload: "client", Namespace: "default", App: "client", Version: "v1", CanonicalService: "client", Principal: workloadID("client").String(),
				}.Ref(),
				Service: telemetry.Service{Host: "app.default.svc.cluster.local", Name: "app", Namespace: "default"}.Ref(),
			}
			if s[0].Key != want {
				t.Errorf("labels %v\nwant   %v", s[0].Key.AppendValues(nil), want.AppendValues(nil))
			}
			if k := client.series(3)[0].Key; k.Security != telemetry.SecurityMutualTLS || k.Reporter != telemetry.ReporterSource {
				t.Errorf("the client counted %v", k.AppendValues(nil))
			}
		}
	}
}

// TestPlaintextIn: a permissive port takes plaintext and believes nothing of what it says of its sender; a strict
// one takes none.
func TestPlaintextIn(t *testing.T) {
	a := authority(t)
	r := sidecar(t, a, "server")
	at := r.inbound(app(t), tlsMode(plan.TLSPermissive))
	res, _ := fetch(t, webClient(t), request(t, "GET", "http://"+at+"/", nil,
		"X-Forwarded-Client-Cert", "By=x;URI=spiffe://cluster.local/ns/default/sa/admin", "X-Envoy-Peer-Metadata", string(sidecar(t, nil, "forged").p.self.metadata)))
	if res.StatusCode != 200 || res.Header.Get("X-Cert") != "" || res.Header.Get("X-Meta") != "" {
		t.Errorf("%s; the application was told %q, %q", res.Status, res.Header.Get("X-Cert"), res.Header.Get("X-Meta"))
	}
	if k := r.series(1)[0].Key; k.Source != (telemetry.PeerRef{}) || k.Security != telemetry.SecurityNone {
		t.Errorf("counted as from %v", k.AppendValues(nil))
	}
	r = sidecar(t, a, "server")
	at = r.inbound(app(t), tlsMode(plan.TLSStrict))
	for _, first := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "*1\r\n$4\r\nPING\r\n"} {
		c := dialRaw(t, at)
		c.send(first)
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q: read %d bytes, %v; want a reset", first, n, err)
		}
	}
	r.await("all refused, and that logged", func(w *worker) bool {
		return len(w.sessions) == 0 && strings.Contains(r.logs.String(), "reason=mtls_required")
	})
}

// TestNoOrders: what the workload accepts is not known, so nothing is.
func TestNoOrders(t *testing.T) {
	r := sidecar(t, nil, "server")
	at := r.capture(app(t), plan.ListenerInbound)
	c := dialRaw(t, at)
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	r.await("the question is asked", func(w *worker) bool { return len(w.sessions) == 1 })
	if refused := r.p.table.Update(plan.KindListener, nil, []string{plan.ListenerInbound}); refused != nil {
		t.Fatal(refused)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d bytes, %v; want a reset", n, err)
	}
}

// TestPermissiveKinds: mesh TLS is ended, an application's own is passed on, a server that speaks first is heard.
func TestPermissiveKinds(t *testing.T) {
	a := authority(t)
	own := newTLSBackend(t, "own")
	r := sidecar(t, a, "server")
	at := r.inbound(own.Listener.Addr().String(), tlsMode(plan.TLSPermissive))
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(tr.CloseIdleConnections)
	if _, body := fetch(t, &http.Client{Transport: tr}, request(t, "GET", "https://"+at+"/", nil)); body != "own" {
		t.Errorf("body %q", body)
	}
	greets := func(speak <-chan struct{}) string { // closed: the server may
		return tcpServer(t, func(c *net.TCPConn) {
			<-speak
			_, _ = io.WriteString(c, "220 ready\r\n")
			_, _ = io.Copy(c, c)
		})
	}
	for _, mode := range []plan.TLSMode{plan.TLSPermissive, plan.TLSStrict} {
		speak := make(chan struct{})
		r = sidecar(t, a, "server")
		at = r.inbound(greets(speak), tlsMode(mode))
		c, err := tls.Dial("tcp", at, meshClient(t, a, "client", alpnTCP))
		if err != nil {
			t.Fatal(err)
		}
		close(speak) // not before, as it would be heard in plaintext by a client that takes its time
		_ = c.SetDeadline(time.Now().Add(patience))
		p := make([]byte, 11)
		if _, err := io.ReadFull(c, p); err != nil || string(p) != "220 ready\r\n" {
			t.Errorf("%s: %q, %v", mode, p, err)
		}
		_ = c.Close()
	}
	r = sidecar(t, a, "server")
	speak := make(chan struct{})
	close(speak)
	c := dialRaw(t, r.inbound(greets(speak), tlsMode(plan.TLSPermissive)))
	c.expect("220 ready\r\n")
	c.send("EHLO x\r\n")
	c.expect("EHLO x\r\n")
}

// halting is a connection whose first Write stops after some bytes until it may go on.
type halting struct {
	net.Conn
	first int
	on    chan struct{}
}

func (h *halting) Write(p []byte) (int, error) {
	n := h.first
	if n == 0 {
		return h.Conn.Write(p)
	}
	h.first = 0
	if _, err := h.Conn.Write(p[:n]); err != nil {
		return 0, err
	}
	<-h.on
	m, err := h.Conn.Write(p[n:])
	return n + m, err
}

// TestPermissiveAwaitsHello: a server that speaks while a ClientHello is half there is heard inside of the TLS, not in its place.
func TestPermissiveAwaitsHello(t *testing.T) {
	a := authority(t)
	speak := make(chan struct{})
	greets := tcpServer(t, func(c *net.TCPConn) {
		<-speak
		_, _ = io.WriteString(c, "220 ready\r\n")
		_, _ = io.Copy(c, c)
	})
	r := sidecar(t, a, "server")
	raw := dialRaw(t, r.inbound(greets, tlsMode(plan.TLSPermissive)))
	var s *session
	r.await("the server to be asked", func(w *worker) bool {
		for s = range w.sessions {
			return s.early != nil && s.early.c != nil
		}
		return false
	})
	slow := &halting{raw.TCPConn, 5, make(chan struct{})}
	c := tls.Client(slow, meshClient(t, a, "client", alpnTCP))
	shaken := make(chan error, 1)
	go func() { shaken <- c.Handshake() }()
	r.await("a piece of the ClientHello", func(*worker) bool { return s.unread > 0 })
	r.onLoop(func(*worker) {
		if e := s.early; e != nil {
			e.OnData(e.c, []byte("220 ready\r\n"))
		}
		if s.stage != stageBytes {
			t.Errorf("the client is in stage %d", s.stage)
		}
	})
	close(speak)
	close(slow.on)
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 11)
	if _, err := io.ReadFull(c, p); err != nil || string(p) != "220 ready\r\n" {
		t.Errorf("%q, %v", p, err)
	}
}

// TestStrictKeepsServersQuiet: a client that has proved nothing hears no word of a server that speaks first.
func TestStrictKeepsServersQuiet(t *testing.T) {
	asked := make(chan struct{}, 1)
	greets := tcpServer(t, func(c *net.TCPConn) { asked <- struct{}{}; _, _ = io.WriteString(c, "220 ready\r\n") })
	r := sidecar(t, authority(t), "server")
	c := dialRaw(t, r.inbound(greets, tlsMode(plan.TLSStrict)))
	r.await("the connection", func(w *worker) bool { return len(w.sessions) == 1 })
	r.onLoop(func(w *worker) { // as if its time was over
		for s := range w.sessions {
			s.onTimer()
		}
	})
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d bytes, %v; want a reset", n, err)
	}
	select {
	case <-asked:
		t.Error("the server was asked")
	default:
	}
}

// TestWrongIdentity: a server that proves another identity gets no request.
func TestWrongIdentity(t *testing.T) {
	a := authority(t)
	server := sidecar(t, a, "impostor")
	in := server.inbound(app(t), tlsMode(plan.TLSStrict))
	client := sidecar(t, a, "client")
	meshed := func(chain *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		declared(chain, c, e)
		c.TLS.Mode = plan.ClientTLSMesh
	}
	at := client.outbound(func(chain *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		meshed(chain, c, e)
		c.TLS.Identities = []string{workloadID("server").String()}
	}, in)
	res, _ := fetch(t, webClient(t), request(t, "GET", "http://"+at+"/", nil))
	if res.StatusCode != 503 || res.Header.Get("X-Lateen-Reason") != "tls_identity_mismatch" {
		t.Errorf("%s %q", res.Status, res.Header.Get("X-Lateen-Reason"))
	}
	client.released("out")
	client.await("connections given back", func(*worker) bool { return client.usage("out").Connections == 0 })

	other := sidecar(t, authority(t), "client") // of another root
	at = other.outbound(meshed, in)
	res, _ = fetch(t, webClient(t), request(t, "GET", "http://"+at+"/", nil))
	if res.StatusCode != 503 || res.Header.Get("X-Lateen-Reason") != "tls_untrusted" {
		t.Errorf("%s %q", res.Status, res.Header.Get("X-Lateen-Reason"))
	}
	nobody := sidecar(t, nil, "client")
	nobody.p.holder.SetBundle(a.Bundle())
	at = nobody.outbound(meshed, in)
	res, _ = fetch(t, webClient(t), request(t, "GET", "http://"+at+"/", nil))
	if res.StatusCode != 503 || res.Header.Get("X-Lateen-Reason") != "no_identity" {
		t.Errorf("%s %q", res.Status, res.Header.Get("X-Lateen-Reason"))
	}
}

// TestAutoTLSFallsBack: an endpoint without a proxy is spoken to in plaintext.
func TestAutoTLSFallsBack(t *testing.T) {
	client := sidecar(t, authority(t), "client")
	at := client.outbound(func(_ *plan.Chain, c *plan.Cluster, _ []plan.Endpoint) { c.TLS.Mode = plan.ClientTLSAuto }, app(t))
	if res, body := fetch(t, webClient(t), request(t, "GET", "http://"+at+"/p", nil)); body != "HTTP/1.1 /p" {
		t.Errorf("%s %q", res.Status, body)
	}
	if k := client.series(1)[0].Key; k.Security != telemetry.SecurityNone {
		t.Errorf("counted as %v", k.AppendValues(nil))
	}
}

// TestStrictComesIntoForce: an open plaintext connection is not served any more when its port has become strict.
func TestStrictComesIntoForce(t *testing.T) {
	r := sidecar(t, authority(t), "server")
	addr := app(t)
	at := r.inbound(addr, tlsMode(plan.TLSPermissive))
	c := dialRaw(t, at)
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if res, _ := c.response("GET"); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	r.inbound(addr, tlsMode(plan.TLSStrict))
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	res, _ := c.response("GET")
	if res.StatusCode != 403 || res.Header.Get("X-Lateen-Reason") != "mtls_required" || !res.Close {
		t.Errorf("%s %q close %v", res.Status, res.Header.Get("X-Lateen-Reason"), res.Close)
	}
	c.ended()
}
