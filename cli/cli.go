// Package cli is lateen, the command line: it runs workloads and the demo on this machine (package host), and asks the
// control plane and the proxies over their Unix sockets.
//
// In come arguments and the standard files; out go tables for people, JSON for programs, and an exit code: 0 it worked,
// 1 it did not, 2 it was not understood. The package must not know how anything is decided: it shows what others
// decided. Execute is a whole program: call it once.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/cli/show"
)

// The exit codes. `lateen run` ends with that of its command.
const (
	codeFailed = 1
	codeUsage  = 2
)

// exitError ends the program with a code and, unless err is nil, a message.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// app is what the commands share.
type app struct {
	mesh     string
	dir      host.Dir
	args     []string // as they were given
	in       *os.File
	out, err *os.File
	// accelerate is for the host that is started, if one is.
	accelerate bool
}

// accelerateVariable, set to 1, stands for the flag --accelerate.
const accelerateVariable = "LATEEN_ACCELERATE"

// accelerateFlag is the flag of the commands that may start a host.
func (a *app) accelerateFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.accelerate, "accelerate", os.Getenv(accelerateVariable) == "1",
		"if this starts the mesh: shorten the way between workloads and\ntheir proxies with BPF, which needs root (also LATEEN_ACCELERATE=1)")
}

// Execute runs the command line and returns the exit code. ctx ends when the user wants the end.
func Execute(ctx context.Context, args []string, in, out, errs *os.File) int {
	return (&app{in: in, out: out, err: errs}).execute(ctx, args)
}

func (a *app) execute(ctx context.Context, args []string) int {
	a.args = args
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code := codeFailed
	if failed, ok := errors.AsType[*exitError](err); ok {
		code = failed.code
		if failed.err == nil {
			return code
		}
	} else if strings.HasPrefix(err.Error(), "unknown command") {
		code = codeUsage
	}
	if code == codeUsage {
		err = fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
	}
	style := show.NewStyle(a.err)
	say(a.err, "%s %v\n", style.Bad.Render("Error:"), err)
	return code
}

// say writes to a person, who may have closed the terminal.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }

// usage marks an error as a mistake in the arguments.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{codeUsage, err}
}

// format checks the value of --output.
func format(value string, values ...string) error { return usage(show.Choice(value, values...)) }

// checked makes cobra's argument checks usage errors.
func checked(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return usage(check(cmd, args)) }
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lateen",
		Short: "A service mesh in one command",
		Long: "lateen runs a service mesh on this machine, without Kubernetes, containers or root,\n" +
			"and shows and changes what it does.",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			if a.dir == "" { // Tests bring their own.
				a.dir, err = host.DirOf(a.mesh)
			}
			return usage(err)
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.PersistentFlags().StringVar(&a.mesh, "mesh", host.DefaultMesh, "which of this machine's meshes")
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run:"}, &cobra.Group{ID: "config", Title: "Configure:"},
		&cobra.Group{ID: "see", Title: "See:"}, &cobra.Group{ID: "kubernetes", Title: "Install in Kubernetes:"})
	for group, list := range map[string][]*cobra.Command{
		"run":        {a.demo(), a.run(), a.stop()},
		"config":     {a.apply(), a.delete(), a.get(), a.token(), a.inject()},
		"see":        {a.status(), a.proxyConfig()},
		"kubernetes": a.kubernetes(),
		"":           append(a.hidden(), a.version()),
	} {
		for _, c := range list {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	return root
}

// absent explains that a mesh does not run.
func (a *app) absent(err error) error {
	if err == nil || !errors.Is(err, host.ErrNobody) {
		return err
	}
	return fmt.Errorf("no mesh named %q runs here; start one with `lateen demo` or `lateen run`: %w", a.mesh, err)
}
