// Package kubetest gives tests of the main module a real Kubernetes cluster, which test/cluster brings up.
//
// In comes what kind of cluster is wanted; out comes one that is ready, with kubectl, images of this checkout, nodes that
// can be killed, and connections from the cluster's own network. Every cluster is another, and ends with the process that
// asked for it, even if that is killed; several may be up at once. The package must not know what is tested, nor link
// Kubernetes' types. All methods may be called concurrently.
package kubetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

// folder is where test/cluster keeps its clusters unless it is told otherwise.
const folder = "/var/tmp/lateen-cluster"

// ErrUnavailable says that no cluster can be had here, and why. Tests are skipped then.
var ErrUnavailable = errors.New("no cluster")

// started counts the clusters of this process, for their names.
var started atomic.Int64

// Config is what kind of cluster is wanted. The zero value is three nodes.
type Config struct {
	// Nodes is how many; zero: three.
	Nodes int
	// APIOnly wants an API server and controllers, but no nodes: no pod runs.
	APIOnly bool
	// Logs is a folder for what the components write; empty: they go with the cluster.
	Logs string
	// Progress gets a line for each step; nil: nobody.
	Progress io.Writer
}

// Cluster is one that is up.
type Cluster struct {
	// Name tells it from other clusters of the machine.
	Name string `json:"name"`
	// Number, below 100, decides its addresses: nodes 172.30.NUMBER.0/24, LoadBalancers 172.31.NUMBER.0/24, pods and
	// Services 10.(100+NUMBER).0.0/16.
	Number int `json:"number"`
	// Kubeconfig is the path of the administrator's. The API server is on this machine's loopback interface.
	Kubeconfig string `json:"kubeconfig"`
	// Logs is the folder of what the components write.
	Logs string `json:"logs"`

	// Network is the path of the network namespace.
	Network string `json:"network"`
	// Folder is the cluster's own.
	Folder string `json:"folder"`

	root   string
	cmd    *exec.Cmd
	in     io.Closer
	stderr *bytes.Buffer
}

// Up brings up a cluster of three nodes that ends with the test; its logs are among the test's artifacts. The test is
// skipped where there can be no cluster.
func Up(t testing.TB) *Cluster {
	t.Helper()
	return up(t, Config{})
}

// UpAPI is Up without nodes, for tests of what talks with an API server and needs no pod to run. It takes half the time.
func UpAPI(t testing.TB) *Cluster {
	t.Helper()
	return up(t, Config{APIOnly: true})
}

func up(t testing.TB, cfg Config) *Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("a cluster takes its time: not with -short")
	}
	cfg.Logs, cfg.Progress = filepath.Join(t.ArtifactDir(), "cluster"), t.Output()
	c, err := New(t.Context(), cfg)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// New brings up a cluster, which Close ends.
func New(ctx context.Context, cfg Config) (*Cluster, error) {
	root, err := available()
	if err != nil {
		return nil, err
	}
	switch {
	case cfg.APIOnly:
		cfg.Nodes = 0
	case cfg.Nodes == 0:
		cfg.Nodes = 3
	}
	c := &Cluster{Name: fmt.Sprintf("t%d-%d", os.Getpid(), started.Add(1)), root: root, stderr: new(bytes.Buffer)}
	args := []string{"run", "--attached", "--name=" + c.Name, "--nodes=" + strconv.Itoa(cfg.Nodes)}
	if cfg.Logs != "" {
		args = append(args, "--logs="+cfg.Logs)
	}
	c.cmd = exec.Command(c.program("cluster"), args...)
	c.cmd.Stderr = c.stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	defer context.AfterFunc(ctx, func() { c.in.Close() })()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		text, ok := strings.CutPrefix(lines.Text(), "ready ")
		if !ok {
			if cfg.Progress != nil {
				fmt.Fprintln(cfg.Progress, lines.Text())
			}
			continue
		}
		if err := json.Unmarshal([]byte(text), c); err != nil {
			return nil, errors.Join(fmt.Errorf("read what cluster it is: %w", err), c.Close())
		}
		return c, nil
	}
	return nil, fmt.Errorf("start cluster: %w\n%s", errors.Join(context.Cause(ctx), c.cmd.Wait()), c.stderr)
}

// Existing is a cluster that `bin/cluster up --name NAME` brought up, and that stays up: Close leaves it alone.
func Existing(name string) (*Cluster, error) {
	root, err := available()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(folder, name, "cluster.json"))
	if err != nil {
		return nil, fmt.Errorf("find cluster %s: %w", name, err)
	}
	c := &Cluster{root: root}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("read what cluster %s is: %w", name, err)
	}
	return c, nil
}

// available finds the root of this checkout, if clusters can be had.
func available() (string, error) {
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("%w: it needs root", ErrUnavailable)
	}
	root, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "test/cluster/go.mod")); err == nil {
			break
		}
		if root = filepath.Dir(root); root == "/" {
			return "", errors.New("find the checkout: run from inside of it")
		}
	}
	if _, err := os.Stat(filepath.Join(root, "bin/cluster")); err != nil {
		return "", fmt.Errorf("%w: make setup-cluster bin/cluster", ErrUnavailable)
	}
	return root, nil
}

func (c *Cluster) program(name string) string { return filepath.Join(c.root, "bin", name) }

// Close ends the cluster and removes it.
func (c *Cluster) Close() error {
	if c.cmd == nil {
		return nil
	}
	c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("end cluster %s: %w\n%s", c.Name, err, c.stderr)
	}
	return nil
}

// Kubectl runs kubectl and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.run(exec.CommandContext(ctx, c.program("kubectl"), args...))
}

// Apply applies YAML.
func (c *Cluster) Apply(ctx context.Context, yaml string) error {
	cmd := exec.CommandContext(ctx, c.program("kubectl"), "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(yaml)
	_, err := c.run(cmd)
	return err
}

// Load makes images and gives them to all nodes that are up: name is with a tag, such as "lateen.test/lateend:dev", and
// program a static binary, which is the image's only file and its entry point.
func (c *Cluster) Load(ctx context.Context, images map[string]string) error {
	archives, err := os.MkdirTemp("", "lateen-images-")
	if err != nil {
		return fmt.Errorf("make images: %w", err)
	}
	defer os.RemoveAll(archives)
	args := []string{"load"}
	for name, program := range images {
		archive := filepath.Join(archives, strconv.Itoa(len(args))+".tar")
		args = append(args, archive)
		if _, err := c.run(exec.CommandContext(ctx, c.program("cluster"), "image", "-o", archive, "-t", name, program)); err != nil {
			return err
		}
	}
	return c.order(ctx, args...)
}

// LoadArchives gives all nodes that are up images from archives, as `make images` makes them.
func (c *Cluster) LoadArchives(ctx context.Context, archives ...string) error {
	return c.order(ctx, append([]string{"load"}, archives...)...)
}

// KillNode ends all processes of a node at once, as if its power failed; nodes are counted from 1 and named node1.
func (c *Cluster) KillNode(ctx context.Context, n int) error {
	return c.order(ctx, "node", "kill", strconv.Itoa(n))
}

// StartNode starts a node that was killed and waits until it is ready.
func (c *Cluster) StartNode(ctx context.Context, n int) error {
	return c.order(ctx, "node", "start", strconv.Itoa(n))
}

// Command is a command of this machine in the cluster's network, where nodes, pods and LoadBalancers are reached.
func (c *Cluster) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.program("cluster"), append([]string{"--name=" + c.Name, "exec", program}, args...)...)
}

// Dial connects from the cluster's network to an address and port.
func (c *Cluster) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	ns, err := os.Open(c.Network)
	if err != nil {
		return nil, fmt.Errorf("enter the cluster's network: %w", err)
	}
	defer ns.Close()
	var conn net.Conn
	err = netns.Do(ns, func() error {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Transport makes requests from the cluster's network.
func (c *Cluster) Transport() *http.Transport { return &http.Transport{DialContext: c.Dial} }

func (c *Cluster) order(ctx context.Context, args ...string) error {
	_, err := c.run(exec.CommandContext(ctx, c.program("cluster"), append([]string{"--name=" + c.Name}, args...)...))
	return err
}

func (c *Cluster) run(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}
