// Command lateen-operator keeps the installations of a cluster as their objects of the kind Installation want them. It runs
// in a pod, which `lateen operator init` makes. See package deploy/operate.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/lateen-mesh/lateen/cmd/limits"
	"github.com/lateen-mesh/lateen/deploy/operate"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "`file` that says how to reach the cluster; empty: as the account of this pod")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if _, err := limits.Memory(); err != nil {
		log.Warn("memory is not limited", "cause", err)
	}
	if err := run(*kubeconfig, log); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(kubeconfig string, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cluster, err := operate.Reach(kubeconfig)
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find out who this is: %w", err)
	}
	o, err := operate.New(operate.Config{Cluster: cluster, Identity: cmp.Or(os.Getenv("POD_NAME"), host), Logger: log})
	if err != nil {
		return err
	}
	return o.Run(ctx)
}
