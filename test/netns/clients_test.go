package netns

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// shop are the services that the clients call. The server's workload has the label app=shop; port 7000 is declared
// nowhere.
const shop = `
apiVersion: v1
kind: Service
metadata: {name: shop}
spec:
  selector: {app: shop}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: grpc, port: 81, targetPort: 8081}
  - {name: unnamed, port: 82, targetPort: 8082}
  - {name: tcp-echo, port: 83, targetPort: 8083}
  - {name: unnamed-echo, port: 84, targetPort: 8084}
  - {name: https-own, port: 85, targetPort: 8085}
  - {name: unnamed-tls, port: 86, targetPort: 8086}
  - {name: unnamed-http, port: 87, targetPort: 8080}
  - {name: http-broken, port: 88, targetPort: 8088}
`

// world is one mesh with a server, whose services the test itself is, and a client.
type world struct {
	*rig
	server, client *workload
}

func newWorld(t *testing.T, who account) *world {
	t.Helper()
	m := newRig(t, who)
	w := &world{rig: m}
	w.server = m.start("shop-v1", "--labels", "app=shop,version=v1", "--service-account", "shop", "--port", "http=8080")
	m.apply(shop)
	serveHTTP(t, w.server.listen(t, ":8080"))
	w.client = m.start("caller", "--labels", "app=caller", "--service-account", "caller")
	return w
}

// serveHTTP answers HTTP/1.1 and, without TLS, HTTP/2.
func serveHTTP(t *testing.T, l net.Listener) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.Header().Set("X-Seen", fmt.Sprintf("%s %s length=%d te=%v", r.Method, r.Proto, r.ContentLength, r.TransferEncoding))
		w.Header().Set("X-Body", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, &pattern{}, n)
	})
	mux.HandleFunc("/hash", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		_, _ = fmt.Fprintf(w, "%d %x %v", n, h.Sum(nil), err)
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "hinted")
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "body")
		w.Header().Set("X-Sum", "42")
	})
	s := &http.Server{Handler: mux, Protocols: &http.Protocols{}}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
}

// pattern is an endless stream that shows what is missing, twice or out of place: a block of random bytes, again and
// again, whose size is no multiple of anybody's buffer.
type pattern struct{ at int }

const patternSize = 1<<20 - 3

var patternBlock = sync.OnceValue(func() []byte {
	b := make([]byte, patternSize)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
})

func (p *pattern) Read(b []byte) (int, error) {
	n := copy(b, patternBlock()[p.at:])
	p.at = (p.at + n) % patternSize
	return n, nil
}

// hashOf is the hash of the pattern's first n bytes.
func hashOf(n int64) string {
	h := sha256.New()
	_, _ = io.CopyN(h, &pattern{}, n)
	return hex.EncodeToString(h.Sum(nil))
}

// serveTCP answers each connection with f, and waits for all at the test's end.
func serveTCP(t *testing.T, l net.Listener, f func(*net.TCPConn)) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(wait))
				f(c.(*net.TCPConn))
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
}

func TestClients(t *testing.T) {
	w := newWorld(t, root(t))
	t.Run("curl", w.curl)
	t.Run("python", w.python)
	t.Run("node", w.node)
	t.Run("grpc", w.grpc)
	t.Run("server first", w.serverFirst)
	t.Run("echo with half-close", w.echo)
	t.Run("websocket", w.webSocket)
	t.Run("own tls", w.ownTLS)
	t.Run("gibibyte", w.gibibyte)
	t.Run("broken servers", w.brokenServers)
	t.Run("broken clients", w.brokenClients)
	t.Run("garbage from outside", w.garbage)
	t.Run("dns", w.dns)
}

func TestClientsAsOrdinaryUser(t *testing.T) {
	w := newWorld(t, sailor(t))
	t.Run("curl", w.curl)
	t.Run("server first", w.serverFirst)
	t.Run("echo with half-close", w.echo)
	t.Run("dns", w.dns)
}

func (w *world) curl(t *testing.T) {
	file := w.write("upload", strings.Repeat("0123456789abcdef", 1<<16))
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{"get", []string{"http://shop/echo"}, []string{"200", "GET HTTP/1.1"}},
		{"full name", []string{"http://shop.default.svc.cluster.local/echo"}, []string{"200"}},
		{"with a dot", []string{"http://shop.default.svc.cluster.local./echo"}, []string{"200"}},
		{"other port", []string{"http://shop:87/echo"}, []string{"200"}},
		{"ipv4", []string{"-4", "http://shop/echo"}, []string{"200"}},
		{"http/1.0", []string{"--http1.0", "http://shop/echo"}, []string{"426", "version_unsupported"}}, // As Istio, by default.
		{"h2c prior knowledge", []string{"--http2-prior-knowledge", "http://shop/echo"}, []string{"200"}},
		{"h2c to a grpc port", []string{"--http2-prior-knowledge", "http://shop:81/echo"}, []string{"200", "HTTP/2.0"}},
		{"head", []string{"--head", "http://shop/big?n=1000000"}, []string{"200", "Content-Length: 1000000"}},
		{"upload", []string{"-T", file, "http://shop/echo"}, []string{"200", "PUT HTTP/1.1 length=1048576", "X-Body: 1048576"}},
		{"chunked", []string{"-H", "Transfer-Encoding: chunked", "-T", file, "http://shop/echo"}, []string{"200", "X-Body: 1048576"}},
		{"expect", []string{"-H", "Expect: 100-continue", "--expect100-timeout", "20", "-T", file, "http://shop/echo"}, []string{"100 Continue", "200", "X-Body: 1048576"}},
		{"early hints", []string{"http://shop/hints"}, []string{"HTTP/1.1 103", "rel=preload", "200 OK"}},
		{"trailers", []string{"--raw", "http://shop/trailers"}, []string{"200", "X-Sum: 42"}},
		{"unknown path", []string{"http://shop/none"}, []string{"404"}},
		{"keep-alive", []string{"http://shop/echo", "-o", "/dev/null", "http://shop/echo"}, []string{"200", "Re-using"}},
	}
	serveHTTP(t, w.server.listen(t, ":8081"))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := w.client.exec(t, "", append([]string{"curl", "-sv", "--max-time", "60"}, tt.args...)...)
			text := strings.ReplaceAll(r.out+r.err, "\r", "")
			for _, want := range tt.want {
				if !strings.Contains(strings.ToLower(text), strings.ToLower(want)) {
					t.Errorf("%q is missing", want)
				}
			}
			if r.code != 0 || t.Failed() {
				t.Errorf("code %d\n%s", r.code, text[:min(len(text), 4000)])
			}
		})
	}
}

// run runs a script in the client, which says what is wrong.
func (w *world) script(t *testing.T, argv ...string) {
	t.Helper()
	if r := w.client.exec(t, "", argv...); r.code != 0 || !strings.HasSuffix(r.out, "ok\n") {
		t.Errorf("code %d\n%s\n%s", r.code, r.out, r.err)
	}
}

func (w *world) python(t *testing.T) {
	w.script(t, "python3", "-c", `
import http.client, urllib.request
c = http.client.HTTPConnection("shop", 80, timeout=20)
for i in range(20):                                   # one connection
    body = b"x" * (i * 1000)
    c.request("POST", "/echo", body)
    r = c.getresponse()
    assert r.status == 200, r.status
    assert r.read() == body, i
c.request("POST", "/echo", iter([b"a" * 70000, b"b" * 5]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
r = c.getresponse()
assert len(r.read()) == 70005
c.request("HEAD", "/big?n=123456")
r = c.getresponse()
assert r.getheader("Content-Length") == "123456" and r.read() == b""
c.request("GET", "/big?n=3000000")
assert len(c.getresponse().read()) == 3000000
assert urllib.request.urlopen("http://shop.default/echo", timeout=20).status == 200
print("ok")
`)
}

func (w *world) node(t *testing.T) {
	serveHTTP(t, w.server.listen(t, ":8081"))
	t.Run("http", func(t *testing.T) {
		w.script(t, "node", "-e", `
const http = require("http"), assert = require("assert");
const agent = new http.Agent({keepAlive: true, maxSockets: 4});
function call(n) {
  return new Promise((ok, no) => {
    const q = http.request({host: "shop", port: 80, path: "/echo", method: "POST", agent}, r => {
      let got = 0;
      r.on("data", d => got += d.length);
      r.on("end", () => { try { assert.equal(r.statusCode, 200); assert.equal(got, n); ok(); } catch (e) { no(e); } });
    });
    q.on("error", no);
    q.end(Buffer.alloc(n, "x"));
  });
}
Promise.all([...Array(40).keys()].map(i => call(i * 1777))).then(() => { agent.destroy(); console.log("ok"); });
`)
	})
	t.Run("http2", func(t *testing.T) {
		w.script(t, "node", "-e", `
const http2 = require("http2"), assert = require("assert");
const c = http2.connect("http://shop:81");
c.on("error", e => { console.log(e); process.exit(1); });
function call(n) {
  return new Promise((ok, no) => {
    const s = c.request({":path": "/echo", ":method": "POST"});
    let got = 0, status = 0;
    s.on("response", h => status = h[":status"]);
    s.on("data", d => got += d.length);
    s.on("end", () => { try { assert.equal(status, 200); assert.equal(got, n); ok(); } catch (e) { no(e); } });
    s.on("error", no);
    s.end(Buffer.alloc(n, "x"));
  });
}
Promise.all([...Array(60).keys()].map(i => call(i * 3333))).then(() => c.close(() => console.log("ok")), e => { console.log(e); process.exit(1); });
`)
	})
}

// serverFirst is a database in which the server greets, as MySQL does.
func (w *world) serverFirst(t *testing.T) {
	greet := func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "J\x00\x00\x00\x098.0.36\x00greetings\n")
		line, err := bufio.NewReader(c).ReadString('\n')
		if err == nil {
			_, _ = io.WriteString(c, "you said "+line)
		}
	}
	serveTCP(t, w.server.listen(t, ":8082"), greet)
	serveTCP(t, w.server.listen(t, ":7000"), greet)
	serveTCP(t, w.server.listen(t, "127.0.0.1:7001"), greet)
	talk := func(c net.Conn) error {
		r := bufio.NewReader(c)
		line, err := r.ReadString('\n')
		if err != nil || !strings.HasSuffix(line, "greetings\n") {
			return fmt.Errorf("greeting %q: %w", line, err)
		}
		if _, err := io.WriteString(c, "select 1\n"); err != nil {
			return err
		}
		if line, err = r.ReadString('\n'); line != "you said select 1\n" {
			return fmt.Errorf("answer %q: %w", line, err)
		}
		return nil
	}
	try := func(address string, f func(net.Conn) error) func() error {
		return func() error {
			c, err := w.client.dial(t.Context(), "tcp", address)
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			return f(c)
		}
	}
	unknown := w.server.address(t, "tcp4") + ":7000"
	t.Run("PERMISSIVE", func(t *testing.T) {
		eventually(t, "a port without a protocol", try("shop:82", talk))
		eventually(t, "a port that no service declares", try(unknown, talk))
	})
	t.Run("STRICT", func(t *testing.T) {
		w.apply(meshMode("STRICT"))
		defer w.removeFrom("istio-system", "PeerAuthentication", "default")
		eventually(t, "a port without a protocol", try("shop:82", talk))
		// What no service declares is not known to be in the mesh, so that it is plaintext, and refused.
		eventually(t, "a port that no service declares is refused", try(unknown, func(c net.Conn) error {
			_, _ = io.WriteString(c, "select 1\n")
			if text, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) || len(text) > 0 {
				return fmt.Errorf("%q, %w", text, err)
			}
			return nil
		}))
	})
}

// meshMode is how the whole mesh takes connections.
func meshMode(mode string) string {
	return `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: istio-system}, spec: {mtls: {mode: ` + mode + `}}}`
}

// removeFrom deletes an object of a namespace.
func (m *rig) removeFrom(namespace, kind, name string) {
	m.t.Helper()
	if out, code := m.lateen("delete", "-n", namespace, kind, name); code != 0 {
		m.t.Fatalf("delete %s %s/%s: code %d\n%s", kind, namespace, name, code, out)
	}
}

func (w *world) echo(t *testing.T) {
	echo := func(c *net.TCPConn) { // Answers only after the client's end.
		text, err := io.ReadAll(c)
		if err == nil {
			_, _ = c.Write(text)
		}
	}
	serveTCP(t, w.server.listen(t, ":8083"), echo)
	serveTCP(t, w.server.listen(t, ":8084"), echo)
	serveTCP(t, w.server.listen(t, ":7002"), echo)
	for _, address := range []string{"shop:83", "shop:84", w.server.address(t, "tcp4") + ":7002", "[" + w.server.address(t, "tcp6") + "]:7002"} {
		t.Run(address, func(t *testing.T) {
			c := w.client.mustDial(t, address)
			want, err := io.ReadAll(io.LimitReader(&pattern{}, 1<<20))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = c.Write(want)
				_ = c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
			}
		})
	}
}

func (w *world) gibibyte(t *testing.T) {
	const size = 1 << 30
	// bound is what a proxy may hold on top of what it holds idle, in MiB: some buffers of a connection.
	const bound = 40
	want := hashOf(size)
	before := [2]float64{w.client.memory(t), w.server.memory(t)}
	peak := make(chan [2]float64, 1)
	stop := make(chan struct{})
	go func() {
		var most [2]float64
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				most[0], most[1] = max(most[0], w.client.memory(t)), max(most[1], w.server.memory(t))
			case <-stop:
				peak <- most
				return
			}
		}
	}()
	t.Run("download", func(t *testing.T) {
		r := w.client.exec(t, "", "sh", "-c", fmt.Sprintf("curl -sf --max-time 120 'http://shop/big?n=%d' | sha256sum", size))
		if got, _, _ := strings.Cut(r.out, " "); r.code != 0 || got != want {
			t.Errorf("code %d, %q %q, want %s", r.code, r.out, r.err, want)
		}
	})
	t.Run("upload", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://shop/hash", io.LimitReader(&pattern{}, size))
		if err != nil {
			t.Fatal(err)
		}
		client := w.client.http()
		client.Timeout = 0
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if text, err := io.ReadAll(res.Body); err != nil || string(text) != fmt.Sprintf("%d %s <nil>", size, want) {
			t.Errorf("%s: %q, %v, want %s", res.Status, text, err, want)
		}
	})
	close(stop)
	most := <-peak
	t.Logf("resident memory, client's and server's proxy: before %.1f and %.1f MiB, at most %.1f and %.1f MiB; bound: %d MiB more",
		before[0], before[1], most[0], most[1], bound)
	for i := range most {
		if most[i] > before[i]+bound {
			t.Errorf("a proxy grew from %.1f to %.1f MiB", before[i], most[i])
		}
	}
}

func (w *world) brokenServers(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\n"
	tests := []struct {
		name string
		f    func(c *net.TCPConn)
		ok   func(res *http.Response, body []byte, err error) bool
	}{
		{"dies in a body with a length", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, head+"Content-Length: 1000\r\n\r\nhalf")
		}, func(res *http.Response, _ []byte, err error) bool { return res.StatusCode == 200 && err != nil }},
		{"dies in a chunk", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, head+"Transfer-Encoding: chunked\r\n\r\n64\r\nhalf")
		}, func(res *http.Response, _ []byte, err error) bool { return res.StatusCode == 200 && err != nil }},
		{"dies between chunks", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, head+"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
		}, func(res *http.Response, _ []byte, err error) bool { return res.StatusCode == 200 && err != nil }},
		{"ends a body without a length", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, head+"\r\nall of it")
		}, func(res *http.Response, body []byte, err error) bool {
			return res.StatusCode == 200 && string(body) == "all of it" && err == nil
		}},
		{"resets in a body", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, head+"Content-Length: 1000\r\n\r\nhalf")
			_ = c.SetLinger(0)
		}, func(res *http.Response, _ []byte, err error) bool { return res.StatusCode >= 500 || err != nil }},
		{"dies in the head", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, head+"Content-")
		}, func(res *http.Response, _ []byte, _ error) bool {
			return res.StatusCode == 502 || res.StatusCode == 503
		}},
		{"answers nothing", func(*net.TCPConn) {}, func(res *http.Response, _ []byte, _ error) bool {
			return res.StatusCode == 502 || res.StatusCode == 503
		}},
		{"resets at once", func(c *net.TCPConn) { _ = c.SetLinger(0) }, func(res *http.Response, _ []byte, _ error) bool {
			return res.StatusCode == 502 || res.StatusCode == 503
		}},
		{"answers garbage", func(c *net.TCPConn) { _, _ = io.WriteString(c, "\x00\x01\x02 garbage\r\n\r\n") }, func(res *http.Response, _ []byte, _ error) bool {
			return res.StatusCode == 502 || res.StatusCode == 503
		}},
		{"smuggles", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, head+"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde")
		}, func(res *http.Response, _ []byte, _ error) bool {
			return res.StatusCode == 502 || res.StatusCode == 503
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			serveTCP(t, w.server.listen(t, ":8088"), func(c *net.TCPConn) {
				if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					_, _ = io.Copy(io.Discard, req.Body)
					tt.f(c)
				}
			})
			res, err := w.client.http().Post("http://shop:88/", "text/plain", strings.NewReader("once"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if !tt.ok(res, body, err) {
				t.Errorf("%s %q %v; %q", res.Status, res.Header.Get("X-Lateen-Reason"), err, body)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		res, err := w.client.http().Get("http://shop:88/")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusServiceUnavailable && res.StatusCode != http.StatusBadGateway {
			t.Errorf("%s", res.Status)
		}
	})
}

func (w *world) brokenClients(t *testing.T) {
	t.Run("half-closed after the request", func(t *testing.T) { // Taken for gone, as by Envoy and nginx; at once.
		c := w.client.mustDial(t, "shop:80")
		if _, err := io.WriteString(c, "GET /big?n=500000 HTTP/1.1\r\nHost: shop\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v", err)
		}
	})
	t.Run("resets in the answer", func(t *testing.T) {
		for range 20 {
			c := w.client.mustDial(t, "shop:80")
			if _, err := io.WriteString(c, "GET /big?n=50000000 HTTP/1.1\r\nHost: shop\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	})
	t.Run("leaves in the request", func(t *testing.T) {
		c := w.client.mustDial(t, "shop:80")
		if _, err := io.WriteString(c, "POST /echo HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000\r\n\r\nhalf"); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	})
	for name, text := range map[string]string{
		"no request":          "\x16\x03 what is this\r\n\r\n",
		"two lengths":         "POST /echo HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"length and chunks":   "POST /echo HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"space before colon":  "GET /echo HTTP/1.1\r\nHost : shop\r\n\r\n",
		"a header of 1 MiB":   "GET /echo HTTP/1.1\r\nHost: shop\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"bad chunk":           "POST /echo HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"frames after no 101": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			c := w.client.mustDial(t, "shop:80")
			go func() { _, _ = io.WriteString(c, text) }()
			got, err := io.ReadAll(c)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the proxy neither answers nor ends: %q", got)
			}
			if strings.Contains(string(got), " 200 ") {
				t.Errorf("it was taken: %q", got)
			}
		})
	}
	res, err := w.client.http().Get("http://shop/echo")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("afterwards: %v, %v", res, err)
	}
	_ = res.Body.Close()
}

// garbage is what somebody outside the workload sends to its proxy's ports.
func (w *world) garbage(t *testing.T) {
	own := w.server.address(t, "tcp4")
	for _, port := range []string{"15001", "15006", "15000", "15053", "8080"} {
		for name, text := range map[string]string{
			"zeros": string(make([]byte, 5000)), "http": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "tls": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
			"h2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\xff\x04\x00\x00\x00\x00\x00", "nothing": "",
		} {
			t.Run(port+" "+name, func(t *testing.T) {
				c, err := w.client.dial(t.Context(), "tcp", net.JoinHostPort(own, port))
				if err != nil {
					return // Refused: as good.
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(wait))
				_, err = io.WriteString(c, text)
				if err == nil {
					_ = c.(*net.TCPConn).CloseWrite()
					_, err = io.ReadAll(c)
				}
				if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("%v", err)
				}
			})
		}
	}
	res, err := w.client.http().Get("http://shop/echo")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("afterwards: %v, %v", res, err)
	}
	_ = res.Body.Close()
}

func (w *world) dns(t *testing.T) {
	look := func(t *testing.T, argv ...string) result { return w.client.exec(t, "", argv...) }
	for _, name := range []string{"shop", "shop.default", "shop.default.svc", "shop.default.svc.cluster.local"} {
		for _, family := range []string{"ahostsv4", "ahostsv6"} {
			t.Run(family+" "+name, func(t *testing.T) {
				r := look(t, "getent", family, name)
				if r.code != 0 || r.out == "" {
					t.Errorf("code %d: %q %q", r.code, r.out, r.err)
				}
			})
		}
	}
	t.Run("over tcp", func(t *testing.T) {
		r := look(t, "dig", "+tcp", "+short", "+time=5", "shop.default.svc.cluster.local")
		if net.ParseIP(strings.TrimSpace(r.out)) == nil {
			t.Errorf("code %d: %q", r.code, r.out)
		}
	})
	t.Run("another record", func(t *testing.T) {
		r := look(t, "dig", "+time=5", "+tries=1", "shop.default.svc.cluster.local", "MX")
		if !strings.Contains(r.out, "status: NOERROR") || !strings.Contains(r.out, "ANSWER: 0") {
			t.Errorf("code %d: %q", r.code, r.out)
		}
	})
	t.Run("a foreign name that nobody answers for", func(t *testing.T) {
		began := time.Now()
		r := look(t, "dig", "+time=10", "+tries=1", "example.com")
		if !strings.Contains(r.out, "status: SERVFAIL") {
			t.Errorf("code %d after %s: %q", r.code, time.Since(began), r.out)
		}
	})
}
