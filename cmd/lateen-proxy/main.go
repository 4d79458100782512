// Command lateen-proxy is the data plane: the proxy of one sidecar or gateway.
//
// In: its configuration, proxy.Config as JSON, from a file, or from standard input so that its join token is never
// seen on a disk or a command line; then connections, and orders from the control plane. Out: bytes to where the
// orders say, and its log on standard error. SIGTERM and SIGINT end it after the open connections, or some seconds;
// SIGUSR1 has the access logs opened anew after a log rotation.
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
	level := slog.LevelInfo
	flag.TextVar(&level, "log", slog.LevelInfo, "least level that is logged: DEBUG, INFO, WARN or ERROR")
	contention := flag.Bool("contention", false, "record where goroutines wait, for the profiles mutex and block of the admin page")
	flag.Parse()
	if *contention {
		runtime.SetMutexProfileFraction(mutexFraction)
		runtime.SetBlockProfileRate(blockRate)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if limit, err := limits.Memory(); err != nil {
		logger.Warn("memory is not limited", "cause", err)
	} else if limit > 0 {
		logger.Info("memory is limited as by the cgroup", "bytes", limit)
	}
	if err := run(ctx, *config, logger); err != nil {
		logger.Error("the proxy ends", "cause", err)
		stop()
		os.Exit(1)
	}
}

// run obeys until ctx ends.
func run(ctx context.Context, path string, logger *slog.Logger) error {
	cfg, err := read(path, os.Stdin)
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
