package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/cli/show"
)

const (
	// adminPort is the first port that an admin page is given on the machine's loopback.
	adminPort = 15100
	// portTries is how many ports are tried from the wanted one on.
	portTries = 200
	// startTries is how often a host is started that ends, having been idle, while it is called.
	startTries = 5
)

// run is `lateen run`.
func (a *app) run() *cobra.Command {
	w := host.Workload{}
	var ports, configs []string
	var gateway bool
	cmd := &cobra.Command{
		Use:   "run --name NAME [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a process of this machine in the mesh",
		Long: "Run a command in a network of its own, with a proxy that captures its connections. The first workload of a\n" +
			"mesh starts its control plane. The workload registers itself and leaves when the command ends, whose exit\n" +
			"code is lateen's; when lateen is interrupted or killed the command is ended.",
		Example: "  lateen run --name reviews-v1 --labels app=reviews,version=v1 --port 9080 -- bookinfo reviews\n" +
			"  lateen run --name edge --gateway --labels istio=ingressgateway --port 8080",
		RunE: func(cmd *cobra.Command, args []string) error {
			w.Command = args
			if w.Role = host.RoleSidecar; gateway {
				w.Role = host.RoleGateway
			}
			if err := complete(&w, ports); err != nil {
				return usage(err)
			}
			code, err := a.runOne(cmd.Context(), w, configs)
			if err == nil && code == 0 {
				return nil
			}
			if err != nil {
				code = codeFailed
			}
			return &exitError{code, err}
		},
	}
	f := cmd.Flags()
	f.StringVar(&w.Name, "name", "", "name of the workload (required)")
	f.StringVarP(&w.Namespace, "namespace", "n", "default", "its namespace")
	f.StringVar(&w.ServiceAccount, "service-account", "default", "its service account, and so its identity")
	f.StringToStringVar(&w.Labels, "labels", nil, "its labels, as in app=reviews,version=v1")
	f.StringArrayVar(&ports, "port", nil, "a port that it serves, as in 9080 or http=9080; may be repeated")
	f.StringArrayVar(&configs, "config", nil, "file or folder with objects that are applied before it starts; may be repeated")
	f.StringVar(&w.Probe, "probe", "", "URL that answers 2xx when the command can serve, as in http://:9080/health")
	f.BoolVar(&gateway, "gateway", false, "be a gateway: its ports are opened on this machine's loopback, no command is needed")
	f.BoolVar(&w.Detach, "detach", false, "return when it is ready; `lateen stop` ends it")
	a.accelerateFlag(cmd)
	f.DurationVar(&w.Grace, "grace", 0, "how long the command may take to end after SIGTERM (default 10s)")
	return cmd
}

// complete fills a workload in from the arguments and this process, or says all that is wrong.
func complete(w *host.Workload, ports []string) error {
	var errs []error
	w.Ports = map[string]uint16{}
	for _, p := range ports {
		name, number, named := strings.Cut(p, "=")
		if !named {
			number = name
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			errs = append(errs, fmt.Errorf("--port %q: write a port, as in 9080 or http=9080", p))
			continue
		}
		w.Ports[name] = uint16(n)
	}
	if w.Probe != "" {
		if u, err := url.Parse(w.Probe); err != nil || u.Scheme != "http" || u.Host == "" {
			errs = append(errs, fmt.Errorf("--probe %q: write a URL, as in http://:9080/health", w.Probe))
		}
	}
	if err := w.Validate(); err != nil {
		errs = append(errs, err)
	}
	if len(errs) == 0 && len(w.Command) > 0 {
		path, err := exec.LookPath(w.Command[0])
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("find the command %q: %w", w.Command[0], err))
		}
		w.Command = append([]string{path}, w.Command[1:]...)
	}
	w.Env = os.Environ()
	dir, err := os.Getwd()
	if err != nil {
		errs = append(errs, fmt.Errorf("find the working directory: %w", err))
	}
	w.Dir = dir
	return errors.Join(errs...)
}

// sockets are listening sockets of the machine, opened here and handed to a proxy.
type sockets struct {
	names []string
	files []*os.File
	ports map[string]uint16 // What they got.
}

// open opens name on the machine's loopback, at the wanted port or the next free one.
func (s *sockets) open(ctx context.Context, name string, wanted uint16) error {
	l, err := listenFrom(ctx, wanted)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	file, err := l.File()
	if err != nil {
		return fmt.Errorf("hand port %d in: %w", wanted, err)
	}
	if s.ports == nil {
		s.ports = map[string]uint16{}
	}
	s.names, s.files = append(s.names, name), append(s.files, file)
	s.ports[name] = uint16(l.Addr().(*net.TCPAddr).Port)
	return nil
}

func (s *sockets) close() {
	for _, f := range s.files {
		_ = f.Close()
	}
}

// listenFrom listens on the machine's loopback, at a port or at the next free one.
func listenFrom(ctx context.Context, port uint16) (*net.TCPListener, error) {
	var last error
	for i := range portTries {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)+i)))
		if err == nil {
			return l.(*net.TCPListener), nil
		}
		last = err
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	advice := fmt.Sprintf("ports %d to %d are in use; choose another", port, int(port)+portTries-1)
	if errors.Is(last, syscall.EACCES) {
		advice = "ports below 1024 are root's; choose another"
	}
	return nil, fmt.Errorf("listen on 127.0.0.1:%d: %s: %w", port, advice, last)
}

// openFor opens what a person must reach of a workload: its proxy's admin page and, of a gateway, its ports.
func openFor(ctx context.Context, w *host.Workload) (*sockets, error) {
	s := &sockets{}
	err := s.open(ctx, "admin", adminPort)
	if w.Role == host.RoleGateway {
		for _, p := range w.Ports {
			err = errors.Join(err, s.open(ctx, strconv.Itoa(int(p)), p))
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	w.Sockets = s.names
	return s, nil
}

// runOne runs one workload to its end and returns its exit code.
func (a *app) runOne(ctx context.Context, w host.Workload, configs []string) (int, error) {
	if len(configs) > 0 {
		c, err := a.meet(ctx)
		if err != nil {
			return 0, err
		}
		err = a.configure(ctx, configs, true)
		_ = c.Close() // Until now it kept a host without workloads from ending.
		if err != nil {
			return 0, err
		}
	}
	s, err := openFor(ctx, &w)
	if err != nil {
		return 0, err
	}
	files := s.files
	if !w.Detach {
		w.Stdio = true
		files = append([]*os.File{a.in, a.out, a.err}, files...)
	}
	c, err := a.request(ctx, w, files)
	s.close()
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, c.Stop)()
	code := 0
	for {
		ev, err := c.Next()
		if err != nil {
			return code, err
		}
		switch ev.Kind {
		case host.EventReady:
			a.announce(w, s, ev)
			if w.Detach {
				return 0, nil
			}
		case host.EventUnhealthy:
			say(a.err, "%s %s does not answer its probe; nobody calls it until it does\n", show.NewStyle(a.err).Warn.Render("Warning:"), w.Name)
		case host.EventExited:
			code = ev.Code
		case host.EventDone:
			return code, nil
		}
	}
}

// announce tells that a workload is in the mesh.
func (a *app) announce(w host.Workload, s *sockets, ev host.Event) {
	style := show.NewStyle(a.err)
	parts := []string{fmt.Sprintf("%s is in the mesh after %s", w.Name, ev.After.Round(time.Millisecond))}
	for i, name := range s.names {
		port := s.ports[name]
		if i == 0 {
			parts = append(parts, fmt.Sprintf("admin page http://127.0.0.1:%d", port))
		} else {
			parts = append(parts, fmt.Sprintf("port %s is 127.0.0.1:%d", name, port))
		}
	}
	say(a.err, "%s\n", style.Dim.Render(strings.Join(parts, "; ")))
}

// configure applies files and folders of objects, whole.
func (a *app) configure(ctx context.Context, paths []string, warn bool) error {
	b, err := a.read(paths)
	if err != nil {
		return err
	}
	out, err := a.send(ctx, "/apply", false, b.text, b)
	if err != nil {
		return fmt.Errorf("apply %s: %w", strings.Join(paths, ", "), err)
	}
	if warn {
		a.warn(out.Warnings, b)
	}
	return nil
}

// meet connects to the mesh's host; one is started if there is none.
func (a *app) meet(ctx context.Context) (*host.Client, error) {
	for range startTries {
		c, err := host.Dial(a.dir)
		if !errors.Is(err, host.ErrNobody) {
			return c, err
		}
		h, err := host.Start(ctx, host.StartConfig{Dir: a.dir, Accelerate: a.accelerate})
		if err != nil && !errors.Is(err, host.ErrRunning) {
			return nil, err
		}
		if err == nil {
			h.Leave()
		}
	}
	return nil, fmt.Errorf("reach the mesh %q, whose host comes and goes: %w", a.mesh, host.ErrNobody)
}

// request asks the mesh's host to run a workload and returns when it has begun; a host is started if there is none.
func (a *app) request(ctx context.Context, w host.Workload, files []*os.File) (*host.Client, error) {
	var last error
	for range startTries {
		c, err := a.meet(ctx)
		if err != nil {
			return nil, err
		}
		if err := c.Run(w, files); err != nil {
			_ = c.Close()
			last = err
			continue // It ended while we called.
		}
		ev, err := c.Next()
		if err == nil && ev.Kind == host.EventStarted {
			return c, nil
		}
		_ = c.Close()
		if err == nil || !errors.Is(err, host.ErrEnding) {
			return nil, fmt.Errorf("run %s: %w", w.Name, err)
		}
		last = err
	}
	return nil, fmt.Errorf("run %s: %w", w.Name, last)
}

// stop is `lateen stop`.
func (a *app) stop() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use: "stop NAME...", Short: "End workloads that run here", Args: checked(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, name := range args {
				c, err := host.Dial(a.dir)
				if err != nil {
					return a.absent(err)
				}
				err = c.StopWorkload(namespace, name)
				_ = c.Close()
				if err != nil {
					return err
				}
				say(a.out, "%s ended\n", name)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "their namespace")
	return cmd
}
