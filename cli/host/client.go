package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

const (
	lockInterval = 20 * time.Millisecond
	// killLimit is how long a host gets to end before it is killed.
	killLimit = 10 * time.Second
)

// StartConfig says how a host is started.
type StartConfig struct {
	// Dir is the run directory of the mesh; Fill, if not nil, puts the first configuration into Dir.Config().
	Dir  Dir
	Fill func(config string) error
	// Follow has the host die with this process; else it lives as long as its workloads.
	Follow bool
	// Linger is how long a host that follows nobody waits without workloads. Default 2 s.
	Linger time.Duration
	// Accelerate has the host shorten the way between the workloads and their proxies; where that cannot be, the
	// proxies tell why.
	Accelerate bool
}

// Host is a host that Start started.
type Host struct {
	dir   Dir
	stdin *os.File
	done  chan struct{} // Closed when the host and the process outside have ended.
}

// ErrRunning is met when a host must be new but one runs already.
var ErrRunning = errors.New("this mesh runs already")

// Programs returns the programs that a host needs, which stand beside this one.
func Programs() (self, lateend, proxy string, err error) {
	if self, err = program(); err != nil {
		return "", "", "", err
	}
	if lateend, err = Beside("lateend"); err != nil {
		return "", "", "", err
	}
	proxy, err = Beside("lateen-proxy")
	return self, lateend, proxy, err
}

// program is this program's own file.
func program() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("find this program's own file: %w", err)
	}
	return self, nil
}

// Beside finds another of our programs, which stands beside this one.
func Beside(name string) (string, error) {
	self, err := program()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find the program %s, which must stand beside %s: `make build` makes it: %w", name, self, err)
	}
	return path, nil
}

// Start starts a host and returns when it serves. If one runs already the error is ErrRunning. What a host that was
// killed left behind is swept.
func Start(ctx context.Context, cfg StartConfig) (*Host, error) {
	self, lateend, proxy, err := Programs()
	if err != nil {
		return nil, err
	}
	isolation := netns.Isolation{User: os.Geteuid() != 0, PID: true}
	if err := netns.Check(isolation); err != nil { //nolint:contextcheck // It takes a moment and cannot be waited for.
		return nil, err
	}
	lock, err := takeLock(ctx, cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	h := &Host{dir: cfg.Dir, done: make(chan struct{})}
	config := Config{Dir: cfg.Dir, Self: self, Lateend: lateend, Proxy: proxy, Follow: cfg.Follow, Linger: cmp.Or(cfg.Linger, linger), Accelerate: cfg.Accelerate}
	if err := h.begin(ctx, cfg, config, isolation, lock); err != nil {
		_ = cfg.Dir.remove()
		return nil, err
	}
	return h, nil
}

// begin fills the run directory and starts the host.
func (h *Host) begin(ctx context.Context, cfg StartConfig, config Config, isolation netns.Isolation, lock *os.File) error {
	if err := cfg.Dir.sweep(); err != nil {
		return err
	}
	if _, err := cfg.Dir.sweepEnded(); err != nil {
		return err
	}
	if err := cfg.Dir.makeFolders(); err != nil {
		return err
	}
	if cfg.Fill != nil {
		if err := cfg.Fill(cfg.Dir.Config()); err != nil {
			return err
		}
	}
	return h.spawn(ctx, config, isolation, lock)
}

// takeLock makes the directory and takes the lock that a host holds for its life. It waits for one that is just ending,
// also if that takes the directory with it.
func takeLock(ctx context.Context, dir Dir) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for {
		var lock *os.File
		err := dir.Make()
		if err == nil {
			lock, err = dir.tryLock()
		}
		if lock != nil || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return lock, err
		}
		if conn, err := net.Dial("unix", dir.Socket()); err == nil {
			_ = conn.Close()
			return nil, ErrRunning
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the host that holds %s and does not answer; `lateen demo --clean` ends it: %w",
				dir.lock(), ctx.Err())
		}
	}
}

// spawn starts the host process and waits for its report.
func (h *Host) spawn(ctx context.Context, cfg Config, isolation netns.Isolation, lock *os.File) error {
	report, started, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer func() { _ = report.Close() }()
	stdin, feed, err := os.Pipe()
	if err != nil {
		_ = started.Close()
		return fmt.Errorf("make a pipe: %w", err)
	}
	h.stdin = feed
	defer func() { _, _ = started.Close(), stdin.Close() }()
	log, err := os.OpenFile(h.dir.Log("host"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the host's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	if err := keepFiles(); err != nil {
		return err
	}
	outside, link, err := startOutside(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { _ = link.Close() }()
	cmd := netns.Command(context.WithoutCancel(ctx), isolation, cfg.Self, "host")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, log, log
	cmd.ExtraFiles = []*os.File{startedFD - firstInherited: started, lockFD - firstInherited: lock, outsideFD - firstInherited: link}
	cmd.Dir = "/"
	cmd.SysProcAttr.Setsid = true // A key on the terminal is for the client alone.
	if !cfg.Follow {
		cmd.SysProcAttr.Pdeathsig = 0
	}
	if err := cmd.Start(); err != nil {
		_, _ = feed.Close(), link.Close()
		_ = outside.Wait()
		return fmt.Errorf("start the host: %w", err)
	}
	go func() {
		_, _ = cmd.Wait(), outside.Wait()
		close(h.done)
	}()
	_, _, _ = started.Close(), stdin.Close(), link.Close() // Theirs now: their end must be seen.
	if err := os.WriteFile(h.dir.pid(), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		return fmt.Errorf("note the host's number: %w", err)
	}
	if err := json.NewEncoder(feed).Encode(cfg); err != nil {
		return fmt.Errorf("tell the host its configuration: %w", err)
	}
	return h.await(ctx, report)
}

// startOutside starts the process outside, which ends when whoever has the other end of the link has ended.
func startOutside(ctx context.Context, cfg Config, log *os.File) (*exec.Cmd, *os.File, error) {
	ours, theirs, err := socketFiles()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = theirs.Close() }()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), cfg.Self, "host-outside", cfg.Dir.Log("outside"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{controlFD - firstInherited: theirs}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = ours.Close()
		return nil, nil, fmt.Errorf("start the process outside: %w", err)
	}
	return cmd, ours, nil
}

// keepFiles keeps what this process has open, and may have from its shell, from those that it starts: they live on,
// and whoever waits for the end of a pipe would wait for them.
func keepFiles() error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list the open files (is /proc mounted?): %w", err)
	}
	for _, f := range open {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd >= firstInherited {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// await reads the host's report.
func (h *Host) await(ctx context.Context, report *os.File) error {
	defer context.AfterFunc(ctx, func() { _ = report.SetReadDeadline(time.Now()) })()
	_ = report.SetReadDeadline(time.Now().Add(startLimit))
	var r startReport
	err := json.NewDecoder(report).Decode(&r)
	switch {
	case err == nil && r.Error == "":
		return nil
	case err == nil:
		err = errors.New(r.Error)
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("the host ended at its start; its last words:\n%s", LastLines(h.dir.Log("host")))
	}
	_ = h.stdin.Close()
	return fmt.Errorf("start the host: %w", err)
}

// Done is closed when the host has ended.
func (h *Host) Done() <-chan struct{} { return h.done }

// Leave lets a host that follows nobody live on.
func (h *Host) Leave() { _ = h.stdin.Close() }

// End ends the host and everything in it, gracefully if that is possible in time, and waits for it.
func (h *Host) End(limit time.Duration) {
	_ = h.stdin.Close()
	select {
	case <-h.done:
	case <-time.After(limit):
		kill(h.dir)
		<-h.done
	}
	if lock, err := h.dir.tryLock(); err == nil && lock != nil { // Nobody else has begun to use it.
		_ = h.dir.remove()
		_ = lock.Close()
	}
}

// kill kills the host whose number is noted. It must hold the lock: the number is its own then.
func kill(dir Dir) {
	text, err := os.ReadFile(dir.pid())
	if err != nil {
		return
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// Clean ends the host of a mesh, if one runs, and removes what it left. It tells whether there was anything.
func Clean(ctx context.Context, dir Dir) (bool, error) {
	swept, err := dir.sweepEnded()
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(string(dir)); errors.Is(err, fs.ErrNotExist) {
		return swept, nil
	}
	if c, err := Dial(dir); err == nil {
		_ = c.send(request{Op: opEnd}, nil)
		_ = c.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for killed := false; ; {
		lock, err := dir.tryLock()
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil // It has removed everything itself.
		}
		if err != nil {
			return false, err
		}
		if lock != nil {
			defer func() { _ = lock.Close() }()
			return true, dir.remove()
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		if killed {
			return false, fmt.Errorf("end the host of %s, which holds its lock after it was killed: %w", dir, ctx.Err())
		}
		killed = true
		kill(dir)
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), killLimit)
		defer cancel()
	}
}

// Client is a connection to a host.
type Client struct {
	conn *net.UnixConn
	in   *json.Decoder
}

// Dial connects to the host of a mesh; the error wraps ErrNobody when there is none.
func Dial(dir Dir) (*Client, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: dir.Socket(), Net: "unix"})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("call the mesh's host: %w", ErrNobody)
	}
	if err != nil {
		return nil, fmt.Errorf("call the mesh's host: %w", err)
	}
	return &Client{conn: conn, in: json.NewDecoder(conn)}, nil
}

// Run asks for a workload; what becomes of it is told by Next. Files are the descriptors that w.Stdio and w.Sockets
// speak of; the host has copies of them when Run returns.
func (c *Client) Run(w Workload, files []*os.File) error {
	return c.send(request{Op: opRun, Workload: w}, files)
}

// List returns the workloads that run.
func (c *Client) List() ([]Status, error) {
	if err := c.send(request{Op: opList}, nil); err != nil {
		return nil, err
	}
	ev, err := c.Next()
	return ev.Workloads, err
}

// StopWorkload ends a workload and returns when nothing of it is left.
func (c *Client) StopWorkload(namespace, name string) error {
	if err := c.send(request{Op: opStop, Workload: Workload{Name: name, Namespace: namespace}}, nil); err != nil {
		return err
	}
	_, err := c.Next()
	return err
}

func (c *Client) send(req request, files []*os.File) error { return writeRequest(c.conn, req, files) }

// Next returns the next event. An EventError is returned as an error.
func (c *Client) Next() (Event, error) {
	var ev Event
	if err := c.in.Decode(&ev); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			err = errors.New("the host has ended")
		}
		return ev, fmt.Errorf("hear from the host: %w", err)
	}
	if ev.Kind == EventError {
		if ev.Error == ErrEnding.Error() {
			return ev, ErrEnding
		}
		return ev, errors.New(ev.Error)
	}
	return ev, nil
}

// Stop asks that the workload of this connection be ended; Next goes on until that is done.
func (c *Client) Stop() { _ = c.conn.CloseWrite() }

// Close closes the connection, and with it ends a workload that is not detached.
func (c *Client) Close() error { return c.conn.Close() }
