package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/test/cluster/image"
	"github.com/lateen-mesh/lateen/test/cluster/keep"
)

func upCommand(at *place) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "up",
		Short: "Bring a cluster up and leave it running",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return up(at, o, c.OutOrStdout()) },
	}
	o.flags(c)
	return c
}

// up starts run apart from this process and waits until it says that the cluster is up.
func up(at *place, o options, out io.Writer) error {
	if err := o.complete(); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "run", "--name="+at.name, "--folder="+at.folder, "--number="+strconv.Itoa(o.number),
		"--nodes="+strconv.Itoa(o.nodes), "--logs="+o.logs, "--programs="+o.programs)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	stderr, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	defer stderr.Close()
	cmd.Stderr = writer
	err = cmd.Start()
	writer.Close()
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), readyLine+" ")
		if !ok {
			fmt.Fprintln(out, lines.Text())
			continue
		}
		var r record
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return fmt.Errorf("read record: %w", err)
		}
		describe(out, r)
		return cmd.Process.Release()
	}
	text, _ := io.ReadAll(stderr)
	_ = cmd.Wait() // it said on its standard error what went wrong
	return errors.New(strings.TrimPrefix(strings.TrimSpace(string(text)), "Error: "))
}

// describe tells a person how to use a cluster.
func describe(out io.Writer, r record) {
	self := "bin/cluster"
	if r.Name != "lateen" {
		self += " --name " + r.Name
	}
	fmt.Fprintf(out, `
export KUBECONFIG=%s
bin/kubectl get nodes

Services of type LoadBalancer, such as gateways, have addresses of %s. From this machine:
  %s exec curl http://ADDRESS/          # any command, in the cluster's network
  %s forward 8080 ADDRESS:80            # then http://127.0.0.1:8080/ in a browser
Logs of all components: %s
`, r.Kubeconfig, r.Balancers, self, self, r.Logs)
}

func downCommand(at *place) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End a cluster and remove all of it",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return at.down(c.Context()) },
	}
}

func nodeCommand(at *place) *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "Kill and start nodes"}
	order := func(use, short string, do func(keep.Orders, context.Context, int) error) *cobra.Command {
		return &cobra.Command{Use: use + " NUMBER", Short: short, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("node %q: give its number", args[0])
			}
			r, err := at.find()
			if err != nil {
				return err
			}
			return do(keep.NewOrders(r.Socket()), c.Context(), n)
		}}
	}
	c.AddCommand(
		order("kill", "End all processes of a node at once, as if its power failed", keep.Orders.KillNode),
		order("start", "Start a node that was killed, and wait until it is ready", keep.Orders.StartNode),
	)
	return c
}

func loadCommand(at *place) *cobra.Command {
	return &cobra.Command{
		Use:   "load ARCHIVE...",
		Short: "Give all nodes that are up images from archives",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := at.find()
			if err != nil {
				return err
			}
			return keep.NewOrders(r.Socket()).Load(c.Context(), args)
		},
	}
}

func imageCommand() *cobra.Command {
	var img image.Image
	var output string
	c := &cobra.Command{
		Use:   "image -o ARCHIVE -t NAME FILE[:PATH]...",
		Short: "Make an image of files; the first is the program",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, arg := range args {
				img.Files = append(img.Files, image.ParseFile(arg))
			}
			var archive bytes.Buffer
			if err := image.Write(&archive, img); err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(output), 0o755); err != nil {
				return fmt.Errorf("write image: %w", err)
			}
			if err := os.WriteFile(output, archive.Bytes(), 0o644); err != nil {
				return fmt.Errorf("write image: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "the `archive` to write")
	c.Flags().StringArrayVarP(&img.Names, "tag", "t", nil, "`name` of the image, with a tag; may be given several times")
	c.Flags().StringSliceVar(&img.Entrypoint, "entrypoint", nil, "`program` and arguments (default: the first file)")
	c.Flags().StringVar(&img.User, "user", image.Nobody, "`user` of its processes")
	_ = c.MarkFlagRequired("output")
	_ = c.MarkFlagRequired("tag")
	return c
}

func envCommand(at *place) *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "Print what a shell needs to use a cluster: eval $(bin/cluster env)",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := at.find()
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "export KUBECONFIG=%s\n", r.Kubeconfig)
			return nil
		},
	}
}

func statusCommand(at *place) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Print what there is of a cluster",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := at.find()
			if err != nil {
				return err
			}
			s, err := keep.NewOrders(r.Socket()).Status(c.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "cluster %s, number %d: %d of %d nodes are up: %s\n",
				r.Name, r.Number, len(s.Up), r.Nodes, strings.Join(s.Up, " "))
			describe(c.OutOrStdout(), r)
			return nil
		},
	}
}

func execCommand(at *place) *cobra.Command {
	c := &cobra.Command{
		Use:   "exec COMMAND...",
		Short: "Run a command of this machine in a cluster's network, where nodes, pods and gateways are",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := at.find()
			if err != nil {
				return err
			}
			path, err := exec.LookPath(args[0])
			if err != nil {
				return fmt.Errorf("find command: %w", err)
			}
			// The thread that enters becomes the process.
			runtime.LockOSThread()
			if err := enter(r.Network); err != nil {
				return err
			}
			if err := os.Setenv("KUBECONFIG", r.Kubeconfig); err != nil {
				return fmt.Errorf("set KUBECONFIG: %w", err)
			}
			if err := syscall.Exec(path, args, os.Environ()); err != nil {
				return fmt.Errorf("execute %s: %w", path, err)
			}
			return nil
		},
	}
	c.Flags().SetInterspersed(false)
	return c
}

// enter moves this thread into a network namespace.
func enter(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter the cluster's network: %w", err)
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the cluster's network: %w", err)
	}
	return nil
}

func forwardCommand(at *place) *cobra.Command {
	return &cobra.Command{
		Use:   "forward PORT ADDRESS:PORT",
		Short: "Forward a port of this machine's loopback interface into a cluster's network until interrupted",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := at.find()
			if err != nil {
				return err
			}
			listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", args[0]))
			if err != nil {
				return fmt.Errorf("forward: %w", err)
			}
			return keep.Forward(c.Context(), listener, func(ctx context.Context) (net.Conn, error) {
				return dialInside(ctx, r.Network, args[1])
			})
		},
	}
}

// dialInside connects from a network namespace: to which a socket belongs is decided when it is made.
func dialInside(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked, so that the thread ends with this goroutine and nobody else runs in the namespace.
		runtime.LockOSThread()
		if err := enter(network); err != nil {
			done <- result{err: err}
			return
		}
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
