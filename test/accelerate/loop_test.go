package accelerate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/redirect/accelerate"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

const (
	insideVariable = "LATEEN_TEST_INSIDE" // Set in the namespace.
	proxyPort      = 15001
	proxyMark      = 0x539
	patience       = 20 * time.Second
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(insideVariable) != "" {
		if err := netns.Loopback(); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := netns.Command(context.Background(), netns.Isolation{}, os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func attach(t testing.TB) {
	t.Helper()
	if os.Getenv(insideVariable) == "" {
		t.Skip("needs root: BPF programs are attached to a control group")
	}
	a, err := accelerate.New(accelerate.Config{Ports: []uint16{proxyPort}, Mark: proxyMark, Mask: 0xfff})
	if err != nil {
		t.Skip("there is no accelerator on this kernel: ", err)
	}
	t.Cleanup(func() { _ = a.Close() })
	cookie, err := accelerate.Namespace()
	if err == nil {
		err = a.Admit(cookie)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// relay is what the proxy does with bytes: those of one connection go to the other.
type relay struct{ peer *loop.Conn }

func (r *relay) OnData(c *loop.Conn, p []byte) int {
	r.peer.Write(p)
	if r.peer.Full() {
		c.PauseRead()
	}
	return len(p)
}

func (r *relay) OnDrain(*loop.Conn)            { r.peer.ResumeRead() }
func (r *relay) OnEOF(*loop.Conn)              { r.peer.CloseWrite() }
func (r *relay) OnClose(_ *loop.Conn, _ error) { r.peer.Close() }

// startProxy has a loop relay what comes to the proxy's port to a server.
func startProxy(t testing.TB, accelerated bool, server string) *loop.Loop {
	t.Helper()
	l, err := loop.New(loop.Config{Accelerated: accelerated})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
	ln, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(proxyPort))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(file.Fd()))
	_ = file.Close()
	if err != nil {
		t.Fatal(err)
	}
	on(t, l, func() {
		_, err := l.Listen(fd, func(c *loop.Conn) {
			l.Dial(netip.MustParseAddrPort(server), loop.DialOptions{Mark: proxyMark}, func(far *loop.Conn, err error) {
				if err != nil {
					c.Abort()
					return
				}
				c.SetHandler(&relay{far})
				far.SetHandler(&relay{c})
			})
		})
		if err != nil {
			t.Error(err)
		}
	})
	return l
}

// on runs f on the loop.
func on(t testing.TB, l *loop.Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(func() { defer close(done); f() }) {
		t.Fatal("the loop has ended")
	}
	<-done
}

// startServer serves connections of workloads.
func startServer(t testing.TB, serve func(c *net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(3 * patience))
			group.Go(func() { defer func() { _ = c.Close() }(); serve(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); group.Wait() })
	return l.Addr().String()
}

// plain hides what lets io.Copy do without reading and writing.
type plain struct{ io.ReadWriter }

func echo(c *net.TCPConn) {
	_, _ = io.CopyBuffer(plain{c}, plain{c}, make([]byte, 32<<10))
}

func call(t testing.TB) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(proxyPort))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

func noise(n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(out)
	return out
}

// TestBehind: while the loop is busy so much is sent that the rest goes over TCP. The loop finds bytes on both ways under
// one event, and must not wait for another.
func TestBehind(t *testing.T) {
	attach(t)
	l := startProxy(t, true, startServer(t, echo))
	for _, size := range []int{100_000, 262_144, 262_145, 300_000, 400_000, 700_000} {
		c := call(t)
		first := noise(1) // The relay is there when it has come back.
		exchange(t, c, first)
		data := noise(size)
		busy, sent := make(chan struct{}), make(chan struct{})
		l.Post(func() { close(busy); <-sent })
		<-busy
		_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n := 0
		for n < len(data) { // As much as is taken.
			m, err := c.Write(data[n:min(len(data), n+9000)])
			if n += m; errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		_ = c.SetWriteDeadline(time.Now().Add(patience))
		close(sent)
		got := make([]byte, n)
		if m, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data[:n]) {
			t.Fatalf("of %d bytes %d came back, %v", n, m, err)
		}
		_ = c.Close()
	}
}

// exchange writes and reads the same back.
func exchange(t testing.TB, c net.Conn, data []byte) {
	t.Helper()
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
		t.Fatal("other bytes came back, or none: ", err)
	}
}

// TestThrough sends bytes of all sizes through the proxy on many connections at once, and reads them back.
func TestThrough(t *testing.T) {
	const connections, rounds = 16, 200
	attach(t)
	startProxy(t, true, startServer(t, echo))
	data := noise(1 << 20)
	var group sync.WaitGroup
	for range connections {
		c := call(t)
		group.Go(func() {
			for range rounds {
				n := 1 + rand.IntN(1<<rand.IntN(19))
				at := rand.IntN(len(data) - n)
				_ = c.SetDeadline(time.Now().Add(patience))
				writes := make(chan error, 1)
				go func() { _, err := c.Write(data[at : at+n]); writes <- err }()
				got := make([]byte, n)
				_, err := io.ReadFull(c, got)
				if err = errors.Join(err, <-writes); err != nil || !bytes.Equal(got, data[at:at+n]) {
					t.Errorf("%d bytes: %v", n, err)
					return
				}
			}
		})
	}
	group.Wait()
}

// TestShortThrough makes short connections through the proxy; each ends as it should, and none stalls.
func TestShortThrough(t *testing.T) {
	const clients, each = 8, 300
	attach(t)
	startProxy(t, true, startServer(t, echo))
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for i := range each {
				c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(proxyPort))
				if err != nil {
					t.Error(err)
					return
				}
				want := bytes.Repeat([]byte{byte(i)}, 1+i*7)
				_ = c.SetDeadline(time.Now().Add(patience))
				_, err = c.Write(want)
				err = errors.Join(err, c.(*net.TCPConn).CloseWrite())
				got, rerr := io.ReadAll(c)
				if err = errors.Join(err, rerr, c.Close()); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d of %d bytes: %v", len(got), len(want), err)
					return
				}
			}
		})
	}
	group.Wait()
}

// cpu is what this process has used.
func cpu(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// ways are with and without an accelerator.
func ways(b *testing.B, run func(b *testing.B)) {
	for _, accelerated := range []bool{false, true} {
		b.Run(fmt.Sprintf("accelerated=%v", accelerated), func(b *testing.B) {
			if os.Getenv(insideVariable) == "" {
				b.Skip("needs root")
			}
			if accelerated {
				attach(b)
			}
			startProxy(b, accelerated, startServer(b, echo))
			run(b)
		})
	}
}

// BenchmarkPingPong sends 1 KiB there and back through the proxy, on 1 and on 32 connections. cpu-us/op is that of the
// whole system but the idle: client, proxy and server are this process.
func BenchmarkPingPong(b *testing.B) {
	for _, connections := range []int{1, 32} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			ways(b, func(b *testing.B) {
				data := noise(1 << 10)
				conns := make([]net.Conn, connections)
				for i := range conns {
					conns[i] = call(b)
					_ = conns[i].SetDeadline(time.Time{})
					exchange(b, conns[i], data)
				}
				var group sync.WaitGroup
				b.ResetTimer()
				before := cpu(b)
				for _, c := range conns {
					group.Go(func() {
						for range b.N / connections {
							exchange(b, c, data)
						}
					})
				}
				group.Wait()
				b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
			})
		})
	}
}

// BenchmarkBulk sends pieces of 64 KiB through the proxy to an echo, and reads them back.
func BenchmarkBulk(b *testing.B) {
	ways(b, func(b *testing.B) {
		const size = 64 << 10
		data := noise(size)
		c := call(b)
		_ = c.SetDeadline(time.Time{})
		b.SetBytes(size)
		b.ResetTimer()
		before := cpu(b)
		var group sync.WaitGroup
		group.Go(func() {
			_, _ = io.CopyBuffer(plain{discard{}}, plain{c}, make([]byte, 256<<10))
		})
		for range b.N {
			if _, err := c.Write(data); err != nil {
				b.Fatal(err)
			}
		}
		_ = c.CloseWrite()
		group.Wait()
		b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
	})
}

type discard struct{}

func (discard) Read([]byte) (int, error)    { return 0, io.EOF }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
