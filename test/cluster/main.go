// Command cluster brings a real Kubernetes cluster up on one Linux machine, in namespaces of its own, and down without a
// trace. See README.md.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/test/cluster/layout"
	"github.com/lateen-mesh/lateen/test/cluster/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use:           "cluster",
		Short:         "A real Kubernetes on one Linux machine, up in seconds and down without a trace",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var at place
	c.PersistentFlags().StringVar(&at.name, "name", layout.DefaultName, "the cluster's `name`")
	c.PersistentFlags().StringVar(&at.folder, "folder", layout.DefaultFolder, "`folder` for all clusters, on a disk")
	c.AddCommand(upCommand(&at), runCommand(&at), downCommand(&at), nodeCommand(&at), loadCommand(&at), imageCommand(),
		envCommand(&at), statusCommand(&at), execCommand(&at), forwardCommand(&at))
	c.AddCommand(
		// What this program executes itself as.
		&cobra.Command{Use: keepName, Hidden: true, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return keeper(c.Context())
		}},
		&cobra.Command{Use: prepareName, Hidden: true, Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			return node.Prepare(os.Stdin, []string{"cluster", machineName})
		}},
		&cobra.Command{Use: machineName, Hidden: true, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return node.Run(c.Context(), os.Stdin, os.Stdout)
		}},
	)
	return c
}

// Names of what this program executes itself as.
const (
	keepName    = "keep"
	prepareName = "prepare-machine"
	machineName = "machine"
)

// options are what a cluster may be started with.
type options struct {
	number   int
	nodes    int
	logs     string
	programs string
	attached bool
}

func (o *options) flags(c *cobra.Command) {
	c.Flags().IntVar(&o.number, "number", -1, "`number` that decides the cluster's addresses; -1: the lowest that is free")
	c.Flags().IntVar(&o.nodes, "nodes", layout.DefaultNodes, "how many `nodes`")
	c.Flags().StringVar(&o.logs, "logs", "", "`folder` for the components' logs, which then outlive the cluster")
	c.Flags().StringVar(&o.programs, "programs", "", "`folder` with kubeall, coredns and pause (default: beside this program)")
}

// complete fills in what depends on where this program is.
func (o *options) complete() error {
	if o.programs == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		o.programs = filepath.Dir(self)
	}
	for _, path := range []*string{&o.programs, &o.logs} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("find %s: %w", *path, err)
		}
		*path = absolute
	}
	return nil
}

func runCommand(at *place) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "run",
		Short: "Bring a cluster up and keep it up until this program is interrupted",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return run(c.Context(), at, o, c.OutOrStdout()) },
	}
	o.flags(c)
	c.Flags().BoolVar(&o.attached, "attached", false, "end also when the standard input does, as when who started this has ended")
	return c
}
