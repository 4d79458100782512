package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
)

// TestWebSocketAcrossVersions: a WebSocket passes from HTTP/1.1 through HTTP/2, between two proxies, to HTTP/1.1; each
// end sees a handshake of its own version, and the proxies check what the server answers.
func TestWebSocketAcrossVersions(t *testing.T) {
	const own = "dGhlIHNhbXBsZSBub25jZQ==" // the key of RFC 6455 section 1.3, and its answer
	keys := make(chan string, 1)
	serve := func(answer func(key string) string) string {
		return tcpServer(t, func(c *net.TCPConn) {
			in := bufio.NewReader(c)
			req, err := http.ReadRequest(in)
			if err != nil {
				t.Error(err)
				return
			}
			if req.Method != "GET" || req.Header.Get("Upgrade") != "websocket" || req.Header.Get("Sec-Websocket-Version") != "13" {
				t.Errorf("the server was asked %s %v", req.Method, req.Header)
			}
			keys <- req.Header.Get("Sec-Websocket-Key")
			_, _ = io.WriteString(c, answer(req.Header.Get("Sec-Websocket-Key")))
			_, _ = io.Copy(c, in)
		})
	}
	const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: chat\r\n"
	tests := []struct {
		name   string
		answer func(key string) string
		status int
	}{
		{"accepted", func(key string) string { return switching + "Sec-WebSocket-Accept: " + acceptKey(key) + "\r\n\r\nhi" }, 101},
		{"wrong answer to the key", func(string) string { return switching + "Sec-WebSocket-Accept: " + acceptKey(own) + "\r\n\r\nhi" }, 502},
		{"no answer to the key", func(string) string { return switching + "\r\nhi" }, 502},
		{"content in its place", func(string) string { return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" }, 502},
		{"refused", func(string) string { return "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n" }, 403},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// It is declared that it is HTTP: else the server is asked, too, by a connection that ends, where a client is slow.
			server := sidecar(t, nil, "server")
			in := server.inbound(serve(tt.answer), func(c *plan.Chain) { c.Protocol = plan.ProtocolHTTP })
			client := sidecar(t, nil, "client")
			at := client.outbound(func(chain *plan.Chain, c *plan.Cluster, _ []plan.Endpoint) {
				chain.Protocol, c.Protocol = plan.ProtocolHTTP, plan.ProtocolHTTP2
			}, in)
			c := dialRaw(t, at)
			c.send("GET /ws HTTP/1.1\r\nHost: svc\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + own + "\r\n\r\n")
			res, err := http.ReadResponse(c.in, nil)
			if err != nil || res.StatusCode != tt.status {
				t.Fatalf("%v %v, want %d", res, err, tt.status)
			}
			if key := <-keys; len(key) != len(own) || key == own {
				t.Errorf("the server was shown the key %q", key)
			}
			if tt.status != 101 {
				return
			}
			if got := fmt.Sprint(res.Header["Sec-Websocket-Accept"], res.Header["Sec-Websocket-Protocol"], res.Header["Upgrade"]); got != "[s3pPLMBiTxaQ9kYGzzhZRbK+xOo=] [chat] [websocket]" {
				t.Errorf("the client was answered %s", got)
			}
			c.expect("hi")
			for range 10 {
				c.send("ping")
				c.expect("ping")
			}
			_ = c.CloseWrite()
			c.ended()
			client.released("out")
			server.released("app")
		})
	}
}

// TestWebSocketNotOffered: a server that does not take extended CONNECT is sent none.
func TestWebSocketNotOffered(t *testing.T) {
	s := h2Backend(t, func(http.ResponseWriter, *http.Request) { t.Error("the server was asked") })
	r := newRig(t, to("c"), clusterOf(speaks(plan.ProtocolHTTP2), s)...)
	for range 2 { // on a new connection, and on one whose SETTINGS are known
		c := dialRaw(t, r.addr)
		c.send("GET /ws HTTP/1.1\r\nHost: svc\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n")
		if res, _ := c.response("GET"); res.StatusCode != 503 {
			t.Errorf("%s", res.Status)
		}
	}
	r.released("c")
}
