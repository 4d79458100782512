// Command bookinfo runs one of the four services of the Bookinfo sample:
// productpage, details, reviews or ratings.
//
// In: HTTP on one port. Out: HTTP to the services that stand behind this one,
// found by their plain names (http://reviews:9080). The program must not know
// that a mesh exists: it imports nothing of ours, makes no TLS, and finds
// nobody but by name. What it does for a mesh is what any good service does:
// it carries trace headers on, sets timeouts, and ends cleanly on SIGTERM.
//
// A [Server] is safe for concurrent use; everything it serves may run at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

const usage = "usage: bookinfo productpage|details|reviews|ratings [--version v1] [--listen :9080] [--pod NAME] " +
	"[--cluster NAME] [--details HOST] [--reviews HOST] [--ratings HOST] [--domain DOMAIN]"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bookinfo:", err)
		os.Exit(1)
	}
}

// run serves what the arguments ask for until ctx ends.
func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) error {
	cfg, err := parse(args, getenv, stderr)
	if err != nil {
		return err
	}
	s, err := New(cfg, slog.New(slog.NewTextHandler(stderr, nil)))
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
