package loop

import (
	"crypto/tls"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// secured connects two loops by TLS and calls ready on b when the handshake is done. Handlers: server's and client's.
func secured(tb testing.TB, cfg Config, serverTLS, clientTLS *tls.Config, server, client Handler, ready func(c *Conn)) {
	tb.Helper()
	a, b := start(tb, cfg), start(tb, cfg)
	accept, _ := secure(serverTLS, 0, server)
	addr := listen(tb, a, accept)
	b.Post(func() {
		b.Dial(addr, DialOptions{}, func(c *Conn, err error) {
			if err != nil {
				tb.Error(err)
				return
			}
			c.SetHandler(client)
			c.StartTLSClient(clientTLS, 0, func(err error) {
				if err != nil {
					tb.Error(err)
					return
				}
				ready(c)
			})
		})
	})
}

// cpuSeconds is what the process has used so far.
func cpuSeconds(tb testing.TB) float64 {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// Both ends are loops; cpu-s/GB and cpu-us/op are of both together.
func BenchmarkRecords(b *testing.B) {
	serverTLS, clientTLS := certify(b)
	for _, layer := range []struct {
		name   string
		stdlib bool
	}{{"own", false}, {"stdlib", true}} {
		cfg := Config{StdlibTLS: layer.stdlib}
		b.Run("bulk/"+layer.name, func(b *testing.B) { benchmarkBulk(b, cfg, serverTLS, clientTLS) })
		b.Run("pieces/"+layer.name, func(b *testing.B) { benchmarkPing(b, cfg, serverTLS, clientTLS, 8, 128) })
		b.Run("ping/"+layer.name, func(b *testing.B) { benchmarkPing(b, cfg, serverTLS, clientTLS, 1, 1024) })
	}
}

func benchmarkBulk(b *testing.B, cfg Config, serverTLS, clientTLS *tls.Config) {
	const unit = 1 << 20
	want := b.N * unit
	done := make(chan struct{})
	got, left := 0, want
	block := make([]byte, 256<<10)
	pump := func(c *Conn) {
		for left > 0 && !c.Full() {
			n := min(left, len(block))
			c.Write(block[:n])
			left -= n
		}
	}
	begin := make(chan *Conn, 1)
	secured(b, cfg, serverTLS, clientTLS, &probe{data: func(_ *Conn, p []byte) int {
		if got += len(p); got >= want {
			close(done)
		}
		return len(p)
	}}, &probe{drain: pump}, func(c *Conn) { begin <- c })
	c := await(b, "handshake", begin)
	b.SetBytes(unit)
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuSeconds(b)
	c.Loop().Post(func() { pump(c) })
	await(b, "all", done)
	b.StopTimer()
	b.ReportMetric((cpuSeconds(b)-before)/float64(want)*1e9, "cpu-s/GB")
}

// benchmarkPing sends a message in pieces and waits for its echo.
func benchmarkPing(b *testing.B, cfg Config, serverTLS, clientTLS *tls.Config, pieces, size int) {
	done := make(chan struct{})
	block := make([]byte, size)
	got, left := 0, b.N
	send := func(c *Conn) {
		for range pieces {
			c.Write(block)
		}
	}
	begin := make(chan *Conn, 1)
	secured(b, cfg, serverTLS, clientTLS, &probe{data: func(c *Conn, p []byte) int {
		for off := 0; off < len(p); off += size {
			c.Write(p[off:min(off+size, len(p))])
		}
		return len(p)
	}}, &probe{data: func(c *Conn, p []byte) int {
		if got += len(p); got == pieces*size {
			got = 0
			if left--; left == 0 {
				close(done)
				return len(p)
			}
			send(c)
		}
		return len(p)
	}}, func(c *Conn) { begin <- c })
	c := await(b, "handshake", begin)
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuSeconds(b)
	c.Loop().Post(func() { send(c) })
	await(b, "all", done)
	b.StopTimer()
	b.ReportMetric((cpuSeconds(b)-before)/float64(b.N)*1e6, "cpu-us/op")
}

// Pinging allocates nothing on either side, in records of our own.
func TestRecordEchoAllocatesNothing(t *testing.T) {
	serverTLS, clientTLS := certify(t)
	const warm, rounds = 100, 2000
	left := warm + rounds
	var before, after runtime.MemStats
	done := make(chan struct{})
	block := random(1000)
	secured(t, Config{}, serverTLS, clientTLS, echo{}, &probe{data: func(c *Conn, p []byte) int {
		switch left--; left {
		case rounds:
			runtime.ReadMemStats(&before)
		case 0:
			runtime.ReadMemStats(&after)
			close(done)
			return len(p)
		}
		c.Write(block)
		return len(p)
	}}, func(c *Conn) { c.Write(block) })
	await(t, "all echoes", done)
	if n := after.Mallocs - before.Mallocs; n > rounds/10 { // the runtime and the test's own timers allocate too
		t.Errorf("%d allocations in %d echoes, want none", n, rounds)
	}
}

// Heap per connection that has been used once and is idle: the mean of both ends, all else left out but the certificate
// that they share.
func BenchmarkIdleTLS(b *testing.B) {
	serverTLS, clientTLS := certify(b)
	serverTLS.ClientAuth = tls.RequireAndVerifyClientCert
	clientTLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for _, layer := range []struct {
		name   string
		stdlib bool
	}{{"own", false}, {"stdlib", true}} {
		b.Run(layer.name, func(b *testing.B) {
			const pairs = 300
			cfg := Config{StdlibTLS: layer.stdlib}
			server, client := start(b, cfg), start(b, cfg)
			addr := listen(b, server, func(c *Conn) Handler {
				c.StartTLSServer(serverTLS, 0, func(error) {})
				return echo{}
			})
			echoed := make(chan struct{}, pairs)
			connect := func() {
				client.Dial(addr, DialOptions{}, func(c *Conn, err error) {
					if err != nil {
						b.Error(err)
						return
					}
					c.SetHandler(&probe{data: func(_ *Conn, p []byte) int { echoed <- struct{}{}; return len(p) }})
					c.StartTLSClient(clientTLS, 0, func(error) {})
					c.Write([]byte("hello"))
				})
			}
			heap := func() uint64 {
				runtime.GC()
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapAlloc
			}
			var bytes uint64
			for b.Loop() {
				client.Post(connect) // makes the loops' buffers
				await(b, "echo", echoed)
				before := heap()
				for range pairs {
					client.Post(connect)
					await(b, "echo", echoed)
				}
				bytes += (heap() - before) / (2 * pairs)
			}
			b.ReportMetric(float64(bytes)/float64(b.N), "B/conn")
		})
	}
}
