package cli

import (
	"context"
	"net/http"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/cli/show"
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

// version is `lateen version`.
func (a *app) version() *cobra.Command {
	var client bool
	var output string
	cmd := &cobra.Command{
		Use: "version", Short: "Print the versions of this program and of the mesh", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := format(output, "text", "json"); err != nil {
				return err
			}
			v := show.Versions{Client: version() + " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH}
			switch {
			case client:
			case a.inCluster(cmd):
				return a.toKubernetes(cmd, a.args)
			default:
				a.versions(cmd.Context(), &v)
			}
			if output == "json" {
				return show.JSON(a.out, v)
			}
			say(a.out, "%s", v.Text())
			return nil
		},
	}
	cmd.Flags().BoolVar(&client, "client", false, "of this program only")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	clusterFlags(cmd)
	return cmd
}

// versions asks the mesh of this machine, if one runs.
func (a *app) versions(ctx context.Context, v *show.Versions) {
	var control struct {
		Version string `json:"version"`
	}
	if err := host.Call(ctx, a.dir.API(), http.MethodGet, "/status", nil, &control); err == nil && control.Version != "" {
		v.Control = append(v.Control, control.Version)
	}
	list, err := a.proxies(ctx)
	if err != nil {
		return
	}
	for _, p := range list {
		if p.Version != "" {
			v.Proxies = append(v.Proxies, p.Version)
		}
	}
}

// version is that of the module as it was built.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "(unknown)"
}
