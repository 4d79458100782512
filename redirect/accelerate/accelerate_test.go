package accelerate

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/redirect"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

// say writes and expects to hear the same at the other end.
func say(t testing.TB, from, to net.Conn, what []byte) {
	t.Helper()
	if _, err := from.Write(what); err != nil {
		t.Fatal(err)
	}
	hear(t, to, what)
}

func hear(t testing.TB, c net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d of %d bytes, equal: %v, %v", n, len(want), bytes.Equal(got, want), err)
	}
}

// noise is data that repeats nowhere.
func noise(n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(out)
	return out
}

// TestShortened: what the workload sends does not pass through TCP, what the proxy sends does.
func TestShortened(t *testing.T) {
	each(t, func(t *testing.T, _ *Accelerator, s shape) {
		workload, proxy := s.connect(t)
		for range 100 {
			say(t, workload, proxy, []byte("ping"))
			say(t, proxy, workload, []byte("pong"))
		}
		if n := overTCP(t, workload); n != 0 {
			t.Errorf("the workload sent %d segments over TCP", n)
		}
		if n := overTCP(t, proxy); n == 0 {
			t.Error("the proxy sent nothing over TCP")
		}
	})
}

// TestLeftAlone: connections that have no end of the proxy's, or both, or are in a namespace that is not admitted.
func TestLeftAlone(t *testing.T) {
	a := attach(t)
	check := func(name string, s shape) {
		t.Helper()
		workload, proxy := s.connect(t)
		say(t, workload, proxy, []byte("ping"))
		say(t, proxy, workload, []byte("pong"))
		if overTCP(t, workload) == 0 || overTCP(t, proxy) == 0 {
			t.Errorf("%s: a direction was shortened", name)
		}
	}
	check("between workloads", shape{listen: "127.0.0.1:0"})
	check("from the proxy to itself", shape{listen: "127.0.0.1:15001", mark: testMark})
	cookie, err := Namespace()
	if err == nil {
		err = errors.Join(a.Dismiss(cookie), a.Dismiss(cookie))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shapes() {
		check("dismissed, "+s.name, s)
	}
}

// TestMask: of a mark only the bits of the mask count, and without one all.
func TestMask(t *testing.T) {
	if err := attach(t).Close(); err != nil { // It was only asked whether there can be one.
		t.Fatal(err)
	}
	for _, test := range []struct {
		Config
		mark      int
		shortened bool
	}{
		{Config{Mark: 0x80000539}, 0x80000539, true},
		{Config{Mark: 0x80000539}, 0x539, false},
		{Config{Mark: 0x539, Mask: 0xfff}, 0x80001539, true},
		{Config{Mark: 0x539, Mask: 0xfff}, 0x538, false},
	} {
		test.Ports = []uint16{testPort}
		a, err := New(test.Config)
		if err != nil {
			t.Fatal(err)
		}
		admit(t, a)
		workload, proxy := shape{listen: "127.0.0.1:0", mark: test.mark}.connect(t)
		say(t, workload, proxy, []byte("ping"))
		if got := overTCP(t, workload) == 0; got != test.shortened {
			t.Errorf("mark %#x with %+v: shortened %v", test.mark, test.Config, got)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTrial: where the control group does not hold the connection, as where the kernel does nothing, there is none.
func TestTrial(t *testing.T) {
	if err := attach(t).Close(); err != nil {
		t.Fatal(err)
	}
	root, err := ownCgroup()
	if err != nil {
		t.Fatal(err)
	}
	empty, err := os.MkdirTemp(root, "lateen-test-") //nolint:usetesting // A control group, not a folder.
	if err != nil {
		t.Skip("no control group can be made: ", err)
	}
	defer func() { _ = os.Remove(empty) }()
	c := testConfig()
	c.Cgroup = empty
	if a, err := New(c); err == nil || !strings.Contains(err.Error(), "over TCP all the same") {
		t.Errorf("an accelerator that does nothing is taken: %v", err)
		_ = a.Close()
	}
}

func TestHalfClose(t *testing.T) {
	each(t, func(t *testing.T, _ *Accelerator, s shape) {
		for _, first := range []string{"workload", "proxy"} {
			workload, proxy := s.connect(t)
			data := noise(100_000)
			one, other := workload, proxy
			if first == "proxy" {
				one, other = proxy, workload
			}
			if _, err := one.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := one.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(other); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%s closes first: %d bytes, %v", first, len(got), err)
			}
			say(t, other, one, data)
			_ = other.Close()
			if n, err := one.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("%s closes first: after the end it reads %d, %v", first, n, err)
			}
		}
	})
}

func TestReset(t *testing.T) {
	each(t, func(t *testing.T, _ *Accelerator, s shape) {
		for _, first := range []string{"workload", "proxy"} {
			workload, proxy := s.connect(t)
			say(t, workload, proxy, []byte("ping"))
			one, other := workload, proxy
			if first == "proxy" {
				one, other = proxy, workload
			}
			if err := errors.Join(one.SetLinger(0), one.Close()); err != nil {
				t.Fatal(err)
			}
			if n, err := other.Read(make([]byte, 8)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s resets: the other reads %d, %v", first, n, err)
			}
			if _, err := other.Write([]byte("late")); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s resets: the other writes with %v", first, err)
			}
		}
	})
}

// TestGone: whoever writes to a proxy that has closed learns of it, as with TCP.
func TestGone(t *testing.T) {
	each(t, func(t *testing.T, _ *Accelerator, s shape) {
		workload, proxy := s.connect(t)
		say(t, workload, proxy, []byte("ping"))
		_ = proxy.Close()
		if n, err := workload.Read(make([]byte, 8)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("read %d, %v", n, err)
		}
		for {
			_, err := workload.Write([]byte("x"))
			if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestUrgent: urgent data arrives in its place, once, as with TCP and SO_OOBINLINE, which the proxy sets.
func TestUrgent(t *testing.T) {
	each(t, func(t *testing.T, _ *Accelerator, s shape) {
		workload, proxy := s.connect(t)
		control(t, proxy, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
		for range 10 {
			control(t, workload, func(fd int) error {
				return errors.Join(unix.Send(fd, []byte("ab"), 0), unix.Send(fd, []byte("!"), unix.MSG_OOB), unix.Send(fd, []byte("cd"), 0))
			})
			hear(t, proxy, []byte("ab!cd"))
		}
	})
}

// TestEarly: once something has gone over TCP the rest does, because it could overtake what is still there.
func TestEarly(t *testing.T) {
	each(t, func(t *testing.T, a *Accelerator, s shape) {
		workload, proxy := s.connect(t)
		var key uint64
		var value [24]byte
		entries := a.maps.pairs.Iterate()
		if !entries.Next(&key, &value) {
			t.Fatal("the connection is not paired: ", entries.Err())
		}
		if err := a.maps.pairs.Delete(key); err != nil { // As if the peer were not there yet.
			t.Fatal(err)
		}
		if _, err := workload.Write([]byte("early ")); err != nil {
			t.Fatal(err)
		}
		if err := a.maps.pairs.Put(key, value); err != nil {
			t.Fatal(err)
		}
		if _, err := workload.Write([]byte("later")); err != nil {
			t.Fatal(err)
		}
		hear(t, proxy, []byte("early later"))
		if n := overTCP(t, workload); n != 2 {
			t.Errorf("%d segments went over TCP", n)
		}
	})
}

// TestCaptured: rules translate where the workload calls, so that the addresses of the two ends do not match.
func TestCaptured(t *testing.T) {
	attach(t)
	bridge, err := netns.NewBridge(netns.BridgeConfig{Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24"), netip.MustParsePrefix("fd09::1/64")}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(redirect.Remove(), bridge.Close()); err != nil {
			t.Error(err)
		}
	}()
	rules, err := redirect.Rules(redirect.Config{Proxy: redirect.Proxy{Mark: testMark, Mask: 0xfff}})
	if err == nil {
		err = redirect.Apply(rules)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"10.9.0.9:80", "[fd09::9]:80"} {
		l := shape{listen: "[::]:15001"}.listener(t)
		workload, err := shape{}.dial(to)
		if err != nil {
			t.Fatal(err)
		}
		proxy, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		say(t, workload, proxy, []byte("ping"))
		say(t, proxy, workload, []byte("pong"))
		if n := overTCP(t, workload); n != 0 {
			t.Errorf("to %s: the workload sent %d segments over TCP", to, n)
		}
		_, _, _ = workload.Close(), proxy.Close(), l.Close()
	}
}

// TestInFlight: more than 64 KiB wait to be read.
func TestInFlight(t *testing.T) {
	each(t, func(t *testing.T, _ *Accelerator, s shape) {
		workload, proxy := s.connect(t)
		data := noise(200_000)
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(9000))
			if _, err := workload.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		hear(t, proxy, data)
		if n := overTCP(t, workload); n != 0 {
			t.Errorf("%d segments went over TCP", n)
		}
	})
}

// TestBackpressure: a reader that does not read stops the writer, after a bounded number of bytes; nothing is lost.
func TestBackpressure(t *testing.T) {
	const most = 32 << 20 // TCP's own buffers, at their largest, and ours.
	each(t, func(t *testing.T, _ *Accelerator, s shape) {
		workload, proxy := s.connect(t)
		sent, sum := 0, sha256.New()
		chunk := noise(10_000)
		full := time.Now().Add(patience)
		for {
			_ = workload.SetWriteDeadline(time.Now().Add(time.Second / 2))
			n, err := workload.Write(chunk)
			sent += n
			_, _ = sum.Write(chunk[:n])
			if errors.Is(err, os.ErrDeadlineExceeded) && (overTCP(t, workload) > 0 || time.Now().After(full)) {
				break
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) || sent > most {
				t.Fatalf("%d bytes were taken that nobody reads, %v", sent, err)
			}
		}
		if overTCP(t, workload) == 0 {
			t.Error("nothing went over TCP")
		}
		if err := workload.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got := sha256.New()
		if n, err := io.CopyBuffer(got, plainReader{proxy}, make([]byte, 1000)); err != nil || n != int64(sent) {
			t.Fatalf("%d of %d bytes arrived, %v", n, sent, err)
		}
		if !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
			t.Error("other bytes arrived")
		}
	})
}

// plainReader hides what lets io.Copy do without reading.
type plainReader struct{ io.Reader }

// TestBulk sends 100 MB both ways at once, in pieces of all sizes.
func TestBulk(t *testing.T) {
	const size = 100 << 20
	each(t, func(t *testing.T, _ *Accelerator, s shape) {
		workload, proxy := s.connect(t)
		for _, c := range []*net.TCPConn{workload, proxy} {
			_ = c.SetDeadline(time.Now().Add(6 * patience))
		}
		data := noise(1 << 20)
		var group sync.WaitGroup
		for from, to := range map[*net.TCPConn]*net.TCPConn{workload: proxy, proxy: workload} {
			sums := make(chan []byte, 1)
			group.Go(func() {
				sum := sha256.New()
				for sent := 0; sent < size; {
					at := rand.IntN(len(data))
					n := min(size-sent, len(data)-at, 1+rand.IntN(1<<(4+rand.IntN(14))))
					_, _ = sum.Write(data[at : at+n])
					if _, err := from.Write(data[at : at+n]); err != nil {
						t.Error(err)
						break
					}
					sent += n
				}
				_ = from.CloseWrite()
				sums <- sum.Sum(nil)
			})
			group.Go(func() {
				sum := sha256.New()
				n, err := io.CopyBuffer(sum, plainReader{to}, make([]byte, 1<<(10+rand.IntN(8))))
				if err != nil || n != size || !bytes.Equal(<-sums, sum.Sum(nil)) {
					t.Errorf("%d bytes arrived, or others: %v", n, err)
				}
			})
		}
		group.Wait()
	})
}

// TestAfter: a connection that was open before goes on as it was.
func TestAfter(t *testing.T) {
	if os.Getenv(roleVariable) != roleTests {
		t.Skip("needs root")
	}
	for _, s := range shapes() {
		workload, proxy := s.connect(t)
		say(t, workload, proxy, []byte("before"))
		a := attach(t)
		say(t, workload, proxy, []byte("with"))
		say(t, proxy, workload, []byte("with"))
		if n := overTCP(t, workload); n != 2 {
			t.Errorf("%d segments went over TCP", n)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		say(t, workload, proxy, []byte("after"))
	}
}

// TestClose: with the accelerator closed, what was under way arrives and the rest goes over TCP.
func TestClose(t *testing.T) {
	each(t, func(t *testing.T, a *Accelerator, s shape) {
		workload, proxy := s.connect(t)
		data := noise(100_000)
		if _, err := workload.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := workload.Write([]byte("more")); err != nil {
			t.Fatal(err)
		}
		hear(t, proxy, append(data, "more"...))
		say(t, proxy, workload, data)
		if n := overTCP(t, workload); n != 1 {
			t.Errorf("%d segments went over TCP", n)
		}
	})
}

// TestKilled: when the process that attached it is killed, open connections lose nothing and new ones go over TCP.
func TestKilled(t *testing.T) {
	if err := attach(t).Close(); err != nil { // It was only asked whether there can be one.
		t.Fatal(err)
	}
	for _, s := range shapes() {
		t.Run(s.name, func(t *testing.T) {
			kill := startAttacher(t)
			workload, proxy := s.connect(t)
			data := noise(100_000)
			if _, err := workload.Write(data); err != nil {
				t.Fatal(err)
			}
			kill()
			if _, err := workload.Write(data); err != nil {
				t.Fatal(err)
			}
			hear(t, proxy, append(slices.Clip(data), data...))
			say(t, proxy, workload, data)
			if n := overTCP(t, workload); n != 0 {
				t.Errorf("%d segments went over TCP", n)
			}
			workload, proxy = s.connect(t)
			say(t, workload, proxy, data)
			if overTCP(t, workload) == 0 {
				t.Error("a new connection is shortened")
			}
		})
	}
}

// TestShort makes many short connections: none may stall.
func TestShort(t *testing.T) {
	const connections, clients = 3200, 16
	each(t, func(t *testing.T, _ *Accelerator, s shape) {
		l := s.listener(t)
		var served, group sync.WaitGroup
		served.Go(func() {
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					return
				}
				served.Go(func() { _, _ = io.CopyBuffer(plainWriter{c}, plainReader{c}, make([]byte, 512)); _ = c.Close() })
			}
		})
		for range clients {
			group.Go(func() {
				for i := range connections / clients {
					if err := s.once(l.Addr().String(), byte(i)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		_ = l.Close()
		served.Wait()
	})
}

type plainWriter struct{ io.Writer }

// once is one short connection to an echo.
func (s shape) once(address string, fill byte) error {
	c, err := s.dial(address)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	want := bytes.Repeat([]byte{fill}, 1+int(fill))
	if _, err := c.Write(want); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("other bytes came back")
	}
	return err
}

// TestOptions: what would need to see the bytes on TCP takes the connection back there, or is refused.
func TestOptions(t *testing.T) {
	each(t, func(t *testing.T, _ *Accelerator, s shape) {
		workload, proxy := s.connect(t)
		say(t, workload, proxy, []byte("ping"))
		control(t, workload, func(fd int) error {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); !errors.Is(err, unix.EOPNOTSUPP) {
				t.Errorf("SO_ZEROCOPY: %v", err)
			}
			return nil
		})
		control(t, proxy, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1) })
		say(t, workload, proxy, []byte("ping"))
		if n := overTCP(t, workload); n != 0 {
			t.Errorf("%d segments went over TCP", n)
		}
		control(t, workload, func(fd int) error {
			_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls") // Known or not.
			return nil
		})
		say(t, workload, proxy, []byte("ping"))
		if n := overTCP(t, workload); n != 1 {
			t.Errorf("after TCP_ULP %d segments went over TCP", n)
		}
	})
}
