package kube

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"

	"github.com/lateen-mesh/lateen/cli/show"
)

// proxyConfig is `lateen proxy-config` of a cluster.
func (a *app) proxyConfig() *cobra.Command {
	var output, filter string
	cmd := &cobra.Command{
		Use:     "proxy-config POD[.NAMESPACE] [" + strings.Join(show.Sections(), "|") + "]",
		Aliases: []string{"pc"}, Short: "Show the orders that a proxy obeys", Args: checked(cobra.RangeArgs(1, 2)),
	}
	c := newCluster(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().StringVar(&filter, "name", "", "only what has this in its name")
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 1 {
			return show.Sections(), cobra.ShellCompDirectiveNoFileComp
		}
		return c.podNames(cmd.Context(), len(args) == 0), cobra.ShellCompDirectiveNoFileComp
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := show.Choice(output, "text", "json"); err != nil {
			return usageError{err}
		}
		kind, err := show.Kind(append(args, "all")[1])
		if err != nil {
			return usageError{err}
		}
		w, err := c.world()
		if err != nil {
			return err
		}
		if w.namespace, err = c.namespace(); err != nil {
			return err
		}
		list, err := w.config(cmd.Context(), args[0], kind)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(e show.Entry) bool { return !strings.Contains(e.Name, filter) })
		if output == "json" {
			return show.JSON(a.out, list)
		}
		_, err = fmt.Fprint(a.out, show.Config(show.NewStyle(a.out), list))
		return err
	}
	return cmd
}

// config asks the proxy of a pod for its orders.
func (w *world) config(ctx context.Context, name, kind string) ([]show.Entry, error) {
	p, err := w.find(ctx, name)
	if err != nil {
		return nil, err
	}
	query := url.Values{}
	if kind != "" {
		query.Set("kind", kind)
	}
	var list []show.Entry
	_, err = w.dial.page(ctx, p.Namespace, p.Name, portProxyAdmin, "/config?"+query.Encode(), &list)
	return list, err
}

// find finds a pod with a proxy by its name, or its name and namespace.
func (w *world) find(ctx context.Context, name string) (*core.Pod, error) {
	pods, err := w.look().proxied(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range pods {
		if pods[i].Name == name {
			return &pods[i], nil
		}
		names = append(names, pods[i].Name)
	}
	if i := strings.LastIndexByte(name, '.'); i > 0 && name[i+1:] != w.namespace {
		there := *w
		there.namespace = name[i+1:]
		return there.find(ctx, name[:i])
	} else if i > 0 && slices.Contains(names, name[:i]) {
		return w.find(ctx, name[:i])
	}
	slices.Sort(names)
	if len(names) > reasonsMax {
		names = append(names[:reasonsMax], fmt.Sprintf("or one of %d more", len(names)-reasonsMax))
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no pod has a proxy in namespace %q; choose another with -n", w.namespace)
	}
	return nil, fmt.Errorf("no pod %q with a proxy is in namespace %q; choose %s", name, w.namespace, strings.Join(names, ", "))
}

// podNames are those of pods with proxies, for a shell that completes a command line.
func (c *cluster) podNames(ctx context.Context, wanted bool) []string {
	if !wanted {
		return nil
	}
	w, err := c.world()
	if err != nil {
		return nil
	}
	if w.namespace, err = c.namespace(); err != nil {
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, completionTimeout)
	defer stop()
	pods, err := w.look().proxied(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	return out
}
