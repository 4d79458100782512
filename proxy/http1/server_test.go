package http1

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

const get = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// TestServerResponses checks the framing of responses: what is asked, how the relay answers, what is written.
func TestServerResponses(t *testing.T) {
	for _, c := range []struct {
		name   string
		method string
		answer func(s stream.Sender)
		want   string
		state  string
	}{
		{"length", "GET", func(s stream.Sender) {
			s.SendHead(response(200, 5, "X", "y"), false)
			s.SendData([]byte("he"), false)
			s.SendData([]byte("llo"), true)
		}, "HTTP/1.1 200 OK|X: y|Content-Length: 5||hello", "open"},
		{"length, then the end alone", "GET", func(s stream.Sender) {
			s.SendHead(response(200, 2), false)
			s.SendData([]byte("he"), false)
			s.SendData(nil, true)
		}, "HTTP/1.1 200 OK|Content-Length: 2||he", "open"},
		{"chunks", "GET", func(s stream.Sender) {
			s.SendHead(response(200, -1), false)
			s.SendData([]byte("hello"), false)
			s.SendData(nil, false)
			s.SendData([]byte(strings.Repeat("x", 17)), true)
		}, "HTTP/1.1 200 OK|Transfer-Encoding: chunked||5|hello|11|xxxxxxxxxxxxxxxxx|0||", "open"},
		{"trailers", "GET", func(s stream.Sender) {
			s.SendHead(response(200, -1), false)
			s.SendTrailers(response(0, -1, "Grpc-Status", "0", "Content-Length", "3"))
		}, "HTTP/1.1 200 OK|Transfer-Encoding: chunked||0|Grpc-Status: 0||", "open"},
		{"trailers without chunks", "GET", func(s stream.Sender) {
			s.SendHead(response(200, 1), false)
			s.SendData([]byte("x"), false)
			s.SendTrailers(response(0, -1, "a", "b"))
		}, "HTTP/1.1 200 OK|Content-Length: 1||x", "open"},
		{"announced trailers beside a length", "GET", func(s stream.Sender) {
			s.SendHead(response(200, 1, "Trailer", "a"), false)
			s.SendData([]byte("x"), false)
			s.SendTrailers(response(0, -1, "a", "b"))
		}, "HTTP/1.1 200 OK|Trailer: a|Transfer-Encoding: chunked||1|x|0|a: b||", "open"},
		{"trailers of gRPC", "GET", func(s stream.Sender) {
			s.SendHead(response(200, 0, "content-type", "application/grpc+proto"), false)
			s.SendTrailers(response(0, -1, "grpc-status", "0"))
		}, "HTTP/1.1 200 OK|content-type: application/grpc+proto|Transfer-Encoding: chunked||0|grpc-status: 0||", "open"},
		{"gRPC-Web has none", "GET", func(s stream.Sender) {
			s.SendHead(response(200, 1, "content-type", "application/grpc-web"), false)
			s.SendData([]byte("x"), true)
		}, "HTTP/1.1 200 OK|content-type: application/grpc-web|Content-Length: 1||x", "open"},
		{"no body", "GET", func(s stream.Sender) { s.SendHead(response(404, -1), true) }, "HTTP/1.1 404 Not Found|Content-Length: 0||", "open"},
		{"no reason", "GET", func(s stream.Sender) { s.SendHead(response(799, 0), true) }, "HTTP/1.1 799 |Content-Length: 0||", "open"},
		{"204", "GET", func(s stream.Sender) { s.SendHead(response(204, 0), true) }, "HTTP/1.1 204 No Content||", "open"},
		{"304 with length", "GET", func(s stream.Sender) { s.SendHead(response(304, 7), true) }, "HTTP/1.1 304 Not Modified|Content-Length: 7||", "open"},
		{"HEAD with length", "HEAD", func(s stream.Sender) { s.SendHead(response(200, 7), true) }, "HTTP/1.1 200 OK|Content-Length: 7||", "open"},
		{"HEAD without", "HEAD", func(s stream.Sender) { s.SendHead(response(200, -1), true) }, "HTTP/1.1 200 OK||", "open"},
		{"HEAD, body dropped", "HEAD", func(s stream.Sender) {
			s.SendHead(response(200, -1), false)
			s.SendData([]byte("hello"), true)
		}, "HTTP/1.1 200 OK||", "open"},
		{"interim", "GET", func(s stream.Sender) {
			s.SendInterim(response(103, -1, "Link", "x"))
			s.SendHead(response(200, 0), true)
		}, "HTTP/1.1 103 Early Hints|Link: x||HTTP/1.1 200 OK|Content-Length: 0||", "open"},
		{"fields of the connection are not passed", "GET", func(s stream.Sender) {
			h := response(200, 0, "connection", "x", "Keep-Alive", "1", "Proxy-Connection", "x", "Transfer-Encoding", "gzip",
				"content-length", "9", "Upgrade", "h2", "TE", "gzip", "HTTP2-Settings", "x", "x", "y")
			h.Close = true
			s.SendHead(h, true)
		}, "HTTP/1.1 200 OK|x: y|Content-Length: 0||", "open"},
		{"body too long", "GET", func(s stream.Sender) {
			s.SendHead(response(200, 2), false)
			s.SendData([]byte("hello"), true)
		}, "HTTP/1.1 200 OK|Content-Length: 2||", "aborted"},
		{"body too short", "GET", func(s stream.Sender) {
			s.SendHead(response(200, 9), false)
			s.SendData([]byte("hello"), true)
		}, "HTTP/1.1 200 OK|Content-Length: 9||", "aborted"},
		{"length and no body", "GET", func(s stream.Sender) { s.SendHead(response(200, 9), true) }, "", "aborted"},
		{"value that would split", "GET", func(s stream.Sender) { s.SendHead(response(200, 0, "X", "y\r\nSet-Cookie: z"), true) }, "", "aborted"},
		{"name that would split", "GET", func(s stream.Sender) { s.SendHead(response(200, 0, "X: y\r\nZ", "z"), true) }, "", "aborted"},
		{"empty name", "GET", func(s stream.Sender) { s.SendHead(response(200, 0, "", "z"), true) }, "", "aborted"},
		{"pseudo field", "GET", func(s stream.Sender) { s.SendHead(response(200, 0, ":status", "200"), true) }, "", "aborted"},
		{"NUL in value", "GET", func(s stream.Sender) { s.SendHead(response(200, 0, "X", "a\x00b"), true) }, "", "aborted"},
		{"trailer that would split", "GET", func(s stream.Sender) {
			s.SendHead(response(200, -1), false)
			s.SendTrailers(response(0, -1, "X", "y\n"))
		}, "HTTP/1.1 200 OK|Transfer-Encoding: chunked||", "aborted"},
		{"status out of range", "GET", func(s stream.Sender) { s.SendHead(response(1000, 0), true) }, "", "aborted"},
		{"interim as a final head", "GET", func(s stream.Sender) { s.SendHead(response(100, 0), true) }, "", "aborted"},
		{"101 nobody asked for", "GET", func(s stream.Sender) { s.SendHead(response(101, -1, "Upgrade", "x"), false) }, "", "aborted"},
		{"interim that would split", "GET", func(s stream.Sender) { s.SendInterim(response(103, -1, "Link", "x\ny")) }, "", "aborted"},
		{"final head as interim", "GET", func(s stream.Sender) { s.SendInterim(response(200, 0)) }, "", "aborted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, conn, j := newServer(t, Config{})
			conn.feed(c.method + " /1 HTTP/1.1\r\nHost: a\r\n\r\n")
			c.answer(j.sender)
			equal(t, "sent", conn.sent(), c.want)
			equal(t, "state", conn.state(), c.state)
			told := c.method + "/1 end"
			if c.state == "open" {
				told += " idle"
				c.answer(j.sender) // too late: ignored
				equal(t, "sent after the end", conn.sent(), "")
			}
			if got := j.told(); c.state == "open" && got != told || c.state != "open" && !strings.HasPrefix(got, told+" abort:local:") {
				t.Errorf("told %q, want %q", got, told)
			}
		})
	}
}

func TestServerHTTP10(t *testing.T) {
	for _, c := range []struct {
		name, want string
		length     int64
	}{
		{"to the end", "HTTP/1.1 200 OK|Connection: close||hello", -1},
		{"length", "HTTP/1.1 200 OK|Connection: close|Content-Length: 5||hello", 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, conn, j := newServer(t, Config{})
			conn.feed("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
			j.sender.SendInterim(response(103, -1))
			j.sender.SendHead(response(200, c.length), false)
			j.sender.SendData([]byte("hello"), true)
			equal(t, "sent", conn.sent(), c.want)
			equal(t, "state", conn.state(), "closed")
		})
	}
	t.Run("cut in the middle", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		conn.feed("GET / HTTP/1.0\r\n\r\n")
		j.sender.SendHead(response(200, -1), false)
		j.sender.Reset(stream.AbortClosed)
		equal(t, "state", conn.state(), "aborted") // a FIN would look like the end of the body
		equal(t, "told", j.told(), "GET/ end")
	})
}

// TestServerRequests checks what is told of a stream of requests, which is answered at once, whole and byte by byte.
func TestServerRequests(t *testing.T) {
	const ok = "HTTP/1.1 200 OK|Content-Length: 0||"
	const post = "POST /1 HTTP/1.1\r\nHost: a\r\n"
	for _, c := range []struct{ name, in, told, sent, state string }{
		{"one after another", get + get, "GET/1 end idle GET/1 end idle", ok + ok, "open"},
		{"empty lines between", get + "\r\n\r\n" + get, "GET/1 end idle GET/1 end idle", ok + ok, "open"},
		{"length", post + "Content-Length: 2\r\n\r\nhi" + get, "POST/1 hi end idle GET/1 end idle", ok + ok, "open"},
		{
			"chunks", post + "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3;ext=\"a b\"\r\nyou\r\n0\r\n\r\n" + get,
			"POST/1 hiyou end idle GET/1 end idle", ok + ok, "open",
		},
		{
			"trailers", post + "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: y\r\nHost: b\r\n\r\n" + get,
			"POST/1 hi X=y end idle GET/1 end idle", ok + ok, "open",
		},
		{"only forbidden trailers", post + "Transfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n", "POST/1 end idle", ok, "open"},
		{
			"close", "GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET/1 end",
			"HTTP/1.1 200 OK|Connection: close|Content-Length: 0||", "closed",
		},
		{
			"too many empty lines", strings.Repeat("\r\n", 9), "refused:400 linger",
			"HTTP/1.1 400 Bad Request|Content-Type: text/plain|Content-Length: 40|Connection: close||too many empty lines before the request\n", "finished",
		},
		{
			"refused", "GET / HTTP/1.1\r\n\r\n" + get, "refused:400 linger",
			"HTTP/1.1 400 Bad Request|Content-Type: text/plain|Content-Length: 13|Connection: close||missing Host\n", "finished",
		},
		{
			"refused after one", get + "BAD\r\n", "GET/1 end idle refused:400 linger",
			ok + "HTTP/1.1 400 Bad Request|Content-Type: text/plain|Content-Length: 23|Connection: close||malformed request line\n", "finished",
		},
		{
			"bad chunk", post + "Transfer-Encoding: chunked\r\n\r\n2\r\nhiX" + get, "POST/1 hi linger abort:protocol:malformed chunk",
			"HTTP/1.1 400 Bad Request|Content-Type: text/plain|Content-Length: 16|Connection: close||malformed chunk\n", "finished",
		},
		{
			"large chunk", post + "Transfer-Encoding: chunked\r\n\r\n8000000000000000\r\n", "POST/1 linger abort:protocol:content too large",
			"HTTP/1.1 413 Content Too Large|Content-Type: text/plain|Content-Length: 18|Connection: close||content too large\n", "finished",
		},
		{
			"bad trailers", post + "Transfer-Encoding: chunked\r\n\r\n0\r\nX y\r\n\r\n", "POST/1 linger abort:protocol:invalid field name",
			"HTTP/1.1 400 Bad Request|Content-Type: text/plain|Content-Length: 19|Connection: close||invalid field name\n", "finished",
		},
	} {
		for _, step := range []int{len(c.in), 1, 3} {
			t.Run(c.name, func(t *testing.T) {
				_, conn, j := newServer(t, Config{})
				j.onEnd = func() { j.sender.SendHead(response(200, 0), true) }
				for in := c.in; in != ""; in = in[min(step, len(in)):] {
					conn.feed(in[:min(step, len(in))])
				}
				told := strings.NewReplacer(`" "`, "", ` ""`, "", `"`, "").Replace(j.told()) // pieces of data put together
				want := c.told
				if step == len(c.in) {
					// Where another request follows at once, the owner is not told that the first is over.
					want = strings.NewReplacer("idle GET", "GET", "idle refused", "refused").Replace(want)
				}
				equal(t, "told", told, want)
				equal(t, "sent", conn.sent(), c.sent)
				equal(t, "state", conn.state(), c.state)
			})
		}
	}
}

// TestServerWaitsForThePeer: a connection is closed without waiting for the peer's end only where the client has said that
// nothing follows its request, and nothing does.
func TestServerWaitsForThePeer(t *testing.T) {
	const begin = "POST /1 HTTP/1.1\r\nHost: a\r\n"
	for _, c := range []struct {
		name, in, state string
		waits           bool
	}{
		{"close", begin + "Connection: close\r\n\r\n", "closed", false},
		{"close among options, and a body", begin + "Connection: te, Close\r\nContent-Length: 2\r\n\r\nhi", "closed", false},
		{"close, and chunks", begin + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "closed", false},
		{"close, but the body is under way", begin + "Connection: close\r\nContent-Length: 3\r\n\r\nhi", "finished", true},
		{"close, but a request follows", begin + "Connection: close\r\n\r\n" + get, "finished", true},
		{"close, but an upgrade", begin + "Connection: close, upgrade\r\nUpgrade: x\r\n\r\n", "closed", true},
		{"close, but a tunnel", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n", "closed", true},
		{"HTTP/1.0", "GET /1 HTTP/1.0\r\n\r\n", "closed", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, conn, j := newServer(t, Config{})
			conn.feed(c.in)
			j.sender.SendHead(response(403, 0), true)
			conn.pump()
			equal(t, "state", conn.state(), c.state)
			if conn.lastSaid == c.waits {
				t.Errorf("waits: %v, want %v", !conn.lastSaid, c.waits)
			}
		})
	}
	t.Run("drained", func(t *testing.T) {
		s, conn, j := newServer(t, Config{})
		conn.feed(get)
		s.Drain()
		j.sender.SendHead(response(200, 0), true)
		equal(t, "state", conn.state(), "closed")
		if conn.lastSaid {
			t.Error("a client that has promised nothing is not waited for")
		}
	})
}

func TestServerPipeline(t *testing.T) {
	_, conn, j := newServer(t, Config{})
	conn.feed(get + strings.Replace(get, "/1", "/2", 1) + "GET /3")
	equal(t, "told", j.told(), "GET/1 end")
	equal(t, "state", conn.state(), "paused") // the second request waits, unread
	j.sender.SendHead(response(201, 0), true)
	conn.pump()
	equal(t, "told", j.told(), "GET/2 end")
	conn.full = true
	j.sender.SendHead(response(202, 0), true)
	conn.pump()
	equal(t, "told", j.told(), "idle")
	equal(t, "state", conn.state(), "paused") // nobody reads the responses
	conn.full = false
	conn.h.OnDrain()
	conn.feed(" HTTP/1.1\r\nHost: a\r\n\r\n")
	equal(t, "told", j.told(), "GET/3 end")
	equal(t, "sent", conn.sent(), "HTTP/1.1 201 Created|Content-Length: 0||HTTP/1.1 202 Accepted|Content-Length: 0||")
}

func TestServerBackPressure(t *testing.T) {
	_, conn, j := newServer(t, Config{})
	conn.feed("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
	j.sender.Pause()
	conn.feed("c")
	equal(t, "told", j.told(), `POST/ "ab"`)
	j.sender.Resume()
	conn.pump()
	equal(t, "told", j.told(), `"c"`)
	j.sender.SendHead(response(200, -1), false)
	conn.full = true
	if !j.sender.Full() {
		t.Error("not full")
	}
	conn.full = false
	conn.h.OnDrain()
	equal(t, "told", j.told(), "drain")
	// What the relay paused goes on when the exchange is over.
	conn.feed("d")
	j.sender.Pause()
	equal(t, "state", conn.state(), "paused")
	j.sender.SendData(nil, true)
	equal(t, "state", conn.state(), "open")
}

func TestServerEarlyResponse(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: "
	t.Run("the rest is thrown away", func(t *testing.T) {
		c, conn, j := newServer(t, Config{})
		conn.feed(post + "10\r\n\r\n01234")
		j.sender.SendHead(response(403, 0), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 403 Forbidden|Content-Length: 0||")
		if c.Idle() {
			t.Error("idle although the body is still to come")
		}
		conn.feed("56789" + get)
		equal(t, "told", j.told(), `POST/ "01234" idle GET/1 end`)
	})
	t.Run("chunks may be too many", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		j.onHead = func(*stream.Head, bool) { j.sender.SendHead(response(403, 0), true) }
		conn.feed("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: y\r\n\r\n" + get)
		equal(t, "sent", conn.sent(), "HTTP/1.1 403 Forbidden|Connection: close|Content-Length: 0||")
		equal(t, "told", j.told(), `POST/ linger`)
		conn.feed(strings.Repeat("x", lingerMaxBytes+1))
		equal(t, "state", conn.state(), "closed")
	})
	t.Run("bad chunks are not answered twice", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		j.onHead = func(*stream.Head, bool) { j.sender.SendHead(response(403, 0), true) }
		conn.feed("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n")
		equal(t, "told", j.told(), `POST/ linger`)
		equal(t, "sent", conn.sent(), "HTTP/1.1 403 Forbidden|Connection: close|Content-Length: 0||")
		equal(t, "state", conn.state(), "finished")
	})
	t.Run("a bad body cuts a response short", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		conn.feed("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
		j.sender.SendHead(response(200, -1), false)
		conn.feed("x\r\n")
		equal(t, "told", j.told(), `POST/ abort:protocol:malformed chunk`)
		equal(t, "sent", conn.sent(), "HTTP/1.1 200 OK|Connection: close|Transfer-Encoding: chunked||")
		equal(t, "state", conn.state(), "closed")
	})
	t.Run("too much to throw away", func(t *testing.T) {
		_, conn, j := newServer(t, Config{DiscardMaxBytes: 8})
		conn.feed(post + "10\r\n\r\n0")
		j.sender.SendHead(response(403, 0), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 403 Forbidden|Connection: close|Content-Length: 0||")
		equal(t, "told", j.told(), `POST/ "0" linger`)
		conn.feed("123456789" + get)
		equal(t, "told", j.told(), "")
		conn.end()
		equal(t, "state", conn.state(), "closed")
	})
	t.Run("a response with a body of its own says that it is the last", func(t *testing.T) {
		_, conn, j := newServer(t, Config{DiscardMaxBytes: 8})
		conn.feed(post + "10\r\n\r\n0")
		j.sender.SendHead(response(403, 2), false)
		j.sender.SendData([]byte("no"), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 403 Forbidden|Connection: close|Content-Length: 2||no")
		equal(t, "told", j.told(), `POST/ "0" linger`)
	})
	t.Run("one that waits for the rest says so as well", func(t *testing.T) {
		_, conn, j := newServer(t, Config{DiscardMaxBytes: 8})
		conn.feed(post + "10\r\n\r\n0")
		j.sender.SendHead(response(200, 2), false)
		conn.feed("123456789")
		j.sender.SendData([]byte("ok"), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 200 OK|Connection: close|Content-Length: 2||ok")
		equal(t, "told", j.told(), `POST/ "0" "123456789" end`)
		equal(t, "state", conn.state(), "closed")
	})
	t.Run("a client that waits for 100", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		conn.feed("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
		j.sender.SendHead(response(417, 0), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 417 Expectation Failed|Connection: close|Content-Length: 0||")
		equal(t, "told", j.told(), "PUT/ linger")
	})
	t.Run("a client that was told 100", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		conn.feed("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
		j.sender.SendInterim(response(100, -1))
		conn.feed("abc")
		j.sender.SendHead(response(200, 0), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 100 Continue||HTTP/1.1 200 OK|Content-Length: 0||")
		equal(t, "told", j.told(), `PUT/ "abc" end idle`)
	})
}

func TestServerTunnel(t *testing.T) {
	const upgrade = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	const connect = "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"
	switching := func() *stream.Head {
		h := response(101, -1, "Upgrade", "websocket")
		h.Upgrade = true
		return h
	}
	t.Run("upgrade, the client ends first", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		conn.feed(upgrade + "early")
		equal(t, "told", j.told(), "GET/ws")
		j.sender.SendHead(switching(), false)
		equal(t, "sent", conn.sent(), "HTTP/1.1 101 Switching Protocols|Upgrade: websocket|Connection: Upgrade||")
		conn.feed("more")
		j.sender.SendData([]byte("reply"), false)
		conn.end()
		equal(t, "told", j.told(), `"early" "more" "" end`)
		equal(t, "state", conn.state(), "open")
		conn.h.OnDrain()
		j.sender.SendData([]byte("last"), true)
		equal(t, "sent", conn.sent(), "replylast")
		equal(t, "state", conn.state(), "closed")
		equal(t, "told", j.told(), "drain")
	})
	t.Run("connect, the relay ends first", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		conn.feed(connect)
		j.sender.SendHead(response(200, 3, "X", "y"), false)
		equal(t, "sent", conn.sent(), "HTTP/1.1 200 OK|X: y||")
		j.sender.SendData([]byte("hello"), true)
		equal(t, "sent", conn.sent(), "hello")
		equal(t, "state", conn.state(), "finished")
		conn.feed("more")
		j.sender.SendData([]byte("ignored"), false)
		conn.end()
		equal(t, "told", j.told(), `CONNECT "more" "" end`)
		equal(t, "state", conn.state(), "closed")
	})
	t.Run("reset", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		conn.feed(connect)
		j.sender.SendHead(response(200, -1), false)
		j.sender.Reset(stream.AbortReset)
		equal(t, "state", conn.state(), "aborted")
		equal(t, "told", j.told(), "CONNECT")
	})
	t.Run("broken", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		conn.feed(connect)
		j.sender.SendHead(response(200, -1), false)
		conn.fail(errors.New("broken"))
		equal(t, "told", j.told(), "CONNECT abort:reset:broken")
	})
	t.Run("upgrade refused", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		conn.feed(upgrade + get)
		j.sender.SendHead(response(400, 0), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 400 Bad Request|Content-Length: 0||")
		equal(t, "told", j.told(), "GET/ws GET/1 end")
	})
	t.Run("connect refused", func(t *testing.T) {
		_, conn, j := newServer(t, Config{})
		conn.feed(connect + get)
		j.sender.SendHead(response(403, 0), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 403 Forbidden|Connection: close|Content-Length: 0||")
		equal(t, "told", j.told(), "CONNECT linger") // what came behind is not read as a request
		equal(t, "state", conn.state(), "finished")
	})
}

func TestServerDrain(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		c, conn, _ := newServer(t, Config{})
		c.Drain()
		equal(t, "state", conn.state(), "closed")
	})
	t.Run("busy", func(t *testing.T) {
		c, conn, j := newServer(t, Config{})
		conn.feed(get)
		c.Drain()
		j.sender.SendHead(response(200, 0), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 200 OK|Connection: close|Content-Length: 0||")
		equal(t, "state", conn.state(), "closed")
	})
	t.Run("the head is out", func(t *testing.T) {
		c, conn, j := newServer(t, Config{})
		conn.feed(get)
		j.sender.SendHead(response(200, 1), false)
		c.Drain()
		j.sender.SendData([]byte("x"), true)
		equal(t, "state", conn.state(), "closed")
	})
	t.Run("another request is waiting", func(t *testing.T) {
		c, conn, j := newServer(t, Config{})
		conn.feed(get + get)
		c.Drain()
		j.sender.SendHead(response(200, 0), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 200 OK|Connection: close|Content-Length: 0||")
		equal(t, "told", j.told(), "GET/1 end linger")
	})
	t.Run("part of a request has arrived", func(t *testing.T) {
		c, conn, j := newServer(t, Config{})
		conn.feed(get[:9])
		c.Drain()
		equal(t, "state", conn.state(), "open")
		conn.feed(get[9:])
		j.sender.SendHead(response(200, 0), true)
		equal(t, "sent", conn.sent(), "HTTP/1.1 200 OK|Connection: close|Content-Length: 0||")
	})
	t.Run("from within a callback", func(t *testing.T) {
		c, conn, j := newServer(t, Config{})
		j.onEnd = func() {
			j.sender.SendHead(response(200, 0), true)
			c.Drain()
		}
		conn.feed(get + get)
		equal(t, "told", j.told(), "GET/1 end linger")
		equal(t, "state", conn.state(), "finished")
	})
	t.Run("when told that it is idle", func(t *testing.T) {
		c, conn, j := newServer(t, Config{})
		j.onIdle = c.Drain
		conn.feed(get)
		j.sender.SendHead(response(200, 0), true)
		equal(t, "state", conn.state(), "closed")
	})
}

func TestServerEnds(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"
	for _, c := range []struct {
		name string
		do   func(conn *fakeConn, j *journal)
		told string
		end  string
	}{
		{"EOF when idle", func(conn *fakeConn, _ *journal) { conn.end() }, "", "closed"},
		{"EOF in a head", func(conn *fakeConn, _ *journal) { conn.feed(get[:5]); conn.end() }, "", "closed"},
		{"EOF in a body", func(conn *fakeConn, _ *journal) { conn.feed(post); conn.end() }, `POST/ "ab" abort:closed:unexpected EOF`, "closed"},
		{"EOF before the response", func(conn *fakeConn, _ *journal) { conn.feed(get); conn.end() }, `GET/1 end abort:closed:unexpected EOF`, "closed"},
		{"EOF while throwing away", func(conn *fakeConn, j *journal) {
			conn.feed(post)
			j.sender.SendHead(response(200, 0), true)
			conn.end()
		}, `POST/ "ab" idle`, "closed"},
		{"reset by the client", func(conn *fakeConn, _ *journal) { conn.feed(get); conn.fail(errors.New("broken")) }, `GET/1 end abort:reset:broken`, "closed"},
		{"closed by the owner", func(conn *fakeConn, _ *journal) { conn.feed(get); conn.Close(); conn.pump() }, `GET/1 end abort:local:<nil>`, "closed"},
		{"reset by the relay", func(conn *fakeConn, j *journal) { conn.feed(post); j.sender.Reset(stream.AbortTimeout); conn.pump() }, `POST/ "ab"`, "closed"},
		{"reset from within", func(conn *fakeConn, j *journal) {
			j.onHead = func(*stream.Head, bool) { j.sender.Reset(stream.AbortTimeout) }
			conn.feed(post)
		}, `POST/`, "closed"},
		{"refused, then silence", func(conn *fakeConn, _ *journal) { conn.feed("x\r\n"); conn.end() }, "refused:400 linger", "closed"},
		{"after what cannot be sent", func(conn *fakeConn, j *journal) {
			conn.feed(get)
			j.sender.SendHead(response(1, 0), true)
			j.sender.Reset(stream.AbortLocal) // nothing more is told
			conn.pump()
		}, "GET/1 end", "aborted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, conn, j := newServer(t, Config{})
			c.do(conn, j)
			equal(t, "told", j.told(), c.told)
			equal(t, "state", conn.state(), c.end)
			if c := j.sender; c != nil { // all of it is ignored now
				c.SendInterim(response(100, -1))
				c.SendHead(response(200, 1), false)
				c.SendData([]byte("x"), true)
				c.SendTrailers(response(0, -1))
				c.Pause()
				c.Resume()
				c.Reset(stream.AbortLocal)
				conn.h.OnDrain()
			}
			equal(t, "told", j.told(), "")
		})
	}
}

// TestRefusalFields: a refusal, be it of a head or of a body, bears what the owner adds to it.
func TestRefusalFields(t *testing.T) {
	for _, in := range []string{"GET / HTTP/3.0\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"} {
		_, conn, j := newServer(t, Config{})
		j.onRefusal = "date: now\r\n"
		conn.feed(in)
		if got := conn.sent(); !strings.Contains(got, "|Connection: close|date: now||") {
			t.Errorf("%q: %q", in, got)
		}
	}
}
