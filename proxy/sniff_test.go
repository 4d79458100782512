package proxy

import (
	"bufio"
	"net"
	"net/http"
	"slices"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
)

func TestSniff(t *testing.T) {
	tests := []struct {
		in   string
		want guess
	}{
		{"", guessMore},
		{"G", guessMore},
		{"GET /", guessMore},
		{"GET / HTTP/1.1\r\n", guessHTTP1},
		{"GET / HTTP/1.0\n", guessHTTP1},
		{"\r\nGET / HTTP/1.1\r\n", guessHTTP1},
		{"PROPFIND /dav HTTP/1.1\r\nHost: x\r\n", guessHTTP1},
		{"P", guessMore},
		{"PRI * HTTP/2.0\r\n", guessMore},
		{preface, guessHTTP2},
		{preface + "\x00\x00", guessHTTP2},
		{"EHLO mail.example\r\n", guessOther},
		{"USER me\r\n", guessOther},
		{"PRIVMSG x :hi\r\n", guessOther},
		{"GET /\r\n", guessOther}, // HTTP/0.9 is not HTTP for us
		{"\x16\x03\x01", guessOther},
		{"*1\r\n$4\r\nPING\r\n", guessOther},
		{"\x00\x00\x00\x25", guessOther},
		{" GET / HTTP/1.1\r\n", guessOther},
		{"AVERYLONGWORDWITHOUTANYSPACE", guessOther},
	}
	for _, tt := range tests {
		if got := sniff([]byte(tt.in)); got != tt.want {
			t.Errorf("sniff(%q) = %d, want %d", tt.in, got, tt.want)
		}
	}
	long := append([]byte("GET /"), make([]byte, sniffBytes)...)
	if got := sniff(long); got != guessOther {
		t.Errorf("a line without an end: %d, want %d", got, guessOther)
	}
}

func TestServesHTTP2(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want bool
	}{
		{"\x00\x00\x00\x04\x00\x00\x00\x00\x00", true},
		{"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64", true},
		{"\x00\x00\x06\x04\x00\x00\x00\x00", false},           // not whole
		{"\x00\x00\x05\x04\x00\x00\x00\x00\x00", false},       // part of a setting
		{"\x00\x00\x00\x04\x01\x00\x00\x00\x00", false},       // an acknowledgement
		{"\x00\x00\x00\x04\x00\x00\x00\x00\x01", false},       // on a stream
		{"\x00\x40\x02\x04\x00\x00\x00\x00\x00", false},       // longer than there are settings
		{"\x4a\x00\x00\x00\x0a8.0.36\x00\x08\x00\x00", false}, // MySQL's greeting
		{"220 mail.example ESMTP\r\n", false},
	} {
		if got := servesHTTP2([]byte(tt.in)); got != tt.want {
			t.Errorf("servesHTTP2(%q) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

func FuzzSniff(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		got := sniff(p)
		if got == guessMore && len(p) > sniffBytes {
			t.Fatal("waits for ever")
		}
		// What was decided stays decided when more bytes arrive.
		if got != guessMore && sniff(append(slices.Clip(p), "x\r\n"...)) != got {
			t.Fatalf("changes its mind: %q", p)
		}
	})
}

// TestQuietClientOfHTTP2: a server of HTTP/2 speaks as soon as it is asked. That decides nothing: the client, who was
// late, is served as HTTP.
func TestQuietClientOfHTTP2(t *testing.T) {
	settings := []byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	app := tcpServer(t, func(c *net.TCPConn) {
		if _, err := c.Write(settings); err != nil {
			return
		}
		in := bufio.NewReader(c)
		if req, err := http.ReadRequest(in); err == nil {
			t.Errorf("%s %s came on the connection that was made before the client spoke", req.Method, req.URL)
		}
	})
	r := sidecar(t, nil, "web")
	c := dialRaw(t, r.outbound(func(chain *plan.Chain, _ *plan.Cluster, _ []plan.Endpoint) {
		chain.HTTP.Inline.Hosts[0].Rules[0] = plan.Rule{Direct: &plan.DirectResponse{Code: 200, Body: "by a rule"}}
	}, app))
	var s *session
	r.await("the server to be asked", func(w *worker) bool {
		for s = range w.sessions {
			return s.early != nil && s.early.c != nil
		}
		return false
	})
	r.onLoop(func(*worker) {
		s.early.OnData(s.early.c, settings)
		if s.stage != stageSniff {
			t.Errorf("the connection is in stage %d; want the client to be waited for", s.stage)
		}
	})
	c.send("GET / HTTP/1.1\r\nHost: svc\r\n\r\n")
	c.expect("HTTP/1.1 200 OK\r\n")
}
