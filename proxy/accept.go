package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/table"
	"github.com/lateen-mesh/lateen/telemetry"
)

// backlog is the length of the queue of connections that wait to be accepted.
const backlog = 4096

// open opens what the role listens on from the start.
func (p *Proxy) open(run func(string, func(context.Context) error)) error {
	if p.cfg.Role == RoleSidecar {
		for _, l := range []struct {
			port   uint16
			accept func(*worker, *loop.Conn)
		}{{PortOutbound, (*worker).acceptOutbound}, {PortInbound, (*worker).acceptInbound}, {PortTunnel, (*worker).acceptTunnels}} {
			if err := p.listen(netip.AddrPortFrom(netip.IPv6Unspecified(), l.port), l.accept, nil); err != nil {
				return err
			}
		}
		if err := p.openDNS(run); err != nil {
			return err
		}
	}
	p.gateways.p = p
	run("gateway ports", p.gateways.run)
	return p.openAdmin(run)
}

// errLoopEnded is why nothing can be opened when the proxy ends.
var errLoopEnded = errors.New("the event loop has stopped")

// listen opens one listening socket for each worker (SO_REUSEPORT) and begins to accept. opened is told of each
// listener, on its worker's loop.
func (p *Proxy) listen(addr netip.AddrPort, accept func(*worker, *loop.Conn), opened func(*worker, *loop.Listener)) error {
	for i, w := range p.workers {
		fd, err := p.socket(addr, i)
		if err != nil {
			return err
		}
		if fd < 0 {
			break // an inherited socket serves one worker
		}
		done := make(chan error, 1)
		if !w.loop.Post(func() {
			l, err := w.loop.Listen(fd, func(c *loop.Conn) { accept(w, c) })
			if err == nil && opened != nil {
				opened(w, l)
			}
			done <- err
		}) {
			_ = unix.Close(fd)
			return errLoopEnded
		}
		if err := <-done; err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("listen on %s: %w", addr, err)
		}
	}
	return nil
}

// socket opens the listening socket for worker number i, or takes the inherited one; -1: there is none for it.
func (p *Proxy) socket(addr netip.AddrPort, i int) (int, error) {
	if fd, ok := p.cfg.Inherited[strconv.Itoa(int(addr.Port()))]; ok {
		if i > 0 {
			return -1, nil
		}
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return 0, fmt.Errorf("take the socket for port %d that was handed in: %w", addr.Port(), err)
		}
		return dup, nil
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	network := "tcp"
	if addr.Addr().Is4() {
		network = "tcp4"
	}
	l, err := lc.Listen(context.Background(), network, addr.String())
	if err != nil {
		return 0, listenError(addr, err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return 0, fmt.Errorf("listen on %s: %w", addr, err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		_ = unix.Close(fd)
		return 0, listenError(addr, err)
	}
	return fd, nil
}

// listenError says what to do about the usual causes.
func listenError(addr netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listen on %s: %w; another process of this network namespace has the port: find it with `ss -ltnp 'sport = :%d'`, or run the workload in a namespace of its own with `lateen run`", addr, err, addr.Port())
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("listen on %s: %w; ports below 1024 need CAP_NET_BIND_SERVICE or a lower net.ipv4.ip_unprivileged_port_start", addr, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("listen on %s: %w; no interface of this network namespace has the address: see `ip addr`", addr, err)
	}
	return fmt.Errorf("listen on %s: %w", addr, err)
}

// acceptOutbound takes a connection that the workload has opened.
func (w *worker) acceptOutbound(c *loop.Conn) {
	dst, err := c.OriginalDst()
	if err != nil || dst == c.LocalAddr() {
		w.p.logs.loops.Info("connection refused", "reason", telemetry.LoopDetected, "from", c.RemoteAddr(),
			"cause", "it came to the capture port itself and says no other destination")
		c.Abort()
		return
	}
	s := w.newSession(c, dst)
	s.findListener(dst.String())
}

// acceptInbound takes a connection that somebody has opened to the workload.
func (w *worker) acceptInbound(c *loop.Conn) {
	dst, err := c.OriginalDst()
	if err != nil {
		dst = c.LocalAddr()
	}
	if ownPort(dst.Port()) {
		c.Abort()
		return
	}
	s := w.newSession(c, dst)
	s.findListener(plan.ListenerInbound)
}

// ownPort reports whether a port is one of the proxy's own, which nobody reaches from outside; what goes there would
// come back to us for ever.
func ownPort(port uint16) bool {
	switch port {
	case PortInbound, PortOutbound, PortTunnel, PortAdmin, PortDNS:
		return true
	}
	return false
}

// acceptGateway takes a connection from outside.
func (w *worker) acceptGateway(c *loop.Conn, name string) {
	dst := c.LocalAddr()
	if l, state := w.p.table.Listener(name); state == table.Ready {
		// A socket that was handed in may have another port than the listener.
		dst = netip.AddrPortFrom(dst.Addr(), l.Plan.Bind.Port())
	}
	s := w.newSession(c, dst)
	s.findListener(name)
}
