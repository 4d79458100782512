package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/redirect"
)

const (
	// The descriptors of an init: the way to the host, the command's standard files, then the sockets handed in.
	controlFD  = 3
	stdioFD    = 4
	socketsFD  = stdioFD + 3
	healthURL  = "http://127.0.0.1:15021/healthz/ready"
	startEvery = 10 * time.Millisecond // Between questions whether something has started.
	probeEvery = time.Second           // Between probes of what has.
	probeLimit = time.Second           // For one probe.
	proxyLimit = 30 * time.Second
	// probeFailures in a row make a command unhealthy, one success healthy again.
	probeFailures = 3
	firstWorked   = 2 // 2xx
	// firstInherited is the first descriptor that a child gets besides its standard files.
	firstInherited = 3
)

// initSpec is what the host tells an init.
type initSpec struct {
	Workload
	Self, ProxyPath string
	// Hide is the directory that the command must not see into.
	Hide  string
	Proxy ProxyConfig
	Files map[string]string // What is mounted over which file.
}

// initProcess is process 1 of a workload.
type initProcess struct {
	spec    initSpec
	control *net.UnixConn
	out     *events
	reaper  *reaper
	stop    <-chan struct{} // Closed when the host wants the end.
	stdio   []*os.File
	sockets []*os.File
	proxy   *child
	began   time.Time
	faulty  bool // The proxy is to blame; its log tells more.
}

// Init is the first process of a workload, started by the host in namespaces of its own. It waits until the host has
// plugged the network in and told what to do; captures connections; starts the proxy; when that is ready starts the
// command; and ends both in the opposite order: the command never runs without its proxy.
func Init() error {
	p := &initProcess{}
	for fd := controlFD; fd < socketsFD; fd++ {
		syscall.CloseOnExec(fd)
	}
	conn, err := net.FileConn(os.NewFile(controlFD, "host"))
	if err != nil {
		return fmt.Errorf("find the host: it starts this command, nobody else: %w", err)
	}
	p.control = conn.(*net.UnixConn)
	p.out = &events{conn: conn}
	in := json.NewDecoder(conn)
	if err := in.Decode(&p.spec); err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	for i := range 3 {
		p.stdio = append(p.stdio, os.NewFile(uintptr(stdioFD+i), "stdio"))
	}
	for i, name := range p.spec.Sockets {
		syscall.CloseOnExec(socketsFD + i)
		p.sockets = append(p.sockets, os.NewFile(uintptr(socketsFD+i), name))
	}
	stop := make(chan struct{})
	p.stop = stop
	go func() { // Ends with the process.
		_, _ = in.Token()
		close(stop)
	}()
	p.reaper = newReaper()
	if err := p.run(); err != nil {
		p.out.send(Event{Kind: EventError, Error: err.Error(), ProxyLog: p.faulty})
		return err
	}
	return nil
}

// run is the life of the workload.
func (p *initProcess) run() error {
	if err := p.prepare(); err != nil {
		return err
	}
	p.began = time.Now()
	if err := p.startProxy(); err != nil {
		return err
	}
	defer p.endProxy()
	if err := p.awaitProxy(); err != nil {
		return err
	}
	p.out.send(Event{Kind: EventProxy, After: time.Since(p.began)})
	if len(p.spec.Command) == 0 {
		p.out.send(Event{Kind: EventReady, After: time.Since(p.began)})
		select {
		case <-p.stop:
			p.out.send(Event{Kind: EventExited})
			return nil
		case <-p.proxy.ended:
			return p.proxyDied()
		}
	}
	return p.runCommand()
}

// prepare makes the workload's view of the machine, and the capture rules.
func (p *initProcess) prepare() error {
	if err := mountProc(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "/proc shows the machine's processes:", err)
	}
	for path, own := range p.spec.Files {
		if err := unix.Mount(own, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount the workload's own %s: %w", path, err)
		}
	}
	if p.spec.Role == RoleGateway {
		return nil
	}
	rules, err := redirect.Rules(redirect.Config{Proxy: redirect.Proxy{Mark: redirect.ProxyMark, Mask: redirect.ProxyMask}})
	if err != nil {
		return err
	}
	if err := redirect.Apply(rules); err != nil {
		return errors.Join(err, redirect.Check())
	}
	return nil
}

// startProxy starts lateen-proxy; its configuration, which holds its token, goes through a pipe.
func (p *initProcess) startProxy() error {
	text, err := json.Marshal(p.spec.Proxy)
	if err != nil {
		return fmt.Errorf("write the proxy's configuration: %w", err)
	}
	in, config, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer func() { _ = in.Close() }()
	cmd := exec.Command(p.spec.ProxyPath, "--config", "-")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, os.Stderr, os.Stderr
	cmd.ExtraFiles = p.sockets
	if p.proxy, err = p.reaper.start(cmd); err != nil {
		_ = config.Close()
		return err
	}
	closeAll(p.sockets)
	_ = in.Close()
	_, err = config.Write(text)
	if err = errors.Join(err, config.Close()); err != nil {
		return fmt.Errorf("tell the proxy its configuration: %w", err)
	}
	return nil
}

// awaitProxy waits until the proxy obeys the control plane.
func (p *initProcess) awaitProxy() error {
	limit := time.After(proxyLimit)
	tick := time.NewTicker(startEvery)
	defer tick.Stop()
	last := errors.New("it was not asked yet")
	for {
		select {
		case <-tick.C:
			if last = probe(healthURL); last == nil {
				return nil
			}
		case <-p.proxy.ended:
			return p.proxyDied()
		case <-p.stop:
			return errors.New("ended before its proxy was ready")
		case <-limit:
			p.faulty = true
			return fmt.Errorf("the proxy is not ready after %s (%w)", proxyLimit, last)
		}
	}
}

func (p *initProcess) proxyDied() error {
	p.faulty = true
	return fmt.Errorf("the proxy ended with code %d, and with it the workload", p.proxy.code())
}

// runCommand runs the command to its end, which comes by itself, by the host, or by the proxy's end.
func (p *initProcess) runCommand() error {
	command := p.spec.Command
	cmd := exec.Command(p.spec.Self, append([]string{"host-exec", "--", p.spec.Hide}, command...)...)
	cmd.Env = append(slices.Clone(p.spec.Env), "HOSTNAME="+p.spec.Name)
	cmd.Dir = p.spec.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdio[0], p.stdio[1], p.stdio[2]
	app, err := p.reaper.start(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(command[0]), err)
	}
	closeAll(p.stdio)
	health := make(chan bool)
	ended := make(chan struct{})
	defer close(ended)
	go p.watchHealth(health, ended)
	ready := false
	for {
		select {
		case healthy := <-health:
			switch {
			case !ready && healthy:
				ready = true
				p.out.send(Event{Kind: EventReady, After: time.Since(p.began)})
			case healthy:
				p.out.send(Event{Kind: EventHealthy})
			default:
				p.out.send(Event{Kind: EventUnhealthy})
			}
		case <-app.ended:
			p.out.send(Event{Kind: EventExited, Code: app.code()})
			return nil
		case <-p.proxy.ended:
			app.signal(syscall.SIGKILL)
			<-app.ended
			return p.proxyDied()
		case <-p.stop:
			app.signal(syscall.SIGTERM)
			select {
			case <-app.ended:
			case <-p.proxy.ended:
				app.signal(syscall.SIGKILL)
				<-app.ended
			case <-time.After(p.spec.Grace):
				app.signal(syscall.SIGKILL)
				<-app.ended
			}
			p.out.send(Event{Kind: EventExited, Code: app.code()})
			return nil
		}
	}
}

// watchHealth probes the command and tells each change of its health, until ended is closed. The first is that it is
// healthy: when its probe answers for the first time, or at once if it has none.
func (p *initProcess) watchHealth(health chan<- bool, ended <-chan struct{}) {
	tell := func(healthy bool) bool {
		select {
		case health <- healthy:
			return true
		case <-ended:
			return false
		}
	}
	if p.spec.Probe == "" {
		tell(true)
		return
	}
	tick := time.NewTicker(startEvery)
	defer tick.Stop()
	healthy, failures := false, 0
	for {
		switch ok := probe(p.spec.Probe) == nil; {
		case ok:
			failures = 0
			if !healthy && !tell(true) {
				return
			}
			if !healthy {
				tick.Reset(probeEvery)
			}
			healthy = true
		case healthy:
			if failures++; failures == probeFailures {
				healthy = false
				if !tell(false) {
					return
				}
			}
		}
		select {
		case <-tick.C:
		case <-ended:
			return
		}
	}
}

// endProxy ends the proxy after the command: it drains, for a bounded time.
func (p *initProcess) endProxy() {
	p.proxy.signal(syscall.SIGTERM)
	select {
	case <-p.proxy.ended:
	case <-time.After(p.spec.Drain + overtime/2):
		p.proxy.signal(syscall.SIGKILL)
		<-p.proxy.ended
	}
}

// probe asks once; nil is a 2xx. A URL without a host means the workload's own loopback.
func probe(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	if u.Hostname() == "" {
		u.Host = net.JoinHostPort("127.0.0.1", u.Port())
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxTail))
	_ = resp.Body.Close()
	if resp.StatusCode/100 != firstWorked {
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	return nil
}

// mountProc shows the processes of our PID namespace. It is refused where an outer container hides parts of /proc.
func mountProc() error {
	return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}
