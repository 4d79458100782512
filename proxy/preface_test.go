package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
)

func TestProxyHeader(t *testing.T) {
	const v2 = "\r\n\r\n\x00\r\nQUIT\n"
	tests := []struct {
		version        int
		client, server string
		want           string
	}{
		{1, "192.0.2.1:1025", "10.1.2.3:80", "PROXY TCP4 192.0.2.1 10.1.2.3 1025 80\r\n"},
		{1, "[2001:db8::1]:1025", "[fd00::7]:80", "PROXY TCP6 2001:db8::1 fd00::7 1025 80\r\n"},
		{1, "[fe80::1%eth0]:1025", "[fe80::2]:80", "PROXY TCP6 fe80::1 fe80::2 1025 80\r\n"},
		{1, "[::ffff:192.0.2.1]:1025", "10.1.2.3:80", "PROXY TCP4 192.0.2.1 10.1.2.3 1025 80\r\n"},
		{1, "192.0.2.1:1025", "[fd00::7]:80", "PROXY TCP6 ::ffff:192.0.2.1 fd00::7 1025 80\r\n"},
		{1, "", "10.1.2.3:80", "PROXY UNKNOWN\r\n"},
		{2, "192.0.2.1:1025", "10.1.2.3:80", v2 + "\x21\x11\x00\x0c\xc0\x00\x02\x01\x0a\x01\x02\x03\x04\x01\x00\x50"},
		{
			2, "[2001:db8::1]:1025", "[fd00::7]:80",
			v2 + "\x21\x21\x00\x24\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\xfd\x00" + strings.Repeat("\x00", 13) + "\x07\x04\x01\x00\x50",
		},
		{2, "", "", v2 + "\x20\x00\x00\x00"},
	}
	for _, tt := range tests {
		var client, server netip.AddrPort
		if tt.client != "" {
			client = netip.MustParseAddrPort(tt.client)
		}
		if tt.server != "" {
			server = netip.MustParseAddrPort(tt.server)
		}
		if got := string(appendProxyHeader([]byte("x"), tt.version, client, server)); got != "x"+tt.want {
			t.Errorf("version %d, %s to %s: %q\nwant %q", tt.version, tt.client, tt.server, got, tt.want)
		}
	}
}

// told takes the PROXY header of version 1 off its connections.
type told struct {
	net.Listener
	conns atomic.Int32 // open ones
}

type toldConn struct {
	net.Conn
	l      *told
	in     *bufio.Reader
	header string
	closed atomic.Bool
}

// toldKey is the connection's in the context of its requests.
type toldKey struct{}

func (l *told) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.conns.Add(1)
		c = &toldConn{Conn: c, l: l, in: bufio.NewReader(c)}
	}
	return c, err
}

func (c *toldConn) Read(p []byte) (int, error) {
	if c.header == "" {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return 0, err
		}
		c.header = strings.TrimSpace(line)
	}
	return c.in.Read(p)
}

func (c *toldConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.l.conns.Add(-1)
	}
	return c.Conn.Close()
}

// TestProxyHTTP: each client's requests go over connections of its own, which say who it is and end after it.
func TestProxyHTTP(t *testing.T) {
	for _, protocol := range []plan.Protocol{plan.ProtocolHTTP, plan.ProtocolHTTP2} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		in := &told{Listener: l}
		s := &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, r.Context().Value(toldKey{}).(*toldConn).header)
			}),
			Protocols: new(http.Protocols),
		}
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetUnencryptedHTTP2(true)
		s.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, toldKey{}, c) }
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(in) }()
		t.Cleanup(func() { _ = s.Close(); <-done })

		r := sidecar(t, nil, "web")
		at := r.outbound(func(_ *plan.Chain, c *plan.Cluster, _ []plan.Endpoint) {
			c.ProxyProtocol, c.Protocol, c.Balance.Algorithm = 1, protocol, plan.RoundRobin
		}, l.Addr().String())
		var clients []*raw
		for range 2 {
			clients = append(clients, dialRaw(t, at))
		}
		for range 3 {
			for _, c := range clients {
				c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				from := netip.MustParseAddrPort(c.LocalAddr().String())
				want := fmt.Sprintf("PROXY TCP4 %s 10.1.2.3 %d 80", from.Addr(), from.Port())
				if _, body := c.response("GET"); body != want {
					t.Errorf("%s: the server was told %q, want %q", protocol, body, want)
				}
			}
		}
		if n := in.conns.Load(); n != 2 {
			t.Errorf("%s: %d connections for 2 clients", protocol, n)
		}
		_ = clients[0].Close()
		r.await("the connection of a client that has left is closed", func(*worker) bool { return in.conns.Load() == 1 })
	}
}

// TestProxyBytes: a byte stream begins with the header, before its TLS.
func TestProxyBytes(t *testing.T) {
	own := httptest.NewUnstartedServer(nil)
	own.StartTLS()
	t.Cleanup(own.Close)
	heads := make(chan string, 1)
	addr := tcpServer(t, func(c *net.TCPConn) {
		head := make([]byte, 28)
		if _, err := io.ReadFull(c, head); err != nil {
			t.Error(err)
		}
		heads <- string(head)
		s := tls.Server(c, own.TLS)
		_, _ = io.Copy(s, s)
	})
	r := sidecar(t, nil, "web")
	c := dialRaw(t, r.outbound(func(ch *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		bytesOnly(ch, c, e)
		c.ProxyProtocol, c.TLS = 2, plan.ClientTLS{Mode: plan.ClientTLSSimple, InsecureSkipVerify: true, SNI: "x"}
	}, addr))
	c.send("ping")
	c.expect("ping")
	from := netip.MustParseAddrPort(c.LocalAddr().String())
	want := string(appendProxyHeader(nil, 2, from, netip.MustParseAddrPort("10.1.2.3:80")))
	if head := <-heads; head != want {
		t.Errorf("told %q, want %q", head, want)
	}
}
