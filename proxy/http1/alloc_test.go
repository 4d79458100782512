package http1

import (
	"testing"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// sink is a connection that keeps nothing and allocates nothing.
type sink struct{ n int }

func (s *sink) Write(p []byte) { s.n += len(p) }
func (s *sink) Full() bool     { return false }
func (s *sink) Close()         { panic("closed") }
func (s *sink) Finish()        { panic("closed") }
func (s *sink) Abort()         { panic("aborted") }
func (s *sink) CloseWrite()    {}
func (s *sink) PauseRead()     {}
func (s *sink) ResumeRead()    {}

// pass is a relay between one server and one client connection, and the owner of both.
type pass struct {
	client *ClientConn
	down   stream.Sender
	up     stream.Sender
}

type passDown struct{ *pass }

func (p *pass) Accept(s stream.Sender) stream.Receiver {
	p.down, p.up = s, p.client.Open(passDown{p})
	return p
}
func (p *pass) OnHead(h *stream.Head, end bool)          { p.up.SendHead(h, end) }
func (p *pass) OnInterim(*stream.Head)                   {}
func (p *pass) OnData(b []byte, end bool)                { p.up.SendData(b, end) }
func (p *pass) OnTrailers(h *stream.Head)                { p.up.SendTrailers(h) }
func (p *pass) OnAbort(why stream.Abort, _ error)        { p.up.Reset(why) }
func (p *pass) OnDrain()                                 {}
func (p *pass) OnIdle(*ServerConn)                       {}
func (p *pass) OnRefused(*ServerConn, Fault)             {}
func (p *pass) OnLinger(*ServerConn)                     {}
func (p *pass) AppendRefusal(out []byte, _ Fault) []byte { return out }
func (p passDown) OnHead(h *stream.Head, end bool)       { p.down.SendHead(h, end) }
func (p passDown) OnInterim(h *stream.Head)              { p.down.SendInterim(h) }
func (p passDown) OnData(b []byte, end bool)             { p.down.SendData(b, end) }
func (p passDown) OnTrailers(h *stream.Head)             { p.down.SendTrailers(h) }
func (p passDown) OnAbort(why stream.Abort, _ error) {
	p.down.Reset(why)
}

type passOwner struct{}

func (passOwner) OnIdle(*ClientConn) {}
func (passOwner) OnDead(*ClientConn) {}

const (
	browserGet = "GET /productpage?u=normal HTTP/1.1\r\nHost: bookinfo.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\n" +
		"Connection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nUpgrade-Insecure-Requests: 1\r\n\r\n"
	serverAnswer = "HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: Tue, 02 Jun 2026 10:00:00 GMT\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 10\r\nKeep-Alive: timeout=5\r\n\r\n0123456789"
	chunkedPost  = "POST /p HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
	chunkedReply = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nGrpc-Status: 0\r\n\r\n"
)

// exchange makes a server and a client connection with a relay between them, and returns what does one exchange.
func exchange(tb testing.TB, request, answer string) func() {
	k := New(Config{})
	p := &pass{client: k.NewClientConn(&sink{}, passOwner{})}
	server := k.NewServerConn(&sink{}, p, p)
	in, out := []byte(request), []byte(answer)
	return func() {
		if n := server.OnData(in); n != len(in) {
			tb.Fatalf("the server took %d of %d", n, len(in))
		}
		if n := p.client.OnData(out); n != len(out) {
			tb.Fatalf("the client took %d of %d", n, len(out))
		}
		if !server.Idle() || !p.client.Idle() {
			tb.Fatal("the exchange is not over")
		}
	}
}

// TestAllocations states the number: nothing is allocated per exchange, on both sides together.
func TestAllocations(t *testing.T) {
	for _, c := range []struct{ name, request, answer string }{
		{"GET", browserGet, serverAnswer},
		{"chunks and trailers", chunkedPost, chunkedReply},
	} {
		t.Run(c.name, func(t *testing.T) {
			do := exchange(t, c.request, c.answer)
			do() // the codec's memory grows to its working size
			if n := testing.AllocsPerRun(1000, do); n != 0 {
				t.Errorf("%v allocations per exchange, want 0", n)
			}
		})
	}
}

// BenchmarkExchange is the codec's part of a proxied GET: two heads parsed, two written.
func BenchmarkExchange(b *testing.B) {
	do := exchange(b, browserGet, serverAnswer)
	b.ReportAllocs()
	for b.Loop() {
		do()
	}
}

// BenchmarkRequest is the parsing of a browser's request head.
func BenchmarkRequest(b *testing.B) {
	k, in := New(Config{}), []byte(browserGet)
	var h stream.Head
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		var m message
		if n, _ := k.request(in, new(progress), &h, &m); n != len(in) {
			b.Fatal("not parsed")
		}
	}
}
