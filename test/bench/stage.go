package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
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

// The names of the peers.
const (
	ours        = "lateen"
	peerEnvoy   = "envoy"
	peerHAProxy = "haproxy"
	peerNginx   = "nginx"
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
	serving  *exec.Cmd
	world    *world.World
	peers    []*peer
	routes   []route
}

// peer is one proxy that stands in the position.
type peer struct {
	name  string
	pids  []int
	ports []netip.AddrPort // by service
	admin func(ctx context.Context, path string) (string, error)
	cmd   *exec.Cmd     // nil: the world owns the process
	ended chan struct{} // closed when cmd has ended
}

// route is one way through all proxies, as the templates in testdata see it.
type route struct {
	Downstream, Upstream string
	Service              int            // port
	Ports                map[string]int // of those that obey our control plane
	Listen, Backend      string         // for the others: set for each
}

// tools are the programs that are run.
type tools struct {
	self, lateen, envoy string
}

// newStage starts everything that a scenario needs.
func newStage(ctx context.Context, cfg config, t tools, sc *scenario, names []string) (*stage, error) {
	dir, err := os.MkdirTemp("", "lb") // short: Unix sockets are made in it
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	s := &stage{cfg: cfg, tools: t, dir: dir}
	if err := s.start(ctx, sc, names); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *stage) start(ctx context.Context, sc *scenario, names []string) error {
	if err := s.serve(ctx, sc); err != nil {
		return err
	}
	for i, v := range sc.services {
		r := route{
			Downstream: v.downstream, Upstream: v.upstream, Service: int(s.services[i].Port()), Backend: s.services[i].String(),
			Ports: map[string]int{},
		}
		for n, name := range names {
			if name == ours || name == peerEnvoy {
				r.Ports[name] = port(n, i)
			}
		}
		s.routes = append(s.routes, r)
	}
	if err := s.control(ctx); err != nil {
		return err
	}
	for n, name := range names {
		p := &peer{name: name}
		for i := range s.services {
			p.ports = append(p.ports, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port(n, i))))
		}
		s.peers = append(s.peers, p)
		if err := s.add(ctx, p); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
	}
	return nil
}

// port is that of a peer for a service.
func port(peer, service int) int { return firstPort + 100*peer + service }

// serve starts the services.
func (s *stage) serve(ctx context.Context, sc *scenario) error {
	var list []load.Service
	for _, v := range sc.services {
		list = append(list, v.Service)
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	cmd := pinned(s.cfg.cpus[0], s.tools.self, partServe)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), s.cfg.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the services: %w", err)
	}
	s.serving = cmd
	if err := json.NewDecoder(out).Decode(&s.services); err != nil {
		return fmt.Errorf("read where the services are: %w", err)
	}
	return ctx.Err()
}

// pinned runs a program on one CPU, before others if that is allowed. It dies with this process.
func pinned(cpu int, path string, args ...string) *exec.Cmd {
	cmd := exec.Command("taskset", append([]string{"-c", strconv.Itoa(cpu), "nice", "-n", niceness, path}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// control starts the control plane with the scenario's configuration.
func (s *stage) control(ctx context.Context) error {
	binary, err := s.wrap("p", s.tools.lateen)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "w", "config"), 0o700); err != nil {
		return fmt.Errorf("make the folder of configuration: %w", err)
	}
	if s.world, err = world.New(ctx, world.Config{Dir: filepath.Join(s.dir, "w"), ProxyBinary: binary}); err != nil {
		return fmt.Errorf("start the control plane: %w", err)
	}
	text, err := s.fill("mesh.yaml", nil)
	if err != nil {
		return err
	}
	return s.world.Apply(ctx, text)
}

// wrap writes a program that runs another one as pinned does, for those that are started by their path.
func (s *stage) wrap(name, path string) (string, error) {
	own := filepath.Join(s.dir, name)
	text := fmt.Sprintf("#!/bin/sh\nexec taskset -c %d nice -n %s %s \"$@\"\n", s.cfg.cpus[1], niceness, path)
	if err := os.WriteFile(own, []byte(text), 0o700); err != nil {
		return "", fmt.Errorf("write a wrapper: %w", err)
	}
	return own, nil
}

// fill fills in one of the templates; for a peer that does not obey our control plane with its own ports.
func (s *stage) fill(name string, p *peer) (string, error) {
	t, err := template.ParseFS(testdata, "testdata/"+name)
	if err != nil {
		return "", err
	}
	routes := append([]route(nil), s.routes...)
	dir := s.dir
	if p != nil {
		dir = filepath.Join(s.dir, p.name)
		for i := range routes {
			routes[i].Listen = p.ports[i].String()
		}
	}
	var b strings.Builder
	if err := t.Execute(&b, map[string]any{"Routes": routes, "Dir": dir}); err != nil {
		return "", err
	}
	return b.String(), nil
}

// add starts one peer.
func (s *stage) add(ctx context.Context, p *peer) error {
	switch p.name {
	case ours, peerEnvoy:
		return s.addObedient(ctx, p)
	case direct:
		p.ports = s.services
		return nil
	}
	dir := filepath.Join(s.dir, p.name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	file := "haproxy.cfg"
	if p.name == peerNginx {
		file = "nginx.conf"
	}
	text, err := s.fill(file, p)
	if err != nil {
		return err
	}
	config := filepath.Join(dir, file)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	args := []string{"-db", "-q", "-f", config}
	if p.name == peerNginx {
		args = []string{"-p", dir, "-c", config, "-e", filepath.Join(dir, "error.log")}
		if os.Geteuid() == 0 {
			args = append(args, "-g", "user root;") // it reads and writes this folder, which is ours
		}
	}
	p.cmd = pinned(s.cfg.cpus[1], p.name, args...)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		p.cmd = nil
		return err
	}
	p.ended = make(chan struct{})
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // how it ended is in its log
	}()
	if err := answers(ctx, p); err != nil {
		said, _ := os.ReadFile(log.Name()) // what there is of it
		return fmt.Errorf("%w; it said:\n%s", err, said)
	}
	p.pids = load.Tree(p.cmd.Process.Pid)
	return nil
}

// addObedient starts a peer that obeys our control plane.
func (s *stage) addObedient(ctx context.Context, p *peer) error {
	w := world.Workload{
		Kind: world.Kind(p.name), Role: proxy.RoleGateway, Name: p.name, Namespace: "bench", Labels: map[string]string{"app": p.name},
	}
	if p.name == peerEnvoy {
		binary, err := s.wrap("e", s.tools.envoy)
		if err != nil {
			return err
		}
		if err := os.Setenv("LATEEN_ENVOY", binary); err != nil {
			return err
		}
	}
	run, err := s.world.Start(ctx, w)
	if err != nil {
		return err
	}
	p.pids, p.admin = load.Tree(run.PID()), run.Admin
	if err := answers(ctx, p); err != nil {
		return fmt.Errorf("%w; it said:\n%s", err, run.Log())
	}
	return nil
}

// close ends everything.
func (s *stage) close() error {
	var errs []error
	for _, p := range s.peers {
		if p.cmd != nil {
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			<-p.ended
		}
	}
	if s.world != nil {
		errs = append(errs, s.world.Close())
	}
	if s.serving != nil {
		_ = s.serving.Process.Kill()
		_ = s.serving.Wait() // it was killed
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}
