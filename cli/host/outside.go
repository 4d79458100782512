package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxRelayed bounds the connections to the outside that are open at once, maxQueries the DNS questions.
	maxRelayed = 8192
	maxQueries = 256
	// dialLimit is how long a connection to the outside may take to come about.
	dialLimit = 10 * time.Second
	// resolverLimit is how long one of the machine's name servers has to answer; maxResolvers are asked, one after
	// the other (resolv.conf(5)).
	resolverLimit = 2 * time.Second
	maxResolvers  = 3
	// maxMessage is the largest DNS message over UDP that is passed on.
	maxMessage = 4096
	// headerBytes is the size of a DNS header (RFC 1035 section 4.1.1).
	headerBytes = 12
	// resolversFile names the machine's name servers.
	resolversFile = "/etc/resolv.conf"
)

// outside is a process that stands outside the mesh's namespaces: it owns connections on the machine's own network for
// those that workloads open to addresses that are not the mesh's. It needs no right that its user has not.
type outside struct {
	log     *slog.Logger
	relayed chan struct{} // A place for each connection.
	asked   chan struct{} // A place for each question.
	work    sync.WaitGroup
}

// Outside serves the sockets that the host sends through the descriptor that it was started with, until the host ends,
// and writes its log to a file. It is a whole program: call it once.
func Outside(log string) error {
	syscall.CloseOnExec(controlFD)
	words, err := newLog(log)
	if err != nil {
		return err
	}
	defer words.close()
	conn, err := net.FileConn(os.NewFile(controlFD, "host"))
	if err != nil {
		return fmt.Errorf("find the host: lateen starts this command, nobody else: %w", err)
	}
	defer func() { _ = conn.Close() }()
	req, files, err := readRequest(conn.(*net.UnixConn))
	if errors.Is(err, io.EOF) {
		return nil // The host did not come to life.
	}
	if err != nil {
		return err
	}
	o := &outside{log: slog.New(slog.NewTextHandler(words, nil)), relayed: make(chan struct{}, maxRelayed), asked: make(chan struct{}, maxQueries)}
	ctx, cancel := context.WithCancel(context.Background())
	for i, f := range files {
		if err = o.open(ctx, req.Sockets[i], f); err != nil {
			break
		}
	}
	closeAll(files)
	if err == nil {
		_, _ = conn.Read(make([]byte, 1)) // Returns when the host has ended.
	}
	cancel()
	o.work.Wait()
	return err
}

// open begins to serve a socket of the host.
func (o *outside) open(ctx context.Context, name string, f *os.File) error {
	if name == outsideQueries {
		socket, err := net.FilePacketConn(f)
		if err != nil {
			return fmt.Errorf("serve DNS for the workloads: %w", err)
		}
		o.until(ctx, socket)
		o.work.Go(func() { o.answer(ctx, socket) })
		return nil
	}
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("serve the workloads' connections: %w", err)
	}
	o.until(ctx, l)
	serve := o.relay
	if name == outsideStreams {
		serve = o.resolveStream
	}
	o.work.Go(func() { o.accept(ctx, l.(*net.TCPListener), serve) })
	return nil
}

// until closes c when ctx ends.
func (o *outside) until(ctx context.Context, c io.Closer) {
	context.AfterFunc(ctx, func() { _ = c.Close() })
}

// accept has each connection served by a goroutine of its own, as many as there are places.
func (o *outside) accept(ctx context.Context, l *net.TCPListener, serve func(context.Context, *net.TCPConn) error) {
	for {
		c, err := l.AcceptTCP()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			o.log.Warn("a connection to the outside is not accepted for now", "cause", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case o.relayed <- struct{}{}:
		default:
			o.log.Warn("a connection to the outside is refused: there are too many", "limit", maxRelayed)
			reset(c)
			continue
		}
		o.work.Go(func() {
			defer func() { <-o.relayed }()
			if err := serve(ctx, c); err != nil {
				o.log.Info("a connection to the outside failed", "cause", err)
				reset(c)
			}
		})
	}
}

// reset closes a connection so that its peer learns that it failed.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// relay connects a connection with where it wanted to go.
func (o *outside) relay(ctx context.Context, c *net.TCPConn) error {
	to, err := wanted(c)
	if err != nil {
		return err
	}
	return join(ctx, c, to.String())
}

// resolveStream connects a DNS client with the first of the machine's name servers that accepts it.
func (o *outside) resolveStream(ctx context.Context, c *net.TCPConn) error {
	var errs []error
	for _, server := range resolvers(resolversFile) {
		err := join(ctx, c, server)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("ask the name servers of %s: %w", resolversFile, errors.Join(errs...))
}

// join connects c with an address, and passes bytes both ways until both sides have said all, one of them fails, or
// ctx ends. An error means that there is no connection and that c is as it was.
func join(ctx context.Context, c *net.TCPConn, address string) error {
	conn, err := (&net.Dialer{Timeout: dialLimit}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	far := conn.(*net.TCPConn)
	defer context.AfterFunc(ctx, func() { reset(c); reset(far) })()
	var group sync.WaitGroup
	for from, to := range map[*net.TCPConn]*net.TCPConn{c: far, far: c} {
		group.Go(func() {
			if _, err := io.Copy(to, from); err != nil {
				reset(to)
				reset(from)
				return
			}
			_ = to.CloseWrite()
		})
	}
	group.Wait()
	_, _ = c.Close(), far.Close()
	return nil
}

// wanted is where a connection was going before it was redirected.
func wanted(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	v4 := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is4()
	var to netip.AddrPort
	var failed error
	if err := raw.Control(func(fd uintptr) { to, failed = originalDestination(int(fd), v4) }); err != nil {
		failed = err
	}
	if failed != nil {
		return to, fmt.Errorf("ask where the connection from %s was going: %w", c.RemoteAddr(), failed)
	}
	a := to.Addr()
	own := slices.ContainsFunc(bridgeAddresses(), func(p netip.Prefix) bool { return p.Contains(a) })
	if own || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.Is6() && a.IsLinkLocalUnicast() {
		return to, fmt.Errorf("%s is no address outside the mesh", to)
	}
	return to, nil
}

// originalDestination reads SO_ORIGINAL_DST, a struct sockaddr_in or, as IP6T_SO_ORIGINAL_DST, a struct sockaddr_in6
// (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
func originalDestination(fd int, v4 bool) (netip.AddrPort, error) {
	if v4 {
		a, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST) // 16 of its 20 bytes are filled.
		if err != nil {
			return netip.AddrPort{}, err
		}
		b := a.Multiaddr
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
	}
	a, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, a.Addr.Port))
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr.Addr), port), nil
}

// answer answers DNS questions by asking the machine's name servers.
func (o *outside) answer(ctx context.Context, socket net.PacketConn) {
	buffer := make([]byte, maxMessage)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if ctx.Err() != nil {
			return
		}
		if err != nil || n < headerBytes {
			continue
		}
		question := slices.Clone(buffer[:n])
		select {
		case o.asked <- struct{}{}:
		default:
			continue // As if it had been lost: the client asks again.
		}
		o.work.Go(func() {
			defer func() { <-o.asked }()
			_, _ = socket.WriteTo(resolve(ctx, question, resolvers(resolversFile)), from)
		})
	}
}

// resolve returns what the first of the servers answers that does, or that none did.
func resolve(ctx context.Context, question []byte, servers []string) []byte {
	for _, server := range servers {
		if answer, err := ask(ctx, question, server); err == nil {
			return answer
		}
	}
	failure := slices.Clone(question)
	failure[2] |= 0x80                      // QR: it is an answer.
	failure[3] = failure[3]&0x70 | 1<<7 | 2 // RA, and the code SERVFAIL.
	return failure
}

// ask asks one server over UDP. The socket is new, and so its port cannot be guessed.
func ask(ctx context.Context, question []byte, server string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, resolverLimit)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(question); err != nil {
		return nil, err
	}
	answer := make([]byte, maxMessage)
	for {
		n, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		if n >= headerBytes && slices.Equal(answer[:2], question[:2]) {
			return answer[:n], nil
		}
	}
}

// resolvers are the machine's name servers, as they are now: they change with its networks. Without any it is the
// machine itself (resolv.conf(5)).
func resolvers(path string) []string {
	text, _ := os.ReadFile(path)
	var out []string
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "nameserver" && len(out) < maxResolvers {
			out = append(out, net.JoinHostPort(words[1], "53"))
		}
	}
	if len(out) == 0 {
		out = append(out, net.JoinHostPort("127.0.0.1", "53"))
	}
	return out
}
