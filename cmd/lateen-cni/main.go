// Command lateen-cni prepares the network of a pod. Called by a container runtime it is a CNI plugin; `lateen-cni install`
// puts it onto a node and keeps it there, `ready` says whether it is, `uninstall` takes it away (and with --hold stays, as a
// DaemonSet's pods have to). Without the plugin
// `lateen-cni init` sets the capture rules (the container lateen-init); with it, `lateen-cni validate` looks whether they
// are there (the container lateen-validation).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
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

const usage = "usage: lateen-cni init|validate --config JSON, or lateen-cni install|ready, or lateen-cni uninstall [--hold]"

func main() {
	if os.Getenv("CNI_COMMAND") != "" {
		if (cni.Plugin{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}).Run() != nil {
			os.Exit(codeFailed)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	code := run(ctx, os.Args[1:], os.Stderr)
	stop()
	os.Exit(code)
}

// run does what args say and returns the exit code.
func run(ctx context.Context, args []string, errs *os.File) int {
	flags := flag.NewFlagSet("lateen-cni", flag.ContinueOnError)
	flags.SetOutput(errs)
	text := flags.String("config", "", "of init and validate: what is captured, as `JSON`")
	hold := flags.Bool("hold", false, "of uninstall: stay until SIGTERM")
	if len(args) == 0 || flags.Parse(args[1:]) != nil || flags.NArg() > 0 {
		_, _ = fmt.Fprintln(errs, usage)
		return codeUsage
	}
	err := command(ctx, args[0], *text, slog.New(slog.NewTextHandler(errs, nil)))
	if err == nil && *hold {
		<-ctx.Done()
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		_, _ = fmt.Fprintf(errs, "%q is not a command\n%s\n", args[0], usage)
		return codeUsage
	}
	_, _ = fmt.Fprintln(errs, "Error:", err)
	if errors.Is(err, cni.ErrNotCaptured) {
		return codeNotCaptured
	}
	return codeFailed
}

var errUsage = errors.New("no such command")

// command runs one.
func command(ctx context.Context, name, text string, log *slog.Logger) error {
	installer := cni.NewInstaller(cni.InstallConfig{Log: log})
	switch name {
	case "install":
		return installer.Run(ctx)
	case "ready":
		return installer.Ready()
	case "uninstall":
		return installer.Uninstall()
	case "init", "validate":
	default:
		return errUsage
	}
	config, err := cni.Read(text)
	if err != nil {
		return err
	}
	if name == "init" {
		return cni.Init(config)
	}
	return cni.Validate(ctx, config)
}
