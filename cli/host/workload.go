package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

const (
	defaultGrace = 10 * time.Second
	defaultDrain = 2 * time.Second
	// leaveTime is how long the proxies get to learn that a workload ends.
	leaveTime = 250 * time.Millisecond
	// overtime is what the init gets on top of grace and drain before it is killed.
	overtime = 2 * time.Second
	// ownPorts and up to ownPortsEnd belong to the proxy.
	ownPorts, ownPortsEnd = 15000, 15100
)

// workload is one workload on the host's side.
type workload struct {
	host      *host
	req       Workload
	addresses []netip.Addr
	asked     chan struct{} // Closed when its end is asked for.
	ended     chan struct{} // Closed when nothing of it is left.
	proxyLog  *logPipe
	log       *logPipe // Of a command without a terminal, else nil.
	cookie    uint64   // Of its network namespace, if that is accelerated.

	mu       sync.Mutex
	stopping bool // asked is closed.
	ready    bool
}

// ProxyConfig is what lateen-proxy reads: proxy.Config, of which this package may only know the form.
type ProxyConfig struct {
	Role, Name, Namespace, ServiceAccount string
	Labels                                map[string]string
	Addresses                             []netip.Addr
	Workload                              plan.Workload
	Ports                                 map[string]uint16
	TrustDomain                           string
	Control                               []string
	ControlName                           string
	Roots                                 []byte
	Token                                 string
	Inherited                             map[string]int
	AdminSocket                           string
	MarkSockets                           bool
	Accelerator                           string
	DrainTime                             time.Duration
}

func (w *workload) key() string { return w.req.Namespace + "/" + w.req.Name }

func (w *workload) logName() string { return w.req.Namespace + "." + w.req.Name }

// status tells of the workload.
func (w *workload) status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Status{
		Name: w.req.Name, Namespace: w.req.Namespace, Role: w.req.Role, Addresses: w.addresses, Ready: w.ready,
		Detached: w.req.Detach, Command: w.req.Command, AdminSocket: w.host.cfg.Dir.Admin(w.req.Namespace, w.req.Name),
	}
}

// stop asks the workload to end. It may be called at any time, also twice.
func (w *workload) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopping {
		w.stopping = true
		close(w.asked)
	}
}

// Validate returns all that is wrong with the workload at once.
func (w *Workload) Validate() error {
	var errs []error
	for _, name := range []struct{ what, value string }{
		{"name", w.Name}, {"namespace", w.Namespace}, {"service account", w.ServiceAccount},
	} {
		if !label.MatchString(name.value) {
			errs = append(errs, fmt.Errorf("the %s %q is not a label: use lower case letters, digits and '-', at most 63",
				name.what, name.value))
		}
	}
	switch {
	case w.Role != RoleSidecar && w.Role != RoleGateway:
		errs = append(errs, fmt.Errorf("the role %q is neither %s nor %s", w.Role, RoleSidecar, RoleGateway))
	case w.Role == RoleSidecar && len(w.Command) == 0:
		errs = append(errs, errors.New("no command is given; name it after `--`"))
	}
	for name, port := range w.Ports {
		if port == 0 || port >= ownPorts && port < ownPortsEnd {
			errs = append(errs, fmt.Errorf("the port %s=%d cannot be had: 0 is none, and %d to %d belong to the proxy",
				name, port, ownPorts, ownPortsEnd-1))
		}
	}
	return errors.Join(errs...)
}

// runWorkload runs a workload until its command ends, its client goes, or the host ends.
func (h *host) runWorkload(ctx context.Context, conn *net.UnixConn, out *events, req request, files []*os.File) error {
	w := &workload{host: h, req: req.Workload, asked: make(chan struct{}), ended: make(chan struct{})}
	w.req.Grace, w.req.Drain = cmp.Or(w.req.Grace, defaultGrace), cmp.Or(w.req.Drain, defaultDrain)
	if err := w.req.Validate(); err != nil {
		return err
	}
	if want := len(w.req.Sockets) + 3*boolInt(w.req.Stdio); len(files) != want {
		return fmt.Errorf("the request came with %d descriptors instead of %d", len(files), want)
	}
	if err := h.reserve(w); err != nil {
		return err
	}
	defer close(w.ended)
	defer h.release(w)
	addresses, err := h.addresses()
	if err != nil {
		return err
	}
	w.addresses = addresses
	defer func() { _ = h.giveBack(addresses) }()
	defer context.AfterFunc(ctx, w.stop)()
	h.work.Go(func() { w.watchClient(conn) })
	token, err := h.control.token(ctx, TokenRequest{
		Namespace: w.req.Namespace, ServiceAccount: w.req.ServiceAccount, Name: w.req.Name, Labels: w.req.Labels,
		Gateway: w.req.Role == RoleGateway,
	})
	if err != nil {
		return err
	}
	spec, err := w.spec(token)
	if err != nil {
		return err
	}
	if err := w.openLogs(); err != nil {
		return err
	}
	if w.probed() {
		w.tell(ctx, stateUnhealthy) // From its joining until the probe has answered.
	}
	defer w.closeLogs()
	child, control, err := w.spawn(ctx, files)
	closeAll(files) // Whoever reads from the command's output must not wait for us.
	if err != nil {
		return err
	}
	defer func() { _ = control.Close() }()
	return w.follow(context.WithoutCancel(ctx), child, control, spec, out)
}

// watchClient stops the workload when its client closes its side, unless it may stay.
func (w *workload) watchClient(conn *net.UnixConn) {
	gone := make(chan struct{})
	w.host.work.Go(func() { // Reading ends with the connection, which ends with the workload.
		_, _ = conn.Read(make([]byte, 1))
		close(gone)
	})
	select {
	case <-gone:
		w.mu.Lock()
		stays := w.req.Detach && w.ready
		w.mu.Unlock()
		if !stays {
			w.stop()
		}
	case <-w.ended:
	}
}

// spawn starts the workload's init in its own namespaces, which waits for its spec.
func (w *workload) spawn(ctx context.Context, files []*os.File) (*child, *net.UnixConn, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = theirs.Close() }()
	if !w.req.Stdio {
		null, err := os.Open(os.DevNull)
		if err != nil {
			_ = ours.Close()
			return nil, nil, fmt.Errorf("open standard input for %s: %w", w.req.Name, err)
		}
		defer func() { _ = null.Close() }()
		files = append([]*os.File{null, w.log.out, w.log.out}, files...)
	}
	cmd := netns.Command(context.WithoutCancel(ctx), netns.Isolation{PID: true}, w.host.cfg.Self, "host-init")
	cmd.Stdout, cmd.Stderr = w.proxyLog.out, w.proxyLog.out
	cmd.ExtraFiles = append([]*os.File{theirs}, files...)
	started, err := w.host.reaper.start(cmd)
	if err != nil {
		_ = ours.Close()
		return nil, nil, fmt.Errorf("start the workload's namespaces: %w", err)
	}
	return started, ours, nil
}

// openLogs begins the log of the proxy and, if it has no terminal, of the command.
func (w *workload) openLogs() (err error) {
	dir := w.host.cfg.Dir
	if w.proxyLog, err = newLogPipe(dir.Log(w.logName() + ".proxy")); err != nil || w.req.Stdio {
		return err
	}
	if w.log, err = newLogPipe(dir.Log(w.logName())); err != nil {
		w.proxyLog.close()
	}
	return err
}

func (w *workload) closeLogs() {
	w.proxyLog.close()
	if w.log != nil {
		w.log.close()
	}
}

// follow plugs the init's namespace into the bridge, gives it its spec and passes its events on until it has ended.
func (w *workload) follow(ctx context.Context, c *child, control *net.UnixConn, spec *initSpec, out *events) error {
	err := w.begin(c, control, spec)
	if err != nil {
		c.signal(syscall.SIGKILL)
	} else {
		out.send(Event{Kind: EventStarted, Addresses: w.addresses})
	}
	w.host.work.Go(func() {
		select {
		case <-w.asked:
			w.leave(ctx)
			_ = control.CloseWrite()
			c.killAfter(w.req.Grace + w.req.Drain + overtime)
		case <-w.ended:
		}
	})
	told, exited := err != nil, false
	for in := json.NewDecoder(control); ; {
		var ev Event
		if in.Decode(&ev) != nil {
			break // The init has ended, or will not go on.
		}
		switch ev.Kind {
		case EventError:
			told, err = true, errors.New(ev.Error)
			if ev.ProxyLog {
				err = fmt.Errorf("%w; its last words:\n%s", err, w.proxyLog.lastWords())
			}
			continue // It is told when nothing of the workload is left.
		case EventExited:
			told, exited = true, true
			if w.log != nil {
				w.log.catchUp() // Whoever hears of it may look.
			}
			c.killAfter(w.req.Drain + overtime)
		}
		w.note(ctx, ev.Kind)
		out.send(ev)
	}
	<-c.ended
	w.host.shortcut.dismiss(w.cookie)
	if !exited {
		w.tell(ctx, stateGone)
	}
	_ = os.Remove(spec.Proxy.AdminSocket)
	if !told {
		return fmt.Errorf("the workload %s was killed (code %d); the last words of its proxy:\n%s", w.req.Name, c.code(),
			w.proxyLog.lastWords())
	}
	return err
}

// note does what an event of the workload means for the mesh.
func (w *workload) note(ctx context.Context, kind string) {
	switch kind {
	case EventReady:
		w.mu.Lock()
		w.ready = true
		w.mu.Unlock()
		if w.probed() {
			w.tell(ctx, stateHealthy)
		}
	case EventHealthy:
		w.tell(ctx, stateHealthy)
	case EventUnhealthy:
		w.tell(ctx, stateUnhealthy)
	case EventExited:
		w.tell(ctx, stateGone)
	}
}

// probed says whether the workload may get traffic only after its probe has answered.
func (w *workload) probed() bool { return w.req.Role == RoleSidecar && w.req.Probe != "" }

// leave takes the workload out of the mesh before its command is told to end, so that nobody calls it any more.
func (w *workload) leave(ctx context.Context) {
	if w.tell(ctx, stateDraining) {
		<-time.After(leaveTime)
	}
}

// tell tells the control plane a state of the workload. A gateway is not called by anybody in the mesh, and when the
// whole mesh ends there is nobody to call: then it returns false.
func (w *workload) tell(ctx context.Context, state string) bool {
	if w.host.isEnding() || w.req.Role != RoleSidecar {
		return false
	}
	w.host.control.tell(ctx, w, state)
	return true
}

// begin attaches the namespace of the init and sends the spec.
func (w *workload) begin(c *child, control *net.UnixConn, spec *initSpec) error {
	ns, err := netns.Of(c.pid)
	if err != nil {
		return err
	}
	err = w.host.bridge.Attach(ns, w.addresses...)
	if err == nil {
		w.cookie, err = w.host.shortcut.admit(ns)
	}
	_ = ns.Close()
	if err != nil {
		return err
	}
	if err := json.NewEncoder(control).Encode(spec); err != nil {
		return fmt.Errorf("tell the workload's init what to do: %w", err)
	}
	return nil
}

// spec is what the init must know.
func (w *workload) spec(t *Token) (*initSpec, error) {
	dir := w.host.cfg.Dir
	s := &initSpec{
		Workload: w.req, Self: w.host.cfg.Self, ProxyPath: w.host.cfg.Proxy, Hide: filepath.Dir(string(dir)),
		Files: map[string]string{},
	}
	inherited := map[string]int{}
	for i, name := range w.req.Sockets {
		inherited[name] = firstInherited + i
	}
	labels := w.req.Labels
	s.Proxy = ProxyConfig{
		Role: w.req.Role, Name: w.req.Name, Namespace: w.req.Namespace, ServiceAccount: w.req.ServiceAccount,
		Labels: labels, Addresses: w.addresses, Ports: w.req.Ports, TrustDomain: t.TrustDomain, Control: t.Control,
		ControlName: cmp.Or(t.ControlName, controlName), Roots: []byte(t.Roots), Token: t.Token, Inherited: inherited,
		AdminSocket: dir.Admin(w.req.Namespace, w.req.Name), MarkSockets: true, Accelerator: w.host.shortcut.state, DrainTime: w.req.Drain,
		Workload: plan.Workload{
			Name: w.req.Name, Namespace: w.req.Namespace, App: labels["app"], Version: labels["version"],
			CanonicalName: cmp.Or(labels["service.istio.io/canonical-name"], labels["app.kubernetes.io/name"],
				labels["app"], w.req.Name),
			CanonicalRevision: cmp.Or(labels["service.istio.io/canonical-revision"],
				labels["app.kubernetes.io/version"], labels["version"], "latest"),
		},
	}
	for path, text := range map[string]string{
		"/etc/resolv.conf": resolvConf(w.req.Namespace), "/etc/hosts": w.hosts(),
	} {
		own := dir.Log(w.logName()) + "." + strings.ReplaceAll(strings.Trim(path, "/"), "/", "-")
		if err := os.WriteFile(own, []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("write %s for the workload: %w", path, err)
		}
		s.Files[path] = own
	}
	return s, nil
}

// resolvConf is what a pod's would be: the proxy answers for the mesh's names whatever server they are asked of.
func resolvConf(namespace string) string {
	return "nameserver " + bridgeAddresses()[0].Addr().String() + "\nsearch " + namespace +
		".svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
}

func (w *workload) hosts() string {
	lines := []string{"127.0.0.1 localhost", "::1 localhost ip6-localhost"}
	for _, a := range w.addresses {
		lines = append(lines, a.String()+" "+w.req.Name)
	}
	return strings.Join(lines, "\n") + "\n"
}

// socketPair returns the two ends of a connection: one for us, one for a child.
func socketPair() (*net.UnixConn, *os.File, error) {
	ours, theirs, err := socketFiles()
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("use a pair of sockets: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}

// socketFiles returns the two ends of a connection as files.
func socketFiles() (one, other *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "one end"), os.NewFile(uintptr(fds[1]), "other end"), nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
