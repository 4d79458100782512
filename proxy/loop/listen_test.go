package loop

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListenerClose(t *testing.T) {
	l := start(t, Config{})
	before := descriptors(t)
	fd, addr := listenFD(t, 16)
	accepted := make(chan *Conn, 1)
	var ln *Listener
	on(t, l, func() {
		var err error
		ln, err = l.Listen(fd, func(c *Conn) { accepted <- c; c.SetHandler(echo{}); ln.Close() })
		if err != nil {
			t.Error(err)
		}
	})
	c := dial(t, addr)
	await(t, "accept", accepted)
	on(t, l, func() { ln.Close() }) // again
	if c2, err := net.Dial("tcp", addr.String()); err == nil {
		_ = c2.Close()
		t.Error("a closed listener accepts")
	}
	got, err := exchange(c, []byte("hello"))
	if err != nil || string(got) != "hello" {
		t.Errorf("a connection accepted before reads %q, %v", got, err)
	}
	_ = c.Close()
	eventually(t, "descriptors are as many as before", func() bool { return descriptors(t) == before })
}

func TestListenerThatIsShutDownElsewhere(t *testing.T) {
	logs := make(logged, 10)
	l := start(t, Config{Logger: slog.New(logs)})
	fd, _ := listenFD(t, 16)
	on(t, l, func() {
		if _, err := l.Listen(fd, nil); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Shutdown(fd, unix.SHUT_RD); err != nil {
		t.Fatal(err)
	}
	if m := await(t, "log", logs); !strings.Contains(m, "listener closed") {
		t.Errorf("logged %q", m)
	}
}

// logged is a log handler that hands the messages over.
type logged chan string

func (logged) Enabled(context.Context, slog.Level) bool        { return true }
func (h logged) WithAttrs([]slog.Attr) slog.Handler            { return h }
func (h logged) WithGroup(string) slog.Handler                 { return h }
func (h logged) Handle(_ context.Context, r slog.Record) error { h <- r.Message; return nil }

func TestAcceptWithoutDescriptorsLeft(t *testing.T) {
	logs := make(logged, 10)
	l := start(t, Config{Logger: slog.New(logs)})
	listener, addr := listenFD(t, 16)
	var ln *Listener
	on(t, l, func() {
		var err error
		if ln, err = l.Listen(listener, func(c *Conn) { c.SetHandler(echo{}) }); err != nil {
			t.Error(err)
		}
	})
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFD(t, fd)

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}
	defer restore()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	if m := await(t, "log", logs); !strings.Contains(m, "suspended") {
		t.Errorf("logged %q", m)
	}
	on(t, l, func() {
		if ln.retry.slot == 0 {
			return // trying again just now
		}
		if err := l.poll.del(listener); !errors.Is(err, unix.ENOENT) {
			t.Errorf("the listener keeps waking the loop meanwhile (%v)", err)
		}
	})
	restore()
	p := []byte("hello")
	if _, err := unix.Write(fd, p); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(fd, p); err != nil || string(p[:n]) != "hello" {
		t.Errorf("after the shortage the connection reads %q, %v", p[:n], err)
	}
	if len(logs) > 0 {
		t.Errorf("logged again: %q", <-logs)
	}
}

func TestUnixSocket(t *testing.T) {
	l := start(t, Config{})
	path := t.TempDir() + "/s"
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 16); err != nil {
		t.Fatal(err)
	}
	on(t, l, func() {
		_, err := l.Listen(fd, func(c *Conn) {
			if c.LocalAddr().IsValid() || c.RemoteAddr().IsValid() {
				t.Errorf("addresses of a Unix socket: %v, %v", c.LocalAddr(), c.RemoteAddr())
			}
			c.SetHandler(echo{})
		})
		if err != nil {
			t.Error(err)
		}
	})
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	got, err := exchange(c, []byte("hello"))
	if err != nil || string(got) != "hello" {
		t.Errorf("echo: %q, %v", got, err)
	}
}

func TestManyAcceptsAtOnce(t *testing.T) {
	l := start(t, Config{})
	const connections = 3*acceptsPerBatch + 1
	fd, addr := listenFD(t, 4096)
	conns := make([]*net.TCPConn, connections)
	for i := range conns { // they wait in the listener's queue
		conns[i] = dial(t, addr)
	}
	on(t, l, func() {
		if _, err := l.Listen(fd, func(c *Conn) { c.SetHandler(echo{}) }); err != nil {
			t.Error(err)
		}
	})
	for _, c := range conns {
		if got, err := exchange(c, []byte("x")); err != nil || string(got) != "x" {
			t.Fatalf("echo: %q, %v", got, err)
		}
	}
	_, _ = io.Copy(io.Discard, conns[0])
}
