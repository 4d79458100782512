package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/test/bench/load"
)

// The parts that this program plays besides the one that is asked for.
const (
	partInside = "inside" // the bench itself, in a network namespace of its own
	partLoad   = "load"   // makes load: a load.Job on standard input, a load.Result on standard output
	partServe  = "serve"  // answers it: a list of load.Service in, the list of their addresses out
)

// config is what is asked for.
type config struct {
	scenarios []string // names; empty: all
	peers     []string
	rounds    int
	window    time.Duration
	json      string // path; empty: none
	markdown  string // path; empty: standard output
	plot      string // path; empty: none
	profile   string // folder: profile our proxy instead of comparing; empty: compare
	other     string // path of another build of our proxy, which is a peer; empty: none
	// cpus are the one for load and the one for the proxy under test.
	cpus [2]int
	log  io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case partLoad:
			return playLoad()
		case partServe:
			return playServe()
		case partInside:
			cfg, err := parse(args[1:])
			if err != nil {
				return err
			}
			return inside(ctx, cfg)
		}
	}
	cfg, err := parse(args) // a fault is told before anything is started
	if err != nil {
		return err
	}
	return isolate(ctx, cfg, args)
}

func parse(args []string) (config, error) {
	cfg := config{log: os.Stderr}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	var scenarioList, peerList, cpus string
	f.StringVar(&scenarioList, "scenario", "", "scenarios, or single variants as in h1/64, separated by commas; empty: all of "+strings.Join(scenarioNames(), ","))
	f.StringVar(&peerList, "peers", "envoy,haproxy,nginx", "who is measured beside our proxy")
	f.IntVar(&cfg.rounds, "rounds", 3, "how often each measurement is repeated, interleaved")
	f.DurationVar(&cfg.window, "for", 1200*time.Millisecond, "how long each measurement counts")
	f.StringVar(&cfg.json, "json", "", "`file` for the results as JSON")
	f.StringVar(&cfg.markdown, "markdown", "", "`file` for the table; empty: standard output")
	f.StringVar(&cfg.plot, "plot", "", "`file` for the plot, an SVG")
	f.StringVar(&cfg.profile, "profile", "", "`folder` for profiles of our proxy in the first scenario, instead of a comparison")
	f.StringVar(&cfg.other, "other", "", "`path` of another build of lateen-proxy, or of a script that runs one, to stand beside ours as a peer")
	f.StringVar(&cpus, "cpus", "", "`pair` of CPUs, for load and for the proxy under test; empty: the first two")
	if err := f.Parse(args); err != nil {
		return cfg, err
	}
	cfg.scenarios, cfg.peers = split(scenarioList), split(peerList)
	for _, s := range cfg.scenarios {
		if !known(s) {
			return cfg, fmt.Errorf("scenario %q is not known; there are %s", s, strings.Join(scenarioNames(), ", "))
		}
	}
	for _, p := range cfg.peers {
		if !slices.Contains([]string{peerEnvoy, peerHAProxy, peerNginx}, p) {
			return cfg, fmt.Errorf("peer %q is not known", p)
		}
	}
	if cfg.other != "" {
		cfg.peers = append(cfg.peers, peerOther)
	}
	if cfg.rounds < 1 || cfg.window <= 0 {
		return cfg, errors.New("at least one round, of more than no time")
	}
	var err error
	cfg.cpus, err = choose(cpus)
	return cfg, err
}

func split(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(s string) bool { return s == "" })
}

// choose reads the pair of CPUs, or takes the first two that this process may use.
func choose(text string) (pair [2]int, err error) {
	var set unix.CPUSet
	if text != "" {
		if _, err := fmt.Sscanf(text, "%d,%d", &pair[0], &pair[1]); err != nil || pair[0] == pair[1] {
			return pair, fmt.Errorf("cpus %q: want two different numbers, as in 0,1", text)
		}
		return pair, nil
	}
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return pair, fmt.Errorf("read which CPUs may be used: %w", err)
	}
	if set.Count() < 2 {
		return pair, errors.New("one CPU is too few: load and the proxy under test need one each")
	}
	n := 0
	for cpu := 0; n < len(pair); cpu++ {
		if set.IsSet(cpu) {
			pair[n] = cpu
			n++
		}
	}
	return pair, nil
}

// isolate runs the bench again in a network namespace, so that ports, connections and rules of this machine are neither
// met nor touched.
func isolate(ctx context.Context, cfg config, args []string) error {
	isolation := netns.Isolation{User: os.Geteuid() != 0}
	if err := netns.Check(isolation); err != nil { //nolint:contextcheck // It takes a moment and cannot be waited for.
		return fmt.Errorf("make a network namespace: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's own file: %w", err)
	}
	pair := strconv.Itoa(cfg.cpus[0]) + "," + strconv.Itoa(cfg.cpus[1])
	taskset, err := exec.LookPath("taskset")
	if err != nil {
		return fmt.Errorf("taskset (Debian: util-linux) is needed: %w", err)
	}
	inner := []string{"-c", strconv.Itoa(cfg.cpus[0]), self, partInside, "-cpus", pair}
	cmd := netns.Command(ctx, isolation, taskset, append(inner, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr.Setsid = true // its own group for the scheduler: see prefer
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = patience
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		return errors.New("ended early")
	} else if err != nil {
		return fmt.Errorf("run in a network namespace: %w", err)
	}
	return nil
}

// playLoad makes load as standard input says.
func playLoad() error {
	var job load.Job
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	result, err := load.Run(job)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// playServe serves what standard input says until it is killed.
func playServe() error {
	var services []load.Service
	if err := json.NewDecoder(os.Stdin).Decode(&services); err != nil {
		return fmt.Errorf("read the services: %w", err)
	}
	return load.Serve(services, func(ports []netip.AddrPort) error { return json.NewEncoder(os.Stdout).Encode(ports) })
}
