// Command lateen-kube is those commands of lateen that install the mesh in Kubernetes; lateen starts it. See package
// cli/kube.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/lateen-mesh/lateen/cli/kube"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // The second Ctrl-C ends it at once.
	code := kube.Execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
