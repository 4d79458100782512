package http1

import (
	"bufio"
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// FuzzRequest compares with net/http: what we accept, it accepts, with the same
// method, target, host, framing and fields. Excepted, because net/http parses
// what we pass on as it is: paths with a % that is no escape, and hosts of the
// absolute and authority form with escapes or with sub-delims of RFC 3986 that
// package url does not take.
func FuzzRequest(f *testing.F) {
	for _, r := range requestRows {
		f.Add(r.input())
	}
	k := New(Config{})
	f.Fuzz(func(t *testing.T, in string) {
		var h stream.Head
		var m message
		n, fault := k.request([]byte(in), new(progress), &h, &m)
		got := "more"
		switch {
		case fault != faultNone:
			got = fault.Error()
		case n > 0:
			got = describe(&h, &m)
		}
		random := rand.New(rand.NewPCG(2, uint64(len(in))))
		cuts := []int{}
		for i := range in {
			if random.IntN(1+len(in)/8) == 0 {
				cuts = append(cuts, i)
			}
		}
		if split := parseSplit(k, in, false, cuts); split != got {
			t.Fatalf("cut at %v: %q, at once: %q", cuts, split, got)
		}
		if n == 0 {
			return
		}
		compareRequest(t, in[:n], &h, &m)
		roundTripRequest(t, k, &h, &m)
	})
}

func compareRequest(t *testing.T, in string, h *stream.Head, m *message) {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(in)))
	if err != nil {
		text := err.Error()
		if strings.Contains(text, "invalid URL escape") || strings.Contains(text, "invalid character") && strings.Contains(text, "in host name") {
			return
		}
		t.Fatalf("accepted %q, net/http: %v", in, err)
	}
	if r.Method != string(h.Method()) || r.Host != string(h.Authority()) {
		t.Fatalf("%q: method %q, host %q, net/http: %q, %q", in, h.Method(), h.Authority(), r.Method, r.Host)
	}
	path := string(h.Path())
	switch {
	case m.connect:
		if r.RequestURI != string(h.Authority()) {
			t.Fatalf("%q: net/http has target %q", in, r.RequestURI)
		}
	case len(h.Scheme()) == 0 && r.RequestURI != path, len(h.Scheme()) > 0 && !strings.HasSuffix(r.RequestURI, strings.TrimLeft(path, "/*")):
		t.Fatalf("%q: path %q, net/http: %q", in, path, r.RequestURI)
	}
	want := map[framing]int64{framingNone: 0, framingLength: h.ContentLength, framingChunked: -1}[m.framing]
	if r.ContentLength != want || (len(r.TransferEncoding) == 1) != (m.framing == framingChunked) {
		t.Fatalf("%q: framing %d, length %d, net/http: %v, %d", in, m.framing, h.ContentLength, r.TransferEncoding, r.ContentLength)
	}
	if h.HTTP10 != (r.ProtoMinor == 0) || r.Close && !h.Close {
		t.Fatalf("%q: 1.0 %v, close %v, net/http: %s, %v", in, h.HTTP10, h.Close, r.Proto, r.Close)
	}
	for i := range h.Len() {
		name, value := h.At(i)
		if strings.EqualFold(string(name), "te") {
			continue
		}
		found := false
		for other, values := range r.Header {
			for _, v := range values {
				found = found || strings.EqualFold(other, string(name)) && v == string(value)
			}
		}
		if !found {
			t.Fatalf("%q: field %s: %q, net/http: %v", in, name, value, r.Header)
		}
	}
}

// roundTripRequest writes a head that was read, and reads it again.
func roundTripRequest(t *testing.T, k *Codec, h *stream.Head, m *message) {
	conn := &fakeConn{t: t}
	var out outgoing
	end := m.framing == framingNone && !m.connect && !h.Upgrade
	if f := out.writeRequest(k, conn, h, end); f != faultNone {
		t.Fatalf("write of %q: %v", describe(h, m), f)
	}
	var h2 stream.Head
	var m2 message
	n, f := k.request(conn.out, new(progress), &h2, &m2)
	if f != faultNone || n != len(conn.out) {
		t.Fatalf("read again %q: %d, %v", conn.out, n, f)
	}
	// These do not travel.
	h.Close, h.HTTP10 = false, false
	h.SetSchemeString("")
	if m.connect || h.ContentLength < 0 && anticipatesContent(h.Method()) && end {
		h.ContentLength = h2.ContentLength
	}
	if m.framing == framingLength && expectsTrailers(h) {
		m.framing, h.ContentLength = framingChunked, -1
	}
	m2.expect = m.expect
	if got, want := describe(&h2, &m2), describe(h, m); got != want {
		t.Fatalf("read again %q, was %q", got, want)
	}
}

// TestRequestDifferential does what FuzzRequest does for requests put together
// from parts that each stand for a known way to smuggle, or are harmless.
func TestRequestDifferential(t *testing.T) {
	methods := []string{"GET", "POST", "OPTIONS", "CONNECT", "HEAD", "P\x00T", "get", ""}
	targets := []string{"/", "/a?b=c", "*", "a:1", "[::1]:1", "http://a", "http://a:1/b?c", "https://u@a/", "//a/b", "/%zz", "/a b", "/\xff", "http://a!b/", "http://%41/", ""}
	versions := []string{" HTTP/1.1\r\n", " HTTP/1.1\r\n", " HTTP/1.1\r\n", " HTTP/1.0\r\n", " HTTP/1.1\n", " HTTP/2.0\r\n", "  HTTP/1.1\r\n", "\r\n"}
	names := []string{"Content-Length", "Transfer-Encoding", "Host", "Connection", "Upgrade", "TE", "X", "content-length", "TRANSFER-ENCODING", "Content_Length", "Keep-Alive", "Expect", "Trailer"}
	colons := []string{": ", ":", ":\t", ": ", ": ", " : ", ":  ", " ", ":\r\n "}
	values := []string{
		"chunked", "5", "0", "05", "+5", "5, 5", "5;x", "gzip, chunked", "chunked, gzip", "chunked ", "\x0bchunked", "identity", "a", "a:1", "close", "keep-alive, x", "upgrade",
		"websocket", "trailers", "99999999999999999999", "", "a\x00b", "x\ry", "caf\xc3\xa9", "content-length, transfer-encoding", "100-continue", "\"chunked\"",
	}
	ends := []string{"\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r\r\n", "\r\n "}
	random := rand.New(rand.NewPCG(3, 3))
	one := func(of []string) string { return of[random.IntN(len(of))] }
	k := New(Config{})
	accepted := 0
	for range 50_000 {
		var in strings.Builder
		in.WriteString(one(methods) + " " + one(targets) + one(versions) + "Host: h\r\n")
		for range random.IntN(4) {
			in.WriteString(one(names) + one(colons) + one(values) + one(ends))
		}
		in.WriteString("\r\n")
		var h stream.Head
		var m message
		if n, f := k.request([]byte(in.String()), new(progress), &h, &m); f == faultNone && n > 0 {
			accepted++
			compareRequest(t, in.String()[:n], &h, &m)
			roundTripRequest(t, k, &h, &m)
		}
	}
	if accepted < 1000 {
		t.Errorf("only %d requests were accepted", accepted)
	}
}

// FuzzResponse compares with net/http like FuzzRequest, without exceptions. The
// framing of what has no body by its status or request is not compared.
func FuzzResponse(f *testing.F) {
	for _, r := range responseRows {
		f.Add(r.input(), false)
		f.Add(r.input(), true)
	}
	k := New(Config{})
	f.Fuzz(func(t *testing.T, in string, head bool) {
		var h stream.Head
		m := message{head: head}
		n, fault := k.response([]byte(in), new(progress), &h, &m)
		if fault != faultNone || n == 0 {
			return
		}
		asked := &http.Request{Method: http.MethodGet}
		if head {
			asked.Method = http.MethodHead
		}
		r, err := http.ReadResponse(bufio.NewReader(strings.NewReader(in[:n])), asked)
		if err != nil {
			t.Fatalf("accepted %q, net/http: %v", in[:n], err)
		}
		defer func() { _ = r.Body.Close() }()
		chunked := len(r.TransferEncoding) == 1 && !head && h.Status != 304
		if r.StatusCode != h.Status || chunked != (m.framing == framingChunked) ||
			m.framing == framingLength && r.ContentLength != h.ContentLength ||
			m.framing == framingClose && (r.ContentLength != -1 || chunked) {
			t.Fatalf("%q: %s, net/http: %d, %d, %v", in[:n], describe(&h, &m), r.StatusCode, r.ContentLength, r.TransferEncoding)
		}
		roundTripResponse(t, k, &h, &m)
	})
}

func roundTripResponse(t *testing.T, k *Codec, h *stream.Head, m *message) {
	conn := &fakeConn{t: t}
	var out outgoing
	end := m.framing == framingNone && !m.head && h.Status >= 200 && h.Status != 204 && h.Status != 304
	f := out.writeResponse(k, conn, h, reply{head: m.head, tunnel: m.framing == framingTunnel}, end)
	if f != faultNone {
		t.Fatalf("write of %q: %v", describe(h, m), f)
	}
	var h2 stream.Head
	m2 := message{head: m.head}
	if n, f := k.response(conn.out, new(progress), &h2, &m2); f != faultNone || n != len(conn.out) {
		t.Fatalf("read again %q: %d, %v", conn.out, n, f)
	}
	h.Close, h.HTTP10 = h2.Close, false
	if m.framing == framingClose {
		m.framing = framingChunked
	}
	if got, want := describe(&h2, &m2), describe(h, m); got != want {
		t.Fatalf("read again %q, was %q", got, want)
	}
}

// decodeChunks decodes a body that arrives in two parts.
func decodeChunks(k *Codec, in []byte, cut int) (body []byte, n int, end bool, f Fault) {
	b := incoming{framing: framingChunked}
	for _, limit := range []int{cut, len(in)} {
		for !end {
			x, f := b.step(k, in[n:limit])
			if f != faultNone {
				return body, n, false, f
			}
			if x.n == 0 {
				break
			}
			if x.trailers != nil {
				k.giveHead(x.trailers)
			}
			n, end, body = n+x.n, x.end, append(body, x.data...)
		}
	}
	return body, n, end, faultNone
}

// FuzzChunked compares the decoder with net/http's, and with itself on split input.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{
		"0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "A\r\n0123456789\r\na;x=\"y\"\r\n0123456789\r\n000\r\nX: y\r\n\r\n", "5 ;x\r\nhello\r\n0\r\n\r\n",
		"5 \r\nhello\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "5\r\nhelloX0\r\n\r\n", "-1\r\n", "0x5\r\nhello\r\n", "+5\r\nhello\r\n", "g\r\n", "\r\n", ";x\r\n",
		"ffffffffffffffff\r\n", "10000000000000005\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r0\r\n\r\n", "5;\x00\r\n", "5\r\r\nhello\r\n", "0\r\n\n", "0\r\nX : y\r\n\r\n", "5,\r\nhello\r\n",
	} {
		f.Add([]byte(s), 3)
	}
	k := New(Config{})
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		body, n, end, fault := decodeChunks(k, in, len(in))
		cut = max(0, min(cut, len(in)))
		if b, n2, end2, fault2 := decodeChunks(k, in, cut); !bytes.Equal(b, body) || n2 != n || end2 != end || fault2 != fault {
			t.Fatalf("%q cut at %d: %q, %d, %v, %v; at once: %q, %d, %v, %v", in, cut, b, n2, end2, fault2, body, n, end, fault)
		}
		if !end {
			return
		}
		const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
		r, err := http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(in[:n]))), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Body.Close() }()
		theirs, err := io.ReadAll(r.Body)
		if err != nil && (strings.Contains(err.Error(), "too much data") || // it bounds extensions otherwise
			bytes.ContainsAny(in, " \t")) { // it has no white space before extensions, and other ideas of trailers
			return
		}
		if err != nil || !bytes.Equal(theirs, body) {
			t.Fatalf("%q: %q, net/http: %q, %v", in, body, theirs, err)
		}
	})
}

// outcome is what was told, but for what depends on how the bytes were cut.
func outcome(j *journal) string {
	return strings.NewReplacer(" idle", "", " linger", "").Replace(j.told()) + " " + string(j.body)
}

// FuzzServer feeds a server connection with what may come, in two ways of cutting it; the same must come out.
func FuzzServer(f *testing.F) {
	for _, r := range requestRows {
		f.Add(r.input()+"5\r\nhello\r\n0\r\n\r\n"+get, uint64(1))
	}
	f.Fuzz(func(t *testing.T, in string, seed uint64) {
		run := func(cut func(left int) int) string {
			_, conn, j := newServer(t, Config{DiscardMaxBytes: 1 << 20})
			j.collect = true
			j.onHead = func(h *stream.Head, end bool) {
				switch {
				case h.Upgrade:
					j.sender.SendHead(response(101, -1, "Upgrade", "x"), false)
				case string(h.Method()) == "CONNECT":
					j.sender.SendHead(response(200, -1), false)
				case !end && seed%2 == 0:
					j.sender.SendHead(response(403, 3), false)
					j.sender.SendData([]byte("no!"), true)
				}
			}
			j.onEnd = func() { j.sender.SendHead(response(200, -1), true) }
			for rest := in; rest != ""; {
				n := cut(len(rest))
				conn.feed(rest[:n])
				rest = rest[n:]
			}
			conn.end()
			if !conn.closed && conn.state() != "open" {
				t.Fatalf("state %s at the end", conn.state())
			}
			return outcome(j) + conn.sent()
		}
		random := rand.New(rand.NewPCG(seed, 0))
		whole := run(func(left int) int { return left })
		parts := run(func(left int) int { return 1 + random.IntN(left) })
		if whole != parts {
			t.Fatalf("%q\nat once: %q\nin parts: %q", in, whole, parts)
		}
	})
}

// FuzzClient feeds a client connection with what may come.
func FuzzClient(f *testing.F) {
	for _, r := range responseRows {
		f.Add(r.input()+"5\r\nhello\r\n0\r\n\r\n", uint64(1))
	}
	f.Fuzz(func(t *testing.T, in string, seed uint64) {
		run := func(cut func(left int) int) string {
			cl, conn, j := newClient(t)
			j.collect = true
			h := request("GET", "/", -1, "Upgrade", "x")
			h.Upgrade = seed%2 == 0
			cl.Open(j).SendHead(h, !h.Upgrade)
			for rest := in; rest != ""; {
				n := cut(len(rest))
				conn.feed(rest[:n])
				rest = rest[n:]
			}
			conn.end()
			return outcome(j)
		}
		random := rand.New(rand.NewPCG(seed, 0))
		whole := run(func(left int) int { return left })
		parts := run(func(left int) int { return 1 + random.IntN(left) })
		if whole != parts {
			t.Fatalf("%q\nat once: %q\nin parts: %q", in, whole, parts)
		}
	})
}
