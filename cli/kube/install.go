package kube

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/deploy/apply"
)

// waitDefault is how long an installation has to become ready.
const waitDefault = 5 * time.Minute

func (a *app) install() *cobra.Command {
	var w wanted
	var wait time.Duration
	var dry bool
	cmd := &cobra.Command{
		Use: "install", Short: "Install the mesh in a Kubernetes cluster",
		Long: "Install the mesh in a Kubernetes cluster, wait until it is ready, and write down in the cluster what was wanted:\n" +
			"`kubectl get installations`. The values are exactly those given; `lateen upgrade` keeps those of before. Where an\n" +
			"operator works (`lateen operator`) it is the one that installs; the command says what is wanted, and waits.",
		Example: "  lateen install --set hub=example.org/lateen --set tag=v1\n" +
			"  lateen install --profile ambient-ready -f values.yaml --dry-run",
		Args: checked(cobra.NoArgs),
	}
	c := newCluster(cmd)
	w.flags(cmd)
	cmd.Flags().DurationVar(&wait, "wait", waitDefault, "how long it may take until all is ready; 0: do not wait")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would become of each object, and change nothing")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		wish, err := w.installation(a, cmd.Flags().Changed("profile"))
		if err != nil {
			return err
		}
		p, applier, err := a.applier(c)
		if err != nil {
			return err
		}
		installed, err := applier.Installed(cmd.Context())
		if err != nil {
			return err
		}
		if dry {
			return a.dryRun(cmd.Context(), applier, wish)
		}
		for _, old := range installed {
			if lost := forgotten("", old.Spec.Values, wish.Spec.Values); old.Name == wish.Name && len(lost) > 0 {
				p.warn("values of the former installation are forgotten: " + strings.Join(lost, ", ") + "; `lateen upgrade` keeps them")
			}
		}
		return a.raise(cmd.Context(), p, applier, wish, wait)
	}
	return cmd
}

// raise installs, or has the cluster's operator do it, and says how long it took.
func (a *app) raise(ctx context.Context, p *progress, applier *apply.Applier, wish apply.Installation, wait time.Duration) error {
	begin := time.Now()
	operated, err := applier.Operated(ctx)
	if err != nil {
		return err
	}
	do, later := applier.Install, "applied; `kubectl get pods -n "+deploy.Namespace+"` says how far it is"
	if operated {
		do, later = applier.Ask, "left to the operator; `kubectl get installations` says how far it is"
	}
	err = do(ctx, wish, wait)
	p.end()
	if err != nil {
		return fmt.Errorf("install the revision %s: %w", wish.Name, err)
	}
	text := "ready"
	if wait == 0 {
		text = later
	} else if operated {
		if err := a.compareVersions(ctx, p, applier, wish.Name); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(a.out, "The revision %s is %s after %.1f s.\n", wish.Name, text, time.Since(begin).Seconds())
	return err
}

// compareVersions warns if the operator has installed another version than this command is of.
func (a *app) compareVersions(ctx context.Context, p *progress, applier *apply.Applier, revision string) error {
	own, err := deploy.Version()
	if err != nil {
		return err
	}
	i, err := applier.Find(ctx, revision)
	if err == nil && i != nil && i.Status != nil && i.Status.Version != own {
		p.warn(fmt.Sprintf("the operator has installed the version %s, this command is of %s; bring it up to date with `lateen operator init`", i.Status.Version, own))
	}
	return err
}

// applier is what changes the cluster, and tells how far it is.
func (a *app) applier(c *cluster) (*progress, *apply.Applier, error) {
	_, client, err := c.clients()
	if err != nil {
		return nil, nil, err
	}
	p := newProgress(a.out)
	return p, apply.New(apply.Config{Client: client, Tell: p.tell}), nil
}

// dryRun says what would become of each object.
func (a *app) dryRun(ctx context.Context, applier *apply.Applier, wish apply.Installation) error {
	differences, err := applier.Compare(ctx, wish)
	if err != nil {
		return err
	}
	counts := map[apply.Change]int{}
	for _, d := range differences {
		counts[d.Change]++
		if d.Change == apply.Unchanged {
			continue
		}
		if _, err := fmt.Fprintf(a.out, "%s %s\n", d.Object, d.Change); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(a.out, "Nothing was done. It would be: %d created, %d changed, %d deleted, %d unchanged. "+
		"`lateen manifest diff` shows the differences.\n",
		counts[apply.Created], counts[apply.Changed], counts[apply.Deleted], counts[apply.Unchanged])
	return err
}

// installation is what the flags want.
func (w *wanted) installation(a *app, profileGiven bool) (apply.Installation, error) {
	var out apply.Installation
	if err := w.read(a, profileGiven); err != nil {
		return out, err
	}
	values, err := deploy.Given(w.config)
	if err != nil {
		return out, err
	}
	revision, _ := values["revision"].(string)
	delete(values, "revision")
	out.Name = cmp.Or(revision, apply.DefaultRevision)
	out.Spec = apply.Spec{Profile: cmp.Or(w.config.Profile, deploy.DefaultProfile), Values: values}
	return out, nil
}

// forgotten are the paths of values that are no longer given, sorted.
func forgotten(path string, old, now map[string]any) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(old)) {
		at := strings.TrimPrefix(path+"."+name, ".")
		there, given := now[name]
		below, isMap := old[name].(map[string]any)
		if isMap {
			inner, _ := there.(map[string]any)
			out = append(out, forgotten(at, below, inner)...)
		} else if !given {
			out = append(out, at)
		}
	}
	return out
}
