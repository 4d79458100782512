// Package kube is those commands of lateen that install the mesh in Kubernetes. They are a program of their own,
// lateen-kube, which lateen starts: Helm's library and Kubernetes' types would be in the memory of every workload's first
// process, which lateen is.
//
// In come arguments and the standard files; out go manifests, and an exit code: 0 it worked, 1 it did not, 2 it was not
// understood. The package must not know what is installed: that is deploy's. Execute is a whole program: call it once.
package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/deploy/translate"
)

// The exit codes.
const (
	codeFailed = 1
	codeUsage  = 2
)

// valuesMax bounds a file of values.
const valuesMax = 4 << 20

// usageError is a mistake in the arguments.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errTold ends the program with codeFailed; why has been told.
var errTold = errors.New("it was told why")

// app is what the commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
}

// Execute runs the command line and returns the exit code. ctx ends when the user wants the end.
func Execute(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	a := &app{in: in, out: out, err: errs}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code := codeFailed
	if errors.Is(err, errTold) {
		return code
	}
	if _, ok := errors.AsType[usageError](err); ok || strings.HasPrefix(err.Error(), "unknown command") {
		code, err = codeUsage, fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
	}
	_, _ = fmt.Fprintln(errs, "Error:", err)
	return code
}

// checked makes cobra's argument checks usage errors.
func checked(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// root is called lateen, as that is what users type.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{Use: "lateen", Short: "Install the mesh in Kubernetes", SilenceErrors: true, SilenceUsage: true}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(a.install(), a.upgrade(), a.uninstall(), a.manifest(), a.profile(), a.operator())
	root.AddCommand(a.check(), a.status(), a.proxyConfig(), a.version(), a.dashboard(), a.bugReport())
	return root
}

func (a *app) manifest() *cobra.Command {
	group := &cobra.Command{Use: "manifest", Short: "Show what is installed in Kubernetes", Args: checked(cobra.NoArgs), RunE: help}
	var w wanted
	var bare bool
	cmd := &cobra.Command{
		Use: "generate", Short: "Write the objects of an installation",
		Long: "Write the objects of an installation, in the order in which they are to be applied. They are what\n" +
			"`helm install -n " + deploy.Namespace + " lateen deploy/chart` makes with the same values.",
		Example: "  kubectl create namespace " + deploy.Namespace + "\n" +
			"  lateen manifest generate --set hub=example.org/lateen | kubectl apply --server-side -f -",
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := w.read(a, cmd.Flags().Changed("profile")); err != nil {
				return err
			}
			objects, err := deploy.Render(w.config)
			if err != nil {
				return err
			}
			var definitions []deploy.Object
			if !bare {
				if definitions, err = deploy.Definitions(); err != nil {
					return err
				}
			}
			_, err = a.out.Write(deploy.Manifest(definitions, objects))
			return err
		},
	}
	w.flags(cmd)
	cmd.Flags().BoolVar(&bare, "skip-crds", false, "leave out the CustomResourceDefinitions")
	group.AddCommand(cmd, a.diff())
	return group
}

func (a *app) profile() *cobra.Command {
	group := &cobra.Command{Use: "profile", Short: "Show the profiles of an installation in Kubernetes", Args: checked(cobra.NoArgs), RunE: help}
	group.AddCommand(&cobra.Command{
		Use: "list", Short: "List the profiles", Args: checked(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			for _, name := range deploy.Profiles() {
				if _, err := fmt.Fprintln(a.out, name); err != nil {
					return err
				}
			}
			return nil
		},
	}, &cobra.Command{
		Use: "dump [PROFILE]", Short: "Write the values of a profile, which `helm -f` takes", Args: checked(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := deploy.Profile(append(args, deploy.DefaultProfile)[0])
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.out, text)
			return err
		},
	})
	return group
}

// help shows the commands of a group.
func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// wanted is what the flags say of an installation.
type wanted struct {
	config       deploy.Config
	files        []string
	profileMeant bool // a flag or a file names it
}

func (w *wanted) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.config.Profile, "profile", deploy.DefaultProfile, "one of `lateen profile list`")
	f.StringArrayVarP(&w.files, "filename", "f", nil, "file of values, or an IstioOperator; - for standard input; may be repeated, the last goes first")
	f.StringArrayVar(&w.config.Set, "set", nil, "one value, such as lateend.replicas=2; goes before files; may be repeated")
	f.StringVar(&w.config.Revision, "revision", "", "revision of the control plane; empty: default")
	_ = cmd.RegisterFlagCompletionFunc("profile", profileNames) // it fails only for a flag that is not there
}

// read reads the files. What of an IstioOperator has no meaning is told as a warning; its profile counts unless the flag is
// given.
func (w *wanted) read(a *app, profileGiven bool) error {
	w.profileMeant = profileGiven
	for _, name := range w.files {
		text, err := readFile(name, a.in)
		if err != nil {
			return err
		}
		if !translate.IsIstioOperator(text) {
			values, err := deploy.ReadValues(text)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			w.config.Values = append(w.config.Values, values)
			continue
		}
		o, err := translate.IstioOperator(name, string(text))
		if err != nil {
			return err
		}
		for _, warning := range o.Warnings {
			_, _ = fmt.Fprintln(a.err, "Warning:", warning)
		}
		if o.Profile != "" && !profileGiven {
			w.config.Profile, w.profileMeant = o.Profile, true
		}
		w.config.Values = append(w.config.Values, o.Values)
	}
	return nil
}

func readFile(name string, in io.Reader) ([]byte, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read values: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, valuesMax+1))
	if err != nil {
		return nil, fmt.Errorf("read values of %s: %w", name, err)
	}
	if len(text) > valuesMax {
		return nil, fmt.Errorf("read values: %s has more than %d MiB", name, valuesMax>>20)
	}
	return text, nil
}
