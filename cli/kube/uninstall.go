package kube

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/deploy/apply"
)

// answerMax bounds the answer to a question.
const answerMax = 64

func (a *app) uninstall() *cobra.Command {
	var revision string
	var purge, dry, yes bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Take the mesh, or one revision of it, out of a Kubernetes cluster",
		Long: "Take one revision of the mesh out of a cluster, or with --purge all of them. With the last one goes what the\n" +
			"control plane has made, among it the authority's key. The namespace " + deploy.Namespace + ", the\n" +
			"CustomResourceDefinitions and what was written of their kinds stay. What runs Gateways of the Gateway API goes with\n" +
			"--purge. An operator (`lateen operator`) does it, and stays.",
		Example: "  lateen uninstall --revision canary\n  lateen uninstall --purge -y",
		Args:    checked(cobra.NoArgs),
	}
	c := newCluster(cmd)
	cmd.Flags().StringVar(&revision, "revision", apply.DefaultRevision, "which revision goes")
	cmd.Flags().BoolVar(&purge, "purge", false, "all revisions go")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would go, and change nothing")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().DurationVar(&wait, "wait", waitDefault, "how long it may take")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if purge && cmd.Flags().Changed("revision") {
			return usageError{errors.New("give --revision or --purge, not both")}
		}
		if purge {
			revision = ""
		}
		typed, _, err := c.clients()
		if err != nil {
			return err
		}
		p, applier, err := a.applier(c)
		if err != nil {
			return err
		}
		r, err := applier.Removal(cmd.Context(), revision)
		if err != nil {
			return err
		}
		if len(r.Objects) == 0 {
			_, err = fmt.Fprintf(a.out, "There is nothing of the revision %s.\n", cmp.Or(revision, "default, nor of others"))
			return err
		}
		if err := a.foretell(cmd.Context(), typed, r, dry); err != nil || dry {
			return err
		}
		if !yes {
			if err := a.confirm(); err != nil {
				return err
			}
		}
		err = takeAway(cmd.Context(), applier, r, wait)
		p.end()
		if err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		_, err = fmt.Fprintln(a.out, "It is gone. The namespace "+deploy.Namespace+" and the CustomResourceDefinitions stay.")
		return err
	}
	return cmd
}

// takeAway takes away what belongs to a removal. What an operator keeps it would make again: it has to do it.
func takeAway(ctx context.Context, applier *apply.Applier, r apply.Removal, wait time.Duration) error {
	operated, err := applier.Operated(ctx)
	if err != nil {
		return err
	}
	if operated {
		if err := applier.Dismiss(ctx, r.Revision, wait); err != nil {
			return err
		}
		if r, err = applier.Removal(ctx, r.Revision); err != nil { // what it has left
			return err
		}
	}
	return applier.Remove(ctx, r, wait)
}

// foretell says what goes, and whom that meets.
func (a *app) foretell(ctx context.Context, typed kubernetes.Interface, r apply.Removal, whole bool) error {
	var out strings.Builder
	if whole {
		for _, o := range r.Objects {
			fmt.Fprintf(&out, "%s deleted\n", o)
		}
	}
	fmt.Fprintf(&out, "%d objects go", len(r.Objects))
	if r.Last {
		out.WriteString(", among them the authority's key: what is installed later has another root")
	}
	out.WriteString(".\n")
	for _, o := range r.Kept {
		fmt.Fprintf(&out, "%s stays, as other revisions need it.\n", o)
	}
	for _, o := range r.Gateways {
		fate := "has no control plane then; --purge takes it away"
		if r.Revision == "" {
			fate = "goes, too; its Gateway stays"
		}
		fmt.Fprintf(&out, "%s, which runs a Gateway, %s.\n", o, fate)
	}
	pods, err := proxied(ctx, typed, r.Revision)
	if err != nil {
		return err
	}
	if pods > 0 {
		fmt.Fprintf(&out, "Pods with a proxy of it: %d. They get no new certificates: start them anew without, or with another revision's.\n", pods)
	}
	_, err = fmt.Fprint(a.out, out.String())
	return err
}

// podsPage is how many pods are asked for at once.
const podsPage = 500

// proxied counts the pods that run and whose proxy is of a revision; empty: of any. Gateways are told of by themselves.
func proxied(ctx context.Context, typed kubernetes.Interface, revision string) (int, error) {
	n := 0
	for page := (metav1.ListOptions{Limit: podsPage}); ; {
		list, err := typed.CoreV1().Pods("").List(ctx, page)
		if err != nil {
			return 0, fmt.Errorf("look for pods with proxies: %w", err)
		}
		for _, pod := range list.Items {
			of := pod.Annotations["istio.io/rev"]
			ended := pod.DeletionTimestamp != nil || pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed
			if !ended && of != "" && (revision == "" || of == revision) && pod.Labels["lateen.dev/installation"] == "" && pod.Labels["lateen.dev/managed"] == "" {
				n++
			}
		}
		if page.Continue = list.Continue; page.Continue == "" {
			return n, nil
		}
	}
}

// confirm asks whether to go on.
func (a *app) confirm() error {
	if f, isFile := a.in.(*os.File); !isFile || !term.IsTerminal(int(f.Fd())) {
		return usageError{errors.New("nobody is there to ask; give --yes")}
	}
	_, _ = fmt.Fprint(a.out, "Go on? [y/N] ")
	lines := bufio.NewScanner(a.in)
	lines.Buffer(nil, answerMax)
	if !lines.Scan() || !strings.HasPrefix(strings.ToLower(strings.TrimSpace(lines.Text())), "y") {
		return errors.New("nothing was done")
	}
	return nil
}
