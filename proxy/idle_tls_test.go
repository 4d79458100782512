package proxy

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

const (
	// idleTLS is how many connections the measurement holds.
	idleTLS = 500
	// idleTLSBytesMax is what an idle HTTP/1 connection with mutual TLS may hold of the heap.
	idleTLSBytesMax = 3500
)

// leave makes a request and keeps the bare socket: what crypto/tls knows of the connection is the test's, not the proxy's.
func leave(t *testing.T, addr string, cfg *tls.Config) int {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, cfg)
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: app\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		t.Fatal(err)
	}
	f, err := raw.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if err := f.Control(func(p uintptr) { fd, err = syscall.Dup(int(p)) }); err != nil || fd < 0 {
		t.Fatal(err)
	}
	return fd
}

// TestIdleTLSConnectionsHoldLittle: what the handshakes needed is gone after them, and peers that show the same
// certificate share it.
func TestIdleTLSConnectionsHoldLittle(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 3*idleTLS+200 {
		t.Skipf("%d descriptors are needed and %d permitted (ulimit -n); %v", 3*idleTLS+200, limit.Cur, err)
	}
	a := authority(t)
	r := sidecar(t, a, "server")
	at := r.inbound(app(t), func(c *plan.Chain) { c.TLS.Mode, c.Protocol = plan.TLSStrict, plan.ProtocolHTTP })
	cert, err := a.Certificate(workloadID("client"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{alpnHTTP11}}
	var all sockets
	defer func() { all.close() }()
	fill := func(n int) {
		for range n {
			all = append(all, leave(t, at, cfg))
		}
		r.await("all idle", func(w *worker) bool { return len(w.downstreams) == len(all) })
	}
	fill(50)
	before := heap()
	fill(idleTLS)
	runtime.KeepAlive(cfg)
	each := (int64(heap()) - int64(before)) / idleTLS
	t.Logf("%d bytes of heap and stack for each", each)
	if each > idleTLSBytesMax {
		t.Errorf("%d bytes for each, want no more than %d", each, idleTLSBytesMax)
	}
}
