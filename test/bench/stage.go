package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/lateen-mesh/lateen/proxy"
	"github.com/lateen-mesh/lateen/test/bench/load"
	"github.com/lateen-mesh/lateen/test/world"
)

const (
	// patience bounds each wait for a process.
	patience = 30 * time.Second
	interval = 10 * time.Millisecond
	// firstPort is the first one of the proxies', below those that the kernel gives to connections.
	firstPort = 20000
	// niceness of what is measured, where it is allowed.
	niceness = "-10"
)

// namespace is that of everything in the mesh here, and narrow that of proxies which see the used services only.
const (
	namespace = "bench"
	narrow    = "narrow"
)

// The names of the peers.
const (
	ours        = "lateen"
	peerEnvoy   = "envoy"
	peerHAProxy = "haproxy"
	peerNginx   = "nginx"
	// peerOther is another build of our proxy: see the flag other.
	peerOther = "other"
	// peerOneLoop is ours with one event loop, where ours has two.
	peerOneLoop = "one-loop"
	// peerNginxDefault is nginx with the buffers that it has unless told otherwise.
	peerNginxDefault = "nginx-default"
	// peerEnvoyUsed is Envoy in a namespace that sees no services but those that are used.
	peerEnvoyUsed = "envoy-used"
	// direct is no proxy at all.
	direct = "direct"
)

//go:embed testdata
var testdata embed.FS

// stage is one scenario set up: its services, the control plane and the proxies, all idle.
type stage struct {
	cfg      config
	tools    tools
	dir      string
	services []netip.AddrPort
	serving  []*exec.Cmd
	world    *world.World
	network  *world.Network
	peers    []*peer
	routes   []route
	tls      *load.TLS // what the load speaks; nil: plaintext
	absent   []string  // why a peer is not there
	large    int       // how many services there are, where that is what matters
	near     string    // CPUs for load and services, as taskset reads them
	far      string    // CPUs for the proxies
	unpinned bool
}

// peer is one proxy that stands in the position.
type peer struct {
	name  string
	roots []int            // processes that were started
	pids  []int            // these and all that they have started, when the peer has answered
	ports []netip.AddrPort // by service
	admin func(ctx context.Context, path string) (string, error)
	began time.Time     // when its process was started
	ready time.Duration // from then to its first answer, where that is timed
	// place is where its clients are; nil: where we are.
	place   *world.Place
	started []*process // those that the world does not own
}

// process is one that is ended with the stage.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
}

// route is one way through all proxies, as the templates in testdata see it.
type route struct {
	Downstream, Upstream string
	Service              int            // port
	Number               int            // port that clients use
	Ports                map[string]int // of those that obey our control plane
	Listen, Backend      string         // for the others: set for each
}

// tools are the programs that are run.
type tools struct {
	self, lateen string
	paths        map[string]string // by peer
}

// newStage starts everything that a scenario needs.
func newStage(ctx context.Context, cfg config, t tools, sc *scenario, names []string) (*stage, error) {
	dir, err := os.MkdirTemp("", "lb") // short: Unix sockets are made in it
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	s := &stage{cfg: cfg, tools: t, dir: dir, near: strconv.Itoa(cfg.cpus[0]), far: strconv.Itoa(cfg.cpus[1])}
	if sc.position&unpinned != 0 {
		s.unpinned = true
		s.near += "," + s.far
		s.far = s.near
	}
	if err := s.start(ctx, sc, names); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *stage) start(ctx context.Context, sc *scenario, names []string) error {
	if sc.position&atGateway == 0 {
		return s.startMesh(ctx, sc, names)
	}
	places, err := s.serveGateway(sc, names)
	if err != nil {
		return err
	}
	for i, v := range sc.services {
		r := route{
			Downstream: v.downstream, Upstream: v.upstream, Service: int(s.services[i].Port()), Backend: s.services[i].String(),
			Ports: map[string]int{},
		}
		for n, name := range names {
			if obeys(name) {
				r.Ports[name] = port(n, i)
			}
		}
		s.routes = append(s.routes, r)
	}
	if err := s.control(ctx, "mesh.yaml", nil); err != nil {
		return err
	}
	for n, name := range names {
		p := &peer{name: name, place: places[n]}
		for i := range s.services {
			p.ports = append(p.ports, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port(n, i))))
		}
		add := s.add
		if sc.position&timed != 0 {
			add = s.addTimed
		}
		if err := s.admit(ctx, p, sc, add(ctx, p)); err != nil {
			return err
		}
	}
	return nil
}

// serveGateway starts the services, and says where each peer is to be: nil is here. Two of our proxies in one network
// namespace would meet at their administrative ports, so each peer has one then, with services of its own in it.
func (s *stage) serveGateway(sc *scenario, names []string) ([]*world.Place, error) {
	places := make([]*world.Place, len(names))
	var list []load.Service
	for _, v := range sc.services {
		list = append(list, v.Service)
	}
	var err error
	if !slices.ContainsFunc(names, func(name string) bool { return name != ours && kind(name) == world.Lateen }) {
		s.services, err = s.serve(nil, list)
		return places, err
	}
	if s.network, err = world.NewNetwork(netip.MustParsePrefix("10.9.0.1/16")); err != nil {
		return nil, err
	}
	for i := range list {
		list[i].Address = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(appPort+i))
	}
	for n := range names {
		if places[n], err = s.network.Join(clientAddress(n)); err != nil {
			return nil, err
		}
		if err := places[n].Do(widen); err != nil {
			return nil, err
		}
		if s.services, err = s.serve(places[n], list); err != nil {
			return nil, err
		}
	}
	return places, nil
}

// widen lets more connections be open at once: each of a load has a port of its own, and those of a minute ago are reserved.
func widen() error {
	_ = os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("24000 65000"), 0) // where that is not allowed the default has to do
	return nil
}

// admit takes a peer that was started without an error, and that answers as it must, onto the stage. Without ours there
// is nothing to compare; any other peer is left out, and that is told.
func (s *stage) admit(ctx context.Context, p *peer, sc *scenario, err error) error {
	if err == nil {
		err = s.check(ctx, p, sc.services)
	}
	switch {
	case err == nil:
		for _, pid := range p.roots {
			p.pids = append(p.pids, load.Tree(pid)...)
		}
		s.peers = append(s.peers, p)
		return nil
	case p.name == ours || ctx.Err() != nil:
		s.peers = append(s.peers, p) // its processes end with the others
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.end()
	note := fmt.Sprintf("%s: %s is left out: %v", sc.name, p.name, err)
	_, _ = fmt.Fprintln(s.cfg.log, "failed:", note)
	s.absent = append(s.absent, note)
	return nil
}

// end ends the processes that the world does not own.
func (p *peer) end() {
	for _, run := range p.started {
		_ = run.cmd.Process.Signal(syscall.SIGTERM)
		<-run.ended
	}
	p.started = nil
}

// port is that of a peer for a service.
func port(peer, service int) int { return firstPort + 100*peer + service }

// serve starts services in a place and returns where they are.
func (s *stage) serve(at *world.Place, list []load.Service) ([]netip.AddrPort, error) {
	text, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	cmd := pinned(s.near, s.tools.self, partServe)
	cmd.Stdin, cmd.Stderr, cmd.Env = bytes.NewReader(text), s.cfg.log, oneProcessor()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := at.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start the services: %w", err)
	}
	s.serving = append(s.serving, cmd)
	var ports []netip.AddrPort
	if err := json.NewDecoder(out).Decode(&ports); err != nil {
		return nil, fmt.Errorf("read where the services are: %w", err)
	}
	return ports, nil
}

// oneProcessor is the environment of what makes or answers load: one event loop, which no other thread of it disturbs.
func oneProcessor() []string { return append(os.Environ(), "GOMAXPROCS=1") }

// pinned runs a program on a list of CPUs, before others if that is allowed. It dies with this process.
func pinned(cpus, path string, args ...string) *exec.Cmd {
	cmd := exec.Command("taskset", append([]string{"-c", cpus, "nice", "-n", niceness, path}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// control starts the control plane with the scenario's configuration.
func (s *stage) control(ctx context.Context, name string, data map[string]any) error {
	binary, err := s.wrap(lateenWrapper, s.tools.lateen)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "w", "config"), 0o700); err != nil {
		return fmt.Errorf("make the folder of configuration: %w", err)
	}
	if s.world, err = world.New(ctx, world.Config{Dir: filepath.Join(s.dir, "w"), ProxyBinary: binary, Network: s.network}); err != nil {
		return fmt.Errorf("start the control plane: %w", err)
	}
	if path := s.tools.paths[peerOther]; path != "" {
		if _, err := s.wrap(otherWrapper, path); err != nil {
			return err
		}
	}
	if path := s.tools.paths[peerEnvoy]; path != "" {
		binary, err := s.wrap(envoyWrapper, path)
		if err != nil {
			return err
		}
		if err := os.Setenv("LATEEN_ENVOY", binary); err != nil {
			return err
		}
	}
	text, err := fill(name, s.data(s.routes, data))
	if err != nil {
		return err
	}
	return s.world.Apply(ctx, text)
}

// begunSuffix ends the name of the file in which a wrapper notes when it began, in nanoseconds.
const begunSuffix = ".began"

// The wrappers.
const (
	lateenWrapper = "p"
	otherWrapper  = "o"
	envoyWrapper  = "e"
)

// wrapper names the one by which a peer is started that obeys our control plane.
func wrapper(peer string) string {
	switch {
	case kind(peer) == world.Envoy:
		return envoyWrapper
	case peer == peerOther:
		return otherWrapper
	}
	return lateenWrapper
}

// workload is what is the same for a peer in all positions.
func (s *stage) workload(p *peer) world.Workload {
	w := world.Workload{Kind: kind(p.name), Namespace: namespace, Threads: 1}
	if p.name == peerOther {
		w.Binary = filepath.Join(s.dir, otherWrapper)
	}
	if p.name == peerEnvoyUsed {
		w.Namespace = narrow
	}
	if s.unpinned && p.name != peerOneLoop {
		w.Threads = 2
	}
	return w
}

// wrap writes a program that runs another one as pinned does, for those that are started by their path.
func (s *stage) wrap(name, path string) (string, error) {
	own := filepath.Join(s.dir, name)
	text := fmt.Sprintf("#!/bin/sh\ndate +%%s%%N >%s\nexec taskset -c %s nice -n %s %s \"$@\"\n", own+begunSuffix, s.far, niceness, path)
	if err := os.WriteFile(own, []byte(text), 0o700); err != nil {
		return "", fmt.Errorf("write a wrapper: %w", err)
	}
	return own, nil
}

// data is what the templates see.
func (s *stage) data(routes []route, more map[string]any) map[string]any {
	out := map[string]any{"Routes": routes, "Dir": s.dir}
	maps.Copy(out, more)
	return out
}

// fill fills in one of the templates.
func fill(name string, data map[string]any) (string, error) {
	t, err := template.New(name).Option("missingkey=error").ParseFS(testdata, "testdata/"+name)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if err := t.Execute(&b, data); err != nil {
		return "", err
	}
	return b.String(), nil
}

// add starts one peer at the gateway's position.
func (s *stage) add(ctx context.Context, p *peer) error {
	if p.name == direct {
		p.ports = s.services
		return nil
	}
	if obeys(p.name) {
		w := s.workload(p)
		w.Role, w.Name, w.Labels, w.Place = proxy.RoleGateway, p.name, map[string]string{"app": p.name}, p.place
		run, err := s.world.Start(ctx, w)
		if err != nil {
			return err
		}
		p.roots, p.admin = []int{run.PID()}, run.Admin
		if err := answers(ctx, p); err != nil {
			return fmt.Errorf("%w; it said:\n%s", err, run.Log())
		}
		return nil
	}
	routes := slices.Clone(s.routes)
	for i := range routes {
		routes[i].Listen = p.ports[i].String()
	}
	file := "nginx.conf"
	if p.name == peerHAProxy {
		file = "haproxy.cfg"
	}
	return s.byFile(ctx, p, p.place, file, p.name, s.data(routes, map[string]any{"Tuned": p.name != peerNginxDefault}), nil)
}

// byFile starts a peer that obeys a file: a template filled in with the data. Files are put into
// its folder first.
func (s *stage) byFile(ctx context.Context, p *peer, at *world.Place, name, folder string, data map[string]any, files map[string][]byte) error {
	dir := filepath.Join(s.dir, folder)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	data["Dir"] = dir
	text, err := fill(name, data)
	if err != nil {
		return err
	}
	config := filepath.Join(dir, name)
	if files == nil {
		files = map[string][]byte{}
	}
	files[name] = []byte(text)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return err
		}
	}
	program, args := peerHAProxy, []string{"-db", "-q", "-f", config}
	if p.name != peerHAProxy {
		program, args = peerNginx, []string{"-p", dir, "-c", config, "-e", filepath.Join(dir, "error.log")}
		if os.Geteuid() == 0 {
			args = append(args, "-g", "user root;") // it reads and writes this folder, which is ours
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	run := &process{cmd: pinned(s.far, s.tools.paths[program], args...), ended: make(chan struct{})}
	run.cmd.Stdout, run.cmd.Stderr = log, log
	p.began = time.Now()
	if err := at.Do(run.cmd.Start); err != nil {
		return err
	}
	p.started = append(p.started, run)
	go func() {
		defer close(run.ended)
		_ = run.cmd.Wait() // how it ended is in its log
	}()
	if err := listens(ctx, at, data["Routes"].([]route), run.ended); err != nil {
		said, _ := os.ReadFile(log.Name()) // what there is of it
		return fmt.Errorf("%w; it said:\n%s", err, said)
	}
	p.roots = append(p.roots, run.cmd.Process.Pid)
	return nil
}

// close ends everything.
func (s *stage) close() error {
	var errs []error
	for _, p := range s.peers {
		p.end()
	}
	if s.world != nil {
		errs = append(errs, s.world.Close())
	}
	for _, cmd := range s.serving {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}
	if s.network != nil {
		errs = append(errs, s.network.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}
