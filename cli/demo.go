package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/cli/show"
)

const (
	// demoGrace and demoDrain are short: Ctrl-C ends everything within 5 s.
	demoGrace = 2 * time.Second
	demoDrain = time.Second
	demoEnd   = 8 * time.Second
	// pageLimit is how long the first page may take after everybody is ready.
	pageLimit    = 10 * time.Second
	pageInterval = 50 * time.Millisecond
	redrawEvery  = time.Second
	// plainEvery is how often the picture is printed where it cannot be redrawn.
	plainEvery = 10 * time.Second
	// settle is how long the proxies may take to count the last requests.
	settle = 300 * time.Millisecond
	// gatewayPort is the port of the gateway in its own mesh.
	gatewayPort = 8080
	pagePath    = "/productpage"
	// pageContent is on every product page.
	pageContent = "The Comedy of Errors"
)

// demoOptions are the flags of `lateen demo`.
type demoOptions struct {
	headless bool
	duration time.Duration
	output   string
	configs  []string
	applyAt  []time.Duration
	files    []string // One for each applyAt.
	headers  []string
	path     string
	rate     int
	clean    bool
	port     uint16
	examples string
}

// demo is `lateen demo`.
func (a *app) demo() *cobra.Command {
	var o demoOptions
	var applyAt []string
	cmd := &cobra.Command{
		Use:   "demo [--apply-at 5s FILE]",
		Short: "Run Bookinfo in the mesh, under a light load, and show what happens",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.complete(applyAt, args); err != nil {
				return usage(err)
			}
			if o.clean {
				return a.clean(cmd.Context())
			}
			return a.runDemo(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.headless, "headless", false, "no picture: run for some time, then print what happened")
	f.DurationVar(&o.duration, "for", 0, "end after so long (headless: 20s)")
	f.StringVarP(&o.output, "output", "o", "text", "headless: text or json")
	f.StringArrayVar(&o.configs, "config", nil, "file or folder with further objects, which replace the demo's of the same names;\nmay be repeated")
	f.StringArrayVar(&applyAt, "apply-at", nil, "apply FILE so long after the load began; may be repeated, each with its FILE")
	f.StringArrayVar(&o.headers, "header", nil, "header of the load's requests, as in 'end-user: jason'; may be repeated")
	f.StringVar(&o.path, "path", pagePath, "path of the load's requests")
	f.IntVar(&o.rate, "rate", 20, "requests per second of the load")
	a.accelerateFlag(cmd)
	f.BoolVar(&o.clean, "clean", false, "only end what runs of this mesh and remove what was left behind")
	f.Uint16Var(&o.port, "port", gatewayPort, "port of this machine for the gateway, or the next free one")
	f.StringVar(&o.examples, "examples", "", "folder of the Bookinfo example (default: found beside the program)")
	return cmd
}

// complete checks the options, all at once.
func (o *demoOptions) complete(applyAt, args []string) error {
	var errs []error
	errs = append(errs, format(o.output, "text", "json"))
	if len(applyAt) != len(args) {
		errs = append(errs, fmt.Errorf("%d --apply-at and %d files are given: each time needs a file", len(applyAt), len(args)))
	}
	for _, text := range applyAt {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			errs = append(errs, fmt.Errorf("--apply-at %q: write a time and a file, as in --apply-at 5s FILE", text))
		}
		o.applyAt = append(o.applyAt, d)
	}
	o.files = args
	if _, err := headerOf(o.headers); err != nil {
		errs = append(errs, err)
	}
	if !strings.HasPrefix(o.path, "/") {
		errs = append(errs, fmt.Errorf("--path %q: a path begins with /", o.path))
	}
	if o.rate < 1 || o.rate > 100000 {
		errs = append(errs, fmt.Errorf("--rate %d: choose 1 to 100000", o.rate))
	}
	if o.headless && o.duration == 0 {
		o.duration = 20 * time.Second
	}
	return errors.Join(errs...)
}

// headerOf reads lines "name: value".
func headerOf(lines []string) (http.Header, error) {
	h := http.Header{}
	for _, line := range lines {
		name, value, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) == "" {
			return nil, fmt.Errorf("--header %q: write it as 'name: value'", line)
		}
		h.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return h, nil
}

// clean is `lateen demo --clean`.
func (a *app) clean(ctx context.Context) error {
	found, err := host.Clean(ctx, a.dir)
	if err != nil {
		return err
	}
	if found {
		say(a.out, "the mesh %q has ended; nothing of it is left\n", a.mesh)
	} else {
		say(a.out, "there is nothing of a mesh %q\n", a.mesh)
	}
	return nil
}

// demoWorkloads are the seven of Bookinfo.
func demoWorkloads(bookinfo string) []host.Workload {
	service := func(name, version string) host.Workload {
		return host.Workload{
			Name: name + "-" + version, Namespace: "default", ServiceAccount: "bookinfo-" + name, Role: host.RoleSidecar,
			Labels: map[string]string{"app": name, "version": version}, Ports: map[string]uint16{"http": 9080},
			Command: []string{bookinfo, name, "--version", version}, Env: os.Environ(), Dir: "/",
			Probe: "http://:9080/health", Grace: demoGrace, Drain: demoDrain,
		}
	}
	return []host.Workload{
		{
			// Not in Bookinfo's namespace, whose policies are not for it.
			Name: "ingressgateway", Namespace: "istio-system", ServiceAccount: "ingressgateway", Role: host.RoleGateway,
			Labels: map[string]string{"istio": "ingressgateway", "app": "ingressgateway"}, Env: os.Environ(), Dir: "/",
			Ports: map[string]uint16{"http": gatewayPort}, Grace: demoGrace, Drain: demoDrain,
		},
		service("productpage", "v1"), service("details", "v1"), service("reviews", "v1"), service("reviews", "v2"),
		service("reviews", "v3"), service("ratings", "v1"),
	}
}

// demoRun is a demo that runs.
type demoRun struct {
	app     *app
	opts    demoOptions
	host    *host.Host
	style   show.Style
	began   time.Time
	ready   time.Duration
	page    string
	admins  []address
	sockets []string // Of the proxies' admin pages.
	load    *load
	lost    chan error // A workload that ended by itself.
	clients []*host.Client

	configured bool // The user added objects.
}

// runDemo runs the demo to its end.
func (a *app) runDemo(ctx context.Context, o demoOptions) error {
	d := &demoRun{app: a, opts: o, style: show.NewStyle(a.err), began: time.Now(), lost: make(chan error, 16)}
	examples, bookinfo, err := findExamples(o.examples)
	if err != nil {
		return err
	}
	d.opts.examples = examples
	d.progress("starting the control plane")
	d.host, err = host.Start(ctx, host.StartConfig{Dir: a.dir, Follow: true, Fill: d.fill, Accelerate: a.accelerate})
	if errors.Is(err, host.ErrRunning) {
		return fmt.Errorf("the mesh %q runs already; end it with `lateen demo --clean`, or start another with --mesh: %w", a.mesh, err)
	}
	if err != nil {
		return err
	}
	defer d.end()
	if err := d.configure(ctx); err != nil {
		return err
	}
	if err := d.start(ctx, demoWorkloads(bookinfo)); err != nil {
		return err
	}
	header, err := headerOf(o.headers)
	if err != nil {
		return err
	}
	want := ""
	if o.path == pagePath {
		want = pageContent
	}
	d.load = newLoad(d.page+o.path, header, o.rate, want)
	d.awaitPage(ctx)
	d.ready = time.Since(d.began)
	d.progress("ready after %s", d.ready.Round(time.Millisecond))
	if o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}
	return d.run(ctx)
}

// progress tells what happens before there is a picture.
func (d *demoRun) progress(format string, args ...any) {
	say(d.app.err, "%s\n", d.style.Dim.Render(fmt.Sprintf(format, args...)))
}

// findExamples finds the folder of the example and its program.
func findExamples(folder string) (examples, bookinfo string, err error) {
	self, _, _, err := host.Programs()
	if err != nil {
		return "", "", err
	}
	bin := filepath.Dir(self)
	bookinfo = filepath.Join(bin, "bookinfo")
	if _, err := os.Stat(bookinfo); err != nil {
		return "", "", fmt.Errorf("find the program bookinfo, which must stand beside %s: `make build` makes it: %w", self, err)
	}
	candidates := []string{filepath.Join(bin, "..", "examples", "bookinfo"), filepath.Join("examples", "bookinfo")}
	if folder != "" {
		candidates = []string{folder}
	}
	for _, c := range candidates {
		if _, err := os.Stat(filepath.Join(c, "platform", "services.yaml")); err == nil {
			return c, bookinfo, nil
		}
	}
	return "", "", fmt.Errorf("find the example's objects in %s: name the folder with --examples", strings.Join(candidates, " or "))
}

// fill puts the demo's first objects into the mesh's folder of configuration.
func (d *demoRun) fill(config string) error {
	for _, name := range []string{"platform/services.yaml", "networking/bookinfo-gateway.yaml", "networking/destination-rule-all.yaml"} {
		text, err := os.ReadFile(filepath.Join(d.opts.examples, name))
		if err != nil {
			return fmt.Errorf("read the demo's objects: %w", err)
		}
		if err := os.WriteFile(filepath.Join(config, filepath.Base(name)), text, 0o600); err != nil {
			return fmt.Errorf("write the demo's objects: %w", err)
		}
	}
	return nil
}

// configure applies the objects that the user adds: they replace the demo's own of the same names.
func (d *demoRun) configure(ctx context.Context) error {
	var files []string
	for _, path := range d.opts.configs {
		list, err := yamlFiles(path)
		if err != nil {
			return err
		}
		files = append(files, list...)
	}
	if d.configured = len(files) > 0; !d.configured {
		return nil
	}
	return d.apply(ctx, files)
}

// apply applies files whole; only what is odd about them is told.
func (d *demoRun) apply(ctx context.Context, paths []string) error {
	return d.app.configure(ctx, paths, d.opts.headless)
}

// start starts all workloads at once and returns when all are ready.
func (d *demoRun) start(ctx context.Context, list []host.Workload) error {
	d.progress("starting %d workloads", len(list))
	var mu sync.Mutex
	var group sync.WaitGroup
	var errs []error
	for _, w := range list {
		s, err := d.open(ctx, &w)
		if err != nil {
			errs = append(errs, err)
			break
		}
		group.Go(func() {
			c, err := d.startOne(ctx, w, s)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			d.clients = append(d.clients, c)
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// open opens what a person must reach of a workload.
func (d *demoRun) open(ctx context.Context, w *host.Workload) (*sockets, error) {
	s := &sockets{}
	err := s.open(ctx, "admin", adminPort)
	if err == nil && w.Role == host.RoleGateway {
		err = s.open(ctx, strconv.Itoa(gatewayPort), d.opts.port)
		d.page = fmt.Sprintf("http://127.0.0.1:%d", s.ports[strconv.Itoa(gatewayPort)])
	}
	if err != nil {
		s.close()
		return nil, err
	}
	w.Sockets = s.names
	d.admins = append(d.admins, address{w.Name, fmt.Sprintf("http://127.0.0.1:%d", s.ports["admin"])})
	d.sockets = append(d.sockets, d.app.dir.Admin(w.Namespace, w.Name))
	return s, nil
}

// startOne starts one workload and returns when it is ready; its later end goes to lost.
func (d *demoRun) startOne(ctx context.Context, w host.Workload, s *sockets) (*host.Client, error) {
	c, err := d.app.request(ctx, w, s.files)
	s.close()
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, c.Stop)()
	for {
		ev, err := c.Next()
		switch {
		case err != nil:
			_ = c.Close()
			return nil, fmt.Errorf("start %s: %w", w.Name, err)
		case ev.Kind == host.EventExited:
			_ = c.Close()
			return nil, fmt.Errorf("start %s: it ended with code %d; its last words:\n%s", w.Name, ev.Code,
				host.LastLines(d.app.dir.Log(w.Namespace+"."+w.Name)))
		case ev.Kind == host.EventReady:
			go d.watch(w.Name, c) // Ends with the workload, at the latest with the host.
			return c, nil
		}
	}
}

// watch waits for the end of a workload.
func (d *demoRun) watch(name string, c *host.Client) {
	for {
		ev, err := c.Next()
		if err == nil && ev.Kind != host.EventExited {
			continue
		}
		if err == nil {
			err = fmt.Errorf("its command ended with code %d", ev.Code)
		}
		select {
		case d.lost <- fmt.Errorf("%s has ended: %w", name, err):
		default:
		}
		return
	}
}

// awaitPage waits until the gateway answers as it will: what comes before the first orders have arrived counts nowhere.
func (d *demoRun) awaitPage(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pageLimit)
	defer cancel()
	tick := time.NewTicker(pageInterval)
	defer tick.Stop()
	for {
		status, err := d.load.once(ctx, true)
		if err == nil && status < http.StatusInternalServerError && status != http.StatusNotFound {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// run applies the load and shows what happens, until ctx ends or a workload is lost.
func (d *demoRun) run(ctx context.Context) error {
	before := poll(ctx, d.sockets)
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	answers, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	var group sync.WaitGroup
	group.Go(func() { d.load.run(loadCtx, answers) })
	began := time.Now()
	applied := make(chan error, len(d.opts.applyAt))
	for i, at := range d.opts.applyAt {
		group.Go(func() { applied <- d.applyLater(ctx, at, d.opts.files[i]) })
	}
	var err error
	if d.opts.headless {
		err = d.wait(ctx, applied)
	} else {
		err = d.show(ctx, began, before, applied)
	}
	stopLoad()
	if err != nil || !d.opts.headless {
		abandon() // Nobody will read how they end.
	}
	group.Wait()
	if err != nil || !d.opts.headless {
		return err
	}
	return d.report(context.WithoutCancel(ctx), before)
}

// applyLater applies a file some time after now.
func (d *demoRun) applyLater(ctx context.Context, at time.Duration, file string) error {
	select {
	case <-time.After(at):
	case <-ctx.Done():
		return nil
	}
	return d.apply(ctx, []string{file})
}

// wait waits for the end of a headless demo, or of one of its workloads.
func (d *demoRun) wait(ctx context.Context, applied <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return nil
			}
			return errors.New("interrupted before the time was over")
		case err := <-d.lost:
			return err
		case err := <-applied:
			if err != nil {
				return err
			}
		}
	}
}

// show draws the live picture until ctx ends.
func (d *demoRun) show(ctx context.Context, began time.Time, last counts, applied <-chan error) error {
	every := plainEvery
	live := term.IsTerminal(int(d.app.out.Fd()))
	if live {
		every = redrawEvery
	}
	s := show.NewStyle(d.app.out)
	c := &screen{size: func() (int, int) {
		columns, rows, err := term.GetSize(int(d.app.out.Fd()))
		if err != nil {
			return 0, 0
		}
		return columns, rows
	}}
	tick := time.NewTicker(every)
	defer tick.Stop()
	f := frame{page: d.page + pagePath, admins: d.admins, examples: relative(d.opts.examples), lateen: os.Args[0], mesh: d.app.mesh}
	for {
		if live {
			say(d.app.out, "%s", c.draw(f.text(s)))
		} else if f.running > 0 {
			say(d.app.out, "%s\n", f.text(s))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		case err := <-d.lost:
			return err
		case err := <-applied:
			if err != nil {
				f.refused = err.Error()
			}
			continue
		}
		now := poll(ctx, d.sockets)
		f.edges, last = now.since(last), now
		f.requests, f.failed, _, f.lastErr = d.load.totals()
		f.running = time.Since(began)
		f.trouble = d.trouble(ctx)
	}
}

// trouble asks what is wrong with the control plane or its configuration; empty: nothing.
func (d *demoRun) trouble(ctx context.Context) string {
	var status struct {
		Faults []finding `json:"faults"`
	}
	err := host.Call(ctx, d.app.dir.API(), http.MethodGet, "/status", nil, &status)
	switch {
	case err != nil:
		return "the control plane is away; the proxies go on with their last orders"
	case len(status.Faults) > 0:
		return "the configuration is refused, and the last good one stays: " + status.Faults[0].text(nil)
	}
	return ""
}

// relative is a path as one would type it here.
func relative(path string) string {
	dir, err := os.Getwd()
	if err != nil {
		return path
	}
	if full, err := filepath.Abs(path); err == nil {
		if r, err := filepath.Rel(dir, full); err == nil && !strings.HasPrefix(r, "..") {
			return r
		}
	}
	return path
}

// end ends everything.
func (d *demoRun) end() {
	if !d.opts.headless {
		d.progress("ending everything")
	}
	d.host.End(demoEnd)
	for _, c := range d.clients {
		_ = c.Close()
	}
}
