package proxy

import (
	"bytes"
	"errors"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// idlePairs is how many connections the measurement holds on each side of the proxy.
const idlePairs = 2000

// pairBytesMax is what an idle pair of plaintext HTTP/1 connections, one from a client and one to a server, may hold of
// the heap.
const pairBytesMax = 2 << 10

// sockets are descriptors without any Go memory of their own, so that the heap is the proxy's.
type sockets []int

func (s sockets) close() {
	for _, fd := range s {
		_ = syscall.Close(fd)
	}
}

// write sends text on all.
func (s sockets) write(t *testing.T, text []byte) {
	t.Helper()
	for _, fd := range s {
		if _, err := syscall.Write(fd, text); err != nil {
			t.Fatal(err)
		}
	}
}

// read reads a message that ends as told from all.
func (s sockets) read(t *testing.T, end []byte) {
	t.Helper()
	buf := make([]byte, 4096)
	for _, fd := range s {
		for n := 0; !bytes.HasSuffix(buf[:n], end); {
			k, err := syscall.Read(fd, buf[n:])
			if errors.Is(err, syscall.EINTR) { // by a signal of the runtime's; so below
				continue
			}
			if err != nil || k == 0 {
				t.Fatalf("read %q, then %d bytes, %v", buf[:n], k, err)
			}
			n += k
		}
	}
}

func rawSocket(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	wait := syscall.NsecToTimeval(int64(20 * time.Second))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait); err != nil {
		t.Fatal(err)
	}
	return fd
}

// heap is the memory in use, in bytes.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// TestIdleConnectionsHoldLittle: connections that wait for their next request hold no buffers.
func TestIdleConnectionsHoldLittle(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 4*idlePairs+200 {
		t.Skipf("%d descriptors are needed and %d permitted (ulimit -n); %v", 4*idlePairs+200, limit.Cur, err)
	}
	server := rawSocket(t)
	defer func() { _ = syscall.Close(server) }()
	if err := syscall.Bind(server, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(server, idlePairs); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(server)
	if err != nil {
		t.Fatal(err)
	}
	c := clusterOf(func(c *plan.Cluster) {
		c.Limits = plan.Limits{Connections: 2 * idlePairs, PendingRequests: 2 * idlePairs, Requests: 2 * idlePairs}
	})
	c[1].(*plan.Endpoints).Endpoints = []plan.Endpoint{
		endpointAt(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port)).String(), "w"),
	}
	r := newRig(t, to("c"), c...)
	gateway := netip.MustParseAddrPort(r.addr)

	fill := func(n int) (clients, servers sockets) {
		for range n {
			fd := rawSocket(t)
			if err := syscall.Connect(fd, &syscall.SockaddrInet4{Addr: gateway.Addr().As4(), Port: int(gateway.Port())}); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, fd)
		}
		clients.write(t, []byte("GET /a/b?c=d HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: test\r\n\r\n"))
		for range n {
			fd, _, err := syscall.Accept4(server, syscall.SOCK_CLOEXEC)
			for errors.Is(err, syscall.EINTR) {
				fd, _, err = syscall.Accept4(server, syscall.SOCK_CLOEXEC)
			}
			if err != nil {
				t.Fatal(err)
			}
			servers = append(servers, fd)
		}
		servers.read(t, []byte("\r\n\r\n"))
		servers.write(t, []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
		clients.read(t, []byte("\r\n\r\nok"))
		return clients, servers
	}
	clients, servers := fill(idlePairs) // which fills the stocks of what is used again
	clients.close()
	servers.close()
	r.await("those gone", func(w *worker) bool { return len(w.downstreams) == 0 && r.usage("c").Connections == 0 })
	before := heap()
	clients, servers = fill(idlePairs)
	defer clients.close()
	defer servers.close()
	r.await("all idle", func(w *worker) bool { return len(w.downstreams) == idlePairs && r.usage("c").Requests == 0 })
	after := heap()
	each := (int64(after) - int64(before)) / idlePairs
	t.Logf("%d bytes of heap and stack for each pair", each)
	if each > pairBytesMax {
		t.Errorf("%d bytes for each pair, want no more than %d", each, pairBytesMax)
	}
}
