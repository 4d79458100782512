package loop

import (
	"bytes"
	"context"
	"crypto/fips140"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/proxy/tls13"
)

// TestWhoseRecords says when our record layer goes on, and runs itself once more in FIPS 140 mode, where it must not.
func TestWhoseRecords(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	for _, tt := range []struct {
		version uint16
		stdlib  bool
		ours    bool
	}{{tls.VersionTLS13, false, true}, {tls.VersionTLS13, true, false}, {tls.VersionTLS12, false, false}} {
		name := fmt.Sprintf("%s, stdlib %v", tls.VersionName(tt.version), tt.stdlib)
		t.Run(name, func(t *testing.T) {
			l := start(t, Config{StdlibTLS: tt.stdlib})
			accept, done := secure(serverTLS, 0, echo{})
			var conn *Conn
			cfg := clientTLS.Clone()
			cfg.MaxVersion = tt.version
			c := tls.Client(dial(t, listen(t, l, func(c *Conn) Handler { conn = c; return accept(c) })), cfg)
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			if err := await(t, "handshake", done); err != nil {
				t.Fatal(err)
			}
			on(t, l, func() {
				_, ours := conn.transport.(*recordTransport)
				if want := tt.ours && !fips140.Enabled(); ours != want {
					t.Errorf("the transport is %T", conn.transport)
				}
			})
			if got, err := exchange(c, []byte("hello")); err != nil || string(got) != "hello" {
				t.Errorf("echo: %q, %v", got, err)
			}
		})
	}
	if fips140.Enabled() {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	again := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestWhoseRecords$")
	again.Env = append(os.Environ(), "GODEBUG=fips140=on")
	if out, err := again.CombinedOutput(); err != nil {
		t.Errorf("in FIPS 140 mode: %v\n%s", err, out)
	}
}

// Each layer against each, both ways.
func TestRecordsBetweenLoops(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	for _, tt := range []struct {
		server, client Config
	}{
		{Config{}, Config{}},
		{Config{StdlibTLS: true}, Config{}},
		{Config{}, Config{StdlibTLS: true}},
		{Config{ReadBytes: 1000}, Config{ReadBytes: 100}},
	} {
		t.Run(fmt.Sprintf("%v %d, %v %d", tt.server.StdlibTLS, tt.server.ReadBytes, tt.client.StdlibTLS, tt.client.ReadBytes), func(t *testing.T) {
			a, b := start(t, tt.server), start(t, tt.client)
			accept, _ := secure(serverTLS, 0, echo{})
			addr := listen(t, a, accept)
			s := newSender(random(3 << 20))
			want := s.left
			b.Post(func() {
				b.Dial(addr, DialOptions{}, func(c *Conn, err error) {
					if err != nil {
						s.done <- err
						return
					}
					c.SetHandler(s)
					c.StartTLSClient(clientTLS, 0, func(err error) {
						if err == nil {
							s.pump(c)
						}
					})
				})
			})
			if err := await(t, "OnClose", s.done); err != nil {
				t.Fatal(err)
			}
			same(t, "echo", s.received, want)
		})
	}
}

// Much to crypto/tls and from it.
func TestRecordsLong(t *testing.T) {
	const size = 64 << 20
	block := random(1<<20 + 13)
	serverTLS, clientTLS := certify(t)
	for _, fromLoop := range []bool{true, false} {
		t.Run(fmt.Sprintf("from the loop %v", fromLoop), func(t *testing.T) {
			sent, received := sha256.New(), sha256.New()
			l := start(t, Config{})
			left := size
			next := func() []byte {
				p := block[:min(left, len(block))]
				left -= len(p)
				sent.Write(p)
				return p
			}
			pump := func(c *Conn) {
				for left > 0 && !c.Full() {
					c.Write(next())
				}
				if left == 0 {
					c.CloseWrite()
				}
			}
			end := make(chan error, 1)
			accept, done := secure(serverTLS, 0, &probe{
				data:  func(_ *Conn, p []byte) int { received.Write(p); return len(p) },
				drain: func(c *Conn) { pump(c) },
				eof:   func(c *Conn) { c.Close() },
				close: func(_ *Conn, err error) { end <- err },
			})
			var conn *Conn
			c := tls.Client(dial(t, listen(t, l, func(c *Conn) Handler { conn = c; return accept(c) })), clientTLS)
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			if err := await(t, "handshake", done); err != nil {
				t.Fatal(err)
			}
			if fromLoop {
				l.Post(func() { pump(conn) })
				if _, err := io.Copy(received, c); err != nil {
					t.Fatal(err)
				}
			} else {
				for left > 0 {
					if _, err := c.Write(next()); err != nil {
						t.Fatal(err)
					}
				}
			}
			_ = c.CloseWrite()
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Error(err)
			}
			if err := await(t, "OnClose", end); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
				t.Error("what came is not what was sent")
			}
		})
	}
}

// client is an ordinary connection of l to addr by TLS; say sends text and returns what comes next.
func client(t *testing.T, l *Loop, addr netip.AddrPort, cfg *tls.Config) (state *tls.ConnectionState, say func(text string) string) {
	t.Helper()
	type result struct {
		c   *Conn
		err error
	}
	received := make(chan string, 100)
	done := make(chan result, 1)
	l.Post(func() {
		l.Dial(addr, DialOptions{}, func(c *Conn, err error) {
			if err != nil {
				done <- result{err: err}
				return
			}
			c.SetHandler(&probe{data: func(_ *Conn, p []byte) int { received <- string(p); return len(p) }})
			c.StartTLSClient(cfg, 0, func(err error) { done <- result{c, err} })
		})
	})
	r := await(t, "handshake", done)
	if r.err != nil {
		t.Fatal(r.err)
	}
	on(t, l, func() { state = r.c.TLS() })
	return state, func(text string) string {
		t.Helper()
		l.Post(func() { r.c.Write([]byte(text)) })
		return await(t, "OnData", received)
	}
}

// Sessions resume: ours and those of crypto/tls, with a certificate of the client (its tickets come later) and without.
func TestRecordsResume(t *testing.T) {
	for _, mutual := range []bool{false, true} {
		t.Run(fmt.Sprintf("mutual %v", mutual), func(t *testing.T) {
			serverTLS, clientTLS := certify(t)
			if mutual {
				serverTLS.ClientAuth = tls.RequireAndVerifyClientCert
			}
			clientTLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			l := start(t, Config{})
			addr := listen(t, l, func(c *Conn) Handler {
				c.StartTLSServer(serverTLS, 0, func(err error) {
					if err != nil {
						t.Error(err)
					}
				})
				return echo{}
			})
			for i := range 4 {
				state, say := client(t, l, addr, clientTLS)
				if state.DidResume != (i > 0) {
					t.Errorf("connection %d: resumed %v", i, state.DidResume)
				}
				if got := say("hello"); got != "hello" {
					t.Errorf("echo: %q", got)
				}
			}
		})
	}
}

// Once the first data has come, crypto/tls is out of use, on the client's side too.
func TestRecordsLetCryptoTLSGo(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	clientTLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	l := start(t, Config{})
	accept, _ := secure(serverTLS, 0, echo{})
	addr := listen(t, l, accept)
	gone := make(chan struct{})
	_, say := client(t, l, addr, traced(clientTLS, gone))
	if got := say("hello"); got != "hello" {
		t.Errorf("echo: %q", got)
	}
	eventually(t, "crypto/tls is gone", func() bool {
		runtime.GC()
		select {
		case <-gone:
			return true
		default:
			return false
		}
	})
}

// traced returns a copy of cfg that closes gone when nobody refers to it any more.
func traced(cfg *tls.Config, gone chan struct{}) *tls.Config {
	marker := new([64]byte)
	runtime.AddCleanup(marker, func(gone chan struct{}) { close(gone) }, gone)
	cfg = cfg.Clone()
	cfg.VerifyConnection = func(tls.ConnectionState) error { marker[0]++; return nil }
	return cfg
}

// glued sends the client's second flight together with what it writes next.
type glued struct {
	net.Conn
	writes int
	held   []byte
}

func (g *glued) Write(p []byte) (int, error) {
	if g.writes++; g.writes == 2 {
		g.held = bytes.Clone(p)
		return len(p), nil
	}
	_, err := g.Conn.Write(append(g.held, p...))
	g.held = nil
	return len(p), err
}

// The first data comes in the same packet as the end of the handshake, some of it incomplete.
func TestRecordsBehindHandshake(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	serverTLS.ClientAuth = tls.RequireAnyClientCert
	for _, size := range []int{1, 1000, 5000, 60_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l := start(t, Config{})
			accept, _ := secure(serverTLS, 0, echo{})
			c := tls.Client(&glued{Conn: dial(t, listen(t, l, accept))}, clientTLS)
			data := random(size)
			wrote := make(chan error, 1)
			go func() { _, err := c.Write(data); wrote <- err }()
			if err := await(t, "Write", wrote); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, size)
			if _, err := io.ReadFull(c, got); err != nil {
				t.Fatal(err)
			}
			same(t, "echo", got, data)
		})
	}
}

// What is written in one batch shares records, of which the first are short.
func TestRecordSizes(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	serverTLS.SessionTicketsDisabled = true
	for _, tt := range []struct {
		name                string
		pieces, size, slow  int
		first, last, number int // expected payloads, and how many records
	}{
		{"small pieces", 100, 10, 0, 1000, 1000, 1},
		{"a large one", 1, 10_000, 0, slowBytes, 10_000 - 2*slowBytes, 3},
		{"much", 10, 100_000, slowRecords, slowBytes, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{})
			accept, _ := secure(serverTLS, 0, &probe{data: func(c *Conn, p []byte) int {
				for range tt.pieces {
					c.Write(make([]byte, tt.size))
				}
				c.Close()
				return len(p)
			}})
			var wire bytes.Buffer
			c := tls.Client(recorded{dial(t, listen(t, l, accept)), &wire}, clientTLS)
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			wire.Reset()
			if _, err := c.Write([]byte("go")); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(c); err != nil || len(got) != tt.pieces*tt.size {
				t.Fatalf("read %d bytes, %v", len(got), err)
			}
			var sizes []int
			for p := wire.Bytes(); len(p) >= tls13.HeaderBytes; {
				n := int(p[3])<<8 + int(p[4])
				sizes = append(sizes, n-tls13.TrailerBytes)
				p = p[tls13.HeaderBytes+n:]
			}
			sizes = sizes[:len(sizes)-1] // close_notify
			if tt.number > 0 {
				if diff := cmp.Diff([]int{tt.number, tt.first, tt.last}, []int{len(sizes), sizes[0], sizes[len(sizes)-1]}); diff != "" {
					t.Errorf("records, first, last (-want +got):\n%s", diff)
				}
				return
			}
			for i, n := range sizes[:len(sizes)-1] {
				if slow := i < tt.slow; slow != (n <= tt.first) || !slow && n < chunkBytes/2 {
					t.Errorf("record %d holds %d bytes", i, n)
				}
			}
		})
	}
}

// foreign is a client that shakes hands by crypto/tls and then makes its records itself, right or wrong.
func foreign(t *testing.T, addr netip.AddrPort, cfg *tls.Config) (*net.TCPConn, *tls13.Session) {
	t.Helper()
	tcp := dial(t, addr)
	secrets := &tls13.Secrets{}
	c := tls.Client(tcp, secrets.Tap(cfg, false))
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	s, err := tls13.New(tls13.Config{Suite: c.ConnectionState().CipherSuite, Client: true, Secrets: secrets})
	if err != nil {
		t.Fatal(err)
	}
	return tcp, s
}

func TestKeyUpdateFlood(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	serverTLS.SessionTicketsDisabled = true
	l := start(t, Config{})
	closed := make(chan error, 1)
	accept, _ := secure(serverTLS, 0, &probe{close: func(_ *Conn, err error) { closed <- err }})
	tcp, s := foreign(t, listen(t, l, accept), clientTLS)
	var out []byte
	for range 1000 {
		var err error
		if out, err = s.AppendUpdate(out); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tcp.Write(out); err != nil {
		t.Fatal(err)
	}
	var refused *tls13.Error
	if err := await(t, "OnClose", closed); !errors.As(err, &refused) {
		t.Errorf("OnClose: %v", err)
	}
	in, err := io.ReadAll(tcp)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Open(make([]byte, len(in)), in); !errors.Is(err, refused) && !errors.Is(err, refused.Alert) {
		t.Errorf("the peer hears %v, want %v", err, refused.Alert)
	}
}

// Nobody waits for the rest of a record that cannot be one.
func TestPlaintextAfterHandshake(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	serverTLS.SessionTicketsDisabled = true
	for _, text := range []string{"\x14\x03\x03\x00\x01\x01", "GET / HTTP/1.1\r\n", "\x15\x03\x03\x00\x02\x01\x00", "\x17\x03\x03\xff\xff"} {
		t.Run(fmt.Sprintf("%x", text), func(t *testing.T) {
			l := start(t, Config{})
			closed := make(chan error, 1)
			accept, _ := secure(serverTLS, 0, &probe{close: func(_ *Conn, err error) { closed <- err }})
			tcp, s := foreign(t, listen(t, l, accept), clientTLS)
			if _, err := io.WriteString(tcp, text); err != nil {
				t.Fatal(err)
			}
			var refused *tls13.Error
			if err := await(t, "OnClose", closed); !errors.As(err, &refused) {
				t.Fatalf("OnClose: %v", err)
			}
			_ = tcp.CloseWrite()
			in, err := io.ReadAll(tcp)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := s.Open(make([]byte, len(in)), in); !errors.Is(err, refused.Alert) {
				t.Errorf("the peer hears %v, want %v", err, refused.Alert)
			}
		})
	}
}

var opensslSuites = []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}

// Each suite with OpenSSL as the client: at first, and resumed.
func TestOpenSSLClient(t *testing.T) {
	path := openssl(t)
	serverTLS, _ := certify(t)
	for _, suite := range opensslSuites {
		t.Run(suite, func(t *testing.T) {
			l := start(t, Config{})
			addr := listen(t, l, func(c *Conn) Handler {
				c.StartTLSServer(serverTLS, 0, func(error) {})
				return echo{}
			})
			session := filepath.Join(t.TempDir(), "session.pem")
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			run := func(flag, greeting string) {
				t.Helper()
				in, until := watch(t, exec.CommandContext(ctx, path, "s_client", "-connect", addr.String(), "-tls1_3", "-ciphersuites", suite, flag, session))
				until(greeting + ", TLSv1.3, Cipher is " + suite)
				for _, text := range []string{"one\n", "two\n", "three\n"} {
					_, _ = io.WriteString(in, text)
					until(text)
				}
				if flag == "-sess_out" {
					eventually(t, "session file", func() bool { i, err := os.Stat(session); return err == nil && i.Size() > 0 })
				}
			}
			run("-sess_out", "New")
			run("-sess_in", "Reused")
		})
	}
}

// Each suite with OpenSSL as the server: at first, and resumed.
func TestOpenSSLServer(t *testing.T) {
	path := openssl(t)
	serverTLS, clientTLS := certify(t)
	cert, key := writePEM(t, serverTLS)
	for _, suite := range opensslSuites {
		t.Run(suite, func(t *testing.T) {
			fd, addr := listenFD(t, 1)
			closeFD(t, fd) // its port is free, most likely
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			// -rev answers each line with its reverse.
			_, until := watch(t, exec.CommandContext(ctx, path, "s_server", "-accept", addr.String(), "-cert", cert, "-key", key,
				"-tls1_3", "-ciphersuites", suite, "-rev"))
			until("ACCEPT")
			cfg := clientTLS.Clone()
			cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			for i := range 2 {
				l := start(t, Config{})
				state, say := client(t, l, addr, cfg)
				if state.DidResume != (i > 0) || tls.CipherSuiteName(state.CipherSuite) != suite {
					t.Errorf("connection %d: resumed %v, %s", i, state.DidResume, tls.CipherSuiteName(state.CipherSuite))
				}
				for _, text := range [][2]string{{"one\n", "eno\n"}, {"two\n", "owt\n"}} {
					if got := say(text[0]); got != text[1] {
						t.Errorf("received %q, want %q", got, text[1])
					}
				}
				on(t, l, func() { l.stop() }) // s_server serves one after the other
			}
		})
	}
}
