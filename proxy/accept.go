package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
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
		}{{PortOutbound, (*worker).acceptOutbound}, {PortInbound, (*worker).acceptInbound}} {
			if err := p.listen(netip.AddrPortFrom(netip.IPv6Unspecified(), l.port), l.accept, nil); err != nil {
				return err
			}
		}
		if err := p.openDNS(run); err != nil {
			return err
		}
	}
	p.gateways.p = p
	return p.openAdmin(run)
}

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
			return errors.New("the event loop has stopped")
		}
		if err := <-done; err != nil {
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
	return fd, unix.Listen(fd, backlog)
}

// listenError says what to do about the usual causes.
func listenError(addr netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listen on %s: %w; another process of this network namespace has the port: find it with `ss -ltnp 'sport = :%d'`, or run the workload in a namespace of its own with `lateen run`", addr, err, addr.Port())
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("listen on %s: %w; ports below %s need CAP_NET_BIND_SERVICE or a lower net.ipv4.ip_unprivileged_port_start", addr, err, "1024")
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
	switch dst.Port() {
	case PortInbound, PortOutbound, PortAdmin, PortDNS:
		c.Abort() // the proxy's own, which nobody reaches from outside; it would come back to us for ever
		return
	}
	s := w.newSession(c, dst)
	s.findListener(plan.ListenerInbound)
}

// gateways are the listeners of a gateway: opened, obeyed and closed as the plan says.
type gateways struct {
	p  *Proxy
	mu sync.Mutex
	// open is the port of each listener that is open, and how to close it on its workers.
	open map[string]*gatewayPort
}

type gatewayPort struct {
	bind netip.AddrPort
	mu   sync.Mutex
	list map[*worker]*loop.Listener
}

// update is told the names of the listeners that are in force.
func (g *gateways) update(names []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = map[string]*gatewayPort{}
	}
	for name, port := range g.open {
		l, state := g.p.table.Listener(name)
		if slices.Contains(names, name) && state == table.Ready && l.Plan.Bind == port.bind {
			continue
		}
		port.close()
		delete(g.open, name)
	}
	for _, name := range names {
		if g.open[name] != nil || !strings.HasPrefix(name, plan.ListenerGateway) {
			continue
		}
		l, state := g.p.table.Listener(name)
		if state != table.Ready {
			continue
		}
		port := &gatewayPort{bind: l.Plan.Bind, list: map[*worker]*loop.Listener{}}
		if err := g.p.listen(l.Plan.Bind, func(w *worker, c *loop.Conn) { w.acceptGateway(c, name) }, port.opened); err != nil {
			g.p.cfg.Logger.Error("a gateway's port is not open", "listener", name, "cause", err)
			continue
		}
		g.open[name] = port
		g.p.cfg.Logger.Info("gateway port open", "listener", name, "bind", l.Plan.Bind)
	}
}

func (p *gatewayPort) opened(w *worker, l *loop.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list[w] = l
}

func (p *gatewayPort) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w, l := range p.list {
		w.loop.Post(l.Close)
	}
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
