package proxy

import (
	"bytes"
	"errors"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/http1"
	"github.com/lateen-mesh/lateen/proxy/loop"
)

// idlePairs is how many connections the measurement holds on each side of the proxy.
const idlePairs = 2000

// pairBytesMax is what an idle pair of plaintext HTTP/1 connections, one from a client and one to a server, may hold of
// the heap.
const pairBytesMax = 1 << 10

// clientBytesMax is the same of a client's connection alone.
const clientBytesMax = 640

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
	wait := syscall.NsecToTimeval(int64(patience))
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

// rawServer is a listening socket and a rig that sends everything to it, for idlePairs connections.
func rawServer(t *testing.T) (server int, r *rig) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 4*idlePairs+200 {
		t.Skipf("%d descriptors are needed and %d permitted (ulimit -n); %v", 4*idlePairs+200, limit.Cur, err)
	}
	server = rawSocket(t)
	t.Cleanup(func() { _ = syscall.Close(server) })
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
	return server, newRig(t, to("c"), c...)
}

// connect connects n sockets to the rig.
func (r *rig) connect(t *testing.T, n int) (clients sockets) {
	t.Helper()
	gateway := netip.MustParseAddrPort(r.addr)
	for range n {
		fd := rawSocket(t)
		if err := syscall.Connect(fd, &syscall.SockaddrInet4{Addr: gateway.Addr().As4(), Port: int(gateway.Port())}); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, fd)
	}
	return clients
}

// accept takes n connections from a listening socket.
func accept(t *testing.T, server, n int) (servers sockets) {
	t.Helper()
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
	return servers
}

const (
	idleRequest = "GET /a/b?c=d HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: test\r\n\r\n"
	idleAnswer  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
)

// exchange has each client make a request, which the servers answer.
func (s sockets) exchange(t *testing.T, servers func() sockets) {
	t.Helper()
	s.write(t, []byte(idleRequest))
	to := servers()
	to.read(t, []byte("\r\n\r\n"))
	to.write(t, []byte(idleAnswer))
	s.read(t, []byte("\r\n\r\nok"))
}

// TestIdleConnectionsHoldLittle: connections that wait for their next request hold no buffers.
func TestIdleConnectionsHoldLittle(t *testing.T) {
	server, r := rawServer(t)
	fill := func() (clients, servers sockets) {
		clients = r.connect(t, idlePairs)
		clients.exchange(t, func() sockets {
			servers = accept(t, server, idlePairs)
			return servers
		})
		return clients, servers
	}
	clients, servers := fill() // which fills the stocks of what is used again
	clients.close()
	servers.close()
	r.await("those gone", func(w *worker) bool { return len(w.downstreams) == 0 && r.usage("c").Connections == 0 })
	before := heap()
	clients, servers = fill()
	defer clients.close()
	defer servers.close()
	r.await("all idle", func(w *worker) bool { return len(w.downstreams) == idlePairs && r.usage("c").Requests == 0 })
	checkEach(t, "pair", before, pairBytesMax)
}

// TestIdleClientsHoldLittle: clients that have been served share the connections to servers, and nothing stays of the
// detection of what they speak.
func TestIdleClientsHoldLittle(t *testing.T) {
	server, r := rawServer(t)
	var upstream sockets
	fill := func() (clients sockets) {
		for range idlePairs {
			one := r.connect(t, 1)
			one.exchange(t, func() sockets {
				if upstream == nil {
					upstream = accept(t, server, 1)
				}
				return upstream
			})
			clients = append(clients, one...)
		}
		return clients
	}
	clients := fill()
	defer func() { upstream.close() }()
	clients.close()
	r.await("those gone", func(w *worker) bool { return len(w.downstreams) == 0 })
	before := heap()
	clients = fill()
	defer clients.close()
	r.await("all idle", func(w *worker) bool { return len(w.downstreams) == idlePairs && r.usage("c").Requests == 0 })
	if n := r.usage("c").Connections; n != 1 {
		t.Errorf("%d connections to the server", n)
	}
	checkEach(t, "client", before, clientBytesMax)
}

// checkEach compares what the heap has grown by for each of idlePairs.
func checkEach(t *testing.T, what string, before uint64, most int64) {
	t.Helper()
	each := (int64(heap()) - int64(before)) / idlePairs
	t.Logf("%d bytes of heap and stack for each %s", each, what)
	if each > most {
		t.Errorf("%d bytes for each %s, want no more than %d", each, what, most)
	}
}

// TestSizesOfConnections states what a connection that is idle consists of, so that who adds a field sees what it
// costs: the allocator rounds up to the next of its sizes, of which most of these are one.
func TestSizesOfConnections(t *testing.T) {
	for _, v := range []struct {
		name       string
		size, most uintptr
	}{
		{"loop.Conn", unsafe.Sizeof(loop.Conn{}), 160},
		{"session", unsafe.Sizeof(session{}), 128},
		{"downstream", unsafe.Sizeof(downstream{}), 96},
		{"http1.ServerConn", unsafe.Sizeof(http1.ServerConn{}), 144},
		{"http1.ClientConn", unsafe.Sizeof(http1.ClientConn{}), 144},
		{"upstream", unsafe.Sizeof(upstream{}), 112},
	} {
		if v.size > v.most {
			t.Errorf("%s has %d bytes, want no more than %d", v.name, v.size, v.most)
		}
	}
}
