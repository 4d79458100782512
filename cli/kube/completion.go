package kube

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/deploy"
)

// completionTimeout is how long a shell waits for names.
const completionTimeout = 3 * time.Second

// complete tells shells the names that kubectl's flags may have.
func (c *cluster) complete(cmd *cobra.Command) {
	for name, list := range map[string]func(context.Context) []string{
		"namespace": c.namespaceNames, "context": func(context.Context) []string { return c.contextNames() },
	} {
		_ = cmd.RegisterFlagCompletionFunc(name, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			ctx, stop := context.WithTimeout(cmd.Context(), completionTimeout)
			defer stop()
			return list(ctx), cobra.ShellCompDirectiveNoFileComp
		}) // It fails only for a flag that is not there.
	}
}

func (c *cluster) namespaceNames(ctx context.Context) []string {
	w, err := c.world()
	if err != nil {
		return nil
	}
	list, err := w.look().namespaces(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range list {
		out = append(out, n.Name)
	}
	return out
}

func (c *cluster) contextNames() []string {
	cfg, err := c.flags.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return nil
	}
	var out []string
	for name := range cfg.Contexts {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// profileNames tells shells the profiles.
func profileNames(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return deploy.Profiles(), cobra.ShellCompDirectiveNoFileComp
}
