package loop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// start runs a loop for the time of the test.
func start(tb testing.TB, cfg Config) *Loop {
	tb.Helper()
	l, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Run: %v", err)
		}
	})
	return l
}

// on runs f on l and waits for it.
func on(tb testing.TB, l *Loop, f func()) {
	tb.Helper()
	done := make(chan struct{})
	if !l.Post(func() { defer close(done); f() }) {
		tb.Fatal("Post: the loop has ended")
	}
	await(tb, "posted function", done)
}

// await receives from ch.
func await[T any](tb testing.TB, what string, ch <-chan T) T {
	tb.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		tb.Fatalf("%s: nothing after %v", what, patience)
		panic("unreachable")
	}
}

// eventually waits until ok holds.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			tb.Fatalf("%s: not so after %v", what, patience)
		}
	}
}

// listenFD makes a listening socket on loopback.
func listenFD(tb testing.TB, backlog int) (int, netip.AddrPort) {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		tb.Fatal(err)
	}
	return fd, localAddr(fd)
}

// listen has l accept connections and gives each the handler that accept returns.
func listen(tb testing.TB, l *Loop, accept func(c *Conn) Handler) netip.AddrPort {
	tb.Helper()
	fd, addr := listenFD(tb, 4096)
	on(tb, l, func() {
		_, err := l.Listen(fd, func(c *Conn) {
			if h := accept(c); h != nil {
				c.SetHandler(h)
			}
		})
		if err != nil {
			tb.Error(err)
		}
	})
	return addr
}

// dial connects the standard library to addr.
func dial(tb testing.TB, addr netip.AddrPort) *net.TCPConn {
	tb.Helper()
	c, err := net.DialTimeout("tcp", addr.String(), patience)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// serve has the standard library accept one connection and f use it.
func serve(tb testing.TB, f func(c net.Conn)) netip.AddrPort {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		f(c)
	}()
	tb.Cleanup(func() {
		_ = ln.Close()
		await(tb, "end of the server", done)
	})
	return netip.MustParseAddrPort(ln.Addr().String())
}

// probe is a handler made of functions; what is nil consumes, or ignores.
type probe struct {
	data  func(c *Conn, p []byte) int
	eof   func(c *Conn)
	drain func(c *Conn)
	close func(c *Conn, err error)
}

func (h *probe) OnData(c *Conn, p []byte) int {
	if h.data == nil {
		return len(p)
	}
	return h.data(c, p)
}

func (h *probe) OnEOF(c *Conn) {
	if h.eof != nil {
		h.eof(c)
	}
}

func (h *probe) OnDrain(c *Conn) {
	if h.drain != nil {
		h.drain(c)
	}
}

func (h *probe) OnClose(c *Conn, err error) {
	if h.close != nil {
		h.close(c, err)
	}
}

// echo sends back what comes, reading no faster than the peer does.
type echo struct{}

func (echo) OnData(c *Conn, p []byte) int {
	c.Write(p)
	if c.Full() {
		c.PauseRead()
	}
	return len(p)
}

func (echo) OnEOF(c *Conn)        { c.CloseWrite(); c.Close() }
func (echo) OnDrain(c *Conn)      { c.ResumeRead() }
func (echo) OnClose(*Conn, error) {}

// sender is a handler that writes what it has, as fast as the peer reads, then
// closes its direction; it collects what comes until the end.
type sender struct {
	left     []byte
	received []byte
	most     int // the most that was ever buffered
	done     chan error
}

func newSender(p []byte) *sender { return &sender{left: p, done: make(chan error, 1)} }

func (s *sender) pump(c *Conn) {
	for len(s.left) > 0 && !c.Full() {
		n := min(len(s.left), 10_000)
		c.Write(s.left[:n])
		s.left = s.left[n:]
		s.most = max(s.most, c.Buffered())
	}
	if len(s.left) == 0 {
		c.CloseWrite()
	}
}

func (s *sender) OnData(_ *Conn, p []byte) int {
	s.received = append(s.received, p...)
	return len(p)
}

func (s *sender) OnEOF(c *Conn)            { c.Close() }
func (s *sender) OnDrain(c *Conn)          { s.pump(c) }
func (s *sender) OnClose(_ *Conn, e error) { s.done <- e }

// random returns n bytes, the same for the same n.
func random(n int) []byte {
	p := make([]byte, n)
	r := mrand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(p)
	return p
}

func same(tb testing.TB, what string, got, want []byte) {
	tb.Helper()
	if sha256.Sum256(got) != sha256.Sum256(want) {
		tb.Errorf("%s: got %d bytes that are not the %d expected", what, len(got), len(want))
	}
}

// exchange writes p to c and closes that direction while it reads to the end.
func exchange(c net.Conn, p []byte) ([]byte, error) {
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(p)
		if err == nil {
			err = c.(interface{ CloseWrite() error }).CloseWrite()
		}
		wrote <- err
	}()
	got, err := io.ReadAll(c)
	if werr := <-wrote; err == nil {
		err = werr
	}
	return got, err
}

// certify makes the configuration of a server called "lateen.test", and of a client that trusts it, for both of which
// the other's certificate is good.
func certify(tb testing.TB) (server, client *tls.Config) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lateen.test"}, DNSNames: []string{"lateen.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:        true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	server = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool}
	client = &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: "lateen.test"}
	return server, client
}

// descriptors counts the process's open files.
func descriptors(tb testing.TB) int {
	tb.Helper()
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		tb.Fatal(err)
	}
	return len(names) - 1
}
