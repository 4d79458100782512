// Command lateen runs a service mesh on this machine and shows and changes what it does; see package cli.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/lateen-mesh/lateen/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // The second Ctrl-C ends it at once.
	code := cli.Execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
