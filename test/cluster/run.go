package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lateen-mesh/lateen/test/cluster/keep"
	"github.com/lateen-mesh/lateen/test/cluster/layout"
)

const (
	logsName = "logs"
	// readyLine is what the keeper writes when the cluster is up, and run before the cluster's record.
	readyLine = "ready"
	// listenerDescriptor is the first of exec.Cmd.ExtraFiles.
	listenerDescriptor = 3
	// namespaces are what a cluster has of its own.
	namespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC
)

// needed are programs of the machine that nodes run.
var needed = []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "nft", "iptables", "mount", "umount"}

// run keeps a cluster up. Its first process in namespaces of its own, the keeper, does the work; this process stays
// outside, to clean up when the keeper has ended, however it did.
func run(ctx context.Context, at *place, o options, out io.Writer) (err error) {
	// Who started this program may not listen any more; that is to end neither it nor, by inheritance, anything else.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if err := o.complete(); err != nil {
		return err
	}
	if err := check(o.programs); err != nil {
		return err
	}
	claimed, err := at.claim()
	if err != nil {
		return err
	}
	defer at.release(claimed)
	if err := at.clear(false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, at.clear(err != nil)) }()
	l := layout.Layout{Name: at.name, Nodes: o.nodes, Folder: at.own(), Logs: o.logs, Programs: o.programs}
	if l.Logs == "" {
		l.Logs = filepath.Join(l.Folder, logsName)
	}
	listener, err := listen(&l, o.number)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := l.Validate(); err != nil {
		return err
	}
	if err := os.MkdirAll(l.Logs, 0o755); err != nil {
		return fmt.Errorf("make folder for logs: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if o.attached {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
	}
	return attend(ctx, l, listener, claimed, out)
}

// check says what is missing on this machine.
func check(programs string) error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root: sudo")
	}
	for _, program := range needed {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: run tools/setup-cluster", err)
		}
	}
	for _, program := range []string{"kubeall", "coredns", "pause"} {
		if _, err := os.Stat(filepath.Join(programs, program)); err != nil {
			return fmt.Errorf("%w: run make bin/cluster", err)
		}
	}
	return nil
}

// listen takes the API server's port on this machine's loopback interface and, with it, the cluster's number.
func listen(l *layout.Layout, number int) (*net.TCPListener, error) {
	first, last := number, number
	if number < 0 {
		first, last = 0, layout.MaxNumber
	}
	var err error
	for l.Number = first; l.Number <= last; l.Number++ {
		var listener *net.TCPListener
		address := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(l.Port())))
		if listener, err = net.ListenTCP("tcp", address); err == nil {
			return listener, nil
		}
	}
	return nil, fmt.Errorf("no number is free: %w", err)
}

// attend starts the keeper, tells when the cluster is up, and waits until the keeper has ended.
func attend(ctx context.Context, l layout.Layout, listener *net.TCPListener, claimed *os.File, out io.Writer) error {
	socket, err := listener.File()
	if err != nil {
		return fmt.Errorf("pass listener on: %w", err)
	}
	defer socket.Close()
	log, err := os.OpenFile(l.Log("cluster"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", keepName)
	// A session of its own, so that an interrupt at the terminal reaches this process alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Setsid: true}
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = log
	orders, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	reports, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	// The end of its orders is the keeper's end; that of its first process is the end of all.
	defer context.AfterFunc(ctx, func() {
		orders.Close()
		time.AfterFunc(endPatience/2, func() { _ = cmd.Process.Kill() })
	})()
	if err := json.NewEncoder(orders).Encode(l); err != nil {
		return fmt.Errorf("tell the cluster what it is: %w", errors.Join(err, cmd.Wait()))
	}
	r := record{
		Layout: l, Process: os.Getpid(), Keeper: cmd.Process.Pid, Kubeconfig: l.Kubeconfig(),
		Network: filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "ns/net"), Balancers: l.Balancers().String(),
	}
	follow(reports, out, claimed, r)
	err = cmd.Wait()
	if ctx.Err() != nil {
		return nil // it was told to end
	}
	text, failure := os.ReadFile(log.Name())
	return fmt.Errorf("cluster %s: %s (%w)\nall logs: %s", l.Name, lastError(string(text)), errors.Join(err, failure), l.Logs)
}

// follow passes the keeper's lines on until it ends.
func follow(reports io.Reader, out io.Writer, claimed *os.File, r record) {
	lines := bufio.NewScanner(reports)
	for lines.Scan() {
		if lines.Text() != readyLine {
			// Nobody may be listening; see run.
			_, _ = fmt.Fprintln(out, lines.Text())
			continue
		}
		text, err := json.Marshal(r)
		if err == nil {
			_, err = claimed.WriteAt(text, 0)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "write record:", err)
		}
		_, _ = fmt.Fprintf(out, "%s %s\n", readyLine, text)
	}
}

// lastError is the keeper's last words, which may be of several lines.
func lastError(log string) string {
	const mark = "\nError: "
	log = "\n" + log
	if i := strings.LastIndex(log, mark); i >= 0 {
		log = log[i+len(mark):]
	}
	return strings.TrimSpace(log)
}

// keeper is the first process of a cluster's namespaces.
func keeper(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read what the cluster is to be: %w", err)
	}
	var l layout.Layout
	if err := json.Unmarshal(line, &l); err != nil {
		return fmt.Errorf("read what the cluster is to be: %w", err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	api, err := net.FileListener(os.NewFile(listenerDescriptor, "listener"))
	if err != nil {
		return fmt.Errorf("take listener over: %w", err)
	}
	defer api.Close()
	k, err := keep.New(keep.Config{
		Layout: l, API: api, Node: []string{"/proc/self/exe", prepareName},
		Progress: os.Stdout, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	return k.Run(ctx, func() { fmt.Fprintln(os.Stdout, readyLine) })
}
