package cli

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/host"
)

// hidden are the commands that lateen starts itself.
func (a *app) hidden() []*cobra.Command {
	list := []*cobra.Command{
		{
			Use: "host", Hidden: true, Short: "Hold a mesh in namespaces (started by lateen run and lateen demo)",
			Args: checked(cobra.NoArgs),
			RunE: func(cmd *cobra.Command, _ []string) error { return host.Run(cmd.Context(), a.in) },
		},
		{
			Use: "host-outside LOG", Hidden: true, Short: "Reach the outside for a mesh (started by lateen run and lateen demo)",
			Args: checked(cobra.ExactArgs(1)),
			RunE: func(_ *cobra.Command, args []string) error { return host.Outside(args[0]) },
		},
		{
			Use: "host-init", Hidden: true, Short: "Be process 1 of a workload (started by lateen host)",
			Args: checked(cobra.NoArgs),
			RunE: func(*cobra.Command, []string) error { return host.Init() },
		},
		{
			Use: "host-exec -- DIRECTORY COMMAND", Hidden: true, Short: "Become a workload's command (started by lateen host-init)",
			Args: checked(cobra.MinimumNArgs(2)),
			RunE: func(_ *cobra.Command, args []string) error { return host.Exec(args[0], args[1:]) },
		},
	}
	for _, c := range list {
		// They look for no mesh: they are told, and in a user namespace the run directory seems to be somebody else's.
		c.PersistentPreRunE = func(*cobra.Command, []string) error { return nil }
	}
	return list
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: checked(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			say(a.out, "lateen %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

// version is that of the module as it was built.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "(unknown)"
}
