package cli

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/host"
)

// kubernetesProgram does the commands that are about a cluster: see package cli/kube.
const kubernetesProgram = "lateen-kube"

// kubernetes are the commands that lateen-kube does, with all their flags.
func (a *app) kubernetes() []*cobra.Command {
	list := []*cobra.Command{
		{Use: "install", Short: "Install the mesh in a Kubernetes cluster"},
		{Use: "upgrade", Short: "Change an installation in Kubernetes, with the values that it has"},
		{Use: "uninstall", Short: "Take the mesh, or one revision of it, out of a Kubernetes cluster"},
		{Use: "manifest", Short: "Show what is installed in Kubernetes"},
		{Use: "profile", Short: "Show the profiles of an installation in Kubernetes"},
		{Use: "operator", Short: "Have a program of the cluster keep what is installed in it"},
		{Use: "check", Short: "Check a cluster before, and the mesh after an installation"},
		{Use: "dashboard", Short: "Open the admin page of lateend or of a proxy to this machine"},
		{Use: "bug-report", Short: "Gather what helps to find a fault into one archive"},
	}
	for _, c := range list {
		c.DisableFlagParsing = true
		c.PersistentPreRunE = func(*cobra.Command, []string) error { return nil } // no mesh of this machine is needed
		c.RunE = func(cmd *cobra.Command, args []string) error {
			return a.toKubernetes(cmd, append([]string{cmd.Name()}, args...))
		}
		c.ValidArgsFunction = a.completed
	}
	return list
}

// toKubernetes has lateen-kube do a command.
func (a *app) toKubernetes(cmd *cobra.Command, args []string) error {
	program, err := host.Beside(kubernetesProgram)
	if err != nil {
		return err
	}
	child := exec.CommandContext(cmd.Context(), program, args...)
	child.Stdin, child.Stdout, child.Stderr = a.in, a.out, a.err
	// It ends as we are told to end; what it has begun it ends itself.
	child.Cancel = func() error { return child.Process.Signal(os.Interrupt) }
	err = child.Run()
	if cmd.Context().Err() != nil && child.ProcessState != nil && child.ProcessState.Success() {
		return nil // it was told to end, and has
	}
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return &exitError{failed.ExitCode(), nil} // it has said why
	}
	return err
}

// completed asks lateen-kube how a shell may complete a command line of it. What it prints is cobra's: a line for each
// word, and last a colon and what the shell shall do.
func (a *app) completed(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	program, err := host.Beside(kubernetesProgram)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	child := exec.CommandContext(cmd.Context(), program, append(append([]string{cobra.ShellCompRequestCmd, cmd.Name()}, args...), word)...)
	var out bytes.Buffer
	child.Stdout, child.Stderr = &out, io.Discard
	if err := child.Run(); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var words []string
	for line := range strings.Lines(out.String()) {
		if line = strings.TrimSuffix(line, "\n"); strings.HasPrefix(line, ":") {
			break
		}
		words = append(words, line)
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// clusterFlags gives a command that can be about a cluster or a mesh of this machine those of kubectl's flags that choose.
func clusterFlags(cmd *cobra.Command) {
	cmd.Flags().String("kubeconfig", "", "file that says how to reach a cluster: ask that one's mesh")
	cmd.Flags().String("context", "", "context of the kubeconfig: ask that cluster's mesh")
}

// inCluster says whether a command is about the mesh in a cluster: where --kubeconfig or --context is given; or where
// --mesh is not, no mesh of this machine runs, and there is a kubeconfig.
func (a *app) inCluster(cmd *cobra.Command) bool {
	switch {
	case cmd.Flags().Changed("kubeconfig") || cmd.Flags().Changed("context"):
		return true
	case cmd.Flags().Changed("mesh"):
		return false
	}
	if c, err := host.Dial(a.dir); err == nil {
		_ = c.Close()
		return false
	}
	if os.Getenv("KUBECONFIG") != "" {
		return true
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(home, ".kube", "config"))
	return err == nil
}

// given are the flags that choose a cluster, as they were given.
func given(cmd *cobra.Command) []string {
	var out []string
	for _, name := range []string{"kubeconfig", "context", "namespace"} {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
			out = append(out, "--"+name+"="+f.Value.String())
		}
	}
	return out
}
