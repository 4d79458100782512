package http1

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// describe says all that a head and its framing deliver, one thing per word.
func describe(h *stream.Head, m *message) string {
	var b strings.Builder
	if h.Status != 0 {
		fmt.Fprintf(&b, "%d", h.Status)
	} else {
		fmt.Fprintf(&b, "%s %s|%s|%s", h.Method(), h.Scheme(), h.Authority(), h.Path())
	}
	fmt.Fprintf(&b, " %s", [...]string{"none", "length", "chunked", "toclose", "tunnel"}[m.framing])
	if h.ContentLength >= 0 {
		fmt.Fprintf(&b, "=%d", h.ContentLength)
	}
	for _, flag := range []struct {
		on   bool
		name string
	}{{h.Close, "close"}, {h.Upgrade, "upgrade"}, {h.HTTP10, "1.0"}, {m.expect, "expect"}} {
		if flag.on {
			b.WriteString(" " + flag.name)
		}
	}
	for i := range h.Len() {
		name, value := h.At(i)
		fmt.Fprintf(&b, " %s=%s", name, value)
	}
	return b.String()
}

// parseSplit offers in to the parser in ever longer prefixes that end at cuts, as the loop does.
func parseSplit(k *Codec, in string, response bool, cuts []int) string {
	var at progress
	h := k.takeHead()
	defer k.giveHead(h)
	for _, end := range append(cuts, len(in)) {
		var m message
		parse := k.request
		if response {
			parse = k.response
		}
		n, f := parse([]byte(in[:end]), &at, h, &m)
		if f != faultNone {
			return f.Error()
		}
		if n > 0 {
			return describe(h, &m)
		}
	}
	return "more"
}

// checkSplits checks that the outcome is the same however the bytes arrive, and with others behind them.
func checkSplits(t *testing.T, k *Codec, in string, response bool, want string) {
	t.Helper()
	if !response {
		in = in[emptyLines([]byte(in)):] // the connection takes them
	}
	if got := parseSplit(k, in, response, nil); got != want {
		t.Errorf("at once:\n got %q\nwant %q", got, want)
	}
	if want != "more" {
		if got := parseSplit(k, in+"GET /next HTTP/1.1\r\n\r\n", response, nil); got != want {
			t.Errorf("with more behind:\n got %q\nwant %q", got, want)
		}
	}
	every := make([]int, 0, len(in))
	for i := range len(in) {
		every = append(every, i)
	}
	if got := parseSplit(k, in, response, every); got != want {
		t.Errorf("byte by byte:\n got %q\nwant %q", got, want)
	}
	random := rand.New(rand.NewPCG(1, uint64(len(in))))
	for range 20 {
		cuts := []int{}
		for i := range len(in) {
			if random.IntN(8) == 0 {
				cuts = append(cuts, i)
			}
		}
		if got := parseSplit(k, in, response, cuts); got != want {
			t.Errorf("cut at %v:\n got %q\nwant %q", cuts, got, want)
		}
	}
}

// row is one case: in with \r\n written as "|" is what arrives, and want a description or a fault's text.
type row struct{ name, in, want string }

func (r row) input() string { return strings.ReplaceAll(r.in, "|", "\r\n") }

var requestRows = []row{
	// What is valid.
	{"plain", "GET / HTTP/1.1|Host: a||", "GET |a|/ none"},
	{"query", "GET /p/q?x=1&y={z}%20 HTTP/1.1|Host: a||", "GET |a|/p/q?x=1&y={z}%20 none"},
	{"two slashes are a path", "GET //b/c HTTP/1.1|Host: a||", "GET |a|//b/c none"},
	{"names keep their case, values their inside", "GET / HTTP/1.1|Host: a|X-aB_c: p  q\t r||", "GET |a|/ none X-aB_c=p  q\t r"},
	{"white space around a value", "GET / HTTP/1.1|Host:\t a \t |X: \t y \t||", "GET |a|/ none X=y"},
	{"no white space before a value", "GET / HTTP/1.1|Host:a|X:y||", "GET |a|/ none X=y"},
	{"empty value", "GET / HTTP/1.1|Host: a|X:|Y:  ||", "GET |a|/ none X= Y="},
	{"high bytes in a value", "GET / HTTP/1.1|Host: a|X: caf\xc3\xa9\xff||", "GET |a|/ none X=caf\xc3\xa9\xff"},
	{"all token characters", "GET / HTTP/1.1|Host: a|!#$%&'*+-.^_`~09azAZ: y||", "GET |a|/ none !#$%&'*+-.^_`~09azAZ=y"},
	{"repeated field", "GET / HTTP/1.1|Host: a|X: 1|x: 2||", "GET |a|/ none X=1 x=2"},
	{"one empty line before", "|GET / HTTP/1.1|Host: a||", "GET |a|/ none"},
	{"unknown method", "BREW /pot HTTP/1.1|Host: a||", "BREW |a|/pot none"},
	{"method is case-sensitive", "get / HTTP/1.1|Host: a||", "get |a|/ none"},
	{"content length", "POST / HTTP/1.1|Host: a|Content-Length: 12||", "POST |a|/ length=12"},
	{"content length zero", "POST / HTTP/1.1|Host: a|Content-Length: 0||", "POST |a|/ none=0"},
	{"leading zeros", "POST / HTTP/1.1|Host: a|Content-Length: 007||", "POST |a|/ length=7"},
	{"largest length", "POST / HTTP/1.1|Host: a|Content-Length: 999999999999999999||", "POST |a|/ length=999999999999999999"},
	{"chunked", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked||", "POST |a|/ chunked"},
	{"chunked in capitals", "POST / HTTP/1.1|Host: a|TRANSFER-ENCODING: \tCHUNKED ||", "POST |a|/ chunked"},
	{"expect", "PUT / HTTP/1.1|Host: a|Expect: 100-Continue|Content-Length: 1||", "PUT |a|/ length=1 expect Expect=100-Continue"},
	{"not yet", "GET / HTTP/1.1|Host: a|", "more"},
	{"not yet, CR", "GET / HTTP/1.1|Host: a|\r", "more"},
	{"nothing", "", "more"},

	// Hosts.
	{"port", "GET / HTTP/1.1|Host: a.example:8080||", "GET |a.example:8080|/ none"},
	{"empty port", "GET / HTTP/1.1|Host: a:||", "GET |a:|/ none"},
	{"IPv4", "GET / HTTP/1.1|Host: 10.0.0.1:80||", "GET |10.0.0.1:80|/ none"},
	{"IPv6", "GET / HTTP/1.1|Host: [2001:db8::1]:80||", "GET |[2001:db8::1]:80|/ none"},
	{"escape in host", "GET / HTTP/1.1|Host: a%2Db||", "GET |a%2Db|/ none"},
	{"missing Host", "GET / HTTP/1.1||", "missing Host"},
	{"missing Host, absolute form", "GET http://a/ HTTP/1.1||", "missing Host"},
	{"two Hosts", "GET / HTTP/1.1|Host: a|Host: b||", "more than one Host"},
	{"two equal Hosts", "GET / HTTP/1.1|Host: a|hOST: a||", "more than one Host"},
	{"two Hosts, absolute form", "GET http://c/ HTTP/1.1|Host: a|Host: b||", "more than one Host"},
	{"two Hosts in HTTP/1.0", "GET / HTTP/1.0|Host: a|Host: b||", "more than one Host"},
	{"empty Host", "GET / HTTP/1.1|Host:||", "GET ||/ none"},
	{"space in Host", "GET / HTTP/1.1|Host: a b||", "invalid Host"},
	{"slash in Host", "GET / HTTP/1.1|Host: a/b||", "invalid Host"},
	{"user in Host", "GET / HTTP/1.1|Host: u@a||", "invalid Host"},
	{"high byte in Host", "GET / HTTP/1.1|Host: caf\xc3\xa9||", "invalid Host"},
	{"bad escape in Host", "GET / HTTP/1.1|Host: a%2||", "invalid Host"},
	{"two ports", "GET / HTTP/1.1|Host: a:1:2||", "invalid Host"},
	{"large port", "GET / HTTP/1.1|Host: a:65536||", "invalid Host"},
	{"signed port", "GET / HTTP/1.1|Host: a:+80||", "invalid Host"},
	{"only a port", "GET / HTTP/1.1|Host: :80||", "invalid Host"},
	{"bare IPv6", "GET / HTTP/1.1|Host: ::1||", "invalid Host"},
	{"open bracket", "GET / HTTP/1.1|Host: [::1||", "invalid Host"},
	{"IPv6 zone", "GET / HTTP/1.1|Host: [fe80::1%25eth0]||", "invalid Host"},
	{"junk behind bracket", "GET / HTTP/1.1|Host: [::1]a||", "invalid Host"},

	// The four forms of the target.
	{"absolute", "GET http://b:81/p?q HTTP/1.1|Host: a||", "GET http|b:81|/p?q none"},
	{"absolute, Host first", "GET HTTPS://b HTTP/1.1|X: y|Host: a||", "GET https|b|/ none X=y"},
	{"absolute, only a query", "GET http://b?q HTTP/1.1|Host: a||", "GET http|b|/?q none"},
	{"absolute OPTIONS without a path", "OPTIONS http://b HTTP/1.1|Host: a||", "OPTIONS http|b|* none"},
	{"absolute OPTIONS with a path", "OPTIONS http://b/ HTTP/1.1|Host: a||", "OPTIONS http|b|/ none"},
	{"absolute with user", "GET http://u@b/ HTTP/1.1|Host: b||", "invalid request target"},
	{"absolute with user and port", "GET http://b:80@c/ HTTP/1.1|Host: b||", "invalid request target"},
	{"absolute without host", "GET http:///p HTTP/1.1|Host: b||", "invalid request target"},
	{"absolute, nothing behind", "GET http:// HTTP/1.1|Host: b||", "invalid request target"},
	{"other scheme", "GET ftp://b/ HTTP/1.1|Host: b||", "invalid request target"},
	{"asterisk", "OPTIONS * HTTP/1.1|Host: a||", "OPTIONS |a|* none"},
	{"asterisk for GET", "GET * HTTP/1.1|Host: a||", "invalid request target"},
	{"asterisk and more", "OPTIONS *x HTTP/1.1|Host: a||", "invalid request target"},
	{"authority", "CONNECT b:443 HTTP/1.1|Host: a||", "CONNECT |b:443| none"},
	{"authority, IPv6", "CONNECT [::1]:443 HTTP/1.1|Host: a||", "CONNECT |[::1]:443| none"},
	{"authority without port", "CONNECT b HTTP/1.1|Host: b||", "invalid request target"},
	{"authority with empty port", "CONNECT b: HTTP/1.1|Host: b||", "invalid request target"},
	{"authority with port zero", "CONNECT b:0 HTTP/1.1|Host: b||", "invalid request target"},
	{"authority for GET", "GET b:443 HTTP/1.1|Host: b||", "invalid request target"},
	{"CONNECT to a path", "CONNECT / HTTP/1.1|Host: b||", "invalid request target"},
	{"CONNECT to a URI", "CONNECT http://b:80/ HTTP/1.1|Host: b||", "invalid request target"},
	{"CONNECT with length", "CONNECT b:1 HTTP/1.1|Host: b|Content-Length: 3||", "content not allowed"},
	{"CONNECT with chunks", "CONNECT b:1 HTTP/1.1|Host: b|Transfer-Encoding: chunked||", "content not allowed"},
	{"relative path", "GET p HTTP/1.1|Host: a||", "invalid request target"},
	{"fragment", "GET /#f HTTP/1.1|Host: a||", "invalid request target"},
	{"high byte in target", "GET /\xc3\xa9 HTTP/1.1|Host: a||", "invalid request target"},
	{"tab in target", "GET /\tx HTTP/1.1|Host: a||", "invalid request target"},

	// The request line.
	{"HTTP/0.9", "GET /||", "malformed request line"},
	{"two spaces after the method", "GET  / HTTP/1.1|Host: a||", "malformed request line"},
	{"two spaces after the target", "GET /  HTTP/1.1|Host: a||", "malformed request line"},
	{"space in target", "GET /a b HTTP/1.1|Host: a||", "malformed request line"},
	{"space behind", "GET / HTTP/1.1 |Host: a||", "malformed request line"},
	{"space before", " GET / HTTP/1.1|Host: a||", "malformed request line"},
	{"tab between", "GET\t/\tHTTP/1.1|Host: a||", "malformed request line"},
	{"method no token", "G@T / HTTP/1.1|Host: a||", "malformed request line"},
	{"version in small letters", "GET / http/1.1|Host: a||", "malformed request line"},
	{"version of three", "GET / HTTP/1.1.1|Host: a||", "malformed request line"},
	{"version of two digits", "GET / HTTP/1.10|Host: a||", "malformed request line"},
	{"version without digit", "GET / HTTP/1.x|Host: a||", "malformed request line"},
	{"version 1.2", "GET / HTTP/1.2|Host: a||", "HTTP version not supported"},
	{"version 2.0", "PRI * HTTP/2.0||SM||", "HTTP version not supported"},
	{"version 0.9", "GET / HTTP/0.9|Host: a||", "HTTP version not supported"},
	{"long method", strings.Repeat("M", 65) + " / HTTP/1.1|Host: a||", "method too long"},
	{"TLS", "\x16\x03\x01\x02\x00\x01", "control character in head"},

	// Line ends and control characters.
	{"LF only", "GET / HTTP/1.1\nHost: a\n\n", "line does not end in CR LF"},
	{"LF in fields", "GET / HTTP/1.1|Host: a\nX: y||", "line does not end in CR LF"},
	{"LF as the last line", "GET / HTTP/1.1|Host: a|\n", "line does not end in CR LF"},
	{"empty LF line before", "\nGET / HTTP/1.1|Host: a||", "line does not end in CR LF"},
	{"bare CR in value", "GET / HTTP/1.1|Host: a|X: y\rZ: 1||", "line does not end in CR LF"},
	{"CR CR LF", "GET / HTTP/1.1\r\r\nHost: a||", "line does not end in CR LF"},
	{"bare CR in target", "GET /\rx HTTP/1.1|Host: a||", "line does not end in CR LF"},
	{"NUL in value", "GET / HTTP/1.1|Host: a|X: y\x00z||", "control character in head"},
	{"NUL in name", "GET / HTTP/1.1|Host: a|X\x00: y||", "control character in head"},
	{"DEL in value", "GET / HTTP/1.1|Host: a|X: \x7f||", "control character in head"},
	{"vertical tab in value", "GET / HTTP/1.1|Host: a|Transfer-Encoding: \x0bchunked||", "control character in head"},
	{"escape in target", "GET /\x1b HTTP/1.1|Host: a||", "control character in head"},

	// Field names.
	{"space before colon", "GET / HTTP/1.1|Host : a||", "invalid field name"},
	{"tab before colon", "POST / HTTP/1.1|Host: a|Transfer-Encoding\t: chunked||", "invalid field name"},
	{"no colon", "GET / HTTP/1.1|Host: a|X||", "invalid field name"},
	{"no name", "GET / HTTP/1.1|Host: a|: y||", "invalid field name"},
	{"name no token", "GET / HTTP/1.1|Host: a|X(y): z||", "invalid field name"},
	{"high byte in name", "GET / HTTP/1.1|Host: a|X\xff: z||", "invalid field name"},
	{"pseudo field", "GET / HTTP/1.1|Host: a|:path: /b||", "invalid field name"},
	{"fold", "GET / HTTP/1.1|Host: a|X: y| z||", "folded field line"},
	{"fold with tab", "POST / HTTP/1.1|Host: a|X:|\tTransfer-Encoding: chunked||", "folded field line"},
	{"fold of nothing", "GET / HTTP/1.1| Host: a||", "folded field line"},
	{"white space line", "GET / HTTP/1.1|Host: a| ||", "folded field line"},

	// Framing: what smuggles.
	{"length and coding", "POST / HTTP/1.1|Host: a|Content-Length: 4|Transfer-Encoding: chunked||", "both Content-Length and Transfer-Encoding"},
	{"coding and length", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Content-Length: 0||", "both Content-Length and Transfer-Encoding"},
	{"two lengths", "POST / HTTP/1.1|Host: a|Content-Length: 4|Content-Length: 5||", "more than one Content-Length"},
	{"two equal lengths", "POST / HTTP/1.1|Host: a|Content-Length: 4|content-length: 4||", "more than one Content-Length"},
	{"list of lengths", "POST / HTTP/1.1|Host: a|Content-Length: 4, 4||", "invalid Content-Length"},
	{"plus", "POST / HTTP/1.1|Host: a|Content-Length: +4||", "invalid Content-Length"},
	{"minus", "POST / HTTP/1.1|Host: a|Content-Length: -4||", "invalid Content-Length"},
	{"hexadecimal", "POST / HTTP/1.1|Host: a|Content-Length: 0x4||", "invalid Content-Length"},
	{"fraction", "POST / HTTP/1.1|Host: a|Content-Length: 4.0||", "invalid Content-Length"},
	{"underscore", "POST / HTTP/1.1|Host: a|Content-Length: 1_0||", "invalid Content-Length"},
	{"space inside", "POST / HTTP/1.1|Host: a|Content-Length: 1 0||", "invalid Content-Length"},
	{"quotes", "POST / HTTP/1.1|Host: a|Content-Length: \"4\"||", "invalid Content-Length"},
	{"empty length", "POST / HTTP/1.1|Host: a|Content-Length: ||", "invalid Content-Length"},
	{"wide digits", "POST / HTTP/1.1|Host: a|Content-Length: \xef\xbc\x94||", "invalid Content-Length"},
	{"length too large", "POST / HTTP/1.1|Host: a|Content-Length: 9223372036854775808||", "content too large"},
	{"length that wraps", "POST / HTTP/1.1|Host: a|Content-Length: 18446744073709551620||", "content too large"},
	{"length with underscore is another field", "POST / HTTP/1.1|Host: a|Content_Length: 4||", "POST |a|/ none Content_Length=4"},
	{"chunked twice", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked, chunked||", "invalid Transfer-Encoding"},
	{"chunked in two fields", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Transfer-Encoding: chunked||", "invalid Transfer-Encoding"},
	{"chunked and identity", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Transfer-Encoding: identity||", "invalid Transfer-Encoding"},
	{"chunked not last", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked, gzip||", "invalid Transfer-Encoding"},
	{"identity", "POST / HTTP/1.1|Host: a|Transfer-Encoding: identity||", "invalid Transfer-Encoding"},
	{"gzip alone", "POST / HTTP/1.1|Host: a|Transfer-Encoding: gzip||", "invalid Transfer-Encoding"},
	{"gzip, chunked", "POST / HTTP/1.1|Host: a|Transfer-Encoding: gzip, chunked||", "transfer coding not supported"},
	{"xchunked", "POST / HTTP/1.1|Host: a|Transfer-Encoding: xchunked||", "invalid Transfer-Encoding"},
	{"quoted chunked", "POST / HTTP/1.1|Host: a|Transfer-Encoding: \"chunked\"||", "invalid Transfer-Encoding"},
	{"chunked with parameter", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked;q=1||", "invalid Transfer-Encoding"},
	{"chunked and a comma", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked,||", "invalid Transfer-Encoding"},
	{"a comma and chunked", "POST / HTTP/1.1|Host: a|Transfer-Encoding: ,chunked||", "invalid Transfer-Encoding"},
	{"empty coding", "POST / HTTP/1.1|Host: a|Transfer-Encoding:||", "invalid Transfer-Encoding"},
	{"high byte before chunked", "POST / HTTP/1.1|Host: a|Transfer-Encoding: \xa0chunked||", "invalid Transfer-Encoding"},
	{"coding in HTTP/1.0", "POST / HTTP/1.0|Host: a|Transfer-Encoding: chunked||", "Transfer-Encoding in HTTP/1.0"},
	{"coding and length in HTTP/1.0", "POST / HTTP/1.0|Content-Length: 3|Transfer-Encoding: chunked||", "Transfer-Encoding in HTTP/1.0"},
	{"second request in the head", "GET / HTTP/1.1|Host: a|GET /admin HTTP/1.1|X: y||", "invalid field name"},

	// Fields that belong to the connection.
	{"close", "GET / HTTP/1.1|Host: a|Connection: Close||", "GET |a|/ none close"},
	{"keep-alive", "GET / HTTP/1.1|Host: a|Connection: keep-alive|Keep-Alive: timeout=5|Proxy-Connection: close||", "GET |a|/ none"},
	{"named before", "GET / HTTP/1.1|Host: a|Connection: X-Hop , , y|X-HOP: 1|Y: 2|Z: 3||", "GET |a|/ none Z=3"},
	{"named after", "GET / HTTP/1.1|Host: a|X-Hop: 1|Z: 3|Connection: x-hop, close||", "GET |a|/ none close Z=3"},
	{"named in two fields", "GET / HTTP/1.1|Host: a|X: 1|Connection: x|Y: 2|Connection: y||", "GET |a|/ none"},
	{
		"protected names", "POST / HTTP/1.1|Host: a|Content-Length: 3|Cookie: c|X-Forwarded-For: f|Authorization: z|Connection: host, content-length, cookie, X-Forwarded-For, authorization||",
		"POST |a|/ length=3 Cookie=c X-Forwarded-For=f Authorization=z",
	},
	{"naming the coding does not remove it", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Connection: transfer-encoding||", "POST |a|/ chunked"},
	{"too many names", "GET / HTTP/1.1|Host: a|Connection: a,b,c,d,e,f,g,h,i||", "too many connection options"},
	{"TE trailers", "GET / HTTP/1.1|Host: a|TE: gzip;q=0.5, Trailers|te: trailers|Connection: TE||", "GET |a|/ none TE=trailers"},
	{"TE other", "GET / HTTP/1.1|Host: a|TE: gzip||", "GET |a|/ none"},
	{"upgrade", "GET / HTTP/1.1|Host: a|Connection: keep-alive, Upgrade|Upgrade: websocket||", "GET |a|/ none upgrade Upgrade=websocket"},
	{"upgrade not named", "GET / HTTP/1.1|Host: a|Upgrade: websocket||", "GET |a|/ none"},
	{"upgrade to h2c", "GET / HTTP/1.1|Host: a|Connection: Upgrade, HTTP2-Settings|Upgrade: H2C|HTTP2-Settings: AAA||", "GET |a|/ none"},
	{"upgrade to h2c hidden", "GET / HTTP/1.1|Host: a|Connection: Upgrade|Upgrade: websocket|Upgrade: x,h2c||", "GET |a|/ none"},
	{"upgrade with content", "POST / HTTP/1.1|Host: a|Connection: Upgrade|Upgrade: websocket|Content-Length: 2||", "POST |a|/ length=2"},

	// HTTP/1.0.
	{"HTTP/1.0 without Host", "GET / HTTP/1.0||", "GET ||/ none close 1.0"},
	{"HTTP/1.0 keep-alive", "GET / HTTP/1.0|Host: a|Connection: keep-alive||", "GET |a|/ none close 1.0"},
	{"HTTP/1.0 upgrade", "GET / HTTP/1.0|Connection: upgrade|Upgrade: websocket||", "GET ||/ none close 1.0"},
	{"HTTP/1.0 expect", "PUT / HTTP/1.0|Expect: 100-continue|Content-Length: 1||", "PUT ||/ length=1 close 1.0 Expect=100-continue"},
	{"HTTP/1.0 content", "POST / HTTP/1.0|Content-Length: 1||", "POST ||/ length=1 close 1.0"},
}

func TestRequestStrictness(t *testing.T) {
	k := New(Config{})
	for _, r := range requestRows {
		t.Run(r.name, func(t *testing.T) { checkSplits(t, k, r.input(), false, r.want) })
	}
	if len(requestRows) < 80 {
		t.Errorf("only %d rows", len(requestRows))
	}
}

var responseRows = []row{
	{"plain", "HTTP/1.1 200 OK|Content-Length: 5||", "200 length=5"},
	{"reason of any bytes", "HTTP/1.1 404 a\tb \xff||", "404 toclose close"},
	{"empty reason", "HTTP/1.1 200 |Content-Length: 0||", "200 none=0"},
	{"no reason and no space", "HTTP/1.1 200|Content-Length: 0||", "200 none=0"},
	{"chunked", "HTTP/1.1 200 OK|Transfer-Encoding: Chunked||", "200 chunked"},
	{"to the end", "HTTP/1.1 200 OK|X: y||", "200 toclose close X=y"},
	{"close", "HTTP/1.1 200 OK|Content-Length: 1|Connection: close||", "200 length=1 close"},
	{"HTTP/1.0", "HTTP/1.0 200 OK|Content-Length: 1|Connection: keep-alive||", "200 length=1 close 1.0"},
	{"interim", "HTTP/1.1 103 Early Hints|Link: x||", "103 none Link=x"},
	{"no content", "HTTP/1.1 204 No Content|Content-Length: 0||", "204 none"},
	{"not modified keeps the length", "HTTP/1.1 304 Not Modified|Content-Length: 9||", "304 none=9"},
	{"unknown status", "HTTP/1.1 799 Odd|Content-Length: 0||", "799 none=0"},
	{"switch", "HTTP/1.1 101 Switching Protocols|Upgrade: websocket|Connection: upgrade||", "101 tunnel upgrade Upgrade=websocket"},
	{"Host is an ordinary field here", "HTTP/1.1 200 OK|Host: ???|Content-Length: 0||", "200 none=0 Host=???"},
	{"fields of the connection", "HTTP/1.1 200 OK|Keep-Alive: x|Connection: X-a|X-A: 1|Upgrade: h2|Content-Length: 0||", "200 none=0"},
	{"not yet", "HTTP/1.1 200 OK|X: y|", "more"},

	{"switch without Upgrade", "HTTP/1.1 101 Switching Protocols|Connection: upgrade||", "protocol switch that was not asked for"},
	{"switch without Connection", "HTTP/1.1 101 Switching Protocols|Upgrade: websocket||", "protocol switch that was not asked for"},
	{"length and coding", "HTTP/1.1 200 OK|Content-Length: 5|Transfer-Encoding: chunked||", "both Content-Length and Transfer-Encoding"},
	{"two lengths", "HTTP/1.1 200 OK|Content-Length: 5|Content-Length: 5||", "more than one Content-Length"},
	{"list of lengths", "HTTP/1.1 200 OK|Content-Length: 5,5||", "invalid Content-Length"},
	{"coding in HTTP/1.0", "HTTP/1.0 200 OK|Transfer-Encoding: chunked||", "Transfer-Encoding in HTTP/1.0"},
	{"identity", "HTTP/1.1 200 OK|Transfer-Encoding: identity||", "invalid Transfer-Encoding"},
	{"gzip, chunked", "HTTP/1.1 200 OK|Transfer-Encoding: gzip, chunked||", "transfer coding not supported"},
	{"no content with length", "HTTP/1.1 204 No Content|Content-Length: 5||", "content not allowed"},
	{"no content with chunks", "HTTP/1.1 204 No Content|Transfer-Encoding: chunked||", "content not allowed"},
	{"interim with length", "HTTP/1.1 100 Continue|Content-Length: 5||", "content not allowed"},
	{"empty line before", "|HTTP/1.1 200 OK||", "malformed status line"},
	{"two digits", "HTTP/1.1 20 OK||", "malformed status line"},
	{"four digits", "HTTP/1.1 2000 OK||", "malformed status line"},
	{"status below 100", "HTTP/1.1 099 OK||", "malformed status line"},
	{"signed status", "HTTP/1.1 +20 OK||", "malformed status line"},
	{"two spaces", "HTTP/1.1  200 OK||", "malformed status line"},
	{"ICY", "ICY 200 OK||", "malformed status line"},
	{"small letters", "http/1.1 200 OK||", "malformed status line"},
	{"HTTP/2", "HTTP/2.0 200 OK||", "HTTP version not supported"},
	{"LF only", "HTTP/1.1 200 OK\n\n", "line does not end in CR LF"},
	{"bare CR in reason", "HTTP/1.1 200 O\rK||", "line does not end in CR LF"},
	{"NUL in reason", "HTTP/1.1 200 O\x00K||", "control character in head"},
	{"fold", "HTTP/1.1 200 OK|X: y| z||", "folded field line"},
	{"space before colon", "HTTP/1.1 200 OK|Content-Length : 5||", "invalid field name"},
}

func TestResponseStrictness(t *testing.T) {
	k := New(Config{})
	for _, r := range responseRows {
		t.Run(r.name, func(t *testing.T) { checkSplits(t, k, r.input(), true, r.want) })
	}
}

// TestResponseToRequest checks what depends on the request.
func TestResponseToRequest(t *testing.T) {
	for _, c := range []struct {
		name          string
		in            string
		head, connect bool
		want          string
	}{
		{"HEAD with length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, false, "200 none=5"},
		{"HEAD with chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true, false, "200 none"},
		{"HEAD without either", "HTTP/1.1 200 OK\r\n\r\n", true, false, "200 none"},
		{"CONNECT granted", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, true, "200 tunnel"},
		{"CONNECT granted with coding", "HTTP/1.1 299 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, true, "299 tunnel"},
		{"CONNECT refused", "HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\n", false, true, "403 length=5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h stream.Head
			m := message{head: c.head, connect: c.connect}
			n, f := New(Config{}).response([]byte(c.in), new(progress), &h, &m)
			if f != faultNone || n != len(c.in) {
				t.Fatalf("consumed %d, %v", n, f)
			}
			if got := describe(&h, &m); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestHeadLimits(t *testing.T) {
	const line, end = "GET / HTTP/1.1\r\n", "\r\n"
	field := func(size int) string { return "X: " + strings.Repeat("y", size-len("X: \r\n")) + "\r\n" }
	cfg := Config{HeadMaxBytes: 200, StartLineMaxBytes: 60, FieldLineMaxBytes: 100, FieldsMax: 5}
	for _, c := range []struct{ name, in, want string }{
		{"head of the limit", "GET / HTTP/1.0\r\n" + field(91) + field(91) + end, "GET ||/ none close 1.0 X=" + strings.Repeat("y", 86) + " X=" + strings.Repeat("y", 86)},
		{"head one larger", "GET / HTTP/1.0\r\n" + field(91) + field(92) + end, "head too large"},
		{"head much larger", "GET / HTTP/1.0\r\n" + field(91) + field(100) + field(91) + end, "head too large"},
		{"field line of the limit", "GET / HTTP/1.0\r\n" + field(102) + end, "GET ||/ none close 1.0 X=" + strings.Repeat("y", 97)},
		{"field line one larger", "GET / HTTP/1.0\r\n" + field(103) + end, "head too large"},
		{"field line without end", "GET / HTTP/1.0\r\nX: " + strings.Repeat("y", 98), "head too large"},
		{"start line of the limit", "GET /" + strings.Repeat("p", 46) + " HTTP/1.0\r\n\r\n", "GET ||/" + strings.Repeat("p", 46) + " none close 1.0"},
		{"start line one larger", "GET /" + strings.Repeat("p", 47) + " HTTP/1.0\r\n\r\n", "request target too long"},
		{"start line without end", "GET /" + strings.Repeat("p", 56), "request target too long"},
		{"fields of the limit", line + "Host: a\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\n\r\n", "GET |a|/ none A=1 B=2 C=3 D=4"},
		{"fields one more", line + "Host: a\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\n\r\n", "too many fields"},
		{"what comes first decides", line + "X\r\n" + field(150), "invalid field name"},
	} {
		t.Run(c.name, func(t *testing.T) { checkSplits(t, New(cfg), c.in, false, c.want) })
	}
	t.Run("defaults", func(t *testing.T) {
		in := line + "Host: a\r\n" + strings.Repeat("A: 1\r\n", FieldsMax-1)
		checkSplits(t, New(Config{}), in+"\r\n", false, "GET |a|/ none"+strings.Repeat(" A=1", FieldsMax-1))
		checkSplits(t, New(Config{}), in+"A: 1\r\n\r\n", false, "too many fields")
	})
}

// TestTrickle checks that a head that comes byte by byte is not parsed anew for each: the parser, which would
// refuse what stands before the bytes already seen, does not look there again.
func TestTrickle(t *testing.T) {
	k := New(Config{})
	in := []byte("GET / HTTP/1.1\r\nX: " + strings.Repeat("y", 1000))
	var at progress
	var h stream.Head
	if n, f := k.request(in[:30], &at, &h, new(message)); n != 0 || f != faultNone {
		t.Fatal(n, f)
	}
	in[5] = 0
	for i := 31; i <= len(in); i++ {
		if n, f := k.request(in[:i], &at, &h, new(message)); n != 0 || f != faultNone {
			t.Fatalf("after %d bytes: %d, %v", i, n, f)
		}
	}
}

func TestControl(t *testing.T) {
	for c := range 256 {
		for _, before := range []int{0, 1, 7, 8, 9, 20} {
			p := append(bytes.Repeat([]byte{'a'}, before), byte(c))
			p = append(p, "\t\x80\xff ~bbbbbbbbb\x00"...)
			want := len(p) - 1
			if c < 0x20 && c != '\t' || c == 0x7f {
				want = before
			}
			if got := control(p, 0); got != want {
				t.Errorf("byte %#x at %d: got %d, want %d", c, before, got, want)
			}
		}
	}
}

func TestFaults(t *testing.T) {
	statuses := map[int]bool{400: true, 413: true, 414: true, 431: true, 501: true, 505: true}
	texts := map[string]bool{}
	for f := FaultRequestLine; f <= FaultSendHold; f++ {
		if f < FaultSendField && !statuses[f.Status()] {
			t.Errorf("%v has status %d", f, f.Status())
		}
		if f.Error() == "" || texts[f.Error()] {
			t.Errorf("fault %d has no text of its own: %q", f, f)
		}
		texts[f.Error()] = true
	}
}

// FuzzIPv6 compares the address check with the standard library's.
func FuzzIPv6(f *testing.F) {
	for _, s := range []string{
		"::", "::1", "1::", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::2::3", ":::", "1:2:3:4:5:6:7:8:9",
		"::ffff:1.2.3.4", "1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:7:1.2.3.4", "::1:2:3:4:5:6:1.2.3.4", "1.2.3.4", "::1.2.3.04", "::1.2.3", "::1.2.3.256", "12345::", ":1", "1:", "fe80::1%eth0", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := netip.ParseAddr(s)
		want := err == nil && a.Is6() && a.Zone() == "" && strings.Contains(s, ":")
		if got := validIPv6([]byte(s)); got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	})
}

func TestTrailers(t *testing.T) {
	k := New(Config{})
	var h stream.Head
	in := "Grpc-Status: 0\r\nContent-Length: 5\r\nHost: b\r\nTransfer-Encoding: chunked\r\nAuthorization: x\r\nConnection: grpc-status\r\nX: y\r\n\r\nmore"
	n, f := k.trailers([]byte(in), new(progress), &h)
	if f != faultNone || n != len(in)-len("more") {
		t.Fatalf("consumed %d, %v", n, f)
	}
	if diff := cmp.Diff(" none Grpc-Status=0 X=y", strings.TrimPrefix(describe(&h, &message{}), " ||")); diff != "" {
		t.Error(diff)
	}
}
