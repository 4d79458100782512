package keep

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lateen-mesh/lateen/test/cluster/cgroup"
	"github.com/lateen-mesh/lateen/test/cluster/image"
	"github.com/lateen-mesh/lateen/test/cluster/layout"
	"github.com/lateen-mesh/lateen/test/cluster/node"
	"github.com/lateen-mesh/lateen/test/cluster/pki"
)

// namespaces are what a node has of its own, besides control groups.
const namespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// nameServerImage is CoreDNS's.
const nameServerImage = "lateen.test/coredns:1"

// groupPatience bounds the wait for the processes of a node that was killed.
const groupPatience = 30 * time.Second

// machine is a node that is up.
type machine struct {
	process *process
	// orders is the standard input of its first process.
	orders io.WriteCloser
}

// Group is the control group of a cluster.
func Group(l layout.Layout) string { return "lateen-" + l.Name }

func (k *Keeper) group(n int) string { return Group(k.cfg.Layout) + "/" + k.cfg.Layout.NodeName(n) }

// running is the number of a node that is up.
func (k *Keeper) running(name string) (int, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for n := range k.nodes {
		if k.cfg.Layout.NodeName(n) == name {
			return n, true
		}
	}
	return 0, false
}

// startNode makes node n and returns when its kubelet has started, which waits for serving.
func (k *Keeper) startNode(ctx context.Context, n int, serving <-chan struct{}) error {
	cfg, err := k.writeNode(n)
	if err != nil {
		return err
	}
	cmd := exec.Command(k.cfg.Node[0], k.cfg.Node[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	orders, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", cfg.Name, err)
	}
	// Not StdoutPipe, which is closed as soon as the process has been waited for, maybe before its last line is read.
	reports, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", cfg.Name, err)
	}
	defer reports.Close()
	cmd.Stdout = writer
	p, err := k.spawn(cfg.Name, cmd)
	writer.Close()
	if err != nil {
		return err
	}
	m := &machine{process: p, orders: orders}
	k.mu.Lock()
	k.nodes[n] = m
	k.mu.Unlock()
	go k.watch(n, m)
	// A node that hangs is killed, so that the read below ends.
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	if err := k.bringUp(ctx, n, m, cfg, reports, serving); err != nil {
		p.kill()
		return errors.Join(p.ended(), context.Cause(ctx), err)
	}
	return nil
}

// writeNode writes the files of node n.
func (k *Keeper) writeNode(n int) (node.Config, error) {
	l := k.cfg.Layout
	cfg := node.Config{
		Name: l.NodeName(n), Root: l.NodeRoot(n), Programs: l.Programs, Logs: l.Logs, Group: k.group(n),
		Address: netip.PrefixFrom(l.Node(n), l.Machines().Bits()), Gateway: l.ControlPlane(),
		Pods: l.Pods(n), AllPods: l.AllPods(), DNS: l.DNS(),
	}
	for other := 1; other <= l.Nodes; other++ {
		if other != n {
			cfg.Routes = append(cfg.Routes, node.Route{To: l.Pods(other), Via: l.Node(other)})
		}
	}
	pair, err := k.authority.Issue(pki.Subject{
		Name: "system:node:" + cfg.Name, Group: "system:nodes", Hosts: []string{cfg.Name}, Addresses: []netip.Addr{l.Node(n)},
	})
	if err != nil {
		return cfg, err
	}
	proxy, err := k.authority.Issue(pki.Subject{Name: "system:kube-proxy"})
	if err != nil {
		return cfg, err
	}
	server := "https://" + netip.AddrPortFrom(l.ControlPlane(), uint16(l.Port())).String()
	return cfg, node.Write(cfg, node.Secrets{
		Authority: k.authority.PEM.Certificate, Certificate: pair.Certificate, Key: pair.Key,
		Kubelet: k.authority.Kubeconfig(l.Name, server, pair), Proxy: k.authority.Kubeconfig(l.Name, server, proxy),
	})
}

// bringUp leads a node from namespaces to a kubelet.
func (k *Keeper) bringUp(ctx context.Context, n int, m *machine, cfg node.Config, reports io.Reader, serving <-chan struct{}) error {
	if err := k.plug(n, m.process.cmd.Process.Pid); err != nil {
		return err
	}
	text, err := node.Encode(cfg)
	if err != nil {
		return err
	}
	if _, err := m.orders.Write(text); err != nil {
		return fmt.Errorf("tell %s what it is: %w", cfg.Name, err)
	}
	line, err := bufio.NewReader(reports).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != node.Runtime {
		return fmt.Errorf("wait for containerd of %s: %q, %w", cfg.Name, line, err)
	}
	if err := k.load(ctx, m, k.pause); err != nil {
		return err
	}
	// The name server's image is large, and on a busy disk takes as long as the kubelet's start.
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return k.load(ctx, m, k.nameServer) })
	group.Go(func() error {
		select {
		case <-serving:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if _, err := io.WriteString(m.orders, "\n"); err != nil {
			return fmt.Errorf("tell %s to go on: %w", cfg.Name, err)
		}
		return nil
	})
	return group.Wait()
}

// watch notices that a node has ended, killed or not.
func (k *Keeper) watch(n int, m *machine) {
	<-m.process.done
	m.orders.Close()
	k.mu.Lock()
	unexpected := k.nodes[n] == m
	if unexpected {
		delete(k.nodes, n)
	}
	k.mu.Unlock()
	if unexpected {
		k.cfg.Logger.Warn("node is down", "node", k.cfg.Layout.NodeName(n), "err", m.process.err)
	}
	k.balancer.Wake()
}

// killNode ends all processes of node n at once, as if its power failed.
func (k *Keeper) killNode(ctx context.Context, n int) error {
	k.mu.Lock()
	m := k.nodes[n]
	delete(k.nodes, n)
	k.mu.Unlock()
	if m == nil {
		return fmt.Errorf("node %d is not up", n)
	}
	m.process.kill()
	k.balancer.Wake()
	if err := k.unplug(n); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, groupPatience)
	defer cancel()
	return cgroup.Remove(ctx, k.group(n))
}

// restartNode starts node n, which was killed, with the disk that it had.
func (k *Keeper) restartNode(ctx context.Context, n int) error {
	k.mu.Lock()
	up := k.nodes[n] != nil
	k.mu.Unlock()
	if up {
		return fmt.Errorf("node %d is up", n)
	}
	if n < 1 || n > k.cfg.Layout.Nodes {
		return fmt.Errorf("there is no node %d", n)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// It may have ended by itself, and left its group.
	if err := cgroup.Remove(ctx, k.group(n)); err != nil {
		return err
	}
	serving := make(chan struct{})
	close(serving)
	began := time.Now()
	if err := k.startNode(ctx, n, serving); err != nil {
		return err
	}
	if err := k.awaitReport(ctx, n, began); err != nil {
		return err
	}
	k.balancer.Wake()
	return nil
}

// awaitNode waits until node n is ready for pods.
func (k *Keeper) awaitNode(ctx context.Context, n int) error {
	return k.awaitReport(ctx, n, time.Time{})
}

// awaitReport waits until node n has said, since a time, that it is ready, and lost the taint that says otherwise.
func (k *Keeper) awaitReport(ctx context.Context, n int, since time.Time) error {
	name := k.cfg.Layout.NodeName(n)
	err := poll(ctx, name+" to be ready", func(ctx context.Context) (bool, error) {
		if _, ok := k.running(name); !ok {
			k.fail(fmt.Errorf("%s has ended; the last lines of its logs:\n%s\n%s", name,
				tail(k.cfg.Layout.Log(name)), tail(k.cfg.Layout.Log(name+"-kubelet"))))
		}
		got, err := k.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil || len(got.Spec.Taints) > 0 {
			return false, err
		}
		for _, c := range got.Status.Conditions {
			if c.Type == corev1.NodeReady {
				// The API server's times are whole seconds.
				return c.Status == corev1.ConditionTrue && !c.LastHeartbeatTime.Time.Before(since.Truncate(time.Second)), nil
			}
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("%w; the last lines of its kubelet's log:\n%s", err, tail(k.cfg.Layout.Log(name+"-kubelet")))
	}
	return nil
}

// makeImages makes what every node needs before any pod runs.
func (k *Keeper) makeImages() error {
	var err error
	if k.pause, err = k.makeImage(node.PauseImage, "pause"); err != nil {
		return err
	}
	k.nameServer, err = k.makeImage(nameServerImage, "coredns")
	return err
}

// makeImage makes the archive of an image that is one of our programs.
func (k *Keeper) makeImage(name, program string) (string, error) {
	path := filepath.Join(k.cfg.Layout.Folder, program+".tar")
	file, err := os.Create(path)
	if err != nil {
		return "", fmt.Errorf("make image: %w", err)
	}
	err = image.Write(file, image.Image{
		Names: []string{name}, Files: []image.File{{From: k.cfg.Layout.Program(program), To: "/" + program}},
	})
	if err = errors.Join(err, file.Close()); err != nil {
		return "", fmt.Errorf("make image: %w", err)
	}
	return path, nil
}

// load gives a node images from archives.
func (k *Keeper) load(ctx context.Context, m *machine, archives ...string) error {
	pid := strconv.Itoa(m.process.cmd.Process.Pid)
	socket := filepath.Join("/proc", pid, "root/run/containerd/containerd.sock")
	for _, archive := range archives {
		cmd := exec.CommandContext(ctx, "ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", archive)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("load image %s into %s: %w\n%s", archive, m.process.name, err, out)
		}
	}
	return nil
}

// loadAll gives all nodes that are up images from archives.
func (k *Keeper) loadAll(ctx context.Context, archives []string) error {
	k.mu.Lock()
	all := make([]*machine, 0, len(k.nodes))
	for _, m := range k.nodes {
		all = append(all, m)
	}
	k.mu.Unlock()
	group, ctx := errgroup.WithContext(ctx)
	for _, m := range all {
		group.Go(func() error { return k.load(ctx, m, archives...) })
	}
	return group.Wait()
}
