package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"

	"github.com/lateen-mesh/lateen/cli/show"
	"github.com/lateen-mesh/lateen/deploy"
)

// dashboard is `lateen dashboard`.
func (a *app) dashboard() *cobra.Command {
	var port uint16
	cmd := &cobra.Command{
		Use: "dashboard [POD[.NAMESPACE]]", Short: "Open the admin page of lateend or of a proxy to this machine",
		Long: "Forward a port of this machine's loopback interface to the admin page of a pod's proxy or, if no pod is named, of\n" +
			"lateend, print its address, and go on until interrupted. The page shows, and changes nothing.",
		Args: checked(cobra.MaximumNArgs(1)),
	}
	c := newCluster(cmd)
	cmd.Flags().Uint16Var(&port, "port", 0, "port of this machine; 0: one that is free")
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return c.podNames(cmd.Context(), len(args) == 0), cobra.ShellCompDirectiveNoFileComp
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		w, err := c.world()
		if err != nil {
			return err
		}
		if w.namespace, err = c.namespace(); err != nil {
			return err
		}
		pod, to, err := w.page(cmd.Context(), args)
		if err != nil {
			return err
		}
		l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
		if err != nil {
			return fmt.Errorf("listen on this machine: %w; choose another port with --port", err)
		}
		style := show.NewStyle(a.out)
		_, _ = fmt.Fprintf(a.out, "%s is the page of pod %s/%s\n%s\n", style.Accent.Render("http://"+l.Addr().String()+"/"), pod.Namespace, pod.Name,
			style.Dim.Render("Ctrl-C ends it"))
		return w.relay(cmd.Context(), l, pod, to, a.err)
	}
	return cmd
}

// page finds the pod and port of the page that is meant.
func (w *world) page(ctx context.Context, args []string) (*core.Pod, int, error) {
	if len(args) > 0 {
		p, err := w.find(ctx, args[0])
		return p, portProxyAdmin, err
	}
	pods, err := w.look().controlPods(ctx)
	if err != nil {
		return nil, 0, err
	}
	for i := range pods {
		if podReady(&pods[i]) {
			return &pods[i], portControlAdmin, nil
		}
	}
	return nil, 0, errors.New("no lateend is ready in the namespace " + deploy.Namespace + "; `lateen check` says why")
}

// relay carries connections to a port of a pod until ctx ends, and returns when all have ended.
func (w *world) relay(ctx context.Context, l net.Listener, p *core.Pod, port int, errs io.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("take a connection: %w", err)
		}
		group.Go(func() {
			if err := w.carry(ctx, conn, p, port); err != nil && ctx.Err() == nil {
				_, _ = fmt.Fprintln(errs, "Warning:", err)
			}
		})
	}
}

// carry carries one connection to its end.
func (w *world) carry(ctx context.Context, conn net.Conn, p *core.Pod, port int) error {
	defer func() { _ = conn.Close() }()
	pod, err := w.dial(ctx, p.Namespace, p.Name, port)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _, _ = conn.Close(), pod.Close() })()
	var group sync.WaitGroup
	group.Go(func() {
		_, _ = io.Copy(pod, conn)
		_ = pod.Close()
	})
	_, _ = io.Copy(conn, pod)
	_ = conn.Close()
	group.Wait()
	return nil
}
