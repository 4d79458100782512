package loop

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUntaken: what a peer that ends the connection may have read is told from what it cannot have.
func TestUntaken(t *testing.T) {
	finished := func(c *Conn) bool {
		info, err := unix.GetsockoptTCPInfo(int(c.fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		return err == nil && info.State == unix.BPF_TCP_CLOSE_WAIT
	}
	write := func(c *Conn, s string) { c.Write([]byte(s)); c.flush() }
	read := func(t *testing.T, peer *net.TCPConn, n int) {
		for p := make([]byte, n); n > 0; {
			got, err := peer.Read(p)
			if n -= got; err != nil {
				t.Error(err)
				return
			}
		}
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, c *Conn, peer *net.TCPConn)
		want bool
	}{
		{"nothing is written", func(_ *testing.T, _ *Conn, peer *net.TCPConn) { _ = peer.Close() }, true},
		{"reset before anything is written", func(_ *testing.T, _ *Conn, peer *net.TCPConn) { _ = peer.SetLinger(0); _ = peer.Close() }, true},
		{"closed before", func(t *testing.T, c *Conn, peer *net.TCPConn) {
			_ = peer.Close()
			until(t, func() bool { return finished(c) })
			write(c, "request")
		}, true},
		{"closed before, and written in two parts", func(t *testing.T, c *Conn, peer *net.TCPConn) {
			_ = peer.Close()
			until(t, func() bool { return finished(c) })
			write(c, "head")
			until(t, func() bool { return !finished(c) })
			write(c, "body")
		}, true},
		{"read and closed", func(t *testing.T, c *Conn, peer *net.TCPConn) {
			write(c, "request")
			read(t, peer, 7)
			_ = peer.Close()
		}, false},
		{"half read and half closed", func(t *testing.T, c *Conn, peer *net.TCPConn) {
			write(c, "request")
			read(t, peer, 4)
			_ = peer.CloseWrite()
		}, false},
		{"the first part read and closed", func(t *testing.T, c *Conn, peer *net.TCPConn) {
			write(c, "head")
			read(t, peer, 4)
			_ = peer.Close()
			until(t, func() bool { return finished(c) })
			write(c, "body")
		}, false},
		{"closed without having been read", func(_ *testing.T, c *Conn, peer *net.TCPConn) {
			write(c, "request")
			_ = peer.Close()
		}, false},
		{"read and reset", func(t *testing.T, c *Conn, peer *net.TCPConn) {
			write(c, "request")
			read(t, peer, 7)
			_ = peer.SetLinger(0)
			_ = peer.Close()
		}, false},
		{"read and reset, and written to", func(t *testing.T, c *Conn, peer *net.TCPConn) {
			write(c, "head")
			read(t, peer, 4)
			_ = peer.SetLinger(0)
			_ = peer.Close()
			write(c, "body")
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, Config{})
			accepted, told := make(chan *Conn, 1), make(chan bool, 1)
			tell := func(c *Conn) {
				select {
				case told <- c.Untaken():
				default:
				}
				c.Close()
			}
			peer := dial(t, listen(t, l, func(c *Conn) Handler {
				accepted <- c
				c.Write([]byte("before"))
				return &probe{eof: tell, close: func(c *Conn, _ error) { tell(c) }}
			}))
			read(t, peer, 6)
			c := await(t, "the connection", accepted)
			on(t, l, func() {
				c.Mark()
				tt.do(t, c, peer)
			})
			if got := await(t, "the end of the connection", told); got != tt.want {
				t.Errorf("untaken: %v", got)
			}
		})
	}
}

// until waits, on the loop itself, for what the kernel does by itself.
func until(t *testing.T, ok func() bool) {
	for limit := time.Now().Add(patience); !ok(); {
		if time.Now().After(limit) {
			t.Error("not so after", patience)
			return
		}
	}
}
