package accelerate

import (
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkPath sends towards the proxy and reads it there, in one thread: the price of the way itself, with no one to
// be woken.
func BenchmarkPath(b *testing.B) {
	if os.Getenv(roleVariable) != roleTests {
		b.Skip("needs root")
	}
	for _, size := range []int{100, 1 << 10, 16 << 10, 64 << 10} {
		for _, accelerated := range []bool{false, true} {
			b.Run(fmt.Sprintf("bytes=%d/accelerated=%v", size, accelerated), func(b *testing.B) {
				if accelerated {
					attach(b)
				}
				workload, proxy := shapes()[0].connect(b)
				from, to := descriptor(b, workload), descriptor(b, proxy)
				out, in := noise(size), make([]byte, size)
				b.SetBytes(int64(size))
				b.ResetTimer()
				before := cpu(b)
				for range b.N {
					if n, err := unix.Write(from, out); n != size || err != nil {
						b.Fatal(n, err)
					}
					for got := 0; got < size; {
						n, err := unix.Read(to, in[got:])
						if err != nil {
							b.Fatal(err)
						}
						got += n
					}
				}
				b.StopTimer()
				b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
				if over := overTCP(b, workload); (over == 0) != accelerated {
					b.Errorf("%d segments went over TCP", over)
				}
			})
		}
	}
}

// cpu is what this process has used, in nanoseconds: on a busy machine it says more than the time that went by.
func cpu(b *testing.B) int64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// descriptor is a blocking descriptor of the connection.
func descriptor(b *testing.B, c *net.TCPConn) int {
	b.Helper()
	f, err := c.File()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	fd := int(f.Fd())
	if err := unix.SetNonblock(fd, false); err != nil {
		b.Fatal(err)
	}
	return fd
}
