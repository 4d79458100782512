package http1

import (
	"errors"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// TestClientRequests checks how requests are written.
func TestClientRequests(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(s stream.Sender)
		want string
	}{
		{"plain", func(s stream.Sender) { s.SendHead(request("GET", "/p?q", -1, "X", "y"), true) }, "GET /p?q HTTP/1.1|Host: a|X: y||"},
		{"empty path", func(s stream.Sender) { s.SendHead(request("GET", "", -1), true) }, "GET / HTTP/1.1|Host: a||"},
		{"asterisk", func(s stream.Sender) { s.SendHead(request("OPTIONS", "*", -1), true) }, "OPTIONS * HTTP/1.1|Host: a||"},
		{"length zero is kept", func(s stream.Sender) { s.SendHead(request("GET", "/", 0), true) }, "GET / HTTP/1.1|Host: a|Content-Length: 0||"},
		{"no content where some is usual", func(s stream.Sender) { s.SendHead(request("POST", "/", -1), true) }, "POST / HTTP/1.1|Host: a|Content-Length: 0||"},
		{"length", func(s stream.Sender) {
			s.SendHead(request("POST", "/", 5), false)
			s.SendData([]byte("he"), false)
			s.SendData([]byte("llo"), true)
			s.SendData([]byte("ignored"), true)
		}, "POST / HTTP/1.1|Host: a|Content-Length: 5||hello"},
		{"chunks", func(s stream.Sender) {
			s.SendHead(request("POST", "/", -1), false)
			s.SendData([]byte("hello"), false)
			s.SendTrailers(response(0, -1, "X", "y"))
		}, "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked||5|hello|0|X: y||"},
		{"announced trailers beside a length", func(s stream.Sender) {
			s.SendHead(request("POST", "/", 5, "Trailer", "x"), false)
			s.SendData([]byte("hello"), false)
			s.SendTrailers(response(0, -1, "X", "y"))
		}, "POST / HTTP/1.1|Host: a|Trailer: x|Transfer-Encoding: chunked||5|hello|0|X: y||"},
		{"no trailers after all", func(s stream.Sender) {
			s.SendHead(request("POST", "/", 5, "Trailer", "x"), false)
			s.SendData([]byte("hello"), true)
		}, "POST / HTTP/1.1|Host: a|Trailer: x|Transfer-Encoding: chunked||5|hello|0||"},
		{"fields of the connection", func(s stream.Sender) {
			s.SendHead(request("GET", "/", -1, "Host", "b", "connection", "x", "TE", "trailers", "te", "trailers", "Upgrade", "x", "content-length", "3", "transfer-encoding", "chunked"), true)
		}, "GET / HTTP/1.1|Host: a|TE: trailers|Connection: TE||"},
		{"other TE", func(s stream.Sender) { s.SendHead(request("GET", "/", -1, "TE", "gzip"), true) }, "GET / HTTP/1.1|Host: a||"},
		{"without an authority", func(s stream.Sender) {
			h := request("GET", "/", -1)
			h.SetAuthorityString("")
			s.SendHead(h, true)
		}, "GET / HTTP/1.1|Host: ||"},
		{"upgrade", func(s stream.Sender) {
			h := request("GET", "/", -1, "Upgrade", "websocket", "Te", "trailers")
			h.Upgrade = true
			s.SendHead(h, false)
		}, "GET / HTTP/1.1|Host: a|Upgrade: websocket|Te: trailers|Connection: Upgrade, TE||"},
		{"connect", func(s stream.Sender) {
			h := request("CONNECT", "", -1)
			h.SetAuthorityString("b:443")
			s.SendHead(h, false)
		}, "CONNECT b:443 HTTP/1.1|Host: b:443||"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl, conn, j := newClient(t)
			s := cl.Open(j)
			c.send(s)
			s.SendInterim(response(100, -1))
			equal(t, "sent", conn.sent(), c.want)
			equal(t, "told", j.told(), "")
		})
	}
}

// TestClientRefusesToSend checks that nothing is written of what could be read as something else.
func TestClientRefusesToSend(t *testing.T) {
	for _, c := range []struct {
		name string
		head func(h *stream.Head)
		want Fault
	}{
		{"method that would split", func(h *stream.Head) { h.SetMethodString("GET / HTTP/1.1\r\nX: y\r\n\r\nGET") }, FaultSendStart},
		{"empty method", func(h *stream.Head) { h.SetMethodString("") }, FaultSendStart},
		{"space in path", func(h *stream.Head) { h.SetPathString("/ HTTP/1.1") }, FaultSendStart},
		{"path that would split", func(h *stream.Head) { h.SetPathString("/\r\nX: y") }, FaultSendStart},
		{"fragment", func(h *stream.Head) { h.SetPathString("/#x") }, FaultSendStart},
		{"absolute path", func(h *stream.Head) { h.SetPathString("http://b/") }, FaultSendStart},
		{"asterisk for GET", func(h *stream.Head) { h.SetPathString("*") }, FaultSendStart},
		{"authority that would split", func(h *stream.Head) { h.SetAuthorityString("a\r\nX: y") }, FaultSendStart},
		{"authority with user", func(h *stream.Head) { h.SetAuthorityString("u@a") }, FaultSendStart},
		{"connect without port", func(h *stream.Head) { h.SetMethodString("CONNECT") }, FaultSendStart},
		{"connect to nothing", func(h *stream.Head) { h.SetMethodString("CONNECT"); h.SetAuthorityString("") }, FaultSendStart},
		{"value that would split", func(h *stream.Head) { h.AddString("X", "y\r\nZ: z") }, FaultSendField},
		{"value with LF", func(h *stream.Head) { h.AddString("X", "y\nZ: z") }, FaultSendField},
		{"name with space", func(h *stream.Head) { h.AddString("X ", "y") }, FaultSendField},
		{"pseudo field", func(h *stream.Head) { h.AddString(":path", "/") }, FaultSendField},
		{"length but no body", func(h *stream.Head) { h.ContentLength = 3 }, FaultSendLength},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl, conn, j := newClient(t)
			h := request("GET", "/", -1)
			c.head(h)
			cl.Open(j).SendHead(h, true)
			equal(t, "told before the callback", j.told(), "dead")
			equal(t, "sent", conn.sent(), "")
			equal(t, "state", conn.state(), "aborted")
			equal(t, "told", j.told(), "abort:local:"+c.want.Error())
		})
	}
}

// TestClientResponses checks what is told of a response and what becomes of the connection.
func TestClientResponses(t *testing.T) {
	for _, c := range []struct{ name, method, in, told, state string }{
		{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "200 hello end idle", "open"},
		{"empty", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200 end idle", "open"},
		{"chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n", "200 hi! end idle", "open"},
		{"trailers", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: y\r\n\r\n", "200 hi X=y end idle", "open"},
		{"no content", "GET", "HTTP/1.1 204 No Content\r\n\r\n", "204 end idle", "open"},
		{"not modified", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "304 end idle", "open"},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 end idle", "open"},
		{"interim", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "interim:100 interim:103 200 end idle", "open"},
		{"close", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi", "200 hi end dead", "closed"},
		{"HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", "200 hi end dead", "closed"},
		{"more than a response", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200", "200 hi end dead", "closed"},
		{"more than no content", "GET", "HTTP/1.1 204 OK\r\n\r\nx", "204 end dead", "closed"},
		{"body to HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "200 end dead", "closed"},
		{"malformed", "GET", "HTTP/1.1 200 OK\r\nX y\r\n\r\n", "dead abort:protocol:invalid field name", "closed"},
		{"no HTTP", "GET", "SSH-2.0-x\r\n", "dead abort:protocol:malformed status line", "closed"},
		{"bad chunk", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhix", "200 hi dead abort:protocol:malformed chunk", "closed"},
		{"switch nobody asked for", "GET", "HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "dead abort:protocol:protocol switch that was not asked for", "closed"},
		{
			"too many interim responses", "GET", strings.Repeat("HTTP/1.1 100 C\r\n\r\n", interimMax+1),
			strings.Repeat("interim:100 ", interimMax) + "dead abort:protocol:too many interim responses", "closed",
		},
	} {
		for _, step := range []int{len(c.in), 1} {
			t.Run(c.name, func(t *testing.T) {
				cl, conn, j := newClient(t)
				j.onEnd = func() { // as a relay may do that cleans up
					cl.Reset(stream.AbortLocal)
					cl.Pause()
					cl.SendData([]byte("x"), true)
				}
				cl.Open(j).SendHead(request(c.method, "/", -1), true)
				conn.sent()
				for in := c.in; in != ""; in = in[min(step, len(in)):] {
					conn.feed(in[:min(step, len(in))])
				}
				told := strings.NewReplacer(`" "`, "", ` ""`, "", `"`, "").Replace(j.told())
				want := c.told
				if step == 1 && (strings.HasPrefix(c.name, "more than") || c.name == "body to HEAD") {
					want = strings.Replace(want, "dead", "idle dead", 1) // what is too much comes later
				}
				equal(t, "told", told, want)
				equal(t, "sent", conn.sent(), "")
				equal(t, "state", conn.state(), c.state)
			})
		}
	}
}

func TestClientEnds(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	for _, c := range []struct {
		name string
		used bool // an exchange has been made before
		do   func(cl *ClientConn, conn *fakeConn, j *journal)
		want string
	}{
		{"EOF when idle", true, func(cl *ClientConn, conn *fakeConn, _ *journal) { conn.end() }, "dead"},
		{"reset when idle", true, func(cl *ClientConn, conn *fakeConn, _ *journal) { conn.fail(errors.New("broken")) }, "dead"},
		{"bytes when idle", true, func(cl *ClientConn, conn *fakeConn, _ *journal) { conn.feed("HTTP/1.1 408 Request Timeout\r\n\r\n") }, "dead"},
		{"bytes when new", false, func(cl *ClientConn, conn *fakeConn, _ *journal) { conn.feed("220 smtp") }, "dead"},
		{"EOF before the response, used", true, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.end()
		}, "dead abort:refused:unexpected EOF"},
		{"reset before the response, used", true, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.fail(errors.New("broken"))
		}, "dead abort:refused:broken"},
		{"closed by the owner before the response, used", true, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.Close()
			conn.pump()
		}, "dead abort:local:<nil>"},
		{"EOF before the response, new", false, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.end()
		}, "dead abort:refused:unexpected EOF"},
		{"reset before the response, new", false, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.fail(errors.New("broken"))
		}, "dead abort:refused:broken"},
		{"EOF before the request, new", false, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j)
			conn.end()
		}, "dead abort:refused:unexpected EOF"},
		{"bytes before the request", true, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j)
			conn.feed(answer)
		}, "dead abort:refused:bytes without a request"},
		{"EOF in the head, used", true, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.feed("H")
			conn.end()
		}, "dead abort:closed:unexpected EOF"},
		{"EOF after interim, used", true, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.feed("HTTP/1.1 100 Continue\r\n\r\n")
			conn.end()
		}, "interim:100 dead abort:closed:unexpected EOF"},
		{"EOF in a body of known length", false, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.feed("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi")
			conn.end()
		}, `200 "hi" dead abort:closed:unexpected EOF`},
		{"EOF in chunks", false, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.feed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n")
			conn.end()
		}, `200 "hi" dead abort:closed:unexpected EOF`},
		{"EOF ends a body of unknown length", false, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.feed("HTTP/1.1 200 OK\r\n\r\nhi")
			conn.end()
		}, `200 "hi" "" end dead`},
		{"reset in a body of unknown length", false, func(cl *ClientConn, conn *fakeConn, j *journal) {
			cl.Open(j).SendHead(request("GET", "/", -1), true)
			conn.feed("HTTP/1.1 200 OK\r\n\r\nhi")
			conn.fail(errors.New("broken"))
		}, `200 "hi" dead abort:reset:broken`},
		{"response before the request has ended", false, func(cl *ClientConn, conn *fakeConn, j *journal) {
			s := cl.Open(j)
			s.SendHead(request("POST", "/", 9), false)
			s.SendData([]byte("x"), false)
			conn.feed("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
			s.SendData([]byte("ignored"), true)
		}, `413 end dead`},
		{"head before the request has ended, body after", false, func(cl *ClientConn, conn *fakeConn, j *journal) {
			s := cl.Open(j)
			s.SendHead(request("POST", "/", 1), false)
			conn.feed("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n")
			s.SendData([]byte("x"), true)
			conn.feed("y")
			conn.end()
		}, `200 "y" end idle dead`},
		{"reset by the relay", true, func(cl *ClientConn, conn *fakeConn, j *journal) {
			s := cl.Open(j)
			s.SendHead(request("GET", "/", -1), true)
			s.Reset(stream.AbortTimeout)
		}, "dead"},
		{"reset by the relay from within", true, func(cl *ClientConn, conn *fakeConn, j *journal) {
			s := cl.Open(j)
			s.SendHead(request("GET", "/", -1), true)
			j.onHead = func(*stream.Head, bool) { s.Reset(stream.AbortTimeout) }
			conn.feed("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi")
		}, "200 dead"},
		{"body too long", true, func(cl *ClientConn, conn *fakeConn, j *journal) {
			s := cl.Open(j)
			s.SendHead(request("POST", "/", 1), false)
			s.SendData([]byte("xy"), false)
		}, "dead abort:local:body does not have the declared length"},
		{"trailer that would split", true, func(cl *ClientConn, conn *fakeConn, j *journal) {
			s := cl.Open(j)
			s.SendHead(request("POST", "/", -1), false)
			s.SendTrailers(response(0, -1, "X", "y\rz"))
		}, "dead abort:local:field cannot be written"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl, conn, j := newClient(t)
			if c.used {
				cl.Open(j).SendHead(request("GET", "/", -1), true)
				conn.feed(answer)
				equal(t, "told first", j.told(), "200 end idle")
			}
			c.do(cl, conn, j)
			conn.pump()
			equal(t, "told", j.told(), c.want)
			if !conn.closed || cl.Idle() {
				t.Error("not closed")
			}
			cl.SendHead(request("GET", "/", -1), true)
			cl.SendData([]byte("x"), true)
			cl.SendTrailers(response(0, -1))
			cl.Reset(stream.AbortLocal)
			cl.OnDrain()
			cl.Resume()
			equal(t, "told", j.told(), "")
		})
	}
}

// TestClientReuse opens the next exchange from within the callback that says that the last is over.
func TestClientReuse(t *testing.T) {
	cl, conn, j := newClient(t)
	j.onIdle = func() {
		if !cl.Idle() {
			t.Error("not idle when told so")
		}
		j.onIdle = nil
		cl.Open(j).SendHead(request("GET", "/2", -1), true)
	}
	cl.Open(j).SendHead(request("GET", "/1", -1), true)
	cl.Pause()
	equal(t, "state", conn.state(), "paused")
	cl.Resume()
	conn.feed("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	conn.feed("HTTP/1.1 201 OK\r\nContent-Length: 0\r\n\r\n")
	equal(t, "sent", conn.sent(), "GET /1 HTTP/1.1|Host: a||GET /2 HTTP/1.1|Host: a||")
	equal(t, "told", j.told(), "200 end idle 201 end idle")
	func() {
		defer func() {
			if recover() == nil {
				t.Error("opened twice")
			}
		}()
		cl.Open(j)
		cl.Open(j)
	}()
}

func TestClientTunnel(t *testing.T) {
	const switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
	open := func(t *testing.T) (*ClientConn, *fakeConn, *journal) {
		cl, conn, j := newClient(t)
		h := request("GET", "/", -1, "Upgrade", "websocket")
		h.Upgrade = true
		cl.Open(j).SendHead(h, false)
		conn.sent()
		return cl, conn, j
	}
	t.Run("the relay ends first", func(t *testing.T) {
		cl, conn, j := open(t)
		conn.feed(switching + "hello")
		if !j.head.Upgrade {
			t.Error("head does not say upgrade")
		}
		cl.SendData([]byte("x"), false)
		cl.SendData(nil, true)
		equal(t, "sent", conn.sent(), "x")
		equal(t, "state", conn.state(), "finished")
		conn.feed("more")
		conn.end()
		equal(t, "told", j.told(), `101 drain "hello" "more" dead "" end`)
		equal(t, "state", conn.state(), "closed")
	})
	t.Run("the server ends first", func(t *testing.T) {
		cl, conn, j := open(t)
		conn.feed(switching)
		conn.end()
		cl.SendData([]byte("x"), true)
		equal(t, "sent", conn.sent(), "x")
		equal(t, "told", j.told(), `101 drain "" end dead`)
		equal(t, "state", conn.state(), "closed")
	})
	t.Run("bytes wait for the tunnel", func(t *testing.T) {
		cl, conn, j := open(t)
		if !cl.Full() {
			t.Error("not full")
		}
		cl.SendData([]byte("early"), false)
		cl.SendData([]byte("!"), true)
		equal(t, "sent", conn.sent(), "")
		conn.feed(switching)
		equal(t, "sent", conn.sent(), "early!")
		equal(t, "state", conn.state(), "finished")
		equal(t, "told", j.told(), "101 drain")
		if cl.Full() {
			t.Error("full")
		}
	})
	t.Run("bytes for a tunnel that is refused are dropped", func(t *testing.T) {
		cl, conn, j := open(t)
		cl.SendData([]byte("GET /smuggled HTTP/1.1\r\n\r\n"), false)
		conn.feed("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
		equal(t, "sent", conn.sent(), "")
		equal(t, "told", j.told(), "403 end idle")
	})
	t.Run("too many bytes wait", func(t *testing.T) {
		cl, conn, j := open(t)
		cl.SendData(make([]byte, holdMaxBytes), false)
		cl.SendData([]byte("x"), false)
		conn.pump()
		equal(t, "told", j.told(), "dead abort:local:too much sent before the tunnel stands")
	})
	t.Run("connect", func(t *testing.T) {
		cl, conn, j := newClient(t)
		h := request("CONNECT", "", -1)
		h.SetAuthorityString("a:1")
		cl.Open(j).SendHead(h, false)
		conn.feed("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhello")
		equal(t, "told", j.told(), `200 drain "hello"`)
		conn.fail(errors.New("broken"))
		equal(t, "told", j.told(), `dead abort:reset:broken`)
	})
	t.Run("reset at the head", func(t *testing.T) {
		cl, conn, j := open(t)
		j.onHead = func(*stream.Head, bool) { cl.Reset(stream.AbortLocal) }
		conn.feed(switching + "hello")
		equal(t, "told", j.told(), "101 dead")
		equal(t, "state", conn.state(), "aborted")
	})
}
