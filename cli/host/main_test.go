package host_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

// The variables by which a test speaks to the programs it has started.
const (
	journalVariable = "LATEEN_TEST_JOURNAL" // File to which each of them adds lines.
	lingerVariable  = "LATEEN_TEST_LINGER"  // How long a host waits without workloads.
	// accelerateVariable asks for an accelerator; the proxy then tells what it was told of it.
	accelerateVariable = "LATEEN_TEST_ACCELERATE"
	brokenVariable     = "LATEEN_TEST_BROKEN" // "lateend": the control plane does not start.
)

// TestMain plays the programs of a mesh, by the name under which the test binary was started: lateen as it is, and
// lateend and lateen-proxy as doubles that only do what a host must see of them.
func TestMain(m *testing.M) {
	var err error
	switch filepath.Base(os.Args[0]) {
	case "lateen":
		err = lateen(os.Args[1], os.Args[2:])
	case "lateend":
		err = lateend()
	case "lateen-proxy":
		err = lateenProxy()
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func journal(format string, args ...any) {
	f, err := os.OpenFile(os.Getenv(journalVariable), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, _ = fmt.Fprintf(f, format+"\n", args...)
		_ = f.Close()
	}
}

// lateen is the program: its hidden commands, and clients for tests.
func lateen(command string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch command {
	case "host":
		return host.Run(ctx, os.Stdin)
	case "host-outside":
		return host.Outside(args[0])
	case "host-init":
		return host.Init()
	case "host-exec":
		return host.Exec(args[1], args[2:])
	case "fetch":
		return fetchInside(ctx, args)
	case "check":
		err := netns.Check(netns.Isolation{User: os.Geteuid() != 0, PID: true})
		if netns.Denied(err) {
			_, err = fmt.Fprintln(os.Stdout, err)
		}
		return err
	case "clean":
		_, err := host.Clean(ctx, host.Dir(args[0]))
		return err
	case "stop":
		c, err := host.Dial(host.Dir(args[0]))
		if err != nil {
			return err
		}
		return c.StopWorkload("default", args[1])
	case "run":
		return drive(ctx, host.Dir(args[0]), args[1], false)
	case "follow":
		return drive(ctx, host.Dir(args[0]), args[1], true)
	}
	return fmt.Errorf("unknown command %q", command)
}

// fetchInside is a workload's command that asks for pages and writes down what comes.
func fetchInside(ctx context.Context, urls []string) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, url := range urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			journal("%s: no answer", url)
			continue
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		journal("%s: %.40s, %d bytes, %v", url, text, len(text), err)
	}
	return nil
}

// drive runs a workload, given as JSON, and prints its events as JSON. A line on standard input stops the workload;
// sockets that it names are opened first, and their addresses printed.
func drive(ctx context.Context, dir host.Dir, text string, follow bool) error {
	var w host.Workload
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		return err
	}
	linger, err := time.ParseDuration(os.Getenv(lingerVariable))
	if err != nil {
		return err
	}
	h, err := host.Start(ctx, host.StartConfig{Dir: dir, Follow: follow, Linger: linger, Accelerate: os.Getenv(accelerateVariable) != ""})
	if err != nil && !errors.Is(err, host.ErrRunning) {
		return err
	}
	if h != nil && !follow {
		h.Leave()
	}
	files, err := open(&w)
	if err != nil {
		return err
	}
	c, err := host.Dial(dir)
	if err != nil {
		return err
	}
	if err := c.Run(w, files); err != nil {
		return err
	}
	for _, f := range files {
		_ = f.Close()
	}
	go func() {
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err == nil {
			c.Stop()
		}
	}()
	for {
		ev, err := c.Next()
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(ev); err != nil {
			return err
		}
		if ev.Kind == host.EventDone || ev.Kind == host.EventReady && w.Detach {
			if follow {
				h.End(10 * time.Second)
			}
			return nil
		}
	}
}

// open opens the sockets that a workload names, and its standard files.
func open(w *host.Workload) (files []*os.File, err error) {
	if w.Stdio {
		files = append(files, os.Stdin, os.Stderr, os.Stderr)
	}
	for range w.Sockets {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			return nil, err
		}
		_, err = fmt.Fprintln(os.Stdout, l.Addr())
		if err = errors.Join(err, l.Close()); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// lateend is a double of the control plane.
func lateend() error {
	flags := flag.NewFlagSet("lateend", flag.ContinueOnError)
	api := flags.String("api", "", "")
	listen := flags.String("listen", "", "")
	for _, name := range []string{"dir", "state"} {
		flags.String(name, "", "")
	}
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}
	if os.Getenv(brokenVariable) == "lateend" {
		return errors.New("the state folder is on fire")
	}
	journal("lateend start")
	_ = os.Remove(*api)
	l, err := net.Listen("unix", *api)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /tokens", func(w http.ResponseWriter, r *http.Request) {
		var ask struct{ Namespace, ServiceAccount string }
		_ = json.NewDecoder(r.Body).Decode(&ask)
		if ask.ServiceAccount == "nobody" {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error": "nobody may join"}`)
			return
		}
		_ = json.NewEncoder(w).Encode(host.Token{Token: "t", Roots: "r", TrustDomain: "td", Control: []string{*listen}})
	})
	mux.HandleFunc("POST /workloads", func(_ http.ResponseWriter, r *http.Request) {
		var ask struct{ Namespace, Name, State string }
		_ = json.NewDecoder(r.Body).Decode(&ask)
		journal("%s", ask.State)
	})
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() { _ = http.Serve(l, mux) }()
	<-ended
	return nil
}

// lateenProxy is a double of the proxy.
func lateenProxy() error {
	var cfg host.ProxyConfig
	if err := json.NewDecoder(os.Stdin).Decode(&cfg); err != nil {
		return err
	}
	if cfg.Token != "t" || string(cfg.Roots) != "r" || !cfg.MarkSockets || len(cfg.Control) != 1 || len(cfg.Addresses) != 2 {
		return fmt.Errorf("the configuration is %+v", cfg)
	}
	for name, fd := range cfg.Inherited {
		l, err := net.FileListener(os.NewFile(uintptr(fd), name))
		if err != nil {
			return err
		}
		go func() {
			_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = fmt.Fprintf(w, "%s of %s", name, cfg.Name)
			}))
		}()
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(15021)))
	if err != nil {
		return err
	}
	if os.Getenv(accelerateVariable) != "" {
		journal("accelerator %s", cfg.Accelerator)
	} else if cfg.Accelerator != "off" {
		return fmt.Errorf("nobody asked for an accelerator, which is %s", cfg.Accelerator)
	}
	journal("proxy ready")
	go func() { _ = http.Serve(l, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) }()
	<-ended
	journal("proxy end")
	return nil
}
