package cli

import (
	"errors"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/host"
)

// kubernetes are the commands that lateen-kube does, with all their flags: see package cli/kube.
func (a *app) kubernetes() []*cobra.Command {
	list := []*cobra.Command{
		{Use: "install", Short: "Install the mesh in a Kubernetes cluster"},
		{Use: "upgrade", Short: "Change an installation in Kubernetes, with the values that it has"},
		{Use: "uninstall", Short: "Take the mesh, or one revision of it, out of a Kubernetes cluster"},
		{Use: "manifest", Short: "Show what is installed in Kubernetes"},
		{Use: "profile", Short: "Show the profiles of an installation in Kubernetes"},
	}
	for _, c := range list {
		c.DisableFlagParsing = true
		c.PersistentPreRunE = func(*cobra.Command, []string) error { return nil } // no mesh of this machine is needed
		c.RunE = func(cmd *cobra.Command, args []string) error {
			program, err := host.Beside("lateen-kube")
			if err != nil {
				return err
			}
			child := exec.CommandContext(cmd.Context(), program, append([]string{cmd.Name()}, args...)...)
			child.Stdin, child.Stdout, child.Stderr = a.in, a.out, a.err
			err = child.Run()
			if failed, ok := errors.AsType[*exec.ExitError](err); ok {
				return &exitError{failed.ExitCode(), nil} // it has said why
			}
			return err
		}
	}
	return list
}
