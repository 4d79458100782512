package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/deploy/apply"
	"github.com/lateen-mesh/lateen/deploy/overlay"
)

func (a *app) upgrade() *cobra.Command {
	var w wanted
	var wait time.Duration
	var dry bool
	cmd := &cobra.Command{
		Use: "upgrade", Short: "Change an installation, with the values that it has",
		Long: "Change an installation. Values of it stay unless they are given anew. With --revision of a name that is not\n" +
			"installed, a second control plane is put beside the default one, with the same values but without gateways\n" +
			"(unless they are given): move namespaces to it by the label istio.io/rev, and back.",
		Example: "  lateen upgrade --set tag=v2\n" +
			"  lateen upgrade --revision canary --set tag=v2",
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
		if !w.profileMeant {
			wish.Spec.Profile = ""
		}
		p, applier, err := a.applier(c)
		if err != nil {
			return err
		}
		wish, beside, err := kept(cmd.Context(), applier, wish)
		if err != nil {
			return err
		}
		if dry {
			return a.dryRun(cmd.Context(), applier, wish)
		}
		if err := a.raise(cmd.Context(), p, applier, wish, wait); err != nil || !beside {
			return err
		}
		_, err = fmt.Fprintf(a.out, "Move a namespace to it, and its pods after that:\n"+
			"  kubectl label namespace NAMESPACE istio-injection- istio.io/rev=%s --overwrite\n"+
			"  kubectl rollout restart deployment -n NAMESPACE\n", wish.Name)
		return err
	}
	return cmd
}

// kept lays what is wanted over what is installed. It reports whether the revision stands beside the default one from
// now on.
func kept(ctx context.Context, applier *apply.Applier, wish apply.Installation) (apply.Installation, bool, error) {
	installed, err := applier.Installed(ctx)
	if err != nil {
		return wish, false, err
	}
	find := func(name string) int {
		return slices.IndexFunc(installed, func(i apply.Installation) bool { return i.Name == name })
	}
	beside := false
	i := find(wish.Name)
	if i < 0 {
		if i, beside = find(apply.DefaultRevision), true; i < 0 || wish.Name == apply.DefaultRevision {
			return wish, false, errors.New("the cluster has no record of an installation to upgrade; see `kubectl get installations`, or run `lateen install`")
		}
	}
	old := installed[i].Spec
	if beside {
		old.Values = besides(old.Values)
	}
	wish.Spec.Profile = cmp.Or(wish.Spec.Profile, old.Profile)
	wish.Spec.Values = overlay.Values(old.Values, wish.Spec.Values)
	return wish, beside, nil
}

// besides are the values of the default revision as far as they are meant for another one: MeshConfig is the default's,
// and so are gateways, whose Services would be second ones.
func besides(given map[string]any) map[string]any {
	off := map[string]any{"enabled": false}
	out := overlay.Values(given, map[string]any{"gateways": map[string]any{"ingress": off, "egress": off}})
	mesh, _ := out["meshConfig"].(map[string]any)
	delete(out, "meshConfig")
	if domain, said := mesh["trustDomain"]; said {
		out["meshConfig"] = map[string]any{"trustDomain": domain}
	}
	return out
}
