// Command lateen-proxy is the data plane: the proxy of one sidecar or gateway.
//
// In: its configuration, proxy.Config as JSON, from a file, or from standard input so that its join token is never
// seen on a disk or a command line, or in a pod of Kubernetes (--kubernetes) from its environment and files; then
// connections, and orders from the control plane. Out: bytes to where the orders say, and its log on standard error.
// SIGTERM and SIGINT end it after the open connections, or some seconds; SIGUSR1 has the access logs opened anew after a
// log rotation. `lateen-proxy wait` and `lateen-proxy drain` ask the proxy that runs beside them (beside.go).
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/lateen-mesh/lateen/cmd/limits"
	"github.com/lateen-mesh/lateen/proxy"
)

// maxConfig bounds the configuration.
const maxConfig = 1 << 20

// How much of the waiting --contention records: one in so many events, and one event per so many nanoseconds of waiting.
const (
	mutexFraction = 10
	blockRate     = 10_000
)

func main() {
	config := flag.String("config", "", "file with the configuration as JSON; - is standard input")
	role := flag.String("kubernetes", "", "be configured by the pod that this is in, as `sidecar|gateway`")
	level := slog.LevelInfo
	flag.TextVar(&level, "log", slog.LevelInfo, "least level that is logged: DEBUG, INFO, WARN or ERROR")
	contention := flag.Bool("contention", false, "record where goroutines wait, for the profiles mutex and block of the admin page")
	flag.Parse()
	if *contention {
		runtime.SetMutexProfileFraction(mutexFraction)
		runtime.SetBlockProfileRate(blockRate)
	}
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt) // until the program ends
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if command := flag.Arg(0); command != "" {
		exit(beside(ctx, command, "127.0.0.1"), logger)
	}
	if limit, err := limits.Memory(); err != nil {
		logger.Warn("memory is not limited", "cause", err)
	} else if limit > 0 {
		logger.Info("memory is limited as by the cgroup", "bytes", limit)
	}
	exit(run(ctx, *config, *role, logger), logger)
}

// exit ends the program.
func exit(err error, logger *slog.Logger) {
	if err != nil {
		logger.Error("the proxy ends", "cause", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run obeys until ctx ends.
func run(ctx context.Context, path, role string, logger *slog.Logger) error {
	cfg, err := configure(path, role, logger)
	if err != nil {
		return err
	}
	cfg.Logger = logger
	p, err := proxy.New(cfg)
	if err != nil {
		return err
	}
	defer onRotation(p.ReopenLogs)()
	return p.Run(ctx)
}

func configure(path, role string, logger *slog.Logger) (proxy.Config, error) {
	if role == "" {
		return read(path, os.Stdin)
	}
	if err := validRole(role); err != nil {
		return proxy.Config{}, err
	}
	return pod{env: os.Getenv, root: "/", log: logger}.config(role)
}

// read reads the configuration.
func read(path string, stdin io.Reader) (cfg proxy.Config, err error) {
	if path == "" {
		return cfg, fmt.Errorf("no configuration is given; use --config FILE, or --config - for standard input")
	}
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return cfg, fmt.Errorf("open the configuration: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	d := json.NewDecoder(io.LimitReader(in, maxConfig))
	d.DisallowUnknownFields()
	if err := d.Decode(&cfg); err != nil {
		return cfg, fmt.Errorf("read the configuration: %w", err)
	}
	return cfg, nil
}
