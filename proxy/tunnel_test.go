package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
)

// forwarder is an HTTP proxy that is told what to answer to a request for a tunnel, and relays if that grants it.
func forwarder(t *testing.T, answer func(r *http.Request) string) string {
	return tcpServer(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		text := answer(req)
		_, _ = io.WriteString(c, text)
		if !strings.Contains(text, " 200 ") {
			return
		}
		s, err := net.Dial("tcp", req.Host)
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(c, s)
			_ = c.CloseWrite()
		}()
		_, _ = io.Copy(s, in)
		_ = s.(*net.TCPConn).CloseWrite()
		<-done
	})
}

func tunnelTo(target string) func(*plan.Chain, *plan.Cluster, []plan.Endpoint) {
	return func(ch *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		bytesOnly(ch, c, e)
		ch.TCP.Tunnel = &plan.Tunnel{Target: target}
	}
}

// TestTunnel: bytes go through an HTTP proxy, which is asked for their target, in both directions and to their ends.
func TestTunnel(t *testing.T) {
	server := tcpServer(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "220 ready\r\n")
		in, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %s", in)
	})
	for _, grant := range []string{
		"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 \r\n\r\n",
	} {
		asked := make(chan string, 1)
		way := forwarder(t, func(r *http.Request) string {
			asked <- fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Host, " ", len(r.Header))
			return grant
		})
		r := sidecar(t, nil, "web")
		c := dialRaw(t, r.outbound(tunnelTo(server), way))
		c.expect("220 ready\r\n")
		c.send("hello")
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		c.expect("got hello")
		c.ended()
		if got, want := <-asked, "CONNECT "+server+" "+server+" 0"; got != want {
			t.Errorf("asked %q, want %q", got, want)
		}
		r.released("out")
		r.await("the connection given back", func(*worker) bool { return r.usage("out").Connections == 0 })
	}
}

// TestTunnelRefused: without a tunnel the client is refused, the next proxy having been asked before.
func TestTunnelRefused(t *testing.T) {
	for answer, reason := range map[string]string{
		"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n": "tunnel_refused",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n":            "tunnel_refused",
		"":                        "tunnel_refused",
		"SSH-2.0-OpenSSH\r\n\r\n": "upstream_protocol_error",
		"HTTP/1.1 299 " + strings.Repeat("x", 2*tunnelHeadMax): "upstream_protocol_error",
	} {
		way := forwarder(t, func(*http.Request) string { return answer })
		r := sidecar(t, nil, "web")
		resets(t, r.outbound(tunnelTo("db.example:5432"), way, way))
		r.await("the reason "+reason, func(*worker) bool { return strings.Contains(r.logs.String(), "reason="+reason) })
		r.await("the connections given back", func(*worker) bool { return r.usage("out").Connections == 0 })
	}
}

// TestTunnelLeft: a client that leaves while the HTTP proxy thinks leaves nothing behind.
func TestTunnelLeft(t *testing.T) {
	asked, done := make(chan struct{}, 1), make(chan struct{})
	way := forwarder(t, func(*http.Request) string {
		asked <- struct{}{}
		<-done
		return ""
	})
	defer close(done)
	r := sidecar(t, nil, "web")
	c := dialRaw(t, r.outbound(tunnelTo("db.example:5432"), way))
	<-asked
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	r.released("out")
	r.await("the connection given back", func(*worker) bool { return r.usage("out").Connections == 0 })
}

func FuzzTunnelAnswer(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 200 OK\r\n\r\nx", "HTTP/1.0 407\r\nA: b\r\n\r\n", "HTTP/1.1 200", "HTTP/2 200 \r\n\r\n", "HTTP/1.1 2000\r\n\r\n", "\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		status, n, err := tunnelAnswer(p)
		switch {
		case err != nil && (status != 0 || n != 0):
			t.Errorf("%d, %d with %v", status, n, err)
		case errors.Is(err, errTunnelMore) && len(p) >= tunnelHeadMax:
			t.Error("waits for more than it takes")
		case err == nil && (status < 100 || status > 599 || n > len(p) || string(p[n-4:n]) != "\r\n\r\n"):
			t.Errorf("status %d, %d bytes of %q", status, n, p)
		}
	})
}
