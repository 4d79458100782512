package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/show"
)

// status is `lateen status` of a cluster.
func (a *app) status() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status", Short: "Show every proxy: identity, orders, memory", Args: checked(cobra.NoArgs),
	}
	c := newCluster(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := show.Choice(output, "text", "json"); err != nil {
			return usageError{err}
		}
		w, err := c.world()
		if err != nil {
			return err
		}
		w.namespace = *c.flags.Namespace
		return a.showStatus(cmd.Context(), w, output)
	}
	return cmd
}

func (a *app) showStatus(ctx context.Context, w *world, output string) error {
	l := w.look()
	list, err := l.proxies(ctx)
	if err != nil {
		return err
	}
	rows := []show.Proxy{}
	var notes []string
	for _, p := range list {
		if p.asked != nil {
			p.Ready = containerReady(p.pod, proxyContainer)
			notes = append(notes, fmt.Sprintf("%s.%s does not answer: %v", p.Name, p.Namespace, p.asked))
		}
		rows = append(rows, p.Proxy)
	}
	show.Sort(rows)
	if output == "json" {
		return show.JSON(a.out, rows)
	}
	style := show.NewStyle(a.out)
	if _, err := fmt.Fprint(a.out, show.Proxies(style, rows, w.now())); err != nil {
		return err
	}
	states, err := l.states(ctx)
	isReady := func(s controlState) bool { return s.ready }
	switch {
	case err != nil:
		notes = append(notes, err.Error())
	case len(states) == 0:
		notes = append(notes, "the control plane is away; the proxies go on with their last orders")
	case !slices.ContainsFunc(states, isReady):
		notes = append(notes, "no lateend is ready; the proxies go on with their last orders")
	}
	notes = append(notes, unready(states)...)
	for _, line := range notes {
		_, _ = fmt.Fprintln(a.out, line)
	}
	if v := nothingRefused(ctx, l); len(v.why) > 0 {
		_, _ = fmt.Fprintf(a.out, "of these objects the last good version stays in force, because of:\n  %s\n", strings.Join(v.why, "\n  "))
	}
	for _, text := range nothingOdd(ctx, l).told() {
		_, _ = fmt.Fprintln(a.out, style.Warn.Render("Warning:"), text)
	}
	return nil
}

// told is what a check found odd.
func (v verdict) told() []string {
	if v.level != warned {
		return nil
	}
	return v.why
}

func containerReady(p *core.Pod, name string) bool {
	return slices.ContainsFunc(slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses), func(s core.ContainerStatus) bool {
		return s.Name == name && s.Ready
	})
}
