package loop

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// secure has a handler's connection speak TLS as a server and reports what came of it.
func secure(cfg *tls.Config, timeout time.Duration, h Handler) (accept func(c *Conn) Handler, done chan error) {
	done = make(chan error, 1)
	return func(c *Conn) Handler {
		c.StartTLSServer(cfg, timeout, func(err error) { done <- err })
		return h
	}, done
}

// pieces writes in small pieces, so that records arrive torn.
type pieces struct {
	*net.TCPConn
	size int
}

func (p pieces) Write(b []byte) (int, error) {
	for off := 0; off < len(b); off += p.size {
		if _, err := p.TCPConn.Write(b[off:min(off+p.size, len(b))]); err != nil {
			return off, err
		}
	}
	return len(b), nil
}

func TestTLSEchoServer(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	for _, tt := range []struct {
		name    string
		version uint16
		piece   int // the client writes that many bytes at a time
		bytes   int
	}{
		{"1.3", tls.VersionTLS13, 1 << 20, 1 << 20},
		{"1.2", tls.VersionTLS12, 1 << 20, 1 << 20},
		{"1.3 in pieces", tls.VersionTLS13, 7, 40 << 10},
		{"1.2 in pieces", tls.VersionTLS12, 7, 40 << 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{})
			accept, done := secure(serverTLS, 0, echo{})
			var conn *Conn
			addr := listen(t, l, func(c *Conn) Handler { conn = c; return accept(c) })
			cfg := clientTLS.Clone()
			cfg.MaxVersion = tt.version
			c := tls.Client(pieces{dial(t, addr), tt.piece}, cfg)
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			if err := await(t, "handshake", done); err != nil {
				t.Fatal(err)
			}
			on(t, l, func() {
				if s := conn.TLS(); s == nil || s.Version != tt.version || s.ServerName != "lateen.test" || s != conn.TLS() {
					t.Errorf("TLS: %+v", s)
				}
			})
			data := random(tt.bytes)
			got, err := exchange(c, data)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "echo", got, data)
		})
	}
}

func TestTLSEchoClient(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	serverTLS.ClientAuth = tls.RequireAndVerifyClientCert
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			l := start(t, Config{})
			addr := serve(t, func(c net.Conn) {
				s := tls.Server(c, serverTLS)
				_, _ = io.Copy(s, s)
				_ = s.CloseWrite()
				_, _ = io.Copy(io.Discard, c)
			})
			cfg := clientTLS.Clone()
			cfg.MaxVersion = version
			s := newSender(random(1 << 20))
			want := s.left
			l.Post(func() {
				l.Dial(addr, DialOptions{}, func(c *Conn, err error) {
					if err != nil {
						s.done <- err
						return
					}
					c.SetHandler(s)
					c.StartTLSClient(cfg, 0, func(err error) {
						if err != nil || len(c.TLS().PeerCertificates) != 1 {
							t.Errorf("handshake: %v", err)
						}
					})
					if c.TLS() != nil {
						t.Error("TLS state before the handshake")
					}
					s.pump(c) // before the handshake
				})
			})
			if err := await(t, "OnClose", s.done); err != nil {
				t.Fatal(err)
			}
			same(t, "echo", s.received, want)
		})
	}
}

// A handshake whose flight does not fit in the socket's buffer waits for the peer to read. Callbacks see the addresses.
func TestTLSLongFlight(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	long := serverTLS.Certificates[0]
	for range 400 {
		long.Certificate = append(long.Certificate, long.Certificate[0])
	}
	seen := make(chan string, 2)
	cfg := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		seen <- hello.Conn.LocalAddr().String()
		seen <- hello.Conn.RemoteAddr().String()
		return &long, nil
	}}
	l := start(t, Config{})
	accept, done := secure(cfg, 0, echo{})
	addr := listen(t, l, func(c *Conn) Handler {
		if err := unix.SetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 4096); err != nil {
			t.Error(err)
		}
		return accept(c)
	})
	tcp := dial(t, addr)
	c := tls.Client(tcp, clientTLS)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "handshake", done); err != nil {
		t.Error(err)
	}
	if got := await(t, "local address", seen); got != addr.String() {
		t.Errorf("LocalAddr: %s, want %s", got, addr)
	}
	if got := await(t, "remote address", seen); got != tcp.LocalAddr().String() {
		t.Errorf("RemoteAddr: %s, want %s", got, tcp.LocalAddr())
	}
}

func TestTLSBetweenLoops(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	a, b := start(t, Config{}), start(t, Config{})
	accept, _ := secure(serverTLS, 0, echo{})
	addr := listen(t, a, accept)
	s := newSender(random(4 << 20))
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
}

func TestTLSHalfClose(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	t.Run("by the peer", func(t *testing.T) {
		l := start(t, Config{})
		accept, _ := secure(serverTLS, 0, &probe{eof: func(c *Conn) { c.Write([]byte("late")); c.Close() }})
		c := tls.Client(dial(t, listen(t, l, accept)), clientTLS)
		got, err := exchange(c, []byte("early"))
		if err != nil || string(got) != "late" {
			t.Errorf("peer read %q, %v; want what was written after its close_notify", got, err)
		}
	})
	t.Run("by the peer's FIN", func(t *testing.T) {
		l := start(t, Config{})
		accept, _ := secure(serverTLS, 0, &probe{eof: func(c *Conn) { c.Write([]byte("late")); c.Close() }})
		tcp := dial(t, listen(t, l, accept))
		c := tls.Client(tcp, clientTLS)
		if _, err := c.Write([]byte("early")); err != nil {
			t.Fatal(err)
		}
		_ = tcp.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != "late" {
			t.Errorf("peer read %q, %v; want what was written after its FIN", got, err)
		}
	})
	t.Run("by us", func(t *testing.T) {
		l := start(t, Config{})
		var got []byte
		done := make(chan string, 1)
		accept, _ := secure(serverTLS, 0, &probe{
			data: func(_ *Conn, p []byte) int { got = append(got, p...); return len(p) },
			eof:  func(c *Conn) { done <- string(got); c.Close() },
		})
		c := tls.Client(dial(t, listen(t, l, func(c *Conn) Handler {
			h := accept(c)
			c.Write([]byte("all")) // both wait for the handshake
			c.CloseWrite()
			if c.Buffered() != 3 {
				t.Errorf("%d bytes are buffered, want 3", c.Buffered())
			}
			return h
		})), clientTLS)
		if p, err := io.ReadAll(c); err != nil || string(p) != "all" {
			t.Fatalf("peer read %q, %v", p, err)
		}
		if _, err := c.Write([]byte("late")); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		if p := await(t, "OnEOF", done); p != "late" {
			t.Errorf("read %q after our close_notify, want %q", p, "late")
		}
	})
}

// The end of what we write is told in TLS too, not only by FIN, which anybody can forge.
func TestTLSEndsWithCloseNotify(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	clientTLS.MaxVersion = tls.VersionTLS12 // in which one can see from outside what a record is
	for _, tt := range []struct {
		name string
		end  func(c *Conn)
	}{{"CloseWrite", (*Conn).CloseWrite}, {"Close", (*Conn).Close}} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{})
			accept, _ := secure(serverTLS, 0, &probe{data: func(c *Conn, p []byte) int { c.Write(p); tt.end(c); return len(p) }})
			var wire bytes.Buffer
			c := tls.Client(recorded{dial(t, listen(t, l, accept)), &wire}, clientTLS)
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
				t.Fatalf("read %q, %v", got, err)
			}
			var kinds []byte
			for p := wire.Bytes(); len(p) >= 5; p = p[5+int(p[3])<<8+int(p[4]):] {
				kinds = append(kinds, p[0])
			}
			if !bytes.HasSuffix(kinds, []byte{23, 21}) { // application data, alert
				t.Errorf("records of types %d, want an alert behind the data", kinds)
			}
		})
	}
}

// recorded keeps what is read.
type recorded struct {
	*net.TCPConn
	to *bytes.Buffer
}

func (r recorded) Read(p []byte) (int, error) {
	n, err := r.TCPConn.Read(p)
	r.to.Write(p[:n])
	return n, err
}

func TestTLSTruncated(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	l := start(t, Config{})
	closed := make(chan error, 1)
	accept, _ := secure(serverTLS, 0, &probe{
		eof:   func(*Conn) { t.Error("OnEOF in the middle of a record") },
		close: func(_ *Conn, err error) { closed <- err },
	})
	tcp := dial(t, listen(t, l, accept))
	if err := tls.Client(tcp, clientTLS).Handshake(); err != nil {
		t.Fatal(err)
	}
	_, _ = tcp.Write([]byte{23, 3, 3, 0, 100, 1, 2, 3})
	_ = tcp.CloseWrite()
	if err := await(t, "OnClose", closed); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("OnClose: %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

func TestTLSForgedRecord(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	l := start(t, Config{})
	closed := make(chan error, 1)
	accept, _ := secure(serverTLS, 0, &probe{
		data:  func(_ *Conn, p []byte) int { t.Errorf("OnData with %q", p); return len(p) },
		close: func(_ *Conn, err error) { closed <- err },
	})
	tcp := dial(t, listen(t, l, accept))
	c := tls.Client(tcp, clientTLS)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	_, _ = tcp.Write(append([]byte{23, 3, 3, 0, 100}, make([]byte, 100)...))
	_, _ = tcp.Write(make([]byte, 1<<20)) // must not destroy the alert
	if err := await(t, "OnClose", closed); err == nil {
		t.Error("OnClose: no error")
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
		t.Errorf("peer read %v, want our alert", err)
	}
}

func TestHandshakeFails(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	strict := serverTLS.Clone()
	strict.ClientAuth = tls.RequireAndVerifyClientCert
	for _, tt := range []struct {
		name    string
		cfg     *tls.Config
		timeout time.Duration
		peer    func(c *net.TCPConn) error // reports what it saw
		want    func(err error) bool
		sees    string
	}{
		{
			"nothing comes", serverTLS, 30 * time.Millisecond,
			func(c *net.TCPConn) error { _, err := io.Copy(io.Discard, c); return err },
			func(err error) bool { return errors.Is(err, ErrTimeout) }, "",
		}, {
			"half a ClientHello", serverTLS, 30 * time.Millisecond,
			func(c *net.TCPConn) error {
				_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1})
				_, err := io.Copy(io.Discard, c)
				return err
			},
			func(err error) bool { return errors.Is(err, ErrTimeout) }, "",
		}, {
			"garbage", serverTLS, 0,
			func(c *net.TCPConn) error {
				_, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: lateen.test\r\n\r\n"))
				_, err := io.Copy(io.Discard, c)
				return err
			},
			func(err error) bool { _, ok := errors.AsType[tls.RecordHeaderError](err); return ok }, "",
		}, {
			"the peer leaves", serverTLS, 0,
			func(c *net.TCPConn) error { return c.CloseWrite() },
			func(err error) bool { return errors.Is(err, io.EOF) }, "",
		}, {
			"the peer resets", serverTLS, 0,
			func(c *net.TCPConn) error { _ = c.SetLinger(0); return c.Close() },
			func(err error) bool { return errors.Is(err, unix.ECONNRESET) }, "",
		}, {
			"no certificate", strict, 0,
			func(c *net.TCPConn) error {
				cfg := clientTLS.Clone()
				cfg.Certificates = nil
				tc := tls.Client(c, cfg)
				_, _ = tc.Write(make([]byte, 1<<20)) // 1.3: the client is done before the server refuses
				_, err := tc.Read(make([]byte, 1))
				return err
			},
			func(err error) bool { return strings.Contains(err.Error(), "certificate") }, "certificate required",
		}, {
			"renegotiation", &tls.Config{Renegotiation: tls.RenegotiateFreelyAsClient}, 0,
			func(c *net.TCPConn) error { _, err := io.Copy(io.Discard, c); return err },
			func(err error) bool { return strings.Contains(err.Error(), "RenegotiateNever") }, "",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{})
			closed := make(chan error, 1)
			accept, done := secure(tt.cfg, tt.timeout, &probe{
				data:  func(_ *Conn, p []byte) int { t.Errorf("OnData with %q", p); return len(p) },
				close: func(_ *Conn, err error) { closed <- err },
			})
			saw := make(chan error, 1)
			c := dial(t, listen(t, l, accept))
			go func() { saw <- tt.peer(c) }()
			err := await(t, "handshake", done)
			if err == nil || !tt.want(err) {
				t.Errorf("handshake: %v", err)
			}
			if cerr := await(t, "OnClose", closed); !errors.Is(cerr, err) {
				t.Errorf("OnClose: %v, want %v", cerr, err)
			}
			if err := await(t, "the peer", saw); tt.sees != "" && (err == nil || !strings.Contains(err.Error(), tt.sees)) {
				t.Errorf("the peer saw %v, want %q", err, tt.sees)
			}
		})
	}
}

func TestClientRefusesUnknownServer(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	clientTLS.RootCAs = x509.NewCertPool()
	l := start(t, Config{})
	saw := make(chan error, 1)
	addr := serve(t, func(c net.Conn) { saw <- tls.Server(c, serverTLS).Handshake() })
	done, closed := make(chan error, 1), make(chan error, 1)
	l.Post(func() {
		l.Dial(addr, DialOptions{}, func(c *Conn, err error) {
			if err != nil {
				t.Error(err)
				return
			}
			c.SetHandler(&probe{close: func(_ *Conn, err error) { closed <- err }})
			c.StartTLSClient(clientTLS, 0, func(err error) { done <- err })
		})
	})
	err := await(t, "handshake", done)
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		t.Errorf("handshake: %v, want an unknown authority", err)
	}
	if err := await(t, "the server", saw); err == nil || !strings.Contains(err.Error(), "bad certificate") {
		t.Errorf("the server saw %v, want our alert", err)
	}
	if cerr := await(t, "OnClose", closed); !errors.Is(cerr, err) {
		t.Errorf("OnClose: %v, want %v", cerr, err)
	}
}

func TestCloseDuringHandshake(t *testing.T) {
	serverTLS, _ := certify(t)
	for _, tt := range []struct {
		name  string
		close func(c *Conn)
	}{{"Close", (*Conn).Close}, {"Abort", (*Conn).Abort}} {
		for _, begun := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, begun %v", tt.name, begun), func(t *testing.T) {
				l := start(t, Config{})
				closed := make(chan error, 1)
				addr := listen(t, l, func(c *Conn) Handler {
					c.StartTLSServer(serverTLS, 0, func(err error) { t.Errorf("done was called with %v after Close", err) })
					c.Write([]byte("dropped"))
					if begun {
						l.After(5*time.Millisecond, func() { tt.close(c) })
					} else {
						tt.close(c)
					}
					return &probe{close: func(_ *Conn, err error) { closed <- err }}
				})
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer closeFD(t, fd)
				_ = unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
				if err := await(t, "OnClose", closed); err != nil {
					t.Errorf("OnClose: %v", err)
				}
				p := make([]byte, 1)
				if n, err := unix.Read(fd, p); n > 0 {
					t.Errorf("peer read %d bytes, %v", n, err)
				}
			})
		}
	}
}

// TestPeekedClientHello does what protocol detection does: look at the first bytes, leave them, and start TLS with them.
// A line in front of them, as of the PROXY protocol, is consumed first.
func TestPeekedClientHello(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	const line = "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"
	for _, tt := range []struct{ name, before string }{{"bare", ""}, {"after a PROXY line", line}} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{})
			addr := listen(t, l, func(*Conn) Handler {
				return &probe{data: func(c *Conn, p []byte) int {
					rest, found := bytes.CutPrefix(p, []byte(tt.before))
					if !found || len(rest) < 200 {
						return 0
					}
					if rest[0] != 22 {
						t.Errorf("first bytes: %x", rest[:5])
					}
					c.Write([]byte("OK\n"))                        // in plaintext
					c.StartTLSServer(serverTLS, 0, func(error) {}) // the ClientHello stays
					c.SetHandler(echo{})
					c.Write([]byte("hello\n")) // encrypted
					return len(p) - len(rest)
				}}
			})
			tcp := dial(t, addr)
			if _, err := io.WriteString(tcp, tt.before); err != nil {
				t.Fatal(err)
			}
			c := tls.Client(afterLine{tcp}, clientTLS)
			if _, err := c.Write([]byte("data\n")); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(c)
			for _, want := range []string{"hello\n", "data\n"} {
				if got, err := r.ReadString('\n'); got != want {
					t.Errorf("read %q, %v, want %q", got, err, want)
				}
			}
		})
	}
}

// afterLine discards the three bytes "OK\n" in front of what it reads.
type afterLine struct{ *net.TCPConn }

func (a afterLine) Read(p []byte) (int, error) {
	n, err := a.TCPConn.Read(p)
	if rest, found := bytes.CutPrefix(p[:n], []byte("OK\n")); found {
		if n = copy(p, rest); n == 0 && err == nil {
			return a.TCPConn.Read(p)
		}
	}
	return n, err
}

func TestTLSPauseRead(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	l := start(t, Config{})
	var conn *Conn
	var got []byte
	first, done := make(chan struct{}), make(chan struct{})
	accept, _ := secure(serverTLS, 0, &probe{
		data: func(c *Conn, p []byte) int {
			if got == nil {
				c.PauseRead()
				close(first)
			}
			got = append(got, p[:1]...)
			if len(p) > 1 && len(got) > 1 {
				got = append(got, p[1:]...)
				return len(p)
			}
			return 1
		},
		eof: func(c *Conn) { close(done); c.Close() },
	})
	c := tls.Client(dial(t, listen(t, l, func(c *Conn) Handler { conn = c; return accept(c) })), clientTLS)
	data := random(1 << 20)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		_ = c.CloseWrite()
		wrote <- err
	}()
	await(t, "first OnData", first)
	on(t, l, func() {
		if len(got) != 1 {
			t.Errorf("%d bytes consumed while paused", len(got))
		}
		conn.ResumeRead()
	})
	await(t, "OnEOF", done)
	if err := await(t, "the peer's Write", wrote); err != nil {
		t.Error(err)
	}
	same(t, "received", got, data)
}

func TestIdleTLSConnectionOwnsNothingOfTheLoop(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	for _, stdlib := range []bool{false, true} {
		t.Run(fmt.Sprintf("stdlib %v", stdlib), func(t *testing.T) {
			l := start(t, Config{StdlibTLS: stdlib})
			var conn *Conn
			accept, _ := secure(serverTLS, 0, echo{})
			c := tls.Client(dial(t, listen(t, l, func(c *Conn) Handler { conn = c; return accept(c) })), clientTLS)
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			on(t, l, func() {
				if conn.kept != nil || conn.out.head != nil || conn.handshake != nil {
					t.Errorf("an idle connection holds memory: %+v", conn)
				}
				switch r := conn.transport.(type) {
				case *recordTransport:
					if stdlib || r.early != nil || r.part != nil || r.begun {
						t.Errorf("idle records hold memory: %+v", r)
					}
				case *tlsTransport:
					if !stdlib || r.wire.in != nil || r.wire.flight != nil {
						t.Errorf("idle crypto/tls holds memory of ours: %+v", r.wire)
					}
				}
				if l.handshakes != 0 {
					t.Errorf("%d handshakes are counted", l.handshakes)
				}
			})
		})
	}
}

func TestTooManyHandshakes(t *testing.T) {
	serverTLS, _ := certify(t)
	l := start(t, Config{})
	on(t, l, func() { l.handshakes += handshakesMax })
	accept, done := secure(serverTLS, 0, &probe{})
	dial(t, listen(t, l, accept))
	if err := await(t, "handshake", done); !errors.Is(err, ErrBusy) {
		t.Errorf("handshake: %v, want %v", err, ErrBusy)
	}
	on(t, l, func() { l.handshakes -= handshakesMax })
}

// openssl finds OpenSSL's command line, which can do what crypto/tls cannot: ask for a KeyUpdate.
func openssl(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed:", err)
	}
	return path
}

// torn relays between the connections that it accepts and addr, a few bytes at a time.
func torn(t *testing.T, addr netip.AddrPort) netip.AddrPort {
	t.Helper()
	return serve(t, func(in net.Conn) {
		out := dial(t, addr)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(pieces{in.(*net.TCPConn), 3}, out)
			_ = in.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(pieces{out, 3}, in)
		_ = out.CloseWrite()
		await(t, "the other direction", done)
	})
}

// watch starts cmd and returns its standard input and a function that waits until its output contains want, one after
// the other, behind what it waited for before.
func watch(t *testing.T, cmd *exec.Cmd) (stdin io.Writer, until func(want ...string)) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	lines := make(chan string, 10_000)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = r.Close()
	})
	var seen string
	return in, func(want ...string) {
		t.Helper()
		limit := time.After(patience)
		for _, w := range want {
			for !strings.Contains(seen, w) {
				select {
				case line, ok := <-lines:
					if !ok {
						t.Fatalf("%s ended without saying %q after:\n%s", cmd, w, seen)
					}
					seen += line + "\n"
				case <-limit:
					t.Fatalf("%s did not say %q after:\n%s", cmd, w, seen)
				}
			}
			_, seen, _ = strings.Cut(seen, w)
		}
	}
}

const (
	updateSent     = ">>> TLS 1.3, Handshake [length 0005], KeyUpdate"
	updateReceived = "<<< TLS 1.3, Handshake [length 0005], KeyUpdate"
)

// The client changes its keys and has the server change its own, in the midst of data.
func TestKeyUpdateByClient(t *testing.T) {
	path := openssl(t)
	serverTLS, _ := certify(t)
	for _, tt := range []struct {
		name  string
		relay func(*testing.T, netip.AddrPort) netip.AddrPort
	}{
		{"whole records", func(_ *testing.T, a netip.AddrPort) netip.AddrPort { return a }},
		{"torn records", torn},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{})
			accept, _ := secure(serverTLS, 0, echo{})
			addr := tt.relay(t, listen(t, l, accept))
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			in, until := watch(t, exec.CommandContext(ctx, path, "s_client", "-connect", addr.String(), "-tls1_3", "-msg"))
			_, _ = io.WriteString(in, "one\n")
			until("one")
			_, _ = io.WriteString(in, "K\n")
			until(updateSent, updateReceived)
			_, _ = io.WriteString(in, "two\n")
			until("two")
			_, _ = io.WriteString(in, "k\n")
			until(updateSent)
			_, _ = io.WriteString(in, "three\n")
			until("three")
		})
	}
}

// The server changes its keys and has us, the client, change ours.
func TestKeyUpdateByServer(t *testing.T) {
	path := openssl(t)
	serverTLS, clientTLS := certify(t)
	cert, key := writePEM(t, serverTLS)
	fd, addr := listenFD(t, 1)
	closeFD(t, fd) // its port is free, most likely
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	in, until := watch(t, exec.CommandContext(ctx, path, "s_server", "-accept", addr.String(), "-cert", cert, "-key", key, "-tls1_3", "-msg"))
	until("ACCEPT")

	l := start(t, Config{})
	received := make(chan string, 10)
	type result struct {
		c   *Conn
		err error
	}
	done := make(chan result, 1)
	l.Post(func() {
		l.Dial(addr, DialOptions{}, func(c *Conn, err error) {
			if err != nil {
				done <- result{err: err}
				return
			}
			c.SetHandler(&probe{data: func(_ *Conn, p []byte) int { received <- string(p); return len(p) }})
			c.StartTLSClient(clientTLS, 0, func(err error) { done <- result{c, err} })
		})
	})
	r := await(t, "handshake", done)
	if r.err != nil {
		t.Fatal(r.err)
	}
	say := func(text string) { l.Post(func() { r.c.Write([]byte(text + "\n")) }) }
	say("first")
	until("first")
	_, _ = io.WriteString(in, "K\n")
	until(updateSent, updateReceived)
	say("second")
	until("second")
	_, _ = io.WriteString(in, "third\n")
	if got := await(t, "OnData", received); got != "third\n" {
		t.Errorf("received %q, want %q", got, "third\n")
	}
}

// writePEM writes a configuration's certificate and key where OpenSSL can read them.
func writePEM(t *testing.T, cfg *tls.Config) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cfg.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for _, f := range []struct {
		path, kind string
		der        []byte
	}{{cert, "CERTIFICATE", cfg.Certificates[0].Certificate[0]}, {key, "PRIVATE KEY", der}} {
		if err := os.WriteFile(f.path, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func BenchmarkTLSEcho(b *testing.B) {
	serverTLS, clientTLS := certify(b)
	l := start(b, Config{})
	accept, _ := secure(serverTLS, 0, echo{})
	c := tls.Client(dial(b, listen(b, l, accept)), clientTLS)
	p := make([]byte, 1<<10)
	b.SetBytes(2 << 10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, p); err != nil {
			b.Fatal(err)
		}
	}
}
