package loop

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func closeFD(tb testing.TB, fd int) {
	tb.Helper()
	if err := unix.Close(fd); err != nil {
		tb.Error(err)
	}
}

// fillBacklog leaves no room in the queue of a listener with backlog 0 that nobody accepts from, so that further connects hang.
func fillBacklog(tb testing.TB, addr netip.AddrPort) {
	tb.Helper()
	for range 3 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { closeFD(tb, fd) })
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			tb.Fatal(err)
		}
	}
}

// hanging returns the address of a listener to which connecting hangs.
func hanging(tb testing.TB) netip.AddrPort {
	tb.Helper()
	fd, addr := listenFD(tb, 0)
	tb.Cleanup(func() { closeFD(tb, fd) })
	fillBacklog(tb, addr)
	return addr
}

func TestDialFails(t *testing.T) {
	fd, refused := listenFD(t, 1)
	closeFD(t, fd)
	for _, tt := range []struct {
		name string
		addr netip.AddrPort
		o    DialOptions
		want error
	}{
		{"refused", refused, DialOptions{}, unix.ECONNREFUSED},
		{"time is up", hanging(t), DialOptions{Timeout: 30 * time.Millisecond}, ErrTimeout},
		{"broadcast", netip.MustParseAddrPort("255.255.255.255:80"), DialOptions{}, nil},
		{"no address", netip.AddrPort{}, DialOptions{}, nil},
		{"unknown zone", netip.MustParseAddrPort("[fe80::1%nowhere]:80"), DialOptions{}, nil},
		{"foreign source", refused, DialOptions{Source: netip.MustParseAddrPort("192.0.2.1:0")}, unix.EADDRNOTAVAIL},
		{"source of the other family", refused, DialOptions{Source: netip.MustParseAddrPort("[::1]:0")}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{})
			before := descriptors(t)
			result := make(chan error, 1)
			on(t, l, func() {
				returned := false
				l.Dial(tt.addr, tt.o, func(c *Conn, err error) {
					if !returned {
						t.Error("done was called from within Dial")
					}
					if c != nil {
						t.Error("done got a connection")
					}
					result <- err
				})
				returned = true
			})
			err := await(t, "done", result)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Dial: %v, want %v", err, tt.want)
			}
			on(t, l, func() {
				if got := descriptors(t); got != before {
					t.Errorf("%d descriptors are open, want %d", got, before)
				}
			})
		})
	}
}

func TestDialCancelled(t *testing.T) {
	l := start(t, Config{})
	addr := hanging(t)
	before := descriptors(t)
	on(t, l, func() {
		d := l.Dial(addr, DialOptions{Timeout: 20 * time.Millisecond}, func(*Conn, error) { t.Error("done was called after Cancel") })
		d.Cancel()
		d.Cancel()
		failing := l.Dial(netip.AddrPort{}, DialOptions{}, func(*Conn, error) { t.Error("done was called after Cancel") })
		failing.Cancel()
		if got := descriptors(t); got != before {
			t.Errorf("%d descriptors are open, want %d", got, before)
		}
	})
	later := make(chan struct{})
	on(t, l, func() { l.After(40*time.Millisecond, func() { close(later) }) })
	await(t, "the time at which it would have failed", later)
}

func TestDialOptions(t *testing.T) {
	l := start(t, Config{})
	from := make(chan net.Addr, 1)
	addr := serve(t, func(c net.Conn) { from <- c.RemoteAddr(); _, _ = io.Copy(io.Discard, c) })
	o := DialOptions{
		Source:    netip.MustParseAddrPort("127.0.0.7:0"),
		KeepAlive: KeepAlive{Enabled: true, Idle: 7 * time.Second, Interval: 3 * time.Second, Probes: 5},
	}
	if unix.Geteuid() == 0 {
		o.Mark = 1337
	}
	type result struct {
		c   *Conn
		err error
	}
	done := make(chan result, 1)
	l.Post(func() { l.Dial(addr, o, func(c *Conn, err error) { done <- result{c, err} }) })
	r := await(t, "done", done)
	if r.err != nil {
		t.Fatal(r.err)
	}
	if got := await(t, "accept", from).(*net.TCPAddr).IP.String(); got != "127.0.0.7" {
		t.Errorf("the peer sees %s, want 127.0.0.7", got)
	}
	on(t, l, func() {
		for _, tt := range []struct {
			name                string
			level, option, want int
		}{
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark)},
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 7},
			{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 3},
			{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5},
		} {
			if got, err := unix.GetsockoptInt(int(r.c.fd), tt.level, tt.option); err != nil || got != tt.want {
				t.Errorf("%s: %d, %v, want %d", tt.name, got, err, tt.want)
			}
		}
		if r.c.RemoteAddr() != addr || r.c.LocalAddr().Addr() != o.Source.Addr() {
			t.Errorf("addresses: %v to %v", r.c.LocalAddr(), r.c.RemoteAddr())
		}
		r.c.Close()
	})
}

func TestDialIPv6(t *testing.T) {
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 on loopback:", err)
	}
	defer func() { _ = ln.Close() }()
	l := start(t, Config{})
	addr := netip.MustParseAddrPort(ln.Addr().String())
	result := make(chan error, 1)
	l.Post(func() {
		l.Dial(addr, DialOptions{Source: netip.MustParseAddrPort("[::1]:0")}, func(c *Conn, err error) {
			if err == nil && (c.RemoteAddr() != addr || c.LocalAddr().Addr() != addr.Addr()) {
				t.Errorf("addresses: %v to %v", c.LocalAddr(), c.RemoteAddr())
			}
			if err == nil {
				c.Abort()
			}
			result <- err
		})
	})
	if err := await(t, "done", result); err != nil {
		t.Error(err)
	}
}

// A socket that is joined to itself is not a connection.
func TestDialToItself(t *testing.T) {
	fd, addr := listenFD(t, 1)
	closeFD(t, fd)
	l := start(t, Config{})
	result := make(chan error, 1)
	l.Post(func() {
		l.Dial(addr, DialOptions{Source: addr}, func(_ *Conn, err error) { result <- err })
	})
	if err := await(t, "done", result); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("Dial: %v, want %v", err, unix.ECONNREFUSED)
	}
}

// An event for a descriptor that was closed and reused in the same batch is not the new owner's.
func TestStaleEventIsIgnored(t *testing.T) {
	l := start(t, Config{})
	hangs := hanging(t)
	addr := listen(t, l, func(*Conn) Handler { return echo{} })
	result := make(chan error, 1)
	on(t, l, func() {
		var dialling [2]*Dialing
		for i := range dialling {
			dialling[i] = l.Dial(addr, DialOptions{}, func(c *Conn, err error) {
				if err != nil {
					t.Error(err)
					return
				}
				c.SetHandler(&probe{})
				other := dialling[1-i]
				fd := other.conn.fd
				other.Cancel() // its event is in the same batch
				d := l.Dial(hangs, DialOptions{Timeout: 50 * time.Millisecond}, func(c *Conn, err error) { result <- err })
				if d.conn.fd != fd {
					t.Error("the descriptor was not reused; the test proves nothing")
				}
			})
		}
	})
	if err := await(t, "done", result); !errors.Is(err, ErrTimeout) {
		t.Errorf("Dial: %v, want %v", err, ErrTimeout)
	}
}
