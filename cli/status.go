package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/cli/show"
)

// workloads asks the mesh's host what runs.
func (a *app) workloads() ([]host.Status, error) {
	c, err := host.Dial(a.dir)
	if err != nil {
		return nil, a.absent(err)
	}
	defer func() { _ = c.Close() }()
	return c.List()
}

// proxies joins what is known of every proxy. The control plane may be away.
func (a *app) proxies(ctx context.Context) ([]show.Proxy, error) {
	running, err := a.workloads()
	if err != nil {
		return nil, err
	}
	var known []show.Proxy
	err = host.Call(ctx, a.dir.API(), http.MethodGet, "/proxies", nil, &known)
	if err != nil && !errors.Is(err, host.ErrNobody) {
		return nil, err
	}
	var out []show.Proxy
	for _, w := range running {
		p := show.Proxy{Name: w.Name, Namespace: w.Namespace, Role: w.Role}
		if i := slices.IndexFunc(known, func(k show.Proxy) bool { return k.Name == w.Name && k.Namespace == w.Namespace }); i >= 0 {
			p = known[i]
			p.Role = w.Role
		}
		var own show.Own
		if err := host.Call(ctx, w.AdminSocket, http.MethodGet, "/status", nil, &own); err == nil {
			p.Join(own)
		}
		out = append(out, p)
	}
	show.Sort(out)
	return out, nil
}

// status is `lateen status`.
func (a *app) status() *cobra.Command {
	var output, namespace string
	cmd := &cobra.Command{
		Use: "status", Short: "Show every proxy: identity, orders, memory", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.inCluster(cmd) {
				return a.toKubernetes(cmd, a.args)
			}
			if err := format(output, "text", "json"); err != nil {
				return err
			}
			list, err := a.proxies(cmd.Context())
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(p show.Proxy) bool { return namespace != "" && p.Namespace != namespace })
			if output == "json" {
				return show.JSON(a.out, list)
			}
			say(a.out, "%s", show.Proxies(show.NewStyle(a.out), list, time.Now()))
			return a.folderState(cmd.Context())
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only of this namespace; empty: of all")
	clusterFlags(cmd)
	return cmd
}

// folderState tells why the mesh's folder of configuration is not in force, if it is not, and what is odd about what is.
func (a *app) folderState(ctx context.Context) error {
	var folder struct {
		Faults   []finding `json:"faults"`
		Warnings []finding `json:"warnings"`
	}
	err := host.Call(ctx, a.dir.API(), http.MethodGet, "/status", nil, &folder)
	switch {
	case errors.Is(err, host.ErrNobody):
		say(a.out, "the control plane is away; the proxies go on with their last orders\n")
		return nil
	case err != nil:
		return err
	}
	if len(folder.Faults) > 0 {
		say(a.out, "%s is refused; the last good configuration stays in force, because of:\n", a.dir.Config())
	}
	for _, f := range folder.Faults {
		say(a.out, "  %s\n", f.text(nil))
	}
	for _, w := range folder.Warnings {
		say(a.out, "%s %s\n", show.NewStyle(a.out).Warn.Render("Warning:"), w.text(nil))
	}
	return nil
}

// proxyConfig is `lateen proxy-config`.
func (a *app) proxyConfig() *cobra.Command {
	var output, filter, namespace string
	cmd := &cobra.Command{
		Use:     "proxy-config NAME [all|listeners|routes|clusters|endpoints|secrets|names]",
		Aliases: []string{"pc"}, Short: "Show the orders that a proxy obeys", Args: checked(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.inCluster(cmd) {
				return a.toKubernetes(cmd, a.args)
			}
			if err := format(output, "text", "json"); err != nil {
				return err
			}
			kind, err := show.Kind(append(args, "all")[1])
			if err != nil {
				return usage(err)
			}
			list, err := a.config(cmd.Context(), args[0], namespace, kind)
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(e show.Entry) bool { return !strings.Contains(e.Name, filter) })
			if output == "json" {
				return show.JSON(a.out, list)
			}
			say(a.out, "%s", show.Config(show.NewStyle(a.out), list))
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().StringVar(&filter, "name", "", "only what has this in its name")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "the proxy's namespace; in a cluster the context's, if none is given")
	clusterFlags(cmd)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) == 1:
			return show.Sections(), cobra.ShellCompDirectiveNoFileComp
		case len(args) > 1:
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if dir, err := host.DirOf(a.mesh); err == nil && a.dir == "" {
			a.dir = dir
		}
		if a.inCluster(cmd) {
			return a.completed(cmd, given(cmd), word)
		}
		running, _ := a.workloads()
		var names []string
		for _, w := range running {
			names = append(names, w.Name+"."+w.Namespace)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	return cmd
}

// config asks a proxy for its orders.
func (a *app) config(ctx context.Context, name, namespace, kind string) ([]show.Entry, error) {
	running, err := a.workloads()
	if err != nil {
		return nil, err
	}
	if short, in, ok := strings.Cut(name, "."); ok {
		name, namespace = short, in
	}
	var names []string
	for _, w := range running {
		if w.Name != name || w.Namespace != namespace {
			names = append(names, w.Name+"."+w.Namespace)
			continue
		}
		var list []show.Entry
		query := url.Values{}
		if kind != "" {
			query.Set("kind", kind)
		}
		if err := host.Call(ctx, w.AdminSocket, http.MethodGet, "/config?"+query.Encode(), nil, &list); err != nil {
			return nil, fmt.Errorf("ask the proxy of %s for its orders: %w", name, err)
		}
		return list, nil
	}
	slices.Sort(names)
	return nil, fmt.Errorf("no proxy %q runs in namespace %q; choose %s", name, namespace, strings.Join(names, ", "))
}
