package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	// Runtime is the line that Run writes when containerd takes images.
	Runtime = "containerd is ready"
	// runtimePatience bounds the wait for containerd.
	runtimePatience = time.Minute
	interval        = 10 * time.Millisecond
)

// Run is the machine's first process: it starts containerd, says so on out, waits for a line from in, starts the kubelet
// and kube-proxy, and reaps processes whose parents have ended. It returns when one of the three has ended, or in has:
// then so does the machine.
func Run(ctx context.Context, in io.Reader, out io.Writer) error {
	hostname, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("ask for the machine's name: %w", err)
	}
	d := daemons{machine: hostname, names: map[int]string{}}
	if err := d.start("containerd", "containerd", "--config", kubeFolder+"/containerd.toml"); err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- d.reap() }()
	go func() { ended <- d.follow(ctx, bufio.NewReader(in), out) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

// daemons are the processes that must not end.
type daemons struct {
	machine string

	mu    sync.Mutex
	names map[int]string
}

// follow does what remains once containerd is there, and waits for the end of orders.
func (d *daemons) follow(ctx context.Context, in *bufio.Reader, out io.Writer) error {
	if err := awaitSocket(ctx, runtimeSocket); err != nil {
		return fmt.Errorf("wait for containerd: %w", err)
	}
	if _, err := fmt.Fprintln(out, Runtime); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if _, err := in.ReadString('\n'); err != nil {
		return fmt.Errorf("wait for images: %w", err)
	}
	kubeall := filepath.Join(programFolder, "kubeall")
	if err := d.start("kubelet", kubeall, "--config="+kubeFolder+"/kubelet.yaml", "--kubeconfig="+kubeFolder+"/kubelet.conf",
		"--hostname-override="+d.machine, "--v=2"); err != nil {
		return err
	}
	if err := d.start("kube-proxy", kubeall, "--config="+kubeFolder+"/kube-proxy.yaml"); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("wait for the end of orders: %w", err)
	}
	return errors.New("who started the machine has ended")
}

// start starts a program under a name, by which kubeall knows what to be.
func (d *daemons) start(name, program string, args ...string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer null.Close()
	file, err := os.OpenFile(filepath.Join(logFolder, d.machine+"-"+name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer file.Close()
	// Held until the name is known, because the process may end before.
	d.mu.Lock()
	defer d.mu.Unlock()
	process, err := os.StartProcess(path, append([]string{name}, args...), &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{null, file, file},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	d.names[process.Pid] = name
	// Its end is noticed by reap.
	return process.Release()
}

// reap waits for all children, ours and those that we inherit, until one of ours ends.
func (d *daemons) reap() error {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for processes: %w", err)
		}
		d.mu.Lock()
		name, ours := d.names[pid]
		d.mu.Unlock()
		if ours {
			return fmt.Errorf("%s has ended (exit status %d, signal %d)", name, status.ExitStatus(), status.Signal())
		}
	}
}

func awaitSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, runtimePatience)
	defer cancel()
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(interval):
		}
	}
}
