// Command lateen-cni prepares the network of a pod: `lateen-cni init` sets the capture rules (the container lateen-init),
// `lateen-cni validate` looks whether the CNI plugin has set them (the container lateen-validation).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/lateen-mesh/lateen/cni"
)

// The exit codes. 126 is Istio's where the rules are missing, by which its tools find such pods.
const (
	codeFailed      = 1
	codeUsage       = 2
	codeNotCaptured = 126
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	code := run(ctx, os.Args[1:], os.Stderr)
	stop()
	os.Exit(code)
}

// run does what args say and returns the exit code.
func run(ctx context.Context, args []string, errs *os.File) int {
	flags := flag.NewFlagSet("lateen-cni init|validate", flag.ContinueOnError)
	flags.SetOutput(errs)
	text := flags.String("config", "", "what is captured, as `JSON`")
	if len(args) == 0 || flags.Parse(args[1:]) != nil || flags.NArg() > 0 {
		_, _ = fmt.Fprintln(errs, "usage: lateen-cni init|validate --config JSON")
		return codeUsage
	}
	config, err := cni.Read(*text)
	if err == nil {
		switch args[0] {
		case "init":
			err = cni.Init(config)
		case "validate":
			err = cni.Validate(ctx, config)
		default:
			_, _ = fmt.Fprintf(errs, "%q is not a command: want init or validate\n", args[0])
			return codeUsage
		}
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, cni.ErrNotCaptured):
		_, _ = fmt.Fprintln(errs, "Error:", err)
		return codeNotCaptured
	}
	_, _ = fmt.Fprintln(errs, "Error:", err)
	return codeFailed
}
