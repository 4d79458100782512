// Package host runs workloads of a mesh on one Linux machine, without containers and without root: one process, the
// host, holds the control plane and every workload in namespaces of its own.
//
// In come a Config, and over a Unix socket the workloads that clients ask for, with their terminals and with listening
// sockets that were opened outside. Out go processes: for each workload its proxy, then its command, and news of both
// to the client. The host is process 1 of a PID namespace and owns a network namespace with a bridge; each workload is
// a PID, network and mount namespace below it. Nothing is pinned anywhere, so that killing the host ends everything.
//
// Start, Dial and the Client are for clients; Run is the host; Init is the first process of one workload; Outside is
// the process on the machine's own network that connects workloads with what is not in the mesh. The package must not
// know what a workload does, nor what the mesh's configuration says. Run, Init and Outside are whole programs: call
// each once. A Client serves one goroutine.
package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

const (
	// controlPort is where lateend serves the workloads.
	controlPort = 15012
	// controlName is what lateend's certificate says.
	controlName = "lateend"
	// maxWorkloads bounds the workloads of one host.
	maxWorkloads = 256
	// linger is how long a host without workloads waits for the next one.
	linger = 2 * time.Second
	// firstClient is how long it waits, at the least, for whoever started it, on a machine that is busy.
	firstClient = 10 * time.Second
	// startLimit bounds what happens before the host serves, and what a client waits for that.
	startLimit = 30 * time.Second
	// requestLimit bounds the time that a client takes to say what it wants.
	requestLimit = 5 * time.Second
	// acceptPause is waited when a client cannot be accepted, for want of descriptors.
	acceptPause = 50 * time.Millisecond
)

// bridgeAddresses are the host's own addresses; the first is also where lateend listens.
func bridgeAddresses() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.77.0.1/16"), netip.MustParsePrefix("fd77::1/64")}
}

// Config is what a host is started with.
type Config struct {
	// Dir is the mesh's run directory (see Dir).
	Dir Dir `json:"dir"`
	// Self, Lateend and Proxy are the programs lateen, lateend and lateen-proxy.
	Self, Lateend, Proxy string
	// Follow has the host end when its standard input does; else it ends some time after its last workload.
	Follow bool
	// Linger is how long it then waits for the next one.
	Linger time.Duration
	// Accelerate shortens the way between the workloads and their proxies, if the kernel can (redirect/accelerate).
	Accelerate bool
}

// The descriptors that a host is started with, besides its standard files.
const (
	startedFD = iota + firstInherited // Where it reports its start.
	lockFD                            // The lock of its directory, held until it ends.
	outsideFD                         // The process outside.
)

// host is a running host.
type host struct {
	cfg     Config
	log     *slog.Logger
	bridge  *netns.Bridge
	pools   []*netns.Pool
	reaper  *reaper
	control *control
	outside *net.UnixConn // To the process outside.
	// shortcut is the accelerator, if there is one.
	shortcut shortcut

	end  context.CancelFunc // Ends the host.
	work sync.WaitGroup     // The connections, each with its workload.

	mu        sync.Mutex
	workloads map[string]*workload // By namespace/name.
	conns     int                  // Open connections.
	idle      *time.Timer
	ending    bool
}

// Run is the host: it reads a Config from stdin, reports to whoever started it what became of its start, and serves
// until it is told to end, ctx ends, or there is nothing left to do. Nothing is left of it then.
func Run(ctx context.Context, stdin io.Reader) error {
	for fd := startedFD; fd <= outsideFD; fd++ {
		syscall.CloseOnExec(fd)
	}
	var cfg Config
	in := json.NewDecoder(stdin)
	if err := in.Decode(&cfg); err != nil {
		return fmt.Errorf("read the host's configuration from standard input: %w", err)
	}
	words, err := newLog(cfg.Dir.Log("host"))
	if err != nil {
		return err
	}
	words.renewed = func(f *os.File) { _ = unix.Dup3(int(f.Fd()), syscall.Stderr, 0) } // Where a panic would be told.
	words.renewed(words.file)
	h := &host{cfg: cfg, log: slog.New(slog.NewTextHandler(words, nil)), workloads: map[string]*workload{}}
	outside, err := net.FileConn(os.NewFile(outsideFD, "outside"))
	if err != nil {
		return fmt.Errorf("find the process outside: %w", err)
	}
	h.outside = outside.(*net.UnixConn)
	ctx, h.end = context.WithCancel(ctx)
	defer h.end()
	err = h.serve(ctx, in, os.NewFile(startedFD, "started"))
	h.end() // also when serve failed: the workloads end, too
	h.refuse()
	_ = h.outside.Close()
	h.work.Wait()
	if h.control != nil {
		h.control.stop()
	}
	h.shortcut.close()
	return errors.Join(err, cfg.Dir.remove())
}

// serve builds the host up and accepts connections until ctx ends.
func (h *host) serve(ctx context.Context, in *json.Decoder, started io.WriteCloser) error {
	l, err := h.open(ctx)
	report := startReport{}
	if err != nil {
		report.Error = err.Error()
	}
	werr := json.NewEncoder(started).Encode(report)
	_ = started.Close()
	if err != nil {
		return err
	}
	if werr != nil {
		_ = l.Close()
		return fmt.Errorf("tell the client that the host is ready, which has gone: %w", werr)
	}
	if h.cfg.Follow {
		go func() { // Ends with the pipe, or with the process.
			_, _ = in.Token()
			h.end()
		}()
	} else {
		h.idle = time.AfterFunc(max(h.cfg.Linger, firstClient), h.endIdle)
	}
	stop := context.AfterFunc(ctx, func() { h.refuse(); _ = l.Close() })
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				h.log.Warn("a client is not accepted for now", "cause", err)
				select {
				case <-time.After(acceptPause):
				case <-ctx.Done():
				}
				continue
			}
			return fmt.Errorf("accept a client: %w", err)
		}
		h.work.Go(func() { h.serveConn(ctx, conn) })
	}
}

// open makes the bridge, starts the control plane and opens the socket for clients.
func (h *host) open(ctx context.Context) (*net.UnixListener, error) {
	if err := mountProc(); err != nil {
		h.log.Info("/proc shows the machine's processes, not ours", "cause", err)
	}
	if err := netns.Loopback(); err != nil {
		return nil, err
	}
	var err error
	addresses := bridgeAddresses()
	if h.bridge, err = netns.NewBridge(netns.BridgeConfig{Addresses: addresses}); err != nil {
		return nil, err
	}
	for _, a := range addresses {
		pool, err := netns.NewPool(a, a.Addr())
		if err != nil {
			return nil, err
		}
		h.pools = append(h.pools, pool)
	}
	h.shortcut.open(h.cfg.Accelerate, h.log)
	h.reaper = newReaper()
	h.control = &control{host: h}
	if err := h.control.start(ctx); err != nil {
		return nil, err
	}
	if err := h.openOutside(); err != nil {
		h.log.Warn("workloads reach only the mesh, nothing outside", "cause", err)
	}
	h.work.Go(h.watchOutside)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.cfg.Dir.Socket(), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open the host's socket: %w", err)
	}
	return l, nil
}

// refuse has later requests be told that the host is ending.
func (h *host) refuse() {
	h.mu.Lock()
	h.ending = true
	h.mu.Unlock()
}

// isEnding says whether the host takes no more requests.
func (h *host) isEnding() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ending
}

// endIdle ends the host unless somebody came in the meantime.
func (h *host) endIdle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.workloads) == 0 && h.conns == 0 {
		h.ending = true
		h.end()
	}
}

// came and left count the connections, for endIdle.
func (h *host) came() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns++
}

func (h *host) left() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns--
	if h.idle != nil {
		h.idle.Reset(h.cfg.Linger)
	}
}

// serveConn answers one client: one request, and for a workload all that follows from it.
func (h *host) serveConn(ctx context.Context, conn *net.UnixConn) {
	h.came()
	defer h.left()
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(requestLimit))
	hurry := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	req, files, err := readRequest(conn)
	hurry()
	_ = conn.SetReadDeadline(time.Time{})
	if err != nil {
		h.log.Warn("a client's request is not understood", "cause", err)
		return
	}
	out := &events{conn: conn}
	switch req.Op {
	case opRun:
		err = h.runWorkload(ctx, conn, out, req, files)
	case opList:
		out.send(Event{Kind: EventList, Workloads: h.list()})
	case opStop:
		err = h.stopWorkload(req.Namespace, req.Name)
	case opEnd:
		h.refuse()
		h.end()
	default:
		err = fmt.Errorf("the host does not know the request %q: it was started by another version of lateen; end "+
			"it with `lateen demo --clean`", req.Op)
	}
	closeAll(files)
	if err != nil {
		out.send(Event{Kind: EventError, Error: err.Error()})
		return
	}
	out.send(Event{Kind: EventDone})
}

// list tells of every workload.
func (h *host) list() []Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []Status{}
	for _, w := range h.workloads {
		out = append(out, w.status())
	}
	return out
}

// stopWorkload ends a workload and waits for that.
func (h *host) stopWorkload(namespace, name string) error {
	h.mu.Lock()
	w := h.workloads[namespace+"/"+name]
	h.mu.Unlock()
	if w == nil {
		return fmt.Errorf("no workload %q runs here in namespace %q; `lateen status` lists them", name, namespace)
	}
	w.stop()
	<-w.ended
	return nil
}

// reserve takes the workload's name, or says why it cannot be had.
func (h *host) reserve(w *workload) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.ending:
		return ErrEnding
	case h.workloads[w.key()] != nil:
		return fmt.Errorf("the name %q is in use in namespace %q; choose another --name, or end that workload with "+
			"`lateen stop %s`", w.req.Name, w.req.Namespace, w.req.Name)
	case len(h.workloads) >= maxWorkloads:
		return fmt.Errorf("this mesh runs %d workloads, which is the limit; end some, or start another mesh with "+
			"--mesh", maxWorkloads)
	}
	h.workloads[w.key()] = w
	return nil
}

func (h *host) release(w *workload) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.workloads, w.key())
}

// addresses takes one address from each pool.
func (h *host) addresses() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, p := range h.pools {
		a, err := p.Take()
		if err != nil {
			return nil, errors.Join(err, h.giveBack(out))
		}
		out = append(out, a)
	}
	return out, nil
}

func (h *host) giveBack(addresses []netip.Addr) error {
	var errs []error
	for i, a := range addresses {
		errs = append(errs, h.pools[i].Release(a))
	}
	return errors.Join(errs...)
}
